"""The five tasks and the pages through the whole application, on a fake engine."""

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.http.examples import ANSWERS
from service.http.tasks import TASKS

PATHS = [task.path for task in TASKS]
ONE_IMAGE = ["/classify", "/detect", "/detect-faces", "/stylize"]


def files(path: str, data: bytes) -> dict[str, bytes]:
    return dict.fromkeys(("image1", "image2"), data) if path == "/verify-face" else {"image": data}


def opened(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body))


@pytest.mark.parametrize("path", PATHS)
def test_a_form_is_answered(client: TestClient, jpeg: bytes, path: str) -> None:
    response = client.post(path, files=files(path, jpeg))
    assert response.status_code == 200, response.text
    if path == "/stylize":
        assert opened(response.content).size == (640, 480)
    else:
        assert response.headers["content-type"] == "application/json"
        assert response.json() == ANSWERS[path]


@pytest.mark.parametrize("path", PATHS)
def test_json_is_answered_the_same(client: TestClient, jpeg: bytes, path: str) -> None:
    text = base64.b64encode(jpeg).decode()
    by_form, by_json = client.post(path, files=files(path, jpeg)), client.post(path, json=files(path, text))
    assert by_json.status_code == 200
    assert by_json.content == by_form.content


@pytest.mark.parametrize("path", ONE_IMAGE)
def test_a_raw_body_is_answered(client: TestClient, jpeg: bytes, path: str) -> None:
    assert client.post(path, content=jpeg, headers={"content-type": "image/jpeg"}).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        {"params": {"top_k": 3}, "files": {"image": None}},
        {"data": {"top_k": "3"}, "files": {"image": None}},
        {"json": {"top_k": 3, "image": None}},
        {"params": {"top_k": 3}, "headers": {"content-type": "image/jpeg"}, "content": None},
    ],
)
def test_options_arrive_in_each_way(client: TestClient, fake: Any, jpeg: bytes, sent: dict[str, Any]) -> None:
    if "files" in sent:
        sent = {**sent, "files": {"image": jpeg}}
    elif "json" in sent:
        sent = {"json": {**sent["json"], "image": base64.b64encode(jpeg).decode()}}
    else:
        sent = {**sent, "content": jpeg}
    assert client.post("/classify", **sent).status_code == 200
    assert fake.calls[-1][1].top_k == 3


