"""The page at /: HTML, style and ES modules as they lie in the package. There is no build step.

Assets have addresses that hold the digest of them all, so browsers keep them for good and never mix two releases. The page itself
is asked for each time and costs a 304. Its policy lets it load and ask nothing but this service, and run no script but these files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from service.http.negotiation import JSON, choose
from service.http.problems import PathUnknown
from service.http.routes import Endpoint, Links, accept_of, as_json

ASSETS = "/static/{digest}/{name:path}"
FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"
HTML = "text/html"
MEDIA = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""data: is for previews of paintings, blob: for the photos of whoever uses the page."""
FOR_GOOD, EACH_TIME = "public, max-age=31536000, immutable", "no-cache"


@dataclass(frozen=True)
class Asset:
    """One file of the page. `etag`: of its bytes, quoted as the header is."""

    body: bytes
    media: str
    etag: str

    @classmethod
    def of(cls, body: bytes, media: str) -> "Asset":
        return cls(body, media, f'"{sha256(body).hexdigest()[:20]}"')


@dataclass(frozen=True)
class Page:
    """The page and what it loads, by path below `static`. `digest`: of all of it."""

    index: Asset
    assets: Mapping[str, Asset]
    digest: str


def load(version: str, folder: Path = FOLDER) -> Page:
    """Read every file of a page from `folder`, and write into index.html the service's version and where its assets are."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in MEDIA)
    assets = {path.relative_to(folder).as_posix(): Asset.of(path.read_bytes(), MEDIA[path.suffix]) for path in files}
    digest = sha256("".join(f"{name} {asset.etag}\n" for name, asset in assets.items()).encode()).hexdigest()[:16]
    text = (folder / INDEX).read_text(encoding="utf-8")
    for name, value in {
        "{assets}": f"static/{digest}",
        "{version}": version,
    }.items():  # relative: a proxy may put a prefix before it
        text = text.replace(name, value)
    return Page(Asset.of(text.encode(), HTML), assets, digest)


def landing_endpoint(page: Page, links: Links) -> Endpoint:
    """The page for browsers, links for programs."""

    async def landing(request: Request) -> Response:
        if choose(accept_of(request), (JSON, HTML)) == HTML:
            headers = {"Vary": "Accept", "Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
            return _respond(request, page.index, headers | {"Cache-Control": EACH_TIME})
        response = as_json(links)
        response.headers["Vary"] = "Accept"
        return response

    return landing


def assets_endpoint(page: Page) -> Endpoint:
    """One asset. Under the digest of another release, which a page that is still open may ask with, it is not kept."""

    async def asset(request: Request) -> Response:
        found = page.assets.get(request.path_params["name"])
        if found is None:
            raise PathUnknown(f"there is nothing at {request.url.path!r:.200}; / is the page")
        known = request.path_params["digest"] == page.digest
        return _respond(request, found, {"Cache-Control": FOR_GOOD if known else EACH_TIME})

    return asset


def _respond(request: Request, asset: Asset, headers: Mapping[str, str]) -> Response:
    headers = {**headers, "ETag": asset.etag, "X-Content-Type-Options": "nosniff"}
    seen = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if asset.etag in seen:
        return Response(None, 304, headers)
    return Response(asset.body, headers=headers, media_type=asset.media)
