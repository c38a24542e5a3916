"""Files and folders for the command line: find photos, work on several at a time, write results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from service.errors import OptionInvalid
from service.repository.files import write_whole

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"])

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Found:
    """A photo, and the path below the folder that was searched for it (its name alone when it was given itself)."""

    path: Path
    below: Path


def find_photos(paths: Iterable[Path]) -> list[Found]:
    """Files as given, and every photo below each folder, in order. Raises OptionInvalid when there are none."""
    found: list[Found] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found += [Found(p, p.relative_to(path)) for p in inside]
        elif path.exists():
            found.append(Found(path, Path(path.name)))
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


class Target:
    """Where pictures made from `photos` go: below the folder `out` as the photos lie below theirs, or to the file `out`.

    `file`: does `out` name one file? Raises OptionInvalid where it does for several photos.
    """

    def __init__(self, out: Path, photos: Sequence[Found]) -> None:
        self._out = out
        self.file = out.suffix.lower() in SUFFIXES and not out.is_dir()
        if self.file and len(photos) > 1:
            raise OptionInvalid("--out", f"{len(photos)} photos cannot all be written to {out}; name a folder")
        self._photos = {found.path.resolve() for found in photos}
        self._taken: set[Path] = set()

    def write(self, photo: Found, data: bytes, suffix: str) -> Path:
        """Write the picture made from `photo` in one step. A name that is taken by another gets the photo's whole name before it.

        Raises OptionInvalid rather than write over one of the photos; OSError.
        """
        path = self._out if self.file else self._out / photo.below.with_suffix(suffix)
        if path in self._taken:
            path = self._out / photo.below.with_name(photo.below.name + suffix)
        if path.resolve() in self._photos:
            raise OptionInvalid("--out", f"{path} is one of the photos and stays as it is; name another place with --out")
        self._taken.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
        return path
