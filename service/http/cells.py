"""Numbers of one process in memory that its siblings can read, so that any of several workers can answer for all of them.

    folder/  0.lock  0.names  0.cells      the place of one worker: it holds the lock as long as it lives
             1.lock  1.names  1.cells      the place of another

A cell is a float64 that only its own process writes: adding to it takes no lock and no system call. A worker that starts where
another died takes over its place and goes on with its numbers, so that no count goes back and no file stays behind.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

FOLDER = "METRICS_FOLDER"  # the environment variable by which a supervisor names the folder to its workers
CELLS = 2**16
BYTES = 8

Key = tuple[str, ...]
PID = ("pid",)


@contextmanager
def shared(workers: int) -> Iterator[None]:
    """A private folder for the numbers of `workers` processes that are started inside; nothing where there is just one."""
    if workers == 1:
        yield
        return
    with TemporaryDirectory(prefix="vision-service-") as folder:
        os.environ[FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[FOLDER]


@dataclass(frozen=True)
class Snapshot:
    """The numbers of one worker, by name; `pid` is None where it has died and nobody has taken its place."""

    worker: int
    pid: int | None
    blocks: dict[Key, list[float]]


class Cells:
    """The numbers of this process. `values`: float64 [CELLS]; `folder`: where siblings find them, None where there are none.

    block() belongs to one thread; `values` may be written by any, each cell by one at a time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._blocks: dict[Key, tuple[int, int]] = {}
        self._end = 0
        if folder is None:
            self.worker, memory = 0, mmap(-1, CELLS * BYTES)
        else:
            self.worker, self._lock = _free_place(folder)
            self._names = folder / f"{self.worker}.names"
            self._blocks, self._end = _read_names(self._names)
            memory = _map(folder / f"{self.worker}.cells")
        self.values = memoryview(memory).cast("d")
        self.values[self.block(PID, 1)] = os.getpid()

    def block(self, key: Key, size: int) -> int:
        """The index in `values` of the first of `size` cells called `key`: as they were left, or zeros where they are new.

        When all cells are in use, new keys share cells that nobody reads.
        """
        if key not in self._blocks:
            if self._end + size > CELLS:
                return CELLS - size
            self._blocks[key] = self._end, size
            self._end += size
            if self._folder is not None:
                with suppress(OSError), self._names.open("a", encoding="utf-8") as names:  # to be counted is no condition
                    names.write(json.dumps([size, *key]) + "\n")
        return self._blocks[key][0]

    def clear(self, names: Iterable[str]) -> None:
        """Set to zero what a worker that died here has left under keys that begin with one of `names`."""
        names = frozenset(names)
        for (name, *_), (start, size) in self._blocks.items():
            if name in names:
                self.values[start : start + size] = memoryview(bytes(size * BYTES)).cast("d")

    def snapshots(self) -> list[Snapshot]:
        """The numbers of every worker, those of this process as they are right now."""
        blocks = {key: list(self.values[start : start + size]) for key, (start, size) in list(self._blocks.items())}
        own = Snapshot(self.worker, os.getpid(), blocks)
        if self._folder is None:
            return [own]
        places = sorted(int(path.stem) for path in self._folder.glob("*.cells"))
        return [own if place == self.worker else _read(self._folder, place) for place in places]


def _free_place(folder: Path) -> tuple[int, FileLock]:
    place = 0
    while True:
        lock = FileLock(folder / f"{place}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            place += 1
        else:
            return place, lock


def _read_names(path: Path) -> tuple[dict[Key, tuple[int, int]], int]:
    blocks: dict[Key, tuple[int, int]] = {}
    end = 0
    for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else ():
        size, *key = json.loads(line)
        blocks[tuple(key)] = end, size
        end += size
    return blocks, end


def _map(path: Path) -> mmap:
    with path.open("a+b") as file:
        file.write(bytes(CELLS * BYTES - file.tell()))  # written, not just sized: a full disk is met here and not later
        file.flush()
        return mmap(file.fileno(), CELLS * BYTES)


def _read(folder: Path, place: int) -> Snapshot:
    """The numbers of another worker, which may be writing them."""
    names, end = _read_names(folder / f"{place}.names")
    with (folder / f"{place}.cells").open("rb") as file:
        values = memoryview(file.read(end * BYTES)).cast("d")
    blocks = {key: list(values[start : start + size]) for key, (start, size) in names.items()}
    try:
        with FileLock(folder / f"{place}.lock", timeout=0):
            return Snapshot(place, None, blocks)
    except Timeout:
        pid = blocks.get(PID)
        return Snapshot(place, None if pid is None else int(pid[0]), blocks)
