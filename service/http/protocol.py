"""A client's connection: uvicorn's HTTP/1.1, and an end to its patience.

What a client may not do, and what then happens (`Limits` has the seconds):

    connect and send nothing, or let a kept-alive connection rest           closed
    dribble the request line and headers                                    408, closed
    stop sending in the middle of a body                                    408 by the application, closed
    dribble a body                                                          504 by the application's own deadline
    dribble a body that nobody reads any more                               closed
    not read its answer, or dribble it                                      connection reset
    send what is not HTTP, or headers or a body without end                 400, 431, 413, closed

No request arms a timer: a connection notes when it last heard of its client, and the server looks at all of them now and then. What
the application has to tell instead of its answer it finds in scope["state"]["refusal"], at the beginning or when it has received a
piece of the body (see service.http.access). A route that takes larger bodies than others says so in scope["state"]["body_limit"].
"""

import asyncio
import logging
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Self, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import BodyTooLarge, Busy, VisionError
from service.http.problems import HeadersTooLarge, RequestMalformed, RequestTimeout, respond
from service.settings import Settings

logger = logging.getLogger("service.http")
MAX_HEAD = 2**16  # bytes of the request line and headers
MAX_PIPELINED = 32  # requests that may wait on one connection


@dataclass(frozen=True)
class Limits:
    """Seconds, and two numbers. `client`: of silence in a request. `request`: for sending a body that nobody reads, or reading an
    answer. `rest`: between two requests, longer than proxies keep theirs. `linger`: of silence after the last answer, or while the
    server ends. `body`: bytes that one request may send, with what chunks and trailers add. `connections`: in this process."""

    client: float = 20.0
    request: float = 60.0
    rest: float = 75.0
    linger: float = 1.0
    body: int = 2**27
    connections: int = 1000

    @classmethod
    def of(cls, settings: Settings, connections: int) -> Self:
        most = 2 * settings.max_body_bytes + 2**20  # what is larger, the application has refused by then
        return cls(settings.client_timeout, settings.request_timeout, body=most, connections=connections)


class State(ServerState):
    """What all connections of a server share. `refusal`: what new requests are told, once the server ends; `counted`: is told how
    many connections there are."""

    def __init__(self, limits: Limits, counted: Callable[[int], None]) -> None:
        super().__init__()
        self.limits = limits
        self.counted = counted
        self.refusal: VisionError | None = None

    @property
    def open(self) -> "list[Connection]":
        return cast("list[Connection]", list(self.connections))

    def make_room(self) -> bool:
        """Is there room for the newest connection? Else the one that has rested longest gives way."""
        if len(self.connections) <= self.limits.connections:
            return True
        resting = [connection for connection in self.open if connection.resting]
        if resting:
            min(resting, key=lambda connection: connection.since).close()
        return bool(resting)


class Line:
    """The transport as uvicorn sees it. Closing it is left to the connection, which does it without a reset."""

    def __init__(self, transport: asyncio.Transport, connection: "Connection") -> None:
        self.write = transport.write
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        self.get_extra_info = transport.get_extra_info
        self.close, self.is_closing = connection.close, connection.is_closing


