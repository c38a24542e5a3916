"""What stands behind each path: the tasks from their table, and the pages that say what is here."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from service.engine import Engine
from service.errors import NotReady, StyleUnknown
from service.http.guards import Meter, UploadBudget, Workers
from service.http.negotiation import JSON
from service.http.problems import KINDS, PathUnknown
from service.http.record import record_of
from service.http.tasks import Task
from service.http.uploads import read_upload
from service.tasks.stylize import StyleInfo

Endpoint = Callable[[Request], Awaitable[Response]]
THUMBNAIL_AGE = 3600  # seconds that a thumbnail may be cached


class StyleCard(StyleInfo):
    thumbnail: str = Field(description="path of a sample photo painted in this style, a JPEG")


class Styles(BaseModel):
    """Answer of GET /styles."""

    styles: list[StyleCard]


class Links(BaseModel):
    """Answer of GET / for programs: where everything is."""

    service: str = "vision-service"
    version: str
    tasks: list[str] = Field(description="paths that take pictures, by POST")
    models: str = "/models"
    styles: str = "/styles"
    subjects: str = "/subjects"
    ready: str = "/health/ready"
    docs: str = "/docs"
    openapi: str = "/openapi.json"


class Explanation(BaseModel):
    """Answer of GET /problems/{code}."""

    code: str
    title: str
    status: int
    remedy: str = Field(description="what the caller can do")


def accept_of(request: Request) -> str:
    """The Accept header, all its lines as one."""
    return ", ".join([value.decode("latin-1") for name, value in request.scope["headers"] if name == b"accept"])


def as_json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type=JSON)


def task_endpoint(task: Task[Any], engine: Engine, workers: Workers, budget: UploadBudget) -> Endpoint:
    """Guards, then the body, then the engine: nothing is read for a request that cannot be served."""
    name = task.path.strip("/")

    async def endpoint(request: Request) -> Response:
        require_ready(engine)
        workers.check(task.path)
        with Meter(engine.settings.max_body_bytes, budget) as meter:
            async with workers.deadline():
                upload = await read_upload(request, task.fields, task.options, meter)
                media = task.media(upload.options, accept_of(request))
                job = partial(task.answer_upload, engine, upload, media, time.perf_counter())
                reply = await workers.run(task.path, job, request.receive)
        record_of(request.scope).ran(name, reply.model, reply.timing)
        vary = {"Vary": "Accept"} if len(task.offers_for(upload.options)) > 1 else {}
        return Response(reply.body, headers={**vary, **reply.headers}, media_type=reply.media)

    endpoint.__name__ = name.replace("-", "_")
    return endpoint


def require_ready(engine: Engine) -> None:
    """Raises NotReady naming the models that have not answered a warm-up run."""
    if not engine.ready:
        raise NotReady(f"models are still being prepared: {', '.join(engine.pending)}", retry_after=2.0)


def styles_endpoint(engine: Engine) -> Endpoint:
    async def styles(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        cards = [
            StyleCard(**style.model_dump(), thumbnail=f"{root}/styles/{style.name}/thumbnail.jpg") for style in engine.styles()
        ]
        return as_json(Styles(styles=cards))

    return styles


def thumbnail_endpoint(engine: Engine, workers: Workers) -> Endpoint:
    async def thumbnail(request: Request) -> Response:
        require_ready(engine)
        try:
            async with workers.deadline():
                job = partial(engine.thumbnail, request.path_params["name"])
                picture = await workers.run("/styles", job, request.receive)
        except StyleUnknown as error:
            raise PathUnknown(str(error)) from None
        return Response(picture, headers={"Cache-Control": f"max-age={THUMBNAIL_AGE}"}, media_type="image/jpeg")

    return thumbnail


async def explain_problem(request: Request) -> Response:
    """What a problem's `code` means and what to do about it."""
    code = request.path_params["code"]
    for cls, kind in KINDS.items():
        if cls.code == code:
            return as_json(Explanation(code=code, title=cls.title, status=kind.status, remedy=kind.remedy))
    raise PathUnknown(f"there is no problem {code!r:.80}; the codes are: {', '.join(sorted(cls.code for cls in KINDS))}")
