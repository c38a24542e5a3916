"""Who is known: the protocol that both databases keep, and what goes in and out of it.

    open_gallery(url, model) -> Gallery.enroll(...) ... .search(...)

A *collection* ("default" unless named) holds *subjects*, a subject holds *faces*. What one collection holds, no call on another
ever sees. Each method is one transaction: when it returns, its change is on disk and the next call of every process sees it; when
it raises, nothing has changed. All methods may be called from several threads.

An embedding means something only beside embeddings of the same model, so a collection remembers the model that made its first face
until its last one has gone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
"""[n, d], each row of length 1: the cosine of two is their inner product."""
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class EmbeddingModel:
    """What makes embeddings comparable. `digest`: SHA-256 of the weights; `method`: how a photo becomes what the model sees, and
    its output an embedding; `dimension`: numbers an embedding."""

    name: str
    version: str
    digest: str
    method: str
    dimension: int

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.digest[:12]}, {self.method})"


@dataclass(frozen=True)
class NewFace:
    """A face to enroll: embedding float32 [d] of length 1; box in pixels of its photo; `quality` as JSON can say it."""

    embedding: NDArray[np.float32]
    box: Corners
    quality: Mapping[str, Any]


@dataclass(frozen=True)
class StoredFace:
    """`face_id` is 32 hexadecimal digits. `known`: it stood there before, from the same photo (only enroll() says so)."""

    face_id: str
    box: Corners
    quality: Mapping[str, Any]
    enrolled_at: datetime
    known: bool = False


@dataclass(frozen=True)
class Subject:
    """`faces`: how many it has, always at least one. Times are UTC."""

    name: str
    faces: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Page:
    """Some subjects of a collection in the order of their names' code points. `after`: what to ask the next page with; None: this
    is the last. `subjects_total` and `faces_total` count the whole collection."""

    subjects: Sequence[Subject]
    after: str | None
    subjects_total: int
    faces_total: int


@dataclass(frozen=True)
class Match:
    """The face of a subject that is most like the one asked for. `similarity`: cosine, -1..1."""

    subject: str
    face_id: str
    similarity: float


@dataclass(frozen=True)
class Search:
    """`matches`: for each embedding asked, best first, each subject once. `faces`: how many faces it was compared with,
    `subjects`: of how many subjects."""

    matches: Sequence[Sequence[Match]]
    faces: int
    subjects: int


@dataclass(frozen=True)
class Entry:
    """One face as export() gives and import_() takes it. `enrolled_at` is kept; face ids are made anew where a face moves."""

    collection: str
    subject: str
    embedding: NDArray[np.float32]
    box: Corners
    quality: Mapping[str, Any]
    enrolled_at: datetime


@dataclass(frozen=True)
class Collection:
    name: str
    model: EmbeddingModel
    subjects: int
    faces: int


class Gallery(Protocol):
    """One database, opened for one embedding model. Every method may raise GalleryUnavailable when the database does not answer.

    Methods that read or write embeddings raise GalleryMismatch for a collection that another model made; those that only look at
    names, count, rename or delete work on any.
    """

    @property
    def model(self) -> EmbeddingModel: ...

    @property
    def place(self) -> str:
        """Where it is, for people: a path, or a URL without its password."""
        ...

    def warm(self) -> None:
        """Get ready for the first search."""
        ...

    def collections(self) -> list[Collection]:
        """All that hold a face, by name."""
        ...

    def enroll(self, collection: str, subject: str, faces: Sequence[NewFace]) -> list[StoredFace]:
        """Add all of `faces` (at least one) to a subject, which comes into being with its first, or none of them.

        A face that the subject already has, the same numbers to the last bit, stays as it is and is answered with known=True: so
        enrolling again after an answer was lost changes nothing.
        """
        ...

    def search(self, collection: str, embeddings: Embeddings, top_k: int = 1, threshold: float = -1.0) -> Search:
        """For each embedding the at most `top_k` subjects whose best face has a similarity of at least `threshold`. An unknown
        collection is an empty one."""
        ...

    def subjects(self, collection: str, after: str | None = None, limit: int = 100) -> Page:
        """Up to `limit` subjects whose names come after `after`. An unknown collection is an empty one."""
        ...

    def subject(self, collection: str, name: str) -> tuple[Subject, list[StoredFace]]:
        """One subject with its faces, oldest first. Raises SubjectUnknown."""
        ...

    def face(self, collection: str, face_id: str) -> tuple[str, NDArray[np.float32]] | None:
        """The subject's name and the embedding float32 [d] of a face; None where there is none of that id."""
        ...

    def rename(self, collection: str, name: str, new: str) -> Subject:
        """Give a subject another name; face ids stay. Raises SubjectUnknown, and SubjectExists where another has the new name."""
        ...

    def delete_subject(self, collection: str, name: str) -> int:
        """Forget a subject and all its faces: how many they were. Raises SubjectUnknown."""
        ...

    def delete_face(self, collection: str, name: str, face_id: str) -> int:
        """Forget one face; with its last one the subject goes. The number of faces left. Raises SubjectUnknown, FaceUnknown."""
        ...

    def export(self, collection: str | None = None) -> Iterator[Entry]:
        """Every face of a collection, or of all, as one moment had them, by collection, subject and age."""
        ...

    def import_(self, entries: Iterable[Entry]) -> int:
        """Add every face of `entries`, as enroll() would, in one transaction; the number of those that were new."""
        ...

    def replace(self, collection: str, entries: Iterable[Entry]) -> int:
        """Put `entries` in the place of all that a collection holds, whatever model that was made by, in one transaction: for
        another embedding model. The number of faces that it has then."""
        ...

    def close(self) -> None:
        """Let go of files and connections. No method may be called afterwards."""
        ...
