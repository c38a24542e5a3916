"""The entries on the API page of the routes below /models."""

import re
from typing import Any

from pydantic import BaseModel

from service import errors
from service.catalogue import ModelCard
from service.http import examples
from service.http.files import FILE
from service.http.models import MODEL, MODELS, AddedModel, AddOptions, ChangeOptions, InspectedModel, Models, RemovedModel
from service.http.negotiation import JSON
from service.http.openapi import BINARY, REQUEST_ID, Operation, form_field, path_parameter, problems, query, ref
from service.http.problems import RequestTimeout
from service.http.uploads import BYTES, FORM
from service.settings import Settings
from service.tasks.options import properties

WORKING = (errors.OptionInvalid, errors.QueueFull, errors.NotReady, errors.VisionError)
READING = (
    errors.MalformedBody,
    errors.UnsupportedMedia,
    errors.BodyTooLarge,
    RequestTimeout,
    errors.DeadlineExceeded,
    errors.ModelRefused,
    errors.ModelUnclear,
    errors.ModelFixed,
)
ADDING = """
The file says itself what it is, as far as it can: the answer tells in `facts` what was found in it, and in `assumptions` what was
taken for granted, with the option that says otherwise. What cannot be known is asked for: 422 with the options in `missing`. All is
tried before the model is there, and with `replace=true` the one that was there answers until then. `dry_run=true` only tells what
the file is (200). Adding takes seconds to minutes; nothing stops it once it has begun, also when its client goes away.
"""
CURL = (
    "curl -F file=@best.onnx -F name=parts localhost:8000/models\n"
    "curl -T best.onnx -X POST -H 'Content-Type: application/octet-stream' 'localhost:8000/models?name=parts&replace=true'"
)
_NAME = path_parameter("name", "a name of GET /models", {"examples": ["yolov3-tiny"]})


def add(settings: Settings) -> Operation:
    """The operation of POST /models."""
    limit = f"At most {settings.max_model_bytes / 2**20:g} MiB."
    operation = _operation("POST", MODELS, "Add a model of your own", AddedModel, (*WORKING, *READING, errors.ModelExists))
    added = operation["responses"].pop("200")
    found: Operation = _answer(InspectedModel, "dry_run /models")
    responses = {"200": {**found, "description": "What the file is; nothing was added"}}
    responses |= {"201": {**added, "description": "The model was added and answers", "headers": {**added["headers"], **LOCATION}}}
    fields = {name: form_field(prop) for name, prop in properties(AddOptions).items()}
    file: Operation = {FILE: {**BINARY, "description": "the ONNX file"}}
    content = {
        FORM: {
            "schema": {"type": "object", "required": [FILE], "properties": file | fields},
            "examples": {"form": {"summary": "a file and its name", "value": {FILE: "(the file's bytes)", "name": "parts"}}},
        },
        BYTES: {"schema": BINARY, "examples": {"raw": {"value": "(the file's bytes; options in the query)"}}},
    }
    return {
        **operation,
        "description": f"{ADDING}\n{limit}\n\n```sh\n{CURL}\n```",
        "parameters": query(AddOptions),
        "requestBody": {"required": True, "content": content},
        "responses": responses | operation["responses"],
    }


LOCATION = {"Location": {"description": "the path of the model's card", "schema": {"type": "string"}}}


def _answer(model: type[BaseModel], key: str) -> Operation:
    content: dict[str, Any] = {JSON: {"schema": ref(model), "examples": {"answer": {"value": examples.ANSWERS[key]}}}}
    return {"description": "The answer", "content": content, "headers": {"X-Request-ID": REQUEST_ID}}


def _operation(
    method: str, path: str, summary: str, model: type[BaseModel], raised: tuple[type[errors.VisionError], ...]
) -> Operation:
    key = f"{method} {path}"
    return {
        "operationId": f"{method.lower()}_{re.sub(r'[^a-z]+', '_', path).strip('_')}",
        "summary": summary,
        "tags": ["catalogue"],
        "parameters": [_NAME] if path == MODEL else [],
        "responses": {"200": _answer(model, key if key in examples.ANSWERS else path), **problems(raised, path)},
    }


def _change() -> Operation:
    summary = "Say more of an added model, or other than before; it is built again and takes its own place"
    raised = (*WORKING, *READING, errors.ModelUnknown)
    schema = {"type": "object", "properties": properties(ChangeOptions), "additionalProperties": False}
    example = {"default": {"summary": "use it where a request names no model", "value": {"default": True}}}
    body = {"required": True, "content": {JSON: {"schema": schema, "examples": example}}}
    return {**_operation("PATCH", MODEL, summary, ModelCard, raised), "requestBody": body}


_LOADED = "The models that are loaded: task, licence, sources, input, provider, accuracy"
LIST = _operation("GET", MODELS, _LOADED, Models, (errors.VisionError,))
SHOW = _operation("GET", MODEL, "One model", ModelCard, (errors.ModelUnknown, errors.NotReady, errors.VisionError))
CHANGE = _change()
REMOVE = _operation("DELETE", MODEL, "Delete an added model", RemovedModel, (*WORKING, errors.ModelUnknown, errors.ModelFixed))
