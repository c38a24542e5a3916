"""Liveness: the process answers. Readiness: every model has answered a warm-up run. Metrics: what it has done so far."""

import asyncio
from typing import Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from service.catalogue import ModelCard
from service.engine import Engine
from service.http.metrics import Metrics
from service.http.routes import Endpoint, accept_of, as_json, require_ready


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


def metrics_endpoint(metrics: Metrics, engine: Engine) -> Endpoint:
    """Answers whatever else the service is busy with: made on a thread of its own, for it takes some milliseconds."""

    def page(accept: str) -> tuple[bytes, str]:
        return metrics.page(accept, [_labels(card) for card in engine.describe()])

    async def show(request: Request) -> Response:
        metrics.look()
        body, media = await asyncio.to_thread(page, accept_of(request))
        return Response(body, headers={"Content-Type": media, "Cache-Control": "no-store", "Vary": "Accept"})

    return show


def _labels(card: ModelCard) -> dict[str, str]:
    """The labels of vision_model_info: what runs, and how."""
    plan = {name: str(getattr(card.tuning.plan, name)) for name in ("threads", "parallel", "batch")}
    fields = {name: str(getattr(card, name)) for name in ("version", "task", "provider", "precision")}
    return {"model": card.name, **fields, **plan}
