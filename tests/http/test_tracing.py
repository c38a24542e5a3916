"""Traces: off unless asked for, the caller's context in and ours out, spans where the time really went, and nothing held up."""

import asyncio
import http.server
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.testclient import TestClient

from service import __version__
from service.engine import Engine
from service.http import tracing
from service.http.access import Access
from service.http.app import create_app
from service.http.metrics import Metrics
from service.http.record import record_of
from service.tasks.task import ModelInfo, Timing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
MODEL = ModelInfo(name="m", version="1", digest="0" * 64, provider="CPUExecutionProvider", precision="float32")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "console, otlp,console"}, ("console", "otlp")),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "True"}, ()),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ()),
    ],
)
def test_the_environment_says_where_traces_go(environ: dict[str, str], expected: tuple[str, ...]) -> None:
    assert tracing.exporters(environ) == expected
    if not expected:
        assert tracing.from_env(environ) is None


def test_an_exporter_that_is_not_known_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tracing.exporters({"OTEL_TRACES_EXPORTER": "zipkin"})
    assert "zipkin" in caplog.text


def test_without_the_extra_the_log_says_what_to_install(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert tracing.from_env({"OTEL_TRACES_EXPORTER": "otlp"}) is None
    assert "vision-service[otel]" in caplog.text


def test_untraced_responses_carry_no_context(client: TestClient) -> None:
    assert "traceresponse" not in client.get("/health/live", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}).headers


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> tracing.Tracing:
    return tracing.Tracing([SimpleSpanProcessor(exporter)])


class Route:
    path = "/classify"


