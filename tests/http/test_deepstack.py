"""DeepStack's and CodeProject.AI's API: their own clients against the real models, and what can be sent wrong against a fake."""

import itertools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import deepstack.core
import numpy as np
import pytest
import requests
from codeprojectai.core import CodeProjectAIException, CodeProjectAIFace, CodeProjectAIObject
from deepstack.core import DeepstackException, DeepstackFace, DeepstackObject, DeepstackScene
from deepstack_sdk import Detection, Face, SceneRecognition, ServerConfig
from PIL import Image
from starlette.testclient import TestClient

from service.engine import Engine
from service.errors import GalleryUnavailable, InferenceFailed, NoFace, QueueFull
from service.http import deepstack as protocol
from service.http.app import create_app
from service.http.deepstack import CALLS, KNOWN, STATUS, confidence_of
from service.http.listening import listen
from service.http.server import Server
from service.repository.progress import Silent
from service.settings import Settings

USER, MANAGER = "u" * 20, "m" * 20
Paths = dict[str, Path]
# Two clients of one design: objects, faces, and what they raise.
PACKAGES = [(DeepstackObject, DeepstackFace, DeepstackException), (CodeProjectAIObject, CodeProjectAIFace, CodeProjectAIException)]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, wait: Callable[..., None]) -> Iterator[int]:
    """A listening server with the real models and a gallery of its own."""
    models = ("yolov3-tiny", "efficientnet-lite0", "yunet", "sface")
    settings = Settings(
        device="cpu", precision="float", tune=False, models=models, data_dir=tmp_path_factory.mktemp("data"), shutdown_seconds=2
    )
    engine = Engine(settings, progress=Silent())
    server = Server(create_app(engine, give_up=pytest.fail), settings, listen("127.0.0.1", 0))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait(lambda: server.started and engine.ready, 60)
    yield server.port
    server.stop()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, photo: Callable[[str], Any]) -> Paths:
    """JPEGs by name: a cup, a cat, two of one person, and several people beside each other."""
    folder = tmp_path_factory.mktemp("photos")
    ada = photo("astronaut")
    pictures = {"street": photo("coffee"), "cat": photo("chelsea"), "ada": ada, "ada2": ada[:, ::-1], "two": np.hstack([ada, ada])}
    for name, pixels in pictures.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{name}.jpg", quality=92)
    return {name: folder / f"{name}.jpg" for name in pictures}


@pytest.fixture
def empty(port: int) -> None:
    """Nobody is known."""
    for name in post(port, "face/list").json()["faces"]:
        post(port, "face/delete", data={"userid": name})


def post(port: int, path: str, **given: Any) -> requests.Response:
    return requests.post(f"http://localhost:{port}/v1/vision/{path}", timeout=30, **given)


def own(port: int, path: str, photo: Path, **options: Any) -> Any:
    """This service's own answer."""
    return requests.post(f"http://localhost:{port}{path}", files={"image": photo.read_bytes()}, data=options, timeout=30).json()


def rounded(found: Any, *names: str) -> list[dict[str, Any]]:
    """Predictions of our own route as they should be told here."""
    return [{name: one[name] for name in names} | {side: round(value) for side, value in one["box"].items()} for one in found]


def told(found: Any, *names: str) -> list[dict[str, Any]]:
    """Those that a client made objects of."""
    return [{name: getattr(one, name) for name in (*names, "x_min", "y_min", "x_max", "y_max")} for one in found]


# Their own clients.

# deepstack-sdk opens photos without ever closing them
leaves_files_open = pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")


@leaves_files_open
def test_deepstack_sdk_finds_what_detect_finds(port: int, files: Paths, tmp_path: Path) -> None:
    server = ServerConfig(f"http://localhost:{port}")
    drawn, street = tmp_path / "drawn.png", files["street"]
    found = Detection(server).detectObject(str(street), min_confidence=0.2, output=str(drawn))
    assert told(found, "confidence", "label") == rounded(
        own(port, "/detect", street, confidence=0.2)["predictions"], "confidence", "label"
    )
    assert "cup" in [one.label for one in found]
    assert np.any(cv2.imread(str(drawn)) != cv2.imread(str(street)))  # OpenCV draws whole pixels only
    named = Detection(server, name="yolov3-tiny").detectObject(street.read_bytes(), min_confidence=0.2)
    assert told(named, "confidence", "label") == told(found, "confidence", "label")
    scene = SceneRecognition(server).recognizeScene(str(files["cat"]))
    best = own(port, "/classify", files["cat"])["predictions"][0]
    assert (scene.label, scene.confidence) == (best["label"], best["confidence"])


@leaves_files_open
def test_deepstack_sdk_knows_people_until_they_are_deleted(port: int, files: Paths, empty: None) -> None:
    faces = Face(ServerConfig(f"http://localhost:{port}"))
    two = str(files["two"])
    found = faces.detectFace(two, min_confidence=0.4)
    assert told(found, "confidence") == rounded(own(port, "/detect-faces", files["two"], confidence=0.4)["faces"], "confidence")
    assert len(found) == 2
    assert faces.listFaces().list == []
    assert [face.userid for face in faces.recognizeFace(two)] == ["unknown"] * 2
    assert faces.registerFace([str(files["ada"]), str(files["ada2"])], "Ada ✦") is True  # each under a random name
    assert [subject["faces"] for subject in requests.get(f"http://localhost:{port}/subjects", timeout=9).json()["subjects"]] == [2]
    known = faces.recognizeFace(str(files["ada2"]))
    assert [face.userid for face in known] == ["Ada ✦"]
    assert known[0].confidence == pytest.approx(1, abs=1e-3)
    assert faces.listFaces().list == ["Ada ✦"]
    assert faces.deleteFace("Ada ✦") is faces.deleteFace("Ada ✦") is True
    assert len(faces.listFaces()) == 0


@pytest.mark.parametrize(("objects", "faces", "failure"), PACKAGES, ids=["deepstack-python", "codeproject-ai-api"])
def test_the_packages_of_home_assistant_work(
    port: int, files: Paths, empty: None, objects: Any, faces: Any, failure: type[Exception]
) -> None:
    server = {"ip": "localhost", "port": port}
    street, ada, ada2 = (files[name].read_bytes() for name in ("street", "ada", "ada2"))
    found = objects(**server).detect(street)
    assert found == rounded(own(port, "/detect", files["street"], confidence=0.45)["predictions"], "confidence", "label")
    assert deepstack.core.get_objects_summary(found) == {"cup": 1}
    assert objects(**server, custom_model="yolov3-tiny").detect(street) == found
    people = faces(**server)
    assert [one["confidence"] > 0.9 for one in people.detect(ada)] == [True]
    assert people.register("Ada", ada) == "face added"
    assert people.register("Ada", ada2) == "face updated"
    assert people.get_registered_faces() == ["Ada"]
    assert deepstack.core.get_recognized_faces(people.recognize(ada)) == {"Ada": pytest.approx(100, abs=0.1)}
    with pytest.raises(failure, match="404"):
        objects(**server, custom_model="nope").detect(street)
    with pytest.raises(failure, match="400"):
        objects(**server).detect(b"no picture")
    with pytest.raises(failure, match="400"):
        people.register("Bea", street)
    assert people.get_registered_faces() == ["Ada"]


def test_deepstack_python_names_the_scene(port: int, files: Paths) -> None:
    scene = DeepstackScene(ip="localhost", port=port).recognize(files["cat"].read_bytes())
    assert "success" not in scene
    assert "cat" in scene["label"]


@leaves_files_open
def test_sdk_tells_bad_photos_and_models(port: int, files: Paths) -> None:
    server = ServerConfig(f"http://localhost:{port}")
    with pytest.raises(Exception, match="Invalid image"):
        Detection(server).detectObject(b"no picture")
    with pytest.raises(Exception, match="404"):
        Detection(server, name="nope").detectObject(str(files["street"]))
    with pytest.raises(Exception, match="Invalid image"):
        Face(server).registerFace([str(files["street"])], "Ada")


def test_two_photos_are_compared(port: int, files: Paths) -> None:
    sent = {"image1": files["ada"].read_bytes(), "image2": files["ada2"].read_bytes()}
    answer = post(port, "face/match", files=sent).json()
    same = requests.post(f"http://localhost:{port}/verify-face", files=sent, timeout=30).json()
    assert answer["similarity"] == confidence_of(same["similarity"], same["threshold"]) > KNOWN
    none = post(port, "face/match", files=sent | {"image2": files["street"].read_bytes()})
    assert (none.status_code, none.json()["problem"]) == (400, "no_face")
    assert "image2" in none.json()["error"]


def test_a_group_and_a_photo_without_a_face_can_be_registered_together(port: int, files: Paths, empty: None) -> None:
    sent = {"image1": files["two"].read_bytes(), "image2": files["street"].read_bytes()}
    answer = post(port, "face/register", files=sent, data={"userid": "Ada"}).json()
    assert answer["message"] == "face added"
    (refused,) = answer["refused"]
    assert refused.startswith("image[2]: no face")


def test_what_frigate_sends_is_answered_with_what_frigate_reads(port: int, photo: Any, tmp_path: Path) -> None:
    region = tmp_path / "region.jpg"
    Image.fromarray(photo("coffee")[20:310, 150:430]).resize((320, 320)).save(region, quality=95)
    answer = post(port, "detection", data={"api_key": ""}, files={"image": region.read_bytes()})
    found = answer.json()["predictions"]
    assert found == rounded(own(port, "/detect", region, confidence=0.4)["predictions"], "confidence", "label") != []
    for one in found:
        assert all(isinstance(one[side], int) and 0 <= one[side] <= 320 for side in ("x_min", "y_min", "x_max", "y_max"))
    assert answer.headers["content-length"]  # Blue Iris takes no chunks