class Connection(HttpToolsProtocol):
    """`_phase`: which part of a request is being received; `since`: when that began, or the answer was complete; `_heard`: when
    anything was last received. Moments are times of the loop."""

    server_state: State

    def __init__(
        self, config: Config, server_state: State, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._socket: asyncio.Transport = cast(asyncio.Transport, None)
        self._phase: Literal["new", "head", "body", "whole"] = "new"
        self._size = 0  # bytes of that part, in reads that neither began nor ended it
        self.since = self._heard = 0.0
        self._unsent, self._sent_at, self._clogged_at = 0, 0.0, 0.0
        self._refusal: VisionError | None = None  # of everything on this connection
        self._error: VisionError | None = None  # to be told after the answers before it
        self._deaf = self._closing = False  # is what arrives dropped? until the client closes, too?

    # From the event loop.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._socket = transport
        super().connection_made(cast(asyncio.Transport, Line(transport, self)))
        self.since = self._heard = self.loop.time()
        state = self.server_state
        state.counted(len(state.connections))
        if not state.make_room():
            self._refusal = Busy("too many connections are open")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.server_state.counted(len(self.server_state.connections))

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        if self._deaf:
            return
        phase, scope = self._phase, self.scope
        super().data_received(data)
        if self._phase is phase and self.scope is scope and not self._deaf:
            self._size += len(data)
            if self._size > (self._most if phase == "body" else MAX_HEAD):
                self._break(BodyTooLarge("the body does not end") if phase == "body" else _too_large())

    # From the parser.

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise RequestMalformed(f"more than {MAX_PIPELINED} requests wait on one connection")
        self._phase, self._size, self.since = "head", 0, self._heard
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(map(len, chain.from_iterable(self.headers))) > MAX_HEAD:
            raise _too_large()
        refusal = self._refusal or self.server_state.refusal
        if refusal is not None:
            self.scope["state"]["refusal"] = refusal
        super().on_headers_complete()
        self._phase, self._size = "body", 0
        if refusal is not None or self.expect_100_continue:  # who is answered instead of "continue" may or may not send the body
            self.cycle.keep_alive = False
        self.headers = deque(maxlen=0)  # type: ignore[assignment]  # trailers, which nobody reads

    def on_message_complete(self) -> None:
        self._phase = "whole"
        super().on_message_complete()

    # From uvicorn.

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        error = sys.exception()
        cause = error and error.__context__  # what a callback raised
        self._break(cause if isinstance(cause, VisionError) else RequestMalformed(f"this cannot be parsed: {error}"))

    def _unsupported_upgrade_warning(self) -> None:
        """What follows would be in a protocol that is not spoken here."""
        self._deaf, self.cycle.keep_alive = True, False
        if not self._answering:
            self.close()

    def on_response_complete(self) -> None:
        """As uvicorn's, without a timer for the time until the next request."""
        self.server_state.total_requests += 1
        self.since = self.loop.time()
        if self.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._error is not None:
            self._tell(self._error)

    def is_closing(self) -> bool:
        return self._closing or self._socket.is_closing()

    def close(self) -> None:
        """Send what is left, say that this was all, and let the client finish: closing at once would reset a connection on which it
        still sends, and the answer would be lost with it."""
        if not self.is_closing():
            self._deaf = self._closing = True
            self._heard = self.since = self.loop.time()
            self.flow.resume_reading()
            self._socket.write_eof()

    def shutdown(self) -> None:
        """The server ends: what has been asked is answered. A request may be on its way, so a resting connection stays a moment."""
        self.since = self._heard = self.loop.time()
        if self._answering:
            self.cycle.keep_alive = False

    # From the server.

    @property
    def resting(self) -> bool:
        """Is it between two requests?"""
        return self._phase == "whole" and not self._answering and not self._deaf

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _most(self) -> int:
        return int(self.scope["state"].get("body_limit", self.server_state.limits.body))

    @property
    def _told_to_wait(self) -> bool:
        return self.cycle is not None and self.cycle.waiting_for_100_continue

    def check(self, now: float) -> None:
        """Do what a client that keeps the server waiting has earned."""
        if self._is_stuck(now):
            self.reset()
        elif self._unsent or self.flow.read_paused or self._told_to_wait:
            self.since = self._heard = now  # it is not the client's turn to send
        elif self._closing:
            if now - self._heard > self.server_state.limits.linger or now - self.since > self.server_state.limits.client:
                self._socket.close()
        elif not self._deaf:
            self._check_sender(now - self._heard, now - self.since)

    def _is_stuck(self, now: float) -> bool:
        """Does the client not read what it is sent, or for too long?"""
        unsent, limits = self._socket.get_write_buffer_size(), self.server_state.limits
        if unsent != self._unsent:
            self._clogged_at = self._clogged_at if self._unsent and unsent else now
            self._unsent, self._sent_at = unsent, now
        return unsent > 0 and (now - self._sent_at > limits.client or now - self._clogged_at > limits.request)

    def _check_sender(self, silent: float, long: float) -> None:
        """`silent`: seconds since anything came, `long`: since this part of the request began."""
        limits = self.server_state.limits
        if self._phase == "head" or (self._phase == "body" and self._answering):
            if (long if self._phase == "head" else silent) > limits.client:
                self._break(RequestTimeout(f"nothing, or not enough, was sent for {limits.client:g} seconds"))
        elif self._phase == "body":
            if silent > limits.client or long > limits.request:
                self.close()
        elif not self._answering:
            rest = limits.client if self._phase == "new" else limits.rest
            if long > (rest if self.server_state.refusal is None else min(rest, limits.linger)):
                self.close()

    def reset(self) -> None:
        """Let nothing of it stay in the kernel, and no client take half an answer for a whole one."""
        connection = self._socket.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.abort()

    # Among themselves.

    def _break(self, error: VisionError) -> None:
        """Nothing sensible comes any more: `error` is told once what was asked before is answered."""
        self._deaf = True
        if self._phase == "body" and self._answering:
            self.cycle.keep_alive = False
            self.cycle.scope["state"]["refusal"] = error
            self.cycle.message_event.set()
        elif self._phase == "body":
            self.close()
        elif self._answering:
            self._error = error
        else:
            self._tell(error)

    def _tell(self, error: VisionError) -> None:
        logger.info("%s: %s", error.title, error)
        response = respond(error, {"type": "http", "path": "/"})
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        self._socket.write(b"".join((STATUS_LINE[response.status_code], lines, b"\r\n", response.body)))
        self.close()


def _too_large() -> VisionError:
    return HeadersTooLarge(f"the request line and headers have more than {MAX_HEAD} bytes")
