"""The real models in int8 say about the fixture photos what they say in float32."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from service.engine import Engine
from service.imaging.boxes import iou
from service.repository.progress import Silent
from service.settings import Settings
from service.tasks.detect import Detection

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "china", "flower")
Photo = Callable[[str], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def whole() -> Iterator[Engine]:
    """The engine in int8."""
    engine = Engine(Settings(device="cpu", precision="int8", tune=False), progress=Silent())
    yield engine
    engine.close()


@pytest.mark.parametrize("name", PHOTOS)
def test_the_first_label_is_the_same(name: str, engine: Engine, whole: Engine, photo: Photo) -> None:
    exact, rounded = (each.classify(photo(name), top_k=1) for each in (engine, whole))
    assert (exact.model.precision, rounded.model.precision) == ("float32", "int8")
    assert rounded.predictions[0].label == exact.predictions[0].label
    assert rounded.predictions[0].confidence == pytest.approx(exact.predictions[0].confidence, abs=0.15)


def same(a: Detection, b: Detection) -> bool:
    boxes = np.array([[d.box.x_min, d.box.y_min, d.box.x_max, d.box.y_max] for d in (a, b)], np.float32)
    return a.label == b.label and iou(boxes[:1], boxes[1:])[0, 0] > 0.8


@pytest.mark.parametrize("name", PHOTOS)
def test_the_same_objects_are_found(name: str, engine: Engine, whole: Engine, photo: Photo) -> None:
    """Objects near the confidence of 0.25 may come and go; those well above it may not."""
    exact, rounded = (each.detect(photo(name)).predictions for each in (engine, whole))
    for ours, theirs in ((exact, rounded), (rounded, exact)):
        for found in (d for d in ours if d.confidence > 0.4):
            assert any(same(found, other) for other in theirs), (name, found)


@pytest.mark.parametrize("turn", [lambda p: p, lambda p: p[:, ::-1], lambda p: p // 2])
def test_the_cup_stays_a_cup(
    turn: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], engine: Engine, whole: Engine, photo: Photo
) -> None:
    seen = np.ascontiguousarray(turn(photo("coffee")))
    exact, rounded = (each.detect(seen).predictions for each in (engine, whole))
    cup = next(d for d in exact if d.label == "cup" and d.confidence > 0.3)
    assert any(same(cup, other) for other in rounded)


def test_faces_are_judged_alike(engine: Engine, whole: Engine, photo: Photo) -> None:
    portrait = photo("astronaut")
    for other, verified in ((portrait[:, ::-1], True), (np.clip(portrait * 0.6, 0, 255).astype(np.uint8), True)):
        exact, rounded = (each.verify_face(portrait, np.ascontiguousarray(other)) for each in (engine, whole))
        assert rounded.model.precision == "int8"
        assert exact.verified is rounded.verified is verified
        assert rounded.similarity == pytest.approx(exact.similarity, abs=0.06)


@pytest.mark.parametrize(
    ("name", "eight_bit", "floating"), [("efficientnet-lite0", 49, 0), ("yolov3-tiny", 10, 3), ("sface", 75, 6)]
)
def test_layers_run_in_8_bits_but_for_those_that_are_kept(
    name: str, eight_bit: int, floating: int, models: Callable[[str], Path], tmp_path: Path
) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    ort.InferenceSession(models(name) / "model.int8.onnx", options, providers=["CPUExecutionProvider"])
    fused = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert fused.count("QLinearConv") == eight_bit
    assert fused.count("Conv") + fused.count("FusedConv") <= floating
    assert {"Gemm", "QLinearMatMul"}.isdisjoint(fused)
