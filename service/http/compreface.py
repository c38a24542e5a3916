"""CompreFace's API: who is on a photo, whether two photos show one person, and the faces that are known.

    path, query, body -> read_upload -> Recognition.see, Engine.enroll or the gallery, on a worker's thread -> JSON as CompreFace's

Its face collection is the gallery "default", an image_id is a face_id written as a UUID. Errors are {"message", "code"}.
Reference: docs/Rest-API-description.md of exadel-inc/CompreFace. What differs, and why, is told in docs/protocols-compreface.md.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.engine import Engine
from service.errors import (
    FaceUnknown,
    ImageTooSmall,
    MalformedBody,
    NoFace,
    OptionInvalid,
    SeveralFaces,
    SubjectExists,
    SubjectUnknown,
)
from service.gallery.gallery import Gallery
from service.gallery.names import DEFAULT, check_name
from service.http.cards import Name
from service.http.faces import ENROLLING, SUBJECTS
from service.http.guards import Meter
from service.http.openapi_compreface import operation
from service.http.parts import Parts, Protocol, Row
from service.http.problems import Problem
from service.http.record import record_of
from service.http.routes import Endpoint, require_ready
from service.http.uploads import Fields, Upload, read_upload
from service.photo import Photo
from service.recognition import Sight
from service.tasks.face_embedding import Face
from service.tasks.faces import DetectFacesOptions
from service.tasks.people import EnrollOptions, SeenFace, stacked
from service.tasks.task import ModelInfo, Strict, Timing, TimingMs

ROOT = "/api/v1/recognition"
VERIFY, DETECT, RECOGNIZE = "/api/v1/verification/verify", "/api/v1/detection/detect", f"{ROOT}/recognize"
FACES, FACE, FACE_VERIFY = f"{ROOT}/faces", f"{ROOT}/faces/{{image_id}}", f"{ROOT}/faces/{{image_id}}/verify"
SEVERAL, NAMES, NAME = f"{ROOT}/faces/delete", f"{ROOT}/subjects", f"{ROOT}/subjects/{{subject:path}}"
PREFIXES = ("/api/v1/recognition", "/api/v1/detection", "/api/v1/verification", "/api/v1/static")

MOST_SUBJECTS = 100  # that one face is answered with
MOST_IDS = 1000  # image ids of one list
MOST_BYTES = 2**18  # of such a list
LARGEST_PAGE = 2000
WALKED = 1000  # subjects asked from the gallery at once
SLOPE = 5.292
"""How fast similarity falls with distance, as in CompreFace's FaceNet plugin."""
NO_PICTURE, PICTURE, TWO_PICTURES = Fields(), Fields(("file",)), Fields(("source_image", "target_image"))
PHOTO = re.compile(r"/api/v1/(recognition/faces/[^/]+/img|static/.*)")
CODES = {
    "key_unknown": (401, 10),
    "key_missing": (401, 20),
    "not_an_image": (400, 21),
    "media_type_unsupported": (400, 21),
    "option_invalid": (400, 26),
    "no_face": (400, 28),
    "several_faces": (400, 31),
    "image_missing": (400, 34),
    "body_malformed": (400, 36),
    "subject_unknown": (404, 42),
    "subject_exists": (400, 43),
    "face_unknown": (404, 44),
}
"""Status and CompreFace's code by ours; a fault of the service is 41, and what it has no word for 0."""


class PhotoOptions(Strict):
    det_prob_threshold: float = Field(0.6, ge=0, le=1, description="least confidence that a face is one")


class AddOptions(PhotoOptions):
    subject: Name = Field(description="who it is")


class LookOptions(PhotoOptions):
    limit: int = Field(0, ge=0, description="most faces of a photo, the largest first; 0: all")
    face_plugins: str = Field("", description="landmarks, calculator, or both with a comma between; others give nothing")
    status: bool = Field(False, description="also tell execution_time and plugins_versions")

    def wants(self, plugin: str) -> bool:
        return plugin in (name.strip() for name in self.face_plugins.split(","))


