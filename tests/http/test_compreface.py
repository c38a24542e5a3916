"""CompreFace's API, asked by compreface-sdk: against a server that listens, with the real models and a real gallery."""

import ast
import base64
import gc
import io
import json
import logging
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import requests
from compreface import CompreFace
from compreface.collections import FaceCollection, Subjects
from compreface.service import DetectionService, RecognitionService, VerificationService
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from service.engine import Engine
from service.errors import FaceBlurred, GalleryUnavailable, NoFace, QueueFull, SeveralFaces
from service.gallery.gallery import NewFace
from service.http.app import create_app
from service.http.compreface import CODES, pairs_of, similarity
from service.http.listening import listen
from service.http.problems import KINDS
from service.http.server import Server
from service.repository.progress import Silent
from service.settings import Settings

Give = Callable[[str], NDArray[np.uint8]]
KEYS = {"api_keys": "door:use:door-key-door-key-door-key,desk:use+manage:desk-key-desk-key-desk-key"}
DOOR, DESK = "door-key-door-key-door-key", "desk-key-desk-key-desk-key"
API = "/api/v1/recognition"
NOBODY = "00000000-0000-0000-0000-000000000000"


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def astronaut(photo: Give) -> NDArray[np.uint8]:
    return photo("astronaut")


@pytest.fixture(scope="module")
def face(astronaut: NDArray[np.uint8]) -> bytes:
    return png(astronaut)


@pytest.fixture(scope="module")
def mirrored(astronaut: NDArray[np.uint8]) -> bytes:
    """The same person on another photo."""
    return png(astronaut[:400, ::-1])


@pytest.fixture(scope="module")
def two(astronaut: NDArray[np.uint8]) -> bytes:
    """The person twice, the smaller one on the left."""
    small = np.asarray(Image.fromarray(astronaut).resize((256, 256)))
    canvas = np.zeros((512, 768, 3), np.uint8)
    canvas[:256, :256], canvas[:, 256:] = small, astronaut
    return png(canvas)


@pytest.fixture(scope="module")
def nobody(photo: Give) -> bytes:
    return png(photo("coffee"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Server]]:
    folder = tmp_path_factory.mktemp("compreface")
    settings = Settings(device="cpu", precision="float", tune=False, models=("yunet", "sface"), data_dir=folder, **KEYS)
    engine = Engine(settings, progress=Silent())
    server = Server(create_app(engine, give_up=pytest.fail), Settings(shutdown_seconds=2), listen("127.0.0.1", 0))
    thread = threading.Thread(target=server.run)
    thread.start()
    ready = threading.Event()
    for _ in range(600):
        if server.started and engine.ready:
            break
        ready.wait(0.05)
    yield engine, server
    server.stop()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def url(running: tuple[Engine, Server]) -> Iterator[str]:
    """Where it is; the gallery is empty before and after each test."""
    engine, server = running
    assert engine.ready
    yield f"http://127.0.0.1:{server.port}"
    engine.gallery.replace("default", [])


@pytest.fixture
def sdk(url: str) -> CompreFace:
    domain, _, port = url.rpartition(":")
    return CompreFace(domain, port)


@pytest.fixture
def recognition(sdk: CompreFace) -> RecognitionService:
    return sdk.init_face_recognition(DESK)


@pytest.fixture
def faces(recognition: RecognitionService) -> FaceCollection:
    return recognition.get_face_collection()


@pytest.fixture
def subjects(recognition: RecognitionService) -> Subjects:
    return recognition.get_subjects()


@pytest.fixture
def detection(sdk: CompreFace) -> DetectionService:
    return sdk.init_face_detection(DOOR)


@pytest.fixture
def verification(sdk: CompreFace) -> VerificationService:
    return sdk.init_face_verification(DOOR)


def test_detection_finds_the_faces_that_we_find(detection: DetectionService, url: str, face: bytes) -> None:
    own = requests.post(f"{url}/detect-faces", files={"image": face}, headers={"x-api-key": DOOR}, timeout=10).json()["faces"][0]
    (found,) = detection.detect(face)["result"]
    assert found["box"] == {
        "probability": round(own["confidence"], 5),
        **{side: round(value) for side, value in own["box"].items()},
    }
    assert set(found) == {"box"}


def test_plugins_and_status_are_answered_where_asked_for(detection: DetectionService, url: str, face: bytes) -> None:
    own = requests.post(f"{url}/detect-faces", files={"image": face}, headers={"x-api-key": DOOR}, timeout=10).json()["faces"][0]
    options = {"face_plugins": "landmarks, age,gender,mask", "status": True, "limit": 0, "det_prob_threshold": 0.5}
    told = detection.detect(face, options)
    (found,) = told["result"]
    assert found["landmarks"] == [[round(point["x"]), round(point["y"])] for point in own["landmarks"].values()]
    assert found["landmarks"][0][0] < found["landmarks"][1][0]  # the eye on the picture's left comes first
    assert found["execution_time"]["detector"] > 0
    assert told["plugins_versions"] == {"detector": "yunet.2023mar"}
    assert set(found) == {"box", "landmarks", "execution_time"}

    told = detection.detect(face, {"face_plugins": "calculator", "status": True})
    (found,) = told["result"]
    assert np.linalg.norm(found["embedding"]) == pytest.approx(1, abs=1e-5)
    assert len(found["embedding"]) == 128
    assert set(told["plugins_versions"]) == {"detector", "calculator"}
    assert min(found["execution_time"].values()) > 0


def test_options_of_the_client_itself_are_taken(sdk: CompreFace, face: bytes, two: bytes) -> None:
    sdk.options = {"limit": 1, "face_plugins": "landmarks", "status": "true", "prediction_count": 2}
    assert set(sdk.init_face_detection(DOOR).detect(two)["result"][0]) == {"box", "landmarks", "execution_time"}
    assert len(sdk.init_face_verification(DOOR).verify(face, two)["result"][0]["face_matches"]) == 1
    assert len(sdk.init_face_recognition(DOOR).recognize(two)["result"]) == 1


def test_the_largest_faces_come_first(detection: DetectionService, two: bytes) -> None:
    large, small = (found["box"] for found in detection.detect(two)["result"])
    assert large["x_max"] - large["x_min"] > 1.5 * (small["x_max"] - small["x_min"])
    assert [found["box"] for found in detection.detect(two, {"limit": 1})["result"]] == [large]


def test_two_photos_are_compared(verification: VerificationService, url: str, face: bytes, mirrored: bytes, two: bytes) -> None:
    files = {"image1": face, "image2": mirrored}
    own = requests.post(f"{url}/verify-face", files=files, headers={"x-api-key": DOOR}, timeout=10).json()
    (found,) = verification.verify(face, mirrored)["result"]
    (match,) = found["face_matches"]
    assert match["similarity"] == pytest.approx(similarity(own["similarity"], own["threshold"]), abs=1e-4)
    assert 0.5 < match["similarity"] < 1
    assert set(found) == {"source_image_face", "face_matches"}
    assert set(found["source_image_face"]) == {"box"}

    options = {"status": True, "face_plugins": "landmarks,calculator"}
    (found,) = verification.verify(mirrored, two, options)["result"]
    assert len(found["face_matches"]) == 2
    assert all(match["similarity"] > 0.5 and len(match["landmarks"]) == 5 for match in found["face_matches"])
    source, match = (np.array(one["embedding"]) for one in (found["source_image_face"], found["face_matches"][0]))
    assert similarity(float(source @ match), own["threshold"]) == pytest.approx(found["face_matches"][0]["similarity"], abs=1e-4)
    assert set(found["plugins_versions"]) == {"detector", "calculator"}

    assert verification.verify(two, face)["code"] == 31
    assert len(verification.verify(two, face, {"limit": 1})["result"]) == 1


def test_a_person_is_known_again_until_it_is_forgotten(
    recognition: RecognitionService, faces: FaceCollection, face: bytes, mirrored: bytes
) -> None:
    assert recognition.recognize(face)["result"][0]["subjects"] == []
    added = faces.add(face, "Eileen Collins ✦", {"det_prob_threshold": 0.7})
    assert added["subject"] == "Eileen Collins ✦"
    assert faces.add(face, "Eileen Collins ✦")["image_id"] == added["image_id"]
    assert faces.list() == {
        "faces": [added],
        "page_number": 0,
        "page_size": 20,
        "total_pages": 1,
        "total_elements": 1,
    }
    options = {"limit": 1, "det_prob_threshold": 0.6, "prediction_count": 3, "face_plugins": "landmarks", "status": True}
    told = recognition.recognize(mirrored, options)
    (found,) = told["result"]
    (candidate,) = found["subjects"]
    assert candidate["subject"] == "Eileen Collins ✦"
    assert 0.5 < candidate["similarity"] < 1
    assert len(found["landmarks"]) == 5
    assert set(told["plugins_versions"]) == {"detector", "calculator"}

    (match,) = faces.verify(mirrored, added["image_id"], {"status": True})["result"]
    assert (match["similarity"], match["subject"]) == (candidate["similarity"], "Eileen Collins ✦")
    assert faces.delete(added["image_id"]) == added
    assert faces.list()["faces"] == []
    assert [faces.delete(added["image_id"])["code"], faces.verify(face, added["image_id"])["code"]] == [44, 44]


def enrol(running: tuple[Engine, Server], **counts: int) -> dict[str, list[str]]:
    """Faces that nobody has, for subjects of these names: their image ids, oldest first."""
    gallery, random = running[0].gallery, np.random.default_rng(7)
    for name, count in counts.items():
        for vector in random.normal(size=(count, gallery.model.dimension)).astype(np.float32):
            gallery.enroll("default", name, [NewFace(vector / np.linalg.norm(vector), (0, 0, 40, 40), {})])
    return {name: [str(UUID(face.face_id)) for face in gallery.subject("default", name)[1]] for name in counts}


def test_faces_are_listed_a_page_at_a_time(url: str, running: tuple[Engine, Server], faces: FaceCollection) -> None:
    ids = enrol(running, Ada=2, Bob=25, Cy=1, Dan=4)
    everyone = [{"image_id": one, "subject": name} for name in ids for one in ids[name]]

    def ask(**query: Any) -> dict[str, Any]:
        return requests.get(f"{url}{API}/faces", params=query, headers={"x-api-key": DESK}, timeout=10).json()

    assert faces.list()["faces"] == everyone[:20]
    pages = [ask(page=page, size=9) for page in range(5)]
    assert [face for page in pages for face in page["faces"]] == everyone
    assert [len(page["faces"]) for page in pages] == [9, 9, 9, 5, 0]
    assert {(page["page_size"], page["total_pages"], page["total_elements"]) for page in pages} == {(9, 4, 32)}
    assert [page["page_number"] for page in pages] == [0, 1, 2, 3, 4]
    bob = ask(subject="Bob", page=1, size=20)
    assert bob["faces"] == everyone[22:27]
    assert (bob["total_pages"], bob["total_elements"]) == (2, 25)
    assert ask(subject="Eve") == {"faces": [], "page_number": 0, "page_size": 20, "total_pages": 0, "total_elements": 0}
    assert ask(size=10**6)["page_size"] == 2000
    assert ask(subject="") == ask()


def test_subjects_are_listed_renamed_and_forgotten(
    url: str, running: tuple[Engine, Server], subjects: Subjects, faces: FaceCollection
) -> None:
    assert subjects.add("Ada") == {"subject": "Ada"}
    assert subjects.list() == {"subjects": []}  # there is nothing yet that could be known again
    enrol(running, Ada=2, Bob=1)
    assert subjects.add("Ada")["code"] == 43
    assert subjects.update("Ada", "Eve") == {"updated": True}
    assert subjects.update("Eve", "Eve") == {"updated": False}
    assert subjects.update("Eve", "Bob")["code"] == 43
    assert subjects.list() == {"subjects": ["Bob", "Eve"]}
    assert requests.get(f"{url}{API}/subjects/", headers={"x-api-key": DESK}, timeout=10).json() == subjects.list()
    assert [subjects.update("Ada", "Cy")["code"], subjects.delete("Ada")["code"]] == [42, 42]
    assert faces.delete_all("Ada") == {"deleted": 0}
    assert faces.delete_all("Eve") == {"deleted": 2}
    assert subjects.delete("Bob") == {"subject": "Bob"}
    assert subjects.delete_all() == {"deleted": 0}
    enrol(running, Ada=2, Bob=1)
    assert subjects.delete_all() == {"deleted": 2}
    assert subjects.list() == {"subjects": []}


