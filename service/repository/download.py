"""Download one file so that it can be cut off at any moment: it goes on where it stopped, or starts again, and is checked whole.

The bytes gather in NAME.part; NAME.part.tag holds the server's ETag or Last-Modified, so that a file that has changed meanwhile is
never glued together from two halves (RFC 9110, Range and If-Range).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import httpx2
from unearth.fetchers import PyPIClient

from service.repository.attempt import Refused, Transient, no_answer, persist
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

    def download(self, remote: Remote, target: Path, limit: int) -> None:
        """Bring `remote` to `target`, of at most `limit` bytes; returns at once when it is there. Raises Refused."""
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part, tag = _part(target), _tag(target)
        while True:
            resumed = part.exists() and part.stat().st_size > 0
            persist(
                lambda: self._transfer(remote, part, tag, limit), remote.filename, self.retries, self.progress, lambda: _size(part)
            )
            if remote.digest is None or digest_of(part, remote.digest[0]) == remote.digest[1]:
                break
            part.unlink()
            tag.unlink(missing_ok=True)
            if not resumed:
                name, wanted = remote.digest
                raise Refused(f"it does not have the {name} {wanted} that was promised", wrong_digest=True)
            self.progress.note(f"{remote.filename}: what was left of an earlier download does not fit; starting again")
        put_in_place(part, target)
        tag.unlink(missing_ok=True)

    def _transfer(self, remote: Remote, part: Path, tag: Path, limit: int) -> None:
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
                self._receive(response, remote.filename, part, tag, start if status == 206 else 0, limit)
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
                    file.truncate(0)
                    raise Refused(f"it is larger than {limit} bytes", wrong_digest=True)
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())


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
