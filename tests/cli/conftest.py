"""A gallery in memory, and an engine that reads text files as photos: "7" shows the face 7, "blurred" and "none" are refused."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.engine import Engine
from service.errors import FaceBlurred, GalleryMismatch, GalleryUnavailable, NoFace, SubjectUnknown
from service.gallery.faces import face_id
from service.gallery.gallery import Collection, EmbeddingModel, Entry, Match, NewFace, Page, Search, StoredFace, Subject
from service.repository.spec import load_spec
from service.settings import Settings
from service.tasks.face_quality import FaceQuality, Pose
from service.tasks.people import EnrolledFace, EnrollOptions, Prepared, Refusal, refusal, store
from service.tasks.task import Box, Timing

DIMENSION = 16
MODEL = EmbeddingModel("sface", "1.0", "ab" * 32, "aligned-1", DIMENSION)
SFACE = load_spec(Path(__file__).parents[2] / "models" / "sface")
QUALITY = FaceQuality(size=80.0, sharpness=0.1, pose=Pose(yaw=0.0, pitch=1.5, roll=0.0), warnings=[])
START = datetime(2025, 1, 1, tzinfo=UTC)


def entry(number: int, subject: str = "Anna", collection: str = "default") -> Entry:
    """The face `number`, enrolled `number` seconds after START."""
    quality = QUALITY.model_dump()
    return Entry(collection, subject, embedding(number), (1.0, 2.5, 60.0, 80.0), quality, START + timedelta(seconds=number))


def embedding(number: int) -> Any:
    """Of length 1; those of two numbers are not alike."""
    vector = np.random.default_rng(number).normal(size=DIMENSION)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@dataclass
class MemoryGallery:
    """What a Gallery promises, for one thread and one process. `lost`: how often enroll() works until the database is gone."""

    model: EmbeddingModel = MODEL
    faces: list[tuple[str, Entry]] = field(default_factory=list)
    models: dict[str, EmbeddingModel] = field(default_factory=dict)
    lost: int = 10**9
    place: str = "memory"

    def collections(self) -> list[Collection]:
        names = sorted({one.collection for _, one in self.faces})
        return [Collection(name, self._model(name), len(self._of(name)), sum(map(len, self._of(name).values()))) for name in names]

    def enroll(self, collection: str, subject: str, faces: Sequence[NewFace]) -> list[StoredFace]:
        self.lost -= 1
        if self.lost < 0:
            raise GalleryUnavailable("the database has gone")
        entries = [Entry(collection, subject, face.embedding, face.box, face.quality, START) for face in faces]
        return [StoredFace(face_id(subject, e.embedding), e.box, e.quality, START, known=not self._add(e)) for e in entries]

    def search(self, collection: str, embeddings: Any, top_k: int = 1, threshold: float = -1.0) -> Search:
        self._check(collection)
        matches = []
        for row in embeddings:
            best: dict[str, Match] = {}
            for identity, one in self.faces:
                likeness = float(one.embedding @ row)
                before = best.get(one.subject)
                if one.collection == collection and likeness >= max(threshold, before.similarity if before else -1):
                    best[one.subject] = Match(one.subject, identity, likeness)
            matches.append(sorted(best.values(), key=lambda match: -match.similarity)[:top_k])
        return Search(matches, sum(map(len, self._of(collection).values())), len(self._of(collection)))

    def subjects(self, collection: str, after: str | None = None, limit: int = 100) -> Page:
        held = self._of(collection)
        names = sorted(name for name in held if after is None or name > after)
        page = [Subject(name, len(held[name]), START, START) for name in names[:2]]
        return Page(page, page[-1].name if len(names) > 2 else None, len(held), sum(map(len, held.values())))

    def subject(self, collection: str, name: str) -> tuple[Subject, list[StoredFace]]:
        faces = self._of(collection).get(name, [])
        if not faces:
            raise SubjectUnknown(collection, name)
        return Subject(name, len(faces), START, START), [StoredFace(i, e.box, e.quality, e.enrolled_at) for i, e in faces]

    def delete_subject(self, collection: str, name: str) -> int:
        count = self.subject(collection, name)[0].faces
        self.faces = [(i, e) for i, e in self.faces if (e.collection, e.subject) != (collection, name)]
        return count

    def delete_face(self, collection: str, name: str, identity: str) -> int:
        self.faces = [(i, e) for i, e in self.faces if (e.collection, e.subject, i) != (collection, name, identity)]
        return len(self._of(collection).get(name, []))

    def export(self, collection: str | None = None) -> Iterator[Entry]:
        names = [one.name for one in self.collections()] if collection is None else [collection]
        for name in names:
            self._check(name)
        entries = (one for _, one in self.faces if one.collection in names)
        return iter(sorted(entries, key=lambda e: (e.collection, e.subject, e.enrolled_at)))

    def import_(self, entries: Iterable[Entry]) -> int:
        return sum([self._add(one) for one in list(entries)])

    def replace(self, collection: str, entries: Iterable[Entry]) -> int:
        new = list(entries)
        self.faces = [(i, e) for i, e in self.faces if e.collection != collection]
        self.models.pop(collection, None)
        return sum([self._add(replace(one, collection=collection)) for one in new])

    def close(self) -> None:
        self.faces = []

    def _of(self, collection: str) -> dict[str, list[tuple[str, Entry]]]:
        held: dict[str, list[tuple[str, Entry]]] = {}
        for identity, one in self.faces:
            if one.collection == collection:
                held.setdefault(one.subject, []).append((identity, one))
        return held

    def _model(self, collection: str) -> EmbeddingModel:
        return self.models.get(collection, self.model)

    def _check(self, collection: str) -> None:
        if self._of(collection) and self._model(collection) != self.model:
            raise GalleryMismatch(collection, self._model(collection), self.model)

    def _add(self, one: Entry) -> bool:
        self._check(one.collection)
        identity = face_id(one.subject, one.embedding)
        if any(identity == i for i, _ in self._of(one.collection).get(one.subject, [])):
            return False
        self.faces.append((identity, one))
        return True


@dataclass
class FakeEmbedder:
    spec: Any = SFACE
    labels: tuple[str, ...] = ()


@dataclass
class FaceReader:
    """As much of an Engine as enrolling asks for. `looked`: the names of the photos that it had to look at."""

    gallery: MemoryGallery
    looked: list[str] = field(default_factory=list)
    settings: Settings = field(default_factory=Settings)
    concurrency: int = 2
    recognition = property(lambda self: self)

    def prepare_faces(self, photos: Mapping[str, Path], options: EnrollOptions) -> tuple[list[Prepared], list[Refusal]]:
        ((name, path),) = photos.items()
        self.looked.append(name)
        text = path.read_text()
        if text == "blurred":
            return [], [refusal(FaceBlurred(name, 0.001, 0.005))]
        if text == "none":
            return [], [refusal(NoFace(name, f"no face was found in {name}"))]
        return [Prepared(name, Box(x_min=0, y_min=0, x_max=9, y_max=9), QUALITY, embedding(int(text)))], []

    def store_faces(self, subject: str, prepared: Sequence[Prepared], options: EnrollOptions) -> list[EnrolledFace]:
        return store(prepared, subject, options, FakeEmbedder(), self.gallery, Timing())


@pytest.fixture
def new_gallery() -> Callable[..., Any]:
    """Makes an empty gallery; give it a model where it should have another."""
    return MemoryGallery


@pytest.fixture
def gallery() -> MemoryGallery:
    return MemoryGallery()


@pytest.fixture
def face() -> Callable[..., Entry]:
    return entry


@pytest.fixture
def reader(gallery: MemoryGallery) -> Engine:
    return FaceReader(gallery)  # type: ignore[return-value]
