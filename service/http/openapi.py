"""The API page's document: what FastAPI cannot know, since bodies are read by service.http.uploads, is said here.

Everything is derived: options from the Options models, errors from the problem table, statuses and texts from both.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service import errors
from service.http import examples
from service.http.cards import SHOWN as GALLERY
from service.http.forms import MAX_PARTS
from service.http.gate import SAFE, scopes_for
from service.http.health import Alive, Ready
from service.http.jobcards import Job
from service.http.metrics import FORMATS
from service.http.models import SHOWN as CATALOGUE
from service.http.negotiation import JSON, PICTURES
from service.http.page import HTML
from service.http.problems import (
    KINDS,
    MEDIA_TYPE,
    CrossSite,
    HostUnknown,
    KeyMissing,
    KeyUnknown,
    PathUnknown,
    Problem,
    RequestTimeout,
    ScopeMissing,
    describe,
)
from service.http.routes import Explanation, Links, Styles
from service.http.tasks import TASKS, Task
from service.http.uploads import FORM, Fields
from service.settings import Settings
from service.tasks.options import is_list, properties
from service.tasks.task import Strict

Operation = dict[str, Any]
REF = "#/components/schemas/{model}"
DESCRIPTION = """
An image arrives in one of three ways: as a **multipart** file, as a **raw body** with an `image/*` content type, or in **JSON** as
base64 or a `data:` URI. Options arrive as form fields, query parameters or JSON keys of the same names; each is given once.

JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are read, EXIF orientation is applied, and coordinates are pixels of the upright picture.
Errors are `application/problem+json` with a stable `code`; every response carries `X-Request-ID`.

