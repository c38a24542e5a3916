"""One collection's row: found, locked, made, counted. And embeddings as PostgreSQL reads and writes them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import GalleryMismatch, GalleryUnavailable
from service.gallery.gallery import EmbeddingModel
from service.gallery.postgres_index import VALID
from service.gallery.postgres_pool import Session

COLUMNS = "c.id, c.name, c.model_name, c.model_version, c.model_digest, c.model_method, c.dimension, c.subjects, c.faces"
_FIND = f"SELECT {COLUMNS}, {VALID} FROM collection c WHERE c.name = :name"
_LOCK = f"{_FIND} FOR UPDATE"
_MAKE = """
INSERT INTO collection (name, model_name, model_version, model_digest, model_method, dimension)
VALUES (:name, :model, :version, :digest, :method, :dimension) ON CONFLICT (name) DO NOTHING
"""
_COUNT = "UPDATE collection SET subjects = subjects + :subjects, faces = faces + :faces WHERE id = :id"
_DROP_EMPTY = "DELETE FROM collection WHERE id = :id AND faces = 0"
_MAX_TRIES = 100
_VECTOR_HEADER = 4  # dimension and a reserved number, 16 bits each


@dataclass(frozen=True)
class CollectionRow:
    """`indexed`: its HNSW index can be used."""

    id: int
    name: str
    model: EmbeddingModel
    subjects: int
    faces: int
    indexed: bool = False

    def check(self, model: EmbeddingModel) -> None:
        """Raises GalleryMismatch."""
        if self.model != model:
            raise GalleryMismatch(self.name, self.model, model)


def from_row(row: list[Any]) -> CollectionRow:
    number, name, *model, subjects, faces, indexed = row
    return CollectionRow(number, name, EmbeddingModel(*model), subjects, faces, indexed)


def find(session: Session, name: str) -> CollectionRow | None:
    rows = session.rows(_FIND, name=name)
    return from_row(rows[0]) if rows else None


def lock(session: Session, name: str) -> CollectionRow | None:
    """The collection, which nobody else changes until this transaction ends."""
    rows = session.rows(_LOCK, name=name)
    return from_row(rows[0]) if rows else None


def lock_or_make(session: Session, name: str, model: EmbeddingModel) -> CollectionRow:
    """The same, made where it is not there. Whoever calls must give it a face. Raises GalleryMismatch."""
    for _ in range(_MAX_TRIES):  # between finding and locking, others may make it and delete it
        if row := lock(session, name):
            row.check(model)
            return row
        of = {"model": model.name, "version": model.version, "digest": model.digest, "method": model.method}
        session.rows(_MAKE, name=name, dimension=model.dimension, **of)
    raise GalleryUnavailable(f"the gallery {name!r:.210} comes and goes too fast to be locked")


def count(session: Session, row: CollectionRow, subjects: int, faces: int) -> None:
    """Add to the counters of a collection that is locked; with its last face it goes."""
    session.rows(_COUNT, id=row.id, subjects=subjects, faces=faces)
    if faces < 0:
        session.rows(_DROP_EMPTY, id=row.id)


def to_text(embedding: NDArray[np.float32]) -> str:
    """pgvector's text form, whose numbers are read back to the last bit."""
    return f"[{','.join(map(repr, embedding.tolist()))}]"


def from_sent(data: bytes) -> NDArray[np.float32]:
    """What vector_send() gives to float32 [d]."""
    return np.frombuffer(data, ">f4", offset=_VECTOR_HEADER).astype(np.float32)


def to_sent(embedding: NDArray[np.float32]) -> bytes:
    """The inverse of from_sent(), which binary COPY takes."""
    return len(embedding).to_bytes(2, "big") + bytes(2) + embedding.astype(">f4").tobytes()