def call(traces: tracing.Tracing, headers: dict[str, str], *, status: int = 200, timing: Timing | None = None) -> dict[str, str]:
    """One request through Access; gives the headers of the response."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = Route
        if timing is not None:
            record_of(scope).ran("classify", MODEL, timing.report())
        if status >= 400:
            record_of(scope).reason = "queue_full"
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"1234"})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/classify",
        "query_string": b"q=secret",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(Access(app, Metrics(), traces)(scope, app, send))
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_a_request_is_a_server_span_below_the_callers(exporter: InMemorySpanExporter, traces: tracing.Tracing) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1", "x-request-id": "r1"}
    answer = call(traces, headers)
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("POST /classify", SpanKind.SERVER)
    assert span.parent is not None
    assert (format(span.parent.span_id, "016x"), format(span.context.trace_id, "032x")) == (PARENT, TRACE)
    assert span.context.trace_state["vendor"] == "1"
    assert answer["traceresponse"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "http.request.body.size": 0,
        "http.response.body.size": 4,
        "url.path": "/classify",
        "url.scheme": "http",
        "vision.request_id": "r1",
    }
    assert "secret" not in span.to_json()
    assert span.resource.attributes["service.name"] == "vision-service"
    assert span.resource.attributes["service.version"] == __version__


def test_a_caller_that_does_not_sample_is_followed(exporter: InMemorySpanExporter, traces: tracing.Tracing) -> None:
    answer = call(traces, {"traceparent": f"00-{TRACE}-{PARENT}-00"}, timing=Timing())
    assert exporter.get_finished_spans() == ()
    assert answer["traceresponse"].startswith(f"00-{TRACE}-")
    assert answer["traceresponse"].endswith("-00")


def test_without_a_caller_a_trace_begins_here(exporter: InMemorySpanExporter, traces: tracing.Tracing) -> None:
    answer = call(traces, {"traceparent": "00-odd"})
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert answer["traceresponse"][:-2] == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-"
    assert int(answer["traceresponse"][-2:], 16) & 1


def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch, exporter: InMemorySpanExporter) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "eyes")
    call(tracing.Tracing([SimpleSpanProcessor(exporter)]), {})
    assert exporter.get_finished_spans()[0].resource.attributes["service.name"] == "eyes"


def test_stages_are_spans_at_the_times_when_they_ran(exporter: InMemorySpanExporter, traces: tracing.Tracing) -> None:
    before = time.time_ns()
    first = Timing()
    with first.measure("decode"):
        time.sleep(0.002)
    first.waited(0.005, 60)
    timing = first.again()
    with timing.measure("preprocess"):
        time.sleep(0.002)
    end = time.perf_counter()
    timing.add("queue", 1.0, end - 0.003)
    timing.add("inference", 3.0, end)
    call(traces, {}, timing=timing)
    *stages, server = exporter.get_finished_spans()
    assert [span.name for span in stages] == ["queue", "decode", "preprocess", "queue", "inference"]
    times = [(span.start_time or 0, span.end_time or 0) for span in stages]
    queue, decode, preprocess, lane, inference = times
    assert queue[1] <= decode[0] < decode[1] <= preprocess[0] < preprocess[1]
    assert lane[1] == pytest.approx(inference[0], abs=1_000)
    assert queue[1] - queue[0] == pytest.approx(5e6, abs=1e3)
    assert inference[1] - inference[0] == pytest.approx(3e6, abs=1e3)
    assert before <= decode[0]
    assert inference[1] <= time.time_ns()
    assert {span.parent and span.parent.span_id for span in stages} == {server.context.span_id}
    assert (server.attributes or {})["vision.model"] == "m"


@pytest.mark.parametrize(("status", "code"), [(422, StatusCode.UNSET), (503, StatusCode.ERROR)])
def test_faults_of_the_service_are_errors(
    exporter: InMemorySpanExporter, traces: tracing.Tracing, status: int, code: StatusCode
) -> None:
    call(traces, {}, status=status)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code == code
    assert (span.attributes or {})["error.type"] == "queue_full"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ExportTraceServiceRequest]]:
    """What arrives at an OTLP endpoint that the environment names."""
    arrived: list[ExportTraceServiceRequest] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arrived.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield arrived
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_left_is_sent_when_the_service_ends(
    collector: list[ExportTraceServiceRequest], make_engine: Callable[..., Any], jpeg: bytes
) -> None:
    with TestClient(create_app(make_engine())) as client:
        answer = client.get("/styles/ink-wash/thumbnail.jpg?size=secret")
    (request,) = collector
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert span.name == "GET /styles/{name}/thumbnail.jpg"
    assert answer.headers["traceresponse"].split("-")[1] == span.trace_id.hex()
    assert b"secret" not in request.SerializeToString()


def test_a_real_request_shows_where_its_time_went(
    collector: list[ExportTraceServiceRequest],
    engine: Engine,
    jpeg: bytes,
    monkeypatch: pytest.MonkeyPatch,
    wait: Callable[..., None],
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    engine.start()
    client = TestClient(create_app(engine))  # not entered: the engine is that of all tests
    assert client.post("/classify?top_k=3", files={"image": ("secret.jpg", jpeg)}).status_code == 200

    def arrived() -> dict[str, Any]:
        scopes = [scope for request in collector for spans in request.resource_spans for scope in spans.scope_spans]
        return {span.name: span for scope in scopes for span in scope.spans}

    wait(lambda: "POST /classify" in arrived())
    spans = arrived()
    assert set(spans) == {"POST /classify", "decode", "preprocess", "queue", "inference", "postprocess"}
    server = spans.pop("POST /classify")
    assert all(server.start_time_unix_nano <= span.start_time_unix_nano for span in spans.values())
    assert all(span.end_time_unix_nano <= server.end_time_unix_nano for span in spans.values())
    order = [spans[name].start_time_unix_nano for name in ("decode", "preprocess", "inference", "postprocess")]
    assert order == sorted(order)
    assert not [request for request in collector if b"secret" in request.SerializeToString()]


def test_a_collector_that_does_not_answer_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "opentelemetry")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        traces = tracing.from_env()
        assert traces is not None
        call(traces, {})
        traces.close(0.1)
        (closing,) = [thread for thread in threading.enumerate() if thread.name == "traces"]  # it still tries; we do not wait
    closing.join(10)
