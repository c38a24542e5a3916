"""Several processes on one port: started, watched, started anew when they die, and ended together.

    supervisor --- listening socket, table, pipe ---> worker, worker, ...

All workers accept from the supervisor's own socket, so that a connection that waits there outlives a worker. A table in shared
memory has a row for each: how many connections it has, so that the next one goes to the worker with the fewest, and a beat, so
that one whose event loop hangs is noticed. A worker obeys no signal but the end of its pipe: it ends when the supervisor says so,
and when the supervisor is dead.
"""

import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from service.errors import SetupError
from service.http.listening import hold_off

logger = logging.getLogger("service.cli")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
NOT_READY = 2**32  # counts as so many connections: a worker that would answer 503 lets others answer
LEFT_TO_OTHERS = 0.005  # seconds for which a connection is left to workers that have fewer
NOT_READY_WAIT = 0.05
ABSENT = 2**33  # of a worker that does not serve yet, or has died
LOOK = 1.0  # seconds between two looks at the beats
HUNG = 30  # looks without a beat, after which a worker is killed
STEADY = 30.0  # seconds of life after which a death is no failed start
MOST_FAILURES = 5  # of one worker in a row, before all give up unless another is ready
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a worker that failed again is started again

Table = Any  # ctypes array of 64-bit integers: beats and connections of each worker
Work = Callable[[socket.socket, Table, int, Connection], None]
"""What a worker process runs, on its row of the table; importable, for it travels by name."""


class Seat:
    """A worker's row of the table, as service.http.server.Turns."""

    def __init__(self, table: Table, index: int, ready: Callable[[], bool]) -> None:
        self._table, self._beat, self._load, self._ready = table, 2 * index, 2 * index + 1, ready
        self._connections = 0

    def wait(self, waited: bool) -> float:
        mine, least = self._table[self._load], min(self._table[1::2])
        if mine >= NOT_READY > least:
            return NOT_READY_WAIT
        return LEFT_TO_OTHERS if mine > least and not waited else 0.0

    def count(self, connections: int) -> None:
        self._connections = connections
        self._table[self._load] = connections + (0 if self._ready() else NOT_READY)

    def beat(self) -> None:
        self._table[self._beat] += 1
        self.count(self._connections)


@dataclass
class _Worker:
    """A place for a process. `again`: when it is to be started; `silent`: looks at the table in a row that found no beat."""

    index: int
    process: SpawnProcess | None = None
    pipe: Connection | None = None
    started: float = 0.0
    again: float = 0.0
    failures: int = 0
    beats: int = 0
    silent: int = 0


class Supervisor:
    """Keeps `count` processes that run `work` on `listener`. `grace`: seconds that they get to end; `hung`: looks without a beat
    after which one is killed."""

    def __init__(self, work: Work, listener: socket.socket, count: int, grace: float, *, hung: int = HUNG) -> None:
        self._work, self._listener, self._grace, self._hung = work, listener, grace, hung
        self._context = multiprocessing.get_context("spawn")
        self.table = self._context.RawArray("q", 2 * count)
        self._workers = [_Worker(index) for index in range(count)]
        self._signals = 0
        self.ending = False

    @property
    def pids(self) -> list[int | None]:
        return [worker.process.pid if worker.process else None for worker in self._workers]

    def run(self) -> None:
        """Returns after SIGTERM or SIGINT, when all have ended; at a second one they are killed. Raises SetupError when they
        cannot start."""
        wakened, waker = socket.socketpair()
        waker.setblocking(False)
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        try:
            self._watch(wakened)
        finally:
            self._end()
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            waker.close()
            wakened.close()

    def _on_signal(self, *_: object) -> None:
        self._signals += 1

    def _watch(self, wakened: socket.socket) -> None:
        look = time.monotonic() + LOOK
        while not self._signals:
            now = time.monotonic()
            for worker in self._workers:
                if worker.process is None and worker.again <= now:
                    self._start(worker)
            if now >= look:
                look = now + LOOK
                self._look()
            soonest = min([look, *(worker.again for worker in self._workers if worker.process is None)])
            wait([wakened, *self._sentinels()], max(0.0, soonest - now))
            for worker in self._workers:
                if worker.process is not None and not worker.process.is_alive():
                    self._bury(worker, worker.process)

    def _sentinels(self) -> list[int]:
        return [worker.process.sentinel for worker in self._workers if worker.process is not None]

    def _start(self, worker: _Worker) -> None:
        worker.pipe, theirs = self._context.Pipe()
        self.table[2 * worker.index + 1] = ABSENT
        arguments = (self._listener, self.table, worker.index, theirs)
        worker.process = self._context.Process(target=self._work, args=arguments, name=f"worker {worker.index}")
        resource_tracker.ensure_running()  # else start() does it, which unblocks the signals
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # and so they stay in the new process
        try:
            worker.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        theirs.close()
        worker.started, worker.silent, worker.beats = time.monotonic(), 0, self.table[2 * worker.index]
        logger.info("a worker starts", extra={"worker": worker.index, "pid": worker.process.pid})

    def _look(self) -> None:
        """Kill whoever has beaten once and then not for long. Looks are counted, not seconds: they stop when all are frozen."""
        for worker in self._workers:
            beats = self.table[2 * worker.index]
            if worker.process is None or self.table[2 * worker.index + 1] == ABSENT:
                continue
            worker.silent = worker.silent + 1 if beats == worker.beats else 0
            worker.beats = beats
            if worker.silent >= self._hung:
                logger.error("a worker hangs and is killed", extra={"worker": worker.index, "pid": worker.process.pid})
                worker.process.kill()

    def _bury(self, worker: _Worker, process: SpawnProcess) -> None:
        """Note the death of a worker, and when the next takes its place. Raises SetupError when that would be for nothing."""
        reason = _last_words(worker.pipe)
        if worker.pipe is not None:
            worker.pipe.close()
        ready = self.table[2 * worker.index + 1] < NOT_READY
        self.table[2 * worker.index + 1] = ABSENT
        status = process.exitcode or 0
        end = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
        lived = time.monotonic() - worker.started
        worker.failures = 1 if ready and lived >= STEADY else worker.failures + 1
        pause = 0.0 if worker.failures == 1 else min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (worker.failures - 2))
        worker.process, worker.pipe, worker.again = None, None, time.monotonic() + pause
        told = {"worker": worker.index, "pid": process.pid, "again_in_s": pause, "reason": reason}
        logger.error("a worker %s", end, extra=told)
        process.close()
        if min(self.table[1::2]) < NOT_READY:
            return  # others serve on
        if reason is not None:
            raise SetupError(reason)
        if worker.failures >= MOST_FAILURES:
            raise SetupError(f"a worker process {end}, {worker.failures} times in a row, and none is ready")

    def _end(self) -> None:
        hold_off(self._listener)
        for worker in self._workers:
            if worker.pipe is not None:
                worker.pipe.close()
        self._listener.close()
        end, signals = time.monotonic() + self._grace, self._signals
        self.ending = True
        while alive := [worker.process for worker in self._workers if worker.process is not None and worker.process.is_alive()]:
            if self._signals > signals or time.monotonic() >= end:
                for process in alive:
                    process.kill()
            wait([process.sentinel for process in alive], LOOK)  # a second signal is noticed then


def _last_words(pipe: Connection | None) -> str | None:
    """Why a worker says that it cannot start."""
    try:
        return str(pipe.recv()) if pipe is not None and pipe.poll() else None
    except (EOFError, OSError):
        return None
