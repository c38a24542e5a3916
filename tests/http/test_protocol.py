"""Connections to the real server, byte by byte: what HTTP allows, what slow clients do, and what is no HTTP at all."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from service.errors import VisionError
from service.http.access import Access
from service.http.listening import listen
from service.http.metrics import Metrics
from service.http.problems import respond
from service.http.protocol import MAX_HEAD, MAX_PIPELINED, Limits
from service.http.server import Server
from service.settings import Settings

SHORT = Limits(client=0.4, request=0.8, rest=0.4, linger=0.1)
MEGABYTES = 24 * 2**20  # more than the kernel keeps between the two
GET = b"GET /answer HTTP/1.1\r\nHost: x\r\n\r\n"


class App:
    """Answers with the length of the body and what else it saw; /large with MEGABYTES, /late after `go`, others as named."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        self.begun += 1
        try:
            await getattr(self, scope["path"].strip("/"))(scope, receive, send)
        except VisionError as error:
            await respond(error, scope)(scope, receive, send)

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message["body"]), message["more_body"]
        told = {"size": size, "query": scope["query_string"].decode(), "path": scope["path"]}
        await self.reply(send, json.dumps(told).encode())

    async def late(self, scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(self.go.wait, 10)
        await self.answer(scope, receive, send)

    async def large(self, scope: Any, receive: Any, send: Any) -> None:
        await self.reply(send, bytes(MEGABYTES), b"application/octet-stream")

    async def streamed(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"one ", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    async def unread(self, scope: Any, receive: Any, send: Any) -> None:
        await self.reply(send, b"{}")

    async def empty(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def broken(self, scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async def half(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        await send({"type": "http.response.body"})

    async def short(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"12345"})

    async def silent(self, scope: Any, receive: Any, send: Any) -> None:
        pass

    async def injected(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-name", b"a\r\nx-other: b")]})
        await send({"type": "http.response.body"})

    async def leaver(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def reply(self, send: Any, body: bytes, media: bytes = b"application/json") -> None:
        headers = [(b"content-type", media), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def wrapped(app: App) -> Access:
    """`app` as the service's own application is wrapped: refusals and errors are told by Access."""
    return Access(app, Metrics.from_env())


@pytest.fixture
def server(start_server: Callable[..., Server], wrapped: Access) -> Server:
    return start_server(wrapped, limits=SHORT)


@pytest.fixture
def at_peace(server: Server, connect: Any, wait: Callable[..., None]) -> Callable[[], None]:
    """Others are served, and nothing is left of those who were not."""

    def check() -> None:
        other = connect(server.port)
        other.sendall(GET)
        assert other.answer()[0] == 200
        other.close()
        wait(lambda: not server.server_state.connections and not server.server_state.tasks)

    return check


def problem(client: Any) -> tuple[int, str]:
    """Status and code of a problem on a connection that is then closed."""
    status, headers, body = client.answer()
    assert (headers["content-type"], headers["connection"]) == ("application/problem+json", "close")
    assert body["status"] == status
    assert client.closed_within(3)
    client.close()
    return status, body["code"]


def dribble(client: Any, data: bytes, pause: float = 0.1) -> None:
    """Send a byte at a time, until the server has had enough."""
    with contextlib.suppress(OSError):
        for byte in data:
            client.sendall(bytes([byte]))
            time.sleep(pause)


def drain(client: Any) -> None:
    while client.recv(2**20):
        pass


def served_meanwhile(server: Server, connect: Any) -> None:
    other = connect(server.port)
    for _ in range(3):
        other.sendall(GET)
        assert other.answer()[0] == 200
    other.close()


# What HTTP allows.


def test_requests_in_one_piece_or_in_many(server: Server, connect: Any, head: Any) -> None:
    client = connect(server.port)
    request = head(300_000, path="/answer?a=1") + bytes(300_000)
    for size in (len(request), 65_536, 1000):
        for start in range(0, len(request), size):
            client.sendall(request[start : start + size])
        status, headers, body = client.answer()
        assert (status, body) == (200, {"size": 300_000, "query": "a=1", "path": "/answer"})
        assert headers["date"].endswith("gmt")
        assert "connection" not in headers


def test_a_chunked_body_with_trailers(server: Server, connect: Any, head: Any) -> None:
    client = connect(server.port)
    client.sendall(head(None, path="/answer") + b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-Trailer: 1\r\n\r\n")
    assert client.answer()[2]["size"] == 7
    client.sendall(GET)
    assert client.answer()[2]["size"] == 0


@pytest.mark.parametrize(("target", "path"), [(b"/a%20b/answer", "/a b/answer"), (b"http://host/answer?q=%20", "/answer")])
def test_the_path_as_it_is_asked(server: Server, connect: Any, app: App, target: bytes, path: str) -> None:
    app.__class__ = type("Any", (App,), {"a b/answer": App.answer})
    client = connect(server.port)
    client.sendall(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.answer()[2]["path"] == path


def test_pipelined_requests_are_answered_in_their_order(server: Server, connect: Any, head: Any, app: App) -> None:
    client = connect(server.port)
    bodies = b"".join(head(n, path=f"/answer?{n}") + bytes(n) for n in (1, 70_000, 3))
    client.sendall(head(0, path="/late?0") + bodies)
    time.sleep(0.1)
    app.go.set()
    assert [client.answer()[2]["size"] for _ in range(4)] == [0, 1, 70_000, 3]
    client.sendall(GET)
    assert client.answer()[0] == 200


def test_too_many_pipelined_requests_are_cut(server: Server, connect: Any, head: Any, app: App, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(head(0, path="/late") + GET * (MAX_PIPELINED + 10))
    time.sleep(0.1)
    app.go.set()
    assert [client.answer()[0] for _ in range(MAX_PIPELINED + 1)] == [200] * (MAX_PIPELINED + 1)
    assert problem(client) == (400, "request_malformed")
    at_peace()


def test_continue_is_said_when_the_body_is_wanted(server: Server, connect: Any, head: Any) -> None:
    client = connect(server.port)
    client.sendall(head(5, "Expect: 100-continue", path="/answer"))
    assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sendall(b"12345")
    assert client.answer()[2]["size"] == 5


def test_who_is_answered_instead_of_continue_need_not_send_the_body(server: Server, connect: Any, head: Any) -> None:
    client = connect(server.port)
    client.sendall(head(5, "Expect: 100-continue", path="/unread"))
    assert client.answer()[1]["connection"] == "close"
    assert client.closed_within(2)


@pytest.mark.parametrize(
    ("request_", "ending"),
    [
        (b"HEAD /answer HTTP/1.1\r\nConnection: close\r\n\r\n", b"\r\n\r\n"),
        (b"GET /empty HTTP/1.1\r\nConnection: close\r\n\r\n", b"\r\n\r\n"),
        (b"GET /streamed HTTP/1.1\r\nConnection: close\r\n\r\n", b"\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"),
        (b"GET /answer HTTP/1.0\r\n\r\n", b'"path": "/answer"}'),
        (b"GET /answer HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", b'"path": "/answer"}'),
    ],
    ids=["head", "no content", "chunked", "1.0", "another protocol"],
)
def test_a_response_ends_where_it_should(server: Server, connect: Any, request_: bytes, ending: bytes, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(request_)
    received = b""
    while chunk := client.recv(4096):
        received += chunk
    assert received.startswith(b"HTTP/1.1 20")
    assert b"\r\nconnection: close\r\n" in received
    assert received.endswith(ending)
    at_peace()


def test_what_follows_the_last_request_is_dropped(server: Server, connect: Any, app: App, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(b"GET /answer HTTP/1.1\r\nConnection: close\r\n\r\n" + GET)
    assert client.answer()[0] == 200
    assert client.closed_within(2)
    assert app.begun == 1
    at_peace()


def test_a_client_that_leaves_is_noticed(server: Server, connect: Any, app: App, wait: Any, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(GET.replace(b"answer", b"leaver"))
    wait(lambda: app.begun == 1)
    client.close()
    at_peace()


def test_another_protocol_is_not_waited_for_after_an_early_answer(server: Server, connect: Any, head: Any, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(head(5, "Connection: Upgrade", "Upgrade: h2c", path="/unread"))
    assert client.answer()[0] == 200
    client.sendall(b"12345")
    assert client.closed_within(3)
    at_peace()


# What applications do wrong.


@pytest.mark.parametrize("path", ["broken", "silent"])
def test_an_application_without_a_response_is_a_500(server: Server, connect: Any, path: str, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(GET.replace(b"answer", path.encode()))
    assert client.answer()[0] == 500
    at_peace()


@pytest.mark.parametrize("path", [b"half", b"short", b"injected"])
def test_half_a_response_or_a_header_with_a_line_break_breaks_the_connection(
    server: Server, connect: Any, path: bytes, at_peace: Any
) -> None:
    client = connect(server.port)
    client.sendall(GET.replace(b"answer", path))
    with pytest.raises((AssertionError, OSError)):
        client.answer()
    at_peace()


# Slow clients.


def test_headers_that_dribble_in_are_408(server: Server, connect: Any, at_peace: Any) -> None:
    client = connect(server.port)
    sender = threading.Thread(target=dribble, args=(client, GET * 2))
    sender.start()
    served_meanwhile(server, connect)
    assert problem(client) == (408, "request_timeout")
    sender.join()
    at_peace()


def test_a_connection_that_says_nothing_is_closed(server: Server, connect: Any, at_peace: Any) -> None:
    client = connect(server.port)
    served_meanwhile(server, connect)
    assert client.closed_within(3)
    at_peace()


def test_a_connection_that_rests_too_long_is_closed(server: Server, connect: Any, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(GET)
    assert client.answer()[0] == 200
    assert client.closed_within(3)
    at_peace()


def test_a_body_that_stops_is_408(server: Server, connect: Any, head: Any, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(head(1000, path="/answer") + bytes(10))
    served_meanwhile(server, connect)
    assert problem(client) == (408, "request_timeout")
    at_peace()


def test_a_body_may_take_longer_than_a_pause(server: Server, connect: Any, head: Any) -> None:
    client = connect(server.port)
    client.sendall(head(10, path="/answer"))
    dribble(client, bytes(10))
    assert client.answer()[2]["size"] == 10


def test_a_body_that_nobody_reads_may_not_dribble(server: Server, connect: Any, head: Any, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(head(1000, path="/unread"))
    assert client.answer()[0] == 200
    start = time.monotonic()
    dribble(client, bytes(100))
    assert time.monotonic() - start < 5
    at_peace()


def test_the_application_gives_up_a_body_that_dribbles(
    start_server: Any, make_engine: Any, connect: Any, head: Any, wait: Any
) -> None:
    from service.http.app import create_app

    engine = make_engine(request_timeout=0.8, client_timeout=0.4)
    server = start_server(create_app(engine), engine.settings)
    wait(lambda: engine.ready)
    client, quiet = connect(server.port), connect(server.port)
    quiet.sendall(head(1000) + bytes(10))
    client.sendall(head(1000))
    sender = threading.Thread(target=dribble, args=(client, bytes(100)))
    sender.start()
    status, headers, body = client.answer()
    assert (status, body["code"]) == (504, "deadline_exceeded")
    status, headers, body = quiet.answer()
    assert (status, body["code"], headers["connection"]) == (408, "request_timeout", "close")
    assert headers["x-request-id"]
    client.close()
    sender.join()
    wait(lambda: not server.server_state.connections)


@pytest.mark.parametrize("pace", [0, 1000], ids=["never reads", "dribbles"])
def test_a_client_that_does_not_read_its_answer_is_left(server: Server, connect: Any, wait: Any, pace: int, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(GET.replace(b"answer", b"large"))
    served_meanwhile(server, connect)
    start = time.monotonic()
    while server.server_state.connections and time.monotonic() - start < 10:
        if pace:
            client.recv(pace)
        time.sleep(0.1)
    assert not server.server_state.connections
    with pytest.raises(ConnectionResetError):
        drain(client)
    at_peace()


def test_a_closing_connection_is_watched_too(server: Server, connect: Any, wait: Any, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(b"GET /large HTTP/1.1\r\nConnection: close\r\n\r\n")
    wait(lambda: not server.server_state.tasks)
    wait(lambda: not server.server_state.connections, 10)
    at_peace()


def test_a_slow_reader_gets_its_answer_whole(start_server: Any, wrapped: Access, connect: Any) -> None:
    client = connect(start_server(wrapped, limits=Limits(client=0.5)).port)
    client.sendall(GET.replace(b"answer", b"large"))
    received = 0
    while received < MEGABYTES:
        received += len(client.recv(2**20))
        time.sleep(0.03)
    assert received > MEGABYTES


# What is no HTTP.


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400, "request_malformed"),
        (b"hello\r\n\r\n", 400, "request_malformed"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "request_malformed"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "request_malformed"),
        (b"POST /answer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "request_malformed"),
        (b"GET /answer HTTP/1.1\r\nX-Long: " + b"x" * MAX_HEAD + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /answer HTTP/1.1\r\nX-Long: " + b"x" * 10**6 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /" + b"x" * MAX_HEAD + b" HTTP/1.1\r\n\r\n", 431, "headers_too_large"),
        (b"GET /answer HTTP/1.1\r\n" + b"X-More: 12345678901234567890\r\n" * 3000 + b"\r\n", 431, "headers_too_large"),
    ],
    ids=["TLS", "words", "two lengths", "no ASCII", "chunk", "long header", "1 MB header", "long path", "many headers"],
)
def test_what_is_no_http_is_told_as_a_problem(
    server: Server, connect: Any, sent: bytes, status: int, code: str, at_peace: Any
) -> None:
    client = connect(server.port)
    client.sendall(sent)
    assert problem(client) == (status, code)
    at_peace()


def test_garbage_behind_a_request_waits_for_its_answer(server: Server, connect: Any, app: App, at_peace: Any) -> None:
    client = connect(server.port)
    client.sendall(GET.replace(b"answer", b"late") + b"garbage\r\n\r\n")
    time.sleep(0.1)
    app.go.set()
    assert client.answer()[0] == 200
    assert problem(client) == (400, "request_malformed")
    at_peace()


# Too many connections.


def test_over_the_limit_the_one_that_rests_gives_way_else_503(start_server: Any, app: App, wrapped: Access, connect: Any) -> None:
    server = start_server(wrapped, limits=Limits(connections=2))
    busy, resting = connect(server.port), connect(server.port)
    for client, path in ((resting, b"answer"), (busy, b"late")):
        client.sendall(GET.replace(b"answer", path))
    assert resting.answer()[0] == 200
    third = connect(server.port)
    third.sendall(GET.replace(b"answer", b"late"))
    assert resting.closed_within(3)
    fourth = connect(server.port)
    fourth.sendall(GET)
    status, headers, body = fourth.answer()
    assert (status, body["code"], headers["retry-after"]) == (503, "busy", "1")
    assert fourth.closed_within(3)
    app.go.set()
    assert (busy.answer()[0], third.answer()[0]) == (200, 200)


# The end.


def test_at_the_end_what_runs_is_finished_and_the_rest_is_503(
    start_server: Any, connect: Any, app: App, wrapped: Access, wait: Any
) -> None:
    server = start_server(wrapped, limits=Limits(client=2, linger=1))
    running, fresh, resting, half = (connect(server.port) for _ in range(4))
    resting.sendall(GET)
    assert resting.answer()[0] == 200
    running.sendall(GET.replace(b"answer", b"late"))
    half.sendall(GET[:20])
    wait(lambda: app.begun == 2)
    server.stop()
    wait(lambda: server.server_state.refusal is not None)
    for client, request in ((fresh, GET), (resting, GET), (half, GET[20:])):
        client.sendall(request)
        status, headers, body = client.answer()
        assert (status, body["code"], headers["connection"], headers["retry-after"]) == (503, "not_ready", "close", "2")
        assert client.closed_within(2)
    app.go.set()
    status, headers, _ = running.answer()
    assert (status, headers["connection"]) == (200, "close")


def test_when_time_is_up_what_waits_is_503(
    start_server: Any, connect: Any, app: App, wrapped: Access, head: Any, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http.server.FLUSH_SECONDS", 0.5)
    server = start_server(wrapped, Settings(shutdown_seconds=0.2), limits=Limits(linger=0.2))
    running, sending, reading = (connect(server.port) for _ in range(3))
    running.sendall(GET.replace(b"answer", b"late"))
    sending.sendall(head(1000, path="/answer") + bytes(10))
    reading.sendall(GET.replace(b"answer", b"large"))
    wait(lambda: app.begun == 3)
    server.stop()
    for client in (running, sending):
        assert problem(client) == (503, "not_ready")
    wait(lambda: not server.server_state.connections, 8)
    app.go.set()


def test_connections_that_nobody_has_accepted_yet_are_served(connect: Any, wrapped: Access) -> None:
    server = Server(wrapped, Settings(), listen("127.0.0.1", 0), limits=SHORT)
    clients = [connect(server.port) for _ in range(100)]
    for client in clients:
        client.sendall(GET)
    server.stop()
    thread = threading.Thread(target=server.run)
    thread.start()
    assert [problem(client) for client in clients] == [(503, "not_ready")] * 100
    thread.join(10)
    assert not thread.is_alive()


def test_an_application_that_does_not_close_is_left(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.server.CLOSING_SECONDS", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.sleep(60)

    server = Server(app, Settings(), listen("127.0.0.1", 0))
    server.stop(1)
    start = time.monotonic()
    server.run()
    assert server.status == 1
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("failing", ["raises", "tells"])
def test_an_application_that_does_not_start(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if failing == "raises":
            raise ZeroDivisionError("no number")
        await send({"type": "lifespan.startup.failed", "message": "no number"})

    with contextlib.closing(listen("127.0.0.1", 0)) as listener, pytest.raises(SystemExit):
        Server(app, Settings(), listener).run()
    assert "no number" in caplog.text
