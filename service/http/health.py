"""Liveness: the process answers. Readiness: every model has answered a warm-up run."""

from typing import Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from service.engine import Engine
from service.http.routes import Endpoint, as_json, require_ready


class Alive(BaseModel):
    status: Literal["alive"] = "alive"


class ReadyModel(BaseModel):
    name: str
    provider: str = Field(description="the execution provider that really runs it")
    provider_note: str | None = Field(description="why it is not the provider asked for or a faster one, if so")


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    models: list[ReadyModel]


async def live(_: Request) -> Response:
    return as_json(Alive())


def ready_endpoint(engine: Engine) -> Endpoint:
    async def ready(_: Request) -> Response:
        require_ready(engine)
        models = [
            ReadyModel(name=card.name, provider=card.provider, provider_note=card.provider_note) for card in engine.describe()
        ]
        return as_json(Ready(models=models))

    return ready
