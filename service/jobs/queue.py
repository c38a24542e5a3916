"""All jobs of a process: whose turn it is, on which thread, how long it may run, and how long it is remembered."""

import logging
import secrets
import threading
import time
from collections import Counter, deque
from contextlib import closing
from typing import Any, Final, Self, get_args

from service.errors import Busy, DeadlineExceeded, InputError, JobUnknown, NotReady, QueueFull, VisionError
from service.jobs.job import Job, Status, View, Work
from service.runtime.crew import LONGEST_RETRY, be_nice
from service.settings import Settings
from service.tasks.optimize import Step

STATUSES: Final[tuple[Status, ...]] = get_args(Status)
NICE = 10  # of a job's thread: where cores are short it gets a tenth of what a quick answer gets
WAITING_BODIES = 4  # bodies of the largest size that may wait
ID_BYTES = 16

logger = logging.getLogger("service.jobs")


class Jobs:
    """All jobs of this process. At most `running` run and `waiting` wait, whose weights (bytes) are at most `budget` together; one
    may run for `seconds`. The last `kept` that have ended are remembered, for `keep_seconds`. `prefix` begins every id."""

    def __init__(
        self,
        *,
        running: int = 1,
        waiting: int = 8,
        budget: int = 2**27,
        seconds: float = 600.0,
        kept: int = 16,
        keep_seconds: float = 3600.0,
        prefix: str = "",
    ) -> None:
        self.prefix = prefix
        self._most_running, self._most_waiting, self._budget = running, waiting, budget
        self._seconds, self._kept, self._keep_seconds = seconds, kept, keep_seconds
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._busy = 0  # threads at work
        self._closed = False

    @classmethod
    def of(cls, settings: Settings, prefix: str = "") -> Self:
        return cls(
            running=settings.jobs,
            waiting=settings.jobs_waiting,
            budget=WAITING_BODIES * settings.max_body_bytes,
            seconds=settings.job_seconds,
            kept=settings.jobs_kept,
            keep_seconds=settings.job_keep_seconds,
            prefix=prefix,
        )

    def check(self, weight: int = 0) -> None:
        """Raises what submit() would raise now: QueueFull, or NotReady after close()."""
        with self._changed:
            self._check(weight)

    def submit(self, kind: str, work: Work, options: Any, *, iterations: int, size: tuple[int, int], weight: int = 0) -> Job:
        """Put a job at the end of the queue. `weight`: the bytes that `work` holds until it begins. Raises as check() does."""
        with self._changed:
            self._check(weight)
            identity = self.prefix + secrets.token_urlsafe(ID_BYTES)
            job = self._jobs[identity] = Job(identity, kind, work, options, View("queued", iterations, size), weight)
            self._waiting.append(job)
            if self._busy + len(self._waiting) > len(self._threads) < self._most_running:
                self._threads.append(threading.Thread(target=self._serve, name=f"job-{len(self._threads)}", daemon=True))
                self._threads[-1].start()
            self._changed.notify()
        return job

    def get(self, identity: str) -> Job:
        """Raises JobUnknown, also for a job that is no longer kept."""
        with self._changed:
            self._forget()
            if identity not in self._jobs:
                raise JobUnknown(identity)
            return self._jobs[identity]

    def drop(self, identity: str) -> Job:
        """Cancel a job that waits or runs: its thread ends after the iteration that it is at. Forget one that has ended.

        Raises JobUnknown.
        """
        job = self.get(identity)
        if not job.end("cancelled"):
            with self._changed:
                self._jobs.pop(identity, None)
        self._settle(job)
        return job

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each status."""
        found = Counter(job.view.status for job in tuple(self._jobs.values()))
        return {status: found[status] for status in STATUSES}

    def end(self) -> None:
        """Take no more jobs, and cancel those that wait or run. Listeners hear of it at once."""
        with self._changed:
            self._closed = True
            jobs = tuple(self._jobs.values())
            self._waiting.clear()
            self._changed.notify_all()
        for job in jobs:
            job.end("cancelled", error=NotReady("the service is shutting down"))

    def close(self, timeout: float | None = None) -> bool:
        """end(), and wait until what ran has come to the end of its iteration, for `timeout` seconds at most. Has it?"""
        self.end()
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # With the lock held.

    def _check(self, weight: int) -> None:
        if self._closed:
            raise NotReady("the service is shutting down")
        waiting = len(self._waiting) - max(0, self._most_running - self._busy)  # some are on their way to a thread
        if waiting >= self._most_waiting:
            raise QueueFull(f"{len(self._waiting)} jobs are waiting already", retry_after=self._soonest())
        if weight + sum(job.weight for job in self._waiting) > self._budget:
            raise QueueFull("the pictures of the jobs that wait take too much memory already", retry_after=self._soonest())

    def _soonest(self) -> float:
        """Seconds until a running job is likely to end."""
        left = [job.view.seconds_left or LONGEST_RETRY for job in self._jobs.values() if job.view.status == "running"]
        return min(LONGEST_RETRY, max(1.0, min(left, default=1.0)))

    def _forget(self) -> float | None:
        """Forget what has ended too long ago, or before too many others. Gives the seconds until that is due again."""
        ended = sorted((job.ended, job.id) for job in self._jobs.values() if job.ended is not None)
        latest = time.monotonic() - self._keep_seconds
        for at, (moment, identity) in enumerate(ended):
            if moment > latest and at >= len(ended) - self._kept:
                return moment - latest
            del self._jobs[identity]
        return None

    # On the jobs' threads.

    def _serve(self) -> None:
        be_nice(NICE)
        while True:
            job = self._next()
            if job is None:
                return
            self._carry(job)
            with self._changed:
                self._busy -= 1
            del job  # nothing may keep its picture while this thread waits

    def _next(self) -> Job | None:
        """The job that has waited longest; None after close(). Meanwhile what has ended is forgotten in time."""
        with self._changed:
            due = self._forget()
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait(due)
                due = self._forget()
            self._busy += 1
            return self._waiting.popleft()

    def _carry(self, job: Job) -> None:
        try:
            self._paint(job)
        except (InputError, Busy) as error:
            job.end("failed", error=_lean(error))
        except VisionError as error:
            logger.error("a job has failed", exc_info=error, extra={"job": job.id[:8]})
            job.end("failed", error=_lean(error))
        except Exception:
            logger.exception("a job has failed", extra={"job": job.id[:8]})
            job.end("failed", error=VisionError())
        view = job.view
        told = {"job": job.id[:8], "kind": job.kind, "status": view.status, "iteration": view.iteration}
        logger.info("a job has ended", extra={**told, "seconds": round(job.seconds, 2)})

    def _paint(self, job: Job) -> None:
        painting = job.start()
        if painting is None:
            return
        with closing(painting):
            step: Step | None = None
            for step in painting:
                if not job.advance(step, painting.model):
                    return
                if job.seconds > self._seconds and step.done < 1:
                    raise DeadlineExceeded(_too_long(self._seconds, step))
            if step is not None:
                job.end("done", picture=step.picture())
            else:
                raise VisionError("a painting without a single step")

    def _settle(self, job: Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            self._changed.notify_all()  # what has ended is to be forgotten in time


def _too_long(seconds: float, step: Step) -> str:
    made = f"{step.iteration} of {step.iterations} iterations were made in the {seconds:g} seconds that a job may take"
    return f"{made}; ask for fewer, or for a smaller max_side"


def _lean(error: VisionError) -> VisionError:
    """`error` without what its frames keep alive: whole pictures."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error
