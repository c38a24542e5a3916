"""Every error as an RFC 9457 problem: one table from exception to status, one function from problem to response.

    VisionError -> KINDS -> Problem -> application/problem+json

What a client is told comes from the error's own message when the caller can act on it; a fault of the service is told in one
sentence with the request id, and its traceback goes to the log only.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from service import errors
from service.http.record import record_of
from service.tasks.people import Refusal

MEDIA_TYPE = "application/problem+json"


class PathUnknown(errors.InputError):
    code = "path_unknown"
    title = "There is nothing at this path"


class MethodUnsupported(errors.InputError):
    """`allowed` are the methods that the path answers."""

    code = "method_unsupported"
    title = "This path does not answer this method"

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{method} is not answered here; use {' or '.join(allowed)}")
        self.allowed = allowed


class RequestMalformed(errors.InputError):
    code = "request_malformed"
    title = "What was sent is not HTTP"


class HeadersTooLarge(errors.InputError):
    code = "headers_too_large"
    title = "The request's address and headers are too large"


class RequestTimeout(errors.InputError):
    code = "request_timeout"
    title = "The request was not sent in time"


class KeyMissing(errors.InputError):
    code = "key_missing"
    title = "A key is needed"


class KeyUnknown(errors.InputError):
    code = "key_unknown"
    title = "The key is not valid"


class ScopeMissing(errors.InputError):
    """The key has the scopes `has`, and `needed` is asked for."""

    code = "scope_missing"
    title = "The key does not allow this"

    def __init__(self, needed: str, has: Sequence[str]) -> None:
        super().__init__(f"this needs a key with the scope {needed}; the one that was sent has {' and '.join(has)}")


class CrossSite(errors.InputError):
    """A browser says that a page of another site, of `origin`, sends this."""

    code = "cross_site"
    title = "A web page of another site may not do this"

    def __init__(self, origin: str) -> None:
        who = f"of {origin[:200]!r}" if origin else "of another site"
        super().__init__(f"a page {who} sends this; without keys only pages of VISION_CORS_ORIGINS may")


class HostUnknown(errors.InputError):
    code = "host_unknown"
    title = "The service is not known by this host name"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"{host[:200]!r} may be a name that a web page gave this machine; use its address, "
            "or have the operator set VISION_API_KEYS or VISION_OPEN=true"
        )


@dataclass(frozen=True)
class Kind:
    """What HTTP says about one class of error: the status, and what the caller can do. `told`: may clients see the message?"""

    status: int
    remedy: str
    told: bool = True


KINDS: dict[type[errors.VisionError], Kind] = {
    errors.ImageMissing: Kind(422, "Send the image under the field's name, as a file that is not empty."),
    errors.NotAnImage: Kind(415, "Send a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file."),
    errors.ImageDamaged: Kind(422, "Send the file again; it was cut short or altered on its way."),
    errors.ImageTooSmall: Kind(422, "Send a larger picture."),
    errors.TooManyPixels: Kind(413, "Scale the picture down before sending it."),
    errors.BodyTooLarge: Kind(413, "Send a smaller file, or ask the operator to raise VISION_MAX_BODY_BYTES."),
    errors.MalformedBody: Kind(400, "Send well-formed multipart/form-data or JSON with base64 images."),
    errors.UnsupportedMedia: Kind(415, "Send multipart/form-data, a raw image/* body, or application/json."),
    errors.NotAcceptable: Kind(406, "Accept one of the media types that the detail names."),
    errors.OptionInvalid: Kind(422, "Correct the option; the detail gives its range or the names that exist."),
    errors.ModelUnknown: Kind(404, "Use one of the names in `known`, or leave the model out."),
    errors.ModelRefused: Kind(422, "Send an ONNX file as the detail says; `vision-service models inspect FILE` says more of one."),
    errors.ModelUnclear: Kind(422, "Send the options in `missing` with the file."),
    errors.ModelExists: Kind(409, "Choose another name, or send replace=true."),
    errors.ModelFixed: Kind(409, "Add a model of your own under another name."),
    errors.StyleUnknown: Kind(422, "Use one of the names in `known`; GET /styles shows them."),
    errors.JobUnknown: Kind(404, "Use an id that POST /stylize/optimize has given, as long as its job is kept."),
    errors.JobUnfinished: Kind(409, "Wait until the job's state is done; GET /jobs/{id}/events tells when."),
    errors.NoFace: Kind(422, "Send a photo that shows a face, large enough and in focus, or lower `confidence`."),
    errors.SeveralFaces: Kind(422, "Send a photo of one person, or use face=prominent or face=largest."),
    errors.FaceTooSmall: Kind(422, "Send a photo on which the face has at least `limit` pixels."),
    errors.FaceBlurred: Kind(422, "Send a photo with the face in focus and enough light."),
    errors.EnrollmentRefused: Kind(422, "Leave out or replace the photos in `refused`, or send partial=true."),
    errors.SubjectUnknown: Kind(404, "Use a name that GET /subjects lists, and the gallery that it is in."),
    errors.FaceUnknown: Kind(404, "Use an id that GET /subjects/{subject} lists."),
    errors.SubjectExists: Kind(409, "Choose another name, or delete the subject that has it."),
    errors.InputError: Kind(400, "Correct the request as the detail says."),
    PathUnknown: Kind(404, "See /docs for what is here."),
    MethodUnsupported: Kind(405, "Use a method that the Allow header names."),
    RequestMalformed: Kind(400, "Speak HTTP/1.1, without TLS."),
    HeadersTooLarge: Kind(431, "Send fewer and shorter headers, cookies above all."),
    RequestTimeout: Kind(408, "Send the request again, without pauses, or ask the operator to raise VISION_CLIENT_TIMEOUT."),
    KeyMissing: Kind(401, "Send a key of this service as X-API-Key, or as Authorization: Bearer; the operator gives them out."),
    KeyUnknown: Kind(401, "Check the key; the operator may have taken it back."),
    ScopeMissing: Kind(403, "Use a key with the scope that the detail names."),
    CrossSite: Kind(403, "Ask the operator to name the page's origin in VISION_CORS_ORIGINS, or to set keys."),
    HostUnknown: Kind(403, "Use the machine's address; the operator of a proxy sets VISION_API_KEYS, or VISION_OPEN=true."),
    errors.QueueFull: Kind(503, "Wait as long as Retry-After says, then send the request again."),
    errors.QueueTimeout: Kind(503, "Wait as long as Retry-After says, then send the request again."),
    errors.DeadlineExceeded: Kind(504, "Send a smaller picture, or try again when the service is less busy."),
    errors.NotReady: Kind(503, "Wait until /health/ready answers 200."),
    errors.GalleryUnavailable: Kind(503, "Wait as long as Retry-After says; the log says what is wrong.", told=False),
    errors.GalleryMismatch: Kind(503, "Only the operator can mend this, as the detail says."),
    errors.Busy: Kind(503, "Wait as long as Retry-After says, then send the request again."),
    errors.InferenceFailed: Kind(500, "Give the operator the request id; the log says more.", told=False),
    errors.VisionError: Kind(500, "Give the operator the request id; the log says more.", told=False),
}

# An error's own attributes that clients may see, as extension members (RFC 9457, section 3.2).
EXTENSIONS = ("option", "known", "missing", "photo", "count", "measured", "limit", "refused", "allowed", "retry_after")


class Problem(BaseModel):
    """A problem document (RFC 9457). `code` is stable: switch on it, and show `detail` to people."""

    type: str = Field(description="a path of this service that explains the code")
    title: str = Field(description="the kind of problem, the same for each code")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong with this request, and what would be right")
    instance: str = Field(description="the path that was asked")
    code: str = Field(description="stable; clients may switch on it")
    request_id: str | None = Field(None, description="with a fault of the service: find it in the log by this")
    option: str | None = Field(None, description="the option that is not valid")
    known: list[str] | None = Field(None, description="the names that would work")
    missing: list[str] | None = Field(None, description="the options that have to be given")
    photo: str | None = Field(None, description="the image that the problem is about")
    count: int | None = Field(None, description="how many faces were found")
    measured: float | None = Field(None, description="the quality of the face that is too low")
    limit: float | None = Field(None, description="the least that is taken")
    refused: list[Refusal] | None = Field(None, description="the photos that cannot be enrolled, and why")
    allowed: list[str] | None = Field(None, description="the methods that the path answers")
    retry_after: float | None = Field(None, description="seconds to wait before trying again")


Dialect = tuple[str, Callable[[Problem], tuple[int, Mapping[str, Any]]]]
"""A prefix of paths, and the status and JSON body by which errors below it are told."""


def kind_of(error: errors.VisionError | type[errors.VisionError]) -> tuple[type[errors.VisionError], Kind]:
    """The most specific class of KINDS that `error` belongs to, with its kind. A SetupError that is not there counts as a fault of
    the service."""
    for cls in (error if isinstance(error, type) else type(error)).__mro__:
        if cls in KINDS:
            return cls, KINDS[cls]
    raise TypeError(f"{error!r} is not a VisionError")


def describe(error: errors.VisionError, *, instance: str, root: str = "", request_id: str | None = None) -> Problem:
    """The problem document of `error`. `root` is the path that the service is mounted under, `instance` the path asked."""
    cls, kind = kind_of(error)
    extensions: dict[str, Any] = {
        name: _sendable(value) for name in EXTENSIONS if (value := getattr(error, name, None)) is not None
    }
    if not kind.told:
        extensions = {"request_id": request_id, "retry_after": extensions.get("retry_after")}
    return Problem(
        type=f"{root}/problems/{cls.code}",
        title=cls.title,
        status=kind.status,
        detail=_sendable(str(error)) if kind.told else f"{cls.title}; {kind.remedy[0].lower()}{kind.remedy[1:]}",
        instance=instance,
        code=cls.code,
        **extensions,
    )


def _sendable(value: Any) -> Any:
    """Text as UTF-8 can carry it: a JSON body may bring lone surrogates."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def respond(error: errors.VisionError, scope: Scope) -> Response:
    """The response that tells `error` to the client that asked for `scope`."""
    root, state = scope.get("root_path", ""), scope.get("state", {})
    problem = describe(error, instance=scope["path"], root=root, request_id=state.get("request_id"))
    record_of(scope).reason = problem.code
    headers: dict[str, str] = {}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(problem.retry_after))
    if problem.allowed is not None:
        headers["Allow"] = ", ".join(problem.allowed)
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="vision-service"'
    refused = isinstance(error, errors.BodyTooLarge | KeyMissing | KeyUnknown | ScopeMissing)
    if refused and scope.get("method") not in ("GET", "HEAD"):
        headers["Connection"] = "close"  # there is too much to come to be read and dropped
    for prefix, word in _dialects(scope):
        if scope["path"].removeprefix(root).startswith(prefix):
            status, answer = word(problem)
            return JSONResponse(answer, status, headers)
    return Response(problem.model_dump_json(exclude_none=True), problem.status, headers, MEDIA_TYPE)


def _dialects(scope: Scope) -> Iterable[Dialect]:
    """How other protocols word errors, by the prefix of their paths; see service.http.parts."""
    return getattr(getattr(scope.get("app"), "state", None), "dialects", ())
