"""Jobs over HTTP, on a painting that is made up: begin, watch, fetch, cancel."""

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.http.app import create_app
from service.http.examples import ANSWERS, TINY_PNG
from service.http.jobcards import Job as Card
from service.jobs import Job, View
from service.tasks.optimize import OptimizeOptions

FIELDS = (
    "id",
    "kind",
    "state",
    "iteration",
    "iterations",
    "size",
    "losses",
    "seconds_left",
    "seconds",
    "created",
    "model",
    "problem",
)


@pytest.fixture
def turns(fake: Any) -> Iterator[threading.Semaphore]:
    """Each iteration waits for one; after the test all go on."""
    turns = threading.Semaphore(0)
    fake.turn = lambda _: turns.acquire(timeout=20)
    yield turns
    fake.turn = lambda _: None
    turns.release(10_000)


def begin(client: TestClient, jpeg: bytes, **options: Any) -> Any:
    files = {"image": jpeg, "style_image": jpeg}
    return client.post("/stylize/optimize", files=files, data={"iterations": "3", **options})


def started(client: TestClient, jpeg: bytes, **options: Any) -> str:
    response = begin(client, jpeg, **options)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def state(client: TestClient, job: str) -> str:
    return str(client.get(f"/jobs/{job}").json()["state"])


def read(stream: str) -> list[tuple[str, Any]]:
    """The events of a stream in order; comments are left out."""
    found = []
    for block in stream.split("\n\n"):
        if block.startswith("event: "):
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_job_is_begun_and_told_and_its_picture_fetched(
    client: TestClient, jpeg: bytes, wait: Callable[..., None], fake: Any
) -> None:
    response = begin(client, jpeg, max_side="160")
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert list(job) == [*FIELDS, "links"]
    assert job["links"] == {
        name: f"/jobs/{job['id']}{end}" for name, end in (("self", ""), ("events", "/events"), ("result", "/result"))
    }
    assert (job["kind"], job["iterations"], job["size"]) == ("stylize/optimize", 3, {"width": 160, "height": 120})
    wait(lambda: state(client, job["id"]) == "done")
    assert fake.calls[-1][1].max_side == 160
    job = client.get(f"/jobs/{job['id']}").json()
    assert (job["iteration"], job["iterations"], job["problem"]) == (3, 3, None)
    assert job["losses"] == {"content": 1.5, "style": 2.5, "variation": 0.25, "total": 4.25}
    assert job["model"]["provider"] == "CPUExecutionProvider"
    picture = client.get(f"/jobs/{job['id']}/result")
    assert picture.headers["content-type"] == "image/png"
    assert picture.headers["x-model"] == job["model"]["name"]
    assert (picture.headers["x-image-width"], picture.headers["vary"]) == ("640", "Accept")
    assert Image.open(io.BytesIO(picture.content)).size == (640, 480)


def test_examples_of_losses_add_up_by_the_usual_weights() -> None:
    told = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text(encoding="utf-8")
    (written,) = re.findall(r'"losses": (\{[^}]+\})', told)
    usual = OptimizeOptions()
    weights = {"content": usual.content_weight, "style": usual.style_weight, "variation": usual.tv_weight}
    for losses in (ANSWERS["GET /jobs/{id}"]["losses"], json.loads(written)):
        assert losses["total"] == pytest.approx(sum(weight * losses[name] for name, weight in weights.items()))


def test_json_with_base64_begins_a_job_too(client: TestClient) -> None:
    response = client.post("/stylize/optimize", json={"image": TINY_PNG, "style_image": TINY_PNG, "iterations": 2})
    assert response.status_code == 202
    assert response.json()["size"] == {"width": 64, "height": 48}


@pytest.mark.parametrize(
    ("posted", "query", "accept", "media"),
    [
        ({}, "", "*/*", "image/png"),
        ({"format": "webp"}, "", "*/*", "image/webp"),
        ({"format": "webp"}, "", "image/jpeg", "image/jpeg"),
        ({"format": "webp"}, "?format=jpeg", "image/png", "image/jpeg"),
        ({}, "?format=jpeg&quality=10", "*/*", "image/jpeg"),
    ],
)
def test_the_picture_comes_in_the_format_that_is_asked_for(
    client: TestClient, jpeg: bytes, wait: Callable[..., None], posted: Any, query: str, accept: str, media: str
) -> None:
    job = started(client, jpeg, **posted)
    wait(lambda: state(client, job) == "done")
    response = client.get(f"/jobs/{job}/result{query}", headers={"accept": accept})
    assert response.headers["content-type"] == media
    assert Image.MIME[str(Image.open(io.BytesIO(response.content)).format)] == media


def test_quality_is_what_was_said_last(client: TestClient, jpeg: bytes, wait: Callable[..., None]) -> None:
    job = started(client, jpeg, format="jpeg", quality="95")
    wait(lambda: state(client, job) == "done")
    fine, coarse = (client.get(f"/jobs/{job}/result{query}").content for query in ("", "?quality=5"))
    assert len(coarse) < len(fine)
    assert client.get(f"/jobs/{job}/result?size=5").json()["code"] == "option_invalid"
    assert client.get(f"/jobs/{job}/result", headers={"accept": "text/html"}).json()["code"] == "not_acceptable"


