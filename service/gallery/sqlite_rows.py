"""Rows of the SQLite file: what stands in them, and how they change. All of it inside a transaction that the caller began."""

import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from service.errors import GalleryMismatch, SubjectUnknown
from service.gallery.faces import face_id, to_bytes
from service.gallery.gallery import EmbeddingModel, Entry, Match, StoredFace, Subject
from service.gallery.vectors import Candidates

REMOVALS_KEPT = 10_000
"""Removals whose faces stand in the journal; who has missed more reads the collection anew."""
SUBJECT = """
    SELECT s.name, (SELECT count(*) FROM face f WHERE f.subject = s.id), s.created_at, s.updated_at, s.id, s.key
    FROM subject s WHERE s.collection = ?
"""
FACE = "lower(hex(f.face_id)), f.x_min, f.y_min, f.x_max, f.y_max, f.quality, f.enrolled_at"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = Sequence[Any]


@dataclass(frozen=True)
class Stored:
    """A collection's row. `newest` and `removals` only grow: they say how far a reader is behind."""

    id: int
    name: str
    model: EmbeddingModel
    subjects: int
    faces: int
    newest: int
    removals: int


def find(db: sqlite3.Connection, collection: str) -> Stored | None:
    row = db.execute(
        "SELECT id, subjects, faces, newest, removals, model, version, digest, method, dimension FROM collection WHERE name = ?",
        (collection,),
    ).fetchone()
    if row is None:
        return None
    id_, subjects, faces, newest, removals, *model = row
    return Stored(id_, collection, EmbeddingModel(*model), subjects, faces, newest, removals)


def subject_row(db: sqlite3.Connection, stored: Stored, name: str) -> Row | None:
    """Name, number of faces, created_at, updated_at, id, key."""
    row: Row | None = db.execute(SUBJECT + " AND s.name = ?", (stored.id, name)).fetchone()
    return row


def known(db: sqlite3.Connection, collection: str, name: str) -> tuple[Stored, Row]:
    """The collection and the row of a subject. Raises SubjectUnknown."""
    stored = find(db, collection)
    row = None if stored is None else subject_row(db, stored, name)
    if stored is None or row is None:
        raise SubjectUnknown(collection, name)
    return stored, row


def as_subject(row: Row) -> Subject:
    return Subject(row[0], row[1], _moment(row[2]), _moment(row[3]))


def as_face(row: Row) -> StoredFace:
    """Of the columns FACE."""
    id_, x_min, y_min, x_max, y_max, quality, enrolled_at = row
    return StoredFace(id_, (x_min, y_min, x_max, y_max), json.loads(quality), _moment(enrolled_at))


def as_matches(db: sqlite3.Connection, found: Candidates, top_k: int) -> list[Match]:
    """The best of `found` with their names: by similarity, then name."""
    sql = "SELECT s.name, lower(hex(f.face_id)) FROM face f JOIN subject s ON s.id = f.subject WHERE f.id = ?"
    matches = []
    for face, similarity in zip(found.faces.tolist(), found.similarities.tolist(), strict=True):
        name, id_ = db.execute(sql, (face,)).fetchone()
        matches.append(Match(name, id_, similarity))
    return sorted(matches, key=lambda match: (-match.similarity, match.subject))[:top_k]


def add(db: sqlite3.Connection, entries: Iterable[Entry], model: EmbeddingModel) -> Iterator[StoredFace]:
    """Store each entry and give its face; the counts are right when all have been taken. Raises GalleryMismatch."""
    collections: dict[str, _Added] = {}
    for entry in entries:
        added = collections.get(entry.collection)
        if added is None:
            added = collections[entry.collection] = _Added(db, entry.collection, model)
        yield added.face(entry)
    for added in collections.values():
        added.end()


