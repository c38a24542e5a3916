"""A job as a stream of server-sent events (WHATWG HTML, section 9.2): progress and previews while it runs, and its end.

    event: progress   data: Job                         after an iteration, at most PACE seconds apart
    event: preview    data: {"iteration", "image"}      a small JPEG as a data: URI
    event: end        data: Job                         once, and the stream is over
    : here            where nothing else was sent for a while, so that nobody on the way takes the connection for dead

A stream holds nothing but what it sends right now. A client that reads slowly is told the newest state whenever it has read the
last one; for one that reads nothing see service.http.protocol.
"""

import asyncio
import binascii
from collections.abc import Callable
from contextlib import suppress

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service import jobs
from service.http.jobcards import Job

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = 5.0  # seconds of silence
PACE = 0.1
NO_BUFFERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Events(Response):
    """Streams `job` until it has ended or the client has gone."""

    media_type = MEDIA_TYPE

    def __init__(self, job: jobs.Job) -> None:
        super().__init__(headers=NO_BUFFERS)
        del self.headers["content-length"]
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if not scope.get("state", {}).get("head"):  # for HEAD the head is all
            await self._stream(scope, receive, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody listens
                loop.call_soon_threadsafe(changed.set)

        gone = asyncio.ensure_future(_gone(receive, changed.set))
        try:
            with self._job.listen(wake):
                await self._tell(scope, send, changed, gone.done)
        finally:
            gone.cancel()

    async def _tell(self, scope: Scope, send: Send, changed: asyncio.Event, is_gone: Callable[[], bool]) -> None:
        told: jobs.View | None = None
        shown: jobs.Preview | None = None
        while not is_gone():
            changed.clear()
            view, preview = self._job.view, self._job.preview
            if preview is not None and preview is not shown and not view.ended:
                shown = preview
                await _send(send, _event("preview", _shown(preview)))
            if view is not told:
                told = view
                await _send(send, _event("end" if view.ended else "progress", Job.of(self._job, scope).as_json()))
                if view.ended:
                    return
                await asyncio.sleep(PACE)
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await changed.wait()
            except TimeoutError:
                await _send(send, b": here\n\n")


async def _gone(receive: Receive, then: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    then()


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _shown(preview: jobs.Preview) -> bytes:
    image = binascii.b2a_base64(preview.jpeg, newline=False).decode()
    return to_json({"iteration": preview.iteration, "image": f"data:image/jpeg;base64,{image}"})
