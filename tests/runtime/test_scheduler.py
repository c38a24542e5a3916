import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from service.errors import DeadlineExceeded, InferenceFailed, NotReady, QueueFull
from service.runtime.scheduler import Lane
from service.runtime.session import Tensors


def double(graph: str, feeds: Tensors) -> Tensors:
    return {"y": feeds["x"] * 2}


def feeds(*values: float) -> Tensors:
    return {"x": np.array(values, np.float32)[:, None]}


class Gate:
    """A run function that waits until it is opened, and remembers the batches it saw."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[int] = []

    def __call__(self, graph: str, given: Tensors) -> Tensors:
        self.entered.set()
        assert self.open.wait(5)
        self.batches.append(len(given["x"]))
        return double(graph, given)


@contextmanager
def lane_of(run: object, **kind: int) -> Iterator[Lane]:
    lane = Lane("test", run, **{"workers": 1, "queue_length": 8, **kind})
    try:
        yield lane
    finally:
        if isinstance(run, Gate):
            run.open.set()
        lane.close()


def test_answers_carry_outputs_and_times() -> None:
    with lane_of(double) as lane:
        done = lane.submit("model", feeds(1, 2)).result(5)
    np.testing.assert_array_equal(done.outputs["y"].ravel(), [2, 4])
    assert done.queue_ms >= 0
    assert done.inference_ms > 0
    assert done.batch == 2


def test_waiting_jobs_of_one_shape_become_one_batch_and_each_gets_its_own_rows() -> None:
    gate = Gate()
    with lane_of(gate, max_batch=4) as lane:
        first = lane.submit("model", feeds(0))
        assert gate.entered.wait(5)
        rest = [lane.submit("model", feeds(*row)) for row in ([1], [2, 3], [4], [5])]
        gate.open.set()
        answers = [future.result(5).outputs["y"].ravel().tolist() for future in [first, *rest]]
    assert answers == [[0], [2], [4, 6], [8], [10]]
    assert gate.batches == [1, 4, 1]


def test_other_shapes_and_other_graphs_are_not_mixed_into_a_batch() -> None:
    gate = Gate()
    with lane_of(gate, max_batch=8) as lane:
        lane.submit("model", feeds(0))
        assert gate.entered.wait(5)
        wide = {"x": np.ones((1, 2), np.float32)}
        futures = [lane.submit("model", feeds(1)), lane.submit("model", wide), lane.submit("other", feeds(1))]
        gate.open.set()
        assert [future.result(5).outputs["y"].shape for future in futures] == [(1, 1), (1, 2), (1, 1)]
    assert gate.batches == [1, 1, 1, 1]


def test_a_bad_item_fails_alone() -> None:
    def fragile(graph: str, given: Tensors) -> Tensors:
        if (given["x"] < 0).any():
            raise ValueError("negative")
        if len(given["x"]) == 1 and given["x"][0, 0] == 0:
            time.sleep(0.2)
        return double(graph, given)

    with lane_of(fragile, max_batch=8) as lane:
        futures = [lane.submit("model", feeds(value)) for value in (0, 1, -1, 3)]
        assert futures[1].result(5).outputs["y"].item() == 2
        with pytest.raises(InferenceFailed, match="ValueError: negative"):
            futures[2].result(5)
        assert futures[3].result(5).outputs["y"].item() == 6


def test_a_batch_that_loses_a_result_is_run_again_item_by_item() -> None:
    gate = Gate()

    def forgetful(graph: str, given: Tensors) -> Tensors:
        full = gate(graph, given)["y"]
        return {"y": full[:-1] if len(full) > 1 else full}

    with lane_of(forgetful, max_batch=8) as lane:
        futures = [lane.submit("model", feeds(0))]
        assert gate.entered.wait(5)
        futures += [lane.submit("model", feeds(value)) for value in (1, 2)]
        gate.open.set()
        assert [future.result(5).outputs["y"].item() for future in futures] == [0, 2, 4]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    gate = Gate()
    with lane_of(gate, queue_length=2) as lane:
        running = lane.submit("model", feeds(0))
        assert gate.entered.wait(5)
        waiting = [lane.submit("model", feeds(1)) for _ in range(2)]
        start = time.perf_counter()
        with pytest.raises(QueueFull) as refused:
            lane.submit("model", feeds(2))
        assert time.perf_counter() - start < 0.5
        assert refused.value.retry_after >= 1
        gate.open.set()
        assert all(future.result(5) for future in [running, *waiting])


def test_work_whose_time_is_up_or_whose_caller_has_gone_never_runs() -> None:
    gate = Gate()
    with lane_of(gate) as lane:
        lane.submit("model", feeds(0))
        assert gate.entered.wait(5)
        late = lane.submit("model", feeds(1), deadline=time.perf_counter() - 1)
        gone = lane.submit("model", feeds(2))
        assert gone.cancel()
        last = lane.submit("model", feeds(3))
        gate.open.set()
        assert last.result(5).outputs["y"].item() == 6
        with pytest.raises(DeadlineExceeded):
            late.result(5)
    assert gate.batches == [1, 1]


def test_workers_run_side_by_side() -> None:
    together = threading.Barrier(2, timeout=5)

    def meet(graph: str, given: Tensors) -> Tensors:
        together.wait()
        return double(graph, given)

    with lane_of(meet, workers=2) as lane:
        futures = [lane.submit("model", feeds(value)) for value in (1, 2)]
        assert [future.result(5).outputs["y"].item() for future in futures] == [2, 4]


def test_closing_finishes_what_runs_and_answers_the_rest() -> None:
    gate = Gate()
    lane = Lane("test", gate, workers=1, queue_length=8)
    running = lane.submit("model", feeds(1))
    assert gate.entered.wait(5)
    waiting = lane.submit("model", feeds(2))
    closer = threading.Thread(target=lane.close)
    closer.start()
    with pytest.raises(NotReady):
        waiting.result(5)
    gate.open.set()
    assert running.result(5).outputs["y"].item() == 2
    closer.join(5)
    assert not closer.is_alive()
    with pytest.raises(NotReady):
        lane.submit("model", feeds(3))


def test_run_uses_the_callers_thread_where_a_slot_is_free() -> None:
    threads: list[str] = []

    def note(graph: str, given: Tensors) -> Tensors:
        threads.append(threading.current_thread().name)
        return double(graph, given)

    with lane_of(note) as lane:
        done = lane.run("model", feeds(3))
    assert done.outputs["y"].item() == 6
    assert done.queue_ms < 50
    assert threads == [threading.current_thread().name]


def test_run_waits_its_turn_where_all_slots_are_taken_and_never_runs_more_at_once() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def count(graph: str, given: Tensors) -> Tensors:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return double(graph, given)

    answers: list[float] = []
    with lane_of(count, workers=2, queue_length=64) as lane:
        callers = [
            threading.Thread(target=lambda n=n: answers.append(lane.run("model", feeds(n)).outputs["y"].item())) for n in range(12)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(10)
    assert sorted(answers) == [2 * n for n in range(12)]
    assert most == 2


def test_run_raises_what_went_wrong_and_when_time_is_up() -> None:
    def fail(graph: str, given: Tensors) -> Tensors:
        raise ValueError("broken")

    with lane_of(fail) as lane, pytest.raises(InferenceFailed, match="broken"):
        lane.run("model", feeds(1))
    gate = Gate()
    with lane_of(gate) as lane:
        lane.submit("model", feeds(0))
        assert gate.entered.wait(5)
        with pytest.raises(DeadlineExceeded):
            lane.run("model", feeds(1), deadline=time.perf_counter() + 0.05)
    assert gate.batches == [1]


def test_run_keeps_to_the_deadline_where_a_slot_is_free_too() -> None:
    gate = Gate()
    gate.open.set()
    with lane_of(gate) as lane, pytest.raises(DeadlineExceeded):
        lane.run("model", feeds(1), deadline=time.perf_counter() - 1)
    assert gate.batches == []


def test_who_gives_up_leaves_the_queue() -> None:
    gate = Gate()
    with lane_of(gate, queue_length=1) as lane:
        running = lane.submit("model", feeds(0))
        assert gate.entered.wait(5)
        for _ in range(3):
            with pytest.raises(DeadlineExceeded):
                lane.run("model", feeds(1), deadline=time.perf_counter() + 0.02)
        gate.open.set()
        assert running.result(5)


def test_closing_waits_for_a_run_on_a_callers_thread() -> None:
    gate = Gate()
    lane = Lane("test", gate, workers=1, queue_length=8)
    answers: list[float] = []
    caller = threading.Thread(target=lambda: answers.append(lane.run("model", feeds(4)).outputs["y"].item()))
    caller.start()
    assert gate.entered.wait(5)
    closer = threading.Thread(target=lane.close)
    closer.start()
    closer.join(0.1)
    assert closer.is_alive()
    gate.open.set()
    closer.join(5)
    caller.join(5)
    assert not closer.is_alive()
    assert answers == [8]