class _Added:
    """Faces on their way into one collection."""

    def __init__(self, db: sqlite3.Connection, name: str, model: EmbeddingModel) -> None:
        self._db, self._now = db, micros(datetime.now(UTC))
        self._subjects = self._faces = self._newest = 0
        self._subject = ("", 0, "")  # the last one's name, id and key: the next entry is often of the same
        stored = find(db, name)
        if stored is not None and stored.model != model:
            raise GalleryMismatch(name, stored.model, model)
        self._id = stored.id if stored is not None else self._made(name, model)

    def face(self, entry: Entry) -> StoredFace:
        if self._subject[0] != entry.subject:
            self._subject = self._find_or_make(entry.subject)
        _, subject, key = self._subject
        id_ = face_id(key, entry.embedding)
        row = self._db.execute(
            "INSERT INTO face (collection, subject, face_id, embedding, x_min, y_min, x_max, y_max, quality, enrolled_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (subject, face_id) DO NOTHING RETURNING id",
            (
                self._id,
                subject,
                bytes.fromhex(id_),
                to_bytes(entry.embedding),
                *map(float, entry.box),
                json.dumps(dict(entry.quality), ensure_ascii=False),
                micros(entry.enrolled_at),
            ),
        ).fetchall()
        if not row:
            sql = f"SELECT {FACE} FROM face f WHERE f.subject = ? AND f.face_id = ?"
            old = as_face(self._db.execute(sql, (subject, bytes.fromhex(id_))).fetchone())
            return StoredFace(old.face_id, old.box, old.quality, old.enrolled_at, known=True)
        self._faces, self._newest = self._faces + 1, row[0][0]
        self._db.execute("UPDATE subject SET updated_at = ?1 WHERE id = ?2 AND updated_at < ?1", (self._now, subject))
        return StoredFace(id_, entry.box, entry.quality, entry.enrolled_at)

    def end(self) -> None:
        self._db.execute(
            "UPDATE collection SET subjects = subjects + ?, faces = faces + ?, newest = max(newest, ?) WHERE id = ?",
            (self._subjects, self._faces, self._newest, self._id),
        )

    def _made(self, name: str, model: EmbeddingModel) -> int:
        values = (name, model.name, model.version, model.digest, model.method, model.dimension)
        (row,) = self._db.execute(
            "INSERT INTO collection (name, model, version, digest, method, dimension, subjects, faces, newest, removals) "
            "VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0, 0) RETURNING id",
            values,
        ).fetchall()
        return int(row[0])

    def _find_or_make(self, name: str) -> tuple[str, int, str]:
        row = self._db.execute("SELECT id, key FROM subject WHERE collection = ? AND name = ?", (self._id, name)).fetchone()
        if row is None:
            key = secrets.token_hex(16)
            (made,) = self._db.execute(
                "INSERT INTO subject (collection, name, key, created_at, updated_at) VALUES (?, ?, ?, ?, ?) RETURNING id",
                (self._id, name, key, self._now, self._now),
            ).fetchall()
            row = (made[0], key)
            self._subjects += 1
        return name, int(row[0]), str(row[1])


def remove(db: sqlite3.Connection, stored: Stored, subject: int, faces: Sequence[int], *, last: bool) -> None:
    """Take faces from a subject, with its `last` the subject, and with the last subject the collection."""
    if last and stored.subjects == 1:
        drop(db, stored)
        return
    removal = stored.removals + 1
    db.executemany("INSERT INTO removed VALUES (?, ?, ?)", [(stored.id, removal, face) for face in faces])
    db.execute("DELETE FROM removed WHERE collection = ? AND removal <= ?", (stored.id, removal - REMOVALS_KEPT))
    db.executemany("DELETE FROM face WHERE id = ?", [(face,) for face in faces])
    if last:
        db.execute("DELETE FROM subject WHERE id = ?", (subject,))
    else:
        db.execute("UPDATE subject SET updated_at = ? WHERE id = ?", (micros(datetime.now(UTC)), subject))
    db.execute(
        "UPDATE collection SET subjects = subjects - ?, faces = faces - ?, removals = ? WHERE id = ?",
        (int(last), len(faces), removal, stored.id),
    )


def drop(db: sqlite3.Connection, stored: Stored) -> None:
    """Forget a collection. One of the same name gets another id, so nobody takes it for this one."""
    for sql in (
        "DELETE FROM removed WHERE collection = ?",
        "DELETE FROM face WHERE collection = ?",
        "DELETE FROM subject WHERE collection = ?",
        "DELETE FROM collection WHERE id = ?",
    ):
        db.execute(sql, (stored.id,))


def micros(moment: datetime) -> int:
    """Microseconds since 1970 in UTC."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)
