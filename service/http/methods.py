"""HEAD and OPTIONS for every path alike: HEAD is GET without the body, OPTIONS says what a path answers.

Also says which route a request is for, in scope["route"]: FastAPI tells that of its own routes only.
"""

from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def allowed_methods(routes: list[BaseRoute], scope: Scope) -> tuple[str, ...]:
    """What the path of `scope` answers, in a fixed order; empty where there is nothing."""
    methods: set[str] = set()
    for route in routes:
        if route.matches(scope)[0] is not Match.NONE:
            methods |= set(getattr(route, "methods", None) or {"GET"})
    if not methods:
        return ()
    methods |= {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    return tuple(method for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") if method in methods)


class Methods:
    """Wraps an application that has `routes`."""

    def __init__(self, app: ASGIApp, routes: list[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method")
        if scope["type"] == "http":
            scope["route"] = next((route for route in self._routes if route.matches(scope)[0] is not Match.NONE), None)
        if method == "HEAD":
            scope.setdefault("state", {})["head"] = True  # for what would answer without end
            await self._app({**scope, "method": "GET"}, receive, _without_body(send))
        elif method == "OPTIONS" and (allowed := allowed_methods(self._routes, scope)):
            await Response(status_code=204, headers={"Allow": ", ".join(allowed)})(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head