@pytest.mark.parametrize("path", ["faces", "subjects"])
@pytest.mark.parametrize(
    "sent",
    [
        *({"json": {"subject": ""}}, {"json": {"subject": None}}, {"data": "subject="}, {"json": {"subject": "Ada"}}),
        *({"params": {"Subject": "Ada"}}, {"params": {"subjects": "Ada"}}, {"params": {" subject": "Ada"}}),
    ],
    ids=str,
)
def test_what_names_somebody_wrongly_forgets_nobody(
    path: str, sent: dict[str, Any], url: str, running: tuple[Engine, Server], faces: FaceCollection
) -> None:
    enrol(running, Ada=1, Bob=1)
    answer = requests.delete(f"{url}{API}/{path}", **sent, headers={"x-api-key": DESK}, timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (400, 26), answer.text
    assert faces.list()["total_elements"] == 2


def test_a_name_that_would_be_cut_is_refused(faces: FaceCollection, face: bytes) -> None:
    assert faces.add(face, "R&D=x")["code"] == 26
    assert faces.list()["total_elements"] == 0


def test_nothing_is_forgotten_because_a_name_was_empty(url: str, running: tuple[Engine, Server], faces: FaceCollection) -> None:
    enrol(running, Ada=1)
    assert faces.delete_all("")["code"] == 26
    refused = requests.delete(f"{url}{API}/subjects/", headers={"x-api-key": DESK}, timeout=10)
    assert (refused.status_code, refused.json()["code"]) == (400, 26)
    assert "deleted" not in faces.delete("")
    assert faces.list()["total_elements"] == 1
    assert requests.delete(f"{url}{API}/faces", headers={"x-api-key": DESK}, timeout=10).json() == {"deleted": 1}


@pytest.mark.parametrize("name", ["Ada & Bob", "Ada&Bob", "a/b", "100%", "Ä ✦ 漢字", "it's", "subjects", "a=b"])
def test_names_arrive_as_the_client_means_them(name: str, faces: FaceCollection, subjects: Subjects, face: bytes) -> None:
    assert faces.add(face, name, {"det_prob_threshold": 0.6})["subject"] == name
    assert subjects.list() == {"subjects": [name]}
    assert subjects.update(name, "other") == {"updated": True}
    assert subjects.update("other", name) == {"updated": True}
    assert subjects.delete(name) == {"subject": name}
    faces.add(face, name)
    assert faces.delete_all(name) == {"deleted": 1}


def test_several_faces_are_forgotten_at_once(url: str, running: tuple[Engine, Server]) -> None:
    ids = enrol(running, Ada=2, Bob=1)

    def ask(body: Any) -> requests.Response:
        return requests.post(f"{url}{API}/faces/delete", json=body, headers={"x-api-key": DESK}, timeout=10)

    first, second = ids["Ada"]
    assert ask([first, NOBODY, "no id", ids["Bob"][0], first]).json() == [
        {"image_id": first, "subject": "Ada"},
        {"image_id": ids["Bob"][0], "subject": "Bob"},
    ]
    assert ask([]).json() == []
    assert [(answer.status_code, answer.json()["code"]) for answer in (ask({"ids": [second]}), ask([1]))] == [(400, 36)] * 2
    assert ask(["x" * 2**20]).status_code == 413
    assert ask([second]).json() == [{"image_id": second, "subject": "Ada"}]


def test_pictures_may_come_as_base64(url: str, face: bytes, mirrored: bytes) -> None:
    one, other = (base64.b64encode(picture).decode() for picture in (face, mirrored))

    def ask(path: str, **body: str) -> Any:
        answer = requests.post(f"{url}/api/v1/{path}", json=body, headers={"x-api-key": DESK}, timeout=10)
        assert answer.ok, answer.text
        return answer.json()

    image_id = ask("recognition/faces?subject=Ada", file=one)["image_id"]
    assert ask("detection/detect", file=one)["result"][0]["box"]["probability"] > 0.8
    similarities = [
        ask("verification/verify?unknown=1", source_image=one, target_image=other)["result"][0]["face_matches"][0]["similarity"],
        ask("recognition/recognize?prediction_count=-1", file=other)["result"][0]["subjects"][0]["similarity"],
        ask(f"recognition/faces/{image_id}/verify?limit=", file=other)["result"][0]["similarity"],
    ]
    assert similarities == pytest.approx([similarities[0]] * 3, abs=1e-4)


def test_adding_says_whether_something_was_added_and_no_cache_keeps_names(url: str, face: bytes) -> None:
    def add() -> requests.Response:
        return requests.post(f"{url}{API}/faces?subject=Ada", files={"file": face}, headers={"x-api-key": DESK}, timeout=10)

    first, second = add(), add()
    assert [first.status_code, second.status_code] == [201, 200]
    assert UUID(first.json()["image_id"])
    assert first.json() == second.json()
    assert first.headers["Cache-Control"] == "no-store"


def test_photos_that_do_not_serve_are_refused(
    detection: DetectionService, recognition: RecognitionService, faces: FaceCollection, two: bytes, nobody: bytes
) -> None:
    assert detection.detect(nobody) == {
        "message": "no face was found in file with a confidence of 0.6 or more",
        "code": 28,
    }
    assert [recognition.recognize(nobody)["code"], faces.add(nobody, "Ada")["code"]] == [28, 28]
    assert faces.add(two, "Ada") == {"message": "file shows 2 faces; one is taken", "code": 31}
    assert detection.detect(b"no picture")["code"] == 21
    assert recognition.recognize(two, {"prediction_count": 0})["code"] == 26


def test_a_face_too_small_to_be_compared_is_like_nobody(
    recognition: RecognitionService, verification: VerificationService, faces: FaceCollection, face: bytes, astronaut: Any
) -> None:
    canvas = np.full((160, 160, 3), 90, np.uint8)
    canvas[40:100, 40:100] = np.asarray(Image.fromarray(astronaut).resize((60, 60), Image.Resampling.LANCZOS))
    small = png(canvas)
    image_id = faces.add(face, "Ada")["image_id"]
    options = {"det_prob_threshold": 0.2}
    assert recognition.recognize(small, options)["result"][0]["subjects"] == []
    assert faces.verify(small, image_id, options)["result"][0]["similarity"] == 0
    assert verification.verify(face, small, options)["result"][0]["face_matches"][0]["similarity"] == 0
    assert "too small" in verification.verify(small, face, options)["message"]


def test_keys_are_asked_for_in_the_words_of_the_protocol(url: str, sdk: CompreFace, face: bytes) -> None:
    known = sdk.init_face_recognition(DOOR)
    assert known.recognize(face)["result"][0]["subjects"] == []
    assert known.get_face_collection().verify(face, NOBODY)["code"] == 44
    for refused in (
        known.get_face_collection().list(),
        known.get_face_collection().add(face, "Ada"),
        known.get_subjects().delete_all(),
        known.get_subjects().update("Ada", "Eve"),
    ):
        assert set(refused) == {"message", "code"}
        assert "scope manage" in refused["message"]
    assert sdk.init_face_detection("wrong").detect(face)["code"] == 10
    answer = requests.post(f"{url}/api/v1/detection/detect", files={"file": face}, timeout=10)
    assert (answer.status_code, answer.json()["code"], "WWW-Authenticate" in answer.headers) == (401, 20, True)


@pytest.mark.parametrize("path", [f"{API}/faces/{NOBODY}/img", f"/api/v1/static/{DOOR}/images/{NOBODY}"])
def test_no_photo_can_be_fetched_because_none_is_kept(url: str, path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    answer = requests.get(f"{url}{path}", headers={"x-api-key": DESK}, timeout=10)
    assert answer.status_code == 404
    assert answer.json() == {"message": "photos are not kept, only what is needed to know a face again", "code": 11}
    other = requests.get(f"{url}{API}/nothing", headers={"x-api-key": DESK}, timeout=10)
    assert (other.status_code, other.json()["code"]) == (404, 0)
    lines = [vars(record) for record in caplog.records if record.name == "service.access"]
    assert lines  # the last request's may still have to come
    assert DOOR not in str(lines)


def test_names_are_in_no_log(
    running: tuple[Engine, Server], subjects: Subjects, faces: FaceCollection, face: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "service")
    faces.add(face, "Lovelace")
    subjects.update("Lovelace", "Byron")
    subjects.delete("Byron")
    faces.list()
    lines = [line for record in caplog.records if isinstance(line := getattr(record, "path", None), str)]
    assert f"{API}/subjects/{{subject:path}}" in lines
    told = json.dumps([vars(record) for record in caplog.records if record.name.startswith("service")], default=str)
    assert "Lovelace" not in told
    assert "Byron" not in told


# With an engine that fails as told.


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NoFace("file", "no face"), 400, 28),
        (SeveralFaces("file", 3), 400, 31),
        (FaceBlurred("file", 0.001, 0.005), 422, 0),
        (QueueFull("too many", retry_after=2), 503, 41),
        (GalleryUnavailable("postgresql://secret", retry_after=3), 503, 41),
        (RuntimeError("secret"), 500, 41),
    ],
)
def test_errors_have_the_shape_and_the_code_of_the_protocol(
    error: Exception, status: int, code: int, fake: Any, client: TestClient, jpeg: bytes
) -> None:
    def fail() -> None:
        raise error

    fake.before = fail
    answer = client.post("/api/v1/detection/detect", files={"file": jpeg})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"message", "code"}
    assert "secret" not in answer.text
    assert ("Retry-After" in answer.headers) is (status == 503)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/api/v1/detection/detect", {}, 400, 34),
        ("POST", "/api/v1/detection/detect", {"json": {"file": "https://example.org/a.jpg"}}, 400, 36),
        ("POST", "/api/v1/detection/detect", {"content": b"x", "headers": {"content-type": "text/plain"}}, 400, 21),
        ("POST", "/api/v1/detection/detect?limit=-1", {"files": {"file": b"x"}}, 400, 26),
        ("POST", "/api/v1/detection/detect?det_prob_threshold=1.5", {"files": {"file": b"x"}}, 400, 26),
        ("POST", "/api/v1/detection/detect", {"content": b"x" * 5000, "headers": {"content-type": "image/png"}}, 413, 0),
        ("POST", "/api/v1/verification/verify", {"files": {"source_image": b"x"}}, 400, 34),
        ("POST", f"{API}/faces", {"files": {"file": b"x"}}, 400, 26),
        ("POST", f"{API}/faces?subject=%00", {"files": {"file": b"x"}}, 400, 26),
        ("GET", f"{API}/faces?page=-1", {}, 400, 26),
        ("GET", f"{API}/faces?size=0", {}, 400, 26),
        ("POST", f"{API}/subjects", {"json": {}}, 400, 26),
        ("POST", f"{API}/subjects", {"json": {"subject": " "}}, 400, 26),
        ("PUT", f"{API}/subjects/Ada", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, 36),
        ("DELETE", f"{API}/subjects/Ada", {}, 404, 42),
        ("DELETE", f"{API}/subjects/%FF", {}, 400, 26),
        ("PATCH", f"{API}/subjects", {}, 405, 0),
    ],
)
def test_requests_that_are_wrong_are_told_so(
    method: str, path: str, body: dict[str, Any], status: int, code: int, make_engine: Any, open_client: Any
) -> None:
    answer = open_client(make_engine(max_body_bytes=4096)).request(method, path, **body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_what_is_missing_is_told_in_a_sentence(make_engine: Any, open_client: Any, jpeg: bytes) -> None:
    answer = open_client(make_engine()).post(f"{API}/faces?det_prob_threshold=0.8", files={"file": jpeg})
    assert answer.json() == {"message": "subject is missing; it is needed here", "code": 26}


def test_nothing_is_answered_before_the_models_are_ready(make_engine: Any, open_client: Any, jpeg: bytes) -> None:
    fake = make_engine()
    client = open_client(fake)
    fake.started.clear()
    for method, path in (("POST", "/api/v1/detection/detect"), ("GET", f"{API}/subjects"), ("POST", f"{API}/faces/delete")):
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (503, 41)
    fake.started.set()


def test_the_protocol_can_be_switched_off(make_engine: Any, open_client: Any, jpeg: bytes) -> None:
    answer = open_client(make_engine(protocols=("kserve",))).post("/api/v1/detection/detect", files={"file": jpeg})
    assert (answer.status_code, answer.json()["code"]) == (404, "path_unknown")


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        (b"", []),
        (b"&limit=1&status=True", [("limit", "1"), ("status", "True")]),
        (b"subject=Ada%20&%20Bob&det_prob_threshold=0.8", [("subject", "Ada & Bob"), ("det_prob_threshold", "0.8")]),
        (b"subject=Ada+Bob", [("subject", "Ada Bob")]),
        (b"subject=", [("subject", "")]),
        (b"subject&limit=2", [("subject", ""), ("limit", "2")]),
    ],
)
def test_a_query_is_read_as_the_client_writes_it(query: bytes, pairs: list[tuple[str, str]]) -> None:
    assert pairs_of(query) == pairs


