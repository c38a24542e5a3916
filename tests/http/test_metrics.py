"""GET /metrics: what is counted, under which labels, in both formats, for all workers, and always."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service import __version__
from service.http import cells
from service.http.app import create_app
from service.http.cells import CELLS, FOLDER, Cells
from service.http.metrics import FAMILIES, STAGES, Metrics
from service.http.record import Record

ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Samples:
    """Value by name and labels of everything on a page."""
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    samples = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
    assert len(samples) == len(found), "a series is there twice"
    return samples


def scrape(client: TestClient) -> Samples:
    response = client.get("/metrics")
    assert response.status_code == 200
    return read(response.text)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def requests(samples: Samples, method: str, route: str, status: int) -> float:
    return value(samples, "http_requests_total", method=method, route=route, status=str(status))


def test_requests_are_counted_by_method_route_and_status(client: TestClient, jpeg: bytes) -> None:
    for _ in range(3):
        assert client.post("/classify?top_k=1", files={"image": jpeg}).status_code == 200
    client.post("/classify", content=b"")
    client.get("/styles/ink-wash/thumbnail.jpg")
    client.head("/models")
    client.options("/models")
    found = scrape(client)
    assert requests(found, "POST", "/classify", 200) == 3
    assert requests(found, "POST", "/classify", 422) == 1
    assert requests(found, "GET", "/styles/{name}/thumbnail.jpg", 200) == 1
    assert requests(found, "HEAD", "/models", 200) == 1
    assert requests(found, "OPTIONS", "/models", 204) == 1
    assert value(found, "http_request_duration_seconds_count", route="/classify") == 4
    assert 0 < value(found, "http_request_duration_seconds_sum", route="/classify") < 5
    assert value(found, "http_request_body_bytes_total", route="/classify") > 3 * len(jpeg)
    assert value(found, "http_response_body_bytes_total", route="/classify") > 300
    assert value(found, "http_response_body_bytes_total", route="/models") == 0  # HEAD and OPTIONS
    assert value(found, "vision_rejected_total", reason="image_missing") == 1


def test_what_clients_make_up_is_no_label(client: TestClient) -> None:
    for n in range(20):
        client.get(f"/secret-{n}?q=secret", headers={"x-request-id": "secret", "user-agent": "secret"})
        client.request("SECRET", "/models")
        client.post("/classify", params={"model": "secret"})
    text = client.get("/metrics").text
    assert "secret" not in text.lower()
    found = read(text)
    assert requests(found, "GET", "other", 404) == 20
    assert requests(found, "other", "/models", 405) == 20


def test_stages_and_batches_are_counted_by_model(client: TestClient, jpeg: bytes) -> None:
    for _ in range(2):
        client.post("/detect", files={"image": jpeg})
    found = scrape(client)
    labels = {"task": "detect", "model": "yolov3-tiny"}
    expected = {"decode": 3.1, "preprocess": 0.9, "queue": 0.1, "inference": 12.4, "postprocess": 0.2}  # as the fake answers
    for stage in STAGES:
        assert value(found, "vision_stage_duration_seconds_count", stage=stage, **labels) == 2
        total = value(found, "vision_stage_duration_seconds_sum", stage=stage, **labels)
        assert total == pytest.approx(2 * expected[stage] / 1e3)
    bucket = {**labels, "stage": "inference"}
    assert value(found, "vision_stage_duration_seconds_bucket", **bucket, le="0.01") == 0
    assert value(found, "vision_stage_duration_seconds_bucket", **bucket, le="0.015") == 2
    assert value(found, "vision_stage_duration_seconds_bucket", **bucket, le="+Inf") == 2
    assert value(found, "vision_batch_size_bucket", model="yolov3-tiny", le="1.0") == 2


def test_the_service_its_models_and_its_process_are_told(client: TestClient) -> None:
    found = scrape(client)
    assert value(found, "vision_build_info", version=__version__) == 1
    (model,) = [dict(labels) for name, labels in found if name == "vision_model_info"]
    assert (model["model"], model["task"], model["provider"]) == ("yolov3-tiny", "detect", "CPUExecutionProvider")
    assert model["precision"] in {"float32", "int8", "float16"}
    assert int(model["threads"]) >= 1
    assert value(found, "process_resident_memory_bytes", worker="0") > 10e6
    assert value(found, "process_open_fds", worker="0") > 0
    assert abs(value(found, "process_start_time_seconds", worker="0") - time.time()) < 86_400
    assert any(name == "python_info" for name, _ in found)


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        ("application/openmetrics-text; version=odd", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)
def test_the_format_is_what_the_client_accepts(client: TestClient, jpeg: bytes, accept: str, media: str) -> None:
    client.post("/classify", files={"image": jpeg})
    response = client.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"] == media
    parse = openmetrics.text_string_to_metric_families if "openmetrics" in media else text_string_to_metric_families
    families = {family.name: family for family in parse(response.text)}
    assert families["http_request_duration_seconds"].type == "histogram"
    assert response.text.endswith("# EOF\n") is ("openmetrics" in media)


def test_other_formats_are_a_problem_and_head_and_options_work(client: TestClient) -> None:
    assert client.get("/metrics", headers={"accept": "application/json"}).status_code == 406
    assert client.head("/metrics").content == b""
    assert client.options("/metrics").headers["allow"] == "GET, HEAD, OPTIONS"


def test_metrics_answer_while_models_load(make_engine: Callable[..., Any], jpeg: bytes) -> None:
    engine, go = make_engine(), threading.Event()
    engine.on_start = lambda: go.wait(5)
    with TestClient(create_app(engine)) as client:
        assert client.post("/classify", files={"image": jpeg}).status_code == 503
        found = scrape(client)
        go.set()
    assert value(found, "vision_rejected_total", reason="not_ready") == 1
    assert value(found, "http_requests_in_flight") == 1  # the scrape itself


def test_metrics_answer_while_the_queue_is_full(
    make_engine: Callable[..., Any], open_client: Callable[..., TestClient], jpeg: bytes, wait: Callable[..., None]
) -> None:
    engine, go = make_engine(cores=1, queue_length=2, queue_timeout=60.0), threading.Event()
    engine.concurrency = 1
    client = open_client(engine)
    engine.before = lambda: go.wait(10)
    callers = [threading.Thread(target=client.post, args=("/detect",), kwargs={"files": {"image": jpeg}}) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        wait(lambda: value(scrape(client), "vision_queue_length", task="detect") == 2)
        assert client.post("/detect", files={"image": jpeg}).status_code == 503
        found = scrape(client)
    finally:
        go.set()
        for caller in callers:
            caller.join(10)
    assert value(found, "http_requests_in_flight") == 4
    assert value(found, "vision_rejected_total", reason="queue_full") == 1
    found = scrape(client)
    assert value(found, "vision_queue_length", task="detect") == 0
    assert requests(found, "POST", "/detect", 200) == 3


def a_request(route: str, status: int = 200, seconds: float = 0.02) -> Record:
    return Record("GET", "/", "id", route=route, status=status, seconds=seconds)


def sums(metrics: Metrics) -> Samples:
    return read(metrics.page("", [])[0].decode())


def test_any_worker_tells_the_sums_of_all(tmp_path: Path) -> None:
    one, two = Metrics(tmp_path), Metrics(tmp_path)  # the lock of a place keeps two apart in one process too
    for metrics, times in ((one, 2), (two, 3)):
        for _ in range(times):
            metrics.begin()
            metrics.record(a_request("/models"))
        metrics.begin()
        metrics.watch(lambda: {"/detect": 4})
        metrics.look()
    found = sums(one)
    assert {key: n for key, n in sums(two).items() if key[0][:4] in ("http", "visi")}.items() <= found.items()
    assert requests(found, "GET", "/models", 200) == 5
    assert value(found, "http_request_duration_seconds_bucket", route="/models", le="0.02") == 5
    assert value(found, "http_request_duration_seconds_sum", route="/models") == pytest.approx(0.1)
    assert value(found, "http_requests_in_flight") == 2
    assert value(found, "vision_queue_length", task="detect") == 8
    assert {dict(labels)["worker"] for name, labels in found if name == "process_resident_memory_bytes"} == {"0", "1"}


KILLED = """
import os, signal, sys
from pathlib import Path
from service.http.metrics import Metrics
from service.http.record import Record
metrics = Metrics(Path(sys.argv[1]))
for _ in range(7):
    metrics.begin()
    metrics.record(Record("GET", "/", "id", route="/models", status=200))
