import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.errors import NotReady, QueueFull, QueueTimeout
from service.runtime.crew import Crew, Ticket


class Answers:
    """Collects what jobs come to; `order` are the names in the order in which they were answered."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.results: dict[str, tuple[Any, BaseException | None]] = {}
        self._changed = threading.Condition()

    def of(self, name: str) -> Callable[[Any, BaseException | None], None]:
        def done(result: Any, error: BaseException | None) -> None:
            with self._changed:
                self.order.append(name)
                self.results[name] = result, error
                self._changed.notify_all()

        return done

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.order) >= count, 10), self.order


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Jobs that wait for it are let go at the end of the test, whatever happened."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def make() -> Iterator[Callable[..., Crew]]:
    made: list[Crew] = []

    def make(threads: int = 1, **kind: Any) -> Crew:
        made.append(Crew(threads, **{"queue_length": 100, **kind}))
        return made[-1]

    yield make
    for crew in made:
        crew.close(5)


def occupy(crew: Crew, gate: threading.Event, answers: Answers) -> None:
    """Give the crew's one thread something to do until the gate opens."""
    began = threading.Event()

    def work() -> None:
        began.set()
        gate.wait(10)

    crew.submit("other", work, answers.of("blocker"))
    assert began.wait(5)


def test_a_job_is_answered_with_its_result_or_its_error(make: Callable[..., Crew], answers: Answers) -> None:
    crew = make(2)
    crew.submit("a", lambda: 7, answers.of("seven"))
    crew.submit("a", lambda: 1 / 0, answers.of("error"))
    answers.wait(2)
    assert answers.results["seven"] == (7, None)
    assert isinstance(answers.results["error"][1], ZeroDivisionError)


def test_a_flood_of_one_kind_delays_its_own_kind_only(make: Callable[..., Crew], gate: threading.Event, answers: Answers) -> None:
    crew = make()
    occupy(crew, gate, answers)
    for n in range(20):
        crew.submit("flood", lambda: time.sleep(0.002), answers.of(f"flood {n}"))
    crew.submit("single", lambda: None, answers.of("single"))
    gate.set()
    answers.wait(22)
    assert answers.order.index("single") <= 2
    assert [name for name in answers.order if name.startswith("flood")] == [f"flood {n}" for n in range(20)]


def test_kinds_share_seconds_not_jobs(make: Callable[..., Crew], gate: threading.Event, answers: Answers) -> None:
    crew = make()
    for kind, seconds in (("long", 0.02), ("short", 0.002)):  # what each kind takes is learnt from its first job
        crew.submit(kind, lambda seconds=seconds: time.sleep(seconds), answers.of(f"first {kind}"))
    answers.wait(2)
    occupy(crew, gate, answers)
    for n in range(8):
        crew.submit("long", lambda: time.sleep(0.02), answers.of(f"long {n}"))
    for n in range(30):
        crew.submit("short", lambda: time.sleep(0.002), answers.of(f"short {n}"))
    gate.set()
    answers.wait(41)
    before = answers.order[: answers.order.index("long 3")]
    assert sum(name.startswith("short ") for name in before) >= 9  # turn by turn it would be four


def test_each_kind_has_a_queue_of_its_own_and_its_length_is_known(
    make: Callable[..., Crew], gate: threading.Event, answers: Answers
) -> None:
    crew = make(queue_length=2)
    occupy(crew, gate, answers)
    for n in range(2):
        crew.submit("a", lambda: None, answers.of(f"a{n}"))
    for refuse in (lambda: crew.submit("a", lambda: None, answers.of("a2")), lambda: crew.check("a")):
        with pytest.raises(QueueFull):
            refuse()
    crew.check("b")
    crew.submit("b", lambda: None, answers.of("b"))
    assert crew.waiting() == {"other": 0, "a": 2, "b": 1}
    assert crew.running == 1
    gate.set()
    answers.wait(4)
    assert "a2" not in answers.order


