"""One lane per model: a bounded queue, a few worker threads, and batches of whatever same-shaped work is waiting.

The data's way: submit() puts a Job into the queue or refuses it with QueueFull; a worker takes the oldest job that is still
wanted, adds waiting jobs of the same graph and shape up to `max_batch`, runs them as one batch, checks that as many results
came back as inputs went in, and answers each job's future. A batch that fails is run again item by item, so that one bad
input cannot fail its neighbours. Nothing waits for a batch to fill: on a CPU a batching window only costs time. run() does the
same for a caller that would only wait: where nothing is batched and a slot is free, it spares the way through another thread.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field

import numpy as np

from service.errors import DeadlineExceeded, InferenceFailed, NotReady, QueueFull, VisionError
from service.runtime.session import Tensors

Run = Callable[[str, Tensors], Tensors]


@dataclass(frozen=True)
class Done:
    """Outputs of one job by name, the milliseconds it waited and ran (the whole batch's run), and how many pictures ran with it."""

    outputs: Tensors
    queue_ms: float
    inference_ms: float
    batch: int


@dataclass(eq=False)
class Job:
    graph: str
    feeds: Tensors
    deadline: float | None
    future: "Future[Done]" = field(default_factory=Future)
    submitted: float = field(default_factory=time.perf_counter)

    @property
    def size(self) -> int:
        return int(next(iter(self.feeds.values())).shape[0])

    def fits(self, other: "Job") -> bool:
        """May both run as one batch: the same graph, and tensors that differ in the leading dimension only."""
        return self.graph == other.graph and all(
            name in other.feeds and tensor.shape[1:] == other.feeds[name].shape[1:] and tensor.dtype == other.feeds[name].dtype
            for name, tensor in self.feeds.items()
        )


class Lane:
    """Runs one model's jobs on `workers` threads. `run(graph, feeds)` must be safe to call from all of them."""

    def __init__(self, name: str, run: Run, *, workers: int, queue_length: int, max_batch: int = 1) -> None:
        self.name = name
        self._run = run
        self._queue_length = queue_length
        self._max_batch = max_batch
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self._running = 0
        self._slots = workers
        self._seconds_per_job = 0.0
        self._workers: list[threading.Thread] = []

    def submit(self, graph: str, feeds: Tensors, deadline: float | None = None) -> "Future[Done]":
        """Queue one job; `deadline` is a time.perf_counter() moment after which it is dropped instead of run.

        Each tensor of `feeds` has the same leading batch dimension. Raises QueueFull at once when the queue is full, NotReady
        after close().
        """
        job = Job(graph, feeds, deadline)
        with self._changed:
            if self._closed:
                raise NotReady("the service is shutting down")
            if len(self._jobs) >= self._queue_length:
                wait = max(1.0, self._seconds_per_job * len(self._jobs) / self._slots)
                raise QueueFull(f"{self._queue_length} requests are waiting for {self.name} already", retry_after=wait)
            self._jobs.append(job)
            self._start_workers()
            self._changed.notify()
        return job.future

    def run(self, graph: str, feeds: Tensors, deadline: float | None = None) -> Done:
        """Like submit(), but waits for the answer, on this thread where that is as good. Raises what the future would, and
        DeadlineExceeded when the answer does not come in time."""
        if deadline is not None and time.perf_counter() > deadline:
            raise DeadlineExceeded("the request's time was up before its turn came")
        with self._lock:
            free = self._max_batch == 1 and not self._closed and not self._jobs and self._running < self._slots
            self._running += free
        if free:
            return self._run_here(graph, feeds)
        future = self.submit(graph, feeds, deadline)
        try:
            return future.result(None if deadline is None else max(0.0, deadline - time.perf_counter()))
        except FutureTimeout:
            future.cancel()
            with self._changed:  # its place is free for others at once
                self._jobs = deque(job for job in self._jobs if job.future is not future)
            raise DeadlineExceeded(f"{self.name} did not answer within the request's time") from None

    def close(self) -> None:
        """Stop taking jobs, answer those that wait with NotReady, and wait for those that run."""
        with self._changed:
            self._closed = True
            waiting = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        for job in waiting:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(NotReady("the service is shutting down"))
        for worker in self._workers:
            worker.join()
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def _start_workers(self) -> None:
        """At the first job that is queued: where callers always run their own, no thread ever needs to be woken."""
        if not self._workers:
            self._workers = [threading.Thread(target=self._work, name=f"{self.name}-{n}", daemon=True) for n in range(self._slots)]
            for worker in self._workers:
                worker.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not (self._jobs and self._running < self._slots):
                    self._changed.wait()
                if not self._jobs:
                    return
                batch = self._take()
                self._running += 1
            try:
                batch = [job for job in batch if _still_wanted(job)]
                if batch:
                    self._answer(batch)
            finally:
                self._leave()

    def _run_here(self, graph: str, feeds: Tensors) -> Done:
        start = time.perf_counter()
        try:
            outputs = self._run(graph, feeds)
        except VisionError:
            raise
        except Exception as error:
            raise _as_ours(error) from error
        finally:
            self._leave()
        elapsed = time.perf_counter() - start
        self._seconds_per_job = 0.9 * self._seconds_per_job + 0.1 * elapsed
        return Done(outputs, 0.0, elapsed * 1e3, len(next(iter(feeds.values()))))

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1
            if self._closed:
                self._changed.notify_all()
            elif self._jobs:
                self._changed.notify()

    def _take(self) -> list[Job]:
        first = self._jobs.popleft()
        batch, total = [first], first.size
        if self._max_batch > 1:
            for job in [job for job in self._jobs if first.fits(job)]:
                if total + job.size <= self._max_batch:
                    self._jobs.remove(job)
                    batch.append(job)
                    total += job.size
        return batch

    def _answer(self, batch: list[Job]) -> None:
        start = time.perf_counter()
        try:
            results = self._run_batch(batch)
        except Exception as error:  # noqa: BLE001 - whatever went wrong belongs to the callers, not to this thread
            if len(batch) > 1:
                for job in batch:
                    self._answer([job])
                return
            batch[0].future.set_exception(_as_ours(error))
            return
        elapsed = time.perf_counter() - start
        total = sum(job.size for job in batch)
        self._seconds_per_job = 0.9 * self._seconds_per_job + 0.1 * elapsed / len(batch)
        for job, outputs in zip(batch, results, strict=True):
            job.future.set_result(Done(outputs, (start - job.submitted) * 1e3, elapsed * 1e3, total))

    def _run_batch(self, batch: list[Job]) -> list[Tensors]:
        first = batch[0]
        if len(batch) == 1:
            return [self._run(first.graph, first.feeds)]
        sizes = [job.size for job in batch]
        outputs = self._run(first.graph, {name: np.concatenate([job.feeds[name] for job in batch]) for name in first.feeds})
        for name, tensor in outputs.items():
            if tensor.shape[0] != sum(sizes):
                raise InferenceFailed(f"{self.name}: {sum(sizes)} inputs went in, {tensor.shape[0]} of {name!r} came back")
        ends = np.cumsum(sizes)
        return [{name: t[end - size : end] for name, t in outputs.items()} for size, end in zip(sizes, ends, strict=True)]


def _still_wanted(job: Job) -> bool:
    if not job.future.set_running_or_notify_cancel():
        return False
    if job.deadline is not None and time.perf_counter() > job.deadline:
        job.future.set_exception(DeadlineExceeded("the request's time was up before its turn came"))
        return False
    return True


def _as_ours(error: Exception) -> VisionError:
    return error if isinstance(error, VisionError) else InferenceFailed(f"{type(error).__name__}: {error}")
