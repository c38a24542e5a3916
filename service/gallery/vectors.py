"""Exact search: every embedding of a collection in memory, compared with the one asked for.

Embeddings lie in blocks that are never moved, so adding copies nothing, and what is removed is only marked until a tenth of its
block is dead. `Vectors` itself never changes: a search works on the one it took, whatever is added or removed meanwhile.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from service.gallery.gallery import Embeddings

SMALLEST, LARGEST = 256, 131_072
"""Rows of a block: each as large as all before it, within these. Larger ones would need more memory to be packed, smaller ones are
compared slower: the threads of a matrix product meet once a block."""
_DEAD_SHARE = 0.1
_CELLS = 2**22
"""Similarities that are held at the same time: 16 MiB."""
_NOWHERE = -9.0  # below every similarity

Numbers = NDArray[np.int64]
_NONE: Numbers = np.empty(0, np.int64)


@dataclass(frozen=True)
class Candidates:
    """What may be among the best: one face of each subject, in no order. All that tie with the last place are there."""

    faces: Numbers
    subjects: Numbers
    similarities: NDArray[np.float64]


@dataclass(frozen=True)
class _Block:
    """The first `count` rows are in use; `dead` of them (sorted) are not to be found any more. `faces` ascend."""

    vectors: Embeddings
    faces: Numbers
    subjects: Numbers
    count: int
    dead: Numbers

    @classmethod
    def empty(cls, rows: int, dimension: int) -> Self:
        return cls(np.empty((rows, dimension), np.float32), np.empty(rows, np.int64), np.empty(rows, np.int64), 0, _NONE)

    @property
    def alive(self) -> int:
        return self.count - len(self.dead)

    def filled(self, faces: Numbers, subjects: Numbers, vectors: Embeddings) -> Self:
        """With rows after its last, which no older one of its kind looks at."""
        here = slice(self.count, self.count + len(faces))
        self.faces[here], self.subjects[here], self.vectors[here] = faces, subjects, vectors
        return replace(self, count=here.stop)

    def without(self, faces: Numbers) -> Self:
        used = self.faces[: self.count]
        rows = np.searchsorted(used, faces)
        inside = rows < self.count
        rows = rows[inside]
        rows = rows[used[rows] == faces[inside]]
        if not len(rows):
            return self
        marked = replace(self, dead=np.union1d(self.dead, rows))
        return marked.packed() if len(marked.dead) > _DEAD_SHARE * self.count else marked

    def packed(self) -> Self:
        """The same without its dead rows."""
        alive = np.ones(self.count, bool)
        alive[self.dead] = False
        rows = np.flatnonzero(alive)
        return type(self)(self.vectors[rows], self.faces[rows], self.subjects[rows], len(rows), _NONE)


@dataclass(frozen=True)
class Vectors:
    """Embeddings float32 [n, dimension] of length 1 with the numbers of their faces, which ascend, and subjects."""

    dimension: int
    blocks: tuple[_Block, ...] = ()

    def __len__(self) -> int:
        return sum(block.alive for block in self.blocks)

    def added(self, faces: Numbers, subjects: Numbers, vectors: Embeddings) -> "Vectors":
        """With faces whose numbers are greater than all here. Only the newest Vectors may be added to."""
        blocks, done = list(self.blocks), 0
        while done < len(faces):
            if not blocks or blocks[-1].count == len(blocks[-1].vectors):
                rows = min(LARGEST, max(SMALLEST, sum(block.count for block in blocks)))
                blocks.append(_Block.empty(rows, self.dimension))
            some = slice(done, done + len(blocks[-1].vectors) - blocks[-1].count)
            blocks[-1] = blocks[-1].filled(faces[some], subjects[some], vectors[some])
            done = some.stop
        return replace(self, blocks=tuple(blocks))

    def without(self, faces: Iterable[int]) -> "Vectors":
        """Without these faces; numbers that are not here change nothing."""
        gone = np.unique(np.fromiter(faces, np.int64))
        blocks: list[_Block] = []
        for block in self.blocks:
            left = block.without(gone)
            if left is not block and blocks and blocks[-1].alive + left.alive <= min(LARGEST, block.count):
                left = _joined(blocks.pop(), left)
            if left.alive:
                blocks.append(left)
        return replace(self, blocks=tuple(blocks))

    def best(self, queries: Embeddings, top_k: int, threshold: float) -> list[Candidates]:
        """For each query [d] the `top_k` subjects (and all that tie with the last) whose best face reaches `threshold`."""
        kept = [_Kept(query, top_k, threshold) for query in queries]
        if not kept:
            return []
        step = max(1, _CELLS // len(kept))
        for block in self.blocks:
            for start in range(0, block.count, step):
                stop = min(start + step, block.count)
                similarities = _products(queries, block.vectors[start:stop])
                first, last = np.searchsorted(block.dead, (start, stop))
                similarities[:, block.dead[first:last] - start] = _NOWHERE
                for one, row in zip(kept, similarities, strict=True):
                    one.look(block, start, row)
        return [one.candidates() for one in kept]


def _joined(first: _Block, second: _Block) -> _Block:
    one, other = first.packed(), second.packed()
    return _Block(
        np.concatenate([one.vectors, other.vectors]),
        np.concatenate([one.faces, other.faces]),
        np.concatenate([one.subjects, other.subjects]),
        one.count + other.count,
        _NONE,
    )


def _products(queries: Embeddings, vectors: Embeddings) -> NDArray[np.float32]:
    """Inner products [queries, vectors]."""
    if len(queries) == 1:
        product: NDArray[np.float32] = vectors @ queries[0]  # goes at the speed of memory
        return product[np.newaxis]
    several: NDArray[np.float32] = queries @ vectors.T
    return several


class _Kept:
    """The best subjects for one query so far, by float32 products; `cutoff`: what a face must reach to be of interest."""

    def __init__(self, query: NDArray[np.float32], top_k: int, threshold: float) -> None:
        self._query, self._top_k, self._threshold = query.astype(np.float64), top_k, threshold
        self._slack = 2 * len(query) * float(np.finfo(np.float32).eps)  # float32 products may be that far off
        self.cutoff = threshold - self._slack
        self._faces, self._subjects = _NONE, _NONE
        self._vectors: Embeddings = np.empty((0, len(query)), np.float32)
        self._similarities: NDArray[np.float32] = np.empty(0, np.float32)

    def look(self, block: _Block, start: int, similarities: NDArray[np.float32]) -> None:
        """Keep what counts of the rows from `start` on."""
        cutoff = max(self.cutoff, -2.0)
        if not len(similarities) or similarities.max() < cutoff:
            return
        rows = np.flatnonzero(similarities >= cutoff)
        rows = self._fewer(rows, similarities, block.subjects[start:])
        self._merge(block.faces[start:][rows], block.subjects[start:][rows], block.vectors[start:][rows], similarities[rows])

    def _fewer(self, rows: Numbers, similarities: NDArray[np.float32], subjects: Numbers) -> Numbers:
        """Of many rows those that can be among the best, where the best of them are of enough subjects to say so."""
        many = 16 * self._top_k + 256
        if len(rows) <= many:
            return rows
        values = similarities[rows]
        front = rows[values >= np.partition(values, -many)[-many]]
        best = front[_best_of_each(subjects[front], similarities[front], front)]
        if len(best) < self._top_k:
            return rows[_best_of_each(subjects[rows], values, rows)]
        last = float(np.partition(similarities[best], -self._top_k)[-self._top_k])
        return rows[values >= last - self._slack]

    def _merge(self, faces: Numbers, subjects: Numbers, vectors: Embeddings, similarities: NDArray[np.float32]) -> None:
        faces, subjects = np.concatenate([self._faces, faces]), np.concatenate([self._subjects, subjects])
        similarities = np.concatenate([self._similarities, similarities])
        rows = _best_of_each(subjects, similarities, faces)
        if len(rows) >= self._top_k:
            last = float(np.partition(similarities[rows], -self._top_k)[-self._top_k])
            self.cutoff = max(self.cutoff, last - self._slack)
            rows = rows[similarities[rows] >= self.cutoff]
        self._vectors = np.concatenate([self._vectors, vectors])[rows]
        self._faces, self._subjects, self._similarities = faces[rows], subjects[rows], similarities[rows]

    def candidates(self) -> Candidates:
        """Similarities anew in float64, so that the same face has the same one wherever it lies."""
        exact = np.clip((self._vectors.astype(np.float64) * self._query).sum(axis=1), -1.0, 1.0)
        limit = self._threshold
        if len(exact) > self._top_k:
            limit = max(limit, np.partition(exact, -self._top_k)[-self._top_k])
        rows = exact >= limit
        return Candidates(self._faces[rows], self._subjects[rows], exact[rows])


def _best_of_each(subjects: Numbers, similarities: NDArray[np.float32], faces: Numbers) -> Numbers:
    """Rows of each subject's most similar face; of equal ones the oldest."""
    order = np.lexsort((faces, -similarities, subjects))
    ordered = subjects[order]
    first = np.ones(len(order), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]
