"""What is tried again and what is not, on a real server whose connections are cut."""

import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from service.errors import GalleryUnavailable, RuntimeMissing
from service.gallery.postgres_pool import PREPARED, Pool, ServerError, Session
from service.gallery.postgres_url import parse


@pytest.fixture
def pool(postgres_server: Any) -> Iterator[Pool]:
    pool = Pool(parse(postgres_server.get_uri()))
    pool.write(lambda session: session.simple("DROP TABLE IF EXISTS note; CREATE TABLE note (id int PRIMARY KEY, text text)"))
    yield pool
    pool.write(lambda session: session.simple("DROP TABLE note"))
    pool.close()


def _cut(pool: Pool, session: Session) -> None:
    """The server ends the connection of `session`."""
    backend = session.simple("SELECT pg_backend_pid()")[0][0]
    other = pool.open(10)
    other.rows("SELECT pg_terminate_backend(:backend, 5000)", backend=backend)
    other.close()


def _notes(pool: Pool) -> int:
    return int(pool.read(lambda session: session.simple("SELECT count(*) FROM note"))[0][0])


def test_a_connection_that_died_while_idle_is_replaced(pool: Pool) -> None:
    _cut(pool, pool.read(lambda session: session))
    pool.write(lambda session: session.simple("INSERT INTO note VALUES (1)"))
    assert _notes(pool) == 1


def test_work_that_was_cut_before_its_commit_is_done_again_once(pool: Pool) -> None:
    runs = list[Session]()

    def work(session: Session) -> None:
        runs.append(session)
        session.rows("INSERT INTO note VALUES (:id)", id=len(runs))
        if len(runs) == 1:
            _cut(pool, session)
        session.rows("INSERT INTO note VALUES (:id)", id=10 * len(runs))

    pool.write(work)
    assert len(runs) == 2
    assert pool.read(lambda session: session.simple("SELECT id FROM note ORDER BY id")) == [[2], [20]]


def test_work_that_is_cut_every_time_is_given_up(pool: Pool) -> None:
    runs = list[Session]()

    def work(session: Session) -> None:
        runs.append(session)
        _cut(pool, session)
        session.simple("SELECT 1")

    with pytest.raises(GalleryUnavailable, match="no answer"):
        pool.write(work)
    assert len(runs) == 2


def test_a_commit_without_an_answer_is_never_sent_again(pool: Pool) -> None:
    runs = list[Session]()

    def work(session: Session) -> None:
        runs.append(session)
        session.simple("INSERT INTO note VALUES (1)")
        _cut(pool, session)

    with pytest.raises(GalleryUnavailable, match="may have been made or not"):
        pool.write(work)
    assert len(runs) == 1


def test_deadlocks_are_dissolved(pool: Pool) -> None:
    pool.write(lambda session: session.simple("INSERT INTO note VALUES (1, ''), (2, '')"))
    both = threading.Barrier(2)
    runs, failures = list[int](), list[BaseException]()

    def change(first: int, second: int) -> None:
        def work(session: Session) -> None:
            runs.append(first)
            session.simple("SET LOCAL deadlock_timeout = '50ms'")
            session.rows("UPDATE note SET text = text || 'x' WHERE id = :id", id=first)
            if len(runs) <= 2:
                both.wait(10)
            session.rows("UPDATE note SET text = text || 'x' WHERE id = :id", id=second)

        try:
            pool.write(work)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=change, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert len(runs) == 3
    assert pool.read(lambda session: session.simple("SELECT text FROM note")) == [["xx"], ["xx"]]


def test_a_refused_statement_leaves_the_connection_usable_and_nothing_behind(pool: Pool) -> None:
    def work(session: Session) -> None:
        session.simple("INSERT INTO note VALUES (1)")
        session.simple("INSERT INTO note VALUES (1)")

    before = pool.read(lambda session: session)
    with pytest.raises(GalleryUnavailable, match="23505"):
        pool.write(work)
    assert _notes(pool) == 0
    assert pool.read(lambda session: session) is before


def test_an_interrupted_connection_is_not_used_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(session: Session) -> None:
        def interrupted(sql: str) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(session._connection, "run", interrupted)
        session.simple("SELECT 1")

    before = pool.read(lambda session: session)
    with pytest.raises(KeyboardInterrupt):
        pool.write(work)
    assert before.broken
    assert _notes(pool) == 0


def test_threads_wait_for_their_turn(postgres_server: Any) -> None:
    pool = Pool(parse(postgres_server.get_uri()), size=2)
    backends, lock = set[int](), threading.Lock()

    def work() -> None:
        for _ in range(5):
            backend = pool.read(lambda session: session.simple("SELECT pg_backend_pid(), pg_sleep(0.001)"))[0][0]
            with lock:
                backends.add(backend)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    pool.close()
    assert 1 <= len(backends) <= 2


def test_a_connection_keeps_a_bounded_number_of_statements(pool: Pool) -> None:
    def work(session: Session) -> list[int]:
        answers = [session.rows(f"SELECT {number} + CAST(:one AS int)", one=1)[0][0] for number in range(PREPARED + 30)]
        kept = session.rows("SELECT count(*) FROM pg_prepared_statements")[0][0]
        assert PREPARED // 2 < kept <= PREPARED + 1
        return answers

    assert pool.read(work) == [number + 1 for number in range(PREPARED + 30)]


def test_settings_of_a_session(pool: Pool) -> None:
    names = ("synchronous_commit", "statement_timeout", "timezone", "application_name", "search_path")
    values = [pool.read(lambda session, name=name: session.simple(f"SHOW {name}"))[0][0] for name in names]  # type: ignore[misc]
    assert values[:4] == ["on", "30s", "UTC", "vision-service"]
    assert values[4].startswith("vision_gallery, ")


def test_errors_carry_the_servers_code(postgres_server: Any) -> None:
    session = Session(parse(postgres_server.get_uri()))
    with pytest.raises(ServerError) as raised:
        session.simple("SELECT 1 / 0")
    session.close()
    assert raised.value.code == "22012"


def test_a_server_without_tls_is_refused_where_tls_is_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            for _ in range(2):
                peer, _ = server.accept()
                with peer:
                    peer.recv(8)
                    peer.sendall(b"N")
                    peer.recv(1)

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        pool = Pool(parse(f"postgresql://ann:hunter2@127.0.0.1:{server.getsockname()[1]}/faces?sslmode=require&connect_timeout=5"))
        with pytest.raises(GalleryUnavailable, match="SSL") as raised:
            pool.read(lambda session: session.simple("SELECT 1"))
        thread.join(10)
    assert "hunter2" not in str(raised.value)


def test_a_server_that_is_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(GalleryUnavailable, match="is PostgreSQL running there") as raised:
        Pool(parse(f"postgresql://ann:hunter2@127.0.0.1:{port}/faces")).read(lambda session: session)
    assert "hunter2" not in str(raised.value)
    assert raised.value.retry_after == 5


def test_without_the_driver_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pg8000", None)
    with pytest.raises(RuntimeMissing, match=r"pip install -c constraints.txt '.\[postgres\]'"):
        Pool(parse("postgresql://ann@db/faces")).read(lambda session: session)
