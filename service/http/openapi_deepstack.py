"""The entries of DeepStack's and CodeProject.AI's routes on the API page."""

import re
from collections.abc import Sequence
from typing import Any, Final

from service.http.negotiation import JSON
from service.http.openapi import BINARY, REQUEST_ID, Operation, path_parameter
from service.http.uploads import FORM

TAG: Final = "DeepStack and CodeProject.AI"
FILES: Final[tuple[tuple[str, ...], ...]] = ((), ("image",), ("image1", "image2"))
"""The usual names of as many files."""
TEXTS: Final[dict[str, dict[str, Any]]] = {
    "min_confidence": {"type": "string", "description": "a number from 0 to 1"},
    "userid": {"type": "string", "description": "the person's name"},
    "api_key": {"type": "string", "description": "a key of this service, where it is not sent in a header"},
}
EXAMPLES: Final = {"min_confidence": "0.4", "userid": "Ada Lovelace"}


def call(method: str, path: str, summary: str, images: int, fields: Sequence[str]) -> Operation:
    """The operation of a route that takes at least `images` files and the other `fields`."""
    operation: Operation = {
        "operationId": f"{method.lower()}_{re.sub('[^a-z0-9]+', '_', path).strip('_')}",
        "summary": summary,
        "tags": [TAG],
        "responses": {"200": _ANSWER},
    }
    if "{model}" in path:
        operation["parameters"] = [path_parameter("model", "a name of /v1/vision/custom/list", {"examples": ["yolov3-tiny"]})]
    if method != "POST":
        return operation
    files = FILES[images]
    properties = dict.fromkeys(files, BINARY) | {name: TEXTS[name] for name in (*fields, "api_key")}
    example = dict.fromkeys(files, "(the file's bytes)") | {name: EXAMPLES[name] for name in fields}
    form = {"schema": {"type": "object", "properties": properties}, "examples": {"form": {"value": example}}}
    return operation | {"requestBody": {"required": bool(files), "content": {FORM: form}}}


_ANSWER: Final = {
    "description": "The answer, with the fields that docs/protocols-deepstack.md tells",
    "content": {JSON: {"schema": {"type": "object"}, "examples": {"answer": {"value": {"success": True, "code": 200}}}}},
    "headers": {"X-Request-ID": REQUEST_ID},
}
STATUS: Final[Operation] = {
    "summary": "Does the service answer, and in which version",
    "tags": [TAG],
    "responses": {"200": _ANSWER},
}
