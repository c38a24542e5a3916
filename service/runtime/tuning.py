"""How a model runs best on this machine: precision x threads x parallel runs x batch, measured once.

options()   every plan worth a try, in order of preference: exact arithmetic, few threads, small batches first
measure()   runs them in turns, many times, and keeps the best of each: what else the machine does slows single turns only;
            plans far behind are dropped early
choose()    of the plans within the latency bound, the first that comes near the highest throughput

As many callers as there are cores with one thread each usually win on a CPU, and batches on a GPU. Painters are not measured: a
painting is one long run, and all cores serve the one who waits for it.
"""

import hashlib
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from service.errors import SettingInvalid
from service.repository.spec import ModelSpec, Precision
from service.runtime.providers import CPU
from service.settings import Settings

TUNING_VERSION = 1
"""Goes up when the same machine would be measured or judged differently: what was remembered is then measured again."""

MARGIN = 1.10
"""What a plan must gain over one that is preferred to it: below that lies the noise."""

BATCH_MARGIN = 1.25
"""The same for a larger batch: pictures of one shape seldom arrive together, and each waits for all of its batch."""

LATENCY_BOUND_MS, LATENCY_RATIO = 100.0, 2.0
"""A run may take this long, or this many times the fastest measured, whichever is more: below 0.1 s nobody feels a difference."""

LEAST_ROUNDS, STEADY, LIMIT_SECONDS = 3, 0.95, 1.0
"""Plans in the race get LEAST_ROUNDS turns, and more until the best two of each agree; a stage takes LIMIT_SECONDS at most."""

TURN_SECONDS, LONGEST_TURN = 0.015, 16
"""One turn of a plan lasts about this long, and at most so many runs a caller."""

OTHER_WORK_SECONDS = 0.003
"""Of a core for each picture, between two runs: what decoding and resizing a photo of 0.3 megapixels takes."""

CPU_BATCH = 4
"""The batch tried on a CPU: where 4 gain nothing, more do not either."""

DROP = 0.5
"""Plans under this share of the best throughput are dropped after a round, but not the preferred one: a busy moment may be why."""


class Plan(BaseModel):
    """How one model is run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision = Field(default="float32", description="arithmetic of the graph")
    threads: int = Field(default=1, ge=1, description="threads inside one run")
    parallel: int = Field(default=1, ge=1, description="runs at the same time")
    batch: int = Field(default=1, ge=1, description="most pictures in one run")


class Measurement(Plan):
    """A plan with what it did here."""

    throughput: float = Field(description="pictures a second, all parallel runs together")
    latency_ms: float = Field(description="milliseconds of one run, with the others beside it")
    chosen: bool = False


class Tuning(BaseModel):
    """The plan that a model runs by, and where it comes from."""

    model_config = ConfigDict(frozen=True)

    plan: Plan
    source: Literal["measured", "remembered", "set", "default"] = Field(
        description="measured at this start, remembered from an earlier one, fixed by settings, or the default without measuring"
    )
    measured: tuple[Measurement, ...] = Field(default=(), description="every plan that was measured, the fastest first")
    note: str | None = Field(default=None, description="why it is not what the settings ask for, if so")


Run = Callable[[], object]
Open = Callable[[Plan], Run]
"""Opens what a plan needs and gives a function that runs one batch of it; several threads may call that at once."""

Turn = Callable[[Plan, int], tuple[float, float]]
"""Lets each caller run a plan so many times: (pictures a second, median seconds of a run)."""


def options(
    spec: ModelSpec, precisions: Sequence[Precision], provider: str, cores: int, settings: Settings
) -> tuple[list[Plan], str | None]:
    """Every plan worth a try, the most preferred first, and a note when the settings ask for what this model has not.

    precisions: those that it has graphs in. Raises SettingInvalid for float16 on a CPU.
    """
    on_cpu = provider == CPU
    tried, note = _precisions(precisions, on_cpu, settings)
    if spec.task in ("stylize", "paint"):
        all_cores = settings.threads or (cores if on_cpu else 1)
        return [Plan(precision=tried[0], threads=all_cores)], note
    within = max(1, cores // settings.parallel) if settings.parallel else cores
    threads = [settings.threads] if settings.threads else _doubling(within) if on_cpu else [1]
    most = spec.batching.max_batch
    batches = [settings.batch] if settings.batch else sorted({1, min(CPU_BATCH, most)}) if on_cpu else _doubling(most)
    plans = [
        Plan(precision=precision, threads=count, parallel=_parallel(count, cores, on_cpu, settings), batch=batch)
        for precision in tried
        for batch in batches
        for count in threads
    ]
    return plans, note


def _precisions(has: Sequence[Precision], on_cpu: bool, settings: Settings) -> tuple[list[Precision], str | None]:
    asked = settings.precision
    if asked == "float16" and on_cpu:
        raise SettingInvalid("VISION_PRECISION=float16 needs a GPU, and models run on the CPU here; set auto, float or int8")
    if asked == "auto":
        fast: Precision = "int8" if on_cpu else "float16"
        return ["float32", fast] if fast in has else ["float32"], None
    wanted: Precision = "float32" if asked == "float" else asked
    if wanted in has:
        return [wanted], None
    return ["float32"], f"VISION_PRECISION={asked}, but this model has no {asked} graph"


def _parallel(threads: int, cores: int, on_cpu: bool, settings: Settings) -> int:
    return settings.parallel or (max(1, cores // threads) if on_cpu else 1)


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... below `most`, and `most`."""
    return [*(2**n for n in range(most.bit_length()) if 2**n < most), most]