metrics.begin()
metrics.watch(lambda: {"detect": 9})
metrics.look()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_was_killed_is_still_counted_and_its_place_taken_over(tmp_path: Path) -> None:
    def kill_one() -> None:
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=False, timeout=60)

    ours = Metrics(tmp_path)
    ours.begin()
    for times in (1, 2):
        kill_one()
        found = sums(ours)
        assert requests(found, "GET", "/models", 200) == 7 * times
        assert value(found, "http_requests_in_flight") == 1  # nothing runs in a dead process
        assert value(found, "vision_queue_length", task="detect") == 0
        assert value(found, "process_resident_memory_bytes", worker="1") == 0
    assert len(list(tmp_path.glob("*.cells"))) == 2
    heir = Metrics(tmp_path)
    assert requests(sums(heir), "GET", "/models", 200) == 14
    assert value(sums(heir), "http_requests_in_flight") == 1


def test_cells_that_run_out_disturb_nobody(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    first = cells.block(("first",), 1)
    cells.values[first] = 1.0
    cells.block(("filler",), CELLS - 10)
    for n in range(5):
        cells.values[cells.block((f"late {n}",), 8)] += 5.0
    (snapshot,) = cells.snapshots()
    assert snapshot.blocks["first",] == [1.0]
    assert ("late 4",) not in snapshot.blocks


def test_a_supervisor_makes_a_private_folder_for_several_workers() -> None:
    with cells.shared(1):
        assert FOLDER not in os.environ
        assert Metrics.from_env() is not None
    with cells.shared(2):
        folder = Path(os.environ[FOLDER])
        assert folder.stat().st_mode & 0o777 == 0o700
        metrics = Metrics.from_env()
        assert [path.name for path in folder.glob("*.cells")] == ["0.cells"]
    assert FOLDER not in os.environ
    assert not folder.exists()
    metrics.record(a_request("/models"))  # a worker that ends last is not disturbed


def names_on_the_page() -> set[str]:
    """Every sample's name that a page can have, with one request recorded."""
    families = list(text_string_to_metric_families(Metrics().page("", [])[0].decode()))
    named = {sample.name for family in families for sample in family.samples}
    for family in FAMILIES:
        suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        named |= {family.name + suffix for suffix in suffixes}
    return named


def test_the_docs_show_every_metric_as_it_is() -> None:
    text = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `((?:http|vision)_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), told) for name, kind, labels, told in rows] == [
        (family.name, family.kind, family.labels, family.help) for family in FAMILIES
    ]
    for family in FAMILIES:
        if family.bounds:
            listed = ", ".join(f"{bound:g}" for bound in family.bounds)
            assert f"| `{family.name}` | {listed} |" in text


def expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (node[key] for key in ("expr", "query") if isinstance(node.get(key), str))
        for child in node.values():
            yield from expressions(child)
    elif isinstance(node, list):
        for child in node:
            yield from expressions(child)


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "vision-service.json").read_text(encoding="utf-8"))
    asked = {name for text in expressions(dashboard) for name in re.findall(r"\b(?:http|vision|process|python)_\w+", text)}
    assert len(asked) > 10
    assert asked - names_on_the_page() == set()
    by = {family.name: set(family.labels) for family in FAMILIES}
    for text in expressions(dashboard):
        for name, matchers in re.findall(r"\b((?:http|vision)_\w+?)(?:_bucket|_sum|_count)?\{([^}]*)\}", text):
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) - {"instance", "job"}
            assert used <= by[name], text
