"""The Open Inference Protocol v2, which KServe, Triton and their clients speak: raw tensors in and out of every loaded model.

    body -> (gzip, deflate) -> service.http.tensors -> LoadedModel.run, in the batches of everybody else -> tensors -> body

https://github.com/kserve/open-inference-protocol. Of Triton's extensions: binary_tensor_data, classification, model_configuration
and model_repository. A model has one version, that of its model.toml, which may be called "1" as well. More is in
docs/protocols-kserve.md.
"""

import asyncio
import gzip
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, StrictBool, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import __version__
from service.errors import (
    BodyTooLarge,
    InferenceFailed,
    InputError,
    MalformedBody,
    ModelUnknown,
    NotReady,
    SetupError,
    UnsupportedMedia,
)
from service.fleet import Fleet
from service.http import openapi_kserve
from service.http.forms import Data
from service.http.guards import Meter
from service.http.negotiation import JSON
from service.http.openapi_kserve import BYTES, EXTENSIONS, MODEL, PLATFORM, VERSION
from service.http.parts import Parts, Protocol, Row
from service.http.problems import PathUnknown, Problem
from service.http.record import record_of
from service.http.routes import Endpoint, require_ready
from service.http.tensors import MAX_BATCH, datatype, read_feeds, read_request, read_wanted, shape_of, write_answer
from service.http.uploads import read_body
from service.loaded import PAINTERS, LoadedModel
from service.repository.spec import ModelSpec
from service.runtime.session import Tensors
from service.settings import Settings
from service.tasks.painting import TILE
from service.tasks.task import ModelInfo, Timing, TimingMs

KIND = "/infer"  # the name of the queue, and in the metrics
HEADER_LENGTH = "inference-header-content-length"
MAX_ASKED = 2**20  # bytes of what the repository is asked
WINDOW = {"gzip": 31, "deflate": 15}  # zlib's name for the format
USUAL_SIDE, MOST_USUAL = 1280, 4  # of pictures of any size: the side of a square, and how many times the model's own size
STATES = {"ready": "READY", "loading": "LOADING", "unloaded": "UNAVAILABLE", "failed": "UNAVAILABLE"}


@dataclass(frozen=True)
class Call:
    """An inference request that has arrived whole, at the time.perf_counter() moment `arrived`."""

    body: Data
    encoding: str | None
    header_length: int | None
    wants: str | None
    arrived: float


@dataclass(frozen=True)
class Answer:
    body: bytes
    headers: Mapping[str, str]
    model: ModelInfo
    timing: TimingMs


def word(problem: Problem) -> tuple[int, Mapping[str, Any]]:
    """Errors as this protocol has them; what other paths tell by 422 is 400 here."""
    return 400 if problem.status == 422 else problem.status, {"error": problem.detail}


def infer(model: LoadedModel, call: Call, settings: Settings) -> Answer:
    """Run one request, on the calling thread. Raises InputError for a wrong tensor, and what LoadedModel.run raises."""
    timing = Timing()
    timing.waited(time.perf_counter() - call.arrived, settings.request_timeout)
    session = model.sessions["model"]
    with timing.measure("preprocess"):
        request, behind = read_request(unpacked(call.body, call.encoding, settings.max_body_bytes), call.header_length)
        feeds, wanted = read_feeds(request, behind, session.inputs), read_wanted(request, session.outputs)
        check_sizes(feeds, model.spec)
    if request.parameters.timeout and timing.deadline is not None:
        timing.deadline = min(timing.deadline, timing.started + request.parameters.timeout / 1e6)
    outputs = run(model, feeds, timing)
    with timing.measure("postprocess"):
        head = {"model_name": model.spec.name, "model_version": model.spec.version}
        if request.id:
            head["id"] = request.id
        body, header_length = write_answer(head, wanted, outputs, model.labels)
        headers = {"Content-Type": JSON if header_length is None else BYTES, "Vary": "Accept-Encoding"}
        if header_length is not None:
            headers[HEADER_LENGTH] = str(header_length)
        if call.wants is not None:
            body = gzip.compress(body, 1, mtime=0) if call.wants == "gzip" else zlib.compress(body, 1)
            headers["Content-Encoding"] = call.wants
    return Answer(body, headers, model.info, timing.report())


def unpacked(body: Data, encoding: str | None, limit: int) -> Data:
    """The body as it was before it was packed. Raises BodyTooLarge as soon as it has more than `limit` bytes, MalformedBody,
    UnsupportedMedia."""
    if encoding in (None, "identity"):
        return body
    if encoding not in WINDOW:
        raise UnsupportedMedia(f"the body is encoded as {encoding!r:.80}; gzip and deflate are taken")
    packed = zlib.decompressobj(WINDOW[encoding])
    try:
        whole = packed.decompress(body, limit + 1)
    except zlib.error:
        raise MalformedBody(f"the body is not {encoding}, as its Content-Encoding says") from None
    if len(whole) > limit:
        raise BodyTooLarge(f"the unpacked body has more than {limit} bytes; no more are taken")
    if not packed.eof or packed.unused_data:
        raise MalformedBody(f"the body does not end where its {encoding} ends")
    return whole


