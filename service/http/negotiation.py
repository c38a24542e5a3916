"""Which of the media types on offer a client wants most: RFC 9110, section 12.5.1."""

from collections.abc import Sequence

from service.errors import NotAcceptable

JSON = "application/json"
PICTURES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def choose(accept: str | None, offers: Sequence[str]) -> str:
    """The offer with the highest quality under `accept`, the earlier one on a tie; the first when nothing was said.

    Raises NotAcceptable naming the offers. Parts of `accept` that cannot be parsed are passed over.
    """
    if not accept or accept == "*/*":
        return offers[0]
    ranges = [item for item in (_parse(part) for part in accept.split(",")) if item is not None]
    if not ranges:
        return offers[0]
    best = max(offers, key=lambda offer: _quality(offer, ranges))  # max keeps the first of equals
    if _quality(best, ranges) <= 0:
        raise NotAcceptable(f"this path answers {', '.join(offers)}; the request accepts only {accept!r:.200}")
    return best


def _parse(part: str) -> tuple[str, float] | None:
    """ "image/*;q=0.8" -> ("image/*", 0.8); None where it is no media range. Other parameters are passed over."""
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    main, slash, sub = media.partition("/")
    if not (main and slash and sub):
        return None
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return None
            return (media, quality) if 0 <= quality <= 1 else None
    return media, 1.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Quality of `offer`: the most specific range that matches it decides."""
    for pattern in (offer, offer.partition("/")[0] + "/*", "*/*"):
        matches = [quality for media, quality in ranges if media == pattern]
        if matches:
            return max(matches)
    return 0.0