def default(plans: Sequence[Plan], provider: str) -> Plan:
    """The plan without measuring: the preferred one, on a GPU with the largest batch."""
    same = [plan for plan in plans if plan.precision == plans[0].precision]
    return plans[0] if provider == CPU else same[-1]


def tune(plans: Sequence[Plan], provider: str, turn: Turn) -> Tuning:
    """Measure `plans` and choose: first precision and threads, then, for the best of these, the batch.

    Batches differ little from precision to precision, so measuring every combination would only take longer. Raises what `turn`
    raises.
    """
    pilot = plans[0].batch if provider == CPU else plans[-1].batch
    found = measure([plan for plan in plans if plan.batch == pilot], turn)
    chosen = choose(found, MARGIN)
    same = [plan for plan in plans if plan.model_copy(update={"batch": pilot}) == _plain(chosen) and plan.batch != pilot]
    if same:
        others = measure(same, turn, chosen.throughput)
        found = [*found, *others]
        chosen = choose(sorted((chosen, *others), key=lambda one: one.batch), BATCH_MARGIN)
    ranked = sorted(found, key=lambda one: -one.throughput)
    measured = tuple(one.model_copy(update={"chosen": one is chosen}) for one in ranked)
    return Tuning(plan=_plain(chosen), source="measured", measured=measured)


def choose(found: Sequence[Measurement], margin: float) -> Measurement:
    """The first of the measured plans, given in order of preference, within `margin` of the best that the latency bound allows."""
    bound = max(LATENCY_BOUND_MS, LATENCY_RATIO * min(one.latency_ms for one in found))
    allowed = [one for one in found if one.latency_ms <= bound]
    best = max(one.throughput for one in allowed)
    return next(one for one in allowed if one.throughput * margin >= best)


def measure(plans: Sequence[Plan], turn: Turn, least: float = 0.0) -> list[Measurement]:
    """The best of several turns of each plan, in their order. The first turn, of one run a caller, is a warm-up as well.

    Plans far behind the best are dropped early, and so are those that do not reach `least` pictures a second in two turns; what
    was measured of them is kept.
    """
    turns: dict[Plan, list[tuple[float, float]]] = {plan: [] for plan in plans}
    racing, start = list(plans), time.perf_counter()
    for round_ in count(1):
        for plan in racing:
            runs = _runs_in_a_turn(min(seconds for _, seconds in turns[plan])) if turns[plan] else 1
            turns[plan].append(turn(plan, runs))
        best = {plan: max(each for each, _ in turns[plan]) for plan in plans}
        bar = max(DROP * max(best.values()), least if round_ > 1 else 0.0)
        racing = [plan for plan in racing if best[plan] >= bar or (plan == plans[0] and not least)]
        steady = round_ >= LEAST_ROUNDS and all(sorted(turns[plan])[-2][0] >= STEADY * best[plan] for plan in racing)
        if steady or not racing or time.perf_counter() - start >= LIMIT_SECONDS:
            break
    return [_best(plan, turns[plan]) for plan in plans]


class Callers:
    """Takes real turns. On a CPU there is a caller for each core, and each has other work to do for each picture, as in a service:
    that takes the core of a run's thread. On a GPU there are as many callers as runs at a time."""

    def __init__(self, open_plan: Open, provider: str, cores: int, plans: Sequence[Plan]) -> None:
        parallel = max(plan.parallel for plan in plans)
        self._open = open_plan
        self._callers = max(cores, parallel) if provider == CPU else parallel
        self._other_work = OTHER_WORK_SECONDS if provider == CPU else 0.0
        self._runs: dict[Plan, Run] = {}

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._callers, thread_name_prefix="tuning")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def turn(self, plan: Plan, runs: int) -> tuple[float, float]:
        """See Turn; never more than plan.parallel at a time. The first turn of a plan opens it. Raises what its run raises."""
        run = self._runs[plan] = self._runs.get(plan) or self._open(plan)
        slots, left, spent = threading.Semaphore(plan.parallel), iter(range(runs * self._callers)), list[float]()

        def call(_: int) -> None:
            for _ in left:  # shared: a caller whose core is busy elsewhere does fewer
                _other_work(plan.batch * self._other_work)
                with slots:
                    start = time.perf_counter()
                    run()
                    spent.append(time.perf_counter() - start)

        start = time.perf_counter()
        list(self._pool.map(call, range(self._callers)))
        return len(spent) * plan.batch / (time.perf_counter() - start), statistics.median(spent)


def _other_work(seconds: float) -> None:
    """Keep this thread's core busy, and no lock, for so many seconds of its own time."""
    end, data = time.thread_time() + seconds, bytes(2**16)
    while time.thread_time() < end:
        hashlib.sha256(data)


def _runs_in_a_turn(seconds: float) -> int:
    return max(1, min(LONGEST_TURN, round(TURN_SECONDS / max(seconds, 1e-6))))


def _best(plan: Plan, turns: Sequence[tuple[float, float]]) -> Measurement:
    throughput, seconds = max(each for each, _ in turns), min(each for _, each in turns)
    return Measurement(**plan.model_dump(), throughput=round(throughput, 2), latency_ms=round(seconds * 1e3, 2))


def _plain(measured: Measurement) -> Plan:
    return Plan(**measured.model_dump(include=set(Plan.model_fields)))