def test_who_is_refused_learns_from_the_measured_rate_when_to_come_back(
    make: Callable[..., Crew], gate: threading.Event, answers: Answers
) -> None:
    crew = make(queue_length=10)
    crew.submit("a", lambda: time.sleep(0.3), answers.of("first"))
    answers.wait(1)
    occupy(crew, gate, answers)
    for n in range(10):
        crew.submit("a", lambda: None, answers.of(str(n)))
    with pytest.raises(QueueFull) as caught:
        crew.check("a")
    assert 3 <= caught.value.retry_after <= 6
    assert crew.expected_wait("a") == pytest.approx(caught.value.retry_after)


def test_what_could_only_wait_in_vain_is_refused_at_once(
    make: Callable[..., Crew], gate: threading.Event, answers: Answers
) -> None:
    crew = make(patience=0.5)
    crew.submit("a", lambda: time.sleep(0.2), answers.of("first"))
    answers.wait(1)
    occupy(crew, gate, answers)
    taken = 0
    while taken < 100:
        try:
            crew.submit("a", lambda: None, answers.of("waiting"))
        except QueueFull:
            break
        taken += 1
    assert 1 <= taken <= 4


def test_what_has_waited_in_vain_never_runs(make: Callable[..., Crew], gate: threading.Event, answers: Answers) -> None:
    crew, ran = make(patience=0.05), []
    occupy(crew, gate, answers)
    crew.submit("a", lambda: ran.append(1), answers.of("late"))
    time.sleep(0.1)
    gate.set()
    answers.wait(2)
    error = answers.results["late"][1]
    assert isinstance(error, QueueTimeout)
    assert error.retry_after >= 1
    assert ran == []


def test_a_dropped_job_never_runs_and_its_place_is_free_at_once(
    make: Callable[..., Crew], gate: threading.Event, answers: Answers
) -> None:
    crew, ran = make(queue_length=1), []
    occupy(crew, gate, answers)
    ticket: Ticket = crew.submit("a", lambda: ran.append(1), answers.of("dropped"))
    assert crew.drop(ticket)
    assert not crew.drop(ticket)
    crew.submit("a", lambda: ran.append(2), answers.of("taken"))
    gate.set()
    answers.wait(2)
    assert ran == [2]
    assert "dropped" not in answers.order


def test_no_more_jobs_run_at_once_than_there_are_threads_and_a_crew_can_grow(make: Callable[..., Crew], answers: Answers) -> None:
    crew, running, most, lock = make(2), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    for n in range(8):
        crew.submit("a", work, answers.of(str(n)))
    answers.wait(8)
    assert most == 2
    crew.grow(4)
    crew.grow(3)
    assert crew.threads == 4
    barrier = threading.Barrier(4)
    for n in range(4):
        crew.submit("a", lambda: barrier.wait(5), answers.of(f"together {n}"))
    answers.wait(12)
    assert all(error is None for _, error in answers.results.values())


def test_closing_answers_what_waits_and_lets_what_runs_end(
    make: Callable[..., Crew], gate: threading.Event, answers: Answers
) -> None:
    crew = make()
    occupy(crew, gate, answers)
    crew.submit("a", lambda: None, answers.of("waiting"))
    assert not crew.close(0.05)
    assert isinstance(answers.results["waiting"][1], NotReady)
    with pytest.raises(NotReady):
        crew.submit("a", lambda: None, answers.of("late"))
    gate.set()
    assert crew.close(5)
    assert answers.results["blocker"] == (None, None)


def test_a_nice_crew_yields_the_cores(make: Callable[..., Crew], answers: Answers) -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) if sys.platform == "linux" else 0

    make(nice=5).submit("a", priority, answers.of("nice"))
    make().submit("a", priority, answers.of("normal"))
    answers.wait(2)
    nice, normal = answers.results["nice"][0], answers.results["normal"][0]
    assert nice - normal == (min(5, 19 - normal) if sys.platform == "linux" else 0)
