"""The stream of a job's events: to a client that is slow, gone or one of several; over real connections; when the server ends."""

import asyncio
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from service.http import events
from service.http.events import Events
from service.imaging.codec import encode
from service.jobs import Job, View
from service.tasks.task import Pixels

SCOPE = {"type": "http", "path": "/jobs/x/events"}


@dataclass(frozen=True)
class Step:
    iteration: int
    iterations: int = 1000
    height: int = 48
    width: int = 64
    content: float = 1.0
    style: float = 1.0
    variation: float = 1.0
    total: float = 3.0
    done: float = 0.5

    def picture(self) -> Pixels:
        return np.zeros((48, 64, 3), np.uint8)


def a_job() -> Job:
    return Job("x", "stylize/optimize", lambda: pytest.fail("it is not to be run"), None, View("running", 1000, (64, 48)))


@dataclass
class Client:
    """An ASGI client that takes a message only while `reads` is set."""

    reads: asyncio.Event = field(default_factory=asyncio.Event)
    leaves: asyncio.Event = field(default_factory=asyncio.Event)
    got: list[bytes] = field(default_factory=list)

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.got.append(message.get("body", b""))

    async def receive(self) -> Any:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    def told(self) -> list[tuple[str, Any]]:
        blocks = [block.decode().split("\n") for block in self.got if block.startswith(b"event: ")]
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data, *_ in blocks]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)


def test_a_slow_listener_is_told_the_newest_and_nothing_piles_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PACE", 0.0)

    async def watch() -> list[tuple[str, Any]]:
        job, client = a_job(), Client()
        client.reads.set()
        stream = asyncio.ensure_future(Events(job)(SCOPE, client.receive, client.send))
        await client.until(lambda: len(client.told()) == 1)
        client.reads.clear()
        for number in range(1, 501):
            job.advance(Step(number))
            await asyncio.sleep(0)
        client.reads.set()
        await client.until(lambda: client.told()[-1][1].get("iteration") == 500)
        job.end("cancelled")
        await stream
        return client.told()

    told = asyncio.run(watch())
    progress = [data["iteration"] for name, data in told if name == "progress"]
    assert progress[0] == 0
    assert progress[-1] == 500
    assert len(progress) <= 4
    assert told[-1][0] == "end"


def test_every_iteration_is_told_to_whoever_keeps_up_and_the_end_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.job.PREVIEW_SECONDS", 0.0)

    async def watch() -> list[tuple[str, Any]]:
        job, client = a_job(), Client()
        client.reads.set()
        stream = asyncio.ensure_future(Events(job)(SCOPE, client.receive, client.send))
        for number in range(1, 4):
            await client.until(lambda number=number: len(client.told()) == 2 * number - 1)
            job.advance(Step(number))
        await client.until(lambda: len(client.told()) == 7)
        job.end("done", picture=Step(3).picture())
        await stream
        return client.told()

    told = asyncio.run(watch())
    assert [(name, data["iteration"]) for name, data in told] == [
        *(("progress", 0), ("preview", 1), ("progress", 1), ("preview", 2), ("progress", 2), ("preview", 3), ("progress", 3)),
        ("end", 3),
    ]


def test_progress_comes_ten_times_a_second_at_most() -> None:
    async def watch() -> list[tuple[str, Any]]:
        job, client = a_job(), Client()
        client.reads.set()
        stream = asyncio.ensure_future(Events(job)(SCOPE, client.receive, client.send))
        end = time.monotonic() + 0.35
        for number in range(1, 1001):
            job.advance(Step(number))
            await asyncio.sleep(max(0.0, min(0.001, end - time.monotonic())))
        job.end("cancelled")
        await stream
        return client.told()

    begun = time.monotonic()
    told = asyncio.run(watch())
    assert 2 <= len([name for name, _ in told if name == "progress"]) <= 2 + (time.monotonic() - begun) / events.PACE


def test_silence_is_broken_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT", 0.02)

    async def watch() -> list[bytes]:
        job, client = a_job(), Client()
        client.reads.set()
        stream = asyncio.ensure_future(Events(job)(SCOPE, client.receive, client.send))
        await client.until(lambda: client.got.count(b": here\n\n") >= 3)
        job.end("cancelled")
        await stream
        return client.got

    assert asyncio.run(watch())[-1] == b""


def test_the_heartbeat_is_soon_enough_for_whoever_is_on_the_way() -> None:
    assert events.HEARTBEAT <= 10


def test_a_client_that_goes_away_frees_its_stream_at_once_and_harms_nothing() -> None:
    async def watch() -> Job:
        job, client, other = a_job(), Client(), Client()
        for one in (client, other):
            one.reads.set()
        streams = [asyncio.ensure_future(Events(job)(SCOPE, one.receive, one.send)) for one in (client, other)]
        await client.until(lambda: bool(client.told() and other.told()))
        client.leaves.set()
        await asyncio.wait_for(streams[0], 2)
        assert len(job._listeners) == 1
        job.advance(Step(1))
        await other.until(lambda: any(data.get("iteration") == 1 for name, data in other.told() if name == "progress"))
        assert job.end("cancelled")
        await asyncio.wait_for(streams[1], 2)
        assert other.told()[-1][0] == "end"
        return job

    assert not asyncio.run(watch())._listeners