@leaves_files_open
def test_the_page_about_it_is_true(port: int, files: Paths, empty: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocols-deepstack.md").read_text(encoding="utf-8")
    routes = {call.path for call in CALLS} | {f"/v1/{place}/{name}" for place in ("status", "server/status") for name in STATUS}
    assert set(re.findall(r"/v1/[\w/{}-]*", page.partition("```")[0])) == routes
    for path in files.values():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        exec(snippet.replace("8000", str(port)), {})  # the page's own lines
    lines = [line for line in page.splitlines() if line.startswith("curl ")]
    assert {re.sub("yolov3-tiny", "{model}", line.partition("8000")[2]) for line in lines} >= {call.path for call in CALLS}


# What a match is worth.


@pytest.mark.parametrize("threshold", [0.363, -0.2, 0.9])
def test_confidence_grows_with_similarity_and_is_067_at_the_threshold(threshold: float) -> None:
    values = [confidence_of(similarity, threshold) for similarity in np.linspace(-1, 1, 401).tolist()]
    assert all(low < high for low, high in itertools.pairwise(values))
    assert (values[0], values[-1]) == (0, pytest.approx(1))
    assert confidence_of(threshold, threshold) == KNOWN
    assert 0 <= confidence_of(-1.0000002, threshold) <= confidence_of(1.0000002, threshold) <= 1


def test_a_stricter_confidence_makes_a_face_unknown(client: TestClient, jpeg: bytes) -> None:
    sent = {"files": {"image": jpeg}}
    (face, *_) = client.post("/v1/vision/face/recognize", **sent).json()["predictions"]
    assert face["userid"] != "unknown"
    assert KNOWN <= face["confidence"] < 0.99
    for least, userid in ((face["confidence"], face["userid"]), (face["confidence"] + 1e-6, "unknown")):
        again = client.post("/v1/vision/face/recognize", **sent, data={"min_confidence": str(least)}).json()["predictions"][0]
        assert again["userid"] == userid
    assert again["confidence"] == 0


def test_no_confidence_is_low_enough_to_give_strangers_names(client: TestClient, fake: Any, jpeg: bytes) -> None:
    """The packages send 0.45 where nobody has chosen a number: a similarity that most strangers have."""
    usual = client.post("/v1/vision/face/recognize", files={"image": jpeg}).json()["predictions"]
    low = client.post("/v1/vision/face/recognize", files={"image": jpeg}, data={"min_confidence": "0"}).json()["predictions"]
    assert usual == low
    assert [options.threshold for _, options in fake.calls] == [None, None]  # the model's own


# What is sent.


@pytest.mark.parametrize(
    ("path", "usual"), [("detection", 0.4), ("custom/yolov3-tiny", 0.4), ("face", 0.55)], ids=["detection", "custom", "face"]
)
def test_confidence_is_theirs_unless_it_is_sent(client: TestClient, fake: Any, jpeg: bytes, path: str, usual: float) -> None:
    for sent, taken in (
        ({}, usual),
        ({"min_confidence": ""}, usual),
        ({"min_confidence": "0.25"}, 0.25),
        ({"min_confidence": -1}, 0),
    ):
        assert client.post(f"/v1/vision/{path}", files={"image": jpeg}, data=sent).status_code == 200
        assert fake.calls[-1][1].confidence == taken
    client.post(f"/v1/vision/{path}?min_confidence=0.3", files={"image": jpeg})
    assert fake.calls[-1][1].confidence == 0.3
    for wrong in ("high", "1.01", "40", "nan"):
        answer = client.post(f"/v1/vision/{path}", files={"image": jpeg}, data={"min_confidence": wrong})
        assert (answer.status_code, answer.json()["problem"]) == (400, "option_invalid")


def test_fields_of_any_name_are_passed_over(client: TestClient, fake: Any, jpeg: bytes) -> None:
    more = {"typedet": "x" * 100_000, "Image_Name": "Cam1.20240101", "model": "nope", "MIN_CONFIDENCE": "0.5"}
    answer = client.post("/v1/vision/detection", files={"image": ("Cam 1 (äö).jpg", jpeg)}, data=more)
    assert answer.status_code == 200, answer.text
    assert (fake.calls[-1][1].confidence, fake.calls[-1][1].model) == (0.5, None)


def test_the_only_file_may_have_any_name(client: TestClient, make_picture: Any, jpeg: bytes) -> None:
    small = make_picture("PNG", 64, 64)
    assert client.post("/v1/vision/scene", files={"upload": jpeg}).status_code == 200
    assert client.post("/v1/vision/scene", files={"other": b"no picture", "image": small}).status_code == 200


def test_an_answer_has_the_fields_of_both_servers(client: TestClient, jpeg: bytes) -> None:
    answer = client.post("/v1/vision/custom/yolov3-tiny", files={"image": jpeg}).json()
    assert answer["success"] is True
    assert answer["count"] == len(answer["predictions"]) > 0
    assert set(answer["predictions"][0]) == {"confidence", "label", "x_min", "y_min", "x_max", "y_max"}
    assert answer["message"].startswith("Found ")
    assert {name: type(answer[name]) for name in ("inferenceMs", "processMs", "analysisRoundTripMs", "code")} == dict.fromkeys(
        ("inferenceMs", "processMs", "analysisRoundTripMs", "code"), int
    )
    assert (answer["command"], answer["moduleId"], answer["executionProvider"]) == ("custom", "yolov3-tiny", "CPU")
    assert 0 < answer["duration"] < 10
    assert client.post("/v1/vision/custom/list").json()["models"] == client.get("/v1/vision/custom/list").json()["models"]


def test_everybody_is_listed_however_many_they_are(client: TestClient, make_picture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PAGE", 2)
    for number in range(5):
        photo = {"image": make_picture("PNG", 100 + number, 100)}
        assert client.post("/v1/vision/face/register", files=photo, data={"userid": f"n{number}"}).status_code == 200
    assert client.post("/v1/vision/face/list").json()["faces"] == [f"n{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("path", "given", "problem"),
    [
        ("detection", {}, "image_missing"),
        ("detection", {"data": {"min_confidence": "0.4"}}, "image_missing"),
        ("detection", {"files": {"image": b"GIF89a"}}, "image_damaged"),
        ("detection", {"json": {"image": "aGk="}}, "media_type_unsupported"),
        ("detection", {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, "body_malformed"),
        ("face/match", {"files": {"image1": b"1"}}, "image_missing"),
        ("face/match", {"files": {"image1": b"1", "image2": b"2", "image3": b"3"}}, "body_malformed"),
        ("face/register", {"data": {"userid": "Ada"}}, "image_missing"),
        ("face/register", {"files": {"image": b"1"}}, "option_invalid"),
        ("face/register", {"files": {"image": b"1"}, "data": {"userid": "A" * 201}}, "option_invalid"),
        ("face/delete", {}, "option_invalid"),
    ],
)
def test_what_cannot_be_used_is_a_bad_request_as_deepstack_tells_it(
    client: TestClient, path: str, given: dict[str, Any], problem: str
) -> None:
    answer = client.post(f"/v1/vision/{path}", **given)
    told = answer.json()
    assert (answer.status_code, told["problem"]) == (400, problem), answer.text
    assert (told["success"], told["code"], told["duration"]) == (False, 400, 0)
    assert told["error"]


def test_other_errors_have_their_status_and_the_same_shape(client: TestClient, fake: Any, jpeg: bytes) -> None:
    def failing(error: Exception) -> Any:
        def fail() -> None:
            raise error

        fake.before = fake.gallery.before = fail
        path = "face/list" if isinstance(error, GalleryUnavailable) else "detection"
        return client.post(f"/v1/vision/{path}", files={"image": jpeg})

    for error, status in (
        (QueueFull("full", retry_after=3), 503),
        (NoFace("image", "none"), 400),
        (InferenceFailed("secret"), 500),
    ):
        answer = failing(error)
        assert (answer.status_code, answer.json()["code"], answer.json()["success"]) == (status, status, False)
        assert "secret" not in answer.text
        assert answer.headers.get("retry-after") == ("3" if status == 503 else None)
    assert failing(GalleryUnavailable("database secret")).json()["problem"] == "gallery_unavailable"
    assert client.post("/v1/vision/nothing").json()["problem"] == "path_unknown"
    refused = client.get("/v1/vision/detection")
    assert (refused.status_code, refused.json()["code"], refused.headers["allow"]) == (405, 405, "POST, OPTIONS")


def test_a_body_over_the_limit_is_refused(make_engine: Any, open_client: Any, jpeg: bytes) -> None:
    answer = open_client(make_engine(max_body_bytes=1024)).post("/v1/vision/detection", files={"image": jpeg})
    assert (answer.status_code, answer.json()["code"], answer.json()["success"]) == (413, 413, False)


# Who may ask.


@pytest.fixture
def keyed(make_engine: Any, open_client: Any) -> TestClient:
    client: TestClient = open_client(make_engine(api_keys=f"camera:use:{USER},office:manage:{MANAGER}"))
    return client


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.path)
def test_a_key_may_come_as_a_field(keyed: TestClient, jpeg: bytes, call: Any) -> None:
    managing = call.path in [f"/v1/vision/face/{name}" for name in ("register", "list", "delete")]
    right, other = (MANAGER, USER) if managing else (USER, MANAGER)
    files = {f"image{number}": jpeg for number in range(call.images)}

    def ask(headers: dict[str, str] | None = None, **fields: str) -> tuple[int, str | None]:
        path = call.path.replace("{model}", "yolov3-tiny")
        answer = keyed.post(path, files=files, data={"userid": "Ada", **fields}, headers=headers or {})
        return answer.status_code, answer.json().get("problem")

    assert ask(api_key=right) == (200, None)
    assert ask(admin_key=MANAGER, api_key=USER) == (200, None)  # each where it is of use
    assert ask({"X-API-Key": right}) == (200, None)
    assert ask({"X-API-Key": right}, api_key="") == (200, None)
    assert ask() == ask(api_key="") == (401, "key_missing")
    assert ask(api_key="wrong") == (401, "key_unknown")
    assert ask(api_key=other) == (403, "scope_missing")
    assert ask({"X-API-Key": "wrong"}, api_key=right) == (401, "key_unknown")


def test_bodies_without_a_key_take_no_room_from_those_who_have_one(
    make_engine: Any, serve: Callable[[Any], int], jpeg: bytes
) -> None:
    engine = make_engine(api_keys=f"camera:use:{USER}", max_body_bytes=2**20)
    port, held = serve(engine), []
    head = b"POST /v1/vision/detection HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    try:
        for _ in range(8):
            held.append(socket.create_connection(("127.0.0.1", port)))
            held[-1].sendall(head + b"Content-Length: 1048000\r\n\r\n" + bytes(1_040_000))
        end = time.monotonic() + 20
        while post(port, "detection", files={"image": jpeg}).status_code != 503 and time.monotonic() < end:
            time.sleep(0.05)
        answer = requests.post(
            f"http://127.0.0.1:{port}/v1/vision/detection", files={"image": jpeg}, headers={"X-API-Key": USER}, timeout=20
        )
        assert answer.status_code == 200, answer.text
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize("sent", [{"json": {}}, {"content": "{}", "headers": {"Content-Type": "text/plain"}}], ids=str)
def test_a_list_is_answered_whatever_body_comes_with_the_question(sent: dict[str, Any], make_engine: Any, open_client: Any) -> None:
    assert open_client(make_engine()).post("/v1/vision/face/list", **sent).json()["success"]


def test_the_clients_send_their_keys_so(make_engine: Any, serve: Callable[[Any], int], jpeg: bytes) -> None:
    port = serve(make_engine(api_keys=f"camera:use:{USER},office:manage:{MANAGER}"))
    camera, office = (ServerConfig(f"http://localhost:{port}", api_key=key) for key in (USER, MANAGER))
    assert len(Detection(camera).detectObject(jpeg)) > 0
    assert DeepstackObject(ip="localhost", port=port, api_key=USER).detect(jpeg)
    assert Face(office).registerFace([jpeg], "Ada") is True
    assert DeepstackFace(ip="localhost", port=port, api_key=MANAGER).get_registered_faces() == ["Ada"]
    with pytest.raises(Exception, match="401"):
        Detection(ServerConfig(f"http://localhost:{port}")).detectObject(jpeg)
    with pytest.raises(DeepstackException, match="401"):
        DeepstackObject(ip="localhost", port=port).detect(jpeg)
    with pytest.raises(CodeProjectAIException, match="401"):
        CodeProjectAIObject(ip="localhost", port=port).detect(jpeg)


def test_a_key_in_the_address_is_none(keyed: TestClient, jpeg: bytes) -> None:
    answer = keyed.post(f"/v1/vision/detection?api_key={USER}", files={"image": jpeg})
    assert (answer.status_code, answer.json()["problem"]) == (401, "key_missing")
    assert keyed.get("/v1/vision/custom/list").status_code == 401
    assert keyed.get("/v1/vision/custom/list", headers={"X-API-Key": USER}).status_code == 200


def test_anybody_learns_that_the_service_is_there_and_never_of_an_update(keyed: TestClient) -> None:
    for place, name in itertools.product(("status", "server/status"), STATUS):
        answer = keyed.get(f"/v1/{place}/{name}").json()
        assert (answer["success"], answer["code"], answer["updateAvailable"]) == (True, 200, False)
        assert answer["version"] == answer["latest"]


def test_it_is_not_there_where_the_setting_leaves_it_out(make_engine: Any, open_client: Any, jpeg: bytes) -> None:
    client = open_client(make_engine(protocols=()))
    answer = client.post("/v1/vision/detection", files={"image": jpeg})
    assert (answer.status_code, answer.json()["code"]) == (404, "path_unknown")
    assert answer.headers["content-type"] == "application/problem+json"
