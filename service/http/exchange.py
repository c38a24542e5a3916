"""One request and its response, between a connection and the application (ASGI 3).

Body chunks are handed over as they came, without being joined where there is one; the response's head waits for the first piece of
its body, so that both leave in one write.
"""

import asyncio
import http
import logging
import math
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from service.errors import NotReady, VisionError
from service.http.problems import MEDIA_TYPE, describe

logger = logging.getLogger("service.http")
HIGH_WATER = 2**18  # bytes of a body that may wait for the application before the connection is no longer read
SMALL = 2**16  # bytes up to which a body is copied behind its head rather than written by itself
LINES = {code: f"HTTP/1.1 {code} {http.HTTPStatus(code).phrase}\r\n".encode() for code in map(int, http.HTTPStatus)}
NO_BODY = frozenset({*range(100, 200), 204, 304})


class Line(Protocol):
    """What an exchange needs of its connection."""

    @property
    def date(self) -> bytes: ...
    def write(self, data: bytes) -> None: ...
    def resume_reading(self) -> None: ...
    def pause_reading(self) -> None: ...
    def await_body(self) -> None: ...
    def completed(self, exchange: "Exchange") -> None: ...
    def break_off(self) -> None: ...
    async def drain(self) -> None: ...


class Exchange:
    """`more_body`: the request is not here whole. `complete`: the response is written whole. `gone`: so is the client."""

    __slots__ = (
        "_app",
        "_bodiless",
        "_chunked",
        "_chunks",
        "_expects",
        "_failure",
        "_head",
        "_left",
        "_line",
        "_news",
        "_size",
        "_told",
        "complete",
        "gone",
        "keep_alive",
        "more_body",
        "scope",
        "started",
    )

    def __init__(self, app: ASGIApp, scope: Scope, line: Line, *, keep_alive: bool, expects: bool) -> None:
        self._app, self.scope, self._line = app, scope, line
        self.keep_alive, self._expects = keep_alive, expects
        self.more_body = True
        self.gone = self.started = self.complete = False
        self._news = asyncio.Event()
        self._chunks: list[bytes] = []
        self._size = 0
        self._told = False  # has the application been handed the end of the body?
        self._failure: VisionError | None = None
        self._head: bytes | None = None
        self._bodiless = self._chunked = False
        self._left = 0

    # From the connection.

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > HIGH_WATER:
            self._line.pause_reading()
        self._news.set()

    def end_body(self) -> None:
        self.more_body = False
        self._news.set()

    def fail(self, error: VisionError) -> None:
        """The rest of the body will not come: the application meets `error` where it waits for it."""
        self._failure, self.keep_alive = error, False
        self._news.set()

    def leave(self) -> None:
        self.gone = True
        self._news.set()

    # From the application.

    async def run(self) -> None:
        error = VisionError()
        try:
            await self._app(self.scope, self.receive, self.send)
            if not self.complete and not self.gone:
                logger.error("the application returned without a response")
        except asyncio.CancelledError:  # the server's time is up
            error = NotReady("the service is shutting down")
        except VisionError as told:  # most likely what receive() raised
            error = told
        except Exception:
            if not self.gone:
                logger.exception("request failed")
        if not self.complete and not self.gone:
            self.answer(error)

    def answer(self, error: VisionError) -> None:
        """Tell `error` without the application."""
        if self.started:  # half a response is sent: only breaking the connection tells the client
            self._line.break_off()
            return
        start, body = problem(error, self.scope["path"], self.scope.get("state", {}).get("request_id"))
        self._begin(start)
        self._proceed(body)

    async def receive(self) -> Message:
        if self._expects and not self._told and not self.started:
            self._expects = False
            self._line.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._has_news():
            self._line.resume_reading()
            if self.more_body:
                self._line.await_body()
            self._news.clear()
            await self._news.wait()
        if self.gone or self.complete:
            return {"type": "http.disconnect"}
        if self._failure:
            raise self._failure
        chunks, self._chunks, self._size = self._chunks, [], 0
        self._told = not self.more_body
        return {"type": "http.request", "body": chunks[0] if len(chunks) == 1 else b"".join(chunks), "more_body": self.more_body}

    def _has_news(self) -> bool:
        end = not self.more_body and not self._told
        return bool(self._chunks) or end or self.gone or self.complete or self._failure is not None

    async def send(self, message: Message) -> None:
        await self._line.drain()
        if self.gone:
            return
        if self.complete:
            raise RuntimeError(f"{message['type']} after the response was complete")
        if self._head is None and not self.started:
            self._begin(message)
        else:
            self._proceed(message)

    def _begin(self, message: Message) -> None:
        """Compose the head; it is sent together with the body's first piece."""
        if message["type"] != "http.response.start":
            raise RuntimeError(f"{message['type']} before http.response.start")
        status, length, named_close = message["status"], None, False
        self._chunked = False
        parts = [LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, self._line.date]
        for name, value in message.get("headers", ()):
            if name == b"content-length":
                length = int(value)
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive, named_close = False, True
            parts += (name, b": ", value, b"\r\n")
        lines = len(parts[2:]) // 4 + 2
        self._bodiless = self.scope["method"] == "HEAD" or status in NO_BODY
        if length is None and not self._bodiless:
            if self.scope["http_version"] == "1.0":
                self.keep_alive = False
            else:
                self._chunked = True
                parts.append(b"transfer-encoding: chunked\r\n")
                lines += 1
        if self._expects and self.more_body:  # the client may or may not send what it was not asked for
            self.keep_alive = False
        if not self.keep_alive and not named_close:
            parts.append(b"connection: close\r\n")
            lines += 1
        head = b"".join(parts)
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            raise RuntimeError("a header holds a line break")
        self._left = -1 if length is None else length
        self._head = head + b"\r\n"

    def _proceed(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            raise RuntimeError(f"{message['type']} in the middle of a response")
        body, more = message.get("body", b""), message.get("more_body", False)
        self._check_length(len(body), more)
        if self._bodiless:
            body = b""
        elif self._chunked:
            body = b"".join((b"%x\r\n" % len(body), body, b"\r\n")) if body else b""
            body = body if more else body + b"0\r\n\r\n"
        if self._head is not None:
            head, self._head, self.started = self._head, None, True
            if len(body) <= SMALL:
                body = b"".join((head, body))
            else:
                self._line.write(head)
        if body:
            self._line.write(body)
        if not more:
            self.complete = True
            self._news.set()
            self._line.completed(self)

    def _check_length(self, size: int, more: bool) -> None:
        if self._left < 0 or self._bodiless:
            return
        self._left -= size
        if self._left < 0 or (self._left and not more):
            raise RuntimeError(f"the response's body is {'longer' if self._left < 0 else 'shorter'} than its Content-Length")


def problem(error: VisionError, path: str, request_id: str | None) -> tuple[Message, Message]:
    """The response that tells `error` where no application could."""
    document = describe(error, instance=path, request_id=request_id)
    body = document.model_dump_json(exclude_none=True).encode()
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    if request_id is not None:
        headers.append((b"x-request-id", request_id.encode("ascii", "replace")))
    if document.retry_after is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(document.retry_after)))
    return {"type": "http.response.start", "status": document.status, "headers": headers}, {
        "type": "http.response.body",
        "body": body,
    }
