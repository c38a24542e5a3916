"""create_app: the one place where engine, routes and middleware are put together.

server -> Access -> task's endpoint -> Workers -> Engine                                      (see service.http.direct)
server -> ServerErrorMiddleware -> Access -> Methods -> Gate -> exception handlers -> routes   whatever else is asked

Who may come in is asked by the Gate, and at the beginning of the short way; CORS, where it is on, is right behind Access on both.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import Scope

from service import __version__
from service.engine import Engine
from service.errors import GalleryUnavailable, InputError, OptionInvalid, SettingInvalid, SetupError, VisionError
from service.http import (
    compreface,
    deepstack,
    faces,
    gate,
    health,
    jobs,
    keys,
    kserve,
    logs,
    models,
    openapi,
    openapi_faces,
    openapi_jobs,
    openapi_models,
    page,
    routes,
    tracing,
)
from service.http.access import Access
from service.http.direct import Fork, short_way
from service.http.guards import UploadBudget, Workers
from service.http.jobcards import EVENTS, JOB, OPTIMIZE, RESULT
from service.http.methods import Methods, allowed_methods
from service.http.metrics import JOBS, Metrics
from service.http.parts import Parts, Protocol, Row
from service.http.problems import MethodUnsupported, PathUnknown, respond
from service.http.siblings import Siblings
from service.http.tasks import TASKS
from service.jobs import Jobs
from service.repository.progress import Silent
from service.settings import Settings

logger = logging.getLogger("service.http")
FLUSH_SECONDS = 2.0  # that traces get to be sent in the end
PROTOCOLS: dict[str, Protocol] = {"kserve": kserve.PROTOCOL, "deepstack": deepstack.PROTOCOL, "compreface": compreface.PROTOCOL}
"""What other programs speak already, by the name in VISION_PROTOCOLS."""

_TASK_WAYS = frozenset(("POST", task.path) for task in TASKS)
CLOSING_SECONDS = 2.0  # that a model still being loaded is waited for when the process is told to stop
ABANDONED_SECONDS = 0.5  # that a job is waited for whose client has gone, or was told that time is up


def from_env() -> Fork:
    """The application on an engine with the settings of the environment, for ASGI servers other than `vision-service serve`.

    Raises SetupError.
    """
    settings = Settings.from_env()
    logs.configure(settings.log_level)
    ring = keys.load(settings)
    if ring is None and not settings.open:
        raise SettingInvalid(
            "who can reach the service is not known here: set VISION_API_KEYS, or VISION_OPEN=true to serve anybody"
        )
    gate.warn(gate.worries(settings, ring, elsewhere=True))
    return create_app(Engine(settings, progress=Silent()))


def stop_process(_: str) -> None:
    """Ask the server to stop, as an operator would."""
    signal.raise_signal(signal.SIGTERM)


def create_app(engine: Engine, *, give_up: Callable[[str], None] = stop_process) -> Fork:
    """The HTTP face of `engine`, which is started and closed with the application.

    Models are loaded in the background: until they are ready, tasks and /health/ready answer 503. `give_up` is called when the
    engine cannot be started; the log says why. Raises SettingInvalid for keys that are written wrong.
    """
    ring = keys.load(engine.settings)
    admit, cors = gate.admission(engine.settings, ring), gate.with_cors(engine.settings)
    workers = {slow: Workers.of(engine.settings, slow=slow) for slow in (False, True)}
    clerks = Workers.of(engine.settings)  # of the gallery: a database that does not answer holds up no other task
    desk = models.Desk.of(engine, UploadBudget.of(engine.settings))
    groups = (*workers.values(), clerks, desk.workers)
    metrics, traces = Metrics.from_env(), tracing.from_env()
    for group in groups:
        metrics.watch(group.crew.waiting)
    siblings = Siblings(metrics.folder, metrics.worker)
    kept = Jobs.of(engine.settings, siblings.prefix)
    metrics.watch(kept.counts, JOBS)
    spoken = [PROTOCOLS[name] for name in engine.settings.protocols if name in PROTOCOLS]
    table = _table(engine, workers, clerks, metrics, desk)
    links, found = routes.Links(version=__version__, tasks=[task.path for task in TASKS]), page.load(__version__)
    table.append(("GET", "/", page.landing_endpoint(found, links), openapi.LANDING))
    budget = UploadBudget.of(engine.settings)
    strangers = None if ring is None else UploadBudget(2 * engine.settings.max_body_bytes)
    parts = Parts(engine, workers[False], clerks, budget, strangers, partial(gate.key_of_body, ring), workers[True])
    of_jobs = _jobs(jobs.Desk(engine, kept, workers[False], budget))
    own = Router([_route(method, path, endpoint) for method, path, endpoint, _ in of_jobs])
    table += [(method, path, siblings.shared(endpoint) if "{id}" in path else endpoint, o) for method, path, endpoint, o in of_jobs]
    table += [row for protocol in spoken for row in protocol.rows(parts)]
    ways = {(method, path): _route(method, path, endpoint) for method, path, endpoint, _ in table}
    app = FastAPIOffline(
        title="vision-service",
        version=__version__,
        summary="Classify pictures, find objects, compare faces, paint photos",
        description=openapi.DESCRIPTION,
        routes=list(ways.values()),
        lifespan=_lifespan(engine, groups, give_up, traces, partial(_keeping, kept, siblings, own)),
        redirect_slashes=False,
        swagger_ui_parameters={"validatorUrl": None, "defaultModelsExpandDepth": 0, "displayRequestDuration": True},
    )
    app.routes.append(_route("GET", page.ASSETS, page.assets_endpoint(found)))
    app.state.dialects = [(prefix, protocol.word) for protocol in spoken for prefix in protocol.prefixes]
    app.add_middleware(gate.Gate, admit=admit)
    app.add_middleware(Methods, routes=app.routes)
    app.add_middleware(cors)
    app.add_middleware(Access, metrics=metrics, tracing=traces)
    _add_handlers(app)
    operations = {(method, path): operation for method, path, _, operation in table}
    openapi.describe_routes(app, operations, keyed=ring is not None)
    short = {way: short_way(route, route.endpoint, admit, _explain) for way, route in ways.items() if way in _TASK_WAYS}
    return Fork(app, {way: Access(cors(end), metrics, traces) for way, end in short.items()}, kept.end)


def _route(method: str, path: str, endpoint: routes.Endpoint) -> Route:
    kind = faces.SubjectRoute if path.startswith(faces.SUBJECTS) else Route
    return kind(path, endpoint, methods=[method])


def _table(
    engine: Engine, workers: dict[bool, Workers], gallery_workers: Workers, metrics: Metrics, desk: models.Desk
) -> list[Row]:
    """Every route with its entry on the API page. Plain Starlette routes: bodies are read by service.http.uploads, so what FastAPI
    does around an endpoint would be time for nothing."""
    budget = UploadBudget.of(engine.settings)
    tasks: list[Row] = [
        ("POST", task.path, routes.task_endpoint(task, engine, workers[task.slow], budget), openapi.task(task, engine.settings))
        for task in TASKS
    ]
    clerks = faces.Clerks(engine, gallery_workers, budget)
    gallery: list[Row] = [
        ("GET", faces.SUBJECTS, faces.list_endpoint(clerks), openapi_faces.LIST),
        ("POST", faces.FACES, faces.enroll_endpoint(clerks), openapi_faces.enroll(engine.settings)),
        ("GET", faces.SUBJECT, faces.subject_endpoint(clerks), openapi_faces.SHOW),
        ("PATCH", faces.SUBJECT, faces.rename_endpoint(clerks), openapi_faces.RENAME),
        ("DELETE", faces.SUBJECT, faces.forget_endpoint(clerks), openapi_faces.FORGET),
        ("DELETE", faces.FACE, faces.forget_face_endpoint(clerks), openapi_faces.FORGET_FACE),
    ]
    catalogue: list[Row] = [
        ("GET", models.MODELS, models.list_endpoint(engine), openapi_models.LIST),
        ("POST", models.MODELS, models.add_endpoint(desk), openapi_models.add(engine.settings)),
        ("GET", models.MODEL, models.show_endpoint(engine), openapi_models.SHOW),
        ("PATCH", models.MODEL, models.change_endpoint(desk), openapi_models.CHANGE),
        ("DELETE", models.MODEL, models.remove_endpoint(desk), openapi_models.REMOVE),
    ]
    return [
        *tasks,
        *gallery,
        *catalogue,
        ("GET", "/styles", routes.styles_endpoint(engine), openapi.STYLES),
        ("GET", "/styles/{name}/thumbnail.jpg", routes.thumbnail_endpoint(engine, workers[True]), openapi.THUMBNAIL),
        ("GET", "/health/live", health.live, openapi.LIVE),
        ("GET", "/health/ready", health.ready_endpoint(engine), openapi.READY),
        ("GET", "/metrics", health.metrics_endpoint(metrics, engine), openapi.METRICS),
        ("GET", "/problems/{code}", routes.explain_problem, openapi.PROBLEM),
    ]


@asynccontextmanager
async def _keeping(kept: Jobs, siblings: Siblings, own: Router) -> AsyncIterator[None]:
    """Answers siblings of this worker by `own`; in the end no job goes on."""
    await siblings.listen(own, _explain)
    yield
    await asyncio.to_thread(kept.close, ABANDONED_SECONDS)
    await siblings.close()


def _jobs(desk: jobs.Desk) -> list[Row]:
    return [
        ("POST", OPTIMIZE, jobs.start_endpoint(desk), openapi_jobs.start(desk.engine.settings)),
        ("GET", JOB, jobs.show_endpoint(desk), openapi_jobs.SHOW),
        ("GET", EVENTS, jobs.events_endpoint(desk), openapi_jobs.EVENTS_OF_JOB),
        ("GET", RESULT, jobs.result_endpoint(desk), openapi_jobs.RESULT_OF_JOB),
        ("DELETE", JOB, jobs.drop_endpoint(desk), openapi_jobs.DROP),
    ]


def _add_handlers(app: FastAPI) -> None:
    """Whatever is raised in a route or instead of one becomes a problem; what is not named here, Access answers."""

    async def vision_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, VisionError):
            raise error
        return _explain(error, request.scope)

    async def http_exception(request: Request, error: Exception) -> Response:
        return respond(_translate(request, error), request.scope)

    async def validation_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        first = error.errors()[0]
        return respond(OptionInvalid(str(first["loc"][-1]), str(first["msg"])), request.scope)

    app.add_exception_handler(VisionError, vision_error)
    app.add_exception_handler(HTTPException, http_exception)
    app.add_exception_handler(RequestValidationError, validation_error)


def _explain(error: VisionError, scope: Scope) -> Response:
    response = respond(error, scope)
    if response.status_code == 500:
        logger.error("request failed", exc_info=error, extra={"request_id": scope["state"]["request_id"]})
    elif isinstance(error, GalleryUnavailable):  # whose message names the database: not for clients
        logger.error("%s: %s", error.title, error, extra={"request_id": scope["state"]["request_id"]})
    return response


def _translate(request: Request, error: Exception) -> VisionError:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return PathUnknown(f"there is nothing at {request.url.path!r:.200}; /docs shows what is here")
    if status == 405:
        return MethodUnsupported(request.method, allowed_methods(request.app.routes, request.scope))
    return InputError(str(error)) if status < 500 else VisionError(str(error))


def _lifespan(
    engine: Engine,
    groups: tuple[Workers, ...],
    give_up: Callable[[str], None],
    traces: tracing.Tracing | None,
    keeping: Callable[[], AbstractAsyncContextManager[None]],
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    def start() -> None:
        try:
            engine.open_gallery()  # first: the service is ready as soon as the last model is
            engine.start()
            groups[0].crew.grow(engine.concurrency)
            logger.info("ready", extra={"models": [card.name for card in engine.describe()]})
        except (SetupError, GalleryUnavailable) as error:
            logger.critical("%s: %s", error.title, error)
            give_up(str(error))
        except Exception as error:
            logger.critical("the engine could not be started", exc_info=True)
            give_up(f"the engine could not be started: {error!r}")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starter = threading.Thread(target=start, name="start", daemon=True)
        starter.start()
        async with keeping():
            yield
        for group in groups:
            await asyncio.to_thread(group.close, ABANDONED_SECONDS)
        await asyncio.to_thread(starter.join, CLOSING_SECONDS)
        if not starter.is_alive():
            await asyncio.to_thread(engine.close)
        if traces is not None:
            await asyncio.to_thread(traces.close, min(FLUSH_SECONDS, engine.settings.shutdown_seconds))

    return lifespan