class RecognizeOptions(LookOptions):
    prediction_count: int = Field(1, ge=-1, description=f"most subjects of a face; -1, and above: {MOST_SUBJECTS}")


class ListOptions(Strict):
    page: int = Field(0, ge=0, description="from 0 on")
    size: int = Field(20, ge=1, description=f"faces of a page; above {LARGEST_PAGE} as {LARGEST_PAGE}")
    subject: Name | None = Field(None, description="the faces of this subject only")


class WhoseOptions(Strict):
    subject: Name | None = Field(None, description="forget the faces of this subject; left out: all faces of all")


class NameOptions(Strict):
    subject: Name = Field(description="the name")
    api_endpoint: str | None = Field(None, description="sent by compreface-sdk when it renames; not read")


class NoOptions(Strict):
    pass


@dataclass(frozen=True)
class Reply:
    """`ran`: which task, by which model, in what time."""

    answer: Any
    status: int = 200
    ran: tuple[str, ModelInfo, TimingMs] | None = None


@dataclass(frozen=True)
class Call:
    """A request that has been read. `arrived`: the time.perf_counter() moment when it was."""

    engine: Engine
    path: Mapping[str, str]
    upload: Upload[Any]
    arrived: float

    @property
    def options(self) -> Any:
        return self.upload.options

    @property
    def gallery(self) -> Gallery:
        return self.engine.gallery

    @property
    def face_id(self) -> str:
        """As the gallery writes it. Raises FaceUnknown."""
        return _face_id(self.path["image_id"])

    @property
    def subject(self) -> str:
        """Raises OptionInvalid."""
        return check_name("subject", self.path["subject"])

    def photo(self, field: str) -> Photo:
        waited = time.perf_counter() - self.arrived
        photo = self.engine.decode(self.upload.images[field])
        photo.timing.waited(waited, self.engine.settings.request_timeout)
        return photo

    def see(self, field: str, photo: Photo | None = None) -> tuple[Sight, list[SeenFace]]:
        """All faces of a photo, decoded already or not, and those that the answer is about. Raises NoFace."""
        sight = self.engine.recognition.see(photo or self.photo(field), self.options.det_prob_threshold)
        return sight, _largest(field, sight.faces, lambda seen: seen.face, self.options)


Job = Callable[[Call], Reply]


def similarity(cosine: float, threshold: float) -> float:
    """CompreFace's similarity, 0..1, of two faces: 0.5 at our threshold, and larger for a larger cosine.

    (1 + tanh(SLOPE * (edge - distance))) / 2 of the distances that belong to the threshold and to the cosine. Reference:
    EuclideanDistanceClassifier of exadel-inc/CompreFace.
    """
    edge, distance = (math.sqrt(max(0.0, 2 - 2 * value)) for value in (threshold, cosine))
    return round((1 + math.tanh(SLOPE * (edge - distance))) / 2, 5)


def _likeness(seen: SeenFace, other: Any, sight: Sight) -> float:
    """0 where the face is too small to be compared."""
    return 0.0 if seen.embedding is None else similarity(float(np.dot(seen.embedding, other)), sight.threshold)


def _largest(field: str, faces: Sequence[Any], face_of: Callable[[Any], Face], options: LookOptions) -> list[Any]:
    if not faces:
        least = options.det_prob_threshold
        raise NoFace(field, f"no face was found in {field} with a confidence of {least:g} or more")
    ranked = sorted(faces, key=lambda one: -_area(face_of(one)))
    return ranked[: options.limit or None]


def _area(face: Face) -> float:
    return (face.box.x_max - face.box.x_min) * (face.box.y_max - face.box.y_min)


