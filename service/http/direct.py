"""The short way in: requests of the tasks go to their endpoints without passing through FastAPI's and Starlette's layers.

    server -> Fork -> Access -> endpoint                        POST of a task's path
                   -> everything that FastAPI puts around it    any other request

Those layers do nothing for an endpoint that reads its body itself, but their code is cold whenever a model has just run through the
caches of the core, and then costs several times what it costs by itself.
"""

from collections.abc import Callable, Mapping

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import VisionError
from service.http.routes import Endpoint

Way = tuple[str, str]
"""Method and path."""


class Fork:
    """Sends a request down one of `ways` where its method and path are a key there, and into `app` otherwise.

    `ending` is to be called when the server begins to end: answers that would go on without end are brought to theirs.
    """

    def __init__(self, app: FastAPI, ways: Mapping[Way, ASGIApp], ending: Callable[[], None]) -> None:
        self.app, self._ways, self.ending = app, ways, ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = self._ways.get((scope["method"], scope["path"])) if scope["type"] == "http" and not scope.get("root_path") else None
        await (way or self.app)(scope, receive, send)


def short_way(
    route: Route, endpoint: Endpoint, admit: Callable[[Scope], None], explain: Callable[[VisionError, Scope], Response]
) -> ASGIApp:
    """`endpoint`, which stands behind `route`, as an ASGI application of its own; `explain` answers what it raises on purpose, or
    what `admit` raises before it (see service.http.gate)."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = route
        try:
            admit(scope)
            response = await endpoint(Request(scope, receive, send))
        except VisionError as error:
            response = explain(error, scope)
        await response(scope, receive, send)

    return app
