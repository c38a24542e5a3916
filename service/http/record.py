"""What one request leaves behind: its line in the log, its part in the metrics, its span. Nothing of a picture, no query values."""

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from service.tasks.task import ModelInfo, TimingMs

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"  # stands for every path that no route has
NAMING = ("/subject", "/api/v1/", "/jobs/")  # paths that go on from here hold names of people, a key, or what is as good as one


@dataclass(slots=True)
class Record:
    """Filled in while the request goes on: routes call ran(), problems set `reason`, Access does the rest.

    `started`: a time.perf_counter() moment; `route`: the template of the path; `status`: 0 as long as nothing was sent; `reason`:
    the code of the problem that was answered; `trace_id`: 32 hexadecimal digits, the caller's or our own; `key`: the name of the
    key that was sent, never the key.
    """

    method: str
    path: str
    request_id: str
    started: float = field(default_factory=time.perf_counter)
    route: str = OTHER
    status: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    reason: str | None = None
    trace_id: str | None = None
    key: str | None = None
    task: str | None = None
    model: ModelInfo | None = None
    timing: TimingMs | None = None

    def ran(self, task: str, model: ModelInfo, timing: TimingMs) -> None:
        """A task was answered by `model`."""
        self.task, self.model, self.timing = task, model, timing

    def end(self, scope: Scope) -> None:
        """The request is over, whatever came of it."""
        self.seconds = time.perf_counter() - self.started
        self.route = getattr(scope.get("route"), "path", OTHER)
        self.path = _without_names(self.path, self.route)

    def fields(self) -> dict[str, Any]:
        """What the log says of it; what is not known is left out."""
        line: dict[str, Any] = {
            "method": self.method,
            "path": self.path,
            "route": self.route,
            "status": self.status,
            "ms": round(self.seconds * 1e3, 2),
            "request_id": self.request_id,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }
        if self.key is not None:
            line["key"] = self.key
        if self.model is not None and self.timing is not None:
            line |= {"model": self.model.name, "queue_ms": self.timing.queue, "inference_ms": self.timing.inference}
        if self.reason is not None:
            line["reason"] = self.reason
        if self.trace_id is not None:
            line["trace_id"] = self.trace_id
        return line


def _without_names(path: str, route: str) -> str:
    """`path`, but with the template in the place of what may name a person, and its beginning only where it leads to no route."""
    if route == OTHER:
        first, slash, _ = path[1:].partition("/")
        return f"/{first}/..." if slash else path
    naming = next((prefix for prefix in NAMING if route.startswith(prefix)), None)
    at = -1 if naming is None else path.lower().find(naming)
    return path[:at] + route if at >= 0 else path


def record_of(scope: Scope) -> Record:
    """The record of the request that `scope` belongs to; one that nobody reads where Access is not in front."""
    record = scope.get("state", {}).get("record")
    return record if isinstance(record, Record) else Record(scope.get("method", ""), scope.get("path", ""), "")
