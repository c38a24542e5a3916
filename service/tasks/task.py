"""What all tasks share: how a model is run, how time is kept, and the parts that every answer carries."""

import time
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.repository.spec import ModelSpec, Precision

Pixels = NDArray[np.uint8]  # height x width x 3, RGB
Tensors = Mapping[str, NDArray[np.generic]]
Stage = Literal["decode", "preprocess", "queue", "inference", "postprocess"]
Span = tuple[Stage, float, float]


class Timing:
    """Milliseconds per stage of one request; a stage entered twice adds up. `deadline`: a time.perf_counter() moment, if any.

    `spans` are the stages with the time.perf_counter() moments of their begin and end; `batch` is the largest batch of a model's
    run that the request was part of.
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.deadline: float | None = None
        self.stages: dict[Stage, float] = dict.fromkeys(("decode", "preprocess", "queue", "inference", "postprocess"), 0.0)
        self.spans: list[Span] = []
        self.batch = 1

    def add(self, stage: Stage, milliseconds: float, end: float | None = None) -> None:
        """Count a stage that ended at the moment `end`, by default now."""
        end = time.perf_counter() if end is None else end
        self.stages[stage] += milliseconds
        self.spans.append((stage, end - milliseconds / 1e3, end))

    def waited(self, seconds: float, timeout: float) -> None:
        """Count time in a queue from before this clock was started, and give the request `timeout` seconds from there on."""
        self.add("queue", seconds * 1e3, self.started)
        self.started -= seconds
        self.deadline = self.started + timeout

    def again(self, *others: "Timing") -> "Timing":
        """A clock for one task on pictures that this clock and `others` saw decoded: it knows of decoding and waiting, and of no
        other task."""
        clock = Timing()
        clock.deadline = self.deadline
        clock.stages["queue"] = self.stages["queue"]
        clock.stages["decode"] = sum(timing.stages["decode"] for timing in (self, *others))
        clock.spans = [span for span in self.spans if span[0] == "queue"]
        clock.spans += [span for timing in (self, *others) for span in timing.spans if span[0] == "decode"]
        clock.started -= (clock.stages["queue"] + clock.stages["decode"]) / 1e3
        return clock

    def measure(self, stage: Stage) -> "_Stage":
        """Counts what happens inside `with` as `stage`."""
        return _Stage(self, stage)

    def report(self) -> "TimingMs":
        total = (time.perf_counter() - self.started) * 1e3
        report = TimingMs(**{stage: round(value, 3) for stage, value in self.stages.items()}, total=round(total, 3))
        object.__setattr__(report, "_clock", self)
        return report


class _Stage:
    """A context manager of few steps: a request enters several."""

    __slots__ = ("_begin", "_clock", "_stage")

    def __init__(self, clock: Timing, stage: Stage) -> None:
        self._clock, self._stage = clock, stage

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        end = time.perf_counter()
        self._clock.add(self._stage, (end - self._begin) * 1e3, end)


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


def run_all(pictures: Pixels, model: Model, timing: Timing, output: str) -> NDArray[np.generic]:
    """One output of the graph "model" for pictures [n, h, w, 3]: in one run, or one after the other where its batch is fixed."""
    adapter = model.spec.adapter
    if adapter is None or adapter.free_batch:
        return model.run({"pixels": pictures}, timing)[output]
    return np.concatenate([model.run({"pixels": picture[None]}, timing)[output] for picture in pictures])


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
    precision: Precision = Field(description="the arithmetic that it ran in")


class TimingMs(BaseModel):
    """Milliseconds. `total` also holds what lies between the stages."""

    __slots__ = ("_clock",)  # the Timing that this is the report of; as a pydantic field it would cost more than the rest

    decode: float
    preprocess: float
    queue: float
    inference: float
    postprocess: float
    total: float

    @property
    def spans(self) -> Sequence[Span]:
        """The stages with the moments of their begin and end; empty where this report comes from elsewhere."""
        clock: Timing | None = getattr(self, "_clock", None)
        return () if clock is None else clock.spans

    @property
    def batch(self) -> int:
        """The largest batch of a model's run that the request was part of."""
        clock: Timing | None = getattr(self, "_clock", None)
        return 1 if clock is None else clock.batch


class Answer(BaseModel):
    """What every JSON answer about one picture carries."""

    model: ModelInfo
    image: ImageInfo
    timing_ms: TimingMs
