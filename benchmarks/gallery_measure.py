"""What gallery.py measures, each function in a process of its own that holds nothing else: see `alone`."""

import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from gallery_data import BOX, QUALITY, Made, Vectors, model_of, name, strangers
from servers import PAGE

from service.gallery import open_gallery
from service.gallery.gallery import Gallery, NewFace
from service.settings import Settings

COLLECTION: Final = "default"
EIGHT: Final = 8
THREADS: Final = 16
Result = TypeVar("Result")
Pairs = list[tuple[float, float]]
"""Seconds of a search, and of the matrix product next to it."""


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of this module in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def opened(url: str, dimension: int) -> Iterator[Gallery]:
    gallery = open_gallery(Settings.from_env({"VISION_GALLERY_URL": url}), model_of(dimension))
    try:
        yield gallery
    finally:
        gallery.close()


def fill(url: str, folder: Path) -> float:
    """Seconds that import_ took for all vectors in `folder`."""
    made = Made(folder)
    with opened(url, made.vectors.shape[1]) as gallery:
        start = time.perf_counter()
        added = gallery.import_(made.entries(COLLECTION))
        seconds = time.perf_counter() - start
    if added != len(made.vectors):
        raise SystemExit(f"import_ added {added} faces of {len(made.vectors)}")
    return seconds


@dataclass(frozen=True)
class Start:
    """`seconds` from opening to the first answer; `grown` and `most`: bytes of memory beyond what the process
    had before, afterwards and at the worst moment."""

    seconds: float
    grown: int
    most: int


def start(url: str, dimension: int, file: Path | None = None) -> Start:
    """Open, warm up, search once. `file`: to be dropped from the disk's cache first."""
    queries = strangers(EIGHT + 1, dimension)
    if file is not None:
        _drop(file)
    before, begun = _resident(), time.perf_counter()
    with opened(url, dimension) as gallery:
        gallery.warm()
        gallery.search(COLLECTION, queries[:1])
        seconds = time.perf_counter() - begun
        gallery.search(COLLECTION, queries[1:])
        return Start(seconds, _resident() - before, _most() - before)


def compare(url: str, folder: Path, pairs: int, eights: int) -> tuple[Pairs, Pairs]:
    """Search with one embedding next to `V @ q`, and with eight next to `V @ Q.T`: in turn, each first every other time."""
    made = Made(folder)
    vectors, dimension = np.array(made.vectors), made.vectors.shape[1]
    with opened(url, dimension) as gallery:
        gallery.warm()
        one = _pairs(gallery, vectors, strangers(pairs, dimension)[:, None])
        return one, _pairs(gallery, vectors, strangers(eights * EIGHT, dimension).reshape(eights, EIGHT, dimension))


def _pairs(gallery: Gallery, vectors: Vectors, queries: Vectors) -> Pairs:
    found: Pairs = []
    for number, query in enumerate([*queries[:2], *queries]):  # the first two do not count
        search = partial(gallery.search, COLLECTION, query)
        product = partial(np.matmul, vectors, query[0] if len(query) == 1 else query.T)
        if number % 2:
            mine, theirs = _timed(search), _timed(product)
        else:
            theirs, mine = _timed(product), _timed(search)
        found.append((mine, theirs))
    return found[2:]


def searched(url: str, queries: Vectors, count: int) -> tuple[list[list[str]], list[float]]:
    """The `count` best subjects for each query, asked one after the other, and the seconds that each took."""
    names, seconds = [], []
    with opened(url, queries.shape[1]) as gallery:
        gallery.warm()
        gallery.search(COLLECTION, queries[:1])
        for query in queries:
            begun = time.perf_counter()
            found = gallery.search(COLLECTION, query[None], count)
            seconds.append(time.perf_counter() - begun)
            names.append([match.subject for match in found.matches[0]])
    return names, seconds


@dataclass(frozen=True)
class Changes:
    """`alone` and `together`: new subjects enrolled a second by one thread and by sixteen; the others are seconds each took.
    `grown` is as in Start, after all of it."""

    alone: float
    together: float
    searches: list[float]
    deletions: list[float]
    grown: int


def change(url: str, dimension: int, seconds: float, persons: list[int]) -> Changes:
    """Enroll for `seconds` in one thread, then in sixteen; search right after each of some enrolments; delete `persons`."""
    before = _resident()
    with opened(url, dimension) as gallery:
        gallery.warm()
        rates = [_enrolled(gallery, dimension, seconds, threads) for threads in (1, THREADS)]
        fresh = strangers(20, dimension, seed=99)
        searches = [_found_at_once(gallery, vector, number) for number, vector in enumerate(fresh)]
        deletions = [_timed(partial(gallery.delete_subject, COLLECTION, name(person))) for person in persons]
        gallery.search(COLLECTION, fresh[:1])
        return Changes(rates[0], rates[1], searches, deletions, _resident() - before)


def _enrolled(gallery: Gallery, dimension: int, seconds: float, threads: int) -> float:
    """Enrolments a second."""
    begun = time.perf_counter()

    def keep_enrolling(thread: int) -> int:
        vectors = strangers(20_000, dimension, seed=1000 * threads + thread)
        for number, vector in enumerate(vectors):
            if time.perf_counter() - begun > seconds:
                return number
            gallery.enroll(COLLECTION, f"enrolled by {thread} of {threads}, {number}", [NewFace(vector, BOX, QUALITY)])
        return len(vectors)

    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(keep_enrolling, range(threads)))
    return count / (time.perf_counter() - begun)


def _found_at_once(gallery: Gallery, vector: Vectors, number: int) -> float:
    subject = f"new {number}"
    gallery.enroll(COLLECTION, subject, [NewFace(vector, BOX, QUALITY)])
    begun = time.perf_counter()
    found = gallery.search(COLLECTION, vector[None])
    seconds = time.perf_counter() - begun
    if found.matches[0][0].subject != subject:
        raise SystemExit("a face was not found right after it had been enrolled")
    return seconds


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # only clean pages can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def _most() -> int:
    """The most memory that this process has had so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit("/proc says nothing about memory: this runs on Linux only")
    return int(found[1]) * 1024
