"""The models over HTTP: which there are, and adding, changing and removing them while requests run.

    POST /models -> guards -> the file, streamed to the data folder (see service.http.files) -> Fleet.add on a thread -> card

One such piece of work runs at a time, on a thread of its own group, so that no task waits for it. What has begun is done to its
end, also when its client goes away.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.catalogue import ModelCard
from service.engine import Engine
from service.errors import MalformedBody, ModelUnclear, ModelUnknown, NotReady, OptionInvalid, QueueFull, VisionError
from service.export.contract import Contract
from service.http.files import MAX_TOLD, NAMELESS, StoredFile, read_json, store_body
from service.http.guards import Meter, UploadBudget, Workers
from service.http.routes import Endpoint, as_json, require_ready
from service.intake.told import Told
from service.repository.spec import InputContract, Task
from service.tasks.options import explain, shortened
from service.tasks.task import Strict

if TYPE_CHECKING:
    from service.intake import Finding

MODELS, MODEL = "/models", "/models/{name}"
PLACES = 4  # requests to add a model that may send, wait or be worked on at the same time
RETRY = 10.0  # seconds after which one that met more of them should come back
UPLOADS = "uploads"
"""The folder in the data folder of files that are on their way."""
FACTS = "what was found in the file, and why it is taken so"
ASSUMPTIONS = "what the file does not tell and was taken to be so, and the option that says otherwise"

Result = TypeVar("Result")
Asked = TypeVar("Asked", bound=Strict)


class AddOptions(Told, Strict):
    """What its owner says of a file, and what is to be done with it."""

    replace: bool = Field(False, description="may it take the place of a model of the same name?")
    dry_run: bool = Field(False, description="only say what the file is; nothing is added")


class ChangeOptions(Told, Strict):
    """What its owner says of a model that was added; what is left out stays as it is."""


class Models(BaseModel):
    """Answer of GET /models."""

    models: list[ModelCard]


class AddedModel(BaseModel):
    """Answer of POST /models."""

    model: ModelCard
    facts: list[str] = Field(description=FACTS)
    assumptions: list[str] = Field(description=ASSUMPTIONS)


class InspectedModel(BaseModel):
    """Answer of POST /models with dry_run."""

    name: str
    task: Task
    input: InputContract = Field(description="how a photo is brought to the model")
    adapter: Contract | None = Field(description="what the file expects and answers; null for a kind that is known as a whole")
    classes: int = Field(description="how many; 0 where there are none")
    facts: list[str] = Field(description=FACTS)
    assumptions: list[str] = Field(description=ASSUMPTIONS)


class RemovedModel(BaseModel):
    """Answer of DELETE /models/{name}."""

    removed: str = Field(description="name of the model whose folder was deleted")
    models: list[str] = Field(description="names of those that are left")


SHOWN: tuple[type[BaseModel], ...] = (Models, AddedModel, InspectedModel, RemovedModel)


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
        return await self.workers.run(MODELS, partial(_lean, job), request.receive)


def _lean(job: Callable[[], Result]) -> Result:
    """job(), whose errors keep nothing of its work alive: their frames hold whole files, and futures hold them until a gc."""
    try:
        return job()
    except VisionError as error:
        error.__traceback__ = error.__context__ = error.__cause__ = None
        raise


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
        with desk.places.take():
            desk.workers.check(MODELS)
            file = await asyncio.to_thread(StoredFile, settings.data_folder / UPLOADS)
            try:
                told = await store_body(request, file, settings.max_model_bytes, desk.workers)
                options = read_asked(AddOptions, [*request.query_params.multi_items(), *told])
                answer = await desk.run(partial(_add, desk.engine, file, options), request)
            finally:
                if file.take():  # else whoever works with it deletes it
                    await asyncio.shield(asyncio.to_thread(file.delete))
        response = as_json(answer)
        if isinstance(answer, InspectedModel):
            return response
        response.status_code = 201
        response.headers["Location"] = f"{request.scope.get('root_path', '')}{MODELS}/{answer.model.name}"
        return response

    return add


def _add(engine: Engine, file: StoredFile, options: AddOptions) -> AddedModel | InspectedModel:
    if not file.take():
        raise NotReady("nobody waits for this any more")
    try:
        told = Told(**{name: value for name, value in options.said().items() if name in Told.model_fields})
        finding = engine.fleet.inspect(file.path, told)
        if options.dry_run:
            return _inspected(finding)
        if told.name is None and file.path.name == NAMELESS:
            raise ModelUnclear("the model has no name: give one as name", ["name"])
        card = engine.fleet.add(file.path, told, replace=options.replace, finding=finding)
        return AddedModel(model=card, facts=list(finding.facts), assumptions=list(finding.assumptions))
    finally:
        file.delete()


def _inspected(finding: "Finding") -> InspectedModel:
    return InspectedModel(
        name=finding.name,
        task=finding.task,
        input=finding.input,
        adapter=finding.contract,
        classes=len(finding.labels) or (finding.contract.classes if finding.contract else 0),
        facts=list(finding.facts),
        assumptions=list(finding.assumptions),
    )


def change_endpoint(desk: Desk) -> Endpoint:
    async def change(request: Request) -> Response:
        require_ready(desk.engine)
        desk.workers.check(MODELS)
        with Meter(MAX_TOLD, desk.budget) as meter:
            async with desk.workers.deadline():
                given = _object(await read_json(request, meter))
        told = read_asked(ChangeOptions, [*request.query_params.multi_items(), *given.items()])
        return as_json(await desk.run(partial(desk.engine.fleet.change, request.path_params["name"], told), request))

    return change


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise MalformedBody('the JSON body is not an object; send one like {"labels": "cat,dog"}')
    return body


def read_asked(kind: type[Asked], given: Sequence[tuple[str, Any]]) -> Asked:
    """Options by `given` names and values, of which empty ones count as not given.

    Unlike the tasks' own, some may be long: labels. Raises OptionInvalid naming the option.
    """
    values: dict[str, Any] = {}
    for name, value in given:
        if name in values:
            raise OptionInvalid(shortened(name), f"{name:.80} is given more than once; give it once")
        if value not in (None, ""):
            values[name] = value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain(kind, error) from None


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