def test_a_listener_whose_loop_has_ended_stops_no_job() -> None:
    job = a_job()

    async def watch() -> None:
        client = Client()
        client.reads.set()
        task = asyncio.ensure_future(Events(job)(SCOPE, client.receive, client.send))
        await client.until(lambda: bool(client.told()))
        left.append(job._listeners.copy())
        task.cancel()

    left: list[Any] = []
    asyncio.run(watch())
    job._listeners |= left[0]  # as if it had never been told of its end
    assert job.advance(Step(1))


# Over real connections.


@pytest.fixture
def held(make_engine: Any) -> Any:
    """An engine, with a limit of half a second on everything, whose paintings take ten milliseconds an iteration."""
    engine = make_engine(client_timeout=0.5, request_timeout=0.5)
    engine.iterations = 100_000
    engine.turn = lambda _: time.sleep(0.01)
    return engine


def begin(connection: Any, jpeg: bytes) -> str:
    parts = b"".join(
        b'--B\r\nContent-Disposition: form-data; name="%s"; filename="a.jpg"\r\n\r\n%s\r\n' % (name, jpeg)
        for name in (b"image", b"style_image")
    )
    kind = "Content-Type: multipart/form-data; boundary=B"
    head = f"POST /stylize/optimize HTTP/1.1\r\nHost: x\r\n{kind}\r\nContent-Length: {len(parts) + 5}\r\n\r\n"
    connection.sendall(head.encode() + parts + b"--B--")
    status, headers, job = connection.answer()
    assert (status, headers["location"]) == (202, f"/jobs/{job['id']}".lower())
    return str(job["id"])


def listen(connection: socket.socket, job: str) -> None:
    connection.sendall(f"GET /jobs/{job}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def read_on(connection: socket.socket, seconds: float) -> tuple[bytes, bool]:
    """What comes within `seconds`, and whether the connection was closed meanwhile."""
    received, end = b"", time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            chunk = connection.recv(65_536)
        except TimeoutError:
            break
        except ConnectionResetError:
            return received, True
        if not chunk:
            return received, True
        received += chunk
    return received, False


def read_until(connection: socket.socket, marker: bytes) -> bytes:
    """What comes up to `marker`, within ten seconds."""
    received, end = b"", time.monotonic() + 10
    while marker not in received:
        chunk, closed = read_on(connection, 0.05)
        received += chunk
        assert not closed, "the connection was closed"
        assert time.monotonic() < end, "waited in vain"
    return received


def test_a_stream_outlasts_every_limit_of_other_requests(serve: Any, connect: Any, held: Any, jpeg: bytes) -> None:
    port = serve(held)
    with connect(port) as connection:
        job = begin(connection, jpeg)
        listen(connection, job)
        received, closed = read_on(connection, 2.0)
        assert not closed
        assert received.count(b"event: progress") >= 3
        assert b"event: preview" in received
        with connect(port) as other:
            other.sendall(f"DELETE /jobs/{job} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert other.answer()[2]["state"] == "cancelled"
        received = read_until(connection, b"\r\n0\r\n\r\n")
        assert received.count(b"event: end") == 1
        listen(connection, job)  # the connection serves on
        assert b"event: end" in read_until(connection, b"\r\n0\r\n\r\n")


def test_a_listener_that_reads_nothing_is_dropped_and_the_job_goes_on(
    serve: Any, connect: Any, held: Any, monkeypatch: pytest.MonkeyPatch, wait: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service.access")
    monkeypatch.setattr(events, "PACE", 0.0)
    monkeypatch.setattr("service.jobs.job.PREVIEW_SECONDS", 0.0)
    held.turn = lambda _: time.sleep(0.001)
    noise = encode(np.random.default_rng(1).integers(0, 256, (256, 256, 3)).astype(np.uint8), "jpeg", 95)
    port = serve(held)
    with connect(port) as connection:
        with connect(port) as other:
            job = begin(other, noise)
        listen(connection, job)  # and never read
        wait(lambda: [record for record in caplog.records if getattr(record, "route", "") == "/jobs/{id}/events"], 20)
    with connect(port) as other:
        other.sendall(f"GET /jobs/{job} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert other.answer()[2]["state"] == "running"


def test_a_listener_that_leaves_ends_its_request_at_once(
    serve: Any, connect: Any, held: Any, jpeg: bytes, wait: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service.access")
    port = serve(held)
    with connect(port) as other:
        job = begin(other, jpeg)
        with connect(port) as connection:
            listen(connection, job)
            read_until(connection, b"event: progress")
        wait(lambda: [record for record in caplog.records if getattr(record, "route", "") == "/jobs/{id}/events"])
        other.sendall(f"GET /jobs/{job} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert other.answer()[2]["state"] == "running"


def test_when_the_server_ends_every_stream_gets_its_end(start_server: Any, connect: Any, held: Any, jpeg: bytes, wait: Any) -> None:
    from service.http.app import create_app

    app = create_app(held)
    settings = held.settings.model_copy(update={"shutdown_seconds": 20.0})
    server = start_server(app, settings, ending=app.ending)
    wait(lambda: held.ready)
    with connect(server.port) as connection, connect(server.port) as other:
        job = begin(other, jpeg)
        waiting = begin(other, jpeg)
        listen(connection, job)
        listen(other, waiting)
        for listening in (connection, other):
            read_until(listening, b"event: progress")
        started = time.monotonic()
        server.stop()
        for listening in (connection, other):
            received, closed = read_on(listening, 10.0)
            assert closed
            assert received.count(b"event: end") == 1
            assert b'"state":"cancelled"' in received
            assert b"shutting down" in received
        assert time.monotonic() - started < 10  # of the 20 that requests get
