"""Who may work, how many may wait, and for how long: the engine's crew seen from the event loop, and the uploads before that.

The engine is synchronous and keeps a core busy, so a crew of as many threads as there are cores carries its requests (see
service.runtime.crew); on the event loop it would answer nobody else. Paintings take seconds, so a nice crew of their own does
them, and quick answers never wait behind them. What arrives while all threads work waits in the bounded queue of its task, and
what arrives while that is full is refused at once. Bodies that are being read or wait have a limit of their own, in bytes.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.errors import BodyTooLarge, DeadlineExceeded, QueueFull
from service.runtime.crew import Crew
from service.runtime.machine import usable_cores
from service.settings import Settings

Result = TypeVar("Result")
PATIENCE = 0.25  # seconds that a job may take before it is watched whether its client is still there
TICK = 0.05  # seconds between two looks at what waits for a moment
NICE = 10  # of paintings: where cores are short they get a tenth of what a quick answer gets
UPLOADS = 8  # bodies of the largest size that may be in memory at once
UPLOAD_RETRY = 2.0  # seconds after which a client that met too many uploads should come back


class UploadBudget:
    """Bytes of request bodies that are being read or wait for their turn, in all requests of the process together. For one event
    loop: it has no lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @classmethod
    def of(cls, settings: Settings) -> "UploadBudget":
        return cls(UPLOADS * settings.max_body_bytes)

    def take(self, size: int) -> None:
        """Raises QueueFull, and takes nothing, when `size` more bytes would be over the limit."""
        if self.used + size > self.limit:
            raise QueueFull("too many uploads arrive or wait at the same time", retry_after=UPLOAD_RETRY)
        self.used += size

    def give_back(self, size: int) -> None:
        self.used -= size


class Meter:
    """Counts one body, on the budget of all uploads until `with` ends; at most `limit` bytes. For use as a context manager."""

    def __init__(self, limit: int, budget: UploadBudget) -> None:
        self.limit = limit
        self._budget, self._taken = budget, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._taken)

    def count(self, chunk: bytes) -> bytes:
        """Gives `chunk` back. Raises BodyTooLarge at the first byte over the limit, QueueFull when the budget is spent."""
        if self._taken + len(chunk) > self.limit:
            raise BodyTooLarge(f"the body has more than {self.limit} bytes; no more are taken")
        self._budget.take(len(chunk))
        self._taken += len(chunk)
        return chunk


class Workers:
    """Runs jobs on the threads of a crew; at most `queue_length` of a kind wait, each at most `patience` seconds (None: any)."""

    def __init__(self, threads: int, queue_length: int, timeout: float, *, patience: float | None = None, nice: int = 0) -> None:
        self.crew = Crew(threads, queue_length=queue_length, patience=patience, nice=nice, name="nice" if nice else "quick")
        self._timeout = timeout
        self._clock = _Clock()

    @classmethod
    def of(cls, settings: Settings, slow: bool = False) -> "Workers":
        """As many threads as cores, or as many as one model may run in parallel where that is more; half of them for slow jobs,
        which are nice and may wait for as long as a request may take."""
        threads = max(settings.cores or usable_cores(), settings.parallel)
        length, timeout = settings.queue_length, settings.request_timeout
        if slow:
            return cls(max(1, threads // 2), length, timeout, patience=timeout, nice=NICE)
        return cls(threads, length, timeout, patience=settings.queue_timeout)

    def check(self, kind: str) -> None:
        """Raises QueueFull, with the seconds after which a place is likely, when no further job would be taken now."""
        self.crew.check(kind)

    def deadline(self) -> "Deadline":
        """For `async with`: what is inside is given up after the request's time. Raises DeadlineExceeded."""
        return Deadline(self._clock, self._timeout)

    async def run(self, kind: str, job: Callable[[], Result], receive: Receive) -> Result:
        """The result of `job` run on a thread. A job that nobody waits for any more is dropped if it has not begun.

        `receive` is the channel of the request, whose body must have been read: a client that goes away counts as nobody.
        Raises QueueFull at once, QueueTimeout, NotReady after close(), ClientDisconnect when the client has gone, and what `job`
        raises.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()

        def done(result: Result, error: BaseException | None) -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(_settle, answer, result, error)

        ticket = self.crew.submit(kind, job, done)
        watch = _Watch(answer, receive, loop.time() + PATIENCE)
        self._clock.add(watch)
        try:
            return await answer
        finally:
            self._clock.drop(watch)
            watch.end()
            if not answer.done() or answer.cancelled() or watch.gone:
                self.crew.drop(ticket)

    def close(self, timeout: float | None = None) -> bool:
        """Let running jobs end, for `timeout` seconds at most; answer those that wait with NotReady. Have all ended?"""
        return self.crew.close(timeout)


class _Timed(Protocol):
    def check(self, now: float) -> None:
        """Do what is due at the loop's time `now`."""
        ...


class _Clock:
    """Looks at everything that waits for a moment, every TICK seconds while there is something: two timers for each request, nearly
    all of them for nothing, would cost more than all else about waiting. For one event loop."""

    def __init__(self) -> None:
        self._timed: set[_Timed] = set()
        self._ticking = False

    def add(self, timed: _Timed) -> None:
        self._timed.add(timed)
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(TICK, self._tick)

    def drop(self, timed: _Timed) -> None:
        self._timed.discard(timed)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for timed in tuple(self._timed):
            timed.check(now)
        self._ticking = bool(self._timed)
        if self._ticking:
            loop.call_later(TICK, self._tick)


class Deadline:
    """As asyncio.timeout(), on a shared clock: up to TICK seconds late."""

    def __init__(self, clock: _Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self._passed = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._until = asyncio.get_running_loop().time() + self._seconds
        self._clock.add(self)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._clock.drop(self)
        if self._passed and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise DeadlineExceeded(f"the request was not served within {self._seconds:g} seconds") from None

    def check(self, now: float) -> None:
        if now >= self._until and not self._passed:
            self._passed = True
            self._task.cancel()


class _Watch:
    """From the moment `begin` on, looks whether the client is still there; when it goes away, `answer` raises ClientDisconnect."""

    def __init__(self, answer: "asyncio.Future[Any]", receive: Receive, begin: float) -> None:
        self.gone = False
        self._answer, self._receive, self._begin = answer, receive, begin
        self._task: asyncio.Task[None] | None = None

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def check(self, now: float) -> None:
        if now >= self._begin and self._task is None and not self._answer.done():
            self._task = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._answer.done():
            self.gone = True
            self._answer.set_exception(ClientDisconnect())


def _settle(answer: "asyncio.Future[Result]", result: Result, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
