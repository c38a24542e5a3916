"""The exact search against the plain way to do it: compare all, sort all."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.gallery import vectors as module
from service.gallery.vectors import Candidates, Vectors

Floats = NDArray[np.float32]


def random_vectors(rng: np.random.Generator, n: int, d: int = 8) -> Floats:
    made = rng.standard_normal((n, d))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def plain(rows: dict[int, tuple[int, Floats]], query: Floats, top_k: int, threshold: float) -> list[tuple[int, float]]:
    best: dict[int, float] = {}
    for subject, vector in rows.values():
        best[subject] = max(best.get(subject, -2), float(np.clip(vector.astype(np.float64) @ query, -1, 1)))
    return sorted((item for item in best.items() if item[1] >= threshold), key=lambda item: (-item[1], item[0]))[:top_k]


def ordered(found: Candidates, top_k: int) -> list[tuple[int, float]]:
    pairs = zip(found.subjects.tolist(), found.similarities.tolist(), strict=True)
    return sorted(pairs, key=lambda item: (-item[1], item[0]))[:top_k]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST", 4)
    monkeypatch.setattr(module, "LARGEST", 64)
    monkeypatch.setattr(module, "_CELLS", 50)


@pytest.mark.parametrize("seed", range(25))
def test_it_finds_what_comparing_all_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    subjects = int(rng.integers(1, 400))
    kept: dict[int, tuple[int, Floats]] = {}
    memory, next_face = Vectors(8), 1
    for _ in range(8):
        some = random_vectors(rng, int(rng.integers(1, 150)))
        faces = np.arange(next_face, next_face + len(some))
        of = rng.integers(0, subjects, len(some))
        memory, next_face = memory.added(faces, of, some), next_face + len(some)
        kept |= {int(face): (int(subject), vector) for face, subject, vector in zip(faces, of, some, strict=True)}
        gone = rng.choice(list(kept), int(rng.integers(0, 0.6 * len(kept))), replace=False).tolist()
        memory = memory.without([*gone, 10**9, 0])
        kept = {face: row for face, row in kept.items() if face not in gone}
        assert len(memory) == len(kept)
        queries = random_vectors(rng, int(rng.integers(1, 4)))
        for top_k, threshold in [(1, -1.0), (5, 0.3), (1000, -1.0), (3, 0.99)]:
            for query, found in zip(queries, memory.best(queries, top_k, threshold), strict=True):
                expected = plain(kept, query, top_k, threshold)
                assert [subject for subject, _ in ordered(found, top_k)] == [subject for subject, _ in expected]
                assert [value for _, value in ordered(found, top_k)] == pytest.approx([value for _, value in expected])
                assert all(kept[int(face)][0] == subject for face, subject in zip(found.faces, found.subjects, strict=True))


def test_all_that_tie_with_the_last_are_there() -> None:
    rng = np.random.default_rng(3)
    one = random_vectors(rng, 1)
    memory = Vectors(8).added(np.arange(1, 201), np.arange(1, 201), np.repeat(one, 200, axis=0))
    (found,) = memory.best(one, 3, -1.0)
    assert sorted(found.subjects.tolist()) == list(range(1, 201))
    assert len(set(found.similarities.tolist())) == 1


def test_of_a_subjects_equal_faces_the_oldest_is_named() -> None:
    one = random_vectors(np.random.default_rng(3), 1)
    memory = Vectors(8).added(np.arange(1, 101), np.full(100, 7), np.repeat(one, 100, axis=0))
    assert memory.best(one, 3, -1.0)[0].faces.tolist() == [1]


def test_one_subject_with_very_many_faces_hides_no_other() -> None:
    rng = np.random.default_rng(4)
    query = random_vectors(rng, 1)
    near = np.repeat(query, 2000, axis=0)
    memory = Vectors(8).added(np.arange(1, 2001), np.full(2000, 7), near)
    memory = memory.added(np.arange(2001, 2004), np.array([8, 9, 8]), random_vectors(rng, 3))
    assert sorted(memory.best(query, 2, -1.0)[0].subjects.tolist())[0] == 7
    assert len(memory.best(query, 3, -1.0)[0].subjects) == 3


def test_a_search_works_on_what_it_took() -> None:
    rng = np.random.default_rng(5)
    some = random_vectors(rng, 30)
    before = Vectors(8).added(np.arange(1, 21), np.arange(1, 21), some[:20])
    after = before.without([3]).added(np.arange(21, 31), np.arange(21, 31), some[20:]).without(range(5, 21))
    assert [len(before), len(after)] == [20, 13]
    assert [before.best(some[n : n + 1], 1, 0.9999)[0].subjects.tolist() for n in (2, 9, 25)] == [[3], [10], []]
    assert [after.best(some[n : n + 1], 1, 0.9999)[0].subjects.tolist() for n in (2, 9, 25)] == [[], [], [26]]


def test_memory_is_given_back_and_blocks_stay_few() -> None:
    rng = np.random.default_rng(6)
    memory, next_face = Vectors(8), 1
    for _ in range(60):
        faces = np.arange(next_face, next_face + 64)
        memory, next_face = memory.added(faces, faces, random_vectors(rng, 64)), next_face + 64
        memory = memory.without(face for face in faces.tolist() if face % 16)
    assert len(memory) == 60 * 4
    rows = sum(len(block.vectors) for block in memory.blocks)
    assert rows < 3 * len(memory)
    assert len(memory.blocks) < 20
    assert memory.without(range(next_face)).blocks == ()
    assert len(Vectors(8).best(random_vectors(rng, 2), 1, -1.0)[0].faces) == 0


def test_adding_moves_nothing() -> None:
    rng = np.random.default_rng(7)
    memory, next_face = Vectors(8), 1
    for _ in range(100):
        blocks = memory.blocks
        memory, next_face = memory.added(np.array([next_face]), np.array([1]), random_vectors(rng, 1)), next_face + 1
        assert all(old.vectors is new.vectors for old, new in zip(blocks, memory.blocks, strict=False))
    assert [len(block.vectors) for block in memory.blocks] == [4, 4, 8, 16, 32, 64]
