import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from service.errors import DeadlineExceeded, NotReady, QueueFull
from service.http.guards import Workers
from service.settings import Settings

KIND = "/classify"


async def never() -> Any:
    await asyncio.Event().wait()


def with_workers(test: Callable[[Workers], Any], **kwargs: Any) -> None:
    workers = Workers(**{"threads": 1, "queue_length": 1, "timeout": 5.0, **kwargs})
    try:
        asyncio.run(test(workers))
    finally:
        workers.close()


def test_a_job_runs_off_the_event_loop_and_gives_its_result() -> None:
    async def test(workers: Workers) -> None:
        assert await workers.run(KIND, threading.get_ident, never) != threading.get_ident()
        assert await workers.run(KIND, lambda: 7, never) == 7

    with_workers(test)


def test_a_job_raises_what_it_raises() -> None:
    async def test(workers: Workers) -> None:
        with pytest.raises(ZeroDivisionError):
            await workers.run(KIND, lambda: 1 / 0, never)

    with_workers(test)


def test_over_the_queue_is_refused_at_once_and_the_place_comes_back() -> None:
    async def test(workers: Workers) -> None:
        go = threading.Event()
        first = [asyncio.ensure_future(workers.run(KIND, lambda: go.wait(5), never)) for _ in range(2)]
        await asyncio.sleep(0.02)
        start = time.perf_counter()
        with pytest.raises(QueueFull) as caught:
            await workers.run(KIND, lambda: None, never)
        with pytest.raises(QueueFull):
            workers.check(KIND)
        assert time.perf_counter() - start < 0.1
        assert 1 <= caught.value.retry_after <= 60
        go.set()
        assert await asyncio.gather(*first) == [True, True]
        workers.check(KIND)
        assert await workers.run(KIND, lambda: 1, never) == 1

    with_workers(test)


def test_a_job_over_its_time_keeps_its_thread_but_nobody_waits() -> None:
    async def test(workers: Workers) -> None:
        go = threading.Event()
        ran: list[int] = []

        async def request(job: Callable[[], Any]) -> None:
            async with workers.deadline():
                await workers.run(KIND, job, never)

        with pytest.raises(DeadlineExceeded, match=r"0\.05 seconds"):
            await request(lambda: go.wait(5))
        with pytest.raises(DeadlineExceeded):
            await request(lambda: ran.append(1))  # waits behind the first one, and is dropped
        go.set()
        await workers.run(KIND, lambda: None, never)
        assert ran == []
        workers.check(KIND)

    with_workers(test, timeout=0.05)


def test_a_client_that_goes_away_frees_its_place_in_the_queue() -> None:
    async def test(workers: Workers) -> None:
        go = threading.Event()
        ran: list[int] = []
        busy = asyncio.ensure_future(workers.run(KIND, lambda: go.wait(5), never))
        await asyncio.sleep(0.01)

        async def gone() -> Any:
            await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        with pytest.raises(ClientDisconnect):
            await workers.run(KIND, lambda: ran.append(1), gone)
        workers.check(KIND)
        go.set()
        await busy
        await workers.run(KIND, lambda: None, never)
        assert ran == []

    with_workers(test)


def test_a_closed_pool_takes_nothing_and_loses_no_place() -> None:
    workers = Workers(1, 1, 1.0)
    workers.close()

    async def test() -> None:
        for _ in range(4):
            with pytest.raises(NotReady):
                await workers.run(KIND, lambda: 1, never)

    asyncio.run(test())
    assert workers.crew.waiting() == {KIND: 0}


@pytest.mark.parametrize(("slow", "expected"), [(False, 17), (True, 8)])
def test_there_are_as_many_threads_as_a_model_may_use_and_half_for_slow_jobs(slow: bool, expected: int) -> None:
    workers = Workers.of(Settings(parallel=17), slow=slow)
    assert workers.crew.threads >= expected
    workers.close()