def _card(face: Face, embedding: Any, options: LookOptions, spent: Mapping[str, float]) -> dict[str, Any]:
    """One face as CompreFace tells it: whole pixels, and what the plugins that were asked for say."""
    sides = {name: round(value) for name, value in face.box.model_dump().items()}
    card: dict[str, Any] = {"box": {"probability": round(face.confidence, 5), **sides}}
    if options.wants("landmarks"):
        card["landmarks"] = [[round(point["x"]), round(point["y"])] for point in face.landmarks.model_dump().values()]
    if options.wants("calculator") and embedding is not None:
        card["embedding"] = embedding.tolist()
    if options.status:
        card["execution_time"] = dict(spent)
    return card


def _versions(options: LookOptions, **models: ModelInfo) -> dict[str, Any]:
    told = {slug: f"{model.name}.{model.version}" for slug, model in models.items()}
    return {"plugins_versions": told} if options.status else {}


def _spent(sight: Sight) -> dict[str, float]:
    """Milliseconds of the models' runs: the embedder's are those after faces were aligned, which is the last that is prepared."""
    spans = sight.timing_ms.spans
    aligned = max((end for stage, _, end in spans if stage == "preprocess"), default=math.inf)
    runs = [(end - start, start >= aligned) for stage, start, end in spans if stage == "inference"]
    sums = {
        slug: sum(seconds for seconds, late in runs if late is after) for slug, after in (("detector", False), ("calculator", True))
    }
    return {slug: round(seconds * 1e3, 1) for slug, seconds in sums.items()}


def _detect(call: Call) -> Reply:
    options = call.options
    if options.wants("calculator"):
        sight, seen = call.see("file")
        cards = [_card(one.face, one.embedding, options, _spent(sight)) for one in seen]
        versions = _versions(options, detector=sight.detector, calculator=sight.model)
        return Reply({"result": cards, **versions}, ran=("detect-faces", sight.detector, sight.timing_ms))
    found = call.engine.detect_faces(
        call.photo("file"), DetectFacesOptions.model_validate({"confidence": options.det_prob_threshold})
    )
    faces = _largest("file", found.faces, lambda face: face, options)
    cards = [_card(face, None, options, {"detector": round(found.timing_ms.inference, 1)}) for face in faces]
    return Reply({"result": cards, **_versions(options, detector=found.model)}, ran=("detect-faces", found.model, found.timing_ms))


def _verify(call: Call) -> Reply:
    options = call.options
    photos = {name: call.photo(name) for name in TWO_PICTURES.required}
    sight, sources = call.see("source_image", photos["source_image"])
    if len(sources) > 1:
        raise SeveralFaces("source_image", len(sources))
    source = sources[0]
    if source.embedding is None:
        raise ImageTooSmall(f"the face in source_image is {source.quality.size:g} pixels wide, too small to be compared")
    other, targets = call.see("target_image", photos["target_image"])
    matches = [
        {**_card(one.face, one.embedding, options, _spent(other)), "similarity": _likeness(one, source.embedding, other)}
        for one in targets
    ]
    result = {
        "source_image_face": _card(source.face, source.embedding, options, _spent(sight)),
        "face_matches": matches,
        **_versions(options, detector=sight.detector, calculator=sight.model),
    }
    return Reply({"result": [result]}, ran=("verify-face", other.model, other.timing_ms))


def _verify_known(call: Call) -> Reply:
    known = call.gallery.face(DEFAULT, call.face_id)
    if known is None:
        raise _no_such(call.path["image_id"])
    subject, embedding = known
    sight, seen = call.see("file")
    result = [
        {
            **_card(one.face, one.embedding, call.options, _spent(sight)),
            "subject": subject,
            "similarity": _likeness(one, embedding, sight),
        }
        for one in seen
    ]
    versions = _versions(call.options, detector=sight.detector, calculator=sight.model)
    return Reply({"result": result, **versions}, ran=("verify-face", sight.model, sight.timing_ms))


