"""explain and sliding_window over HTTP: as JSON, as a picture, in each of the ways, and what is refused."""

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


@pytest.fixture
def cup(photo_path: Photo) -> dict[str, Any]:
    return {"content": photo_path("coffee").read_bytes(), "headers": {"content-type": "image/png"}}


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "timing_ms"}


def test_an_explained_answer_is_the_contracts(real: TestClient, cup: dict[str, Any]) -> None:
    plain = real.post("/classify?top_k=2", **cup)
    answer = real.post("/classify?top_k=2&explain=true", **cup).json()
    assert list(plain.json()) == ["model", "image", "timing_ms", "predictions"]
    assert list(plain.json()["predictions"][0]) == ["class_id", "label", "confidence"]
    assert "vary" not in plain.headers
    assert set(answer) == {"model", "image", "timing_ms", "predictions", "view", "localization"}
    assert np.shape([p["activation"]["grid"] for p in answer["predictions"]]) == (2, 7, 7)
    assert answer["view"] == {"x_min": 125, "y_min": 25, "x_max": 475, "y_max": 375}
    assert answer["localization"]["label"] == answer["predictions"][0]["label"] == "espresso"
    assert set(answer["localization"]) == {"class_id", "label", "confidence", "box"}
    assert answer["model"]["precision"] == "float32"


def test_windows_are_the_contracts(real: TestClient, cup: dict[str, Any]) -> None:
    answer = real.post("/classify", files={"image": cup["content"]}, data={"sliding_window": "true"}).json()
    assert set(answer) == {"model", "image", "timing_ms", "predictions", "windows"}
    windows = answer["windows"]
    assert set(windows) == {"size", "stride", "scale", "rows", "columns", "class_ids", "confidences", "labels", "view"}
    assert np.shape(windows["class_ids"]) == np.shape(windows["confidences"]) == (windows["rows"], windows["columns"])
    assert windows["labels"]["967"] == "espresso"
    assert "activation" not in answer["predictions"][0]


@pytest.mark.parametrize(("ask", "format_"), [("explain", "jpeg"), ("explain", "png"), ("sliding_window", "webp")])
def test_a_heat_map_comes_by_accept_or_by_format(ask: str, format_: str, real: TestClient, cup: dict[str, Any]) -> None:
    wanted = cup["headers"] | {"accept": f"image/{format_}"}
    by_accept = real.post(f"/classify?{ask}=true", content=cup["content"], headers=wanted)
    by_format = real.post(f"/classify?{ask}=true&format={format_}", **cup)
    assert by_accept.headers["content-type"] == by_format.headers["content-type"] == f"image/{format_}"
    assert by_accept.content == by_format.content
    assert by_accept.headers["x-model"] == "efficientnet-lite0"
    assert by_accept.headers["x-precision"] == "float32"
    assert by_accept.headers["vary"] == "Accept"
    with Image.open(io.BytesIO(by_accept.content)) as picture:
        assert picture.size == (600, 400)


def test_without_either_there_is_nothing_to_draw(real: TestClient, cup: dict[str, Any]) -> None:
    wanted = cup["headers"] | {"accept": "image/png"}
    refused = real.post("/classify", content=cup["content"], headers=wanted)
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
    problem = real.post("/classify?format=png", **cup).json()
    assert problem["code"] == "option_invalid"
    assert "only with explain=true or sliding_window=true" in problem["detail"]
    assert real.post("/classify?format=json", **cup).status_code == 200


def test_the_ways_of_asking_answer_the_same(real: TestClient, cup: dict[str, Any]) -> None:
    raw = real.post("/classify?explain=true", **cup).json()
    form = real.post("/classify", files={"image": cup["content"]}, data={"explain": "true"}).json()
    assert without_times(raw) == without_times(form)


def test_cards_say_who_can(real: TestClient) -> None:
    cards = {card["name"]: card for card in real.get("/models").json()["models"]}
    assert (cards["efficientnet-lite0"]["explains"], cards["efficientnet-lite0"]["slides"]) == (True, True)
    assert (cards["yolov3-tiny"]["explains"], cards["yolov3-tiny"]["slides"]) == (False, False)
