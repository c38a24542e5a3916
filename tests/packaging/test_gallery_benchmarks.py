"""The gallery's benchmarks measure what they say: their exact search is exact, and their clients notice every untrue answer."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _on_the_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks")
    monkeypatch.setattr(sys, "modules", sys.modules.copy())  # their plain names must not stay behind


def test_made_up_faces_are_as_alike_as_they_should_be_and_searched_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gallery_data

    monkeypatch.setattr(gallery_data, "BLOCK", 70)  # persons and best answers lie across blocks
    made = gallery_data.make(tmp_path, "faces", 500, 128)
    vectors = np.array(made.vectors)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T
    same = made.persons[:, None] == made.persons[None]
    assert cosines[same & ~np.eye(500, dtype=bool)].mean() == pytest.approx(gallery_data.WITHIN, abs=0.03)
    assert cosines[~same].max() < 0.5
    queries = np.concatenate([gallery_data.genuine(made, 20), gallery_data.strangers(20, 128)])
    for query, found in zip(queries, made.best(queries, 10), strict=True):
        persons = made.persons[np.argsort(-(vectors @ query))].tolist()
        assert found == list(dict.fromkeys(persons))[:10]


def test_entries_are_all_the_vectors_under_their_persons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gallery_data

    monkeypatch.setattr(gallery_data, "BLOCK", 30)
    made = gallery_data.make(tmp_path, "uniform", 100, 8)
    entries = list(made.entries("here"))
    assert np.array_equal([entry.embedding for entry in entries], made.vectors)
    assert len({(entry.collection, entry.subject) for entry in entries}) == 100


class Service:
    """Answers as the service does, from a dictionary; a photo is its own embedding. `fault`: what it does wrong."""

    def __init__(self, fault: str = "") -> None:
        self.fault, self.count = fault, 0
        self.known: dict[str, dict[str, dict[str, bytes]]] = {}

    def _reply(self, status: int, **body: Any) -> Any:
        from gallery_client import Reply

        return Reply(status, body)

    def enroll(self, gallery: str, subject: str, photos: list[bytes]) -> Any:
        answered, stored = [], self.known.setdefault(gallery, {}).setdefault(subject, {})
        for photo in photos:
            self.count += 1
            face_id = next((one for one, kept in stored.items() if kept == photo), f"{self.count:032x}")
            answered.append({"face_id": face_id, "known": face_id in stored, "also": []})
            if self.fault != "loses" or self.count % 5:
                stored[face_id] = photo
        return self._reply(201, faces=answered)

    def identify(self, gallery: str, photo: bytes, top_k: int, threshold: float) -> Any:
        here = self.known if self.fault == "leaks" else {gallery: self.known.get(gallery, {})}
        faces = [
            (name, one, float(kept == photo)) for all_of in here.values() for name, of in all_of.items() for one, kept in of.items()
        ]
        best = {name: (one, alike) for name, one, alike in sorted(faces, key=lambda face: face[2])}
        candidates = [{"subject": name, "face_id": one, "similarity": alike} for name, (one, alike) in best.items()]
        found = [candidate for candidate in candidates if candidate["similarity"] >= threshold]
        mine = self.known.get(gallery, {})
        return self._reply(200, faces=[{"candidates": found}], subjects=len(mine), enrolled_faces=sum(map(len, mine.values())))

    def subject(self, gallery: str, subject: str) -> Any:
        faces = self.known.get(gallery, {}).get(subject)
        return self._reply(200, faces=[{"face_id": one} for one in faces]) if faces else self._reply(404)

    def rename(self, gallery: str, subject: str, new: str) -> Any:
        if new in self.known[gallery]:
            return self._reply(409)
        self.known[gallery][new] = self.known[gallery].pop(subject)
        return self._reply(503 if self.fault == "refuses" else 200)

    def delete_subject(self, gallery: str, subject: str) -> Any:
        forgotten = len(self.known[gallery][subject])
        if self.fault != "keeps":
            del self.known[gallery][subject]
        return self._reply(200, faces=forgotten)

    def delete_face(self, gallery: str, subject: str, face_id: str) -> Any:
        del self.known[gallery][subject][face_id]
        left = len(self.known[gallery][subject])
        if not left:
            del self.known[gallery][subject]
        return self._reply(200, faces=left)

    def subjects(self, gallery: str) -> tuple[dict[str, int], tuple[int, int]]:
        counts = {name: len(faces) for name, faces in self.known.get(gallery, {}).items()}
        return counts, (len(counts), sum(counts.values()))


def believers(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two clients after up to 300 tasks each, in turn."""
    from gallery_believer import Believer

    clock = iter(range(10**6))
    monkeypatch.setattr("gallery_believer.time", type("Clock", (), {"monotonic": lambda: next(clock), "perf_counter": lambda: 0.0}))
    both = []
    for number in range(2):
        photos = [bytes([number, photo]) for photo in range(6)]
        both.append(Believer(number, service, photos, "shared", f"own {number}", random.Random(number)))  # type: ignore[arg-type]
    for turn in range(30):
        for one in both:
            one.work(until=next(clock) + 11 + turn % 2)
    return both


def test_true_answers_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    from gallery_load import differences

    done = believers(Service(), monkeypatch)
    assert [text for one in done for text in one.tally.wrong] == []
    assert all(len(one.tally.seconds) == 6 and one.known for one in done)
    assert differences(done) == []


@pytest.mark.parametrize(("fault", "kind"), [("loses", "lost"), ("keeps", "gone"), ("leaks", "foreign"), ("refuses", "unexpected")])
def test_untrue_answers_are_noticed(fault: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = believers(Service(fault), monkeypatch)
    assert any(f"Wrong {kind}" in text for one in done for text in one.tally.wrong)


def test_the_lists_at_the_end_must_be_what_all_clients_know(monkeypatch: pytest.MonkeyPatch) -> None:
    from gallery_load import differences

    service = Service()
    done = believers(service, monkeypatch)
    service.enroll("own 1", "somebody", [b"?"])
    (text,) = differences(done)
    assert "'own 1'" in text
    assert "somebody" in text


def test_what_a_crash_took_is_counted() -> None:
    from gallery_crash import Volley, checked

    service = Service()
    answers = {f"subject {number}": service.enroll("round 1", f"subject {number}", [b"a", b"b"]).body for number in range(4)}
    volley = Volley("round 1", [b"a", b"b"], 5, sent=dict.fromkeys(answers, 2))
    volley.acknowledged = {name: [face["face_id"] for face in body["faces"]] for name, body in list(answers.items())[:3]}
    del service.known["round 1"]["subject 0"]
    service.known["round 1"]["subject 3"].popitem()
    service.close = lambda: None  # type: ignore[attr-defined]
    server = type("Server", (), {"client": lambda: service})
    one = checked(volley, server, 1, 0.0, {})  # type: ignore[arg-type]
    assert (one.acknowledged, one.found, one.half, one.lost) == (3, 3, 1, 2)
