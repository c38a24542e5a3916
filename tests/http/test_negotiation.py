import pytest

from service.errors import NotAcceptable
from service.http.negotiation import choose

OFFERS = ("application/json", "image/jpeg", "image/png", "image/webp")
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("image/*", "image/jpeg"),
        ("application/json, image/png", "application/json"),
        ("image/png;q=0.5, image/webp;q=0.7", "image/webp"),
        ("application/json;q=0.4, image/*;q=0.5", "image/jpeg"),
        ("*/*, application/json;q=0", "image/jpeg"),
        ("image/*, image/jpeg;q=0.1", "image/png"),
        ("application/json; charset=utf-8", "application/json"),
        (BROWSER, "image/webp"),
        ("rubbish, image/png", "image/png"),
        ("rubbish", "application/json"),
        ("image/png;q=high", "application/json"),
        ("image/png;q=7, image/webp;q=0.1", "image/webp"),
        ("image/png;q=nan, image/webp;q=0.1", "image/webp"),
    ],
)
def test_the_most_wanted_offer_is_chosen(accept: str | None, expected: str) -> None:
    assert choose(accept, OFFERS) == expected


@pytest.mark.parametrize("accept", ["text/html", "video/*", "application/json;q=0", "*/*;q=0"])
def test_when_nothing_fits_the_offers_are_named(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="application/json"):
        choose(accept, ("application/json",))
