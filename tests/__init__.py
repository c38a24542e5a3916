"""Named here so that no other package called tests, which some clients bring along, is taken for it by a spawned process."""
