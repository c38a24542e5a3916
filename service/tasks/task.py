"""What all tasks share: how a model is run, how time is kept, and the parts that every answer carries."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.repository.spec import ModelSpec

Pixels = NDArray[np.uint8]  # height x width x 3, RGB
Tensors = Mapping[str, NDArray[np.generic]]
Stage = Literal["decode", "preprocess", "queue", "inference", "postprocess"]


class Timing:
    """Milliseconds per stage of one request; a stage entered twice adds up. `deadline`: a time.perf_counter() moment, if any."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.deadline: float | None = None
        self.stages: dict[Stage, float] = dict.fromkeys(("decode", "preprocess", "queue", "inference", "postprocess"), 0.0)

    def add(self, stage: Stage, milliseconds: float) -> None:
        self.stages[stage] += milliseconds

    def waited(self, seconds: float, timeout: float) -> None:
        """Count time in a queue from before this clock was started, and give the request `timeout` seconds from there on."""
        self.add("queue", seconds * 1e3)
        self.started -= seconds
        self.deadline = self.started + timeout

    def again(self, *others: "Timing") -> "Timing":
        """A clock for one task on pictures that this clock and `others` saw decoded: it knows of decoding and waiting, and of no
        other task."""
        clock = Timing()
        clock.deadline = self.deadline
        clock.add("queue", self.stages["queue"])
        clock.add("decode", sum(timing.stages["decode"] for timing in (self, *others)))
        clock.started -= (clock.stages["queue"] + clock.stages["decode"]) / 1e3
        return clock

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, (time.perf_counter() - start) * 1e3)

    def report(self) -> "TimingMs":
        total = (time.perf_counter() - self.started) * 1e3
        return TimingMs(**{stage: round(value, 3) for stage, value in self.stages.items()}, total=round(total, 3))


class Model(Protocol):
    """A loaded model as tasks see it: its manifest, its labels, and a way to run it."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def run(self, feeds: Tensors, timing: Timing, graph: str = "model") -> Tensors:
        """Run one graph on `feeds` (each with a leading batch dimension); outputs by name.

        Adds "queue" and "inference" to `timing`. Raises QueueFull, DeadlineExceeded, InferenceFailed.
        """
        ...


class Strict(BaseModel):
    """Base of all options: unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def in_pixels(values: NDArray[np.floating]) -> list[float]:
    """Coordinates [n] as an answer shows them: to a hundredth of a pixel, which is finer than any model is."""
    return values.astype(np.float64).round(2).tolist()  # type: ignore[no-any-return]


class Box(BaseModel):
    """Corners in pixels of the upright picture, clipped to it."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


class Point(BaseModel):
    """Pixels of the upright picture; may lie outside it."""

    x: float
    y: float


class ImageInfo(BaseModel):
    width: int = Field(description="pixels, after EXIF orientation")
    height: int = Field(description="pixels, after EXIF orientation")


class ModelInfo(BaseModel):
    name: str
    version: str
    digest: str = Field(description="SHA-256 of the weights, of the first file where there are several")
    provider: str = Field(description="the execution provider that really ran")


class TimingMs(BaseModel):
    """Milliseconds. `total` also holds what lies between the stages."""

    decode: float
    preprocess: float
    queue: float
    inference: float
    postprocess: float
    total: float


class Answer(BaseModel):
    """What every JSON answer about one picture carries."""

    model: ModelInfo
    image: ImageInfo
    timing_ms: TimingMs
