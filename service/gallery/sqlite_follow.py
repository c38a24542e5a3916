"""The embeddings of collections in memory, kept as the SQLite file has them."""

import sqlite3
import threading
from dataclasses import dataclass

import numpy as np

from service.gallery.sqlite_rows import REMOVALS_KEPT, Stored
from service.gallery.vectors import Vectors

_ROWS = 8192  # rows read at a time: their Python objects are a few MiB


class Followers:
    """One follower for each collection that was ever searched and is still there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._followers: dict[int, _Follower] = {}

    def at(self, db: sqlite3.Connection, stored: Stored) -> Vectors | None:
        """The embeddings of a collection as the snapshot of `db` has them, which `stored` was read from; None: that is an old one,
        memory is ahead of it, take another."""
        follower = self._followers.get(stored.id)
        if follower is None:
            with self._lock:
                there = {id_ for (id_,) in db.execute("SELECT id FROM collection")}
                for gone in self._followers.keys() - there:
                    del self._followers[gone]
                follower = self._followers.setdefault(stored.id, _Follower(stored.model.dimension))
        return follower.at(db, stored)


@dataclass(frozen=True)
class _State:
    vectors: Vectors
    newest: int
    removals: int

    def is_at(self, stored: Stored) -> bool:
        return (self.newest, self.removals) == (stored.newest, stored.removals)

    def is_past(self, stored: Stored) -> bool:
        return self.newest > stored.newest or self.removals > stored.removals


class _Follower:
    def __init__(self, dimension: int) -> None:
        self._lock = threading.Lock()
        self._state = _State(Vectors(dimension), 0, 0)

    def at(self, db: sqlite3.Connection, stored: Stored) -> Vectors | None:
        state = self._state
        if not state.is_at(stored):
            with self._lock:
                state = self._state
                if state.is_past(stored):
                    return None
                if not state.is_at(stored):
                    state = self._state = _caught_up(state, db, stored)
        return state.vectors


def _caught_up(state: _State, db: sqlite3.Connection, stored: Stored) -> _State:
    vectors, newest = state.vectors, state.newest
    if stored.removals - state.removals > REMOVALS_KEPT:
        vectors, newest = Vectors(vectors.dimension), 0
    elif stored.removals > state.removals:
        sql = "SELECT face FROM removed WHERE collection = ? AND removal > ?"
        vectors = vectors.without([face for (face,) in db.execute(sql, (stored.id, state.removals))])
    cursor = db.execute("SELECT id, subject, embedding FROM face WHERE collection = ? AND id > ? ORDER BY id", (stored.id, newest))
    while rows := cursor.fetchmany(_ROWS):
        faces, subjects, embeddings = zip(*rows, strict=True)
        some = np.frombuffer(b"".join(embeddings), "<f4").reshape(len(rows), vectors.dimension)
        vectors = vectors.added(np.array(faces, np.int64), np.array(subjects, np.int64), some)
    return _State(vectors, stored.newest, stored.removals)