@pytest.mark.parametrize(
    ("files", "data", "code", "photo"),
    [
        (("image",), {}, "image_missing", None),
        (("image", "style_image"), {"iterations": "0"}, "option_invalid", None),
        (("image", "style_image"), {"strokes": "5"}, "option_invalid", None),
        (("image", "style_image"), {"model": "nope"}, "model_unknown", None),
        (("image", "broken"), {}, "not_an_image", "style_image"),
    ],
)
def test_what_is_wrong_is_told_before_there_is_a_job(
    client: TestClient, jpeg: bytes, fake: Any, files: Any, data: Any, code: str, photo: str | None
) -> None:
    sent = {"style_image" if name == "broken" else name: b"\0" * 2000 if name == "broken" else jpeg for name in files}
    response = client.post("/stylize/optimize", files=sent, data=data)
    assert (response.json()["code"], response.json().get("photo")) == (code, photo)
    assert not fake.calls


def test_an_unknown_job_is_404_everywhere(client: TestClient) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/result")):
        response = client.request(method, f"/jobs/nobody{path}")
        assert (response.status_code, response.json()["code"]) == (404, "job_unknown")


def test_a_result_that_is_not_there_yet_is_409(client: TestClient, jpeg: bytes, turns: Any, wait: Callable[..., None]) -> None:
    job = started(client, jpeg)
    turns.release()
    wait(lambda: client.get(f"/jobs/{job}").json()["iteration"] == 1)
    response = client.get(f"/jobs/{job}/result")
    assert (response.status_code, response.json()["code"]) == (409, "job_unfinished")
    assert "1 of 3 iterations" in response.json()["detail"]


def test_a_running_job_is_cancelled_and_then_forgotten(
    client: TestClient, jpeg: bytes, turns: Any, fake: Any, wait: Callable[..., None]
) -> None:
    job = started(client, jpeg, iterations="100")
    turns.release()
    wait(lambda: client.get(f"/jobs/{job}").json()["iteration"] == 1)
    assert client.delete(f"/jobs/{job}").json()["state"] == "cancelled"
    turns.release()
    assert fake.painted.wait(5)
    assert state(client, job) == "cancelled"
    assert client.get(f"/jobs/{job}/result").status_code == 409
    assert client.delete(f"/jobs/{job}").json()["state"] == "cancelled"
    assert client.get(f"/jobs/{job}").status_code == 404


def test_too_many_jobs_are_503_before_the_body_is_read(
    open_client: Any, make_engine: Any, jpeg: bytes, wait: Callable[..., None]
) -> None:
    engine = make_engine(jobs_waiting=1)
    go = threading.Event()
    engine.turn = lambda _: go.wait(20)
    client = open_client(engine)
    running = started(client, jpeg)
    wait(lambda: state(client, running) == "running")
    assert state(client, started(client, jpeg)) == "queued"
    response = client.post("/stylize/optimize", content=b"nothing that could be read")
    go.set()
    assert (response.status_code, response.json()["code"]) == (503, "queue_full")
    assert 1 <= int(response.headers["retry-after"]) <= 60


