"""What GET /metrics tells, and the one call by which a request that has ended is counted.

    Record -> Metrics.record -> Cells ... Metrics.page -> OpenMetrics or Prometheus text

Every label has few values: paths are templates of routes, methods and reasons come from short lists, models are our own names.
Nothing that a client has written is ever a label. docs/observability.md shows the table of families; a test keeps the two alike.
"""

import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prometheus_client import PlatformCollector, ProcessCollector, exposition
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from service import __version__
from service.http.cells import FOLDER, Cells, Key, Snapshot
from service.http.negotiation import choose
from service.http.record import METHODS, OTHER, Record
from service.tasks.task import TimingMs

SHORT = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075)
REQUEST_SECONDS = (*SHORT, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STAGE_SECONDS = (0.0001, 0.00025, 0.0005, *SHORT, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
FORMATS: dict[str, tuple[Callable[[Collector], bytes], str]] = {
    "text/plain": (exposition.generate_latest, exposition.CONTENT_TYPE_PLAIN_0_0_4),
    "application/openmetrics-text": (openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST),
}
STAGES = ("decode", "preprocess", "queue", "inference", "postprocess")
MODEL_LABELS = ("model", "version", "task", "provider", "precision", "threads", "parallel", "batch")


@dataclass(frozen=True)
class Family:
    """One metric: its name, what kind it is, its labels, and for a histogram the upper bounds of its buckets."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    labels: tuple[str, ...]
    help: str
    bounds: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Cells of one series: the buckets and the sum, or just the value."""
        return len(self.bounds) + 2 if self.bounds else 1


REQUESTS = Family("http_requests_total", "counter", ("method", "route", "status"), "Requests that have ended")
DURATION = Family(
    "http_request_duration_seconds", "histogram", ("route",), "From the request's head to the end of its answer", REQUEST_SECONDS
)
IN_FLIGHT = Family("http_requests_in_flight", "gauge", (), "Requests that have begun and not ended, in all workers")
BYTES_IN = Family("http_request_body_bytes_total", "counter", ("route",), "Bytes of request bodies that were read")
BYTES_OUT = Family("http_response_body_bytes_total", "counter", ("route",), "Bytes of response bodies that were sent")
REJECTED = Family("vision_rejected_total", "counter", ("reason",), "Requests answered with a problem, by its code")
STAGE = Family(
    "vision_stage_duration_seconds",
    "histogram",
    ("stage", "task", "model"),
    "Stages of requests that were answered: decode, preprocess, queue, inference, postprocess",
    STAGE_SECONDS,
)
BATCH = Family(
    "vision_batch_size", "histogram", ("model",), "Pictures in the model run that a request was part of; one a request", BATCH_SIZES
)
QUEUE = Family("vision_queue_length", "gauge", ("task",), "Requests that wait for their turn, in all workers")
JOBS = Family("vision_jobs", "gauge", ("state",), "Jobs that wait, run, or have ended and are kept, in all workers")
BUILD = Family("vision_build_info", "info", ("version",), "The service, always 1")
MODEL = Family("vision_model_info", "info", MODEL_LABELS, "A model that is loaded, and how it runs; always 1")

FAMILIES = (REQUESTS, DURATION, IN_FLIGHT, BYTES_IN, BYTES_OUT, REJECTED, STAGE, BATCH, QUEUE, JOBS, BUILD, MODEL)


class Metrics:
    """The numbers of this process, and the page that shows those of all. Everything but page() belongs to one thread.

    `folder`: shared with sibling workers (see service.http.cells); None where this process stands alone.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._cells = Cells(folder)
        self._cells.clear(family.name for family in FAMILIES if family.kind == "gauge")
        self._values = self._cells.values
        self._in_flight = self._place(IN_FLIGHT)
        self._of_request: dict[tuple[str, str, int], tuple[int, int, int, int]] = {}
        self._of_task: dict[tuple[str, str], tuple[int, list[int]]] = {}
        self._of_gauge: dict[tuple[str, str], int] = {}
        self._watched: list[tuple[Family, Callable[[], Mapping[str, int]]]] = []

    @property
    def worker(self) -> int:
        """The number of this process among its siblings, 0 where it has none."""
        return self._cells.worker

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Metrics":
        """Metrics that are shared where this process is one of several workers."""
        folder = (os.environ if environ is None else environ).get(FOLDER)
        return cls(Path(folder) if folder else None)

    def watch(self, counts: Callable[[], Mapping[str, int]], family: Family = QUEUE) -> None:
        """Show numbers by the only label of a gauge, such as the lengths of queues by task or its path: `counts` is asked whenever
        a request ends, and for every page."""
        self._watched.append((family, counts))

    def look(self) -> None:
        """Ask for what is watched."""
        for family, counts in self._watched:
            for label, number in counts().items():
                key = family.name, label
                if key not in self._of_gauge:
                    self._of_gauge[key] = self._place(family, label.strip("/"))
                self._values[self._of_gauge[key]] = number

    def begin(self) -> None:
        """A request has begun."""
        self._values[self._in_flight] += 1.0

    def reject(self, reason: str) -> None:
        """Something was refused, for `reason`, the code of a problem: a request, or what could not become one."""
        self._values[self._place(REJECTED, reason)] += 1.0

    def record(self, record: Record) -> None:
        """A request has ended."""
        values = self._values
        values[self._in_flight] -= 1.0
        key = record.method if record.method in METHODS else OTHER, record.route, record.status
        requests, bytes_in, bytes_out, duration = self._of_request.get(key) or self._places_of_request(*key)
        values[requests] += 1.0
        values[bytes_in] += record.bytes_in
        values[bytes_out] += record.bytes_out
        self._observe(DURATION, duration, record.seconds)
        if record.reason is not None:
            self.reject(record.reason)
        if record.task is not None and record.model is not None and record.timing is not None:
            self._record_task(record.task, record.model.name, record.timing)
        self.look()

    def _record_task(self, task: str, model: str, timing: TimingMs) -> None:
        batch, stages = self._of_task.get((task, model)) or self._places_of_task(task, model)
        self._observe(BATCH, batch, timing.batch)
        for stage, at in zip(STAGES, stages, strict=True):
            self._observe(STAGE, at, getattr(timing, stage) / 1e3)

    def _observe(self, family: Family, at: int, value: float) -> None:
        self._values[at + bisect_left(family.bounds, value)] += 1.0
        self._values[at + len(family.bounds) + 1] += value

    def _place(self, family: Family, *labels: str) -> int:
        return self._cells.block((family.name, *labels), family.size)

    def _places_of_request(self, method: str, route: str, status: int) -> tuple[int, int, int, int]:
        requests = self._place(REQUESTS, method, route, str(status))
        rest = self._place(BYTES_IN, route), self._place(BYTES_OUT, route), self._place(DURATION, route)
        self._of_request[method, route, status] = requests, *rest
        return requests, *rest

    def _places_of_task(self, task: str, model: str) -> tuple[int, list[int]]:
        places = self._place(BATCH, model), [self._place(STAGE, stage, task, model) for stage in STAGES]
        self._of_task[task, model] = places
        return places

    def page(self, accept: str, models: Iterable[Mapping[str, str]]) -> tuple[bytes, str]:
        """The page and its content type: OpenMetrics where `accept` prefers it, else Prometheus text.

        `models` are those loaded, each with MODEL_LABELS. Safe to call from any thread. Raises NotAcceptable.
        """
        snapshots = self._cells.snapshots()
        python = PlatformCollector(registry=None).collect()
        encode, media = FORMATS[choose(accept, tuple(FORMATS))]
        return encode(_Page([*_families(snapshots), _builds(), _models(models), *_processes(snapshots), *python])), media


class _Page:
    """Families that are made already, as prometheus_client takes them."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _families(snapshots: list[Snapshot]) -> Iterator[Metric]:
    """Sums over all workers; a gauge is that of the living."""
    for family in FAMILIES:
        sums: dict[Key, list[float]] = {}
        for snapshot in snapshots:
            if family.kind == "gauge" and snapshot.pid is None:
                continue
            for key, values in snapshot.blocks.items():
                if key[0] == family.name:
                    before = sums.get(key[1:], [0.0] * family.size)
                    sums[key[1:]] = [a + b for a, b in zip(before, values, strict=True)]
        if family.kind == "histogram":
            yield _histogram(family, sums)
        elif family.kind != "info":
            make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            shown = make(family.name, family.help, labels=family.labels)
            for labels, (value,) in sums.items():
                shown.add_metric(labels, value)
            yield shown


def _histogram(family: Family, sums: Mapping[Key, list[float]]) -> Metric:
    shown = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for labels, (*counts, total) in sums.items():
        buckets, below = [], 0.0
        for bound, count in zip((*family.bounds, math.inf), counts, strict=True):
            below += count
            buckets.append((str(bound) if bound < math.inf else "+Inf", below))
        shown.add_metric(labels, buckets, total)
    return shown


def _processes(snapshots: list[Snapshot]) -> list[Metric]:
    """RSS, CPU, open files and start time of each worker, by its number."""
    families: dict[str, Metric] = {}
    for snapshot in snapshots:
        if snapshot.pid is None:
            continue
        pid = snapshot.pid
        for found in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.add_sample(sample.name, {**sample.labels, "worker": str(snapshot.worker)}, sample.value)
    return list(families.values())


def _builds() -> Metric:
    return InfoMetricFamily(BUILD.name.removesuffix("_info"), BUILD.help, {"version": __version__})


def _models(models: Iterable[Mapping[str, str]]) -> Metric:
    shown = InfoMetricFamily(MODEL.name.removesuffix("_info"), MODEL.help, labels=MODEL.labels)
    for model in models:
        shown.add_metric([model[name] for name in MODEL.labels], {})
    return shown
