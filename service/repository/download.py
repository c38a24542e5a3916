"""Download one file so that it can be cut off at any moment: it goes on where it stopped, or starts again, and is checked whole.

The bytes gather in NAME.part; NAME.part.tag holds the server's ETag or Last-Modified, so that a file that has changed meanwhile is
never glued together from two halves (RFC 9110, Range and If-Range).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import httpx2
from unearth.fetchers import PyPIClient

from service.repository.attempt import Refused, Transient, no_answer, persist, shown
from service.repository.files import digest_of, put_in_place
from service.repository.index import Remote
from service.repository.progress import Progress

_TRY_AGAIN = frozenset([408, 425, 429, 500, 502, 503, 504, 520, 524])


@dataclass(frozen=True)
class Downloader:
    """`retries` is how often a cut or refused connection is tried again without a gain."""

    client: PyPIClient
    retries: int
    progress: Progress

    def download(self, remote: Remote, target: Path, limit: int, *, exact: bool = False) -> None:
        """Bring `remote` to `target`, of at most `limit` bytes, or with `exact` of just as many; returns at once when it is there.

        What is not the file is refused as early as it shows, and called by its name. Raises Refused.
        """
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part, tag = _part(target), _tag(target)
        while True:
            resumed = part.exists() and part.stat().st_size > 0
            persist(
                lambda: self._transfer(remote, part, tag, limit, exact),
                remote.filename,
                self.retries,
                self.progress,
                lambda: _size(part),
            )
            wrong = _wrong(part, remote, limit if exact else None)
            if wrong is None:
                break
            part.unlink()
            tag.unlink(missing_ok=True)
            if not resumed:
                raise Refused(wrong, wrong_digest=True)
            self.progress.note(f"{remote.filename}: what was left of an earlier download does not fit; starting again")
        put_in_place(part, target)
        tag.unlink(missing_ok=True)

    def _transfer(self, remote: Remote, part: Path, tag: Path, limit: int, exact: bool) -> None:
        known = tag.read_text(encoding="latin-1") if tag.exists() else ""
        start = _size(part) if known or remote.digest else 0
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-"} | ({"If-Range": known} if known else {})
        try:
            with self.client.stream("GET", remote.url, headers=headers) as response:
                status, ranged = response.status_code, response.headers.get("Content-Range", "")
                if status == 416 and ranged == f"bytes */{start}":
                    return  # cut off between the last byte and the renaming
                if status == 416 or (status == 206 and not ranged.startswith(f"bytes {start}-")):
                    part.unlink(missing_ok=True)
                    raise Transient(f"the server cannot go on from byte {start}")
                if status not in (200, 206):
                    kind = Transient if status in _TRY_AGAIN else Refused
                    raise kind(f"HTTP {status} {response.reason_phrase}")
                if exact:
                    _expect(response, start if status == 206 else 0, limit)
                self._receive(response, remote.filename, part, tag, start if status == 206 else 0, limit)
                if exact and _size(part) < limit and "Content-Length" not in response.headers:
                    raise Transient(f"it ended after {_size(part)} of {limit} bytes")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise no_answer(error) from None

    def _receive(self, response: httpx2.Response, label: str, part: Path, tag: Path, start: int, limit: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        with part.open("ab" if start else "wb") as file, self.progress.bar(label, total, start) as advance:
            if not start:
                tag.write_text(_validator(response), encoding="latin-1")
            for chunk in response.iter_raw():
                if file.tell() + len(chunk) > limit:
                    beginning = _beginning(part) or chunk
                    file.truncate(0)
                    raise Refused(_named(beginning, f"it is larger than {limit} bytes"), wrong_digest=True)
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())


def _expect(response: httpx2.Response, start: int, size: int) -> None:
    """Raises Refused where the answer, from byte `start` on, says itself that the whole is not of `size` bytes."""
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and start + int(length) != size:
        beginning = b"" if start else next(response.iter_raw(), b"")
        raise Refused(_named(beginning, f"it has {start + int(length)} bytes, not {size}"), wrong_digest=True)


def _wrong(part: Path, remote: Remote, size: int | None) -> str | None:
    """Why the finished `part` is not the file, in words; None where it is."""
    if size is not None and _size(part) != size:
        return _named(_beginning(part), f"it has {_size(part)} bytes, not {size}")
    if remote.digest is None or digest_of(part, remote.digest[0]) == remote.digest[1]:
        return None
    return _named(_beginning(part), f"it does not have the {remote.digest[0]} {remote.digest[1]} that was promised")


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _named(beginning: bytes, reason: str) -> str:
    what = shown(beginning)
    return reason if what is None else f"{reason}; it is {what}"


def _validator(response: httpx2.Response) -> str:
    """What If-Range takes: a strong ETag, else the date; empty where the server gives neither."""
    etag: str = response.headers.get("ETag", "")
    date: str = response.headers.get("Last-Modified", "")
    return etag if etag.startswith('"') else date


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _tag(target: Path) -> Path:
    return target.with_name(f"{target.name}.part.tag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
