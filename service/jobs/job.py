"""One job: what is told of it while it waits, runs and has ended, and to whom."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from service.errors import JobUnfinished, VisionError
from service.imaging.codec import encode
from service.tasks.optimize import Step
from service.tasks.painting import shrink
from service.tasks.task import ModelInfo, Pixels

Status = Literal["queued", "running", "done", "cancelled", "failed"]
PREVIEW_SECONDS = 1.0  # between two previews
PREVIEW_SIDE, PREVIEW_QUALITY = 256, 80
SMOOTHING = 0.2  # of the pace


class Painting(Protocol):
    """Steps that are computed as they are asked for, the model that computes them, None before the first, and close(), which ends
    it early."""

    @property
    def model(self) -> ModelInfo | None: ...
    def __iter__(self) -> Iterator[Step]: ...
    def close(self) -> None: ...


Work = Callable[[], Painting]
"""Begins a job; called on the job's own thread. Raises VisionError."""


@dataclass(frozen=True)
class View:
    """A job at one moment. `size`: width and height in pixels that it is painted at; `seconds_left`: by the pace of the last steps;
    `error`: why it failed, or who cancelled it where that was not its owner."""

    status: Status
    iterations: int
    size: tuple[int, int]
    iteration: int = 0
    losses: dict[str, float] | None = None
    seconds_left: float | None = None
    model: ModelInfo | None = None
    error: VisionError | None = None

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "running")


@dataclass(frozen=True)
class Preview:
    """What was painted at `iteration`, as a small JPEG."""

    iteration: int
    jpeg: bytes


class Job:
    """One piece of work. `view` and `preview` are replaced as a whole, so any thread may read them; `options` are its owner's."""

    def __init__(self, identity: str, kind: str, work: Work, options: Any, view: View, weight: int = 0) -> None:
        self.id, self.kind, self.options, self.weight = identity, kind, options, weight
        self.created = datetime.now(UTC)
        self.view = view
        self.preview: Preview | None = None
        self.began: float | None = None
        self.ended: float | None = None
        self._work: Work | None = work
        self._picture: Pixels | None = None
        self._lock = threading.Lock()
        self._listeners: set[Callable[[], None]] = set()
        self._pace = 0.0  # seconds for all of the work
        self._done = self._stepped = self._previewed = 0.0

    @property
    def seconds(self) -> float:
        """For which it has run."""
        began, ended = self.began, self.ended
        return 0.0 if began is None else (time.monotonic() if ended is None else ended) - began

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._listeners)

    @contextmanager
    def listen(self, wake: Callable[[], None]) -> Iterator[None]:
        """Calls `wake`, on any thread, whenever view or preview has changed; it must not wait for anything."""
        with self._lock:
            self._listeners.add(wake)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.discard(wake)

    def result(self) -> Pixels:
        """The painting, [h, w, 3]. Raises JobUnfinished."""
        picture, view = self._picture, self.view
        if picture is not None:
            return picture
        why = {"queued": "waits for its turn", "running": f"has made {view.iteration} of {view.iterations} iterations"}
        raise JobUnfinished(f"the job {why.get(view.status, f'was {view.status}' if view.status == 'cancelled' else 'has failed')}")

    # For Jobs only.

    def start(self) -> Painting | None:
        """Begin, and let go of what the job is made from; None where it has been cancelled. Raises what its work raises."""
        work, self._work = self._work, None

        def begun(view: View) -> View:
            self.began = self._stepped = time.monotonic()
            return replace(view, status="running")

        return work() if self._change(begun) and work is not None else None

    def advance(self, step: Step, model: ModelInfo | None = None) -> bool:
        """A step was made, by `model`. False: the job has been cancelled, make no more."""
        now = time.monotonic()
        share, spent = step.done - self._done, now - self._stepped
        self._done, self._stepped = step.done, now
        if share > 0:
            self._pace += (spent / share - self._pace) * (SMOOTHING if self._pace else 1.0)
        losses = {name: float(getattr(step, name)) for name in ("content", "style", "variation", "total")}
        left = (1 - step.done) * self._pace
        if self._listeners and now - self._previewed >= PREVIEW_SECONDS:
            self._previewed = now
            small = shrink(step.picture(), PREVIEW_SIDE)
            self.preview = Preview(step.iteration, encode(small, "jpeg", PREVIEW_QUALITY))

        def made(view: View) -> View:
            told = replace(view, iteration=step.iteration, iterations=step.iterations, size=(step.width, step.height))
            return replace(told, losses=losses, seconds_left=left, model=model)

        return self._change(made)

    def end(self, status: Status, picture: Pixels | None = None, error: VisionError | None = None) -> bool:
        """False where it has ended before."""
        self._work = None

        def ended(view: View) -> View:
            self.ended, self._picture = time.monotonic(), picture
            size = view.size if picture is None else (picture.shape[1], picture.shape[0])
            return replace(view, status=status, size=size, seconds_left=None, error=error)

        return self._change(ended)

    def _change(self, new: Callable[[View], View]) -> bool:
        with self._lock:
            if self.view.ended:
                return False
            self.view = new(self.view)
            listeners = tuple(self._listeners)
        for wake in listeners:
            wake()
        return True
