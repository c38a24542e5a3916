"""DeepStack's and CodeProject.AI's vision API: Frigate, Home Assistant and Blue Iris can be pointed at this service as it is.

form, whatever else is in it -> key -> photos -> Engine, on a worker's thread -> what either server would have answered

The two servers agree on paths and fields. Where their answers differ an answer carries the fields of both, and errors have
DeepStack's statuses, which its clients look at. docs/protocols-deepstack.md says what is like there and what is not.
Reference: server/server.go of DeepStack 2022; ProxyController.cs and the modules' route maps of CodeProject.AI Server 2.9.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import __version__
from service.engine import Engine
from service.errors import ImageMissing, MalformedBody, OptionInvalid, SubjectUnknown, UnsupportedMedia
from service.gallery.names import DEFAULT, check_name
from service.http import openapi_deepstack
from service.http.faces import ENROLLING, SUBJECTS
from service.http.forms import Data, Part
from service.http.gate import scopes_for
from service.http.guards import Meter
from service.http.keys import MANAGE
from service.http.parts import Parts, Protocol, Row
from service.http.problems import Problem
from service.http.record import Record, record_of
from service.http.routes import Endpoint, require_ready
from service.http.uploads import read_parts
from service.photo import Photo
from service.tasks.classify import ClassifyOptions
from service.tasks.detect import DetectOptions
from service.tasks.faces import DetectFacesOptions, VerifyFaceOptions
from service.tasks.people import EnrollOptions, IdentifyOptions
from service.tasks.task import Box, ModelInfo, Timing, TimingMs

VISION: Final = "/v1/vision"
OBJECTS: Final = 0.4  # min_confidence where none is sent
FACES: Final = 0.55
KNOWN: Final = 0.67
"""DeepStack's least confidence to know a face again: here the confidence of a similarity at the model's own threshold."""
PAGE: Final = 1000  # subjects read at once
AS_BAD_REQUEST: Final = frozenset({406, 415, 422})  # statuses that neither server has
KEYS: Final = ("api_key", "admin_key")
LISTED: Final = 3  # labels that a message names
STATUS: Final = ("ping", "version", "updateavailable")


class _AllBut(frozenset[str]):
    """Every name but these: a file may come under any."""

    def __contains__(self, name: object) -> bool:
        return not super().__contains__(name)


PHOTO: Final = re.compile(r"image\d*")
"""Fields that hold a photo, with a file name or without."""
FILES: Final = _AllBut((*KEYS, "min_confidence", "userid"))


@dataclass(frozen=True)
class Sent:
    """What a client sent: files by the fields' names, which may be any; the other fields as text, by their names in lower case;
    the model that the path names; and the time.perf_counter() moment when all of it was there."""

    files: Sequence[tuple[str, Data]]
    texts: Mapping[str, str]
    model: str | None
    arrived: float

    def key(self, needed: frozenset[str]) -> str | None:
        """The key that was sent as a field, of two the one that is more likely to have one of the scopes `needed`."""
        names = reversed(KEYS) if MANAGE in needed else KEYS
        return next((self.texts[name] for name in names if self.texts.get(name)), None)

    @property
    def image(self) -> Data:
        """The only photo: the field `image`, else the first file of another name, as CodeProject.AI takes it."""
        return next((data for name, data in self.files if name == "image"), self.files[0][1])

    @property
    def userid(self) -> str:
        """Raises OptionInvalid."""
        if not self.texts.get("userid"):
            raise OptionInvalid("userid", "userid not specified: send the person's name in the field userid")
        return check_name("userid", self.texts["userid"])

    def confidence(self, usual: float) -> float:
        """min_confidence, 0 to 1; `usual` where it is not sent. Raises OptionInvalid."""
        text = self.texts.get("min_confidence", "").strip()
        try:
            value = float(text) if text else usual
        except ValueError:
            value = math.nan
        if not value <= 1:
            raise OptionInvalid("min_confidence", f"min_confidence={text!r:.40}: give a number from 0 to 1")
        return max(value, 0.0)

    def waited(self, engine: Engine, timing: Timing) -> None:
        """Count the time in the queue. Raises what Timing.waited raises."""
        timing.waited(time.perf_counter() - self.arrived, engine.settings.request_timeout)

    def photo(self, engine: Engine, data: Data, enough_for: ClassifyOptions | DetectOptions | None = None) -> Photo:
        """Raises what Engine.decode raises."""
        waited = time.perf_counter() - self.arrived
        photo = engine.decode(data, enough_for)
        photo.timing.waited(waited, engine.settings.request_timeout)
        return photo


@dataclass(frozen=True)
class Told:
    """What a call came to: fields of its own, and which model took how long where one ran."""

    fields: Mapping[str, Any]
    model: ModelInfo | None = None
    timing: TimingMs | None = None


def _detect(engine: Engine, sent: Sent) -> Told:
    options = DetectOptions.model_validate({"confidence": sent.confidence(OBJECTS), "model": sent.model})
    answer = engine.detect(sent.photo(engine, sent.image, options), options)
    found = [{"confidence": one.confidence, "label": one.label, **_corners(one.box)} for one in answer.predictions]
    return Told(_predictions(found, _found([one.label for one in answer.predictions])), answer.model, answer.timing_ms)


def _list_models(engine: Engine, _: Sent) -> Told:
    return Told({"models": [card.name for card in engine.describe() if card.task == "detect"]})


def _scene(engine: Engine, sent: Sent) -> Told:
    options = ClassifyOptions.model_validate({"top_k": 1})
    answer = engine.classify(sent.photo(engine, sent.image, options), options)
    best = answer.predictions[0]
    fields = {"message": f"Found {best.label}", "label": best.label, "confidence": best.confidence}
    return Told(fields, answer.model, answer.timing_ms)


def _find_faces(engine: Engine, sent: Sent) -> Told:
    options = DetectFacesOptions.model_validate({"confidence": sent.confidence(FACES)})
    answer = engine.detect_faces(sent.photo(engine, sent.image), options)
    found = [{"confidence": face.confidence, **_corners(face.box)} for face in answer.faces]
    return Told(_predictions(found, f"Found {_faces(len(found))}"), answer.model, answer.timing_ms)


def _match(engine: Engine, sent: Sent) -> Told:
    if len(sent.files) > 2:
        raise MalformedBody(f"only two images are compared, and {len(sent.files)} were sent")
    first, second = (sent.photo(engine, data) for _, data in sent.files)
    answer = engine.verify_face(first, second, VerifyFaceOptions.model_validate({}))
    alike = confidence_of(answer.similarity, answer.threshold)
    return Told({"message": "Compared two faces", "similarity": alike}, answer.model, answer.timing_ms)


def _register(engine: Engine, sent: Sent) -> Told:
    userid, timing = sent.userid, Timing()
    sent.waited(engine, timing)
    message = "face added"
    with suppress(SubjectUnknown):
        engine.gallery.subject(DEFAULT, userid)
        message = "face updated"
    several = len(sent.files) > 1
    photos = {f"image[{number}]" if several else "image": data for number, (_, data) in enumerate(sent.files, 1)}
    # DeepStack passes over photos without a face, and of several faces it takes one
    options = EnrollOptions.model_validate({"face": "prominent", "partial": True})
    answer = engine.enroll(userid, photos, options, timing=timing)
    refused = [f"{one.photo}: {one.detail}" for one in answer.refused]
    return Told({"message": message, "refused": refused}, answer.model, answer.timing_ms)


def _recognize(engine: Engine, sent: Sent) -> Told:
    least = sent.confidence(KNOWN)
    answer = engine.identify(sent.photo(engine, sent.image), IdentifyOptions.model_validate({}))
    found: list[dict[str, Any]] = []
    for face in answer.faces:
        best = face.candidates[0] if face.candidates else None  # at or above the model's own threshold: none is made up
        confidence = confidence_of(best.similarity, answer.threshold) if best else 0.0
        known = best is not None and confidence >= least
        named = {"confidence": confidence, "userid": best.subject} if best and known else {"confidence": 0, "userid": "unknown"}
        found.append({**named, **_corners(face.box)})
    known_faces = sum(one["userid"] != "unknown" for one in found)
    return Told(_predictions(found, f"Found {_faces(len(found))}, {known_faces} known"), answer.model, answer.timing_ms)


def _list_faces(engine: Engine, _: Sent) -> Told:
    return Told({"faces": list(_subjects(engine))})


def _subjects(engine: Engine) -> Iterable[str]:
    after: str | None = None
    while True:
        page = engine.gallery.subjects(DEFAULT, after, PAGE)
        yield from (subject.name for subject in page.subjects)
        after = page.after
        if after is None:
            return


def _delete(engine: Engine, sent: Sent) -> Told:
    userid = sent.userid
    with suppress(SubjectUnknown):  # nobody there is as good as gone for both servers
        engine.gallery.delete_subject(DEFAULT, userid)
    return Told({})


def confidence_of(similarity: float, threshold: float) -> float:
    """How sure it is that two faces are one person, 0 to 1, from their cosine `similarity` -1 to 1: KNOWN at the threshold, 1 for
    the same numbers, 0 for opposite ones, and straight lines between these; so it never falls where the similarity grows."""
    if similarity < threshold:
        return KNOWN * (max(similarity, -1) + 1) / (threshold + 1)
    return KNOWN if threshold >= 1 else min(1.0, KNOWN + (1 - KNOWN) * (similarity - threshold) / (1 - threshold))


def _corners(box: Box) -> dict[str, int]:
    return {"x_min": round(box.x_min), "y_min": round(box.y_min), "x_max": round(box.x_max), "y_max": round(box.y_max)}


def _predictions(found: Sequence[Mapping[str, Any]], message: str) -> dict[str, Any]:
    return {"message": message, "count": len(found), "predictions": found}


def _found(labels: Sequence[str]) -> str:
    return f"Found {', '.join(labels[:LISTED])}{'...' if len(labels) > LISTED else ''}" if labels else "No objects found"


def _faces(count: int) -> str:
    return "1 face" if count == 1 else f"{count} faces"


@dataclass(frozen=True)
class Call:
    """One route: `run` answers it on a worker's thread, in the queue `kind`, with at least `images` photos. `task` is what the log
    and the metrics call it, `command` what CodeProject.AI does."""

    path: str
    command: str
    summary: str
    run: Callable[[Engine, Sent], Told]
    kind: str
    images: int = 1
    fields: tuple[str, ...] = ()
    at_the_gallery: bool = False
    methods: tuple[str, ...] = ("POST",)

    @property
    def task(self) -> str:
        return self.kind.strip("/")


CALLS: Final = (
    Call(f"{VISION}/detection", "detect", "Objects and their boxes", _detect, "/detect", fields=("min_confidence",)),
    Call(
        *(f"{VISION}/custom/list", "list-custom", "The names of the detectors", _list_models, "/models"),
        images=0,
        methods=("POST", "GET"),
    ),
    Call(f"{VISION}/custom/{{model}}", "custom", "Objects by a named detector", _detect, "/detect", fields=("min_confidence",)),
    Call(f"{VISION}/scene", "classify", "The most probable class", _scene, "/classify"),
    Call(f"{VISION}/face", "detect", "Faces and their boxes", _find_faces, "/detect-faces", fields=("min_confidence",)),
    Call(f"{VISION}/face/match", "match", "How alike the faces of two photos are", _match, "/verify-face", images=2),
    Call(f"{VISION}/face/recognize", "recognize", "Who is on a photo", _recognize, "/identify", fields=("min_confidence",)),
    Call(
        *(f"{VISION}/face/register", "register", "Know a person again", _register, ENROLLING),
        fields=("userid",),
        at_the_gallery=True,
    ),
    Call(f"{VISION}/face/list", "list", "Who is known", _list_faces, SUBJECTS, images=0, at_the_gallery=True),
    Call(
        *(f"{VISION}/face/delete", "delete", "Forget a person", _delete, SUBJECTS),
        images=0,
        fields=("userid",),
        at_the_gallery=True,
    ),
)


def _endpoint(call: Call, parts: Parts) -> Endpoint:
    engine, needed = parts.engine, scopes_for(call.path)
    workers = parts.clerks if call.at_the_gallery else parts.workers

    async def endpoint(request: Request) -> Response:
        require_ready(engine)
        workers.check(call.kind)
        admitted = parts.strangers is None or record_of(request.scope).key is not None
        with Meter(engine.settings.max_body_bytes, parts.budget if admitted else parts.strangers or parts.budget) as meter:
            async with workers.deadline():
                sent = _sorted(await _parts(request, meter, call), request)
                parts.admit(request.scope, needed, sent.key(needed))
                _check_images(call, sent)
                told = await workers.run(call.kind, partial(call.run, engine, sent), request.receive)
        record = record_of(request.scope)
        if told.model is not None and told.timing is not None:
            record.ran(call.task, told.model, told.timing)
        return JSONResponse(_envelope(call, told, record), headers={"Cache-Control": "no-store"})

    return endpoint


async def _parts(request: Request, meter: Meter, call: Call) -> list[Part]:
    """The fields of the form. What needs no photo may come with any body: some clients send "{}"."""
    try:
        return await read_parts(request, meter, FILES)
    except UnsupportedMedia:
        if call.images or call.fields:
            raise
        return []


def _sorted(parts: Iterable[Part], request: Request) -> Sent:
    """Fields of the form before those of the query, where no key is taken: it would stand in logs."""
    files: list[tuple[str, Data]] = []
    texts: dict[str, str] = {}
    for part in parts:
        if part.filename is None and not PHOTO.fullmatch(part.name):
            texts.setdefault(part.name.lower(), str(part.data, errors="replace"))
        elif part.data or part.filename:
            files.append((part.name, part.data))
    for name, value in request.query_params.multi_items():
        if name.lower() not in KEYS:
            texts.setdefault(name.lower(), value)
    return Sent(files, texts, request.path_params.get("model"), time.perf_counter())


def _check_images(call: Call, sent: Sent) -> None:
    if len(sent.files) < call.images:
        wanted = "send an image file" if call.images == 1 else f"send {call.images} image files"
        raise ImageMissing(f"{wanted} as multipart/form-data; files that came: {len(sent.files)}")


def _envelope(call: Call, told: Told, record: Record) -> dict[str, Any]:
    """The answer with what each of the two servers adds to it."""
    seconds = time.perf_counter() - record.started
    on_cpu = told.model is None or told.model.provider == "CPUExecutionProvider"
    return {
        "success": True,
        **told.fields,
        "inferenceMs": int(told.timing.inference) if told.timing else 0,
        "processMs": int(told.timing.total) if told.timing else int(seconds * 1e3),
        "analysisRoundTripMs": int(seconds * 1e3),
        "duration": seconds,
        "code": 200,
        "command": call.command,
        "moduleId": told.model.name if told.model else "vision-service",
        "moduleName": "vision-service",
        "executionProvider": told.model.provider.removesuffix("ExecutionProvider") if told.model else "CPU",
        "inferenceDevice": "CPU" if on_cpu else "GPU",
        "canUseGPU": not on_cpu,
        "processedBy": "localhost",
        "timestampUTC": format_datetime(datetime.now(UTC), usegmt=True),
    }


def word(problem: Problem) -> tuple[int, Mapping[str, Any]]:
    """An error as DeepStack tells it, `code` as CodeProject.AI does; `problem` is this service's own code."""
    status = 400 if problem.status in AS_BAD_REQUEST else problem.status
    detail = f"{problem.detail}, or as the form field api_key" if problem.code == "key_missing" else problem.detail
    return status, {"success": False, "error": detail, "code": status, "duration": 0, "problem": problem.code}


async def _alive(_: Request) -> Response:
    """What Blue Iris and others ask before they send photos: no update is ever offered."""
    major, minor, patch = map(int, re.findall(r"\d+", __version__)[:3])
    version = {"major": major, "minor": minor, "patch": patch, "preRelease": "", "securityUpdate": False, "build": 0}
    version |= {"file": "", "releaseNotes": ""}
    said = {"success": True, "code": 200, "message": __version__, "version": version}
    return JSONResponse(said | {"current": version, "latest": version, "updateAvailable": False})


def rows(parts: Parts) -> list[Row]:
    """Every route with its entry on the API page."""
    describe = openapi_deepstack.call
    calls: list[Row] = [
        (method, call.path, _endpoint(call, parts), describe(method, call.path, call.summary, call.images, call.fields))
        for call in CALLS
        for method in call.methods
    ]
    places = ("/v1/status", "/v1/server/status")
    return calls + [("GET", f"{place}/{name}", _alive, openapi_deepstack.STATUS) for place in places for name in STATUS]


PROTOCOL: Final = Protocol("deepstack", ("/v1/",), rows, word)