def test_similarity_keeps_the_order_and_is_a_half_at_the_threshold() -> None:
    cosines = np.linspace(-1, 1, 401)
    told = [similarity(cosine, 0.363) for cosine in cosines]
    assert similarity(0.363, 0.363) == 0.5
    assert all(np.diff(told) >= 0)
    assert all(np.diff([similarity(cosine, 0.363) for cosine in np.linspace(0, 0.9, 91)]) > 0)
    assert 0 <= told[0] < 0.01
    assert 0.999 < told[-1] <= 1
    assert similarity(0.7, 0.363) > 0.95


def test_each_code_of_the_table_is_an_error_that_there_is() -> None:
    assert set(CODES) <= {cls.code for cls in KINDS}


DOCUMENTATION = Path(__file__).parents[2] / "docs" / "protocols-compreface.md"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the client never closes the files that it opens
def test_the_snippet_of_the_documentation_runs(url: str, tmp_path: Path, face: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ada.png").write_bytes(face)
    snippet = DOCUMENTATION.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    told = {'"http://localhost", "8000"': tuple(url.rsplit(":", 1)), '"a-key"': DESK, '"ada.jpg"': str(tmp_path / "ada.png")}
    for old, new in told.items():
        assert old in snippet
        snippet = snippet.replace(old, repr(new).strip("()"))
    exec(snippet, {})
    gc.collect()
    lines = [ast.literal_eval(line) for line in capsys.readouterr().out.replace("} {", "}\n{").splitlines()]
    recognized, verified, listed, names, compared, detected = lines
    assert recognized["result"][0]["subjects"][0]["subject"] == "Ada Lovelace"
    assert verified["result"][0]["similarity"] > 0.99
    assert listed["total_elements"] == 1
    assert names == {"subjects": ["Ada Lovelace"]}
    assert compared["result"][0]["face_matches"][0]["similarity"] > 0.99
    assert len(detected["result"][0]["landmarks"]) == 5


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_documented_curl_lines_work_as_printed_one_after_another(url: str, tmp_path: Path, face: bytes, two: bytes) -> None:
    (tmp_path / "ada.jpg").write_bytes(face)
    (tmp_path / "group.jpg").write_bytes(two)
    assert len(face) > 2**17, "more than an argument may have"
    lines = DOCUMENTATION.read_text(encoding="utf-8").partition("```sh\n")[2].partition("```")[0]
    told = 'curl() { command curl -sS -w "%{stderr}%{http_code}\\n" "$@"; }\n' + lines.replace("http://localhost:8000", url)
    ran = subprocess.run(
        ["sh", "-ec", told], cwd=tmp_path, env=os.environ | {"KEY": DESK}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stderr.split()) == {"200", "201"}, ran.stdout
    assert len(ran.stderr.split()) == lines.count("curl ")


def test_the_documentation_names_each_route_and_each_code(make_engine: Any) -> None:
    page = DOCUMENTATION.read_text(encoding="utf-8")
    paths = create_app(make_engine()).app.openapi()["paths"]
    routes = {(method.upper(), path) for path, item in paths.items() if path.startswith("/api/v1/") for method in item}
    told = set(re.findall(r"^\| `(\w+) (/api/v1/[^`?]+)", page, re.MULTILINE))
    assert told == {(method, path) for method, path in routes if not path.endswith("/")}
    lines = re.findall(r"^curl .*|\| curl .*", page, re.MULTILINE)
    shown = {re.sub(r"\?.*", "", re.sub(r"\$ID", "{image_id}", line.partition("$A")[2].rstrip('"'))) for line in lines}
    shown = {re.sub(r"(?<=/subjects/).*", "{subject}", path) for path in shown}
    assert shown == {path.removeprefix("/api/v1") for _, path in told}
    for status, code in CODES.values():
        assert re.search(rf"^\| {status}[^|]* \| (\d+, )?{code}\b", page, re.MULTILINE), (status, code)
