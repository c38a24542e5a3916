"""Files and folders for the command line: find photos, work on several at a time, write results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from service.errors import OptionInvalid

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"])

T = TypeVar("T")
R = TypeVar("R")


def find_photos(paths: Iterable[Path]) -> list[Path]:
    """Files as given, and every photo below each folder, in order. Raises OptionInvalid when there are none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise OptionInvalid("PATH", f"{path} does not exist")
    if not found:
        raise OptionInvalid("PATH", f"there are no photos there; looked for {' '.join(sorted(SUFFIXES))}")
    return found


def in_order(function: Callable[[T], R], items: Iterable[T], width: int) -> Iterator[R]:
    """function(item) for each, up to `width` at a time, results in order; no more than `width` wait in memory."""
    with ThreadPoolExecutor(width) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= width:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def target(photo: Path, out: Path, suffix: str, alone: bool) -> Path:
    """Where the picture made from `photo` goes: `out` itself when it names a file for one photo, else a file inside it."""
    if alone and out.suffix.lower() in SUFFIXES and not out.is_dir():
        return out
    return out / f"{photo.stem}{suffix}"


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`, making folders; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
