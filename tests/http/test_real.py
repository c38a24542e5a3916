"""The real models behind the real application, on real photos: each task once, in each of the three ways."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.engine import Engine
from service.http.app import create_app

Photo = Callable[[str], Path]


@pytest.fixture(scope="module")
def real(engine: Engine) -> TestClient:
    """Not entered as a context: the engine is the session's, which starts and closes it itself."""
    engine.start()
    return TestClient(create_app(engine))


def opened(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body))


def test_a_cat_is_a_cat(real: TestClient, photo_path: Photo) -> None:
    answer = real.post("/classify", files={"image": photo_path("chelsea").read_bytes()}, data={"top_k": "3"}).json()
    assert "cat" in answer["predictions"][0]["label"]
    assert len(answer["predictions"]) == 3
    assert answer["image"] == {"width": 451, "height": 300}
    assert answer["model"]["name"] == "efficientnet-lite0"
    assert answer["model"]["provider"] == "CPUExecutionProvider"
    stages = answer["timing_ms"]
    assert stages["total"] >= stages["decode"] + stages["inference"] > 0


def test_a_cup_is_found_and_drawn(real: TestClient, photo_path: Photo) -> None:
    photo = photo_path("coffee").read_bytes()
    raw = {"content": photo, "headers": {"content-type": "image/png"}}
    found = real.post("/detect?classes=cup", **raw).json()["predictions"]
    assert [item["label"] for item in found] == ["cup"]
    drawn = real.post("/detect?classes=cup&format=png", **raw)
    assert drawn.headers["x-model"] == "yolov3-tiny"
    changed = np.any(np.asarray(opened(drawn.content)) != np.asarray(opened(photo).convert("RGB")), axis=-1)
    rows, columns = np.nonzero(changed)
    box = found[0]["box"]
    assert abs(rows.max() - box["y_max"]) < 12
    assert abs(columns.min() - box["x_min"]) < 12


def test_a_face_is_itself_and_coffee_has_none(real: TestClient, photo_path: Photo) -> None:
    face, coffee = (base64.b64encode(photo_path(name).read_bytes()).decode() for name in ("astronaut", "coffee"))
    assert len(real.post("/detect-faces", json={"image": face}).json()["faces"]) == 1
    same = real.post("/verify-face", json={"image1": face, "image2": face}).json()
    assert same["verified"] is True
    assert same["similarity"] == pytest.approx(1, abs=1e-3)
    none = real.post("/verify-face", json={"image1": face, "image2": coffee})
    assert (none.status_code, none.json()["code"], none.json()["photo"]) == (422, "no_face", "image2")


@pytest.mark.parametrize("style", ["built in", "a picture"])
def test_a_photo_is_painted(real: TestClient, photo_path: Photo, style: str) -> None:
    files: dict[str, Any] = {"image": photo_path("chelsea").read_bytes()}
    data = {"max_side": "256", "format": "jpeg"}
    if style == "built in":
        data["style"] = real.get("/styles").json()["styles"][0]["name"]
    else:
        files["style_image"] = photo_path("china").read_bytes()
    response = real.post("/stylize", files=files, data=data)
    assert response.status_code == 200, response.text
    painted = opened(response.content)
    assert (painted.format, max(painted.size)) == ("JPEG", 256)
    assert painted.size == (int(response.headers["x-image-width"]), int(response.headers["x-image-height"]))


def test_every_style_has_a_thumbnail(real: TestClient) -> None:
    styles = real.get("/styles").json()["styles"]
    assert len({style["name"] for style in styles}) == 26
    assert opened(real.get(styles[-1]["thumbnail"]).content).format == "JPEG"


def test_wrong_names_are_answered_with_those_that_exist(real: TestClient, photo_path: Photo) -> None:
    files = {"image": photo_path("chelsea").read_bytes()}
    model = real.post("/detect", files=files, data={"model": "yolo99"})
    assert (model.status_code, model.json()["known"]) == (404, ["yolov3-tiny"])
    style = real.post("/stylize", files=files, data={"style": "no such style"})
    assert (style.status_code, style.json()["code"]) == (422, "style_unknown")
    assert len(style.json()["known"]) == 26


def test_every_model_is_listed_and_ready(real: TestClient) -> None:
    cards = real.get("/models").json()["models"]
    assert {card["name"] for card in cards} >= {
        "efficientnet-lite0",
        "yolov3-tiny",
        "yunet",
        "sface",
        "multistyle26",
        "magenta-arbitrary",
    }
    assert all(card["ready"] and card["licence"]["spdx"] and len(card["digest"]) == 64 for card in cards)
    assert real.get("/health/ready").status_code == 200


def test_a_photo_is_painted_by_a_job(real: TestClient, photo_path: Photo) -> None:
    files = {"image": photo_path("chelsea").read_bytes(), "style_image": photo_path("coffee").read_bytes()}
    options = {"model": "yolov3-tiny-features", "iterations": "8", "max_side": "96", "multi_scale": "false"}
    begun = real.post("/stylize/optimize", files=files, data=options).json()
    assert begun["size"] == {"width": 96, "height": 64}
    events = real.get(begun["links"]["events"]).text
    job = real.get(begun["links"]["self"]).json()
    assert (job["state"], job["model"]["name"]) == ("done", "yolov3-tiny-features")
    assert job["size"] == begun["size"]
    assert events.count("event: end") == 1
    picture = real.get(begun["links"]["result"])
    assert picture.headers["x-model"] == "yolov3-tiny-features"
    painted = np.asarray(opened(picture.content), np.float32)
    photo = np.asarray(opened(files["image"]).convert("RGB").resize((96, 64), Image.Resampling.BOX), np.float32)
    assert painted.shape == photo.shape
    assert 2 < np.abs(painted - photo).mean() < 100  # painted, and still the photo


@pytest.mark.parametrize(("option", "value"), [("content_layers", "nowhere"), ("max_side", "4096"), ("model", "sface")])
def test_what_a_job_could_not_do_is_refused_at_once(real: TestClient, photo_path: Photo, option: str, value: str) -> None:
    photo = photo_path("chelsea").read_bytes()
    response = real.post("/stylize/optimize", files={"image": photo, "style_image": photo}, data={option: value})
    assert response.json()["code"] == ("model_unknown" if option == "model" else "option_invalid")