def check_sizes(feeds: Tensors, spec: ModelSpec) -> None:
    """Batch and pictures as the model can take them. Raises InputError."""
    for name, tensor in feeds.items():
        if len(tensor) > MAX_BATCH:
            raise InputError(f"the input {name!r} has a batch of {len(tensor)}; at most {MAX_BATCH} are taken at once")
        if tensor.ndim == 4 and tensor.dtype == np.uint8:
            _check_picture(name, tensor.shape[1:3], spec)
        elif tensor.ndim == 4 and spec.task == "paint":  # float32 NCHW: the picture, and what its features are to be
            _check_picture(name, tensor.shape[2:], spec)


def _check_picture(name: str, sides: tuple[int, ...], spec: ModelSpec) -> None:
    height, width = sides
    step = spec.input.multiple_of
    if height % step or width % step:
        raise InputError(f"the input {name!r} is {height} x {width} pixels, but both sides must be multiples of {step}")
    most = most_pixels(spec)
    if height * width > most:
        raise InputError(f"the input {name!r} is {height} x {width} pixels; a picture for {spec.name} has at most {most}")


def most_pixels(spec: ModelSpec) -> int:
    """Pixels of one picture: what the tasks themselves run at once bounds the memory of a run."""
    if spec.input.size is not None:
        return MOST_USUAL * spec.input.size[0] * spec.input.size[1]
    return TILE**2 if spec.task in PAINTERS else (spec.input.max_side or USUAL_SIDE) ** 2


def run(model: LoadedModel, feeds: Tensors, timing: Timing) -> Tensors:
    """The outputs for a batch of any size, run in parts of the size that is best here, each in the model's lane."""
    total, part = len(next(iter(feeds.values()))), model.tuning.plan.batch
    try:
        parts = [
            model.run({name: tensor[start : start + part] for name, tensor in feeds.items()}, timing)
            for start in range(0, total, part)
        ]
    except InferenceFailed as error:
        if any(-1 in shape_of(info)[1:] for info in model.sessions["model"].inputs):  # sizes that the caller has chosen
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in feeds.items())
            raise InputError(f"{model.spec.name} cannot be run on {shapes}: {str(error)[:300]}") from error
        raise
    return parts[0] if len(parts) == 1 else {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}


def metadata(model: LoadedModel) -> dict[str, Any]:
    session = model.sessions["model"]
    inputs, outputs = (
        [{"name": info.name, "datatype": datatype(info.dtype), "shape": shape_of(info)} for info in infos]
        for infos in (session.inputs, session.outputs)
    )
    return {"name": model.spec.name, "versions": [model.spec.version], "platform": PLATFORM, "inputs": inputs, "outputs": outputs}


def config(model: LoadedModel) -> dict[str, Any]:
    """As much of Triton's model configuration as there is here. Its shapes leave out the batch."""
    session = model.sessions["model"]
    inputs, outputs = (
        [{"name": info.name, "data_type": f"TYPE_{_triton(info.dtype)}", "dims": shape_of(info)[1:]} for info in infos]
        for infos in (session.inputs, session.outputs)
    )
    plan = model.tuning.plan
    return {
        "name": model.spec.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": MAX_BATCH,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": inputs,
        "output": outputs,
        "instance_group": [{"kind": "KIND_CPU" if "CPU" in model.info.provider else "KIND_GPU", "count": plan.parallel}],
        "dynamic_batching": {"preferred_batch_size": [plan.batch]},
    }


def _triton(dtype: str) -> str:
    name = datatype(dtype)
    return "STRING" if name == "BYTES" else name


