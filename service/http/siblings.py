"""Which of several workers has a job, and how the others answer for it.

    client -> any worker: Access, Gate -> Siblings.shared -> its own endpoint                       the job is its own
                                                          -> unix socket -> the owner's endpoint    the id names another worker

Workers of a supervisor share its listening socket, so a client never knows whom it asks. A job's id begins with the number of the
worker that has it, and each worker listens on a socket in the supervisor's private folder (see service.http.cells), where nobody
else can come: what arrives there has passed a Gate.

    request     one line of JSON
    response    one line of JSON, then the body in pieces: four bytes of length, and so many bytes; a length of 0 ends it
"""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from service.errors import JobUnknown, VisionError
from service.http.routes import Endpoint

logger = logging.getLogger("service.http")
Explain = Callable[[VisionError, Scope], Response]
LONGEST_LINE = 2**18  # bytes: of all headers together at most 2**16 arrive
MOST_DIGITS = 9  # of a worker's number: of thousands of them int() makes none
CLOSING_SECONDS = 1.0  # for answers that are on their way to siblings
PASSED_ON = ("method", "path", "root_path")


class Siblings:
    """The workers that share `folder`, this one being `number`; None: it is alone. For one event loop."""

    def __init__(self, folder: Path | None, number: int) -> None:
        self._folder, self._number = folder, number
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def prefix(self) -> str:
        """What ids of this worker's jobs begin with."""
        return "" if self._folder is None else f"{self._number}."

    def shared(self, endpoint: Endpoint) -> Endpoint:
        """`endpoint`, of a route with an {id}, for the ids of all siblings."""

        async def anywhere(request: Request) -> Response:
            place = self._place(request.path_params["id"])
            return await endpoint(request) if place is None else await _ask(place, request)

        anywhere.__name__ = endpoint.__name__
        return anywhere

    def _place(self, identity: str) -> Path | None:
        """The socket of the worker that has the job; None where that is this one."""
        number = identity.partition(".")[0]
        numbered = number.isascii() and number.isdigit() and len(number) <= MOST_DIGITS
        if self._folder is None or not numbered or int(number) == self._number:
            return None
        return self._folder / f"{int(number)}.sock"

    async def listen(self, router: Router, explain: Explain) -> None:
        """Answer siblings by `router`, whose errors `explain` tells; nothing where there are none."""
        if self._folder is None:
            return

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._answering.add(task)
            try:
                with suppress(ConnectionError):
                    await _answer(reader, writer, router, explain)
            finally:
                self._answering.discard(task)
                writer.close()

        path = self._folder / f"{self._number}.sock"
        path.unlink(missing_ok=True)  # of a worker that died here
        self._server = await asyncio.start_unix_server(answer, path, limit=LONGEST_LINE)

    async def close(self) -> None:
        """Take no more, and let what is being answered be told."""
        if self._server is not None:
            self._server.close()
            if self._answering:
                await asyncio.wait(tuple(self._answering), timeout=CLOSING_SECONDS)


# The worker that is asked.


@dataclass
class _Answer(Response):
    """What the owner answers, passed on as it comes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: Message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        gone = asyncio.ensure_future(self._watch(receive))
        try:
            await send(self.head)
            while True:
                size = int.from_bytes(await self.reader.readexactly(4))
                body = await self.reader.readexactly(size)
                await send({"type": "http.response.body", "body": body, "more_body": size > 0})
                if not size:
                    return
        except asyncio.IncompleteReadError:
            if not gone.done():  # the owner has died: only breaking the connection tells the client
                raise ConnectionResetError("the worker that had the job has ended") from None
        finally:
            gone.cancel()
            self.writer.close()

    async def _watch(self, receive: Receive) -> None:
        """When the client goes away, so does the owner's reader."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.writer.close()
        self.reader.feed_eof()


async def _ask(place: Path, request: Request) -> Response:
    """Raises JobUnknown where that worker is no more: its jobs have gone with it."""
    try:
        reader, writer = await asyncio.open_unix_connection(place, limit=LONGEST_LINE)
    except OSError:
        raise JobUnknown(request.path_params["id"]) from None
    scope, state = request.scope, request.scope.get("state", {})
    told = {name: scope.get(name, "") for name in PASSED_ON}
    told |= {"query": scope["query_string"].decode("latin-1"), "accept": request.headers.getlist("accept")}
    told |= {"request_id": state.get("request_id"), "head": bool(state.get("head"))}
    try:
        writer.write(json.dumps(told).encode() + b"\n")
        await writer.drain()
        answer = json.loads(await reader.readline())
    except (OSError, ValueError):
        writer.close()
        raise JobUnknown(request.path_params["id"]) from None
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer["headers"]]
    return _Answer(reader, writer, {"type": "http.response.start", "status": answer["status"], "headers": headers})


# The worker that has the job.


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, router: Router, explain: Explain) -> None:
    line = await reader.readline()
    if not line:  # whoever would ask has gone
        return
    scope = _scope(json.loads(line))
    begun = False

    async def receive() -> Message:
        await reader.read()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal begun
        if message["type"] == "http.response.start":
            begun = True
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
            writer.write(json.dumps({"status": message["status"], "headers": headers}).encode() + b"\n")
        else:
            body = message.get("body", b"")
            pieces = [len(body).to_bytes(4), body] if body else []
            writer.write(b"".join(pieces if message.get("more_body") else [*pieces, bytes(4)]))
        await writer.drain()

    try:
        await router(scope, receive, send)
    except ClientDisconnect:
        return
    except VisionError as error:
        await explain(error, scope)(scope, receive, send)
    except Exception as error:
        if isinstance(error, OSError) or begun:
            raise
        logger.exception("request failed", extra={"request_id": scope["state"]["request_id"]})
        await explain(VisionError(), scope)(scope, receive, send)


def _scope(told: dict[str, Any]) -> Scope:
    headers = [(b"accept", value.encode("latin-1")) for value in told["accept"]]
    state = {"request_id": told["request_id"]} | ({"head": True} if told["head"] else {})
    fixed = {"type": "http", "http_version": "1.1", "scheme": "http", "server": None, "client": None}
    place = {name: told[name] for name in PASSED_ON} | {"raw_path": told["path"].encode(), "query_string": told["query"].encode()}
    return {**fixed, **place, "headers": headers, "state": state}
