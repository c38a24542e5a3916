import io
import json
import logging
from collections.abc import AsyncIterator
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


def test_an_answer_that_breaks_half_way_breaks_the_connection(
    fake: Any, open_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(request: Request) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            raise ZeroDivisionError

        return StreamingResponse(body())

    client = open_client(fake)
    client.app.add_route("/broken", broken)
    caplog.set_level("INFO", "service.access")
    with pytest.raises(ZeroDivisionError):
        client.get("/broken")
    assert [line.path for line in lines(caplog) if line.message == "request"] == ["/broken"]
