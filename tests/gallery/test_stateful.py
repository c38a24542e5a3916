"""Any order of calls through two open galleries gives what a dictionary would give."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

from service.errors import FaceUnknown, SubjectExists, SubjectUnknown
from service.gallery.gallery import Entry, Gallery, NewFace

COLLECTIONS = st.sampled_from(["default", "Zoë's"])
SUBJECTS = st.sampled_from(["a", "B", "a/b", "%", "\U0001f600"])
NUMBERS = st.integers(0, 7)
WHO = st.integers(0, 1)
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


class GalleryMachine(RuleBasedStateMachine):
    """`known`: collection -> subject -> number of an embedding -> face id."""

    make: Callable[[], Any]
    vector: Callable[[int], NDArray[np.float32]]

    def __init__(self) -> None:
        super().__init__()
        database = type(self).make()
        self.database = database
        self.galleries: list[Gallery] = [database.open(), database.open()]
        self.known: dict[str, dict[str, dict[int, str]]] = {}

    def teardown(self) -> None:
        self.database.close()

    def faces(self, collection: str, subject: str) -> dict[int, str]:
        return self.known.get(collection, {}).get(subject, {})

    def put(self, collection: str, subject: str, faces: dict[int, str]) -> None:
        subjects = self.known.setdefault(collection, {})
        subjects.pop(subject, None)
        if faces:
            subjects[subject] = faces
        if not subjects:
            del self.known[collection]

    def entry(self, collection: str, subject: str, number: int) -> Entry:
        return Entry(collection, subject, type(self).vector(number), (0.0, 1.0, 2.0, 3.0), {"n": number}, MOMENT)

    @rule(who=WHO, collection=COLLECTIONS, subject=SUBJECTS, numbers=st.lists(NUMBERS, min_size=1, max_size=4))
    def enroll(self, who: int, collection: str, subject: str, numbers: list[int]) -> None:
        faces = dict(self.faces(collection, subject))
        new = [NewFace(type(self).vector(number), (0.0, 1.0, 2.0, 3.0), {"n": number}) for number in numbers]
        for number, stored in zip(numbers, self.galleries[who].enroll(collection, subject, new), strict=True):
            assert stored.known == (number in faces)
            assert faces.setdefault(number, stored.face_id) == stored.face_id
        self.put(collection, subject, faces)

    @rule(who=WHO, collection=COLLECTIONS, subject=SUBJECTS)
    def delete_subject(self, who: int, collection: str, subject: str) -> None:
        faces = self.faces(collection, subject)
        if faces:
            assert self.galleries[who].delete_subject(collection, subject) == len(faces)
            self.put(collection, subject, {})
        else:
            with pytest.raises(SubjectUnknown):
                self.galleries[who].delete_subject(collection, subject)

    @rule(who=WHO, collection=COLLECTIONS, subject=SUBJECTS, number=NUMBERS)
    def delete_face(self, who: int, collection: str, subject: str, number: int) -> None:
        faces = dict(self.faces(collection, subject))
        id_ = faces.pop(number, "0" * 32)
        if id_ != "0" * 32:
            assert self.galleries[who].delete_face(collection, subject, id_) == len(faces)
            self.put(collection, subject, faces)
        else:
            with pytest.raises(FaceUnknown if faces else SubjectUnknown):
                self.galleries[who].delete_face(collection, subject, id_)

    @rule(who=WHO, collection=COLLECTIONS, subject=SUBJECTS, new=SUBJECTS)
    def rename(self, who: int, collection: str, subject: str, new: str) -> None:
        faces = self.faces(collection, subject)
        if not faces:
            with pytest.raises(SubjectUnknown):
                self.galleries[who].rename(collection, subject, new)
        elif new != subject and self.faces(collection, new):
            with pytest.raises(SubjectExists):
                self.galleries[who].rename(collection, subject, new)
        else:
            assert self.galleries[who].rename(collection, subject, new).faces == len(faces)
            self.put(collection, subject, {})
            self.put(collection, new, faces)

    @rule(who=WHO, collection=COLLECTIONS, subject=SUBJECTS, numbers=st.lists(NUMBERS, max_size=3))
    def import_(self, who: int, collection: str, subject: str, numbers: list[int]) -> None:
        faces = dict(self.faces(collection, subject))
        new = set(numbers) - faces.keys()
        entries = [self.entry(collection, subject, number) for number in numbers]
        assert self.galleries[who].import_(entries) == len(new)
        if new:
            self.read_back(who, collection, subject)

    @rule(who=WHO, collection=COLLECTIONS, subject=SUBJECTS, numbers=st.lists(NUMBERS, max_size=3))
    def replace(self, who: int, collection: str, subject: str, numbers: list[int]) -> None:
        entries = [self.entry(collection, subject, number) for number in numbers]
        assert self.galleries[who].replace(collection, entries) == len(set(numbers))
        self.known.pop(collection, None)
        if numbers:
            self.read_back(who, collection, subject)

    def read_back(self, who: int, collection: str, subject: str) -> None:
        _, stored = self.galleries[who].subject(collection, subject)
        self.put(collection, subject, {int(face.quality["n"]): face.face_id for face in stored})

    @rule(who=WHO, collection=COLLECTIONS, number=NUMBERS, top_k=st.integers(1, 6), threshold=st.sampled_from([-1.0, 0.2, 0.9]))
    def search(self, who: int, collection: str, number: int, top_k: int, threshold: float) -> None:
        query = type(self).vector(number)
        subjects = self.known.get(collection, {})
        likeness = {
            subject: max(float(type(self).vector(one).astype(np.float64) @ query) for one in faces)
            for subject, faces in subjects.items()
        }
        expected = sorted((value for value in likeness.values() if value >= threshold), reverse=True)[:top_k]
        result = self.galleries[who].search(collection, query[np.newaxis], top_k, threshold)
        (matches,) = result.matches
        assert [match.similarity for match in matches] == pytest.approx(expected, abs=1e-5)
        assert len({match.subject for match in matches}) == len(matches)
        for match in matches:
            assert likeness[match.subject] == pytest.approx(match.similarity, abs=1e-5)
            assert match.face_id in subjects[match.subject].values()
        assert (result.subjects, result.faces) == (len(subjects), sum(map(len, subjects.values())))

    @invariant()
    def both_know_the_same(self) -> None:
        expected = [(name, len(some), sum(map(len, some.values()))) for name, some in sorted(self.known.items())]
        for gallery in self.galleries:
            assert [(one.name, one.subjects, one.faces) for one in gallery.collections()] == expected
            for name, some in self.known.items():
                page = gallery.subjects(name)
                assert [(subject.name, subject.faces) for subject in page.subjects] == [
                    (subject, len(some[subject])) for subject in sorted(some)
                ]


def test_any_order_of_calls(databases: Callable[[], Any], vector: Callable[[int], NDArray[np.float32]], kind: str) -> None:
    fields = {"make": staticmethod(databases), "vector": staticmethod(vector)}
    examples = 40 if kind == "sqlite" else 12
    run_state_machine_as_test(
        type("Machine", (GalleryMachine,), fields),
        settings=settings(
            max_examples=examples, stateful_step_count=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        ),
    )
