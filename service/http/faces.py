"""The gallery over HTTP: enrol, list, rename, forget. Who is on a photo is a task like others, in service.http.tasks.

    path as it was sent -> names -> guards -> Engine.enroll or Engine.gallery, on a worker's thread -> JSON

Names are data: a subject may be called "a/b" or "..", so these paths are matched before they are decoded, and neither the log nor
the metrics ever show one.
"""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar
from urllib.parse import quote, unquote_to_bytes, urlencode

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from service.engine import Engine
from service.errors import FaceUnknown, OptionInvalid
from service.gallery.gallery import Gallery
from service.gallery.names import check_name
from service.http.cards import (
    Embedder,
    FaceCard,
    ForgottenFace,
    ForgottenSubject,
    FullSubject,
    InGallery,
    ListOptions,
    RenamedSubject,
    RenameOptions,
    SubjectCard,
    Subjects,
)
from service.http.guards import Meter, UploadBudget, Workers
from service.http.record import record_of
from service.http.routes import Endpoint, as_json, require_ready
from service.http.uploads import Fields, Upload, read_upload
from service.tasks.people import EnrollAnswer, EnrollOptions
from service.tasks.task import Strict, Timing

Options = TypeVar("Options", bound=Strict)
SUBJECTS, SUBJECT = "/subjects", "/subjects/{subject}"
FACES, FACE = "/subjects/{subject}/faces", "/subjects/{subject}/faces/{face_id}"
ENROLLING = "/enroll"
"""The queue of enrolments, as metrics call it."""
PHOTOS = Fields(("image",), repeated="image")
FACE_ID = re.compile(r"[0-9a-f]{32}")


class SubjectRoute(Route):
    """A route below /subjects, matched on the path as it was sent: what is between two slashes is one name, whatever is in it.

    `path_params` hold the names still percent-encoded; see name_in().
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http":
            return Match.NONE, {}
        wanted, sent = self.path.split("/")[1:], _segments(scope)
        if len(wanted) != len(sent):
            return Match.NONE, {}
        given = {}
        for want, segment in zip(wanted, sent, strict=True):
            if want.startswith("{") and segment:
                given[want[1:-1]] = segment
            elif unquote_to_bytes(segment) != want.encode():
                return Match.NONE, {}
        child = {"endpoint": self.endpoint, "path_params": {**scope.get("path_params", {}), **given}}
        return (Match.FULL if scope["method"] in (self.methods or ()) else Match.PARTIAL), child


def _segments(scope: Scope) -> list[bytes]:
    """What the path holds after its first slash and between the others, without those that the service is mounted under."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    below = root and (path == root or path.startswith(root + "/"))
    return raw.split(b"/")[1 + (root.count("/") if below else 0) :]


def name_in(request: Request, parameter: str) -> str:
    """A name out of the path. Raises OptionInvalid naming the parameter."""
    try:
        text = unquote_to_bytes(request.path_params[parameter]).decode()
    except UnicodeDecodeError:
        raise OptionInvalid(parameter, f"{parameter} is not UTF-8; write a name's bytes in UTF-8, each like %C3%A4") from None
    return check_name(parameter, text)


@dataclass(frozen=True)
class Clerks:
    """What the gallery's routes work with: threads of their own, so that a database that keeps them waiting holds up no task."""

    engine: Engine
    workers: Workers
    budget: UploadBudget

    async def ask(self, request: Request, kind: type[Options], job: Callable[[Gallery, Options], BaseModel]) -> Response:
        """What `job` finds in the gallery, by the options in the query or the body."""
        require_ready(self.engine)
        self.workers.check(SUBJECTS)
        with Meter(self.engine.settings.max_body_bytes, self.budget) as meter:
            async with self.workers.deadline():
                options = (await read_upload(request, Fields(), kind, meter)).options
                return _private(await self.workers.run(SUBJECTS, lambda: job(self.engine.gallery, options), request.receive))


