"""Jobs on paintings that are made up: what runs when, what is told of it, and how it ends."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from service.errors import (
    DeadlineExceeded,
    ImageDamaged,
    InferenceFailed,
    JobUnfinished,
    JobUnknown,
    NotReady,
    QueueFull,
    VisionError,
)
from service.imaging.codec import decode
from service.jobs import Job, Jobs
from service.tasks.task import ModelInfo, Pixels

MODEL = ModelInfo(name="fake", version="1", digest="ab" * 32, provider="CPUExecutionProvider", precision="float32")
SIZE = 300, 200


@dataclass(frozen=True)
class Step:
    iteration: int
    iterations: int
    height: int = SIZE[1]
    width: int = SIZE[0]
    content: float = 1.5
    style: float = 2.5
    variation: float = 0.25
    total: float = 4.25

    @property
    def done(self) -> float:
        return self.iteration / self.iterations

    def picture(self) -> Pixels:
        return np.full((self.height, self.width, 3), self.iteration, np.uint8)


class FakePainting:
    """`before(n)` is called on the job's thread before iteration n is done."""

    model = MODEL

    def __init__(self, iterations: int = 3, before: Callable[[int], object] = lambda _: None) -> None:
        self._iterations, self._before = iterations, before
        self.made, self.closed, self.nice = 0, False, False

    def __call__(self) -> "FakePainting":
        return self

    def __iter__(self) -> Iterator[Step]:
        for number in range(1, self._iterations + 1):
            self._before(number)
            self.made = number
            yield Step(number, self._iterations)

    def close(self) -> None:
        self.closed = True


class Held(FakePainting):
    """Makes one iteration each time that it is let."""

    def __init__(self, iterations: int = 3) -> None:
        self.turns = threading.Semaphore(0)
        super().__init__(iterations, lambda _: self.turns.acquire(timeout=20))

    def let(self, steps: int = 1) -> None:
        self.turns.release(steps)


@pytest.fixture
def make() -> Iterator[Callable[..., Jobs]]:
    made: list[Jobs] = []

    def make_(**given: Any) -> Jobs:
        made.append(Jobs(**given))
        return made[-1]

    yield make_
    for jobs in made:
        jobs.close(0.0)


def submit(jobs: Jobs, work: Any = None, weight: int = 0) -> Job:
    work = FakePainting() if work is None else work
    return jobs.submit("stylize/optimize", work, None, iterations=3, size=SIZE, weight=weight)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def ended(job: Job) -> Callable[[], bool]:
    return lambda: job.view.ended


def test_a_job_runs_to_its_end_and_keeps_its_last_picture(make: Any) -> None:
    jobs, painting = make(), FakePainting(5)
    job = submit(jobs, painting)
    until(ended(job))
    assert (job.view.status, job.view.iteration, job.view.iterations, job.view.model) == ("done", 5, 5, MODEL)
    assert job.view.losses == {"content": 1.5, "style": 2.5, "variation": 0.25, "total": 4.25}
    assert job.view.seconds_left is None
    assert job.result().shape == (200, 300, 3)
    assert int(job.result()[0, 0, 0]) == 5
    assert painting.closed
    assert 0 < job.seconds < 10


def test_ids_cannot_be_guessed_and_carry_the_prefix(make: Any) -> None:
    jobs = make(prefix="3.")
    ids = [submit(jobs).id for _ in range(8)]
    assert len(set(ids)) == 8
    assert all(identity.startswith("3.") and len(identity) == 2 + 22 for identity in ids)


def test_a_waiting_job_is_of_the_size_and_length_that_it_was_given(make: Any) -> None:
    jobs, held = make(), Held()
    submit(jobs, held)
    waiting = submit(jobs)
    assert (waiting.view.status, waiting.view.size, waiting.view.iterations, waiting.seconds) == ("queued", SIZE, 3, 0.0)
    held.let(3)
    until(ended(waiting))
    assert waiting.view.status == "done"


def test_jobs_run_in_the_order_in_which_they_came(make: Any) -> None:
    jobs, order, held = make(), list[int](), Held(1)
    first = submit(jobs, held)
    later = [submit(jobs, FakePainting(1, lambda _, number=number: order.append(number))) for number in range(5)]
    held.let()
    for job in (first, *later):
        until(ended(job))
    assert order == [0, 1, 2, 3, 4]


