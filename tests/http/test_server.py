"""The application behind the real server on a loopback port: what only a socket shows."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest


def access_lines(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "service.access"]


def test_requests_share_a_connection(serve: Any, connect: Any, head: Any, fake: Any, jpeg: bytes) -> None:
    with connect(serve(fake)) as connection:
        for _ in range(3):
            connection.sendall(head(len(jpeg)) + jpeg)
            status, headers, body = connection.answer()
            assert (status, body["predictions"][0]["label"]) == (200, "tabby cat")
            assert headers["x-request-id"]


def test_a_body_announced_too_large_is_answered_unread(serve: Any, connect: Any, head: Any, fake: Any) -> None:
    with connect(serve(fake)) as connection:
        connection.sendall(head(10**9, "Expect: 100-continue"))
        status, headers, problem = connection.answer()  # no "100 Continue" comes first
        assert (status, problem["code"], headers["connection"]) == (413, "body_too_large", "close")
        assert connection.closed_within(3)


def test_a_client_that_sends_on_still_gets_the_answer(serve: Any, connect: Any, head: Any, make_engine: Any) -> None:
    port = serve(make_engine(max_body_bytes=100_000))
    block = b"x" * 65_536
    with connect(port) as connection:
        connection.sendall(head(8 * 2**20))
        for _ in range(8 * 2**20 // len(block)):  # 8 MiB, all before the answer is looked at
            connection.sendall(block)
        assert connection.answer()[0] == 413


def test_an_endless_chunked_body_is_cut(serve: Any, connect: Any, head: Any, make_engine: Any) -> None:
    port = serve(make_engine(max_body_bytes=100_000, client_timeout=0.5))
    block = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    with connect(port) as connection:
        connection.sendall(head(None) + block * 2)
        status, _, problem = connection.answer()
        assert (status, problem["code"]) == (413, "body_too_large")
        start = time.monotonic()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            _flood(connection, block, 15)
        assert time.monotonic() - start < 10


def test_of_a_body_without_end_only_so_much_is_dropped(serve: Any, connect: Any, head: Any, make_engine: Any) -> None:
    port = serve(make_engine(max_body_bytes=1024))
    with connect(port) as connection:
        connection.sendall(head(None, path="/nothing"))
        assert connection.answer()[0] == 404
        connection.sendall((b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 32)
        assert connection.closed_within(5)


def test_over_the_queue_every_request_is_refused_on_its_own_connection(
    serve: Any, connect: Any, head: Any, make_engine: Any, jpeg: bytes, wait: Callable[..., None]
) -> None:
    engine = make_engine(cores=1, parallel=1, queue_length=1, queue_timeout=60.0)
    go = threading.Event()
    engine.before = lambda: go.wait(30)
    engine.concurrency = 1
    port = serve(engine)
    request = head(200_000) + jpeg.ljust(200_000, b"\0")
    held = [connect(port) for _ in range(2)]
    for connection in held:
        connection.sendall(request)
        time.sleep(0.2)  # the first one runs, the second one waits
    flood = [connect(port) for _ in range(50)]
    for _ in range(4):
        for connection in flood:
            connection.sendall(request)
        for connection in flood:
            status, headers, problem = connection.answer()
            assert (status, problem["code"]) == (503, "queue_full")
            assert "connection" not in headers
    go.set()
    assert [connection.answer()[0] for connection in held] == [200, 200]
    flood[0].sendall(request)
    assert flood[0].answer()[0] == 200


def _flood(connection: socket.socket, block: bytes, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.sendall(block)
        time.sleep(0.01)


def test_other_requests_are_answered_while_one_uploads_slowly(serve: Any, connect: Any, head: Any, fake: Any, jpeg: bytes) -> None:
    port = serve(fake)
    with connect(port) as slow, connect(port) as quick:
        slow.sendall(head(len(jpeg)) + jpeg[:100])
        quick.sendall(head(len(jpeg)) + jpeg)
        assert quick.answer()[0] == 200
        slow.sendall(jpeg[100:])
        assert slow.answer()[0] == 200


def test_unfinished_uploads_have_a_limit_together(
    serve: Any, connect: Any, head: Any, make_engine: Any, jpeg: bytes, wait: Callable[..., None]
) -> None:
    engine = make_engine(max_body_bytes=100_000, queue_length=1, request_timeout=20.0)
    port = serve(engine)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(port)) for _ in range(8)]
        for connection in held:
            connection.sendall(head(100_000) + b"x" * 99_000)
        time.sleep(0.3)
        with connect(port) as late:
            late.sendall(head(100_000) + b"x" * 50_000)
            status, headers, problem = late.answer()
            assert (status, problem["code"], headers["retry-after"]) == (503, "queue_full", "2")
        held[0].sendall(b"x" * 1000)
        assert held[0].answer()[0] == 415  # read whole, so its room is free again
        with connect(port) as late:
            late.sendall(head(len(jpeg)) + jpeg)
            assert late.answer()[0] == 200


def test_a_slow_upload_runs_out_of_time(serve: Any, connect: Any, head: Any, make_engine: Any, jpeg: bytes) -> None:
    with connect(serve(make_engine(request_timeout=0.3))) as connection:
        connection.sendall(head(len(jpeg)) + jpeg[:100])
        status, _, problem = connection.answer()
        assert (status, problem["code"]) == (504, "deadline_exceeded")


def test_a_client_that_leaves_while_uploading_is_one_quiet_line(
    serve: Any, connect: Any, head: Any, fake: Any, jpeg: bytes, caplog: pytest.LogCaptureFixture, wait: Callable[..., None]
) -> None:
    caplog.set_level("INFO")
    with connect(serve(fake)) as connection:
        connection.sendall(head(len(jpeg)) + jpeg[:100])
        time.sleep(0.1)
    wait(lambda: access_lines(caplog))
    assert access_lines(caplog)[0].status == 499
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


def test_a_client_that_leaves_the_queue_costs_nothing(
    serve: Any, connect: Any, head: Any, make_engine: Any, jpeg: bytes, caplog: pytest.LogCaptureFixture, wait: Callable[..., None]
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
        assert connection.answer()[0] == 200
    assert len(engine.calls) == running + 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


def test_an_answer_before_the_body_leaves_the_connection_usable(
    serve: Any, connect: Any, head: Any, fake: Any, jpeg: bytes
) -> None:
    with connect(serve(fake)) as connection:
        connection.sendall(head(len(jpeg), path="/nothing") + jpeg)
        assert connection.answer()[0] == 404
        connection.sendall(head(len(jpeg)) + jpeg)
        assert connection.answer()[0] == 200
