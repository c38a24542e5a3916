"""Files that are whole or not there at all: digests, atomic replacement, and locks between processes."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from service.repository.progress import Progress


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def put_in_place(part: Path, target: Path) -> None:
    """Rename `part`, whose bytes are already synced, to `target`, so that a crash leaves the old or the new, never half."""
    part.replace(target)
    if os.name == "posix":  # elsewhere a folder cannot be opened to sync its names
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sync(path: Path) -> None:
    """Wait until the bytes of `path` are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step; needs a lock around it where several may write."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    sync(part)
    put_in_place(part, path)


@contextmanager
def locked(path: Path, progress: Progress, waiting: str) -> Iterator[None]:
    """Hold the lock file `path`; says `waiting` once when another process holds it. The lock dies with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.note(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
