"""A request id on every response, one line in the log for every request, and the last net under every error.

A pure ASGI middleware: bodies pass by untouched. Pages are told to load nothing from elsewhere, so that they are the same with
no network: ReDoc would fetch a logo.
"""

import logging
import re
import time
import uuid
from collections.abc import Iterable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import VisionError
from service.http.problems import respond

CLIENT_GONE = 499  # as nginx logs it
FROM_HERE_ONLY = (b"content-security-policy", b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:")
SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")

Header = tuple[bytes, bytes]
logger = logging.getLogger("service.access")


class Access:
    """Wraps the application. The id of a request is in scope["state"]["request_id"]; a sane X-Request-ID is taken over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*_with_policy(message.get("headers", ())), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception:
            logger.exception("request failed", extra={"request_id": request_id})
            if status:  # the answer is half sent: only breaking the connection tells the client
                raise
            await respond(VisionError(), scope)(scope, receive, send_with_id)
        finally:
            line = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round((time.perf_counter() - start) * 1e3, 1),
                "request_id": request_id,
            }
            logger.info("request", extra=line)


def _with_policy(headers: Iterable[Header]) -> list[Header]:
    headers = list(headers)
    page = any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers)
    return [*headers, FROM_HERE_ONLY] if page else headers


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex
