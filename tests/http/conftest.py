"""A fake engine with the real one's face: it decodes for real, answers at once, and can be told to fail, wait or not be ready."""

import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.catalogue import ModelCard
from service.engine import StylizeAnswer
from service.errors import (
    EnrollmentRefused,
    FaceTooSmall,
    FaceUnknown,
    InputError,
    ModelUnknown,
    NoFace,
    StyleUnknown,
    SubjectExists,
    SubjectUnknown,
)
from service.gallery.faces import face_id
from service.gallery.gallery import Collection, EmbeddingModel, NewFace, Page, StoredFace, Subject
from service.http.app import create_app
from service.http.examples import ANSWERS
from service.http.listening import listen
from service.http.server import Server
from service.photo import Photo, open_photo
from service.settings import Settings
from service.tasks.classify import ClassifyAnswer
from service.tasks.detect import DetectAnswer
from service.tasks.faces import DetectFacesAnswer, VerifyFaceAnswer
from service.tasks.people import EnrollAnswer, IdentifyAnswer, refusal
from service.tasks.stylize import StyleInfo
from service.tasks.task import ModelInfo, Pixels, Timing


class FakeGallery:
    """As much of the Gallery as HTTP asks for, in a dict: collection -> subject -> faces. `before` runs first."""

    model = EmbeddingModel("sface", "2021dec", "d" * 64, "aligned-1", 2)

    def __init__(self) -> None:
        self.held: dict[str, dict[str, list[StoredFace]]] = {}
        self.before: Callable[[], None] = lambda: None

    def collections(self) -> list[Collection]:
        return [Collection(name, self.model, len(held), sum(map(len, held.values()))) for name, held in self.held.items()]

    def enroll(self, collection: str, subject: str, faces: Sequence[NewFace]) -> list[StoredFace]:
        self.before()
        mine = self.held.setdefault(collection, {}).setdefault(subject, [])
        ids = [face_id(sha256(f"{collection}/{subject}".encode()).hexdigest(), face.embedding) for face in faces]
        known = {face.face_id for face in mine}
        new = [
            StoredFace(key, face.box, face.quality, datetime.now(UTC), key in known) for key, face in zip(ids, faces, strict=True)
        ]
        mine.extend(face for face in new if not face.known)
        return new

    def subjects(self, collection: str, after: str | None = None, limit: int = 100) -> Page:
        self.before()
        held = self.held.get(collection, {})
        names = sorted(name for name in held if after is None or name > after)
        shown = [self.subject(collection, name)[0] for name in names[:limit]]
        last = shown[-1].name if len(names) > limit else None
        return Page(shown, last, len(held), sum(map(len, held.values())))

    def subject(self, collection: str, name: str) -> tuple[Subject, list[StoredFace]]:
        self.before()
        faces = self._faces(collection, name)
        return Subject(name, len(faces), faces[0].enrolled_at, faces[-1].enrolled_at), faces

    def rename(self, collection: str, name: str, new: str) -> Subject:
        self._faces(collection, name)
        if new != name and new in self.held[collection]:
            raise SubjectExists(collection, new)
        self.held[collection][new] = self.held[collection].pop(name)
        return self.subject(collection, new)[0]

    def delete_subject(self, collection: str, name: str) -> int:
        self._faces(collection, name)
        return len(self.held[collection].pop(name))

    def delete_face(self, collection: str, name: str, face_id: str) -> int:
        faces = self._faces(collection, name)
        if face_id not in [face.face_id for face in faces]:
            raise FaceUnknown(name, face_id)
        faces[:] = [face for face in faces if face.face_id != face_id]
        return len(faces) or len(self.held[collection].pop(name))

    def _faces(self, collection: str, name: str) -> list[StoredFace]:
        if name not in self.held.get(collection, {}):
            raise SubjectUnknown(collection, name)
        return self.held[collection][name]


class FakeEngine:
    """`calls` are (method, options) in order; `before` runs at the start of every call, on the worker's thread."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.calls: list[tuple[str, Any]] = []
        self.before: Callable[[], None] = lambda: None
        self.on_start: Callable[[], None] = lambda: None
        self.started = threading.Event()
        self.closed = False
        self.gallery: Any = FakeGallery()
        self.on_open: Callable[[], None] = lambda: None
        self.turn: Callable[[int], object] = lambda _: None
        self.iterations: int | None = None  # of paintings, whatever the options say
        self.painted = threading.Event()

    ready = property(lambda self: self.started.is_set() and not self.closed)
    pending = property(lambda self: [] if self.ready else ["yolov3-tiny"])

    concurrency = 2

    def open_gallery(self) -> None:
        self.on_open()

    def start(self) -> None:
        self.on_start()
        self.started.set()

    def close(self) -> None:
        self.closed = True

    def decode(self, image: Any, enough_for: Any = None) -> Photo:
        return open_photo(image, self.settings)

    def _answer(self, name: str, path: str, model: type, options: Any, photo: Photo | None = None) -> Any:
        self.calls.append((name, options))
        self.before()
        if getattr(options, "model", None) == "nope":
            raise ModelUnknown("nope", ["yolov3-tiny"])
        answer = ANSWERS[path] if photo is None else ANSWERS[path] | {"image": photo.info.model_dump()}
        return model.model_validate(answer)

    def classify(self, image: Photo, options: Any) -> ClassifyAnswer:
        return self._answer("classify", "/classify", ClassifyAnswer, options, image)

    def detect(self, image: Photo, options: Any) -> DetectAnswer:
        return self._answer("detect", "/detect", DetectAnswer, options, image)

    def detect_faces(self, image: Photo, options: Any) -> DetectFacesAnswer:
        return self._answer("detect_faces", "/detect-faces", DetectFacesAnswer, options, image)

    def verify_face(self, image1: Photo, image2: Photo, options: Any) -> VerifyFaceAnswer:
        if image2.pixels.shape[:2] == (64, 64):
            raise NoFace("image2", "no face was found in image2")
        return self._answer("verify_face", "/verify-face", VerifyFaceAnswer, options)

    def identify(self, image: Photo, options: Any) -> IdentifyAnswer:
        return self._answer("identify", "/identify", IdentifyAnswer, options, image)

    def enroll(self, subject: str, photos: Mapping[str, Any], options: Any, *, timing: Timing) -> EnrollAnswer:
        """Every picture is a face of its own, seen by its first pixel; below 64 pixels of width it is too small."""
        self.calls.append(("enroll", (subject, dict(photos), options)))
        self.before()
        new, refused = dict[str, NewFace](), list[InputError]()
        example = ANSWERS["POST /subjects/{subject}/faces"]
        for name, data in photos.items():
            try:
                pixels = open_photo(data, self.settings).pixels
                if pixels.shape[1] < 64:
                    raise FaceTooSmall(name, pixels.shape[1], 32)
                new[name] = NewFace(pixels.sum(axis=(0, 1), dtype=np.float32), (1, 2, 3, 4), example["faces"][0]["quality"])
            except InputError as error:
                error.photo = name
                refused.append(error)
        if refused and not (options.partial and new):
            raise refused[0] if len(photos) == 1 else EnrollmentRefused([vars(refusal(error)) for error in refused], len(photos))
        stored = self.gallery.enroll(options.gallery, subject, list(new.values()))
        faces = [
            example["faces"][0] | {"photo": name, "face_id": face.face_id, "known": face.known}
            for name, face in zip(new, stored, strict=True)
        ]
        told = {"gallery": options.gallery, "subject": subject, "faces": faces, "refused": [vars(refusal(e)) for e in refused]}
        return EnrollAnswer.model_validate(example | told | {"timing_ms": timing.report()})

    def stylize(self, image: Photo, options: Any, *, style_image: Photo | None = None) -> StylizeAnswer:
        self.calls.append(("stylize", (options, style_image)))
        self.before()
        if options.style == "crayon":
            raise StyleUnknown("crayon", ["ink-wash"])
        model = ModelInfo.model_validate(ANSWERS["/classify"]["model"])
        return StylizeAnswer(255 - image.pixels, model, image.info, image.timing.report(), options)

    def optimize(self, image: Any, style_image: Any, options: Any) -> "FakePainting":
        if options.model == "nope":
            raise ModelUnknown("nope", ["vgg16-hed"])
        return FakePainting(self, self.decode(image).pixels, options)

    def styles(self) -> list[StyleInfo]:
        return [StyleInfo.model_validate({k: v for k, v in ANSWERS["/styles"]["styles"][0].items() if k != "thumbnail"})]

    def thumbnail(self, name: str) -> bytes:
        if name != "ink-wash":
            raise StyleUnknown(name, ["ink-wash"])
        return picture("JPEG")

    def describe(self) -> list[ModelCard]:
        return [ModelCard.model_validate(card) for card in ANSWERS["/models"]["models"]]


@dataclass(frozen=True)
class FakeStep:
    iteration: int
    iterations: int
    height: int
    width: int
    picture: Callable[[], Pixels]
    content: float = 1.5
    style: float = 2.5
    variation: float = 0.25
    total: float = 4.25

    @property
    def done(self) -> float:
        return self.iteration / self.iterations


class FakePainting:
    """Makes the photo darker with each iteration; `engine.turn` is called with its number before each."""

    model = ModelInfo.model_validate(ANSWERS["/classify"]["model"])

    def __init__(self, engine: FakeEngine, photo: Pixels, options: Any) -> None:
        self._engine, self._photo, self._options, self._begun = engine, photo, options, False

    def __iter__(self) -> Iterator[FakeStep]:
        height, width = self._photo.shape[:2]
        self._engine.calls.append(("optimize", self._options))
        self._begun = True
        iterations = self._engine.iterations or self._options.iterations
        for number in range(1, iterations + 1):
            self._engine.turn(number)
            yield FakeStep(number, iterations, height, width, partial(np.right_shift, self._photo, min(number, 7)))

    def close(self) -> None:
        if self._begun:
            self._engine.painted.set()


def picture(kind: str = "JPEG", width: int = 640, height: int = 480) -> bytes:
    """An encoded picture of smooth colours."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    file = io.BytesIO()
    Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    return picture("JPEG")


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., FakeEngine]:
    return FakeEngine


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


