"""One file tells the whole story of one task: its options, its answer, what happens between them."""
