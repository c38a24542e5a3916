"""The server around an ASGI application: takes connections, and ends without losing a request.

    listen() -> Server(app, ...).run() -> ... -> stop(): accept nothing new, finish what runs, answer the rest 503, return

A connection whose handshake was done before stop() is served, though nobody had accepted it yet: new handshakes are held off first,
then those that wait are taken in, then the port is closed.
"""

import asyncio
import ctypes
import logging
import resource
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, Protocol

import uvloop
from starlette.types import ASGIApp, Message

from service.errors import NotReady
from service.http.protocol import ASGI, Connection, Limits, Shared
from service.settings import Settings

logger = logging.getLogger("service.http")
BACKLOG = 2048  # connections that may wait to be accepted
BURST = 64  # connections accepted before others are looked after
MAX_CONNECTIONS = 4096
SPARE_FILES = 128  # for models, logs and what else a process opens
TICK = 1.0  # seconds between two looks at all connections, at most
ENDING_TICK = 0.05
FLUSH_SECONDS = 2.0  # for the last answers to be sent, when time is up
CLOSING_SECONDS = 3.0  # for the application to close what it holds
REST_AFTER_ERROR = 0.5  # seconds, when no connection can be accepted: no file is free, say
RETRY_SECONDS = 2.0  # after which a client that met the end should come back
SO_ATTACH_FILTER = 26


class Turns(Protocol):
    """How processes that share a port share its connections."""

    def wait(self, waited: bool) -> float:
        """Seconds to leave a waiting connection to others, 0: take it. `waited`: has it been left to them once?"""
        ...

    def count(self, connections: int) -> None:
        """So many are open here."""
        ...

    def beat(self) -> None:
        """The event loop turns: called about once a second."""
        ...


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is a free one. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def hold_off(listener: socket.socket) -> None:
    """Let no further handshake begin on a listening socket. Clients try again on their own after a second, and find another
    server or a closed port; a handshake done after the last accept() would be reset together with the request on it."""
    if sys.platform == "linux":
        drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # a packet filter: return 0 bytes
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop_all)))


