"""Which plans are tried, and which one is chosen: on made-up models whose speed is known."""

import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from service.errors import SettingInvalid
from service.repository.spec import ModelSpec, Precision, load_spec
from service.runtime.providers import CPU, CUDA
from service.runtime.tuning import BATCH_MARGIN, MARGIN, Callers, Measurement, Plan, choose, default, measure, options, tune
from service.settings import Settings

MODELS = Path(__file__).parents[2] / "models"
ONLY_FLOAT: tuple[Precision, ...] = ("float32",)
ALL: tuple[Precision, ...] = ("float32", "int8", "float16")


@pytest.fixture(scope="module")
def classifier() -> ModelSpec:
    """Batches of up to 16."""
    return load_spec(MODELS / "efficientnet-lite0")


def plans(*rows: tuple[Precision, int, int, int]) -> list[Plan]:
    return [Plan(precision=p, threads=t, parallel=n, batch=b) for p, t, n, b in rows]


F, Q, H = "float32", "int8", "float16"
TABLE: list[tuple[str, Sequence[Precision], str, int, dict[str, Any], list[tuple[Any, int, int, int]]]] = [
    ("one core", ONLY_FLOAT, CPU, 1, {}, [(F, 1, 1, 1), (F, 1, 1, 4)]),
    ("two cores", ONLY_FLOAT, CPU, 2, {"batch": 1}, [(F, 1, 2, 1), (F, 2, 1, 1)]),
    ("six cores", ONLY_FLOAT, CPU, 6, {"batch": 1}, [(F, 1, 6, 1), (F, 2, 3, 1), (F, 4, 1, 1), (F, 6, 1, 1)]),
    ("int8 is tried on a CPU", ALL, CPU, 1, {"batch": 1}, [(F, 1, 1, 1), (Q, 1, 1, 1)]),
    ("float16 is tried on a GPU", ALL, CUDA, 8, {"batch": 4}, [(F, 1, 1, 4), (H, 1, 1, 4)]),
    ("batches on a GPU", ONLY_FLOAT, CUDA, 8, {}, [(F, 1, 1, b) for b in (1, 2, 4, 8, 16)]),
    ("float is set", ALL, CPU, 1, {"precision": "float", "batch": 1}, [(F, 1, 1, 1)]),
    ("int8 is set", ALL, CPU, 2, {"precision": "int8", "batch": 1}, [(Q, 1, 2, 1), (Q, 2, 1, 1)]),
    ("float16 is set", ALL, CUDA, 2, {"precision": "float16", "batch": 2}, [(H, 1, 1, 2)]),
    ("threads are set", ONLY_FLOAT, CPU, 8, {"threads": 3, "batch": 1}, [(F, 3, 2, 1)]),
    ("threads over the cores", ONLY_FLOAT, CPU, 2, {"threads": 8, "batch": 1}, [(F, 8, 1, 1)]),
    ("parallel is set", ONLY_FLOAT, CPU, 8, {"parallel": 4, "batch": 1}, [(F, 1, 4, 1), (F, 2, 4, 1)]),
    ("parallel over the cores", ONLY_FLOAT, CPU, 2, {"parallel": 5, "batch": 1}, [(F, 1, 5, 1)]),
    ("parallel on a GPU", ONLY_FLOAT, CUDA, 2, {"parallel": 3, "batch": 8}, [(F, 1, 3, 8)]),
    ("all is set", ALL, CPU, 8, {"precision": "int8", "threads": 2, "parallel": 3, "batch": 32}, [(Q, 2, 3, 32)]),
]


