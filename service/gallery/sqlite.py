"""Faces in one SQLite file, for any number of processes on one machine; search is exact, over embeddings in memory.

search: snapshot of the file -> has the collection changed? read what is new, drop what was removed -> compare -> names
"""

import dataclasses
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.errors import FaceUnknown, GalleryMismatch, SubjectExists
from service.gallery.faces import check, face_key, from_bytes
from service.gallery.gallery import Collection, EmbeddingModel, Embeddings, Entry, NewFace, Page, Search, StoredFace, Subject
from service.gallery.sqlite_file import SqliteFile
from service.gallery.sqlite_follow import Followers
from service.gallery.sqlite_rows import (
    FACE,
    SUBJECT,
    Stored,
    add,
    as_face,
    as_matches,
    as_subject,
    drop,
    find,
    known,
    micros,
    remove,
    subject_row,
)

_ROWS = 256  # rows that export() reads at a time


class SqliteGallery:
    """service.gallery.gallery.Gallery in the file `path`, made where there is none.

    Raises GalleryUnavailable where it cannot be opened, SettingInvalid where a newer program made it.
    """

    def __init__(self, path: Path, model: EmbeddingModel) -> None:
        self._model = model
        self._file = SqliteFile(path)
        self._followers = Followers()

    @property
    def model(self) -> EmbeddingModel:
        return self._model

    @property
    def place(self) -> str:
        return str(self._file.path)

    def warm(self) -> None:
        for collection in self.collections():
            if collection.model == self._model:
                self.search(collection.name, np.zeros((0, self._model.dimension), np.float32))

    def collections(self) -> list[Collection]:
        with self._file.read() as db:
            rows = db.execute(
                "SELECT name, subjects, faces, model, version, digest, method, dimension FROM collection ORDER BY name"
            ).fetchall()
        return [Collection(name, EmbeddingModel(*model), subjects, faces) for name, subjects, faces, *model in rows]

    def enroll(self, collection: str, subject: str, faces: Sequence[NewFace]) -> list[StoredFace]:
        if not faces:
            raise ValueError("no face to enroll")
        now = datetime.now(UTC)
        entries = [Entry(collection, subject, face.embedding, face.box, face.quality, now) for face in faces]
        for entry in entries:
            check(entry.embedding[np.newaxis], self._model.dimension)
        return self._file.write(lambda db: list(add(db, entries, self._model)))

    def search(self, collection: str, embeddings: Embeddings, top_k: int = 1, threshold: float = -1.0) -> Search:
        if top_k < 1:
            raise ValueError(f"top_k={top_k}; at least 1")
        if len(embeddings):
            check(embeddings, self._model.dimension)
        while True:
            with self._file.read() as db:
                stored = find(db, collection)
                if stored is None:
                    return Search([()] * len(embeddings), 0, 0)
                self._agree(stored)
                vectors = self._followers.at(db, stored)
                if vectors is not None:
                    found = vectors.best(np.ascontiguousarray(embeddings), top_k, threshold)
                    return Search([as_matches(db, one, top_k) for one in found], stored.faces, stored.subjects)

    def subjects(self, collection: str, after: str | None = None, limit: int = 100) -> Page:
        if limit < 1:
            raise ValueError(f"limit={limit}; at least 1")
        with self._file.read() as db:
            stored = find(db, collection)
            if stored is None:
                return Page([], None, 0, 0)
            sql = SUBJECT + " AND s.name > ? ORDER BY s.name LIMIT ?"
            rows = db.execute(sql, (stored.id, "" if after is None else after, limit + 1)).fetchall()
        some = [as_subject(row) for row in rows[:limit]]
        return Page(some, some[-1].name if len(rows) > limit else None, stored.subjects, stored.faces)

    def subject(self, collection: str, name: str) -> tuple[Subject, list[StoredFace]]:
        with self._file.read() as db:
            _, row = known(db, collection, name)
            sql = f"SELECT {FACE} FROM face f WHERE f.subject = ? ORDER BY f.enrolled_at, f.id"
            faces = [as_face(face) for face in db.execute(sql, (row[4],))]
        return as_subject(row), faces

    def face(self, collection: str, face_id: str) -> tuple[str, NDArray[np.float32]] | None:
        sql = """
            SELECT s.name, f.embedding FROM subject s CROSS JOIN face f ON f.subject = s.id
            WHERE s.collection = ? AND f.face_id = ?
        """  # this order: there is an index on a subject's faces, none on all ids
        with self._file.read() as db:
            stored = find(db, collection)
            if stored is None:
                return None
            self._agree(stored)
            row = db.execute(sql, (stored.id, face_key(face_id))).fetchone()
        return None if row is None else (row[0], from_bytes(row[1]))

    def rename(self, collection: str, name: str, new: str) -> Subject:
        def job(db: sqlite3.Connection) -> Subject:
            stored, row = known(db, collection, name)
            if new == name:
                return as_subject(row)
            if subject_row(db, stored, new) is not None:
                raise SubjectExists(collection, new)
            db.execute("UPDATE subject SET name = ?, updated_at = ? WHERE id = ?", (new, micros(datetime.now(UTC)), row[4]))
            self._file.removing()
            return as_subject(known(db, collection, new)[1])

        return self._file.write(job)

    def delete_subject(self, collection: str, name: str) -> int:
        def job(db: sqlite3.Connection) -> int:
            stored, row = known(db, collection, name)
            faces = dict(db.execute("SELECT id, embedding FROM face WHERE subject = ?", (row[4],)))
            remove(db, stored, row[4], list(faces), last=True)
            self._file.removing(list(faces.values()))
            return len(faces)

        return self._file.write(job)

    def delete_face(self, collection: str, name: str, face_id: str) -> int:
        def job(db: sqlite3.Connection) -> int:
            stored, row = known(db, collection, name)
            sql = "SELECT id, embedding FROM face WHERE subject = ? AND lower(hex(face_id)) = ?"
            face = db.execute(sql, (row[4], face_id)).fetchone()
            if face is None:
                raise FaceUnknown(name, face_id)
            left = int(row[1]) - 1
            remove(db, stored, row[4], [face[0]], last=left == 0)
            self._file.removing([face[1]])
            return left

        return self._file.write(job)

    def export(self, collection: str | None = None) -> Iterator[Entry]:
        sql = f"""
            SELECT s.name, f.embedding, {FACE} FROM subject s JOIN face f ON f.subject = s.id
            WHERE s.collection = ? ORDER BY s.name, f.enrolled_at, f.id
        """
        with self._file.read() as db:
            names = db.execute("SELECT name FROM collection WHERE ?1 IS NULL OR name = ?1 ORDER BY name", (collection,)).fetchall()
            all_stored = [stored for (name,) in names if (stored := find(db, name)) is not None]
            for stored in all_stored:
                self._agree(stored)
            for stored in all_stored:
                with closing(db.execute(sql, (stored.id,))) as cursor:
                    while rows := cursor.fetchmany(_ROWS):
                        for name, embedding, *rest in rows:
                            face = as_face(rest)
                            yield Entry(stored.name, name, from_bytes(embedding), face.box, face.quality, face.enrolled_at)

    def import_(self, entries: Iterable[Entry]) -> int:
        return self._file.write_alone(lambda db: sum(not face.known for face in add(db, self._checked(entries), self._model)))

    def replace(self, collection: str, entries: Iterable[Entry]) -> int:
        def job(db: sqlite3.Connection) -> int:
            old = find(db, collection)
            if old is not None:
                drop(db, old)
                self._file.removing()
            moved = (dataclasses.replace(entry, collection=collection) for entry in self._checked(entries))
            return sum(not face.known for face in add(db, moved, self._model))

        return self._file.write_alone(job)

    def close(self) -> None:
        self._file.close()

    def _agree(self, stored: Stored) -> None:
        if stored.model != self._model:
            raise GalleryMismatch(stored.name, stored.model, self._model)

    def _checked(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            check(entry.embedding[np.newaxis], self._model.dimension)
            yield entry