def allow_connections() -> int:
    """How many connections this process may have, after raising its limit of open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    room = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else (soft - SPARE_FILES) // 2  # the other half: to refuse politely
    return max(16, min(MAX_CONNECTIONS, room))


class Server:
    """Serves `app` on `listener`, a non-blocking listening socket, until stop(). Connections are in `shared` once it runs."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        listener: socket.socket,
        *,
        limits: Limits | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._app, self._listener, self._turns = app, listener, turns
        self._limits = limits or Limits.of(settings, allow_connections())
        self._seconds = settings.shutdown_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._asked = False
        self._arriving: set[asyncio.Task[Any]] = set()
        self.shared: Shared | None = None
        self.status = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def stop(self, status: int = 0) -> None:
        """End; from any thread or signal handler, before run() too. run() returns the highest `status` that was given."""
        self.status, self._asked = max(self.status, status), True
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: it has ended already
                self._loop.call_soon_threadsafe(self._stopping.set)

    def run(self) -> int:
        """Serve; returns an exit status. A thread that was still busy when time was up is left behind."""
        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(self._serve(loop))
        finally:
            loop.close()
        return self.status

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        lifespan = Lifespan(self._app)
        await lifespan.start()
        shared = Shared(self._app, self._limits, loop, lifespan.state)
        if self._turns is not None:
            shared.counted = self._turns.count
        self._loop = loop
        if self._asked:
            self._stopping.set()
        ticking = loop.create_task(self._tick(shared))
        loop.add_reader(self._listener.fileno(), self._accept, shared)
        self.shared = shared
        await self._stopping.wait()
        ticking.cancel()
        await self._end(shared)
        await lifespan.end(CLOSING_SECONDS)

    async def _tick(self, shared: Shared) -> None:
        seconds = min(TICK, self._limits.client / 4)
        while True:
            shared.tick()
            if self._turns is not None:
                self._turns.beat()
            await asyncio.sleep(seconds)

    # Beginning.

    def _accept(self, shared: Shared, waited: bool = False) -> None:
        """Called while connections wait; `waited` is true after they were left to other processes for a while."""
        if self._stopping.is_set():
            return
        seconds = 0.0 if self._turns is None else self._turns.wait(waited)
        if not seconds:
            seconds = self._take(shared, 1 if self._turns else BURST)
        if seconds:
            shared.loop.remove_reader(self._listener.fileno())
            shared.loop.call_later(seconds, self._accept, shared, True)
        elif waited:
            shared.loop.add_reader(self._listener.fileno(), self._accept, shared)

    def _take(self, shared: Shared, most: int) -> float:
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
            arrival = shared.loop.create_task(self._adopt(shared, taken))
            self._arriving.add(arrival)
            arrival.add_done_callback(self._arriving.discard)
        return 0.0

    async def _adopt(self, shared: Shared, taken: socket.socket) -> None:
        try:
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await shared.loop.connect_accepted_socket(lambda: Connection(shared), taken)
        except OSError:  # reset while it waited
            taken.close()

    # Ending.

    async def _end(self, shared: Shared) -> None:
        logger.info("ending", extra={"connections": len(shared.connections), "requests": len(shared.tasks)})
        end = shared.loop.time() + self._seconds
        shared.refusal = NotReady("the service is shutting down", retry_after=RETRY_SECONDS)
        await self._close_port(shared)
        for connection in tuple(shared.connections):
            connection.end()
        if not await _tick_until_gone(shared, end):
            logger.warning("time is up", extra={"requests": len(shared.tasks)})
            for task in tuple(shared.tasks):
                task.cancel()
            await _tick_until_gone(shared, shared.loop.time() + FLUSH_SECONDS)
        for connection in tuple(shared.connections):
            connection.break_off()
        if shared.tasks:  # their clients have gone
            for task in tuple(shared.tasks):
                task.cancel()
            await asyncio.wait(tuple(shared.tasks), timeout=ENDING_TICK)

    async def _close_port(self, shared: Shared) -> None:
        shared.loop.remove_reader(self._listener.fileno())
        if self._turns is None or self.status == 0:  # else other processes serve on
            hold_off(self._listener)
            self._take(shared, BACKLOG)
        self._listener.close()
        if self._arriving:
            await asyncio.wait(tuple(self._arriving))


async def _tick_until_gone(shared: Shared, end: float) -> bool:
    """Wait until every connection has gone. False: it is `end` o'clock."""
    while shared.connections:
        if shared.loop.time() >= end:
            return False
        shared.tick()
        await asyncio.sleep(ENDING_TICK)
    return True


class Lifespan:
    """Starting and ending the application (ASGI's lifespan protocol). `state` is handed to every request."""

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._told: asyncio.Queue[str] = asyncio.Queue()
        self._heard: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises RuntimeError when the application does not start."""
        scope = {"type": "lifespan", "asgi": ASGI, "state": self.state}
        self._task = asyncio.ensure_future(self._run(scope))
        self._told.put_nowait("lifespan.startup")
        answer = await self._heard.get()
        if answer["type"] != "lifespan.startup.complete":
            raise RuntimeError(f"the application did not start: {answer.get('message', answer['type'])}")

    async def end(self, seconds: float) -> None:
        """Let the application close what it holds, for that long at most."""
        self._told.put_nowait("lifespan.shutdown")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._heard.get(), seconds)
        if self._task is not None:
            self._task.cancel()

    async def _run(self, scope: dict[str, Any]) -> None:
        async def receive() -> Message:
            return {"type": await self._told.get()}

        try:
            await self._app(scope, receive, self._heard.put)
        except Exception as error:
            logger.exception("the application's lifespan failed")
            await self._heard.put({"type": "failed", "message": str(error)})
