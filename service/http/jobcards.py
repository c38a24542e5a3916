"""What is told of a job: by the routes below /jobs, and in the events of its stream."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.types import Scope

from service import jobs
from service.http.problems import Problem, describe
from service.tasks.task import ModelInfo, Strict

OPTIMIZE = "/stylize/optimize"
JOB = "/jobs/{id}"
EVENTS, RESULT = f"{JOB}/events", f"{JOB}/result"


class JobSize(BaseModel):
    width: int
    height: int


class JobLosses(BaseModel):
    """At the size that is painted now. `total`, which is made smaller, is the sum of the others by the weights of the options."""

    content: float
    style: float
    variation: float
    total: float


class JobLinks(BaseModel):
    self: str
    events: str
    result: str


class Job(BaseModel):
    """Work that takes minutes, as it is right now."""

    id: str
    kind: Literal["stylize/optimize"]
    state: jobs.Status
    iteration: int = Field(description="iterations that were made")
    iterations: int = Field(description="all that are to be made")
    size: JobSize = Field(description="pixels that it is painted at now")
    losses: JobLosses | None = Field(description="after the last iteration; null before the first")
    seconds_left: float | None = Field(description="by the pace of the last iterations; null where nobody can say")
    seconds: float = Field(description="for which it has run")
    created: datetime
    model: ModelInfo | None = Field(description="null until it begins")
    problem: Problem | None = Field(description="why it failed, or why the service cancelled it")
    links: JobLinks

    @classmethod
    def of(cls, job: jobs.Job, scope: Scope) -> "Job":
        """`job` as it is told to the client that asked for `scope`."""
        view, root = job.view, scope.get("root_path", "")
        path = f"{root}/jobs/{job.id}"
        problem = None
        if view.error is not None:
            told = scope.get("state", {}).get("request_id")
            problem = describe(view.error, instance=path, root=root, request_id=told).model_copy(update={"retry_after": None})
        return cls(
            id=job.id,
            kind="stylize/optimize",
            state=view.status,
            iteration=view.iteration,
            iterations=view.iterations,
            size=JobSize(width=view.size[0], height=view.size[1]),
            losses=None if view.losses is None else JobLosses.model_validate(view.losses),
            seconds_left=None if view.seconds_left is None else round(view.seconds_left, 1),
            seconds=round(job.seconds, 3),
            created=job.created,
            model=view.model,
            problem=problem,
            links=JobLinks.model_validate({"self": path, "events": f"{path}/events", "result": f"{path}/result"}),
        )

    def as_json(self) -> bytes:
        """With every key, but those of the problem that say nothing."""
        told = self.model_dump(mode="json")
        if told["problem"] is not None:
            told["problem"] = {name: value for name, value in told["problem"].items() if value is not None}
        return to_json(told, inf_nan_mode="null")


class ResultOptions(Strict):
    """Options of GET /jobs/{id}/result."""

    format: Literal["png", "jpeg", "webp"] | None = Field(
        None, description="file format of the answer; wins over the Accept header; empty: as it was asked for with the job"
    )
    quality: int | None = Field(
        None, ge=1, le=100, description="of JPEG and WebP, 1 to 100; empty: as it was asked for with the job"
    )