@pytest.mark.parametrize(
    ("has", "provider", "cores", "settings", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_plans_worth_a_try(
    classifier: ModelSpec, has: Sequence[Precision], provider: str, cores: int, settings: dict[str, Any], expected: Any
) -> None:
    found, note = options(classifier, has, provider, cores, Settings(**settings))
    assert found == plans(*expected)
    assert note is None


@pytest.mark.parametrize(("provider", "threads"), [(CPU, 6), (CUDA, 1)])
def test_a_painter_takes_all_cores_for_one_picture(provider: str, threads: int) -> None:
    spec = load_spec(MODELS / "multistyle26")
    assert options(spec, ONLY_FLOAT, provider, 6, Settings())[0] == plans((F, threads, 1, 1))
    assert options(spec, ONLY_FLOAT, provider, 6, Settings(threads=2, parallel=4, batch=8))[0] == plans((F, 2, 1, 1))


@pytest.mark.parametrize(("precision", "provider"), [("int8", CPU), ("int8", CUDA), ("float16", CUDA)])
def test_a_precision_that_a_model_has_not_is_noted(classifier: ModelSpec, precision: Any, provider: str) -> None:
    found, note = options(classifier, ONLY_FLOAT, provider, 2, Settings(precision=precision, batch=1))
    assert {plan.precision for plan in found} == {"float32"}
    assert note == f"VISION_PRECISION={precision}, but this model has no {precision} graph"


def test_float16_on_a_cpu_is_refused_saying_what_is_right(classifier: ModelSpec) -> None:
    with pytest.raises(SettingInvalid, match=r"VISION_PRECISION=float16 needs a GPU.*set auto, float or int8"):
        options(classifier, ALL, CPU, 2, Settings(precision="float16"))


def test_the_default_is_exact_with_a_run_a_core_or_a_full_batch(classifier: ModelSpec) -> None:
    on_cpu, on_gpu = (options(classifier, ALL, provider, 4, Settings())[0] for provider in (CPU, CUDA))
    assert [default(on_cpu, CPU)] == plans((F, 1, 4, 1))
    assert [default(on_gpu, CUDA)] == plans((F, 1, 1, 16))


def measured(*rows: tuple[float, float]) -> list[Measurement]:
    """(throughput, latency_ms) by threads 1, 2, 3, ..."""
    return [Measurement(threads=n, throughput=fast, latency_ms=late) for n, (fast, late) in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("rows", "threads"),
    [
        ([(100, 20), (109, 10)], 1),  # within the margin: the preferred one
        ([(100, 20), (111, 10)], 2),
        ([(100, 20), (111, 10), (121, 10)], 2),  # of two near the best the preferred one
        ([(100, 99), (50, 10)], 1),  # ten times slower, but nobody feels it
        ([(100, 101), (50, 10)], 2),
        ([(10, 390), (5, 200)], 1),  # a slow machine: twice the fastest run is allowed
        ([(10, 410), (5, 200)], 2),
    ],
)
def test_throughput_counts_within_the_latency_bound(rows: list[tuple[float, float]], threads: int) -> None:
    assert choose(measured(*rows), MARGIN).threads == threads


class Machine:
    """Turns on a made-up machine: plans take `seconds(plan)` a run, plan.parallel of them side by side."""

    def __init__(self, seconds: Callable[[Plan], float]) -> None:
        self.seconds = seconds
        self.turns: list[tuple[Plan, int]] = []

    def turn(self, plan: Plan, runs: int) -> tuple[float, float]:
        self.turns.append((plan, runs))
        seconds = self.seconds(plan)
        return plan.parallel * plan.batch / seconds, seconds

    def count(self, plan: Plan) -> int:
        return sum(plan == each for each, _ in self.turns)


def test_plans_far_behind_are_dropped_but_the_preferred_one_may_have_been_unlucky() -> None:
    first, quick, slow = plans((F, 1, 1, 1), (F, 2, 1, 1), (F, 4, 1, 1))
    machine = Machine(lambda plan: 0.001 if plan == quick else 0.06)
    found = measure([first, quick, slow], machine.turn)
    assert [machine.count(plan) for plan in (first, quick, slow)] == [3, 3, 1]
    assert [(one.threads, one.latency_ms) for one in found] == [(1, 60), (2, 1), (4, 60)]


def test_turns_are_long_enough_to_be_measured_and_not_longer() -> None:
    for seconds, runs in ((0.0001, 16), (0.005, 3), (0.5, 1)):
        machine = Machine(lambda _, seconds=seconds: seconds)
        measure(plans((F, 1, 1, 1)), machine.turn)
        assert [length for _, length in machine.turns] == [1, runs, runs]


def test_the_best_turn_counts_and_more_are_taken_until_two_agree() -> None:
    times = iter([0.05, 0.03, 0.04, 0.02, 0.0201])
    machine = Machine(lambda _: next(times))
    (only,) = measure(plans((F, 1, 1, 1)), machine.turn)
    assert (only.latency_ms, only.throughput) == (20, 50)
    assert len(machine.turns) == 5


def test_turns_that_never_agree_end_in_time() -> None:
    numbers = count(1)

    def seconds(_: Plan) -> float:
        time.sleep(0.3)
        return 0.001 / 1.2 ** next(numbers)

    machine = Machine(seconds)
    measure(plans((F, 1, 1, 1), (F, 2, 1, 1)), machine.turn)
    assert len(machine.turns) <= 6


def test_precision_threads_and_batch_are_found(classifier: ModelSpec) -> None:
    """int8 is four times as fast, a second thread gains a quarter, and a batch takes as long as its pictures one by one."""
    wanted, _ = options(classifier, ALL, CPU, 2, Settings())
    machine = Machine(lambda plan: (0.01 if plan.precision == "int8" else 0.04) * plan.batch * (1.0, 0.8)[plan.threads - 1])
    found = tune(wanted, CPU, machine.turn)
    assert found.source == "measured"
    assert found.plan == Plan(precision="int8", threads=1, parallel=2, batch=1)
    (chosen,) = [one for one in found.measured if one.chosen]
    assert Plan(**chosen.model_dump(include=set(Plan.model_fields))) == found.plan
    assert [one.throughput for one in found.measured] == sorted((one.throughput for one in found.measured), reverse=True)
    assert {one.precision for one in found.measured} == {"float32", "int8"}
    assert all(one.precision == "int8" for one in found.measured if one.batch > 1)  # batches only of what was best


@pytest.mark.parametrize(("gain", "batch"), [(1.2, 1), (1.3, 4)])
def test_a_batch_on_a_cpu_must_gain_much(classifier: ModelSpec, gain: float, batch: int) -> None:
    wanted, _ = options(classifier, ONLY_FLOAT, CPU, 2, Settings())
    machine = Machine(lambda plan: 0.01 * plan.threads * (plan.batch / gain if plan.batch > 1 else 1))
    assert tune(wanted, CPU, machine.turn).plan.batch == batch


def test_on_a_gpu_the_smallest_batch_near_the_best_is_found(classifier: ModelSpec) -> None:
    """A run takes 8 ms up to a batch of 8, then doubles; half of that in float16."""
    wanted, _ = options(classifier, ALL, CUDA, 2, Settings())
    machine = Machine(lambda plan: 0.008 * max(1, plan.batch / 8) / (2 if plan.precision == "float16" else 1))
    assert [tune(wanted, CUDA, machine.turn).plan] == plans((H, 1, 1, 8))
    assert BATCH_MARGIN > MARGIN


@pytest.mark.parametrize(("provider", "parallel"), [(CPU, 1), (CPU, 3), (CUDA, 1), (CUDA, 2)])
def test_real_callers_share_the_runs_never_more_at_once_than_the_plan_says(provider: str, parallel: int) -> None:
    lock, now, most, opened = threading.Lock(), 0, 0, 0

    def open_plan(_: Plan) -> Callable[[], object]:
        nonlocal opened
        opened += 1

        def run() -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.002)
            with lock:
                now -= 1

        return run

    (plan,) = plans((F, 1, parallel, 2))
    with Callers(open_plan, provider, 4, [plan]) as real:
        for runs in (1, 3):
            throughput, seconds = real.turn(plan, runs)
            assert seconds >= 0.002
            assert 0 < throughput <= parallel * 2 / 0.002
    assert opened == 1
    assert most <= parallel
    assert (most > 1) == (parallel > 1)


def test_what_a_run_raises_reaches_the_one_who_measures() -> None:
    (plan,) = plans((F, 1, 1, 1))
    with Callers(lambda _: lambda: 1 // 0, CPU, 2, [plan]) as callers, pytest.raises(ZeroDivisionError):
        callers.turn(plan, 1)