Where the operator has set keys, one is sent as `X-API-Key` or as `Authorization: Bearer`: with the scope `use` for the tasks and
the styles, with the scope `manage` for `/subjects` and `/models`, with either for `/metrics`. What is left needs none.
"""
ANY_TASK = (
    errors.ImageMissing,
    errors.NotAnImage,
    errors.ImageDamaged,
    errors.ImageTooSmall,
    errors.TooManyPixels,
    errors.BodyTooLarge,
    errors.MalformedBody,
    errors.UnsupportedMedia,
    errors.NotAcceptable,
    errors.OptionInvalid,
    RequestTimeout,
    errors.QueueFull,
    errors.QueueTimeout,
    errors.DeadlineExceeded,
    errors.NotReady,
    errors.InferenceFailed,
    errors.VisionError,
)
PICTURE_HEADERS = {
    "X-Model": "name of the model that ran",
    "X-Model-Version": "its version",
    "X-Provider": "the execution provider that really ran",
    "X-Precision": "the arithmetic that it ran in: float32, int8 or float16",
    "X-Image-Width": "width in pixels",
    "X-Image-Height": "height in pixels",
    "Server-Timing": "milliseconds per stage, like decode;dur=3.1, inference;dur=12.4, encode;dur=9.0, total;dur=25.9",
}
REQUEST_ID = {"description": "the request's own X-Request-ID where it sent one, else a new id", "schema": {"type": "string"}}
BINARY = {"type": "string", "format": "binary"}


def task(row: Task[Any], settings: Settings) -> Operation:
    """The operation of one row of TASKS."""
    limit = f"At most {settings.max_body_bytes / 2**20:g} MiB a request and {settings.max_pixels / 1e6:g} megapixels a picture."
    return {
        "summary": row.summary,
        "description": f"{row.description}\n\n{limit}\n\n```sh\n{examples.CURL[row.path]}\n```",
        "tags": ["tasks"],
        "parameters": query(row.options),
        "requestBody": request_body(row.fields, row.options, examples.REQUESTS[row.path]),
        "responses": {"200": _answer(row), **problems((*ANY_TASK, *row.errors), row.path)},
    }


def problems(classes: Iterable[type[errors.VisionError]], path: str) -> dict[str, Any]:
    """Responses by status, each with an example of every error that has it."""
    by_status: dict[int, dict[str, Any]] = defaultdict(dict)
    for sample in examples.ERRORS:
        if type(sample) in classes:
            problem = describe(sample, instance=path, request_id="0f6c1f6e6b0f4b7c8a54b1f1d8e0c1aa")
            by_status[problem.status][problem.code] = {"summary": problem.title, "value": problem.model_dump(exclude_none=True)}
    return {
        str(status): {
            "description": "; or ".join(example["summary"] for example in found.values()),
            "content": {MEDIA_TYPE: {"schema": {"$ref": REF.format(model=Problem.__name__)}, "examples": found}},
            "headers": {"X-Request-ID": REQUEST_ID} | (RETRY_AFTER if status in (503, 504) else {}),
        }
        for status, found in sorted(by_status.items())
    }


RETRY_AFTER = {"Retry-After": {"description": "seconds to wait before trying again", "schema": {"type": "integer"}}}


def _answer(row: Task[Any]) -> dict[str, Any]:
    pictures = [media for media in row.offers if media in PICTURES.values()]
    content: dict[str, Any] = {}
    if row.answer is not None:
        content[JSON] = {"schema": ref(row.answer), "examples": {"answer": {"value": examples.ANSWERS[row.path]}}}
    content |= {
        media: {"schema": BINARY, "examples": {"picture": {"value": f"(the bytes of an {media} file)"}}} for media in pictures
    }
    headers: dict[str, Any] = {"X-Request-ID": REQUEST_ID}
    if pictures:
        note = " (with a picture)" if row.answer else ""
        headers |= {name: {"description": text + note, "schema": {"type": "string"}} for name, text in PICTURE_HEADERS.items()}
    return {"description": "The answer" if row.answer else "The picture", "content": content, "headers": headers}


def request_body(fields: Fields, kind: type[Strict], example: dict[str, Any]) -> dict[str, Any]:
    """Images and options in each of the ways that service.http.uploads reads them."""
    options = properties(kind)
    files: Operation = {name: {**BINARY, "description": "the picture as a file"} for name in fields.names}
    texts: Operation = {
        name: {"type": "string", "description": "the picture as base64, or as a data: URI"} for name in fields.names
    }
    if fields.repeated is not None:
        many = {"type": "array", "maxItems": MAX_PARTS}
        files[fields.repeated] = {**many, "items": BINARY, "description": "pictures as files, each a part of this name"}
        texts[fields.repeated] = {"anyOf": [texts[fields.repeated], {**many, "items": {"type": "string"}}]}
    required = list(fields.required)
    form_example = {**{name: "(the file's bytes)" for name in fields.names if name in example}, **_as_form(example, options)}
    content: dict[str, Any] = {
        FORM: {
            "schema": {
                "type": "object",
                "required": required,
                "properties": {**files, **{name: form_field(prop) for name, prop in options.items()}},
            },
            "examples": {"form": {"summary": "a file and options", "value": form_example}},
        },
        JSON: {
            "schema": {"type": "object", "required": required, "properties": {**texts, **options}, "additionalProperties": False},
            "examples": {"json": {"summary": "base64 and options", "value": example}},
        },
    }
    if fields.raw:
        content["image/*"] = {"schema": BINARY, "examples": {"raw": {"value": "(the file's bytes; options in the query)"}}}
    return {"required": True, "content": content}


def query(kind: type[Strict]) -> list[dict[str, Any]]:
    """Options as query parameters."""
    parameters = []
    for name, prop in properties(kind).items():
        schema = _as_text(prop)
        text = schema.pop("description", "")
        parameters.append({"name": name, "in": "query", "required": False, "schema": schema, "description": text})
    return parameters


def _as_text(prop: dict[str, Any]) -> dict[str, Any]:
    """The schema of an option where it arrives as text: several values are written with commas. Its default is only told in words:
    Swagger UI would send it, in the query and in the form at once."""
    schema = {"type": "string", "description": prop.get("description", "")} if is_list(prop) else dict(prop)
    default = schema.pop("default", prop.get("default"))
    notes = ["several with commas between"] * is_list(prop) + [f"default: {str(default).lower()}"] * (default is not None)
    if notes:
        schema["description"] = f"{schema.get('description', '')} ({'; '.join(notes)})".strip()
    return schema


def form_field(prop: dict[str, Any]) -> dict[str, Any]:
    """The schema of an option as a form field, which may be left empty and says so: else Swagger UI makes up a value to send."""
    schema = _as_text(prop)
    if schema.get("type") == "boolean":
        schema |= {"type": "string", "enum": ["true", "false"]}
    if "enum" in schema:
        schema["enum"] = ["", *schema["enum"]]
    elif schema.get("type", "string") != "string":
        schema |= {"type": [schema["type"], "string"], "maxLength": 0}
    return {**schema, "default": ""}


def _as_form(example: dict[str, Any], options: dict[str, Any] | Any) -> dict[str, Any]:
    return {n: ",".join(map(str, v)) if isinstance(v, list) else v for n, v in example.items() if n in options}


def ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}


def _page(path: str, summary: str, model: type[BaseModel], tag: str, *raised: type[errors.VisionError]) -> Operation:
    content: dict[str, Any] = {JSON: {"schema": ref(model), "examples": {"answer": {"value": examples.ANSWERS[path]}}}}
    answer = {"description": "The answer", "content": content, "headers": {"X-Request-ID": REQUEST_ID}}
    return {"summary": summary, "tags": [tag], "responses": {"200": answer, **problems((*raised, errors.VisionError), path)}}


def path_parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", **schema}, "description": description}


STYLES = _page("/styles", "The built-in styles, with thumbnails made from one sample photo", Styles, "catalogue")
THUMBNAIL: Operation = {
    "summary": "A sample photo painted in a style",
    "tags": ["catalogue"],
    "responses": {
        "200": {
            "description": "The thumbnail",
            "content": {PICTURES["jpeg"]: {"schema": BINARY, "examples": {"picture": {"value": "(the bytes of a JPEG file)"}}}},
        },
        **problems(
            (PathUnknown, errors.QueueFull, errors.DeadlineExceeded, errors.NotReady, errors.InferenceFailed, errors.VisionError),
            "/styles/{name}/thumbnail.jpg",
        ),
    },
    "parameters": [path_parameter("name", "a name of GET /styles", {"examples": ["ink-wash"]})],
}
LIVE = _page("/health/live", "Does the process answer", Alive, "health")
READY = _page("/health/ready", "Has every model answered a warm-up run", Ready, "health", errors.NotReady)
METRICS: Operation = {
    "summary": "What the service has done so far, for Prometheus; docs/observability.md explains each metric",
    "tags": ["health"],
    "responses": {
        "200": {
            "description": "The metrics of all workers together",
            "content": {
                media: {"schema": {"type": "string"}, "examples": {"page": {"value": 'vision_build_info{version="1.0"} 1.0\n'}}}
                for media in FORMATS
            },
            "headers": {"X-Request-ID": REQUEST_ID},
        },
        **problems((errors.NotAcceptable, errors.VisionError), "/metrics"),
    },
}
PROBLEM = _page("/problems/{code}", "What a problem's code means", Explanation, "catalogue", PathUnknown)
PROBLEM["parameters"] = [
    path_parameter("code", "the code of a problem", {"enum": sorted(cls.code for cls in KINDS), "default": "no_face"})
]
LANDING = _page("/", "Where everything is: a page for browsers, links for programs", Links, "catalogue", errors.NotAcceptable)
LANDING["responses"]["200"]["content"][HTML] = {
    "schema": {"type": "string"},
    "examples": {"page": {"value": "(a page with links)"}},
}

SHOWN: tuple[type[BaseModel], ...] = (
    *(row.answer for row in TASKS if row.answer),
    *GALLERY,
    *CATALOGUE,
    Job,
    Problem,
    Styles,
    Alive,
    Ready,
    Explanation,
    Links,
)


SCHEMES: dict[str, dict[str, str]] = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "the same key"},
}


def _guarded(method: str, path: str, operation: Operation, keyed: bool) -> Operation:
    """`operation` with what the gate may answer instead of it, and with the keys that it takes where there are some."""
    needed = scopes_for(path)
    raised = (HostUnknown, *((KeyMissing, KeyUnknown, ScopeMissing) if needed else ()), *(() if method in SAFE else (CrossSite,)))
    operation = {**operation, "responses": operation["responses"] | problems(raised, path)}
    return operation | {"security": [{name: []} for name in SCHEMES]} if keyed and needed else operation


def describe_routes(app: FastAPI, operations: Mapping[tuple[str, str], Operation], *, keyed: bool) -> None:
    """Put operations, by method and path, and the schemas that they refer to into the document of `app`. `keyed`: are keys set?"""
    make = app.openapi
    paths: dict[str, Any] = defaultdict(dict)
    for (method, path), operation in operations.items():
        name = re.sub(r"\W+", "_", path).strip("_") or "root"  # of paths with several methods each operation says its own
        paths[path.replace(":path}", "}")][method.lower()] = {"operationId": name, **_guarded(method, path, operation, keyed)}
    schemas = models_json_schema([(model, "serialization") for model in SHOWN], ref_template=REF)[1]["$defs"]

    def openapi() -> dict[str, Any]:
        document = make()
        document["paths"] |= paths
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
        if keyed:
            document["components"]["securitySchemes"] = SCHEMES
        return document

    app.openapi = openapi  # type: ignore[method-assign]
