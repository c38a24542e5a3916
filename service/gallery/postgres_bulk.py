"""Whole collections out of PostgreSQL and into it: each call on a connection of its own, in one transaction, in batches.

Bulk writers wait for one another, since they lock several collections in whatever order the faces come. What they lock, others read
meanwhile, but cannot change until the bulk work is done.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace as replaced
from datetime import UTC, datetime, timedelta
from struct import pack

import numpy as np

from service.gallery.faces import check, face_id
from service.gallery.gallery import EmbeddingModel, Entry
from service.gallery.postgres_collection import (
    COLUMNS,
    CollectionRow,
    count,
    from_row,
    from_sent,
    lock,
    lock_or_make,
    to_sent,
)
from service.gallery.postgres_pool import READ, Pool, Rows, Session
from service.gallery.postgres_schema import BULK_LOCK

BATCH = 2000
_COLLECTIONS = f"SELECT {COLUMNS}, false FROM collection c ORDER BY c.name"
_PAGE = "SELECT id, name FROM subject WHERE collection = :collection AND name > :after ORDER BY name LIMIT :limit"
_FACES = """
SELECT s.name, vector_send(f.embedding), f.x1, f.y1, f.x2, f.y2, f.quality, f.enrolled_at
FROM subject s JOIN face f ON f.subject = s.id WHERE s.collection = :collection AND s.name >= :first AND s.name <= :last
ORDER BY s.name, f.enrolled_at, f.id
"""
_NAMES = "SELECT value FROM json_array_elements_text(CAST(:names AS json))"
_MAKE_SUBJECTS = f"""
INSERT INTO subject (collection, name, created_at, updated_at) SELECT :collection, value, clock_timestamp(), clock_timestamp()
FROM ({_NAMES}) n ON CONFLICT (collection, name) DO NOTHING RETURNING id
"""
_SUBJECTS = f"SELECT name, id, uid FROM subject WHERE collection = :collection AND name IN ({_NAMES})"
_KNOWN = """
SELECT f.subject, f.face_id FROM json_to_recordset(CAST(:faces AS json)) AS r(subject bigint, face_id text)
JOIN face f ON f.subject = r.subject AND f.face_id = decode(r.face_id, 'hex')
"""
_TOUCH = f"""
UPDATE subject SET updated_at = clock_timestamp() WHERE id IN (SELECT value::bigint FROM ({_NAMES}) n)
"""
_COPY = "COPY face (subject, collection, face_id, x1, y1, x2, y2, quality, enrolled_at, embedding) FROM STDIN (FORMAT binary)"
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = pack("!h", -1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL counts microseconds from here


def export(pool: Pool, model: EmbeddingModel, collection: str | None) -> Iterator[Entry]:
    """Raises GalleryMismatch before the first entry, where any collection asked for is another model's."""
    session = pool.open()
    try:
        with pool.named():
            session.simple(READ)
            rows = [from_row(row) for row in session.simple(_COLLECTIONS)]
            asked = [row for row in rows if collection in {None, row.name}]
            for row in asked:
                row.check(model)
            for row in asked:
                yield from _export_one(session, row)
    finally:
        session.close()


def import_(pool: Pool, model: EmbeddingModel, entries: Iterable[Entry]) -> int:
    """The number of faces that were new."""
    return _in_bulk(pool, lambda session: _add_all(session, model, entries))


def replace(pool: Pool, model: EmbeddingModel, collection: str, entries: Iterable[Entry]) -> int:
    """The number of faces that the collection has then."""

    def work(session: Session) -> int:
        if row := lock(session, collection):
            session.rows("DELETE FROM face WHERE collection = :id", id=row.id)
            session.rows("DELETE FROM subject WHERE collection = :id", id=row.id)
            session.rows("DELETE FROM collection WHERE id = :id", id=row.id)
        return _add_all(session, model, (replaced(entry, collection=collection) for entry in entries))

    return _in_bulk(pool, work)


def _in_bulk(pool: Pool, work: Callable[[Session], int]) -> int:
    session = pool.open()
    try:
        with pool.named():

            def alone(session: Session) -> int:
                session.simple(f"SELECT pg_advisory_xact_lock({BULK_LOCK})")
                return work(session)

            return session.transaction(alone)
    finally:
        session.close()


def _export_one(session: Session, row: CollectionRow) -> Iterator[Entry]:
    after = ""
    while page := session.rows(_PAGE, collection=row.id, after=after, limit=BATCH):
        first, after = page[0][1], page[-1][1]
        for name, embedding, *box, quality, enrolled_at in session.rows(_FACES, collection=row.id, first=first, last=after):
            x1, y1, x2, y2 = box
            yield Entry(row.name, name, from_sent(embedding), (x1, y1, x2, y2), quality, enrolled_at)


def _add_all(session: Session, model: EmbeddingModel, entries: Iterable[Entry]) -> int:
    locked = dict[str, CollectionRow]()
    added = 0
    iterator = iter(entries)
    while batch := list(itertools.islice(iterator, BATCH)):
        by_collection = defaultdict[str, list[Entry]](list)
        for entry in batch:
            check(entry.embedding[np.newaxis], model.dimension)
            by_collection[entry.collection].append(entry)
        for name, some in by_collection.items():
            if name not in locked:
                locked[name] = lock_or_make(session, name, model)
            added += _add(session, locked[name], some)
    return added


def _add(session: Session, row: CollectionRow, entries: Sequence[Entry]) -> int:
    names = json.dumps(sorted({entry.subject for entry in entries}))
    made = {number for (number,) in session.rows(_MAKE_SUBJECTS, collection=row.id, names=names)}
    subjects = {name: (number, uid) for name, number, uid in session.rows(_SUBJECTS, collection=row.id, names=names)}
    faces = dict[tuple[int, str], Entry]()
    for entry in entries:
        number, uid = subjects[entry.subject]
        faces.setdefault((number, face_id(uid, entry.embedding)), entry)
    asked = json.dumps([{"subject": number, "face_id": one} for number, one in faces])
    known: Rows = session.rows(_KNOWN, faces=asked)
    for number, one in known:
        del faces[number, one.hex()]
    if faces:
        lines = [_line(row.id, number, one, entry) for (number, one), entry in faces.items()]
        session.copy(_COPY, b"".join([_COPY_HEADER, *lines, _COPY_END]))
        if grown := {number for number, _ in faces} - made:
            session.rows(_TOUCH, names=json.dumps(sorted(grown)))
        count(session, row, subjects=len(made), faces=len(faces))
    return len(faces)


def _line(collection: int, subject: int, one: str, entry: Entry) -> bytes:
    """A row of binary COPY."""
    quality = json.dumps(dict(entry.quality)).encode()
    embedding = to_sent(entry.embedding)
    x1, y1, x2, y2 = (pack("!id", 8, float(value)) for value in entry.box)
    at = (entry.enrolled_at - _EPOCH) // timedelta(microseconds=1)
    return b"".join(
        (
            pack("!hiqiqi", 10, 8, subject, 8, collection, len(one) // 2),
            bytes.fromhex(one),
            x1,
            y1,
            x2,
            y2,
            pack("!i", len(quality)),
            quality,
            pack("!iqi", 8, at, len(embedding)),
            embedding,
        )
    )
