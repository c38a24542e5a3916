"""Jobs of several workers: whichever is asked answers for the one that has the job."""

import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.http.app import create_app
from service.http.cells import FOLDER
from service.http.server import Server

BOUNDARY = b"B"


class Worker:
    """One of two workers in this process, each with a server of its own."""

    def __init__(self, engine: Any, server: Server) -> None:
        self.engine, self.server = engine, server

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.request(method, path, body or None, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def begin(self, jpeg: bytes, **headers: str) -> Any:
        parts = b"".join(
            b'--B\r\nContent-Disposition: form-data; name="%s"; filename="a.jpg"\r\n\r\n%s\r\n' % (name, jpeg)
            for name in (b"image", b"style_image")
        )
        form = "multipart/form-data; boundary=B"
        status, _, body = self.ask("POST", "/stylize/optimize", parts + b"--B--", content_type=form, **headers)
        assert status == 202
        return json.loads(body)

    def state(self, job: str) -> str:
        return str(json.loads(self.ask("GET", f"/jobs/{job}")[2])["state"])


@pytest.fixture
def make(
    make_engine: Any, start_server: Any, wait: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Worker]]:
    monkeypatch.setenv(FOLDER, str(tmp_path))

    def make_(**settings: Any) -> list[Worker]:
        workers = []
        for _ in range(2):
            engine = make_engine(**settings)
            app = create_app(engine)
            workers.append(Worker(engine, start_server(app, engine.settings, ending=app.ending)))
            wait(lambda engine=engine: engine.ready)
        return workers

    return make_


def test_a_job_is_told_fetched_and_dropped_by_whoever_is_asked(make: Any, jpeg: bytes, wait: Any) -> None:
    one, other = make()
    job = one.begin(jpeg)
    assert job["id"].startswith("0.")
    assert other.begin(jpeg)["id"].startswith("1.")
    wait(lambda: other.state(job["id"]) == "done")
    mine, theirs = (worker.ask("GET", f"/jobs/{job['id']}") for worker in (one, other))
    assert (theirs[0], theirs[2]) == (mine[0], mine[2])
    assert theirs[1]["x-request-id"] != mine[1]["x-request-id"]
    mine, theirs = (worker.ask("GET", f"/jobs/{job['id']}/result?quality=50", accept="image/webp") for worker in (one, other))
    assert (theirs[0], theirs[1]["content-type"], theirs[2]) == (200, "image/webp", mine[2])
    status, _, body = other.ask("DELETE", f"/jobs/{job['id']}")
    assert (status, json.loads(body)["state"]) == (200, "done")
    assert [worker.ask("GET", f"/jobs/{job['id']}")[0] for worker in (one, other)] == [404, 404]


def test_errors_are_those_of_the_owner(make: Any, jpeg: bytes) -> None:
    one, other = make()
    go = threading.Event()
    one.engine.turn = lambda _: go.wait(20)
    job = one.begin(jpeg)["id"]
    for path, told in ((f"/jobs/{job}/result", "job_unfinished"), (f"/jobs/{job}/result?format=bmp", "option_invalid")):
        status, headers, body = other.ask("GET", path, x_request_id="mine")
        problem = json.loads(body)
        assert (status, problem["code"], problem["instance"]) == (problem["status"], told, path.partition("?")[0])
        assert (headers["content-type"], headers["x-request-id"]) == ("application/problem+json", "mine")
    assert other.ask("HEAD", f"/jobs/{job}/events")[::2] == (200, b"")
    go.set()


@pytest.mark.parametrize(
    "identity",
    [
        *("7.h3Jx0ZbqS8mP1vY7tKc2wA", "0.h3Jx0ZbqS8mP1vY7tKc2wA", "..%2F0.x", "h3Jx0ZbqS8mP1vY7tKc2wA", "٣.x"),
        pytest.param("7" * 5000, id="more digits than int() takes"),
    ],
)
def test_ids_that_nobody_has_given_are_unknown(make: Any, identity: str) -> None:
    from urllib.parse import quote

    _, other = make()
    status, _, body = other.ask("GET", f"/jobs/{quote(identity, safe='%')}")
    assert (status, json.loads(body)["code"]) in ((404, "job_unknown"), (404, "path_unknown"))


def test_a_stream_comes_through_another_worker_to_its_end(make: Any, jpeg: bytes) -> None:
    one, other = make()
    one.engine.turn = lambda _: time.sleep(0.01)
    job = one.begin(jpeg)["id"]
    status, headers, body = other.ask("GET", f"/jobs/{job}/events")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert body.count(b"event: end") == 1
    assert b'"state":"done"' in body


def test_a_client_that_leaves_frees_the_owner_s_stream(
    make: Any, jpeg: bytes, wait: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.http.events import Events

    told: list[Any] = []
    stream = Events._stream

    async def seen(self: Events, *given: Any) -> None:
        told.append(self._job)
        await stream(self, *given)
        told.append(None)

    monkeypatch.setattr(Events, "_stream", seen)
    one, other = make()
    go = threading.Event()
    one.engine.turn = lambda _: go.wait(20)
    job = one.begin(jpeg)["id"]
    with connect(other.server.port) as connection:
        connection.sendall(f"GET /jobs/{job}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b"text/event-stream" in connection.recv(65_536)
        wait(lambda: told and told[0]._listeners)
    wait(lambda: len(told) == 2)
    assert not told[0]._listeners
    assert one.state(job) == "running"
    go.set()


def test_when_the_owner_ends_its_streams_end_through_the_others(make: Any, jpeg: bytes, connect: Any) -> None:
    one, other = make(shutdown_seconds=10.0)
    one.engine.iterations = 100_000
    one.engine.turn = lambda _: time.sleep(0.01)
    job = one.begin(jpeg)["id"]
    with connect(other.server.port) as connection:
        connection.sendall(f"GET /jobs/{job}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        body = b""
        while b"event: progress" not in body:
            body += connection.recv(65_536)
        one.server.stop()
        while not body.endswith(b"\r\n0\r\n\r\n"):
            body += connection.recv(65_536)
    assert body.count(b"event: end") == 1
    assert b'"state":"cancelled"' in body
    status, _, body = other.ask("GET", f"/jobs/{job}")
    assert (status, json.loads(body)["code"]) == (404, "job_unknown")


def test_keys_are_asked_for_by_whoever_is_asked(make: Any, jpeg: bytes, wait: Any) -> None:
    user, manager = "u" * 32, "m" * 32
    one, other = make(api_keys=f"me:use:{user},boss:manage:{manager}")
    job = one.begin(jpeg, x_api_key=user)["id"]
    assert other.ask("GET", f"/jobs/{job}")[0] == 401
    assert other.ask("GET", f"/jobs/{job}", x_api_key=manager)[0] == 403
    assert other.ask("GET", f"/jobs/{job}", x_api_key=user)[0] == 200


def test_a_fault_of_the_owner_is_a_problem(make: Any, jpeg: bytes, monkeypatch: pytest.MonkeyPatch, wait: Any) -> None:
    one, other = make()
    job = one.begin(jpeg)["id"]
    wait(lambda: one.state(job) == "done")

    def broken(*_: object) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("service.http.jobs._media", broken)
    status, _, body = other.ask("GET", f"/jobs/{job}/result")
    assert (status, json.loads(body)["code"]) == (500, "internal")
