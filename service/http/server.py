"""uvicorn's server, with an end that loses no request and, for several processes on one port, taking turns.

    listen() -> Server(app, ...).run() -> ... -> stop(): accept nothing new, finish what runs, answer the rest 503, return

A connection whose handshake was done before stop() is served, though nobody had accepted it yet: new handshakes are held off first,
then those that wait are taken in, then the port is closed.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Protocol

import uvicorn
import uvloop
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from service.errors import NotReady
from service.http.listening import BACKLOG, allow_connections, hold_off
from service.http.protocol import Connection, Limits, State
from service.settings import Settings

logger = logging.getLogger("service.http")
BURST = 64  # connections accepted before others are looked after
TICKS_A_SECOND = 10  # of uvicorn's main loop
ENDING_TICK = 0.05
FLUSH_SECONDS = 2.0  # for the last answers to be sent, when time is up
CLOSING_SECONDS = 6.0  # for the application to close what it holds
REST_AFTER_ERROR = 0.5  # seconds, when no connection can be accepted: no file is free, say
RETRY_SECONDS = 2.0  # after which a client that met the end should come back


class Turns(Protocol):
    """How processes that share a port share its connections."""

    def wait(self, waited: bool) -> float:
        """Seconds to leave a waiting connection to others, 0: take it. `waited`: has it been left to them once?"""
        ...

    def count(self, connections: int) -> None:
        """So many are open here."""
        ...

    def beat(self) -> None:
        """The event loop turns: called several times a second."""
        ...


class Server(uvicorn.Server):
    """Serves `app` on `listener`, a non-blocking listening socket, until stop(), SIGTERM or SIGINT; at a second signal the process
    ends at once. `status` is what it should end with after run(). `ending` is called when nothing new is accepted any more: what
    would be answered without end has to come to it."""

    server_state: State

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        listener: socket.socket,
        *,
        limits: Limits | None = None,
        turns: Turns | None = None,
        ending: Callable[[], None] = lambda: None,
    ) -> None:
        limits = limits or Limits.of(settings, allow_connections())
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="on",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        super().__init__(config)
        self.server_state = State(limits, turns.count if turns is not None else lambda _: None)
        self.status = 0
        self._listener, self._turns, self._seconds = listener, turns, settings.shutdown_seconds
        self._look_every = max(1, min(TICKS_A_SECOND, int(limits.client / 4 * TICKS_A_SECOND)))
        self._arriving: set[asyncio.Task[Any]] = set()
        self._ending = ending

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def stop(self, status: int = 0) -> None:
        """End; from any thread, before run() too. The highest `status` that was given counts."""
        self.status, self.should_exit = max(self.status, status), True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signal handler
        if self.should_exit:
            os._exit(self.status)
        self.stop()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve. A thread that is still busy when time is up is left behind, where asyncio.run() would wait for it."""
        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(self.serve(sockets))
        finally:
            loop.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        if counter % self._look_every == 0:
            self._look()
        if self._turns is not None:
            self._turns.beat()
        return await super().on_tick(counter)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in self.server_state.open:
            connection.check(now)

    # Beginning.

    def _accept(self, waited: bool = False) -> None:
        """Called while connections wait; `waited` is true after they were left to other processes for a while."""
        if self._listener.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        seconds = 0.0 if self._turns is None else self._turns.wait(waited)
        if not seconds:
            seconds = self._take(1 if self._turns else BURST)
        if seconds:
            loop.remove_reader(self._listener.fileno())
            loop.call_later(seconds, self._accept, True)
        elif waited:
            loop.add_reader(self._listener.fileno(), self._accept)

    def _take(self, most: int) -> float:
        """Accept `most` connections, or all that wait. Returns seconds to do without, where the machine allows no more."""
        for _ in range(most):
            try:
                taken, _ = self._listener.accept()
            except BlockingIOError:
                return 0.0
            except ConnectionError:
                continue
            except OSError as error:
                logger.error("no connection can be accepted: %s", error)
                return REST_AFTER_ERROR
            arrival = asyncio.ensure_future(self._adopt(taken))
            self._arriving.add(arrival)
            arrival.add_done_callback(self._arriving.discard)
        return 0.0

    async def _adopt(self, taken: socket.socket) -> None:
        def connection() -> Connection:
            return Connection(self.config, self.server_state, self.lifespan.state)

        try:
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(connection, taken)
        except OSError:  # reset while it waited
            taken.close()

    # Ending.

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        state = self.server_state
        logger.info("ending", extra={"connections": len(state.connections), "requests": len(state.tasks)})
        end = asyncio.get_running_loop().time() + self._seconds
        state.refusal = NotReady("the service is shutting down", retry_after=RETRY_SECONDS)
        await self._close_port()
        for connection in state.open:
            connection.shutdown()
        self._ending()
        if not await self._all_gone(end):
            logger.warning("time is up", extra={"requests": len(state.tasks)})
            await self._cancel_requests()  # which service.http.access answers
            await self._all_gone(asyncio.get_running_loop().time() + FLUSH_SECONDS)
        for connection in state.open:
            connection.reset()
        await self._cancel_requests()  # their clients have gone
        with suppress(TimeoutError):
            await asyncio.wait_for(self.lifespan.shutdown(), CLOSING_SECONDS)

    async def _close_port(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        if self._turns is None or self.status == 0:  # else other processes serve on
            hold_off(self._listener)
            self._take(BACKLOG)
        self._listener.close()
        if self._arriving:
            await asyncio.wait(tuple(self._arriving))

    async def _all_gone(self, end: float) -> bool:
        """Wait until every connection has gone. False: it is `end` o'clock."""
        while self.server_state.connections:
            if asyncio.get_running_loop().time() >= end:
                return False
            self._look()
            await asyncio.sleep(ENDING_TICK)
        return True

    async def _cancel_requests(self) -> None:
        tasks = tuple(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=ENDING_TICK)
