"""Connections to PostgreSQL, and transactions over them: what may be tried again is, and every failure has a name.

    Pool.read(work), Pool.write(work)    BEGIN, work(session), COMMIT on a connection that no other thread uses meanwhile

A transaction whose COMMIT was never sent has left nothing behind, so it is done again: once where the connection was lost, a few
times where the server chose it to end a deadlock. After a COMMIT without an answer nobody knows; the caller is told, and may enroll
again, which changes nothing where it was stored.
"""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from service.errors import GalleryUnavailable, RuntimeMissing
from service.gallery.postgres_url import Target

T = TypeVar("T")
Rows = list[list[Any]]

SIZE = 8
"""Connections of one process at most."""
PREPARED = 64
"""Statements that a connection keeps prepared: searches differ by collection and by how many faces they ask for."""
STATEMENT_SECONDS = 30.0
"""A statement, waiting for locks included, is given up after so long."""
SCHEMA = "vision_gallery"
READ = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE"
_AGAIN = frozenset({"40001", "40P01"})  # serialization failure, deadlock
_GONE = ("08", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04")  # the server ends the connection with these
_MAX_TRIES = 5
_SETUP = f"""
SET synchronous_commit = on; SET TimeZone = 'UTC'; SET client_min_messages = warning; SET jit = off;
SET plan_cache_mode = force_custom_plan;
SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3;
SELECT set_config('search_path', '{SCHEMA}, ' || coalesce((SELECT quote_ident(n.nspname) FROM pg_extension e
JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'), 'public'), false);
"""


class ServerError(Exception):
    """PostgreSQL refused a statement: its five-character code, and what it said. The connection can be used on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Lost(Exception):
    """The connection broke, so what it was doing is undone, unless it was a COMMIT."""


class Undecided(Exception):
    """The connection broke while a COMMIT was under way."""


class Session:
    """One connection, for one thread at a time. `seconds`: limit of one statement; None for work that may take long."""

    def __init__(self, target: Target, seconds: float | None = STATEMENT_SECONDS) -> None:
        self._driver = _driver()
        self.broken = False
        self._prepared = dict[str, Any]()
        raw = _reach(target)
        try:
            self._connection = self._ask(lambda: _log_in(self._driver, target, raw))
        except BaseException:
            raw.close()
            raise
        # The driver wraps the socket for TLS and keeps only that one; the time to connect is no limit for what follows.
        self._connection._usock.settimeout(None if seconds is None else seconds + 5)
        try:
            limit = 0 if seconds is None else int(seconds * 1000)
            self.simple(f"SET statement_timeout = {limit}; SET idle_in_transaction_session_timeout = {2 * limit}; {_SETUP}")
        except BaseException:
            self.close()
            raise

    def rows(self, sql: str, **values: Any) -> Rows:
        """Run a statement with its `:name` values. It is prepared at its first time, so that later ones take one round trip."""

        def run() -> Rows:
            statement = self._prepared.pop(sql, None) or self._connection.prepare(sql)
            self._prepared[sql] = statement  # the last one used is the last in order
            rows: Rows | None = statement.run(**values)
            if len(self._prepared) > PREPARED:
                self._prepared.pop(next(iter(self._prepared))).close()
            return rows or []

        return self._ask(run)

    def simple(self, sql: str) -> Rows:
        """Run statements without values, as they are."""
        return self._ask(lambda: self._connection.run(sql) or [])

    def copy(self, sql: str, data: bytes) -> None:
        """COPY ... FROM STDIN in the binary format."""
        self._ask(lambda: self._connection.run(sql, stream=[data]))

    def close(self) -> None:
        """May be called from another thread, whose statement then fails."""
        self.broken = True
        with contextlib.suppress(Exception):
            self._connection.close()

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except self._driver.DatabaseError as error:
            said = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
            code, message = said.get("C", ""), said.get("M", str(error))
            if code.startswith(_GONE):
                self.broken = True
                raise Lost(message) from None
            raise ServerError(code, message) from None
        except (self._driver.InterfaceError, OSError) as error:
            self.broken = True
            raise Lost(str(error) or type(error).__name__) from None
        except BaseException:
            self.broken = True  # stopped between a question and its answer: the next answer would be the wrong one
            raise

    def transaction(self, work: Callable[["Session"], T], begin: str = _WRITE) -> T:
        """Raises Lost where nothing was committed, Undecided where that is not known."""
        self.simple(begin)
        try:
            result = work(self)
        except BaseException:
            if not self.broken:
                with contextlib.suppress(ServerError, Lost):
                    self.simple("ROLLBACK")
            raise
        try:
            self.simple("COMMIT")
        except Lost as error:
            raise Undecided(str(error)) from None
        return result

    def snapshot(self, work: Callable[["Session"], T]) -> T:
        """A transaction that only reads, and sees one moment."""
        return self.transaction(work, READ)


class Pool:
    """At most `size` connections, opened when needed and kept."""

    def __init__(self, target: Target, size: int = SIZE) -> None:
        self.target = target
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle = list[Session]()

    def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` on one snapshot. Raises GalleryUnavailable, and what `work` raises."""
        return self._try(lambda session: session.snapshot(work), reads=True)

    def write(self, work: Callable[[Session], T]) -> T:
        """Run `work`, which may run again from its start, and commit it. Raises GalleryUnavailable, and what `work` raises."""
        return self._try(lambda session: session.transaction(work), reads=False)

    def open(self, seconds: float | None = None) -> Session:
        """A connection beside the pool, the caller's to close, for work that takes long."""
        with self.named():
            return Session(self.target, seconds)

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Failures inside become GalleryUnavailable, which says what to do."""
        try:
            yield
        except ServerError as error:
            raise explain(error, self.target) from None
        except Lost as error:
            raise GalleryUnavailable(f"no answer from {self.target}: {error}", retry_after=5) from None
        except Undecided as error:
            raise _undecided(self.target, error) from None

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _try(self, work: Callable[[Session], T], reads: bool) -> T:
        lost, tries = False, 0
        while True:
            try:
                with self._session() as session:
                    return work(session)
            except ServerError as error:
                tries += 1
                if error.code not in _AGAIN or tries >= _MAX_TRIES:
                    raise explain(error, self.target) from None
                time.sleep(random.uniform(0.005, 0.02) * 2**tries)  # noqa: S311 - not for secrets
            except Undecided as error:
                if not reads or lost:
                    raise _undecided(self.target, error) from None
                lost = True
            except Lost as error:
                if lost:
                    raise GalleryUnavailable(f"no answer from {self.target}: {error}", retry_after=5) from None
                lost = True

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        if not self._free.acquire(timeout=STATEMENT_SECONDS):
            raise GalleryUnavailable(f"all connections to {self.target} have been in use for {STATEMENT_SECONDS:g} s")
        try:
            with self._lock:
                session = self._idle.pop() if self._idle else None
            session = session or Session(self.target)
            try:
                yield session
            finally:
                if session.broken:
                    session.close()
                    self.close()  # what broke one has most likely broken those that lie idle
                else:
                    with self._lock:
                        self._idle.append(session)
        finally:
            self._free.release()


def explain(error: ServerError, target: Target) -> GalleryUnavailable:
    """What PostgreSQL's code means here, and what to type."""
    user, database = target.user, target.database
    hints = {
        "28P01": (f"the password of user {user!r} is wrong, or there is no such user", 30),
        "28000": (f"the server does not let user {user!r} in: {error.message}", 30),
        "3D000": (f"there is no database {database!r}; make it: createdb {database}", 30),
        "53300": ("the server has too many connections open", 2),
        "53100": ("the server's disk is full", 30),
        "25006": ("the server takes no writes; is it a standby?", 10),
        "42501": (f"{error.message}; the user {user!r} needs: GRANT CREATE ON DATABASE {database} TO {user}", 30),
        "57014": (f"no answer within {STATEMENT_SECONDS:g} s", 5),
    }
    hint, seconds = hints.get(error.code, (f"{error.message} ({error.code})", 5))
    return GalleryUnavailable(f"{target}: {hint}", retry_after=seconds)


def _undecided(target: Target, error: Undecided) -> GalleryUnavailable:
    return GalleryUnavailable(f"{target} was lost while it stored the change; it may have been made or not: {error}", retry_after=5)


def _driver() -> Any:
    try:
        import pg8000.native
    except ImportError:
        raise RuntimeMissing(
            "a gallery in PostgreSQL needs pg8000; install it: .venv/bin/pip install -c constraints.txt '.[postgres]'"
        ) from None
    return pg8000.native


def _reach(target: Target) -> socket.socket:
    """A connected socket that sends at once and notices a peer that is gone."""
    try:
        if target.socket:
            reached = socket.socket(socket.AF_UNIX)
            try:
                reached.settimeout(target.connect_timeout)
                reached.connect(target.socket)
            except BaseException:
                reached.close()
                raise
            return reached
        reached = socket.create_connection((target.host, target.port), target.connect_timeout)
        reached.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reached.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return reached
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise GalleryUnavailable(f"cannot connect to {target}: {reason}; is PostgreSQL running there?", retry_after=5) from None


def _log_in(driver: Any, target: Target, reached: socket.socket) -> Any:
    try:
        return driver.Connection(
            target.user,
            host=target.host,
            database=target.database,
            password=target.password or "",
            sock=reached,
            ssl_context=target.tls(),
            application_name=target.application_name,
        )
    except driver.InterfaceError as error:
        # Refused, the driver says goodbye to a server that may have hung up, and that failure hides why it was refused.
        hidden: BaseException | None = error
        while hidden is not None and not isinstance(hidden, driver.DatabaseError):
            hidden = hidden.__context__
        raise hidden or error from None
