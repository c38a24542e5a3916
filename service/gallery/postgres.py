"""Faces in PostgreSQL with pgvector, for several servers at once. Nothing is kept in memory: each call asks the database."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import FaceUnknown, SubjectExists, SubjectUnknown
from service.gallery import postgres_bulk as bulk
from service.gallery import postgres_search
from service.gallery.faces import check, face_key
from service.gallery.faces import face_id as make_face_id
from service.gallery.gallery import Collection, EmbeddingModel, Embeddings, Entry, NewFace, Page, Search, StoredFace, Subject
from service.gallery.postgres_collection import (
    COLUMNS,
    CollectionRow,
    count,
    find,
    from_row,
    from_sent,
    lock,
    lock_or_make,
    to_text,
)
from service.gallery.postgres_index import Indexes
from service.gallery.postgres_pool import Pool, Session
from service.gallery.postgres_schema import migrate
from service.gallery.postgres_url import parse

EXACT_FACES = 20_000
"""Up to so many faces a collection is searched by comparing all of them."""

_COLLECTIONS = f"SELECT {COLUMNS}, false FROM collection c ORDER BY c.name"
_FACE = "encode(f.face_id, 'hex'), f.x1, f.y1, f.x2, f.y2, f.quality, f.enrolled_at"
_FACES = f"SELECT {_FACE} FROM face f WHERE f.subject = :subject ORDER BY f.enrolled_at, f.id"
_THESE_FACES = f"""
SELECT {_FACE} FROM face f
WHERE f.subject = :subject AND f.face_id IN (SELECT decode(value, 'hex') FROM json_array_elements_text(CAST(:ids AS json)))
"""
_ONE_FACE = """
SELECT s.name, vector_send(f.embedding) FROM subject s JOIN face f ON f.subject = s.id
WHERE s.collection = :collection AND f.face_id = :face_id
"""
_SUBJECT = """
SELECT s.id, s.uid, s.name, (SELECT count(*) FROM face f WHERE f.subject = s.id), s.created_at, s.updated_at
FROM subject s WHERE s.collection = :collection
"""
_ONE_SUBJECT = f"{_SUBJECT} AND s.name = :name"
_SUBJECTS = f"{_SUBJECT} AND s.name > :after ORDER BY s.name LIMIT :limit"
_MAKE_SUBJECT = """
INSERT INTO subject (collection, name, created_at, updated_at) VALUES (:collection, :name, clock_timestamp(), clock_timestamp())
ON CONFLICT (collection, name) DO NOTHING RETURNING id, uid
"""
_MAKE_FACES = """
INSERT INTO face (subject, collection, face_id, x1, y1, x2, y2, quality, enrolled_at, embedding)
SELECT :subject, :collection, decode(r.face_id, 'hex'), r.x1, r.y1, r.x2, r.y2, r.quality, clock_timestamp(), r.embedding::vector
FROM json_to_recordset(CAST(:faces AS json)) AS r(
    face_id text, x1 float8, y1 float8, x2 float8, y2 float8, quality json, embedding text
) ON CONFLICT (subject, face_id) DO NOTHING RETURNING encode(face_id, 'hex')
"""
_TOUCH = "UPDATE subject SET updated_at = clock_timestamp() WHERE id = :subject"
_RENAME = "UPDATE subject SET name = :new, updated_at = clock_timestamp() WHERE id = :subject RETURNING updated_at"
_DELETE_FACE = "DELETE FROM face WHERE subject = :subject AND face_id = :face_id RETURNING id"
_DELETE_FACES = "DELETE FROM face WHERE subject = :subject"
_DELETE_SUBJECT = "DELETE FROM subject WHERE id = :subject"


class PostgresGallery:
    """Keeps service.gallery.gallery.Gallery. Beyond `exact_faces` a collection is searched by an HNSW index, once that stands."""

    def __init__(self, url: str, model: EmbeddingModel, exact_faces: int = EXACT_FACES) -> None:
        """`url` as service.gallery.postgres_url reads it. Makes the tables where there are none.

        Raises SettingInvalid, RuntimeMissing where the driver is not installed, GalleryUnavailable.
        """
        self._model = model
        self._pool = Pool(parse(url))
        self._exact_faces = exact_faces
        self._indexes = Indexes(self._pool, exact_faces)
        try:
            migrate(self._pool)
        except BaseException:
            self._pool.close()
            raise

    @property
    def model(self) -> EmbeddingModel:
        return self._model

    @property
    def place(self) -> str:
        return str(self._pool.target)

    def warm(self) -> None:
        """Ask once, and have indexes built that are missing, meanwhile."""
        if any(collection.faces > self._exact_faces for collection in self.collections()):
            self._indexes.build_soon()

    def collections(self) -> list[Collection]:
        rows = self._pool.read(lambda session: session.simple(_COLLECTIONS))
        return [Collection(row.name, row.model, row.subjects, row.faces) for row in map(from_row, rows)]

    def enroll(self, collection: str, subject: str, faces: Sequence[NewFace]) -> list[StoredFace]:
        if not faces:
            raise ValueError("no face to enroll")
        for face in faces:
            check(face.embedding[np.newaxis], self._model.dimension)

        def work(session: Session) -> tuple[CollectionRow, list[StoredFace]]:
            row = lock_or_make(session, collection, self._model)
            made = session.rows(_MAKE_SUBJECT, collection=row.id, name=subject)
            number, uid = made[0] if made else _known(session, row, subject)[:2]
            ids = [make_face_id(uid, face.embedding) for face in faces]
            given = {one: _to_json(one, face) for one, face in zip(ids, faces, strict=True)}
            values = {"subject": number, "collection": row.id, "faces": json.dumps(list(given.values()))}
            new = {one for (one,) in session.rows(_MAKE_FACES, **values)}
            if new:
                session.rows(_TOUCH, subject=number)
                count(session, row, subjects=len(made), faces=len(new))
            stored = {face.face_id: face for face in map(_stored, session.rows(_THESE_FACES, subject=number, ids=json.dumps(ids)))}
            return row, [_answer(stored[one], known=one not in new or one in ids[:place]) for place, one in enumerate(ids)]

        row, stored = self._pool.write(work)
        if row.faces + len(stored) > self._exact_faces and not row.indexed:
            self._indexes.build_soon()
        return stored

    def search(self, collection: str, embeddings: Embeddings, top_k: int = 1, threshold: float = -1.0) -> Search:
        if top_k < 1:
            raise ValueError(f"top_k={top_k}; at least 1")
        if len(embeddings):
            check(embeddings, self._model.dimension)

        def work(session: Session) -> Search:
            row = find(session, collection)
            if row is None:
                return Search([[] for _ in embeddings], 0, 0)
            row.check(self._model)
            indexed = row.indexed and row.faces > self._exact_faces
            return postgres_search.search(session, row, embeddings, top_k, threshold, indexed)

        return self._pool.read(work)

    def subjects(self, collection: str, after: str | None = None, limit: int = 100) -> Page:
        if limit < 1:
            raise ValueError(f"limit={limit}; at least 1")

        def work(session: Session) -> Page:
            row = find(session, collection)
            if row is None:
                return Page([], None, 0, 0)
            rows = session.rows(_SUBJECTS, collection=row.id, after=after or "", limit=limit + 1)
            found = [Subject(*fields) for _, _, *fields in rows[:limit]]
            return Page(found, found[-1].name if len(rows) > limit else None, row.subjects, row.faces)

        return self._pool.read(work)

    def subject(self, collection: str, name: str) -> tuple[Subject, list[StoredFace]]:
        def work(session: Session) -> tuple[Subject, list[StoredFace]]:
            row = _present(find(session, collection), collection, name)
            number, _, *fields = _known(session, row, name)
            return Subject(*fields), [_stored(face) for face in session.rows(_FACES, subject=number)]

        return self._pool.read(work)

    def face(self, collection: str, face_id: str) -> tuple[str, NDArray[np.float32]] | None:
        def work(session: Session) -> tuple[str, NDArray[np.float32]] | None:
            row = find(session, collection)
            if row is None:
                return None
            row.check(self._model)
            rows = session.rows(_ONE_FACE, collection=row.id, face_id=face_key(face_id))
            return (rows[0][0], from_sent(rows[0][1])) if rows else None

        return self._pool.read(work)

    def rename(self, collection: str, name: str, new: str) -> Subject:
        def work(session: Session) -> Subject:
            row = _present(lock(session, collection), collection, name)
            number, _, _, faces, created, updated = _known(session, row, name)
            if new != name:
                if session.rows(_ONE_SUBJECT, collection=row.id, name=new):
                    raise SubjectExists(collection, new)
                updated = session.rows(_RENAME, subject=number, new=new)[0][0]
            return Subject(new, faces, created, updated)

        return self._pool.write(work)

    def delete_subject(self, collection: str, name: str) -> int:
        def work(session: Session) -> int:
            row = _present(lock(session, collection), collection, name)
            number, _, _, faces, *_ = _known(session, row, name)
            session.rows(_DELETE_FACES, subject=number)
            session.rows(_DELETE_SUBJECT, subject=number)
            count(session, row, subjects=-1, faces=-faces)
            return int(faces)

        return self._pool.write(work)

    def delete_face(self, collection: str, name: str, face_id: str) -> int:
        def work(session: Session) -> int:
            row = _present(lock(session, collection), collection, name)
            number, _, _, faces, *_ = _known(session, row, name)
            if not session.rows(_DELETE_FACE, subject=number, face_id=face_key(face_id)):
                raise FaceUnknown(name, face_id)
            session.rows(_TOUCH if faces > 1 else _DELETE_SUBJECT, subject=number)
            count(session, row, subjects=0 if faces > 1 else -1, faces=-1)
            return int(faces) - 1

        return self._pool.write(work)

    def export(self, collection: str | None = None) -> Iterator[Entry]:
        return bulk.export(self._pool, self._model, collection)

    def import_(self, entries: Iterable[Entry]) -> int:
        added = bulk.import_(self._pool, self._model, entries)
        self._indexes.build_quietly()  # a command line that imported ends after it
        return added

    def replace(self, collection: str, entries: Iterable[Entry]) -> int:
        stored = bulk.replace(self._pool, self._model, collection, entries)
        self._indexes.build_quietly()  # a command line that imported ends after it
        return stored

    def close(self) -> None:
        self._indexes.close()
        self._pool.close()


def _present(row: CollectionRow | None, collection: str, name: str) -> CollectionRow:
    if row is None:
        raise SubjectUnknown(collection, name)
    return row


def _known(session: Session, row: CollectionRow, name: str) -> list[Any]:
    """id, uid, and the fields of Subject."""
    rows = session.rows(_ONE_SUBJECT, collection=row.id, name=name)
    if not rows:
        raise SubjectUnknown(row.name, name)
    return rows[0]


def _to_json(face_id: str, face: NewFace) -> dict[str, Any]:
    box = dict(zip(("x1", "y1", "x2", "y2"), face.box, strict=True))
    return {"face_id": face_id, **box, "quality": dict(face.quality), "embedding": to_text(face.embedding)}


def _stored(row: list[Any]) -> StoredFace:
    face_id, x1, y1, x2, y2, quality, enrolled_at = row
    return StoredFace(face_id, (x1, y1, x2, y2), quality, enrolled_at)


def _answer(face: StoredFace, known: bool) -> StoredFace:
    return dataclasses.replace(face, known=known)
