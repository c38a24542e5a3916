"""The entries of CompreFace's routes on the API page."""

from collections.abc import Mapping
from typing import Any

from service.http.negotiation import JSON
from service.http.openapi import REQUEST_ID, Operation, path_parameter, query
from service.http.uploads import FORM, Fields
from service.tasks.task import Strict

_IMAGE_ID = "6b135f5b-a365-4522-b1f1-4c9ac2dd0728"
_BOX = {"box": {"probability": 0.93251, "x_min": 548, "y_min": 295, "x_max": 652, "y_max": 426}}
_MATCH = {**_BOX, "similarity": 0.97858}
_WHO = {"subject": "Ada Lovelace"}
_KNOWN = {"image_id": _IMAGE_ID, **_WHO}
_PAGE = {"faces": [_KNOWN], "page_number": 0, "page_size": 20, "total_pages": 1, "total_elements": 1}
_PARAMETERS = (
    path_parameter("image_id", "the id of a face", {"format": "uuid", "examples": [_IMAGE_ID]}),
    path_parameter("subject", "the name of a person", {"examples": ["Ada Lovelace"]}),
)
_ANSWERS: Mapping[str, tuple[str, Any]] = {
    "verify": ("Do two photos show the same person", {"result": [{"source_image_face": _BOX, "face_matches": [_MATCH]}]}),
    "detect": ("Where the faces on a photo are", {"result": [_BOX]}),
    "recognize": ("Who is on a photo", {"result": [{**_BOX, "subjects": [{**_WHO, "similarity": 0.97858}]}]}),
    "add": ("Know a person again", _KNOWN),
    "list": ("The faces that are known, a page at a time", _PAGE),
    "forget_faces": ("Forget the faces of a subject, or of all", {"deleted": 1}),
    "forget_face": ("Forget one face; with its last one the subject goes", _KNOWN),
    "forget_some": ("Forget several faces", [_KNOWN]),
    "verify_known": ("Does a photo show the person of a known face", {"result": [{**_MATCH, **_WHO}]}),
    "names": ("Who is known", {"subjects": ["Ada Lovelace"]}),
    "names_too": ("Who is known", {"subjects": ["Ada Lovelace"]}),
    "new_name": ("Is a name free; its first face makes it a subject", _WHO),
    "forget_names": ("Forget all subjects with all faces", {"deleted": 1}),
    "rename": ("Give a subject another name", {"updated": True}),
    "forget_name": ("Forget a subject with all its faces", _WHO),
}
_BODIES: Mapping[str, Any] = {"forget_some": [_IMAGE_ID], "new_name": _WHO, "rename": {"subject": "Ada King"}}


def operation(name: str, path: str, options: type[Strict], fields: Fields) -> Operation:
    """The operation of one route; `name` says which."""
    summary, example = _ANSWERS[name]
    content = {JSON: {"schema": _schema(example), "examples": {"answer": {"value": example}}}}
    answer = {"description": "The answer", "content": content, "headers": {"X-Request-ID": REQUEST_ID}}
    body = _json(_BODIES[name]) if name in _BODIES else _pictures(fields)
    parameters = [parameter for parameter in _PARAMETERS if f"{{{parameter['name']}" in path]
    return {
        "operationId": f"compreface_{name}",
        "summary": summary,
        "description": 'As CompreFace answers; errors are `{"message": ..., "code": ...}`. See docs/protocols-compreface.md.',
        "tags": ["CompreFace"],
        "parameters": parameters if name in _BODIES else [*parameters, *query(options)],
        "responses": {"200": answer, **({"201": answer} if name == "add" else {})},
        **({"requestBody": {"required": True, "content": body}} if body else {}),
    }


def _schema(example: Any) -> Operation:
    return {"type": "array" if isinstance(example, list) else "object"}


def _json(example: Any) -> Operation:
    return {JSON: {"schema": _schema(example), "examples": {"body": {"value": example}}}}


def _pictures(fields: Fields) -> Operation:
    """The bodies that carry pictures; nothing where there are none."""
    kinds = {FORM: ({"format": "binary"}, "(the file's bytes)"), JSON: ({"contentEncoding": "base64"}, "(base64)")}
    return {
        media: {
            "schema": {"type": "object", "properties": {name: {"type": "string", **picture} for name in fields.names}},
            "examples": {"body": {"value": dict.fromkeys(fields.names, example)}},
        }
        for media, (picture, example) in kinds.items()
        if fields.names
    }
