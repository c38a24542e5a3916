"""Who may come in: what each route needs, and what the Gate lets pass before a byte of the body is read.

With keys set, every route needs one but those in OPEN, and so does a path that nothing is at. OPTIONS never does: browsers send it
without, before they ask.
Without keys the service is its machine's own, and yet a web page that a user visits can reach it. So the Gate refuses what a
browser says another site's page has sent, and a Host that a page could have given this machine (DNS rebinding).
"""

import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import VisionError
from service.http.keys import MANAGE, USE, Key, Keyring, read_by_all
from service.http.problems import CrossSite, HostUnknown, ScopeMissing, respond
from service.http.record import record_of
from service.http.tasks import TASKS
from service.settings import Settings

Admit = Callable[[Scope], None]
"""Raises KeyMissing, KeyUnknown, ScopeMissing, CrossSite or HostUnknown where a request, its route known, may not come in."""

OPEN = frozenset(
    {
        *("/", "/static/{digest}/{name:path}", "/health/live", "/health/ready", "/problems/{code}"),
        *("/v2", "/v2/health/live", "/v2/health/ready"),
        *("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/static-offline-docs"),
        *(f"/v1{path}/{name}" for path in ("/status", "/server/status") for name in ("ping", "version", "updateavailable")),
    }
)
ANY_KEY = frozenset({"/metrics"})
_TENSORS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
USED = frozenset(
    {
        *(model + end for model in _TENSORS for end in ("", "/ready", "/config", "/infer")),
        *(task.path for task in TASKS),
        *("/stylize/optimize", "/jobs/{id}", "/jobs/{id}/events", "/jobs/{id}/result"),
        *("/identify", "/styles", "/styles/{name}/thumbnail.jpg"),
        *("/v1/vision/detection", "/v1/vision/custom/list", "/v1/vision/custom/{model}", "/v1/vision/scene"),
        *("/v1/vision/face", "/v1/vision/face/match", "/v1/vision/face/recognize"),
        *("/api/v1/verification/verify", "/api/v1/detection/detect", "/api/v1/recognition/recognize"),
        "/api/v1/recognition/faces/{image_id}/verify",
    }
)
KEY_IN_BODY = "/v1/vision/"
"""Below it a key may also come as a form field: without one in a header, the route itself asks `key_of_body`."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
NO_ONES = (".localhost", ".internal")  # endings that no public name has
FOREIGN = (b"cross-site", b"same-site")
EXPOSED = (
    *("X-Request-ID", "Retry-After", "Server-Timing", "X-Model", "X-Model-Version", "X-Provider", "X-Precision"),
    *("X-Image-Width", "X-Image-Height", "Location"),
)
SENT = ("X-API-Key", "Authorization", "Content-Type", "X-Request-ID")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

logger = logging.getLogger("service.http")


def scopes_for(path: str | None) -> frozenset[str]:
    """The scopes of which a key needs one for the route `path`, a template; none: no key is needed. What no table names needs
    `manage`, and a path that nothing is at (None) any key."""
    if path in OPEN:
        return frozenset()
    if path is None or path in ANY_KEY:
        return frozenset({USE, MANAGE})
    return frozenset({USE if path in USED else MANAGE})


def admission(settings: Settings, ring: Keyring | None) -> Admit:
    """What is asked of every request."""
    if ring is not None:
        return partial(_with_key, ring)
    return partial(_from_here, frozenset(settings.cors_origins), settings.open)


def _with_key(ring: Keyring, scope: Scope) -> None:
    path = getattr(scope.get("route"), "path", None)
    needed = scopes_for(path)
    if not needed or scope["method"] == "OPTIONS":
        return
    if path is not None and path.startswith(KEY_IN_BODY) and not ring.sent(scope["headers"]):
        return
    _admit(scope, needed, ring.identify(scope["headers"]))


def key_of_body(ring: Keyring | None, scope: Scope, needed: frozenset[str], key: str | None) -> None:
    """Asks for the key that came in a body, unless one in a header was admitted already.

    Raises KeyMissing, KeyUnknown or ScopeMissing.
    """
    if ring is not None and record_of(scope).key is None:
        _admit(scope, needed, ring.identify([(b"x-api-key", key.encode())] if key else []))


def _admit(scope: Scope, needed: frozenset[str], key: Key) -> None:
    record_of(scope).key = key.name
    if not needed & key.scopes:
        raise ScopeMissing(" or ".join(sorted(needed)), sorted(key.scopes))


def _from_here(origins: frozenset[str], open_to_all: bool, scope: Scope) -> None:
    site = origin = host = b""
    for name, value in scope["headers"]:
        if name == b"host":
            host = value
            if not open_to_all and not is_own(host):
                raise HostUnknown(host.decode("latin-1"))
        elif name == b"origin":
            origin = value
        elif name == b"sec-fetch-site":
            site = value
    if (site or origin) and scope["method"] not in SAFE and _is_foreign(site, origin, host):
        told = origin.decode("latin-1")
        if "*" not in origins and told not in origins:
            raise CrossSite(told)


def _is_foreign(site: bytes, origin: bytes, host: bytes) -> bool:
    """Does a page of another site send this? Browsers say so; older ones name only the page's origin, "null" where it has none."""
    return site.lower() in FOREIGN if site else not host or origin.lower().partition(b"://")[2] != host.lower()


@lru_cache(maxsize=256)
def is_own(host: bytes) -> bool:
    """Can a Host header be trusted to mean this machine: an address, its own name, or a name that cannot be in public DNS? Any page
    can have a public name of its own resolve to 127.0.0.1."""
    name = host.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0].removesuffix(".")
    if "." not in name and ":" not in name:
        return True  # localhost, a container's name
    if name.endswith(NO_ONES) or name == socket.gethostname().lower():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Gate:
    """Wraps an application whose routes are known already (see service.http.methods): who is not admitted is told why."""

    def __init__(self, app: ASGIApp, admit: Admit) -> None:
        self._app, self._admit = app, admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._admit(scope)
            except VisionError as error:
                await respond(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def with_cors(settings: Settings) -> Callable[[ASGIApp], ASGIApp]:
    """Wraps an application so that pages of VISION_CORS_ORIGINS may call it; without any, it stays as it is."""
    if not settings.cors_origins:
        return lambda app: app
    return partial(
        CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=METHODS, allow_headers=SENT, expose_headers=EXPOSED
    )


def worries(settings: Settings, ring: Keyring | None, *, elsewhere: bool) -> list[str]:
    """What an operator should know about who can come in. `elsewhere`: can other machines reach the service?"""
    found = []
    if ring is None and elsewhere:
        found.append("no keys are set: whoever reaches this service may use it and manage its faces; set VISION_API_KEYS")
    if settings.api_keys_file is not None and read_by_all(settings.api_keys_file.expanduser()):
        found.append("the file of VISION_API_KEYS_FILE can be read by every user of this machine; chmod o-r it")
    return found


def warn(found: Iterable[str]) -> None:
    """Log each of `found` as a warning."""
    for text in found:
        logger.warning(text)
