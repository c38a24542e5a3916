"""A client's connection: HTTP/1.1 as httptools parses it, kept alive, pipelined, and never waited for without end.

    socket -> bytes -> parser -> Exchange -> application -> Exchange -> bytes -> socket

What a client may not do, and what then happens (`Limits` has the seconds):

    connect and send nothing, or let a kept-alive connection rest           closed
    dribble the request line and headers                                    408, closed
    stop sending in the middle of a body                                    408 by the application, closed
    dribble a body                                                          504 by the application's own deadline
    dribble a body that nobody reads any more                               closed
    not read its answer, or dribble it                                      connection reset
    send what is not HTTP, or headers without end                           400, 431, closed

No request arms a timer: a connection notes until when it may stay as it is, and the server looks at all of them now and then.
"""

import asyncio
import logging
import math
import socket
import struct
import urllib.parse
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Self, cast

import httptools
from starlette.types import ASGIApp, Scope

from service.errors import Busy, InputError, VisionError
from service.http.exchange import Exchange
from service.http.problems import HeadersTooLarge, RequestMalformed, RequestTimeout
from service.settings import Settings

logger = logging.getLogger("service.http")
MAX_HEAD = 2**16  # bytes of the request line and headers
MAX_PIPELINED = 32  # requests that may wait on one connection
ASGI = {"version": "3.0", "spec_version": "2.3"}


@dataclass(frozen=True)
class Limits:
    """Seconds, and a number. `client`: of silence in a request. `request`: for one, its answer read. `rest`: between two requests,
    longer than proxies keep theirs. `linger`: that a client may still send after its answer; of silence while the server ends."""

    client: float = 20.0
    request: float = 60.0
    rest: float = 75.0
    linger: float = 1.0
    connections: int = 1000

    @classmethod
    def of(cls, settings: Settings, connections: int) -> Self:
        return cls(client=settings.client_timeout, request=settings.request_timeout, connections=connections)


def _date() -> bytes:
    return f"date: {formatdate(usegmt=True)}\r\n".encode()


@dataclass
class Shared:
    """What all connections of a server share. `refusal`: what every new request is told, once the server ends; `app` finds it in
    scope["state"]["refusal"]."""

    app: ASGIApp
    limits: Limits
    loop: asyncio.AbstractEventLoop
    state: dict[str, Any] = field(default_factory=dict)
    counted: Callable[[int], None] = lambda _: None
    refusal: VisionError | None = None
    connections: set["Connection"] = field(default_factory=set)
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    date: bytes = field(default_factory=_date)

    def tick(self) -> None:
        """To be called about once a second, and more often where limits are short."""
        self.date = _date()
        now = self.loop.time()
        for connection in tuple(self.connections):
            connection.check(now)

    def make_room(self) -> bool:
        """Is there room for the newest connection? Else the one that has rested longest gives way."""
        if len(self.connections) <= self.limits.connections:
            return True
        resting = [connection for connection in self.connections if connection.resting]
        if not resting:
            return False
        min(resting, key=lambda connection: connection.until).close()
        return True


