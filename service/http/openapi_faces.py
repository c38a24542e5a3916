"""The gallery's entries on the API page."""

import re
from typing import Any

from pydantic import BaseModel

from service import errors
from service.gallery.names import MAX_NAME
from service.http import examples
from service.http.cards import (
    ForgottenFace,
    ForgottenSubject,
    FullSubject,
    InGallery,
    ListOptions,
    RenamedSubject,
    RenameOptions,
    Subjects,
)
from service.http.faces import FACE, FACES, PHOTOS, SUBJECT, SUBJECTS
from service.http.forms import MAX_PARTS
from service.http.negotiation import JSON
from service.http.openapi import ANY_TASK, REQUEST_ID, Operation, path_parameter, problems, query, ref, request_body
from service.http.problems import RequestTimeout
from service.http.uploads import FORM, PLAIN_FORM
from service.settings import Settings
from service.tasks.options import properties
from service.tasks.people import EnrollAnswer, EnrollOptions
from service.tasks.task import Strict

ANY_QUESTION = (
    errors.OptionInvalid,
    errors.ModelUnknown,
    errors.QueueFull,
    errors.QueueTimeout,
    errors.DeadlineExceeded,
    errors.NotReady,
    errors.GalleryUnavailable,
    errors.GalleryMismatch,
    errors.VisionError,
)
ENROLLING = (
    errors.ModelUnknown,
    errors.NoFace,
    errors.SeveralFaces,
    errors.FaceTooSmall,
    errors.FaceBlurred,
    errors.EnrollmentRefused,
    errors.GalleryUnavailable,
    errors.GalleryMismatch,
)
RENAMING = (
    errors.SubjectUnknown,
    errors.SubjectExists,
    errors.BodyTooLarge,
    errors.MalformedBody,
    errors.UnsupportedMedia,
    RequestTimeout,
)
NAMES = f"""Names are data: any text of 1 to {MAX_NAME} characters, percent-encoded as UTF-8 in the path, where a slash is `%2F`.
Clients that tidy up paths need `..` as `%2E%2E`, or curl's `--path-as-is`."""
_SUBJECT = path_parameter(
    "subject", "the name of a person, percent-encoded", {"minLength": 1, "maxLength": MAX_NAME, "examples": ["Ada Lovelace"]}
)
_FACE = path_parameter(
    "face_id", "the id of a face", {"pattern": "^[0-9a-f]{32}$", "examples": ["9a1f0c5e6b7d48c2a3f4e5d6c7b8a901"]}
)


def enroll(settings: Settings) -> Operation:
    """The operation of POST /subjects/{subject}/faces."""
    description = (
        "Each photo gives one face. All photos are enrolled or none, unless `partial=true`; a refusal names each photo with the "
        "value that was measured and the limit. Photos are called `image`, or where there are several `image[1]`, `image[2]`, ...; "
        "they are not kept, only embeddings, boxes and qualities are. 201: something was added; 200: every face was there already, "
        "from the same photo. An answer that came too late (504) or was lost does not say that nothing was stored: enrolling the "
        "same photos again changes nothing.\n\n"
        f"At most {MAX_PARTS} parts or list items, {settings.max_body_bytes / 2**20:g} MiB a request and "
        f"{settings.max_pixels / 1e6:g} megapixels a picture.\n\n{NAMES}\n\n```sh\n{examples.CURL_FACES}\n```"
    )
    operation = _operation("POST", FACES, "Know a person again", EnrollAnswer, EnrollOptions, (*ANY_TASK, *ENROLLING))
    answer = operation["responses"]["200"]
    operation["responses"] = {
        "200": {**answer, "description": "Every face was known already; nothing was added"},
        "201": {**answer, "description": "The faces were added"},
        **{status: told for status, told in operation["responses"].items() if status != "200"},
    }
    body = request_body(PHOTOS, EnrollOptions, examples.REQUESTS[FACES])
    return {**operation, "description": description, "requestBody": body}


def _operation(
    method: str, path: str, summary: str, model: type[BaseModel], kind: type[Strict], raised: tuple[type[errors.VisionError], ...]
) -> Operation:
    example = {"answer": {"value": examples.ANSWERS[f"{method} {path}"]}}
    content: dict[str, Any] = {JSON: {"schema": ref(model), "examples": example}}
    answer = {"description": "The answer", "content": content, "headers": {"X-Request-ID": REQUEST_ID}}
    names = [one for one in (_SUBJECT, _FACE) if f"{{{one['name']}}}" in path]
    return {
        "operationId": f"{method.lower()}_{re.sub(r'[^a-z]+', '_', path).strip('_')}",
        "summary": summary,
        "tags": ["gallery"],
        "parameters": [*names, *query(kind)],
        "responses": {"200": answer, **problems(raised, path)},
    }


def _rename() -> Operation:
    options = properties(RenameOptions)
    schema = {"type": "object", "properties": options, "additionalProperties": False}
    example = {"rename": {"summary": "the new name", "value": examples.REQUESTS[SUBJECT]}}
    content = {media: {"schema": schema, "examples": example} for media in (JSON, PLAIN_FORM, FORM)}
    raised = (*ANY_QUESTION, *RENAMING)
    summary = "Give a subject another name; its faces keep their ids"
    operation = _operation("PATCH", SUBJECT, summary, RenamedSubject, RenameOptions, raised)
    return {**operation, "requestBody": {"required": False, "content": content}}


_KNOWN = (*ANY_QUESTION, errors.SubjectUnknown)
LIST = _operation("GET", SUBJECTS, "Who is known, a page at a time", Subjects, ListOptions, ANY_QUESTION)
SHOW = _operation("GET", SUBJECT, "One subject with its faces", FullSubject, InGallery, _KNOWN)
RENAME = _rename()
FORGET = _operation("DELETE", SUBJECT, "Forget a subject with all its faces", ForgottenSubject, InGallery, _KNOWN)
FORGET_FACE = _operation(
    "DELETE",
    FACE,
    "Forget one face; with its last one the subject goes",
    ForgottenFace,
    InGallery,
    (*_KNOWN, errors.FaceUnknown),
)