def enroll_endpoint(clerks: Clerks) -> Endpoint:
    """As a task's: guards, then the name, then the body, then the engine."""

    async def enroll(request: Request) -> Response:
        engine, workers = clerks.engine, clerks.workers
        require_ready(engine)
        workers.check(ENROLLING)
        subject = name_in(request, "subject")
        with Meter(engine.settings.max_body_bytes, clerks.budget) as meter:
            async with workers.deadline():
                upload = await read_upload(request, PHOTOS, EnrollOptions, meter)
                job = partial(_enroll, engine, subject, upload, time.perf_counter())
                answer = await workers.run(ENROLLING, job, request.receive)
        record_of(request.scope).ran(ENROLLING.strip("/"), answer.model, answer.timing_ms)
        return _private(answer, 200 if all(face.known for face in answer.faces) else 201)

    return enroll


def _enroll(engine: Engine, subject: str, upload: Upload[EnrollOptions], arrived: float) -> EnrollAnswer:
    timing = Timing()
    timing.waited(timing.started - arrived, engine.settings.request_timeout)
    return engine.enroll(subject, upload.images, upload.options, timing=timing)


def list_endpoint(clerks: Clerks) -> Endpoint:
    def page(gallery: Gallery, options: ListOptions, root: str) -> Subjects:
        found = gallery.subjects(options.gallery, options.after, options.limit)
        query = {"gallery": options.gallery, "after": found.after, "limit": options.limit}
        return Subjects(
            gallery=options.gallery,
            subjects=[SubjectCard.of(subject) for subject in found.subjects],
            subjects_total=found.subjects_total,
            faces_total=found.faces_total,
            after=found.after,
            next=None if found.after is None else f"{root}{SUBJECTS}?{urlencode(query)}",
        )

    async def list_subjects(request: Request) -> Response:
        return await clerks.ask(request, ListOptions, partial(page, root=request.scope.get("root_path", "")))

    return list_subjects


def subject_endpoint(clerks: Clerks) -> Endpoint:
    def look(gallery: Gallery, options: InGallery, name: str) -> FullSubject:
        subject, faces = gallery.subject(options.gallery, name)
        made_by = next((one.model for one in gallery.collections() if one.name == options.gallery), gallery.model)
        return FullSubject(
            gallery=options.gallery,
            subject=subject.name,
            created_at=subject.created_at,
            updated_at=subject.updated_at,
            model=Embedder(**asdict(made_by)),
            faces=[FaceCard.of(face) for face in faces],
        )

    async def show_subject(request: Request) -> Response:
        return await clerks.ask(request, InGallery, partial(look, name=name_in(request, "subject")))

    return show_subject


def rename_endpoint(clerks: Clerks) -> Endpoint:
    def rename(gallery: Gallery, options: RenameOptions, name: str) -> RenamedSubject:
        card = SubjectCard.of(gallery.rename(options.gallery, name, options.subject))
        return RenamedSubject(gallery=options.gallery, **dict(card))

    async def rename_subject(request: Request) -> Response:
        return await clerks.ask(request, RenameOptions, partial(rename, name=name_in(request, "subject")))

    return rename_subject


def forget_endpoint(clerks: Clerks) -> Endpoint:
    def forget(gallery: Gallery, options: InGallery, name: str) -> ForgottenSubject:
        return ForgottenSubject(gallery=options.gallery, subject=name, faces=gallery.delete_subject(options.gallery, name))

    async def forget_subject(request: Request) -> Response:
        return await clerks.ask(request, InGallery, partial(forget, name=name_in(request, "subject")))

    return forget_subject


def forget_face_endpoint(clerks: Clerks) -> Endpoint:
    def forget(gallery: Gallery, options: InGallery, name: str, face_id: str) -> ForgottenFace:
        if not FACE_ID.fullmatch(face_id):
            raise FaceUnknown(name, face_id)
        left = gallery.delete_face(options.gallery, name, face_id)
        return ForgottenFace(gallery=options.gallery, subject=name, face_id=face_id, faces=left)

    async def forget_face(request: Request) -> Response:
        name, face_id = name_in(request, "subject"), name_in(request, "face_id")
        return await clerks.ask(request, InGallery, partial(forget, name=name, face_id=face_id))

    return forget_face


def _private(answer: BaseModel, status: int = 200) -> Response:
    """JSON that no cache may keep: it names people."""
    response = as_json(answer)
    response.status_code = status
    response.headers["Cache-Control"] = "no-store"
    return response
