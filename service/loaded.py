"""A model ready to answer: its manifest, its sessions on the chosen provider, and the lane that its runs queue in.

load() decides how the model runs (service.runtime.tuning: set, remembered, measured now, or the default), opens the graphs of
that precision, from their optimised forms where those are kept, and sizes the lane by the plan. The graph that explains a
classifier is opened when it is first asked for: most services never are.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from service.errors import DeviceUnavailable, InferenceFailed, SetupError, SpecInvalid
from service.repository.build import RECORD, damage, read_record
from service.repository.files import digest_of
from service.repository.maps import WINDOWS
from service.repository.parity import load_cases
from service.repository.spec import MAPS, ModelSpec, Precision
from service.repository.store import BuiltModel, build_folder
from service.repository.thresholds import THRESHOLD, read_calibrated
from service.runtime.machine import in_background, usable_cores
from service.runtime.optimized import Optimized
from service.runtime.providers import CPU, Choice
from service.runtime.remembered import Memory
from service.runtime.scheduler import Lane
from service.runtime.session import OrtSession, Session, Sizes
from service.runtime.tuning import Callers, Plan, Run, Tuning, default, options, tune
from service.settings import Settings
from service.tasks.face_embedding import method_of
from service.tasks.task import ModelInfo, Tensors, Timing

logger = logging.getLogger(__name__)

PAINTERS = frozenset({"stylize", "paint"})
"""Tasks that may take seconds, and so yield the cores to all others."""

CLASS_OUTPUTS = frozenset({"logits", "scores"})
"""Outputs whose last axis is one number a class, where the model has labels."""

DERIVED = 8
"""Derived graphs of one model that stay open while nobody uses them: two for each choice of layers."""

USUAL_SIZE = (480, 640)
"""Height and width that a model is measured at which takes pictures of any size."""


@dataclass
class LoadedModel:
    """Implements `service.tasks.task.Model`, and `service.tasks.optimize.Painter`.

    `folder` is where it was built; `note` why `provider` is not a faster one; `tuning` how it runs; `later` the graphs that are
    opened at their first run, which adds them to `sessions`; `lacks` what there is not, and why (see BuiltModel); `open_made` opens
    a graph that is made on the way.
    """

    spec: ModelSpec
    sessions: dict[str, Session]
    digest: str
    lane: Lane
    folder: Path = field(default_factory=Path)
    note: str | None = None
    tuning: Tuning = field(default_factory=lambda: Tuning(plan=Plan(), source="default"))
    warm: bool = False
    later: frozenset[str] = frozenset()
    lacks: Mapping[str, str] = field(default_factory=dict)
    open_made: Callable[[bytes], Session] = lambda graph: OrtSession(graph, Choice(CPU))
    labels: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.labels = self.spec.read_labels()
        self._derived: dict[str, int] = {}  # how many use each, the one that was taken last being last
        self._deriving = threading.Lock()

    @cached_property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name=self.spec.name,
            version=self.spec.version,
            digest=self.digest,
            provider=self.sessions["model"].provider,
            precision=self.spec.precision if self.tuning.plan.precision == "float32" else self.tuning.plan.precision,
        )

    @property
    def explains(self) -> bool:
        """Can it say where it looks?"""
        return MAPS in self.sessions or MAPS in self.later

    @property
    def slides(self) -> bool:
        """Can it look at larger pictures window by window?"""
        return self.explains and WINDOWS not in self.lacks

    def run(self, feeds: Tensors, timing: Timing, graph: str = "model") -> Tensors:
        """Run one graph through the lane; see the protocol."""
        done = self.lane.run(graph, feeds, timing.deadline)
        end = time.perf_counter()
        timing.add("queue", done.queue_ms, end - done.inference_ms / 1e3)
        timing.add("inference", done.inference_ms, end)
        timing.batch = max(timing.batch, done.batch)
        return done.outputs

    @contextmanager
    def derived(self, name: str, source: str, make: Callable[[Path], bytes]) -> Iterator[None]:
        """Have a graph `name` for run() inside, made of the file of the built graph `source`. Of those that nobody uses the DERIVED
        that were asked for last stay open."""
        with self._deriving:
            if name not in self._derived:
                self.sessions[name] = self.open_made(make(self.folder / f"{source}.onnx"))
            self._derived[name] = self._derived.pop(name, 0) + 1
        try:
            yield
        finally:
            with self._deriving:
                self._derived[name] -= 1
                for old in [idle for idle, users in self._derived.items() if not users][:-DERIVED]:
                    del self._derived[old], self.sessions[old]

    def warm_up(self) -> None:
        """Run every graph once on the stored parity input; nothing to do when that was done.

        Raises InferenceFailed when a number is not finite, SpecInvalid when the labels are not as many as the graph's classes.
        """
        cases = {} if self.warm else load_cases(self.spec)
        for graph, session in self.sessions.items() if cases else ():
            outputs = session.run(cases[graph].feeds)
            for name, tensor in outputs.items():
                if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                    raise InferenceFailed(f"{self.spec.name}: warm-up gave a {name!r} that is not finite")
                if self.labels and name in CLASS_OUTPUTS and tensor.shape[-1] != len(self.labels):
                    found = f"{len(self.labels)} labels for {tensor.shape[-1]} classes"
                    raise SpecInvalid(f"{self.spec.folder / str(self.spec.labels)}: {found}; one line a class is needed")
        self.warm = True

    def close(self) -> None:
        self.lane.close()


@dataclass(frozen=True)
class _Ways:
    """How a built model may run here: the plans that the settings leave, and where what is known about them is kept."""

    built: BuiltModel
    settings: Settings
    choice: Choice
    plans: list[Plan]
    note: str | None
    memory: Memory
    optimized: Optimized

    @classmethod
    def of(cls, built: BuiltModel, choice: Choice, settings: Settings) -> "_Ways":
        cores = settings.cores or usable_cores()
        plans, note = options(built.spec, list(built.variants), choice.provider, cores, settings)
        folders = tuple(dict.fromkeys((built.folder, build_folder(built.spec, settings))))
        try:
            build = digest_of(built.folder / RECORD)
        except OSError:  # built by hand: nothing says what it was built from
            build = None
        memory = Memory(folders, build, choice.provider, cores)
        return cls(built, settings, choice, plans, note, memory, Optimized(folders, build, choice))

    def known(self) -> Tuning | None:
        """The plan where none needs measuring."""
        settings = self.settings
        if len(self.plans) > 1 and settings.tune:
            found = self.memory.recall(self.plans)
        else:
            fixed = settings.precision != "auto" or settings.threads or settings.parallel or settings.batch
            found = Tuning(plan=default(self.plans, self.choice.provider), source="set" if fixed else "default")
        return None if found is None else self._noted(found)

    def find_out(self) -> Tuning:
        """The plan, measured where it is not known. What was opened for that is closed again: it has grown to the largest batch."""
        with self.memory.turn() as ours:
            found = self.known()
            if found is None and not ours:
                note = "another process was measuring for long; the next start measures again"
                return Tuning(plan=default(self.plans, self.choice.provider), source="default", note=note)
            if found is None:
                found = self._measure()
                self.memory.keep(self.plans, found)
            return self._noted(found)

    def graphs(self, precision: Precision) -> dict[str, Path]:
        """The graphs that are opened with the model."""
        others = {MAPS, *self.built.spec.export.kept}
        return {graph: path for graph, path in self.built.variants[precision].items() if graph not in others}

    def open(self, graph: str, precision: Precision, threads: int, found: Path | None = None) -> Session:
        """One graph. Threads of a painter, which may take seconds, give way to quick answers."""
        path, painter = self.built.variants[precision][graph], self.built.spec.task in PAINTERS
        sizes: Sizes = "huge" if painter or graph == MAPS else "some" if self.built.spec.input.size is None else "one"

        def make() -> OrtSession:
            return self.optimized.open(path, threads=threads, sizes=sizes, found=found)

        session = in_background(make) if painter else make()
        if self.settings.device == "cuda" and session.provider != self.choice.provider:
            text = f"{self.built.spec.name} was put on {session.provider}; `vision-service doctor` says more"
            raise DeviceUnavailable(f"VISION_DEVICE=cuda, but {text}")
        return session

    def open_later(self, graph: str, plan: Plan) -> Session:
        """A graph that was not opened at the start, in float32. Raises InferenceFailed where it is not the one that was built."""
        path, built = self.built.graphs[graph], self.built
        record = None if self.optimized.find(path) else read_record(built.spec, built.folder)
        damaged = None if record is None else damage(built.spec, built.folder, record, [graph])
        if damaged is not None:
            raise InferenceFailed(f"{damaged}; the next start builds it again")
        return self.open(graph, "float32", plan.threads)

    def open_made(self, graph: bytes, threads: int) -> Session:
        """A graph that was made on the way, by a painter."""
        return in_background(lambda: OrtSession(graph, self.choice, threads=threads, sizes="huge"))

    def _measure(self) -> Tuning:
        feeds = load_cases(self.built.spec)["model"].feeds
        opened: dict[tuple[Precision, int], Session] = {}

        def open_plan(plan: Plan) -> Run:
            key = (plan.precision, plan.threads)
            session = opened[key] = opened.get(key) or self.open("model", *key)
            sample = usual_feeds(self.built.spec, feeds, plan.batch)
            return lambda: session.run(sample)

        def measured(plans: list[Plan]) -> Tuning:
            with Callers(open_plan, self.choice.provider, self.memory.cores, plans) as callers:
                return tune(plans, self.choice.provider, callers.turn)

        try:
            return measured(self.plans)
        except SetupError:
            raise
        except Exception as error:  # whatever is wrong with a faster variant, the exact graph is the way out
            exact = [plan for plan in self.plans if plan.precision == "float32"]
            if len(exact) in {0, len(self.plans)}:
                raise
            note = f"only float32 was measured, another precision does not run here: {str(error).splitlines()[0]}"
            return measured(exact).model_copy(update={"note": note})

    def _noted(self, tuning: Tuning) -> Tuning:
        return tuning if self.note is None else tuning.model_copy(update={"note": self.note})


def usual_feeds(spec: ModelSpec, feeds: Tensors, batch: int) -> Tensors:
    """`feeds` with every picture [1, h, w, 3] repeated to the size that requests have, and everything to `batch` items."""
    height, width = spec.input.size or USUAL_SIZE

    def grown(tensor: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        one = tensor[:1]
        if one.ndim == 4 and one.dtype == np.uint8:
            one = np.take(np.take(one, range(height), axis=1, mode="wrap"), range(width), axis=2, mode="wrap")
        return np.ascontiguousarray(np.repeat(one, batch, axis=0))

    return {name: grown(tensor) for name, tensor in feeds.items()}


def load(built: BuiltModel, choice: Choice, settings: Settings) -> LoadedModel:
    """Open a built model's graphs on `choice`, in the way that is best here, measured now if no start has measured it yet.

    Raises SettingInvalid for a precision that cannot run here, and DeviceUnavailable when VISION_DEVICE=cuda and onnxruntime fell
    back to another provider.
    """
    ways = _Ways.of(built, choice, settings)
    tuning = ways.known() or ways.find_out()
    plan = tuning.plan
    sessions = {graph: ways.open(graph, plan.precision, plan.threads) for graph in ways.graphs(plan.precision)}
    return _assemble(ways, tuning, sessions)


def load_known(built: BuiltModel, choice: Choice, settings: Settings) -> LoadedModel | None:
    """The same where nothing needs measuring and every graph's optimised form is there and intact, else None.

    The graphs themselves are not read then, so `built` need not have been verified. Raises what load() raises.
    """
    ways = _Ways.of(built, choice, settings)
    tuning = ways.known()
    if tuning is None:
        return None
    plan = tuning.plan
    found = {graph: ways.optimized.find(path) for graph, path in ways.graphs(plan.precision).items()}
    if None in found.values():
        return None
    return _assemble(ways, tuning, {graph: ways.open(graph, plan.precision, plan.threads, path) for graph, path in found.items()})


def known_tuning(built: BuiltModel, choice: Choice, settings: Settings) -> Tuning | None:
    """How `built` would run, where that needs no measuring. Quick: opens nothing. Raises SettingInvalid as load() does."""
    return _Ways.of(built, choice, settings).known()


def tune_ahead(built: BuiltModel, choice: Choice, settings: Settings) -> Tuning:
    """Measure how `built` runs best, unless that is known: for a process that will start others, which would disturb each other."""
    ways = _Ways.of(built, choice, settings)
    return ways.known() or ways.find_out()


def _assemble(ways: _Ways, tuning: Tuning, sessions: dict[str, Session]) -> LoadedModel:
    spec, plan = _calibrated(ways.built), tuning.plan

    opening, later = threading.Lock(), frozenset(ways.built.graphs) - set(sessions)

    def run(graph: str, feeds: Tensors) -> Tensors:
        if graph not in sessions and graph in later:
            with opening:
                sessions[graph] = sessions.get(graph) or ways.open_later(graph, plan)
        return sessions[graph].run(feeds)

    lane = Lane(spec.name, run, workers=plan.parallel, queue_length=ways.settings.queue_length, max_batch=plan.batch)
    built, made = ways.built, partial(ways.open_made, threads=plan.threads)
    return LoadedModel(
        spec,
        sessions,
        built.digest,
        lane,
        built.folder,
        ways.choice.note,
        tuning,
        later=later,
        lacks=dict(built.lacks),
        open_made=made,
    )


def _calibrated(built: BuiltModel) -> ModelSpec:
    """The manifest, with the threshold that was calibrated on this machine where there is one that holds for the built model."""
    found = None if built.spec.threshold is None else read_calibrated(built.folder)
    if found is None:
        return built.spec
    different = found.differs(built.digest, method_of(built.spec))
    if different is not None:
        logger.warning("%s is ignored: %s; calibrate again", built.folder / THRESHOLD, different)
        return built.spec
    return built.spec.model_copy(update={"threshold": found.threshold})
