"""The HNSW index of each large collection: a partial one, so that no filter and no other collection costs recall.

A collection is searched exactly until its index stands. Indexes are built CONCURRENTLY, so that nobody waits for one: after an
import by the importer, else by a thread of the process whose enrolment made the collection large. PostgreSQL goes on building when
that process ends.
"""

import contextlib
import logging
import threading
import time

from service.errors import GalleryUnavailable
from service.gallery.postgres_pool import SCHEMA, Lost, Pool, ServerError, Session
from service.gallery.postgres_schema import INDEX_LOCK

log = logging.getLogger(__name__)

PREFIX = "face_hnsw_"
M, EF_CONSTRUCTION, EF_SEARCH = 24, 200, 800
MAX_DIMENSION = 2000
"""pgvector indexes no longer ones."""
PAUSE = 30.0
"""Seconds from one try of the thread to the next: another process may be at it."""
_MAX_MEMORY_MB = 4096

VALID = f"coalesce((SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass('{SCHEMA}.{PREFIX}' || c.id)), false)"
"""Whether the index of the collection `c` can be used."""
_DUE = f"""
SELECT c.id, c.dimension, c.faces FROM collection c
WHERE c.faces > :limit AND c.dimension <= {MAX_DIMENSION} AND NOT {VALID}
"""
_STALE = f"""
SELECT x.relname FROM pg_class x JOIN pg_index i ON i.indexrelid = x.oid
WHERE x.relnamespace = '{SCHEMA}'::regnamespace AND starts_with(x.relname, '{PREFIX}')
AND NOT (i.indisvalid AND EXISTS (SELECT FROM collection c WHERE x.relname = '{PREFIX}' || c.id AND c.faces > :limit / 2))
"""


class Indexes:
    """Keeps an index for every collection of more than `limit` faces."""

    def __init__(self, pool: Pool, limit: int) -> None:
        self._pool, self._limit = pool, limit
        self._lock = threading.Lock()
        self._next = 0.0
        self._working: Session | None = None
        self._closed = False

    def build(self) -> None:
        """Build what is missing and drop what is left over; returns when no index is due. Raises GalleryUnavailable."""
        session = self._pool.open()
        try:
            with self._lock:
                self._working = session
            with self._pool.named():
                while not session.simple(f"SELECT pg_try_advisory_lock({INDEX_LOCK})")[0][0]:
                    # Asked again and again: a waiting statement's snapshot would keep the other's build from ending.
                    time.sleep(0.2)
                    if not session.rows(_DUE, limit=self._limit):
                        return
                self._build(session)
        finally:
            with self._lock:
                self._working = None
            session.close()

    def build_soon(self) -> None:
        """The same in a thread, unless that was tried a moment ago."""
        with self._lock:
            if self._closed or self._working or time.monotonic() < self._next:
                return
            self._next = time.monotonic() + PAUSE
        threading.Thread(target=self.build_quietly, name="gallery-index", daemon=True).start()

    def close(self) -> None:
        """PostgreSQL goes on with an index that it has begun."""
        with self._lock:
            self._closed = True
            if self._working:
                self._working.close()

    def build_quietly(self) -> None:
        """build(), whose failure is only logged: what is stored is stored, and another try follows."""
        try:
            self.build()
        except GalleryUnavailable as error:
            if not self._closed:
                log.warning("the gallery's index was not built, searches stay exact and slow: %s", error)

    def _build(self, session: Session) -> None:
        for (name,) in session.rows(_STALE, limit=self._limit):
            session.simple(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{name}")
        while due := session.rows(_DUE, limit=self._limit):
            collection, dimension, faces = due[0]
            megabytes = min(max(faces * (4 * dimension + 40 * M + 400) // 2**20, 64), _MAX_MEMORY_MB)
            session.simple(f"SET maintenance_work_mem = '{megabytes}MB'")
            create = (
                f"CREATE INDEX CONCURRENTLY {PREFIX}{collection} ON {SCHEMA}.face USING hnsw ((embedding::vector({dimension})) "
                f"vector_ip_ops) WITH (m = {M}, ef_construction = {EF_CONSTRUCTION}) WHERE collection = {collection}"
            )
            try:
                session.simple(create)
            except ServerError:  # most likely too little shared memory, which containers have; one process needs none
                with contextlib.suppress(ServerError, Lost):
                    session.simple(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{PREFIX}{collection}")
                session.simple("SET max_parallel_maintenance_workers = 0")
                session.simple(create)
