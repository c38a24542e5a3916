import asyncio
import io
import json
import logging
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from service.http import logs


def lines(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "service.access"]


def test_each_request_is_one_line_with_the_id_of_its_response(
    client: TestClient, jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service.access")
    response = client.post("/classify?top_k=2", files={"image": jpeg})
    (line,) = lines(caplog)
    assert (line.method, line.path, line.status) == ("POST", "/classify", 200)
    assert line.request_id == response.headers["x-request-id"]
    assert 0 < line.ms < 5000


def test_a_line_says_what_was_done_and_nothing_of_who_asked_or_what_for(
    client: TestClient, jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service.access")
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "user-agent": "secret", "x-forwarded-for": "10.9.8.7"}
    response = client.post("/classify?top_k=2", files={"image": ("secret.jpg", jpeg)}, headers=headers)
    client.get("/styles/secret-style/thumbnail.jpg?q=secret-query")
    first, second = lines(caplog)
    assert (first.route, first.model, first.queue_ms, first.inference_ms) == ("/classify", "efficientnet-lite0", 0.1, 12.4)
    assert first.bytes_in > len(jpeg)
    assert first.bytes_out == len(response.content)
    assert first.trace_id == TRACE
    assert not hasattr(first, "reason")
    assert (second.route, second.status, second.reason) == ("/styles/{name}/thumbnail.jpg", 404, "path_unknown")
    assert not hasattr(second, "model")
    told = [{key: value for key, value in vars(line).items() if key != "path"} for line in (first, second)]
    assert not [line for line in told if "secret" in str(line) or "10.9.8.7" in str(line) or "testclient" in str(line)]


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-00", True),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-a-later-version-adds", True),
        (f"00-{TRACE}-00f067aa0ba902b7-01-more", False),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        ("", False),
    ],
)
def test_a_sane_trace_id_is_logged(client: TestClient, caplog: pytest.LogCaptureFixture, sent: str, kept: bool) -> None:
    caplog.set_level("INFO", "service.access")
    client.get("/health/live", headers={"traceparent": sent})
    assert getattr(lines(caplog)[0], "trace_id", None) == (TRACE if kept else None)


@pytest.mark.parametrize("path", ["/nothing", "/docs", "/health/live", "/classify"])
def test_every_response_has_an_id(client: TestClient, path: str) -> None:
    first, second = client.get(path).headers["x-request-id"], client.get(path).headers["x-request-id"]
    assert len(first) == 32
    assert first != second


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-123", True), ("0af7651916cd43dd8448eb211c80319c", True), ("x" * 129, False), ("a b", False), ('"}', False), ("", False)],
)
def test_a_sane_id_is_kept(client: TestClient, sent: str, kept: bool) -> None:
    assert (client.get("/health/live", headers={"x-request-id": sent}).headers["x-request-id"] == sent) is kept


@pytest.mark.usefixtures("restored_logging")
def test_logs_are_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logging.getLogger("service.access").info("request", extra={"status": 200, "path": '/a"\n'})
    logging.getLogger("service.http").debug("too fine")
    logging.getLogger("uvicorn.error").info("started %d", 7)
    logging.getLogger("uvicorn.access").info("said already")
    logging.getLogger("PIL").info("of no interest")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("service.http").exception("failed")
    found = [json.loads(line) for line in io.StringIO(capsys.readouterr().err)]
    assert [line["message"] for line in found] == ["request", "started 7", "failed"]
    assert (found[0]["status"], found[0]["path"], found[0]["level"]) == (200, '/a"\n', "info")
    assert found[1]["logger"] == "uvicorn.error"
    assert "ValueError: broken" in found[2]["exception"]
    assert found[2]["time"].endswith("+00:00")


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize(("level", "expected"), [("info", 1), ("debug", 1), ("warning", 0), ("error", 0)])
def test_the_short_way_writes_what_the_long_way_would(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, level: str, expected: int
) -> None:
    fields = {"path": '/a"\n\u00e9', "status": 200, "ms": 1.25, "reason": None}
    written: list[str] = []
    for way in ("short", "long"):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        logs.configure(level)
        if way == "long":
            logging.getLogger().addHandler(logging.NullHandler())
        logs.info(logging.getLogger("service.access"), "request", fields)
        written.append(stream.getvalue())
        assert written[-1].count("\n") == expected
        assert written[-1].isascii()
    if expected:
        short, long = ({**json.loads(line), "time": "now"} for line in written)
        assert list(short.items()) == list(long.items())
        times = [datetime.fromisoformat(json.loads(line)["time"]) for line in written]
        assert abs(times[0] - times[1]) < timedelta(minutes=1)
        assert times[0].utcoffset() == timedelta(0)


@pytest.mark.usefixtures("restored_logging")
def test_a_log_that_cannot_be_written_fails_no_request(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logs.configure("info")
    assert client.get("/health/live").status_code == 200


def test_a_request_that_the_end_of_the_service_cuts_short_is_logged_as_such(
    fake: Any, open_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def endless(request: Request) -> None:
        raise asyncio.CancelledError

    client = open_client(fake)
    client.app.app.add_route("/endless", endless)
    caplog.set_level("INFO", "service.access")
    response = client.get("/endless")
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    (line,) = lines(caplog)
    assert (line.status, line.reason) == (503, "shutting_down")


def test_an_answer_that_breaks_half_way_breaks_the_connection(
    fake: Any, open_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(request: Request) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            raise ZeroDivisionError

        return StreamingResponse(body())

    client = open_client(fake)
    client.app.app.add_route("/broken", broken)
    caplog.set_level("INFO", "service.access")
    with pytest.raises(ZeroDivisionError):
        client.get("/broken")
    assert [line.path for line in lines(caplog) if line.message == "request"] == ["/broken"]