def _recognize(call: Call) -> Reply:
    count = call.options.prediction_count
    if count == 0:
        raise OptionInvalid("prediction_count", "prediction_count=0: give 1 or more, or -1 for as many as there are")
    sight, seen = call.see("file")
    usable = [row for row, one in enumerate(seen) if one.embedding is not None]
    found = call.gallery.search(DEFAULT, stacked(seen), MOST_SUBJECTS if count < 0 else min(count, MOST_SUBJECTS))
    matches = dict(zip(usable, found.matches, strict=True))
    result = [
        {
            **_card(one.face, one.embedding, call.options, _spent(sight)),
            "subjects": [
                {"subject": match.subject, "similarity": similarity(match.similarity, sight.threshold)}
                for match in matches.get(row, ())
            ],
        }
        for row, one in enumerate(seen)
    ]
    versions = _versions(call.options, detector=sight.detector, calculator=sight.model)
    return Reply({"result": result, **versions}, ran=("identify", sight.model, sight.timing_ms))


def _add(call: Call) -> Reply:
    timing = Timing()
    timing.waited(timing.started - call.arrived, call.engine.settings.request_timeout)
    options = EnrollOptions.model_validate({"confidence": call.options.det_prob_threshold})
    answer = call.engine.enroll(call.options.subject, call.upload.images, options, timing=timing)
    (face,) = answer.faces
    told = {"image_id": _image_id(face.face_id), "subject": answer.subject}
    return Reply(told, 200 if face.known else 201, ("enroll", answer.model, answer.timing_ms))


