"""A request id on every response, and at the end of every request its line in the log, its part in the metrics and its span.

A pure ASGI middleware: bodies pass by untouched, only their bytes are counted. It is also the last net under every error. Pages are
told to load nothing from elsewhere, so that they are the same with no network: ReDoc would fetch a logo.
"""

import asyncio
import itertools
import logging
import os
import re
from collections.abc import Iterable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import NotReady, VisionError
from service.http.logs import info
from service.http.metrics import Metrics
from service.http.problems import respond
from service.http.record import Record
from service.http.tracing import Tracing

CLIENT_GONE = 499  # as nginx logs it
FROM_HERE_ONLY = (b"content-security-policy", b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:")
SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
TRACE_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")

_PROCESS, _COUNTER = os.urandom(10).hex(), itertools.count(1)  # an id that no other process gives, without a system call each time

Header = tuple[bytes, bytes]
logger = logging.getLogger("service.access")


class Access:
    """Wraps the application. A request's Record is in scope["state"]["record"], its id in scope["state"]["request_id"]; a sane
    X-Request-ID is taken over. Without `tracing` no spans are made."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app, self._metrics, self._tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record, state = _begin(scope), scope["state"]
        span = None if self._tracing is None else self._tracing.begin(record, scope)
        headers = [(b"x-request-id", record.request_id.encode()), *(() if span is None else span.headers)]
        self._metrics.begin()

        async def counted_receive() -> Message:
            message = await receive()
            if "refusal" in state:  # the body will not come whole
                raise state["refusal"]
            record.bytes_in += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*_with_policy(message.get("headers", ())), *headers]
            else:
                record.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            app = respond(state["refusal"], scope) if "refusal" in state else self._app  # see service.http.protocol
            await app(scope, counted_receive, counted_send)
        except ClientDisconnect:
            record.status, record.reason = CLIENT_GONE, "client_gone"
        except asyncio.CancelledError:  # the server's time is up
            if record.status:
                record.reason = "shutting_down"
                raise
            await respond(NotReady("the service is shutting down"), scope)(scope, receive, counted_send)
            record.reason = "shutting_down"
        except Exception:
            logger.exception("request failed", extra={"request_id": record.request_id})
            if record.status:  # the answer is half sent: only breaking the connection tells the client
                raise
            await respond(VisionError(), scope)(scope, counted_receive, counted_send)
        finally:
            record.end(scope)
            self._metrics.record(record)
            if span is not None:
                span.end(record)
            info(logger, "request", record.fields())


def _begin(scope: Scope) -> Record:
    record = Record(scope["method"], scope["path"], "")
    for name, value in scope["headers"]:
        if name == b"x-request-id" and SANE_ID.fullmatch(value):
            record.request_id = str(value, "ascii")
        elif name == b"traceparent":
            record.trace_id = _trace_id(value)
    record.request_id = record.request_id or f"{_PROCESS}{next(_COUNTER):012x}"
    state = scope.setdefault("state", {})
    state["request_id"], state["record"] = record.request_id, record
    return record


def _trace_id(traceparent: bytes) -> str | None:
    """The caller's trace id; None where the header is not as W3C Trace Context has it: version 00 ends after its flags."""
    found = TRACE_PARENT.fullmatch(traceparent)
    return None if found is None or (found[2] and traceparent.startswith(b"00")) else str(found[1], "ascii")


def _with_policy(headers: Iterable[Header]) -> list[Header]:
    headers = list(headers)
    page = any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers)
    stricter = any(name == FROM_HERE_ONLY[0] for name, _ in headers)
    return [*headers, FROM_HERE_ONLY] if page and not stricter else headers
