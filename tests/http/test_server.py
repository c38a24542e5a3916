"""The application behind a real uvicorn on a loopback port: what only a socket shows."""

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from service.http.app import create_app

Send = Callable[..., bytes]


@pytest.fixture
def serve(wait: Callable[..., None]) -> Iterator[Callable[[Any], int]]:
    """Serves create_app(engine) until the test ends; gives the port."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(engine: Any) -> int:
        config = uvicorn.Config(create_app(engine), port=0, log_config=None, access_log=False, timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        servers.append((server, thread))
        wait(lambda: server.started and engine.ready)
        return int(server.servers[0].sockets[0].getsockname()[1])

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@contextlib.contextmanager
def connect(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        yield connection


def head(length: int | None, *extra: str, path: str = "/classify") -> bytes:
    told = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: image/jpeg", told, *extra]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of one response, by its Content-Length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    top, _, body = received.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += _more(connection)
    return int(first.split()[1]), headers, json.loads(body)


def _more(connection: socket.socket) -> bytes:
    chunk = connection.recv(65_536)
    assert chunk, "the connection was closed before the answer was complete"
    return chunk


def access_lines(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "service.access"]


def test_requests_share_a_connection(serve: Any, fake: Any, jpeg: bytes) -> None:
    with connect(serve(fake)) as connection:
        for _ in range(3):
            connection.sendall(head(len(jpeg)) + jpeg)
            status, headers, body = answer(connection)
            assert (status, body["predictions"][0]["label"]) == (200, "tabby cat")
            assert headers["x-request-id"]


def test_a_body_announced_too_large_is_answered_unread(serve: Any, fake: Any) -> None:
    with connect(serve(fake)) as connection:
        connection.sendall(head(10**9, "Expect: 100-continue"))
        status, headers, problem = answer(connection)  # no "100 Continue" comes first
        assert (status, problem["code"], headers["connection"]) == (413, "body_too_large", "close")
        assert _closed_within(connection, 3)


def _closed_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_client_that_sends_on_still_gets_the_answer(serve: Any, make_engine: Any) -> None:
    port = serve(make_engine(max_body_bytes=100_000))
    block = b"x" * 65_536
    with connect(port) as connection:
        connection.sendall(head(8 * 2**20))
        for _ in range(8 * 2**20 // len(block)):  # 8 MiB, all before the answer is looked at
            connection.sendall(block)
        assert answer(connection)[0] == 413


def test_an_endless_chunked_body_is_cut(serve: Any, make_engine: Any) -> None:
    port = serve(make_engine(max_body_bytes=100_000))
    block = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    with connect(port) as connection:
        connection.sendall(head(None) + block * 2)
        status, _, problem = answer(connection)
        assert (status, problem["code"]) == (413, "body_too_large")
        start = time.monotonic()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            _flood(connection, block, 15)
        assert time.monotonic() - start < 10


def _flood(connection: socket.socket, block: bytes, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.sendall(block)
        time.sleep(0.01)


def test_other_requests_are_answered_while_one_uploads_slowly(serve: Any, fake: Any, jpeg: bytes) -> None:
    port = serve(fake)
    with connect(port) as slow, connect(port) as quick:
        slow.sendall(head(len(jpeg)) + jpeg[:100])
        quick.sendall(head(len(jpeg)) + jpeg)
        assert answer(quick)[0] == 200
        slow.sendall(jpeg[100:])
        assert answer(slow)[0] == 200


def test_unfinished_uploads_have_a_limit_together(serve: Any, make_engine: Any, jpeg: bytes, wait: Callable[..., None]) -> None:
    engine = make_engine(max_body_bytes=100_000, queue_length=1, request_timeout=20.0)
    port = serve(engine)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(port)) for _ in range(8)]
        for connection in held:
            connection.sendall(head(100_000) + b"x" * 99_000)
        time.sleep(0.3)
        with connect(port) as late:
            late.sendall(head(100_000) + b"x" * 50_000)
            status, headers, problem = answer(late)
            assert (status, problem["code"], headers["retry-after"]) == (503, "queue_full", "2")
        held[0].sendall(b"x" * 1000)
        assert answer(held[0])[0] == 415  # read whole, so its room is free again
        with connect(port) as late:
            late.sendall(head(len(jpeg)) + jpeg)
            assert answer(late)[0] == 200


def test_a_slow_upload_runs_out_of_time(serve: Any, make_engine: Any, jpeg: bytes) -> None:
    with connect(serve(make_engine(request_timeout=0.3))) as connection:
        connection.sendall(head(len(jpeg)) + jpeg[:100])
        status, _, problem = answer(connection)
        assert (status, problem["code"]) == (504, "deadline_exceeded")


def test_a_client_that_leaves_while_uploading_is_one_quiet_line(
    serve: Any, fake: Any, jpeg: bytes, caplog: pytest.LogCaptureFixture, wait: Callable[..., None]
) -> None:
    caplog.set_level("INFO")
    with connect(serve(fake)) as connection:
        connection.sendall(head(len(jpeg)) + jpeg[:100])
        time.sleep(0.1)
    wait(lambda: access_lines(caplog))
    assert access_lines(caplog)[0].status == 499
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


def test_a_client_that_leaves_the_queue_costs_nothing(
    serve: Any, make_engine: Any, jpeg: bytes, caplog: pytest.LogCaptureFixture, wait: Callable[..., None]
) -> None:
    caplog.set_level("INFO")
    go = threading.Event()
    engine = make_engine(parallel=1)
    port = serve(engine)
    engine.before = lambda: go.wait(10)
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(connect(port)).sendall(head(len(jpeg)) + jpeg)
        wait(lambda: len(engine.calls) > 0)
        time.sleep(0.3)
        running = len(engine.calls)
    wait(lambda: len(access_lines(caplog)) == 64)
    go.set()
    assert {line.status for line in access_lines(caplog)} == {499}
    with connect(port) as connection:
        connection.sendall(head(len(jpeg)) + jpeg)
        assert answer(connection)[0] == 200
    assert len(engine.calls) == running + 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


def test_an_answer_before_the_body_leaves_the_connection_usable(serve: Any, fake: Any, jpeg: bytes) -> None:
    with connect(serve(fake)) as connection:
        connection.sendall(head(len(jpeg), path="/nothing") + jpeg)
        assert answer(connection)[0] == 404
        connection.sendall(head(len(jpeg)) + jpeg)
        assert answer(connection)[0] == 200


def test_a_server_that_stops_finishes_what_runs(make_engine: Any, jpeg: bytes, wait: Callable[..., None]) -> None:
    engine, go = make_engine(), threading.Event()
    engine.before = lambda: go.wait(10)
    server = uvicorn.Server(uvicorn.Config(create_app(engine), port=0, log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    wait(lambda: server.started and engine.ready)
    with connect(server.servers[0].sockets[0].getsockname()[1]) as connection:
        connection.sendall(head(len(jpeg)) + jpeg)
        wait(lambda: len(engine.calls) == 1)
        server.should_exit = True
        time.sleep(0.2)
        go.set()
        assert answer(connection)[0] == 200
    thread.join(10)
    assert engine.closed