def test_only_so_many_run_at_once(make: Any) -> None:
    jobs, held = make(running=2), [Held(1) for _ in range(3)]
    started = [submit(jobs, painting) for painting in held]
    until(lambda: jobs.counts()["running"] == 2)
    time.sleep(0.05)
    assert jobs.counts() == {"queued": 1, "running": 2, "done": 0, "cancelled": 0, "failed": 0}
    for painting in held:
        painting.let()
    for job in started:
        until(ended(job))


def test_more_than_may_wait_are_refused_with_the_seconds_to_come_back_after(make: Any) -> None:
    jobs, held = make(waiting=2), Held(100)
    running = submit(jobs, held)
    held.let(10)
    until(lambda: running.view.iteration == 10)
    waiting = [submit(jobs) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 jobs are waiting") as caught:
        jobs.check()
    assert 1 <= caught.value.retry_after <= 60
    with pytest.raises(QueueFull):
        submit(jobs)
    jobs.drop(waiting[0].id)
    submit(jobs)


def test_none_may_wait_but_one_may_run(make: Any) -> None:
    jobs, held = make(waiting=0), Held(1)
    job = submit(jobs, held)
    with pytest.raises(QueueFull):
        submit(jobs)
    held.let()
    until(ended(job))
    until(lambda: jobs._busy == 0)
    until(ended(submit(jobs)))


def test_what_waits_has_a_budget_which_ends_when_it_runs(make: Any) -> None:
    jobs, held, other = make(budget=100), Held(1), Held(1)
    submit(jobs, held, weight=100)
    until(lambda: jobs.counts()["running"] == 1)
    second = submit(jobs, other, weight=80)
    with pytest.raises(QueueFull, match="memory"):
        submit(jobs, weight=30)
    submit(jobs, weight=20)
    held.let()
    until(lambda: second.view.status == "running")
    submit(jobs, weight=60)


def test_what_a_job_is_made_from_is_let_go_when_it_begins(make: Any) -> None:
    class Photo:
        gone = False

        def __del__(self) -> None:
            Photo.gone = True

    photo, held = Photo(), Held(1)

    def work(photo: Photo = photo) -> Held:
        return held

    job = submit(make(), work)
    del photo, work
    until(lambda: job.view.status == "running")
    until(lambda: Photo.gone)
    assert not job.view.ended


def test_a_running_job_is_cancelled_within_one_iteration(make: Any) -> None:
    jobs, held = make(), Held(100)
    job = submit(jobs, held)
    held.let(2)
    until(lambda: job.view.iteration == 2)
    assert jobs.drop(job.id).view.status == "cancelled"
    held.let(5)
    until(lambda: held.closed)
    assert held.made == 3  # the iteration that was under way
    assert job.view.iteration == 2
    with pytest.raises(JobUnfinished, match="was cancelled"):
        job.result()
    until(ended(submit(jobs)))


def test_a_waiting_job_that_is_cancelled_never_begins(make: Any) -> None:
    jobs, held, never = make(), Held(1), FakePainting()
    first = submit(jobs, held)
    job = submit(jobs, never)
    jobs.drop(job.id)
    held.let()
    until(ended(first))
    until(ended(submit(jobs)))
    assert (job.view.status, job.seconds, never.made) == ("cancelled", 0.0, 0)


def test_to_drop_an_ended_job_forgets_it(make: Any) -> None:
    jobs = make()
    job = submit(jobs)
    until(ended(job))
    assert jobs.drop(job.id).view.status == "done"
    with pytest.raises(JobUnknown):
        jobs.get(job.id)
    with pytest.raises(JobUnknown):
        jobs.drop(job.id)


def test_a_job_that_takes_too_long_fails_and_says_how_far_it_came(make: Any) -> None:
    jobs = make(seconds=0.05)
    job = submit(jobs, FakePainting(1000, lambda _: time.sleep(0.02)))
    until(ended(job))
    assert job.view.status == "failed"
    assert isinstance(job.view.error, DeadlineExceeded)
    assert "of 1000 iterations were made in the 0.05 seconds" in str(job.view.error)


def test_the_last_iteration_may_end_a_little_late(make: Any) -> None:
    job = submit(make(seconds=0.01), FakePainting(1, lambda _: time.sleep(0.05)))
    until(ended(job))
    assert job.view.status == "done"


def test_an_error_of_the_painting_is_the_job_s(make: Any) -> None:
    def broken() -> Any:
        raise ImageDamaged("the JPEG ends before its last line")

    jobs = make()
    job = submit(jobs, broken)
    until(ended(job))
    assert job.view.status == "failed"
    assert isinstance(job.view.error, ImageDamaged)
    assert job.view.error.__traceback__ is None
    with pytest.raises(JobUnfinished, match="has failed"):
        job.result()
    until(ended(submit(jobs)))


def test_a_fault_of_the_model_is_logged(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Any:
        raise InferenceFailed("out of memory")

    job = submit(make(), broken)
    until(ended(job))
    assert isinstance(job.view.error, InferenceFailed)
    assert "out of memory" in caplog.text


def test_a_fault_is_logged_and_not_told(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    job = submit(make(), FakePainting(3, lambda number: 1 // (number - 2)))
    until(ended(job))
    assert type(job.view.error) is VisionError
    assert str(job.view.error) == ""
    assert "ZeroDivisionError" in caplog.text


def test_a_painting_without_steps_has_failed(make: Any) -> None:
    job = submit(make(), FakePainting(0))
    until(ended(job))
    assert job.view.status == "failed"


def test_no_more_are_kept_than_allowed_the_oldest_go_first(make: Any) -> None:
    jobs = make(kept=2)
    made = [submit(jobs) for _ in range(4)]
    for job in made:
        until(ended(job))
    for job in made[:2]:
        with pytest.raises(JobUnknown):
            jobs.get(job.id)
    assert [jobs.get(job.id) for job in made[2:]] == made[2:]


def test_no_more_are_kept_while_others_wait_though_nobody_asks(make: Any) -> None:
    jobs = make(kept=1)
    first, last = Held(), Held()
    submit(jobs, first)
    for _ in range(4):
        submit(jobs)
    submit(jobs, last)
    first.let(3)
    until(lambda: jobs.counts()["running"] == 1 and jobs.counts()["queued"] == 0)
    assert jobs.counts()["done"] == 1
    last.let(3)


def test_what_has_ended_is_forgotten_in_time_though_nobody_asks(make: Any) -> None:
    jobs = make(keep_seconds=0.1)
    job = submit(jobs)
    until(ended(job))
    until(lambda: sum(jobs.counts().values()) == 0)
    with pytest.raises(JobUnknown):
        jobs.get(job.id)


def test_listeners_are_woken_and_find_the_newest(make: Any) -> None:
    jobs, held = make(), Held(3)
    job = submit(jobs, held)
    seen: list[list[int]] = [[], []]
    with job.listen(lambda: seen[0].append(job.view.iteration)), job.listen(lambda: seen[1].append(job.view.iteration)):
        held.let(2)
        until(lambda: job.view.iteration == 2)
    held.let()
    until(ended(job))
    assert seen[0] == seen[1]
    assert seen[0][-1] == 2  # nothing after it has left


def test_previews_are_small_and_made_for_listeners_only(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.job.PREVIEW_SECONDS", 0.0)
    jobs, held = make(), Held(3)
    job = submit(jobs, held)
    held.let()
    until(lambda: job.view.iteration == 1)
    assert job.preview is None
    with job.listen(lambda: None):
        held.let()
        until(lambda: job.view.iteration == 2)
        assert job.preview is not None
        assert job.preview.iteration == 2
        assert decode(job.preview.jpeg).shape == (171, 256, 3)


def test_previews_come_about_each_second(make: Any) -> None:
    job = submit(make(), FakePainting(50, lambda _: time.sleep(0.005)))
    with job.listen(lambda: None):
        until(ended(job))
    assert job.preview is not None
    assert job.preview.iteration < 50


def test_the_seconds_left_are_told_by_the_pace(make: Any) -> None:
    held = Held(100)
    job = submit(make(), held)
    for done in range(1, 5):
        time.sleep(0.02)
        held.let()
        until(lambda done=done: job.view.iteration == done)
    left = job.view.seconds_left
    assert left is not None
    assert 96 * 0.02 * 0.9 < left < 96 * 10


def test_the_end_cancels_all_and_takes_no_more(make: Any) -> None:
    jobs, held, woken = make(), Held(100), threading.Event()
    running = submit(jobs, held)
    waiting = submit(jobs)
    until(lambda: running.view.status == "running")
    with running.listen(woken.set):
        jobs.end()
        assert woken.is_set()
    assert [running.view.status, waiting.view.status] == ["cancelled", "cancelled"]
    assert isinstance(running.view.error, NotReady)
    with pytest.raises(NotReady):
        jobs.check()
    assert not jobs.close(0.05)
    held.let()
    assert jobs.close(10)
    assert held.closed
