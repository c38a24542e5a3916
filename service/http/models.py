"""The models over HTTP: which there are, and adding, changing and removing them while requests run.

    POST /models -> guards -> the file, streamed to the data folder (see service.http.files) -> Fleet.add on a thread -> card

One such piece of work runs at a time, on a thread of its own group, so that no task waits for it. What has begun is done to its end,
also when its client goes away.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from service.catalogue import ModelCard
from service.engine import Engine
from service.errors import ModelUnknown, NotReady, QueueFull
from service.http.files import FILE, StoredFile, store_body
from service.http.guards import Meter, UploadBudget, Workers
from service.http.options import read_options
from service.http.routes import Endpoint, Models, as_json, require_ready
from service.http.uploads import Fields, read_upload
from service.intake import Finding, Told

MODELS, MODEL = "/models", "/models/{name}"
PLACES = 4  # requests to add a model that may send, wait or be worked on at the same time
RETRY = 10.0  # seconds after which one that met more of them should come back
UPLOADS = "uploads"
"""The folder in the data folder of files that are on their way."""

Result = TypeVar("Result")


class AddOptions(Told):
    """What its owner says of a file, and what is to be done with it."""

    replace: bool = Field(False, description="may it take the place of a model of the same name?")
    dry_run: bool = Field(False, description="only say what the file is; nothing is added")


class AddedModel(BaseModel):
    """Answer of POST /models."""

    model: ModelCard
    facts: list[str] = Field(description="what was found in the file, and why it is taken so")
    assumptions: list[str] = Field(description="what the file does not tell and was taken to be so, and the option that says otherwise")


class RemovedModel(BaseModel):
    """Answer of DELETE /models/{name}."""

    removed: str = Field(description="name of the model whose folder was deleted")
    models: list[str] = Field(description="names of those that are left")


SHOWN: tuple[type[BaseModel], ...] = (AddedModel, Finding, RemovedModel)


class _Places:
    """How many requests to add a model are under way. For one event loop: it has no lock."""

    def __init__(self, places: int) -> None:
        self._free = places

    @contextmanager
    def take(self) -> Iterator[None]:
        """Raises QueueFull where no place is free."""
        if not self._free:
            raise QueueFull(f"{PLACES} models are being added already", retry_after=RETRY)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


@dataclass(frozen=True)
class Desk:
    """What the routes work with. `workers` do one thing at a time."""

    engine: Engine
    workers: Workers
    budget: UploadBudget
    places: _Places

    @classmethod
    def of(cls, engine: Engine, budget: UploadBudget) -> "Desk":
        workers = Workers(1, PLACES, engine.settings.request_timeout)
        return cls(engine, workers, budget, _Places(PLACES))

    async def run(self, job: Callable[[], Result], request: Request) -> Result:
        return await self.workers.run(MODELS, job, request.receive)


def list_endpoint(engine: Engine) -> Endpoint:
    async def models(_: Request) -> Response:
        return as_json(Models(models=engine.describe()))

    return models


def show_endpoint(engine: Engine) -> Endpoint:
    async def model(request: Request) -> Response:
        return as_json(_card(engine, request.path_params["name"]))

    return model


def add_endpoint(desk: Desk) -> Endpoint:
    """Guards, then the file, then the fleet. The file is deleted whatever comes of it."""
    settings = desk.engine.settings

    async def add(request: Request) -> Response:
        require_ready(desk.engine)
        query = request.query_params.multi_items()
        with desk.places.take():
            desk.workers.check(MODELS)
            file = await asyncio.to_thread(StoredFile, settings.data_folder / UPLOADS)
            try:
                told = await store_body(request, file, settings.max_model_bytes, desk.workers)
                options = read_options(AddOptions, query, told, (FILE,))
                answer = await desk.run(partial(_add, desk.engine, file, options), request)
            finally:
                if file.take():  # else whoever works with it deletes it
                    await asyncio.shield(asyncio.to_thread(file.delete))
        if isinstance(answer, Finding):
            return as_json(answer)
        response = as_json(answer)
        response.status_code = 201
        response.headers["Location"] = f"{request.scope.get('root_path', '')}{MODELS}/{answer.model.name}"
        return response

    return add


def _add(engine: Engine, file: StoredFile, options: AddOptions) -> AddedModel | Finding:
    if not file.take():
        raise NotReady("nobody waits for this any more")
    try:
        told = Told(**options.model_dump(include=set(Told.model_fields), exclude_unset=True))
        finding = engine.fleet.inspect(file.path, told)
        if options.dry_run:
            return finding
        card = engine.fleet.add(file.path, told, replace=options.replace)
        return AddedModel(model=card, facts=list(finding.facts), assumptions=list(finding.assumptions))
    finally:
        file.delete()


def change_endpoint(desk: Desk) -> Endpoint:
    async def change(request: Request) -> Response:
        require_ready(desk.engine)
        desk.workers.check(MODELS)
        with Meter(desk.engine.settings.max_body_bytes, desk.budget) as meter:
            async with desk.workers.deadline():
                told = (await read_upload(request, Fields(), Told, meter)).options
        return as_json(await desk.run(partial(desk.engine.fleet.change, request.path_params["name"], told), request))

    return change


def remove_endpoint(desk: Desk) -> Endpoint:
    async def remove(request: Request) -> Response:
        require_ready(desk.engine)
        return as_json(await desk.run(partial(_remove, desk.engine, request.path_params["name"]), request))

    return remove


def _remove(engine: Engine, name: str) -> RemovedModel:
    engine.fleet.remove(name)
    return RemovedModel(removed=name, models=engine.fleet.names())


def _card(engine: Engine, name: str) -> ModelCard:
    """Raises ModelUnknown, and NotReady for a model that is not loaded, saying why."""
    fleet = engine.fleet
    for card in fleet.describe():
        if card.name == name:
            return card
    if name not in fleet.names():
        raise ModelUnknown(name, fleet.names())
    raise NotReady(f"the model {name} is {fleet.state(name)}" + (f": {fleet.reason(name)}" if fleet.reason(name) else ""))
