"""Names are any text that a person may write, and only that is refused which cannot be told apart or written."""

import pytest

from service.errors import OptionInvalid
from service.gallery.names import MAX_NAME, check_name


@pytest.mark.parametrize(
    "text", ["Ada", "a/b", "..", "%", "_", "it's", "\U0001f600", "名前", "a b", "x" * MAX_NAME, "\U0001f600" * MAX_NAME]
)
def test_what_is_kept_as_it_is(text: str) -> None:
    assert check_name("subject", text) == text


def test_what_looks_the_same_is_the_same() -> None:
    assert check_name("subject", "Zoe\u0308") == "Zo\u00eb"
    assert len(check_name("subject", "e\u0301" * MAX_NAME)) == MAX_NAME


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("", "empty"), (" ", "empty"), ("x" * (MAX_NAME + 1), "201 characters"), (" Ada", "white space"), ("Ada\n", "white space"),
        ("A\x00da", r"U\+0000"), ("A\nda", r"U\+000A"), ("A\x7f", r"U\+007F"), ("\ud800x", r"U\+D800"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, because: str) -> None:
    with pytest.raises(OptionInvalid, match=f"subject.*{because}"):
        check_name("subject", text)
