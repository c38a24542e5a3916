"""Made-up face embeddings in a file, and exact search in it: seeded, written and read in blocks, so that size is no matter.

*faces*: a person is a random direction with 1 to 5 photos around it, two photos of one person having a cosine of about 0.65.
*uniform*: each vector is a person of its own in a random direction. Nothing is near anything, which is the worst for a graph index.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from service.gallery.gallery import EmbeddingModel, Entry

Kind = Literal["faces", "uniform"]
Vectors = NDArray[np.float32]
WITHIN: Final = 0.65
"""Mean cosine of two photos of one person."""
SPREAD: Final = (1 / WITHIN - 1) ** 0.5  # length of what a photo adds to its person's direction
MOST: Final = 5  # photos of one person
BLOCK: Final = 50_000
BEGAN: Final = datetime(2025, 1, 1, tzinfo=UTC)
BOX: Final = (40.0, 40.0, 160.0, 180.0)
QUALITY: Final[dict[str, Any]] = {
    "size": 120.0,
    "sharpness": 0.1,
    "pose": {"yaw": 1.0, "pitch": -2.0, "roll": 0.5},
    "warnings": [],
}


class Made:
    """Vectors [n, d] in vectors.npy and the number of each one's person [n], ascending, in persons.npy."""

    def __init__(self, folder: Path) -> None:
        self.vectors: Vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self.persons: NDArray[np.int64] = np.load(folder / "persons.npy")

    def entries(self, collection: str) -> Iterator[Entry]:
        """All of them, a person being the subject name(person)."""
        for start in range(0, len(self.vectors), BLOCK):
            block = np.array(self.vectors[start : start + BLOCK])
            for row, (vector, person) in enumerate(zip(block, self.persons[start : start + BLOCK].tolist(), strict=True), start):
                yield Entry(collection, name(person), vector, BOX, QUALITY, BEGAN + timedelta(seconds=row))

    def best(self, queries: Vectors, count: int) -> list[list[int]]:
        """The `count` persons most like each query, best first, by comparing it with every vector."""
        keep = min(count * MOST, len(self.vectors))  # so many vectors are of `count` persons at least
        scores = np.empty((len(queries), 0), np.float32)
        rows = np.empty((len(queries), 0), np.int64)
        for start in range(0, len(self.vectors), BLOCK):
            block = queries @ np.array(self.vectors[start : start + BLOCK]).T
            top = np.argpartition(-block, min(keep, block.shape[1]) - 1, axis=1)[:, :keep]
            scores = np.hstack([scores, np.take_along_axis(block, top, axis=1)])
            rows = np.hstack([rows, top + start])
            order = np.argsort(-scores, axis=1)[:, :keep]
            scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return [list(dict.fromkeys(self.persons[found].tolist()))[:count] for found in rows]


def name(person: int) -> str:
    return f"person {person:08}"


def model_of(dimension: int) -> EmbeddingModel:
    return EmbeddingModel("made-up", "1", "0" * 64, "benchmark", dimension)


def make(folder: Path, kind: Kind, count: int, dimension: int) -> Made:
    """Write `count` vectors to `folder`."""
    persons = _persons(kind, count)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float32, shape=(count, dimension))
    for start in range(0, count, BLOCK):
        block = persons[start : start + BLOCK]
        vectors[start : start + len(block)] = _photos(kind, block, dimension, seed=start + 1)
    vectors.flush()
    np.save(folder / "persons.npy", persons)
    return Made(folder)


def strangers(count: int, dimension: int, seed: int = 7) -> Vectors:
    """Photos [count, d] of people who are not among those made."""
    return _unit(np.random.default_rng([2, seed]).standard_normal((count, dimension), np.float32))


def genuine(made: Made, count: int) -> Vectors:
    """Further photos [count, d] of people who are; of kind "faces" only."""
    chosen = np.sort(np.random.default_rng(3).choice(len(made.persons), count))
    return _photos("faces", made.persons[chosen], made.vectors.shape[1], seed=0)


def _persons(kind: Kind, count: int) -> NDArray[np.int64]:
    if kind == "uniform":
        return np.arange(count)
    photos = np.random.default_rng(1).integers(1, MOST + 1, count)
    return np.repeat(np.arange(count), photos)[:count]


def _photos(kind: Kind, persons: NDArray[np.int64], dimension: int, seed: int) -> Vectors:
    """A photo [n, d] of each of `persons`, other photos with another seed."""
    known, of = np.unique(persons, return_inverse=True)
    directions = np.stack([_direction(int(person), dimension) for person in known])
    if kind == "uniform":
        return directions
    apart = _unit(np.random.default_rng([4, seed]).standard_normal((len(of), dimension), np.float32))
    return _unit(directions[of] + np.float32(SPREAD) * apart)


def _direction(person: int, dimension: int) -> Vectors:
    """Of one person, the same in every block: a generator that may start anywhere."""
    bits = np.random.Philox(key=5, counter=[0, 0, 0, person])
    return _unit(np.random.Generator(bits).standard_normal((1, dimension), np.float32))[0]


def _unit(vectors: NDArray[Any]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
