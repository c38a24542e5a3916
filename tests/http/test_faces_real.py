"""The real models and the real database behind the real application: one person becomes known, is known again, and is forgotten."""

import io
import json
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from starlette.testclient import TestClient

from service.engine import Engine
from service.http.app import create_app
from service.repository.progress import Silent
from service.settings import Settings

NAME = "Eileen/Collins ✦"
PATH = "/subjects/Eileen%2FCollins%20%E2%9C%A6"
Give = Callable[[str], NDArray[np.uint8]]


def opened(folder: Path) -> Engine:
    settings = Settings(device="cpu", precision="float", tune=False, models=("yunet", "sface"), data_dir=folder)
    return Engine(settings, progress=Silent())


@pytest.fixture
def client(tmp_path: Path, wait: Callable[..., None]) -> Iterator[TestClient]:
    with TestClient(create_app(opened(tmp_path), give_up=pytest.fail)) as client:
        wait(lambda: client.get("/health/ready").status_code == 200, 30)
        yield client


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def astronaut(photo: Give) -> NDArray[np.uint8]:
    return photo("astronaut")


def test_a_face_is_known_again_until_it_is_forgotten(
    client: TestClient, astronaut: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = client.post(f"{PATH}/faces", files={"image": png(astronaut)})
    assert told.status_code == 201, told.text
    (face,) = told.json()["faces"]
    assert face["quality"]["size"] > 50
    assert told.json()["timing_ms"]["decode"] > 0
    assert client.post(f"{PATH}/faces", files={"image": png(astronaut)}).status_code == 200

    mirrored = {"image": png(astronaut[:400, ::-1])}
    (found,) = client.post("/identify", files=mirrored).json()["faces"]
    (candidate,) = found["candidates"]
    assert (candidate["subject"], candidate["face_id"], found["unknown"]) == (NAME, face["face_id"], False)
    assert 0.5 < candidate["similarity"] < 0.999
    for options in ({"threshold": "0.999"}, {"gallery": "elsewhere"}):
        (unknown,) = client.post("/identify", files=mirrored, data=options).json()["faces"]
        assert (unknown["unknown"], unknown["candidates"]) == (True, [])

    drawn = client.post("/identify?format=png", files=mirrored)
    picture = np.asarray(Image.open(io.BytesIO(drawn.content)).convert("RGB"))
    assert picture.shape == (400, 512, 3)
    assert 500 < np.any(picture != astronaut[:400, ::-1], axis=-1).sum() < 50_000

    card = client.get(PATH).json()
    assert [one["face_id"] for one in card["faces"]] == [face["face_id"]]
    assert (card["faces"][0]["box"], card["faces"][0]["quality"]) == (face["box"], face["quality"])
    assert (card["model"]["name"], card["model"]["dimension"]) == ("sface", 128)
    assert client.get("/subjects").json()["subjects"][0]["subject"] == NAME
    assert client.delete(PATH).json()["faces"] == 1
    (gone,) = client.post("/identify", files=mirrored).json()["faces"]
    assert gone["unknown"] is True
    assert client.get("/subjects").json()["faces_total"] == 0

    lines = [json.dumps(vars(line), default=str) for line in caplog.records if not line.name.startswith("httpx")]
    assert len(lines) > 8
    assert not [line for line in lines if "collins" in line.lower()]


def test_one_bad_photo_of_several_keeps_all_out(client: TestClient, astronaut: NDArray[np.uint8], photo: Give) -> None:
    whole = Image.fromarray(astronaut)
    sent = {
        "good": png(whole),
        "small": png(whole.resize((160, 160))),
        "blurred": png(whole.filter(ImageFilter.GaussianBlur(6))),
        "nobody": png(photo("coffee")),
        "broken": png(whole)[:-1000],
    }
    answer = client.post("/subjects/Ada/faces", files=[("image", (name, data)) for name, data in sent.items()])
    assert answer.status_code == 422, answer.text
    refused = {one["photo"]: one for one in answer.json()["refused"]}
    assert {photo: one["code"] for photo, one in refused.items()} == {
        "image[2]": "face_too_small",
        "image[3]": "face_blurred",
        "image[4]": "no_face",
        "image[5]": "image_damaged",
    }
    assert refused["image[2]"]["measured"] < refused["image[2]"]["limit"]
    assert refused["image[3]"]["measured"] < refused["image[3]"]["limit"]
    assert client.get("/subjects").json()["faces_total"] == 0
    alone = client.post("/subjects/Ada/faces", files={"image": sent["small"]}).json()
    assert (alone["code"], alone["photo"], alone["limit"]) == ("face_too_small", "image", 32)
    two = {"image": png(np.hstack([astronaut, astronaut[:, ::-1]]))}
    assert client.post("/subjects/Ada/faces", files=two).json()["code"] == "several_faces"
    assert client.post("/subjects/Ada/faces?face=largest", files=two).status_code == 201


def test_who_stands_there_already_is_told(client: TestClient, astronaut: NDArray[np.uint8]) -> None:
    client.post("/subjects/Ada/faces", files={"image": png(astronaut)})
    answer = client.post("/subjects/Bea/faces", files={"image": png(astronaut[:, ::-1])}).json()
    assert [other["subject"] for other in answer["faces"][0]["also"]] == ["Ada"]
    assert "'Ada'" in answer["warnings"][0]


def test_what_is_known_outlives_the_service(tmp_path: Path, astronaut: NDArray[np.uint8], wait: Callable[..., None]) -> None:
    for status in (201, 200):
        with TestClient(create_app(opened(tmp_path), give_up=pytest.fail)) as client:
            wait(lambda client=client: client.get("/health/ready").status_code == 200, 30)
            assert client.post("/subjects/Ada/faces", files={"image": png(astronaut)}).status_code == status


def test_without_a_face_model_there_is_no_gallery(tmp_path: Path, engine: Engine, jpeg: bytes) -> None:
    engine = Engine(Settings(data_dir=tmp_path), models={"yolov3-tiny": engine.load("yolov3-tiny")})
    engine.open_gallery()
    client = TestClient(create_app(engine, give_up=pytest.fail))
    answers = [
        client.get("/subjects"),
        client.delete("/subjects/Ada"),
        client.post("/subjects/Ada/faces", files={"image": jpeg}),
        client.post("/identify", files={"image": jpeg}),
    ]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(404, "model_unknown")] * 4
    assert list(tmp_path.iterdir()) == []


def test_photos_are_decoded_one_after_the_other(
    engine: Engine, astronaut: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body full of photos that are small as files must not be large in memory."""
    decode, seen, most = engine.decode, [], []

    def watch(image: Any) -> Any:
        photo = decode(image)
        seen.append(weakref.ref(photo.pixels))
        most.append(sum(pixels() is not None for pixels in seen))
        return photo

    monkeypatch.setattr(engine.recognition, "_decode", watch)
    prepared, refused = engine.recognition.prepare_faces({f"image[{number}]": png(astronaut[number:]) for number in range(6)})
    assert (len(prepared), refused, len(seen)) == (6, [], 6)
    assert max(most) <= 2