def test_a_failed_job_carries_its_problem(
    client: TestClient, jpeg: bytes, fake: Any, wait: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    fake.turn = lambda number: 1 // (2 - number)
    job = started(client, jpeg)
    wait(lambda: state(client, job) == "failed")
    problem = client.get(f"/jobs/{job}").json()["problem"]
    assert (problem["code"], problem["status"], problem["instance"]) == ("internal", 500, f"/jobs/{job}")
    assert "ZeroDivisionError" in caplog.text
    assert "known" not in problem


def test_a_job_that_takes_too_long_says_so(open_client: Any, make_engine: Any, jpeg: bytes, wait: Callable[..., None]) -> None:
    engine = make_engine(job_seconds=0.05)
    engine.turn = lambda _: time.sleep(0.03)
    client = open_client(engine)
    job = started(client, jpeg, iterations="500")
    wait(lambda: state(client, job) == "failed")
    problem = client.get(f"/jobs/{job}").json()["problem"]
    assert problem["code"] == "deadline_exceeded"
    assert "retry_after" not in problem


def test_a_job_is_watched_to_its_end(client: TestClient, jpeg: bytes, fake: Any) -> None:
    fake.turn = lambda _: time.sleep(0.2)
    response = client.get(f"/jobs/{started(client, jpeg, iterations='5')}/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], "content-length" in response.headers) == ("no-store", False)
    told = read(response.text)
    assert [name for name, _ in told].count("end") == 1
    assert (told[-1][0], told[-1][1]["state"]) == ("end", "done")
    iterations = [data["iteration"] for name, data in told if name == "progress"]
    assert iterations == sorted(iterations)
    assert list(told[-1][1]) == [*FIELDS, "links"]
    preview = next(data for name, data in told if name == "preview")
    assert list(preview) == ["iteration", "image"]
    kind, _, data = preview["image"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (256, 192)


def test_the_stream_of_an_ended_job_is_its_end(client: TestClient, jpeg: bytes, wait: Callable[..., None]) -> None:
    job = started(client, jpeg)
    wait(lambda: state(client, job) == "done")
    ((name, data),) = read(client.get(f"/jobs/{job}/events").text)
    assert (name, data) == ("end", client.get(f"/jobs/{job}").json())


def test_a_job_has_only_so_many_listeners(client: TestClient, jpeg: bytes, turns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = started(client, jpeg)
    monkeypatch.setattr("service.http.jobs.MOST_LISTENERS", 0)
    response = client.get(f"/jobs/{job}/events")
    assert (response.status_code, response.json()["code"], response.headers["retry-after"]) == (503, "queue_full", "10")


def test_head_of_a_stream_has_an_end(client: TestClient, jpeg: bytes, turns: Any) -> None:
    response = client.head(f"/jobs/{started(client, jpeg)}/events")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")


def test_paths_are_told_below_the_prefix_that_the_service_is_mounted_at(
    client: TestClient, jpeg: bytes, wait: Callable[..., None]
) -> None:
    mounted = TestClient(client.app, root_path="/vision")
    response = mounted.post("/vision/stylize/optimize", files={"image": jpeg, "style_image": jpeg}, data={"iterations": "2"})
    job = response.json()
    assert response.headers["location"] == f"/vision/jobs/{job['id']}"
    assert job["links"]["events"] == f"/vision/jobs/{job['id']}/events"
    wait(lambda: mounted.get(job["links"]["self"]).json()["state"] == "done")
    assert mounted.get(job["links"]["result"]).headers["content-type"] == "image/png"


def test_pages_of_allowed_origins_may_read_where_the_job_is(open_client: Any, make_engine: Any, jpeg: bytes) -> None:
    client = open_client(make_engine(cors_origins="https://example.org"))
    files = {"image": jpeg, "style_image": jpeg}
    response = client.post("/stylize/optimize", files=files, headers={"origin": "https://example.org"})
    assert "Location" in response.headers["access-control-expose-headers"]
    asked = {"origin": "https://example.org", "access-control-request-method": "DELETE"}
    assert "DELETE" in client.options("/jobs/x", headers=asked).headers["access-control-allow-methods"]


def test_with_keys_a_job_needs_one_and_any_that_may_use_will_do(
    open_client: Any, make_engine: Any, jpeg: bytes, wait: Callable[..., None]
) -> None:
    a, b, c = ("a" * 32, "b" * 32, "c" * 32)
    client = open_client(make_engine(api_keys=f"one:use:{a},two:use:{b},three:manage:{c}"))
    files = {"image": jpeg, "style_image": jpeg}
    assert client.post("/stylize/optimize", files=files).status_code == 401
    assert client.post("/stylize/optimize", files=files, headers={"x-api-key": c}).status_code == 403
    job = client.post("/stylize/optimize", files=files, headers={"x-api-key": a}).json()["id"]
    assert client.get(f"/jobs/{job}").status_code == 401
    assert client.get(f"/jobs/{job}/events").status_code == 401
    assert client.get(f"/jobs/{job}", headers={"authorization": f"Bearer {b}"}).status_code == 200


def test_neither_log_nor_metrics_hold_the_id(
    client: TestClient, jpeg: bytes, wait: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    job = started(client, jpeg)
    wait(lambda: state(client, job) == "done")
    client.get(f"/jobs/{job}/result")
    told = "".join(repr(vars(record)) for record in caplog.records if record.name.startswith("service"))
    assert "a job has ended" in told
    assert "/jobs/{id}/result" in told
    assert job not in told
    page = client.get("/metrics").text
    assert job not in page
    assert 'vision_jobs{state="done"} 1.0' in page
    assert 'vision_jobs{state="running"} 0.0' in page


def test_at_the_end_of_the_application_no_job_goes_on(fake: Any, jpeg: bytes, turns: Any, wait: Callable[..., None]) -> None:
    with TestClient(create_app(fake)) as client:
        assert fake.started.wait(5)
        job = started(client, jpeg, iterations="1000")
        wait(lambda: state(client, job) == "running")
        turns.release()
        wait(lambda: client.get(f"/jobs/{job}").json()["iteration"] == 1)
    turns.release()
    assert fake.painted.wait(5)


def test_a_loss_that_is_no_number_is_null_in_json() -> None:
    losses = {"content": float("nan"), "style": float("inf"), "variation": 1.0, "total": 1.0}
    view = View("running", 3, (64, 48), iteration=1, losses=losses)
    card = Card.of(Job("x", "stylize/optimize", lambda: pytest.fail("not to be run"), None, view), {"path": "/jobs/x"})
    told = json.loads(card.as_json(), parse_constant=pytest.fail)
    assert told["losses"] == {"content": None, "style": None, "variation": 1.0, "total": 1.0}