@pytest.mark.parametrize("path", ["/detect", "/detect-faces"])
@pytest.mark.parametrize(
    ("accept", "params", "media"),
    [
        ("*/*", {}, "application/json"),
        ("image/png", {}, "image/png"),
        ("image/*", {}, "image/jpeg"),
        ("image/webp;q=0.9, image/png;q=0.1", {}, "image/webp"),
        ("application/json", {"format": "png"}, "image/png"),
        ("image/png", {"format": "json"}, "application/json"),
        ("text/html", {"format": "jpeg"}, "image/jpeg"),
    ],
)
def test_an_answer_can_be_drawn(
    client: TestClient, fake: Any, jpeg: bytes, path: str, accept: str, params: dict[str, str], media: str
) -> None:
    response = client.post(path, files={"image": jpeg}, params=params, headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == media
    assert response.headers["vary"] == "Accept"
    if media == "application/json":
        assert response.json() == ANSWERS[path]
        return
    drawn = opened(response.content)
    assert Image.MIME[drawn.format or ""] == media
    assert drawn.size == (640, 480)
    assert drawn.convert("RGB").tobytes() != opened(jpeg).convert("RGB").tobytes()
    model = ANSWERS[path]["model"]
    assert response.headers["x-model"] == model["name"]
    assert response.headers["x-model-version"] == model["version"]
    assert response.headers["x-provider"] == model["provider"]
    assert (response.headers["x-image-width"], response.headers["x-image-height"]) == ("640", "480")
    assert "decode;dur=3.1" in response.headers["server-timing"]
    stages = dict(stage.split(";dur=") for stage in response.headers["server-timing"].split(", "))
    assert list(stages)[-2:] == ["encode", "total"]
    assert float(stages["encode"]) > 0
    assert float(stages["total"]) == pytest.approx(ANSWERS[path]["timing_ms"]["total"] + float(stages["encode"]), abs=0.11)


def test_a_drawn_photo_is_decoded_once(client: TestClient, fake: Any, jpeg: bytes) -> None:
    decoded: list[int] = []
    decode = fake.decode
    fake.decode = lambda image, enough_for: (decoded.append(len(image)), decode(image, enough_for))[1]
    client.post("/detect", files={"image": jpeg}, params={"format": "png"})
    assert decoded == [len(jpeg)]


@pytest.mark.parametrize(
    ("accept", "data", "media"),
    [
        ("*/*", {}, "image/png"),
        ("image/webp", {}, "image/webp"),
        ("image/png;q=0.1, image/jpeg", {}, "image/jpeg"),
        ("image/webp", {"format": "jpeg"}, "image/jpeg"),
        ("application/json", {"format": "png"}, "image/png"),
    ],
)
def test_a_painting_comes_in_the_format_wanted(
    client: TestClient, fake: Any, jpeg: bytes, accept: str, data: Any, media: str
) -> None:
    response = client.post("/stylize", files={"image": jpeg}, data=data, headers={"accept": accept})
    assert response.headers["content-type"] == media
    assert Image.MIME[opened(response.content).format or ""] == media
    assert response.headers["x-model"] == "efficientnet-lite0"


def test_a_style_image_reaches_the_engine(client: TestClient, fake: Any, jpeg: bytes, make_picture: Callable[..., bytes]) -> None:
    client.post("/stylize", files={"image": jpeg, "style_image": make_picture("PNG", 50, 40)}, data={"strength": "0.5"})
    options, style = fake.calls[-1][1]
    assert options.strength == 0.5
    assert style.info.model_dump() == {"width": 50, "height": 40}


def test_verify_face_takes_both_photos(client: TestClient, fake: Any, jpeg: bytes) -> None:
    response = client.post("/verify-face", files={"image1": jpeg, "image2": jpeg}, data={"face": "largest"})
    assert response.json()["verified"] is True
    assert fake.calls[-1][1].face == "largest"


@pytest.mark.parametrize(
    ("path", "sent", "status", "code", "extra"),
    [
        ("/classify", {}, 422, "image_missing", {}),
        ("/classify", {"files": {"file": b"x"}}, 422, "image_missing", {}),
        ("/classify", {"files": {"image": b"this is no picture"}}, 415, "not_an_image", {"photo": "image"}),
        ("/classify", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "media_type_unsupported", {}),
        ("/classify", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "body_malformed", {}),
        ("/classify", {"jpeg": "image", "params": {"top_k": "0"}}, 422, "option_invalid", {"option": "top_k"}),
        ("/classify", {"jpeg": "image", "params": {"model": "nope"}}, 404, "model_unknown", {"known": ["yolov3-tiny"]}),
        ("/classify", {"jpeg": "image", "headers": {"accept": "image/png"}}, 406, "not_acceptable", {}),
        ("/detect", {"jpeg": "image", "params": {"format": "gif"}}, 422, "option_invalid", {"option": "format"}),
        ("/detect", {"jpeg": "image", "headers": {"accept": "video/mp4"}}, 406, "not_acceptable", {}),
        ("/stylize", {"jpeg": "image", "headers": {"accept": "application/json"}}, 406, "not_acceptable", {}),
        ("/stylize", {"jpeg": "image", "data": {"style": "crayon"}}, 422, "style_unknown", {"known": ["ink-wash"]}),
        ("/verify-face", {"jpeg": "image1"}, 422, "image_missing", {}),
    ],
)
def test_errors_are_problems(
    client: TestClient, jpeg: bytes, path: str, sent: dict[str, Any], status: int, code: str, extra: dict[str, Any]
) -> None:
    if "jpeg" in sent:
        sent = {**{k: v for k, v in sent.items() if k != "jpeg"}, "files": {sent["jpeg"]: jpeg}}
    response = client.post(path, **sent)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["instance"] == path
    assert problem["type"] == f"/problems/{code}"
    assert problem["title"]
    assert problem["detail"]
    assert extra.items() <= problem.items()


def test_a_face_missing_is_said_of_its_photo(client: TestClient, jpeg: bytes, make_picture: Callable[..., bytes]) -> None:
    response = client.post("/verify-face", files={"image1": jpeg, "image2": make_picture("PNG", 64, 64)})
    assert response.status_code == 422
    assert response.json()["code"] == "no_face"
    assert response.json()["photo"] == "image2"


def test_a_bad_second_photo_is_named(client: TestClient, jpeg: bytes) -> None:
    problem = client.post("/verify-face", files={"image1": jpeg, "image2": b"this is no picture"}).json()
    assert problem["photo"] == "image2"
    assert problem["detail"].startswith("image2: ")


def test_a_body_over_the_limit_is_413(make_engine: Any, open_client: Any, jpeg: bytes) -> None:
    client = open_client(make_engine(max_body_bytes=2000))
    for chunked in (False, True):
        content = iter([jpeg[:1500], jpeg[1500:3000]]) if chunked else jpeg
        response = client.post("/classify", content=content, headers={"content-type": "image/jpeg"})
        assert response.status_code == 413
        assert response.json()["code"] == "body_too_large"
        assert response.headers["connection"] == "close"


def test_too_many_pixels_are_413(make_engine: Any, open_client: Any, jpeg: bytes) -> None:
    response = open_client(make_engine(max_pixels=10_000)).post("/classify", files={"image": jpeg})
    assert (response.status_code, response.json()["code"]) == (413, "too_many_pixels")


def test_models_and_styles_are_listed(client: TestClient) -> None:
    assert client.get("/models").json()["models"][0]["name"] == "yolov3-tiny"
    style = client.get("/styles").json()["styles"][0]
    thumbnail = client.get(style["thumbnail"])
    assert thumbnail.headers["content-type"] == "image/jpeg"
    assert "max-age" in thumbnail.headers["cache-control"]
    assert opened(thumbnail.content).format == "JPEG"


def test_an_unknown_thumbnail_is_404(client: TestClient) -> None:
    response = client.get("/styles/crayon/thumbnail.jpg")
    assert (response.status_code, response.json()["code"]) == (404, "path_unknown")


def test_health(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "alive"}
    ready = client.get("/health/ready").json()
    assert ready["status"] == "ready"
    assert ready["models"] == [{"name": "yolov3-tiny", "provider": "CPUExecutionProvider", "provider_note": None}]


def test_the_landing_page_is_for_browsers_and_programs(client: TestClient) -> None:
    page = client.get("/", headers={"accept": "text/html,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert "{version}" not in page.text
    assert "{assets}" not in page.text
    for address in ("http://", "https://", "//"):
        assert address not in page.text.replace("<!-- ", "")
    links = client.get("/").json()
    assert links["tasks"] == PATHS
    for path in (links["docs"], links["openapi"], links["models"], links["styles"], links["ready"]):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_api_page_needs_no_network(client: TestClient, page: str) -> None:
    response = client.get(page)
    html = response.text
    assert response.headers["content-security-policy"].startswith("default-src 'self' ")
    assert "//" not in html.replace("<!-- `", "").split("<script>")[0]
    for host in ("cdn", "unpkg", "jsdelivr", "googleapis", "tiangolo.com"):
        assert host not in html
    for asset in [piece.split('"')[0] for piece in html.replace("href=", "src=").split('src="')[1:]]:
        assert client.get(asset).status_code == 200, asset


def test_problems_are_explained(client: TestClient) -> None:
    problem = client.post("/classify").json()
    explained = client.get(problem["type"]).json()
    assert explained["code"] == "image_missing"
    assert explained["status"] == 422
    assert client.get("/problems/nonsense").status_code == 404


@pytest.mark.parametrize("path", ["/nothing", "/classify/", "/static-offline-docs/nothing.js"])
def test_an_unknown_path_is_a_problem(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()["code"]) == (404, "path_unknown")
    assert path in response.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/classify", "POST, OPTIONS"), ("HEAD", "/classify", "POST, OPTIONS"), ("POST", "/styles", "GET, HEAD, OPTIONS")],
)
def test_a_wrong_method_names_the_right_ones(client: TestClient, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    if method != "HEAD":
        assert response.json()["allowed"] == allowed.split(", ")


def test_options_and_head(client: TestClient) -> None:
    response = client.options("/classify")
    assert (response.status_code, response.headers["allow"], response.content) == (204, "POST, OPTIONS", b"")
    assert client.options("/nothing").status_code == 404
    head, get = client.head("/models"), client.get("/models")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


def test_a_mounted_service_points_to_itself(fake: Any, open_client: Any) -> None:
    client = open_client(fake)
    mounted = TestClient(client.app, root_path="/vision")
    fake.started.set()
    assert mounted.get("/vision/styles").json()["styles"][0]["thumbnail"] == "/vision/styles/ink-wash/thumbnail.jpg"
    assert mounted.post("/vision/classify").json()["type"] == "/vision/problems/image_missing"