def no_give_up(reason: str) -> None:
    pytest.fail("the application gave up")


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def wait() -> Callable[..., None]:
    return wait_until


@pytest.fixture
def open_client() -> Iterator[Callable[[FakeEngine], TestClient]]:
    """Opens a client of create_app(engine) that is started, ready, and closed after the test."""
    clients: list[TestClient] = []

    def make(engine: FakeEngine, **kwargs: Any) -> TestClient:
        client = TestClient(create_app(engine, **{"give_up": no_give_up, **kwargs}))
        client.__enter__()
        clients.append(client)
        assert engine.started.wait(5)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(fake: FakeEngine, open_client: Callable[[FakeEngine], TestClient]) -> TestClient:
    return open_client(fake)


@pytest.fixture
def restored_logging() -> Iterator[None]:
    names = ("", "service", "uvicorn", "uvicorn.error", "uvicorn.access", "python_multipart")
    before = [
        (logging.getLogger(n), logging.getLogger(n).handlers, logging.getLogger(n).level, logging.getLogger(n).propagate)
        for n in names
    ]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


class Client(socket.socket):
    """A connection on which tests say exactly which bytes are sent when."""

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of one response, by its Content-Length."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more(1)  # no byte of the next response
        first, *lines = received[:-4].decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = b""
        while len(body) < int(headers["content-length"]):
            body += self._more(int(headers["content-length"]) - len(body))
        return int(first.split()[1]), headers, json.loads(body) if "json" in headers.get("content-type", "") else body

    def _more(self, size: int) -> bytes:
        chunk = self.recv(size)
        assert chunk, "the connection was closed before the answer was complete"
        return chunk

    def closed_within(self, seconds: float) -> bool:
        """Does the server close the connection, with no further byte?"""
        self.settimeout(seconds)
        try:
            return self.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


@pytest.fixture
def connect() -> Iterator[Callable[[int], Client]]:
    """Opens a connection to a port of this machine, closed after the test."""
    clients: list[Client] = []

    def open_(port: int) -> Client:
        clients.append(Client())
        clients[-1].settimeout(10)
        clients[-1].connect(("127.0.0.1", port))
        return clients[-1]

    yield open_
    for client in clients:
        client.close()


@pytest.fixture(scope="session")
def head() -> Callable[..., bytes]:
    """Writes the head of a POST that announces `length` bytes of JPEG; None: chunked."""

    def write(length: int | None, *extra: str, path: str = "/classify") -> bytes:
        told = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: image/jpeg", told, *extra]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    return write


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Serves an ASGI application on a free port of this machine until the test ends."""
    running: list[tuple[Server, threading.Thread]] = []

    def start(app: Any, settings: Settings | None = None, **given: Any) -> Server:
        server = Server(app, settings or Settings(shutdown_seconds=2), listen("127.0.0.1", 0), **given)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        wait_until(lambda: server.started)
        return server

    yield start
    for server, thread in running:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def serve(start_server: Callable[..., Server]) -> Callable[[Any], int]:
    """Serves create_app(engine) until the test ends; gives the port."""

    def start(engine: Any) -> int:
        app = create_app(engine, give_up=no_give_up)
        settings = engine.settings.model_copy(update={"shutdown_seconds": 2.0})
        server = start_server(app, settings, ending=app.ending)
        wait_until(lambda: engine.ready)
        return server.port

    return start