class Connection(asyncio.Protocol):
    """`until`: the loop's time at which the client must have gone on. `resting`: is it between two requests?"""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser: Any = None
        self.until = math.inf
        self.resting = False
        self._addresses: dict[str, Any] = {}
        self._refusal: VisionError | None = None
        self._active: Exchange | None = None  # the application answers it
        self._incoming: Exchange | None = None  # its body is being received
        self._waiting: deque[Exchange] = deque()  # pipelined behind the active one
        self._in_head = False
        self._head_size = 0  # of what is parsed
        self._head_read = 0  # in pieces that did not end it
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects = False
        self._deaf = False  # is what arrives dropped?
        self._error: VisionError | None = None  # to be told after the answers before it
        self._reading = True
        self._writable: asyncio.Event | None = None  # there while the client reads too slowly
        self._written = self._unsent = 0
        self._clogged_since = self._stuck_since = math.inf

    # From the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # no error: it is dropped
        self._addresses = {
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
        }
        self._shared.connections.add(self)
        self._shared.counted(len(self._shared.connections))
        if not self._shared.make_room():
            self._refusal = Busy("too many connections are open")
        self._expect_within(self._shared.limits.client if self._shared.refusal is None else self._shared.limits.linger)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._shared.connections.discard(self)
        self._shared.counted(len(self._shared.connections))
        self._parser = None
        self.until = math.inf
        for exchange in (self._active, self._incoming, *self._waiting):
            if exchange is not None:
                exchange.leave()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        in_head = self._in_head
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # what follows would be in a protocol that is not spoken here
            self.end()
        except httptools.HttpParserError as error:
            cause = error.__context__
            if cause is not None and not isinstance(cause, (VisionError, ValueError, httptools.HttpParserError)):
                logger.error("a request's head could not be taken", exc_info=cause)
            self._break(cause if isinstance(cause, VisionError) else RequestMalformed(f"this cannot be parsed: {error}"))
        else:
            if in_head and self._in_head:
                self._head_read += len(data)
                if self._head_read > MAX_HEAD:
                    self._break(_too_large())

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    # From the parser.

    def on_message_begin(self) -> None:
        if len(self._waiting) >= MAX_PIPELINED:
            raise RequestMalformed(f"more than {MAX_PIPELINED} requests wait on one connection")
        self._url, self._headers = b"", []
        self._head_size = self._head_read = 0
        self._expects, self._in_head, self.resting = False, True, False
        self._expect_within(self._shared.limits.client)

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._grow_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # trailers
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects = True
        self._headers.append((name, value))
        self._grow_head(len(name) + len(value) + 4)

    def _grow_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > MAX_HEAD:
            raise _too_large()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self.until = math.inf
        scope = self._scope()
        keep_alive = scope["http_version"] != "1.0" and self._parser.should_keep_alive()
        refusal = self._shared.refusal or self._refusal
        if refusal is not None:
            scope["state"]["refusal"], keep_alive = refusal, False
        exchange = Exchange(self._shared.app, scope, self, keep_alive=keep_alive, expects=self._expects)
        self._incoming = exchange
        if self._active is None:
            self._start(exchange)
        else:
            self._waiting.append(exchange)
            self.pause_reading()

    def on_body(self, body: bytes) -> None:
        exchange = self._incoming
        if exchange is None or exchange.complete:
            return
        if self.until < math.inf:
            self.await_body()
        exchange.feed(body)

    def on_message_complete(self) -> None:
        exchange, self._incoming = self._incoming, None
        if exchange is None:
            return
        exchange.end_body()
        if exchange is self._active:
            self.until = math.inf
        elif exchange.complete:
            self._finish(exchange)

    def _scope(self) -> Scope:
        url = httptools.parse_url(self._url) if self._url != b"*" else None
        raw = b"*" if url is None else url.path or b"/"
        path = raw.decode("ascii")
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": self._parser.get_http_version(),
            "scheme": "http",
            "method": self._parser.get_method().decode("ascii"),
            "root_path": "",
            "path": urllib.parse.unquote(path) if "%" in path else path,
            "raw_path": raw,
            "query_string": b"" if url is None else url.query or b"",
            "headers": self._headers,
            "state": self._shared.state.copy(),
            **self._addresses,
        }

    # From the exchange.

    @property
    def date(self) -> bytes:
        return self._shared.date

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._written += len(data)
            self._transport.write(data)

    async def drain(self) -> None:
        if self._writable is not None:
            await self._writable.wait()

    def pause_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading, self.until = False, math.inf
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and not self._waiting and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def await_body(self) -> None:
        self._expect_within(self._shared.limits.client)

    def break_off(self) -> None:
        """Reset the connection, so that nothing of it stays in the kernel and no client takes half an answer for a whole one."""
        connection = self._transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def completed(self, exchange: Exchange) -> None:
        """The response is written; what of the request has not come is read and dropped, for closing at once would reset the
        connection while the client still sends, and the answer would be lost with it."""
        self._active = None
        if not exchange.more_body:
            self._finish(exchange)
        elif exchange.keep_alive:
            self._expect_within(self._shared.limits.client)
            self.resume_reading()
        else:
            self._linger()

    def _finish(self, exchange: Exchange) -> None:
        """Request and response are over."""
        if not exchange.keep_alive:
            self.close()
        elif self._waiting:
            self._start(self._waiting.popleft())
            self.resume_reading()
        elif self._error is not None:
            self._tell(self._error)
        else:
            self.resume_reading()
            if not self._in_head:
                self.resting = True
                self._expect_within(self._shared.limits.rest)

    # From the server.

    def check(self, now: float) -> None:
        """Do what a client that keeps the server waiting has earned."""
        self._check_reader(now)
        if now < self.until or self._transport.is_closing():
            return
        self.until = math.inf
        exchange = self._incoming
        if self._deaf or (exchange is not None and exchange.complete) or not (exchange or self._in_head):
            self.close()  # it lingered, dribbled what nobody reads, or rested
        else:
            self._break(RequestTimeout(f"nothing, or not enough, was sent for {self._shared.limits.client:g} seconds"))

    def _check_reader(self, now: float) -> None:
        unsent = self._transport.get_write_buffer_size()
        if not unsent:
            self._clogged_since = self._stuck_since = math.inf
            return
        sent = self._written - unsent
        if self._clogged_since == math.inf:
            self._clogged_since = self._stuck_since = now
        elif sent > self._unsent:
            self._stuck_since = now
        self._unsent = sent
        limits = self._shared.limits
        if now - self._stuck_since > limits.client or now - self._clogged_since > limits.request:
            self.break_off()

    def end(self) -> None:
        """The server ends, or the client has had enough: what has been asked is answered, and no more."""
        last = self._waiting[-1] if self._waiting else self._active
        if last is not None:
            last.keep_alive = False
        elif not self._in_head:
            self._expect_within(min(self._shared.limits.linger, self._shared.limits.client))

    def close(self) -> None:
        """Close when all that was written is sent."""
        self.until = math.inf
        self._transport.close()

    # Among themselves.

    def _start(self, exchange: Exchange) -> None:
        self._active = exchange
        task = self._shared.loop.create_task(exchange.run())
        self._shared.tasks.add(task)
        task.add_done_callback(self._shared.tasks.discard)

    def _expect_within(self, seconds: float) -> None:
        self.until = self._shared.loop.time() + seconds

    def _break(self, error: VisionError) -> None:
        """Nothing sensible comes any more: `error` is told once what was asked before is answered."""
        self._deaf, self.until = True, math.inf
        exchange = self._incoming
        if exchange is not None and exchange.complete:
            self.close()
        elif exchange is not None:
            exchange.fail(error)
        elif self._active is None:
            self._tell(error)
        else:
            self._error = error

    def _tell(self, error: VisionError) -> None:
        logger.info("%s: %s", error.title, error)
        scope = {"method": "GET", "path": "/", "http_version": "1.1"}
        Exchange(self._shared.app, scope, self, keep_alive=False, expects=False).answer(error)

    def _linger(self) -> None:
        self._deaf = self._deaf or self._incoming is None
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.resume_reading()
        self._expect_within(min(self._shared.limits.linger, self._shared.limits.client))


def _too_large() -> InputError:
    return HeadersTooLarge(f"the request line and headers have more than {MAX_HEAD} bytes")


def _address(name: Any) -> tuple[str, int] | None:
    return (str(name[0]), int(name[1])) if isinstance(name, (tuple, list)) else None
