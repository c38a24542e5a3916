"""The SQLite file: opened safely, brought up to date, read by several threads, written by one at a time.

write: jobs of all threads -> one transaction, each job in a savepoint -> one fsync -> answers
after a removal: what is left of it in freed places and in the log is wiped, before the answer
"""

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from service.errors import GalleryUnavailable, SettingInvalid, VisionError

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

BUSY_SECONDS = 10.0
WIPE_SECONDS = 1.0
"""How long a removal waits for other readers to finish, before what it left in the log is wiped later."""
WIPE_AGAIN_SECONDS = 1.0
"""Time between two tries to wipe what a reader, of another process say, held back."""
REWRITE_BYTES = 16 * 2**20
"""Files up to this size are written anew after a removal: SQLite zeroes what it deletes, but not the copies that rows leave behind
where pages are split or joined. Larger files are searched for such copies, and written anew where there is one."""
SEARCHED = 64
"""Most embeddings that a large file is searched for; with more, it is written anew."""
LOG_BYTES = 16 * 2**20
"""What a long change may leave of its log."""
GROUP = 64
"""Most jobs of one transaction."""
READERS = 8
"""Connections that are kept open for the next reader."""

MIGRATIONS = (
    """
    CREATE TABLE collection (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,
        model TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL, method TEXT NOT NULL, dimension INTEGER NOT NULL,
        subjects INTEGER NOT NULL, faces INTEGER NOT NULL,
        newest INTEGER NOT NULL, removals INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX collection_name ON collection (name);
    CREATE TABLE subject (
        id INTEGER PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL REFERENCES collection, name TEXT NOT NULL,
        key TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX subject_name ON subject (collection, name);
    CREATE TABLE face (
        id INTEGER PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL REFERENCES collection,
        subject INTEGER NOT NULL REFERENCES subject, face_id BLOB NOT NULL, embedding BLOB NOT NULL,
        x_min REAL NOT NULL, y_min REAL NOT NULL, x_max REAL NOT NULL, y_max REAL NOT NULL,
        quality TEXT NOT NULL, enrolled_at INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX face_subject ON face (subject, face_id);
    CREATE INDEX face_collection ON face (collection);
    CREATE TABLE removed (
        collection INTEGER NOT NULL, removal INTEGER NOT NULL, face INTEGER NOT NULL, PRIMARY KEY (collection, removal, face)
    ) STRICT, WITHOUT ROWID;
    """,
)
"""What makes each version of the schema of the one before. `newest`: the greatest face.id that a collection ever had; `removals`:
how many changes took faces away, the last of which stand in `removed`: by these two a process knows what it has not seen."""


class _Ticket(Generic[T]):
    """A job that waits for its turn, and what came of it."""

    def __init__(self, job: Job[T]) -> None:
        self.job = job
        self.done = False
        self.value: list[T] = []
        self.error: Exception | None = None

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value[0]


