"""POST /stylize/optimize, and what becomes of it below /jobs.

    upload -> decoded once, to know that it can be -> Jobs.submit -> 202       GET /jobs/{id}, its events, its result; DELETE

The encoded pictures wait with the job, not their pixels, which take ten times the memory.
"""

import time
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from service import jobs
from service.engine import Engine
from service.errors import QueueFull
from service.http.events import Events
from service.http.guards import Meter, UploadBudget, Workers
from service.http.jobcards import OPTIMIZE, Job, ResultOptions
from service.http.negotiation import JSON, PICTURES, choose
from service.http.options import read_options
from service.http.routes import Endpoint, accept_of, require_ready
from service.http.tasks import PAINTED, decode_all
from service.http.uploads import Fields, Upload, read_upload
from service.imaging.codec import Format, encode
from service.tasks.optimize import OptimizeOptions

FIELDS = Fields(("image", "style_image"))
KIND = "stylize/optimize"
QUEUE = "/jobs"  # of encoding results
MOST_LISTENERS = 64  # of one job: each holds a connection for as long as the job runs
RETRY = 10.0  # seconds after which one more may find a place
FRESH = {"Cache-Control": "no-store"}


@dataclass(frozen=True)
class Desk:
    """What the routes work with. `workers` look at uploads and encode results, quickly; the jobs have threads of their own."""

    engine: Engine
    jobs: jobs.Jobs
    workers: Workers
    budget: UploadBudget


def start_endpoint(desk: Desk) -> Endpoint:
    """Guards, then the body, then a look at the pictures; whatever is wrong with a request is told before it becomes a job."""
    engine = desk.engine

    async def optimize(request: Request) -> Response:
        require_ready(engine)
        desk.jobs.check()
        desk.workers.check(OPTIMIZE)
        with Meter(engine.settings.max_body_bytes, desk.budget) as meter:
            async with desk.workers.deadline():
                upload = await read_upload(request, FIELDS, OptimizeOptions, meter)
                look = partial(_look, engine, upload)
                size, image, style = await desk.workers.run(OPTIMIZE, look, request.receive)
                work = partial(engine.optimize, image, style, upload.options)
                iterations, weight = upload.options.iterations, len(image) + len(style)
                job = desk.jobs.submit(KIND, work, upload.options, iterations=iterations, size=size, weight=weight)
        card = Job.of(job, request.scope)
        return Response(card.as_json(), 202, {"Location": card.links.self, **FRESH}, JSON)

    return optimize


def _look(engine: Engine, upload: Upload[OptimizeOptions]) -> tuple[tuple[int, int], bytes, bytes]:
    """Width and height that the photo will be painted at in the end, and both pictures as they were sent.

    Raises whatever would be wrong with the job.
    """
    photos = decode_all(engine, upload.images)
    engine.optimize(photos["image"], photos["style_image"], upload.options).close()
    height, width = photos["image"].pixels.shape[:2]
    scale = min(1.0, upload.options.max_side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return size, bytes(upload.images["image"]), bytes(upload.images["style_image"])


def show_endpoint(desk: Desk) -> Endpoint:
    async def job(request: Request) -> Response:
        return _told(desk.jobs.get(request.path_params["id"]), request)

    return job


def events_endpoint(desk: Desk) -> Endpoint:
    async def events(request: Request) -> Response:
        job = desk.jobs.get(request.path_params["id"])
        if job.listeners >= MOST_LISTENERS:
            raise QueueFull(f"{MOST_LISTENERS} clients watch this job already", retry_after=RETRY)
        return Events(job)

    return events


def drop_endpoint(desk: Desk) -> Endpoint:
    async def drop(request: Request) -> Response:
        return _told(desk.jobs.drop(request.path_params["id"]), request)

    return drop


def _told(job: jobs.Job, request: Request) -> Response:
    return Response(Job.of(job, request.scope).as_json(), headers=FRESH, media_type=JSON)


def result_endpoint(desk: Desk) -> Endpoint:
    async def result(request: Request) -> Response:
        job = desk.jobs.get(request.path_params["id"])
        options = read_options(ResultOptions, request.query_params.multi_items(), ())
        media = _media(job, options, accept_of(request))
        pixels, model = job.result(), job.view.model
        quality = options.quality or job.options.quality
        kind: Format = media.removeprefix("image/")  # type: ignore[assignment]
        started = time.perf_counter()
        async with desk.workers.deadline():
            body = await desk.workers.run(QUEUE, partial(encode, pixels, kind, quality), request.receive)
        headers = {"Vary": "Accept", "X-Image-Width": str(pixels.shape[1]), "X-Image-Height": str(pixels.shape[0]), **FRESH}
        headers["Server-Timing"] = f"encode;dur={(time.perf_counter() - started) * 1e3:.1f}, total;dur={job.seconds * 1e3:.1f}"
        if model is not None:
            headers |= {"X-Model": model.name, "X-Model-Version": model.version}
            headers |= {"X-Provider": model.provider, "X-Precision": model.precision}
        return Response(body, headers=headers, media_type=media)

    return result


def _media(job: jobs.Job, options: ResultOptions, accept: str) -> str:
    """As asked for now, else by the Accept header, which gets the format that the job was begun with where it takes several alike.

    Raises NotAcceptable.
    """
    if options.format is not None:
        return PICTURES[options.format]
    first = PICTURES[job.options.format]
    return choose(accept, (first, *(media for media in PAINTED if media != first)))
