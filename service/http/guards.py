"""Who may work, how many may wait, and for how long: the engine's threads, the queue before them, and the uploads before that.

The engine is synchronous and keeps a core busy, so it runs on as many threads as there are cores: a wider pool is slower and the
event loop itself would answer nobody. Paintings take seconds, so they have threads of their own and quick answers never wait
behind them. What arrives while all threads work waits in one bounded queue, and what arrives while that is full is refused at
once. Bodies still being read are not in that queue yet, so they have a limit of their own, in bytes.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.errors import DeadlineExceeded, NotReady, QueueFull
from service.runtime.machine import usable_cores
from service.settings import Settings

Result = TypeVar("Result")
PATIENCE = 0.1  # seconds that a job may take before it is watched whether its client is still there
UPLOADS = 8  # bodies of the largest size that may be in reading at once
UPLOAD_RETRY = 2.0  # seconds after which a client that met too many uploads should come back


class UploadBudget:
    """Bytes of request bodies that are being read, in all requests of the process together. For one event loop: it has no lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @classmethod
    def of(cls, settings: Settings) -> "UploadBudget":
        return cls(UPLOADS * settings.max_body_bytes)

    def take(self, size: int) -> None:
        """Raises QueueFull, and takes nothing, when `size` more bytes would be over the limit."""
        if self.used + size > self.limit:
            raise QueueFull("too many uploads arrive at the same time", retry_after=UPLOAD_RETRY)
        self.used += size

    def give_back(self, size: int) -> None:
        self.used -= size


class Workers:
    """Runs jobs on `threads` threads; at most `queue_length` jobs wait."""

    def __init__(self, threads: int, queue_length: int, timeout: float) -> None:
        self.threads = threads
        self._limit = threads + queue_length
        self._timeout = timeout
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="request")
        self._lock = threading.Lock()
        self._admitted = 0
        self._seconds_per_job = 0.0

    @classmethod
    def of(cls, settings: Settings, slow: bool = False) -> "Workers":
        """As many threads as cores, or as many as one model may run in parallel where that is more; half of them for slow jobs."""
        threads = max(settings.cores or usable_cores(), settings.parallel)
        return cls(max(1, threads // 2) if slow else threads, settings.queue_length, settings.request_timeout)

    def check(self) -> None:
        """Raises QueueFull, with the seconds after which a place is likely, when no further job would be taken now."""
        if self._admitted >= self._limit:
            wait = min(60.0, max(1.0, self._seconds_per_job * self._limit / self.threads))
            raise QueueFull(f"{self._limit - self.threads} requests are waiting already", retry_after=round(wait, 1))

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Gives up what is inside after the request's time. Raises DeadlineExceeded."""
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError:
            raise DeadlineExceeded(f"the request was not served within {self._timeout:g} seconds") from None

    async def run(self, job: Callable[[], Result], receive: Receive) -> Result:
        """The result of `job` run on a thread. A job that nobody waits for any more is dropped if it has not begun.

        `receive` is the channel of the request, whose body must have been read: a client that goes away counts as nobody.
        Raises QueueFull at once, NotReady after close(), ClientDisconnect when the client has gone, and what `job` raises.
        """
        with self._lock:
            self.check()
            self._admitted += 1
        try:
            task = self._pool.submit(self._timed, job)
        except RuntimeError:
            self._release()
            raise NotReady("the service is shutting down") from None
        task.add_done_callback(lambda _: self._release())
        answer = asyncio.wrap_future(task)
        try:
            await asyncio.wait((answer,), timeout=PATIENCE)
            if not answer.done():
                await _unless_gone(answer, receive)
            return answer.result()
        finally:
            task.cancel()
            answer.cancel()

    def close(self) -> None:
        """Let running jobs end, drop those that wait."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _timed(self, job: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        try:
            return job()
        finally:
            self._seconds_per_job = 0.9 * self._seconds_per_job + 0.1 * (time.perf_counter() - start)

    def _release(self) -> None:
        with self._lock:
            self._admitted -= 1


async def _unless_gone(answer: "asyncio.Future[Result]", receive: Receive) -> None:
    """Wait for `answer`. Raises ClientDisconnect when the client goes away first."""
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    if not answer.done():
        raise ClientDisconnect


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