class SqliteFile:
    """One database file. Raises GalleryUnavailable where it cannot be opened, SettingInvalid where a newer program made it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._waiting: deque[_Ticket[Any]] = deque()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        self._gone: list[bytes] = []
        self._again = False
        try:
            _make(path)
            log = path.with_name(path.name + "-wal")
            self._stale = self._logged = log.exists() and log.stat().st_size > 0
        except OSError as error:
            raise GalleryUnavailable(f"the gallery {path} cannot be made: {error.strerror}", 10) from error
        with self._explained():
            self._writer = self._connect()
            try:
                _start_log(self._writer)
                with _transaction(self._writer):
                    _migrate(self._writer, path)
                self._wipe()
            except BaseException:
                self._writer.close()
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees the file as one moment had it."""
        with self._explained():
            try:
                reader = self._idle.pop()
            except IndexError:
                reader = self._connect()
        try:
            with self._explained():
                reader.execute("BEGIN")
                yield reader
        finally:
            self._put_back(reader)

    def write(self, job: Job[T]) -> T:
        """What `job` answers, once its changes are on disk. Jobs of several threads share a transaction; one that raises changes
        nothing, and the others stand."""
        ticket = _Ticket(job)
        self._waiting.append(ticket)
        with self._lock:
            while not ticket.done:
                self._write_together([self._waiting.popleft() for _ in range(min(GROUP, len(self._waiting)))])
        return ticket.result()

    def write_alone(self, job: Job[T]) -> T:
        """The same in a transaction of its own: for long jobs."""
        with self._lock, self._explained():
            with _transaction(self._writer):
                answer = job(self._writer)
            self._wipe()
        return answer

    def removing(self, embeddings: Sequence[bytes] = ()) -> None:
        """Called by a job that takes something away: what is left of it, and of these bytes, shall be wiped after the commit."""
        self._stale = self._logged = True
        self._gone += embeddings

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with suppress(sqlite3.Error):
                self._wipe()
            self._writer.close()
            while self._idle:
                self._idle.pop().close()

    def _write_together(self, tickets: list[_Ticket[Any]]) -> None:
        try:
            with self._explained():
                with _transaction(self._writer):
                    for ticket in tickets:
                        _try(ticket, self._writer)
                self._wipe()
        except VisionError as error:
            for ticket in tickets:
                ticket.error = error
        except BaseException:
            for ticket in tickets:
                ticket.error = GalleryUnavailable("the change was interrupted; try again")
            raise
        finally:
            for ticket in tickets:
                ticket.done = True

    def _wipe(self, wait: float = WIPE_SECONDS) -> None:
        """Leave nothing of what was removed in the file and its log. What cannot be done now is tried again with the next change,
        when a reader of ours ends, every second, and at the end."""
        if not self._logged:
            return
        writer = self._writer
        writer.execute(f"PRAGMA busy_timeout = {int(wait * 1000)}")
        with suppress(sqlite3.OperationalError, OSError):  # the change itself is on disk already
            if self._stale:
                anew = self.path.stat().st_size <= REWRITE_BYTES or len(self._gone) > SEARCHED
                writer.execute("VACUUM" if anew else "REINDEX subject_name")
                self._stale, self._gone = False, [] if anew else self._gone
            self._logged = not _emptied_log(writer)
            if not self._logged and self._gone:
                if _holds(self.path, self._gone):
                    writer.execute("VACUUM")
                    self._logged = not _emptied_log(writer)
                self._gone = []
        writer.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        if self._logged and not self._closed and not self._again:
            self._again = True
            timer = threading.Timer(WIPE_AGAIN_SECONDS, self._wipe_again)
            timer.daemon = True
            timer.start()

    def _wipe_again(self) -> None:
        with self._lock:
            self._again = False
            if not self._closed:
                with suppress(sqlite3.Error):
                    self._wipe(wait=0)

    def _put_back(self, reader: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):
            if reader.in_transaction:
                reader.execute("ROLLBACK")
        if self._closed or len(self._idle) >= READERS or reader.in_transaction:
            reader.close()
        else:
            self._idle.append(reader)
        if self._logged and self._lock.acquire(blocking=False):
            try:
                if not self._closed:
                    self._wipe(wait=0)
            finally:
                self._lock.release()

    def _connect(self) -> sqlite3.Connection:
        if self._closed:
            raise GalleryUnavailable("the gallery is closed")
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode=rw",  # never made again where somebody took it away
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        settings = (
            "synchronous = FULL",
            "secure_delete = ON",
            "temp_store = MEMORY",
            "foreign_keys = ON",
            f"journal_size_limit = {LOG_BYTES}",
        )
        for setting in settings:
            connection.execute(f"PRAGMA {setting}")
        return connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What SQLite and the system complain about, as GalleryUnavailable."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.DataError):
            raise  # a mistake in this program
        except sqlite3.Error as error:
            if self._closed:
                raise GalleryUnavailable("the gallery is closed") from error
            raise GalleryUnavailable(f"the gallery {self.path} {_reason(error)} (SQLite: {error})") from error


def _make(path: Path) -> None:
    """The file, readable by nobody else, where there is none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _emptied_log(connection: sqlite3.Connection) -> bool:
    """Put the whole log into the file and empty it; False where a reader still needs it."""
    busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def _holds(path: Path, wanted: Sequence[bytes]) -> bool:
    """Is a copy of any of `wanted` in the file? Where its beginning or its end was written over, the middle tells."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as whole:
        return any(whole.find(one[len(one) // 4 : -len(one) // 4]) >= 0 for one in wanted)


def _start_log(connection: sqlite3.Connection) -> None:
    """Switch to a write-ahead log. SQLite does not wait by itself where several processes do so at the same time."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            break
    if mode != "wal":
        raise GalleryUnavailable(
            f"the gallery cannot keep a write-ahead log where it lies (journal mode {mode}); use a local disk", 10
        )


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise SettingInvalid(
            f"the gallery {path} has schema {version}, and this program knows {len(MIGRATIONS)}: a newer one made it; "
            "update this program, or name another file in VISION_GALLERY_URL"
        )
    for migration in MIGRATIONS[version:]:
        for statement in filter(str.strip, migration.split(";")):
            connection.execute(statement)
    if version < len(MIGRATIONS):
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            connection.execute("ROLLBACK")
        raise


def _try(ticket: _Ticket[Any], connection: sqlite3.Connection) -> None:
    connection.execute("SAVEPOINT job")
    try:
        ticket.value = [ticket.job(connection)]
    except sqlite3.Error:
        raise  # the file's trouble, which is everybody's
    except Exception as error:  # noqa: BLE001 - raised again in the thread whose job it is
        ticket.error = error
        connection.execute("ROLLBACK TO job")
    connection.execute("RELEASE job")


def _reason(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    reasons = {
        sqlite3.SQLITE_BUSY: f"is held by another process for more than {BUSY_SECONDS:.0f} s; try again",
        sqlite3.SQLITE_LOCKED: "is held by another thread; try again",
        sqlite3.SQLITE_FULL: "has no room left on its disk",
        sqlite3.SQLITE_READONLY: "cannot be written; check who may write to the file and to its folder",
        sqlite3.SQLITE_CANTOPEN: "cannot be opened; check that it is there, and who may write to the file and to its folder",
        sqlite3.SQLITE_NOTADB: "is no SQLite database",
        sqlite3.SQLITE_CORRUPT: "is damaged; put a copy in its place",
        sqlite3.SQLITE_IOERR: "cannot be read or written; check its disk",
    }
    return reasons.get(code, "does not answer")