class Desk:
    """The models of an engine as this protocol sees them."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._settings = parts, parts.engine.settings
        self._turn = asyncio.Lock()  # loading takes long: one at a time leaves threads for others

    @property
    def _fleet(self) -> Fleet:
        return self._parts.engine.fleet

    def endpoint(self, show: Callable[[LoadedModel], dict[str, Any]]) -> Endpoint:
        """What `show` says of the model that the path names."""

        async def one_model(request: Request) -> Response:
            return JSONResponse(show(self._find(request)))

        return one_model

    async def live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, _: Request) -> Response:
        require_ready(self._parts.engine)
        return JSONResponse({"ready": True})

    async def server(self, _: Request) -> Response:
        return JSONResponse({"name": "vision-service", "version": __version__, "extensions": list(EXTENSIONS)})

    async def infer(self, request: Request) -> Response:
        """Nothing is read for a request that cannot be served."""
        model = self._find(request)
        workers = self._parts.nice_workers if model.spec.task in PAINTERS else self._parts.workers
        workers.check(KIND)
        with Meter(self._settings.max_body_bytes, self._parts.budget) as meter:
            async with workers.deadline():
                body = await read_body(request, meter)
                call = Call(body, _encoding(request), _header_length(request), _wants(request), time.perf_counter())
                answer = await workers.run(KIND, partial(infer, model, call, self._settings), request.receive)
        record_of(request.scope).ran("infer", answer.model, answer.timing)
        return Response(answer.body, headers=dict(answer.headers))

    async def index(self, request: Request) -> Response:
        asked = await self._read(request, _Index)
        return JSONResponse([row for row in map(self._row, self._fleet.names()) if row["state"] == "READY" or not asked.ready])

    async def load(self, request: Request) -> Response:
        asked, name = await self._read(request, _Change), request.path_params["model"]
        other = sorted(set(asked.parameters))
        if other:
            raise InputError(f"{other[0][:80]!r} is not taken: a model is loaded as its own folder describes it")
        try:
            await self._change(self._fleet.load, name)
        except (SetupError, ModelUnknown) as error:
            reason = self._fleet.reason(name) if isinstance(error, ModelUnknown) else str(error)
            if reason is None:
                raise
            raise InputError(f"failed to load {name!r}: {reason}") from error
        return JSONResponse({})

    async def unload(self, request: Request) -> Response:
        await self._read(request, _Change)
        await self._change(self._fleet.unload, request.path_params["model"])
        return JSONResponse({})

    def _find(self, request: Request) -> LoadedModel:
        """The model and version of the path. Raises ModelUnknown, NotReady, PathUnknown."""
        name, version = request.path_params["model"], request.path_params.get("version")
        state = self._fleet.state(name)
        if state != "ready":
            reason = self._fleet.reason(name)
            raise NotReady(f"the model {name!r} is not ready: {state}" + (f", {reason}" if reason else ""), retry_after=2.0)
        model = self._fleet.get(name)
        if version not in (None, "1", model.spec.version):
            raise PathUnknown(f"the model {name!r} has no version {version!r:.80}; it has {model.spec.version!r}")
        return model

    def _row(self, name: str) -> dict[str, Any]:
        state = self._fleet.state(name)
        row = {"name": name, "state": STATES[state], "reason": self._fleet.reason(name) or ""}
        return row | ({"version": self._fleet.get(name).spec.version} if state == "ready" else {})

    async def _read(self, request: Request, kind: type["_Asked"]) -> Any:
        with Meter(min(MAX_ASKED, self._settings.max_body_bytes), self._parts.budget) as meter:
            async with self._parts.workers.deadline():
                body = await read_body(request, meter)
        try:
            return kind.model_validate_json(bytes(body) or b"{}")
        except ValidationError as error:
            raise MalformedBody(f"the body is not as it should be: {error.errors()[0]['msg']}") from None

    async def _change(self, change: Callable[[str], object], name: str) -> None:
        async with self._parts.workers.deadline(), self._turn:
            await asyncio.to_thread(change, name)


class _Asked(BaseModel):
    """What the repository's routes take in a body, which may be empty."""


class _Index(_Asked):
    ready: StrictBool = False


class _Change(_Asked):
    parameters: dict[str, Any] = Field(default_factory=dict)


def _encoding(request: Request) -> str | None:
    given = request.headers.get("content-encoding")
    return None if given is None else given.strip().lower()


def _wants(request: Request) -> str | None:
    """The coding of the answer: only where one alone is asked for, as tritonclient does. Nearly every other client names some
    without asking, and tensors take longer to pack than to send."""
    wanted = request.headers.get("accept-encoding", "").strip().lower()
    return wanted if wanted in WINDOW else None


def _header_length(request: Request) -> int | None:
    given = request.headers.get(HEADER_LENGTH)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 20):
        raise MalformedBody(f"Inference-Header-Content-Length {given!r:.40} is not a number")
    return int(given)


def _rows(parts: Parts) -> list[Row]:
    desk = Desk(parts)
    ends: dict[tuple[str, str], Endpoint] = {
        ("GET", "/v2"): desk.server,
        ("GET", "/v2/health/live"): desk.live,
        ("GET", "/v2/health/ready"): desk.ready,
        ("POST", "/v2/repository/index"): desk.index,
        ("POST", "/v2/repository/models/{model}/load"): desk.load,
        ("POST", "/v2/repository/models/{model}/unload"): desk.unload,
    }
    for path in (MODEL, VERSION):
        ends |= {
            ("GET", path): desk.endpoint(metadata),
            ("GET", f"{path}/ready"): desk.endpoint(_readiness),
            ("GET", f"{path}/config"): desk.endpoint(config),
            ("POST", f"{path}/infer"): desk.infer,
        }
    return [(method, path, end, openapi_kserve.operation(method, path)) for (method, path), end in ends.items()]


def _readiness(model: LoadedModel) -> dict[str, Any]:
    return {"name": model.spec.name, "ready": True}


PROTOCOL = Protocol("kserve", ("/v2",), _rows, word)
