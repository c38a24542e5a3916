"""Starting and stopping: models load behind an open port, and a service that cannot start gives up."""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.errors import DeviceUnavailable, SettingInvalid
from service.http.app import create_app, from_env, stop_process
from service.runtime.machine import usable_cores


def test_until_the_models_are_ready_tasks_answer_503(make_engine: Any, jpeg: bytes, wait: Callable[..., None]) -> None:
    engine, go = make_engine(), threading.Event()
    engine.on_start = lambda: go.wait(5)
    with TestClient(create_app(engine)) as client:
        assert client.get("/health/live").status_code == 200
        for response in (client.get("/health/ready"), client.post("/classify", files={"image": jpeg})):
            assert response.status_code == 503
            assert response.json()["code"] == "not_ready"
            assert "yolov3-tiny" in response.json()["detail"]
            assert int(response.headers["retry-after"]) >= 1
        go.set()
        wait(lambda: client.get("/health/ready").status_code == 200)
        assert client.post("/classify", files={"image": jpeg}).status_code == 200
    assert engine.closed


@pytest.mark.parametrize(("error", "told"), [(DeviceUnavailable("no GPU here"), "no GPU here"), (ZeroDivisionError("odd"), "odd")])
def test_an_engine_that_cannot_start_is_given_up(
    make_engine: Any, caplog: pytest.LogCaptureFixture, wait: Callable[..., None], error: Exception, told: str
) -> None:
    engine, reasons = make_engine(), []

    def fail() -> None:
        raise error

    engine.on_start = fail
    with TestClient(create_app(engine, give_up=reasons.append)) as client:
        wait(lambda: reasons)
        assert told in reasons[0]
        assert client.get("/health/ready").status_code == 503
    assert told in caplog.text
    assert ("Traceback" in caplog.text) is isinstance(error, ZeroDivisionError)


def test_quick_tasks_do_not_wait_behind_paintings(make_engine: Any, open_client: Any, jpeg: bytes) -> None:
    engine, go = make_engine(), threading.Event()
    client = open_client(engine)

    def wait_if_painting() -> None:
        if engine.calls[-1][0] == "stylize":
            go.wait(10)

    engine.before = wait_if_painting
    painters = [
        threading.Thread(target=client.post, args=("/stylize",), kwargs={"files": {"image": jpeg}, "data": {"style": "ink-wash"}})
        for _ in range(usable_cores() + 2)
    ]
    for painter in painters:
        painter.start()
    try:
        assert client.post("/classify", files={"image": jpeg}).status_code == 200
    finally:
        go.set()
        for painter in painters:
            painter.join(10)


def test_a_full_queue_is_503_before_the_body_is_read(
    make_engine: Any, open_client: Any, jpeg: bytes, wait: Callable[..., None]
) -> None:
    engine, go = make_engine(queue_length=1, parallel=2), threading.Event()
    engine.before = lambda: go.wait(10)
    client = open_client(engine)
    answers: list[int] = []

    def ask() -> None:
        answers.append(client.post("/classify", files={"image": jpeg}).status_code)

    askers = [threading.Thread(target=ask) for _ in range(12)]
    for asker in askers:
        asker.start()
    wait(lambda: 503 in answers)

    def unread() -> Any:
        raise AssertionError("the body was read")
        yield b""

    refused = client.post("/classify", content=unread(), headers={"content-type": "image/jpeg"})
    go.set()
    for asker in askers:
        asker.join(10)
    assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert answers.count(200) + answers.count(503) == 12
    assert answers.count(200) >= 3
    assert client.post("/classify", files={"image": jpeg}).status_code == 200


def test_waiting_for_a_thread_counts_as_queue(make_engine: Any, open_client: Any, jpeg: bytes, wait: Callable[..., None]) -> None:
    engine, go = make_engine(), threading.Event()
    seen: list[float] = []
    engine.before = lambda: go.wait(5)
    stylize = engine.stylize

    def watch(image: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(image.timing.stages["queue"])
        assert image.timing.report().total >= seen[-1]
        return stylize(image, *args, **kwargs)

    engine.stylize = watch
    client = open_client(engine)
    askers = [threading.Thread(target=lambda: client.post("/stylize", files={"image": jpeg})) for _ in range(20)]
    for asker in askers:
        asker.start()
    wait(lambda: len(engine.calls) > 0)
    time.sleep(0.3)
    go.set()
    for asker in askers:
        asker.join(10)
    assert len(seen) == 20
    assert min(seen) < 100
    assert max(seen) > 200


def test_a_request_over_its_time_is_504(make_engine: Any, open_client: Any, jpeg: bytes) -> None:
    engine, go = make_engine(request_timeout=0.2), threading.Event()
    engine.before = lambda: go.wait(5)
    response = open_client(engine).post("/classify", files={"image": jpeg})
    go.set()
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


def test_from_env_reads_the_settings(monkeypatch: pytest.MonkeyPatch, restored_logging: None) -> None:
    monkeypatch.setenv("VISION_MAX_BODY_BYTES", "2048")
    monkeypatch.setenv("VISION_OPEN", "true")
    app = from_env().app
    assert app.title == "vision-service"
    assert "0.00195312 MiB" in app.openapi()["paths"]["/classify"]["post"]["description"]


def test_giving_up_is_a_signal_that_servers_obey() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        stop_process("why")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_from_env_tells_what_is_wrong_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_DEVICE", "abacus")
    with pytest.raises(SettingInvalid, match="abacus"):
        from_env()
