"""One try at getting something: how it is refused, when it is worth another try, and what may be said about it."""

import re
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2

from service.repository.progress import Progress

GAIN = 2**20
T = TypeVar("T")


class Refused(Exception):
    """One way to get a file did not work; the message says why. `wrong_digest`: bytes came, but not the right ones."""

    def __init__(self, reason: str, *, wrong_digest: bool = False) -> None:
        super().__init__(reason)
        self.wrong_digest = wrong_digest


class Transient(Refused):
    """The same try may work a little later."""


def no_answer(error: httpx2.HTTPError | httpx2.InvalidURL) -> Refused:
    """Transient for what the network may get over, Refused for what it will not: bad URLs, certificates that nobody vouches for."""
    if isinstance(error, httpx2.ReadTimeout):
        return Transient("it stalled: no more bytes came, and it was given up")
    text = redact(f"no answer: {str(error) or type(error).__name__}")
    passing = isinstance(error, httpx2.TransportError) and "CERTIFICATE_VERIFY_FAILED" not in text
    return Transient(text) if passing else Refused(text)


def shown(beginning: bytes) -> str | None:
    """What came in place of a file, by its first bytes, in words; None where they tell nothing."""
    text = beginning.lstrip()[:256].lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, which only says where the file is"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page, such as a host shows instead of the file"
    if text.startswith((b"<?xml", b'{"error', b'{"message')):
        return "a message of the host instead of the file"
    return None


def redact(text: str) -> str:
    """`text` with the user and password of every URL in it replaced by ***."""
    return re.sub(r"(?<=://)[^/\s]+@", "***@", text)


def persist(action: Callable[[], T], what: str, retries: int, progress: Progress, size: Callable[[], int] = lambda: 0) -> T:
    """Do `action`, called `what` in notes, until it is not Transient: at most `retries` times more, waiting longer each time.

    size: bytes got so far; each new megabyte wins all retries back, so that a long download survives many short cuts.
    """
    failures, best = 0, size()
    while True:
        try:
            return action()
        except Transient as error:
            failures = 1 if size() >= best + GAIN else failures + 1
            best = max(best, size())
            if failures > retries:
                raise
            delay = min(0.25 * 2**failures, 8.0)
            progress.note(f"{what}: {error}; trying again in {delay:g} s")
            time.sleep(delay)
