"""The entries on the API page of POST /stylize/optimize and of the routes below /jobs."""

from typing import Any

from service import errors
from service.http import events, examples
from service.http.jobcards import OPTIMIZE, Job, ResultOptions
from service.http.jobs import FIELDS
from service.http.negotiation import JSON
from service.http.openapi import (
    ANY_TASK,
    BINARY,
    PICTURE_HEADERS,
    REQUEST_ID,
    Operation,
    path_parameter,
    problems,
    query,
    ref,
    request_body,
)
from service.http.tasks import PAINTED
from service.settings import Settings
from service.tasks.optimize import OptimizeOptions

STARTING = """
Paints the photo by optimisation: iteration by iteration its pixels are changed until a network sees the photo's content in it and
the painting's style. That takes seconds to minutes, so the answer is a job: watch it at `links.events`, fetch the picture at
`links.result` when its `state` is `done`, cancel it by DELETE. A job lives in the memory of the service only, and for a while after
it has ended.
"""
WATCHING = """
Server-sent events: `progress` with the Job after an iteration, ten a second at most; `preview` with the iteration and a small JPEG
as a `data:` URI, about one a second; `end` with the Job, once, and the stream is over. A client may come and go: the job goes on.
"""
STREAM = (
    'event: progress\ndata: {"id": "h3Jx0ZbqS8mP1vY7tKc2wA", "state": "running", "iteration": 120, ...}\n\n'
    'event: preview\ndata: {"iteration": 120, "image": "data:image/jpeg;base64,..."}\n\n'
    'event: end\ndata: {"id": "h3Jx0ZbqS8mP1vY7tKc2wA", "state": "done", "iteration": 500, ...}\n\n'
)
LOCATION = {"Location": {"description": "the path of the job", "schema": {"type": "string"}}}
_ID = path_parameter("id", "of a job, as POST /stylize/optimize has given it", {"examples": ["h3Jx0ZbqS8mP1vY7tKc2wA"]})
_HEADERS: dict[str, Any] = {"X-Request-ID": REQUEST_ID}


def start(settings: Settings) -> Operation:
    """The operation of POST /stylize/optimize."""
    some = (
        f"At most {settings.jobs} run at a time and {settings.jobs_waiting} wait; one may run for {settings.job_seconds:g} seconds."
    )
    example = {"image": examples.TINY_PNG, "style_image": examples.TINY_PNG, "iterations": 3, "max_side": 64}
    answer = _job("POST", OPTIMIZE, "The job, which waits or runs")
    return {
        "summary": "Paint a photo like a painting, by optimisation: a job",
        "description": f"{STARTING}\n{some}\n\n```sh\n{examples.CURL_JOBS}\n```",
        "tags": ["tasks"],
        "parameters": query(OptimizeOptions),
        "requestBody": request_body(FIELDS, OptimizeOptions, example),
        "responses": {
            "202": {**answer, "headers": _HEADERS | LOCATION},
            **problems((*_TAKEN, errors.ModelUnknown), OPTIMIZE),
        },
    }


_TAKEN = tuple(cls for cls in ANY_TASK if cls not in (errors.NotAcceptable, errors.InferenceFailed))


def _job(method: str, path: str, description: str) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": ref(Job), "examples": {"answer": {"value": examples.ANSWERS[f"{method} {path}"]}}}}
    return {"description": description, "content": content, "headers": _HEADERS}


def _operation(name: str, summary: str, answer: dict[str, Any], *raised: type[errors.VisionError]) -> Operation:
    return {
        "operationId": name,
        "summary": summary,
        "tags": ["jobs"],
        "parameters": [_ID],
        "responses": {"200": answer, **problems((errors.JobUnknown, *raised, errors.VisionError), "/jobs/h3Jx0ZbqS8mP1vY7tKc2wA")},
    }


def _result() -> Operation:
    pictures = {
        media: {"schema": BINARY, "examples": {"picture": {"value": f"(the bytes of an {media} file)"}}} for media in PAINTED
    }
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in PICTURE_HEADERS.items()}
    answer = {"description": "The picture", "content": pictures, "headers": _HEADERS | headers}
    raised = (errors.JobUnfinished, errors.OptionInvalid, errors.NotAcceptable)
    busy = (errors.QueueFull, errors.QueueTimeout, errors.DeadlineExceeded, errors.NotReady)
    operation = _operation("job_result", "The picture that a job has painted", answer, *raised, *busy)
    return {**operation, "parameters": [_ID, *query(ResultOptions)]}


SHOW = _operation("job_show", "How far a job is", _job("GET", "/jobs/{id}", "The job"))
DROP = _operation(
    "job_drop",
    "Cancel a job that waits or runs, or forget one that has ended",
    _job("DELETE", "/jobs/{id}", "The job, as it is now or was last"),
)
EVENTS_OF_JOB: Operation = {
    **_operation(
        "job_events",
        "Watch a job",
        {
            "description": "The events",
            "content": {events.MEDIA_TYPE: {"schema": {"type": "string"}, "examples": {"events": {"value": STREAM}}}},
            "headers": _HEADERS,
        },
        errors.QueueFull,
    ),
    "description": WATCHING,
}
RESULT_OF_JOB = _result()