def _list(call: Call) -> Reply:
    size, page, only = min(call.options.size, LARGEST_PAGE), call.options.page, call.options.subject
    if only is None:
        total, found = _page(call.gallery, page * size, size)
    else:
        all_faces = [(only, face_id) for face_id in _faces_of(call.gallery, only)]
        total, found = len(all_faces), all_faces[page * size : (page + 1) * size]
    faces = [{"image_id": _image_id(face_id), "subject": subject} for subject, face_id in found]
    pages = {"page_number": page, "page_size": size, "total_pages": -(-total // size), "total_elements": total}
    return Reply({"faces": faces, **pages})


def _page(gallery: Gallery, begin: int, size: int) -> tuple[int, list[tuple[str, str]]]:
    """How many faces there are, and of those from `begin` on, by subject and age, `size` with their subjects."""
    found, after, at = list[tuple[str, str]](), None, 0
    while True:
        page = gallery.subjects(DEFAULT, after, WALKED)
        for subject in page.subjects:
            if at + subject.faces > begin and len(found) < size:
                ids = _faces_of(gallery, subject.name)
                found += [(subject.name, face_id) for face_id in ids[max(0, begin - at) :]]
            at += subject.faces
        after = page.after
        if after is None or len(found) >= size:
            return page.faces_total, found[:size]


def _faces_of(gallery: Gallery, subject: str) -> list[str]:
    try:
        return [face.face_id for face in gallery.subject(DEFAULT, subject)[1]]
    except SubjectUnknown:
        return []


def _forget_faces(call: Call) -> Reply:
    """Of one subject, or all."""
    name = call.options.subject
    if name is None:
        return Reply({"deleted": _forget_all(call.gallery)[1]})
    try:
        return Reply({"deleted": call.gallery.delete_subject(DEFAULT, name)})
    except SubjectUnknown:
        return Reply({"deleted": 0})


def _forget_all(gallery: Gallery) -> tuple[int, int]:
    """How many subjects and faces there were."""
    page = gallery.subjects(DEFAULT, None, 1)
    gallery.replace(DEFAULT, [])
    return page.subjects_total, page.faces_total


def _forget_face(call: Call) -> Reply:
    found = _forget(call.gallery, call.face_id)
    if found is None:
        raise _no_such(call.path["image_id"])
    return Reply(found)


def _forget(gallery: Gallery, face_id: str) -> dict[str, str] | None:
    """None where there is no such face, or no longer."""
    known = gallery.face(DEFAULT, face_id)
    if known is None:
        return None
    try:
        gallery.delete_face(DEFAULT, known[0], face_id)
    except (SubjectUnknown, FaceUnknown):
        return None
    return {"image_id": _image_id(face_id), "subject": known[0]}


def _forget_some(call: Call) -> Reply:
    """The options are a list of ids; those that nothing has are passed over, as CompreFace does."""
    found = []
    for image_id in dict.fromkeys(call.options):
        try:
            found.append(_forget(call.gallery, _face_id(image_id)))
        except FaceUnknown:
            continue
    return Reply([one for one in found if one is not None])


def _names(call: Call) -> Reply:
    return Reply({"subjects": list(_all_names(call.gallery))})


def _all_names(gallery: Gallery) -> Iterator[str]:
    after = None
    while True:
        page = gallery.subjects(DEFAULT, after, WALKED)
        yield from (subject.name for subject in page.subjects)
        after = page.after
        if after is None:
            return


def _new_name(call: Call) -> Reply:
    """Says that a name is free; there is nothing to store before its first face."""
    if _faces_of(call.gallery, call.options.subject):
        raise SubjectExists(DEFAULT, call.options.subject)
    return Reply({"subject": call.options.subject})


def _rename(call: Call) -> Reply:
    call.gallery.rename(DEFAULT, call.subject, call.options.subject)
    return Reply({"updated": call.subject != call.options.subject})


def _forget_name(call: Call) -> Reply:
    call.gallery.delete_subject(DEFAULT, call.subject)
    return Reply({"subject": call.subject})


def _forget_names(call: Call) -> Reply:
    return Reply({"deleted": _forget_all(call.gallery)[0]})


def _image_id(face_id: str) -> str:
    return str(UUID(face_id))


def _face_id(image_id: str) -> str:
    try:
        return UUID(image_id).hex
    except ValueError:
        raise _no_such(image_id) from None


def _no_such(image_id: str) -> FaceUnknown:
    error = FaceUnknown("", image_id)
    error.args = (f"there is no face with the image_id {image_id!r:.80}; GET {FACES} lists them",)
    return error


def pairs_of(query_string: bytes) -> list[tuple[str, str]]:
    """The query's parameters. compreface-sdk sends the "&" of a name as it is: what follows one and has no "=" belongs to the value
    before it."""
    pieces: list[str] = []
    for piece in query_string.decode("latin-1").split("&"):
        if "=" in piece or not pieces:
            pieces.append(piece)
        elif piece:
            pieces[-1] += f"%26{piece}"
    return parse_qsl("&".join(pieces), keep_blank_values=True)


def _read(request: Request, way: "Way") -> Request:
    """The request with its query as `pairs_of` reads it, less the parameters that its way has no option for.

    Raises OptionInvalid where such a one, an empty subject or a body comes with what can forget everybody: a name that is misspelt
    or in another place must not stand for all.
    """
    pairs = pairs_of(request.scope["query_string"])
    if way.wipes:
        if ("subject", "") in pairs:
            raise OptionInvalid("subject", "subject is empty; give a name, or leave it out")
        if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
            raise OptionInvalid("subject", "a body is not read here; name the subject in the query")
    kept = urlencode([pair for pair in pairs if way.exact or way.wipes or pair[0] in way.options.model_fields])
    return Request({**request.scope, "query_string": kept.encode()}, request.receive)


def endpoint(parts: Parts, way: "Way") -> Endpoint:
    """Guards, then the body, then the job on a thread: of the clerks where it asks the gallery."""
    engine = parts.engine
    workers = parts.workers if way.kind in ("/detect-faces", "/verify-face") else parts.clerks

    async def answer(request: Request) -> Response:
        require_ready(engine)
        workers.check(way.kind)
        with Meter(engine.settings.max_body_bytes, parts.budget) as meter:
            async with workers.deadline():
                upload = await read_upload(_read(request, way), way.fields, way.options, meter)
                job = partial(way.job, Call(engine, request.path_params, upload, time.perf_counter()))
                return _respond(request, await workers.run(way.kind, job, request.receive))

    return answer


def several_endpoint(parts: Parts) -> Endpoint:
    """As the others, but the body is a list."""
    engine, clerks = parts.engine, parts.clerks

    async def answer(request: Request) -> Response:
        require_ready(engine)
        clerks.check(SUBJECTS)
        with Meter(min(MOST_BYTES, engine.settings.max_body_bytes), parts.budget) as meter:
            async with clerks.deadline():
                body = b"".join([meter.count(chunk) async for chunk in request.stream()])
                try:
                    image_ids = TypeAdapter(list[str]).validate_json(body)
                except ValidationError:
                    raise MalformedBody('the body is no list of image ids like ["...", "..."]') from None
                if len(image_ids) > MOST_IDS:
                    raise OptionInvalid("image_ids", f"{len(image_ids)} image ids; at most {MOST_IDS} are taken at once")
                job = partial(_forget_some, Call(engine, {}, Upload({}, image_ids), time.perf_counter()))
                return _respond(request, await clerks.run(SUBJECTS, job, request.receive))

    return answer


def _respond(request: Request, reply: Reply) -> Response:
    if reply.ran is not None:
        record_of(request.scope).ran(*reply.ran)
    return JSONResponse(reply.answer, reply.status, {"Cache-Control": "no-store"})


def word(problem: Problem) -> tuple[int, Mapping[str, Any]]:
    """As CompreFace tells an error."""
    if problem.code == "path_unknown" and PHOTO.search(problem.instance):
        return 404, {"message": "photos are not kept, only what is needed to know a face again", "code": 11}
    status, code = CODES.get(problem.code, (problem.status, 41 if problem.status >= 500 else 0))
    if problem.code == "several_faces":
        return status, {"message": f"{problem.photo} shows {problem.count} faces; one is taken", "code": code}
    return status, {"message": problem.detail, "code": code}


@dataclass(frozen=True)
class Way:
    """One route: `kind` is the queue that it waits in, `job` what it does, `name` its entry on the API page. `exact`: a parameter
    that is not known is refused; `wipes`: it may forget everybody."""

    method: str
    path: str
    name: str
    kind: str
    options: type[Strict]
    job: Job
    fields: Fields = NO_PICTURE
    exact: bool = False
    wipes: bool = False


WAYS = (
    Way("POST", VERIFY, "verify", "/verify-face", LookOptions, _verify, TWO_PICTURES),
    Way("POST", DETECT, "detect", "/detect-faces", LookOptions, _detect, PICTURE),
    Way("POST", RECOGNIZE, "recognize", "/identify", RecognizeOptions, _recognize, PICTURE),
    Way("POST", FACES, "add", ENROLLING, AddOptions, _add, PICTURE, exact=True),
    Way("GET", FACES, "list", SUBJECTS, ListOptions, _list),
    Way("DELETE", FACES, "forget_faces", SUBJECTS, WhoseOptions, _forget_faces, wipes=True),
    Way("DELETE", FACE, "forget_face", SUBJECTS, NoOptions, _forget_face),
    Way("POST", FACE_VERIFY, "verify_known", "/identify", LookOptions, _verify_known, PICTURE),
    Way("GET", NAMES, "names", SUBJECTS, NoOptions, _names),
    Way("GET", f"{NAMES}/", "names_too", SUBJECTS, NoOptions, _names),  # as CompreFace's own documentation writes it
    Way("POST", NAMES, "new_name", SUBJECTS, NameOptions, _new_name),
    Way("DELETE", NAMES, "forget_names", SUBJECTS, NoOptions, _forget_names, wipes=True),
    Way("PUT", NAME, "rename", SUBJECTS, NameOptions, _rename),
    Way("DELETE", NAME, "forget_name", SUBJECTS, NoOptions, _forget_name),
)


def rows(parts: Parts) -> list[Row]:
    """Every route with its entry on the API page."""
    return [
        ("POST", SEVERAL, several_endpoint(parts), operation("forget_some", SEVERAL, NoOptions, NO_PICTURE)),
        *((way.method, way.path, endpoint(parts, way), operation(way.name, way.path, way.options, way.fields)) for way in WAYS),
    ]


PROTOCOL = Protocol("compreface", PREFIXES, rows, word)
