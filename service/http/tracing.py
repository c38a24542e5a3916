"""OpenTelemetry spans of requests: one of the server's, and below it the stages as they were timed. Needs the extra `otel`.

    Record + TimingMs.spans -> spans -> queue in memory -> a thread of its own -> OTLP over HTTP, or the console

Off unless the environment asks for it by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT, or OTEL_TRACES_EXPORTER=otlp
or console. The caller's context, with its decision whether to sample, is read from `traceparent` and `tracestate` (W3C Trace
Context); ours goes back as `traceresponse` (its draft for responses). When the queue is full, spans are lost, and no request waits.
"""

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from starlette.types import Scope

from service import __version__
from service.http.record import METHODS, OTHER, Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span, Tracer

EXPORTERS = ("otlp", "console", "none")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")

logger = logging.getLogger("service.http")


def exporters(environ: Mapping[str, str]) -> tuple[str, ...]:
    """What the environment asks spans to be sent to, of EXPORTERS without "none"; nothing where it asks for nothing."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    asked = environ.get("OTEL_TRACES_EXPORTER", "").strip() or ("otlp" if any(environ.get(name) for name in ENDPOINTS) else "none")
    names = list(dict.fromkeys(name.strip() for name in asked.split(",")))
    for name in names:
        if name not in EXPORTERS:
            logger.warning("OTEL_TRACES_EXPORTER: %r is not known here; use %s", name, ", ".join(EXPORTERS))
    return tuple(name for name in names if name in EXPORTERS and name != "none")


def from_env(environ: Mapping[str, str] | None = None) -> "Tracing | None":
    """Tracing as the environment asks for it; None where it does not, or where the extra is missing, which the log says."""
    environ = os.environ if environ is None else environ
    asked = exporters(environ)
    if not asked:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError:
        logger.warning("OTEL_* asks for traces, but OpenTelemetry is not installed: pip install 'vision-service[otel]'")
        return None
    if any(environ.get(name, "http/protobuf") != "http/protobuf" for name in PROTOCOLS):
        logger.warning("OTLP is spoken as http/protobuf only, whatever OTEL_EXPORTER_OTLP_PROTOCOL says; its usual port is 4318")
    return Tracing([BatchSpanProcessor(OTLPSpanExporter() if name == "otlp" else ConsoleSpanExporter()) for name in asked])


class Tracing:
    """Makes a span of every request that is sampled and hands it to `processors`. For one event loop."""

    def __init__(self, processors: Sequence["SpanProcessor"]) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import SpanKind

        ours = Resource.create({"service.name": "vision-service", "service.version": __version__})
        resource = ours.merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for processor in processors:
            self._provider.add_span_processor(processor)
        self._extract, self._server = extract, SpanKind.SERVER
        self._tracer = self._provider.get_tracer("vision-service", __version__)

    def begin(self, record: Record, scope: Scope) -> "RequestSpan":
        """Open the span of a request, below the caller's if it sent one, and put its trace id into `record`."""
        carrier: dict[str, list[str]] = defaultdict(list)
        for name, value in scope["headers"]:
            carrier[name.decode("latin-1")].append(value.decode("latin-1"))
        method = record.method if record.method in METHODS else "_OTHER"
        attributes = {"http.request.method": method, "url.path": record.path, "url.scheme": scope.get("scheme", "http")}
        epoch = time.time() - time.perf_counter()
        start = _nanoseconds(record.started + epoch)
        span = self._tracer.start_span(method, self._extract(carrier), self._server, attributes, start_time=start)
        record.trace_id = format(span.get_span_context().trace_id, "032x")
        return RequestSpan(self._tracer, span, epoch)

    def close(self, seconds: float) -> None:
        """Send what has not been sent yet, for `seconds` at most."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(seconds)


class RequestSpan:
    """The open span of one request. `headers` tell the caller of it; `epoch` is the Unix time when time.perf_counter() was 0."""

    def __init__(self, tracer: "Tracer", span: "Span", epoch: float) -> None:
        context = span.get_span_context()
        told = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        self.headers = [(b"traceresponse", told.encode())]
        self._tracer, self._span, self._epoch = tracer, span, epoch

    def end(self, record: Record) -> None:
        """Close the span with what is known by now, and put a span below it for every stage that was timed."""
        if self._span.is_recording():
            self._describe(record)
            self._add_stages(record)
        self._span.end(_nanoseconds(record.started + record.seconds + self._epoch))

    def _describe(self, record: Record) -> None:
        from opentelemetry.trace import StatusCode

        span = self._span
        span.set_attributes({"http.request.body.size": record.bytes_in, "http.response.body.size": record.bytes_out})
        span.set_attribute("vision.request_id", record.request_id)
        span.set_attribute("url.path", record.path)  # which names nobody any more
        if record.route != OTHER:
            span.update_name(f"{record.method} {record.route}")
            span.set_attribute("http.route", record.route)
        if record.status:
            span.set_attribute("http.response.status_code", record.status)
        if record.reason is not None:
            span.set_attribute("error.type", record.reason)
        if record.model is not None:
            span.set_attributes({"vision.model": record.model.name, "vision.provider": record.model.provider})
        if record.status >= 500 or not record.status:
            span.set_status(StatusCode.ERROR)

    def _add_stages(self, record: Record) -> None:
        from opentelemetry.trace import set_span_in_context

        below = set_span_in_context(self._span)
        for stage, start, end in record.timing.spans if record.timing is not None else ():
            child = self._tracer.start_span(stage, below, start_time=_nanoseconds(start + self._epoch))
            child.end(_nanoseconds(end + self._epoch))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
