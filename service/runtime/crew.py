"""The crew: a few threads that carry whole requests, and who comes next.

    submit -> the queue of its kind -> the kind that has had least -> a thread -> done(result, error)

A request is carried by one thread from its first pixel to its answer, with as many threads as cores: measured, a wider pool is
slower, and so is handing pixels from thread to thread. Each kind of work (each path of the service) has a bounded queue of its
own. Kinds share the threads by the seconds they use, not by how much they ask for: start-time fair queuing (Goyal, Vin and
Cheng 1996), with a job's length taken from those before it. So a flood of one kind delays its own kind only.

A crew may be nice: on Linux its threads then yield the cores to every other thread that wants them, which is how paintings of
several seconds and quick answers share a machine.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from service.errors import NotReady, QueueFull, QueueTimeout

Work = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]
LONGEST_RETRY = 60.0  # seconds after which a client is asked to come back at the latest


class Ticket:
    """One job on its way. `done(result, error)` is called once, on the thread that ran or refused it, unless it was dropped."""

    __slots__ = ("arrived", "done", "expected", "line", "work")

    def __init__(self, line: "_Line", work: Work, done: Done) -> None:
        self.line = line
        self.work = work
        self.done = done
        self.expected = 0.0
        self.arrived = time.perf_counter()


class _Line:
    """The queue of one kind. `start`: the virtual time at which its next job begins; `seconds`: what a job takes, smoothed."""

    __slots__ = ("kind", "seconds", "start", "waiting")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.waiting: deque[Ticket] = deque()
        self.start = 0.0
        self.seconds = 0.0


class Crew:
    """Runs jobs on `threads` threads. At most `queue_length` of a kind wait, each for at most `patience` seconds (None: any)."""

    def __init__(
        self, threads: int, *, queue_length: int, patience: float | None = None, nice: int = 0, name: str = "crew"
    ) -> None:
        self._queue_length = queue_length
        self._patience = patience
        self._nice = nice
        self._name = name
        self._lines: dict[str, _Line] = {}
        self._lock = threading.Lock()
        self._calls: SimpleQueue[None] = SimpleQueue()  # one for each ticket, and for each thread that is to end
        self._virtual = 0.0
        self._running = 0
        self._closed = False
        self._threads: list[threading.Thread] = []
        self.grow(threads)

    @property
    def threads(self) -> int:
        return len(self._threads)

    @property
    def running(self) -> int:
        return self._running

    def waiting(self) -> dict[str, int]:
        """How many jobs of each kind wait now."""
        return {kind: len(line.waiting) for kind, line in list(self._lines.items())}

    def grow(self, threads: int) -> None:
        """Have at least `threads` threads; nothing after close()."""
        with self._lock:
            new = [] if self._closed else range(len(self._threads), threads)
            started = [threading.Thread(target=self._serve, name=f"{self._name}-{n}", daemon=True) for n in new]
            self._threads += started
        for thread in started:
            thread.start()

    def check(self, kind: str) -> None:
        """Raises what submit() would raise now."""
        with self._lock:
            self._admit(self._line(kind))

    def submit(self, kind: str, work: Work, done: Done) -> Ticket:
        """Queue `work`. Raises QueueFull at once when the queue of its kind is full, or so long that it could only wait in vain;
        NotReady after close(). A job that waited in vain after all is answered with QueueTimeout."""
        with self._lock:
            line = self._line(kind)
            self._admit(line)
            ticket = Ticket(line, work, done)
            if not line.waiting:
                line.start = max(line.start, self._virtual)
            line.waiting.append(ticket)
        self._calls.put(None)
        return ticket

    def drop(self, ticket: Ticket) -> bool:
        """Take a ticket out of its queue, so that its place is free at once. False when it runs or has run already."""
        with self._lock:
            try:
                ticket.line.waiting.remove(ticket)
            except ValueError:
                return False
            return True

    def close(self, timeout: float | None = None) -> bool:
        """Answer what waits with NotReady and let what runs end, for `timeout` seconds at most. Has it all ended?"""
        with self._lock:
            self._closed = True
            left = [ticket for line in self._lines.values() for ticket in line.waiting]
            for line in self._lines.values():
                line.waiting.clear()
        for ticket in left:
            ticket.done(None, NotReady("the service is shutting down"))
        for _ in self._threads:
            self._calls.put(None)
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def expected_wait(self, kind: str) -> float:
        """Seconds until a job of `kind` that came now would begin, by the rate at which jobs were served so far."""
        with self._lock:
            return self._expected(self._line(kind))

    def _line(self, kind: str) -> _Line:
        line = self._lines.get(kind)
        if line is None:
            line = self._lines[kind] = _Line(kind)
        return line

    def _admit(self, line: _Line) -> None:
        if self._closed:
            raise NotReady("the service is shutting down")
        waiting = len(line.waiting) - (len(self._threads) - self._running)  # threads on their way to a job have not taken it yet
        full = waiting >= self._queue_length
        if not full and (self._patience is None or waiting <= 0):
            return
        wait = self._expected(line)
        if full or (self._patience is not None and wait > self._patience):
            text = f"{len(line.waiting)} requests of this kind are waiting already, for about {wait:.1f} seconds"
            raise QueueFull(text, retry_after=min(LONGEST_RETRY, max(1.0, wait)))

    def _expected(self, line: _Line) -> float:
        """Its own jobs at its share of the threads, or all that wait at all of them, whichever is less."""
        busy = [other for other in self._lines.values() if other.waiting]
        own = len(line.waiting) * line.seconds * max(1, len(busy))
        everything = sum(len(other.waiting) * other.seconds for other in busy)
        return min(own, everything) / max(1, len(self._threads))

    def _serve(self) -> None:
        if self._nice:
            be_nice(self._nice)
        while True:
            self._calls.get()
            with self._lock:
                ticket = self._next()
                if ticket is None:
                    if self._closed:
                        return
                    continue  # it was dropped
                self._running += 1
            self._carry(ticket)
            del ticket  # nothing may keep its pixels while this thread sleeps

    def _next(self) -> Ticket | None:
        """The oldest ticket of the line that has had least. Moves that line on by what a job of its kind usually takes."""
        best: _Line | None = None
        for line in self._lines.values():
            if line.waiting and (best is None or line.start < best.start):
                best = line
        if best is None:
            return None
        self._virtual = best.start
        best.start += best.seconds
        ticket = best.waiting.popleft()
        ticket.expected = best.seconds
        return ticket

    def _carry(self, ticket: Ticket) -> None:
        start = time.perf_counter()
        waited = start - ticket.arrived
        result: Any = None
        error: BaseException | None = None
        if self._patience is not None and waited > self._patience:
            retry = min(LONGEST_RETRY, max(1.0, self.expected_wait(ticket.line.kind)))
            error = QueueTimeout(f"the request waited {waited:.1f} seconds for its turn; {self._patience:g} are allowed", retry)
            self._settle(ticket, 0.0)
        else:
            try:
                result = ticket.work()
            except BaseException as caught:  # noqa: BLE001 - whatever went wrong belongs to the caller, not to this thread
                error = caught
            spent = time.perf_counter() - start
            line = ticket.line
            line.seconds += (spent - line.seconds) * (0.1 if line.seconds else 1.0)
            self._settle(ticket, spent)
        ticket.done(result, error)

    def _settle(self, ticket: Ticket, spent: float) -> None:
        """Put what a job really took in the place of what was expected."""
        with self._lock:
            self._running -= 1
            ticket.line.start += spent - ticket.expected


def be_nice(nice: int) -> None:
    """Lower the priority of the calling thread by `nice` (0..19), and of threads that it will start; does nothing but on Linux."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + nice)
