"""YuNet's export: the same answers as OpenCV's own detector on the original file, at any size and batch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from service.errors import ExportFailed
from service.export.yunet import export
from service.imaging.boxes import nms

Pixels = NDArray[np.uint8]
Array = NDArray[Any]
Run = Callable[[Pixels], tuple[Array, Array, Array]]
CONFIDENCE, IOU = 0.6, 0.3
PIXELS, SCORE = 0.01, 1e-4
"""Tolerances. A swapped channel moves boxes by several pixels, half a pixel by almost that."""


@pytest.fixture(scope="module")
def golden() -> Mapping[str, Array]:
    with np.load(Path(__file__).parents[1] / "golden" / "faces.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def run(models: Callable[[str], Path]) -> Run:
    session = ort.InferenceSession(models("yunet") / "model.onnx")
    return lambda pixels: session.run(["boxes", "scores", "landmarks"], {"pixels": pixels})


@pytest.fixture(scope="module")
def weights(models: Callable[[str], Path]) -> Path:
    return models("yunet") / "weights" / "face_detection_yunet_2023mar_int8bq.onnx"


@pytest.fixture(scope="module")
def collage(photo: Callable[[str], Pixels]) -> Pixels:
    """Five heads on a landscape, 427 x 640: upright, mirrored, small, tilted, and cut by the edge."""
    scene, person = photo("china").copy(), photo("astronaut")[:270, 90:360]
    turned = cv2.warpAffine(person, cv2.getRotationMatrix2D((135, 120), 25, 1), (270, 270), borderMode=cv2.BORDER_REPLICATE)
    pieces = (
        (person, 180, 10, 20),
        (person[:, ::-1], 120, 250, 60),
        (person, 60, 20, 330),
        (turned, 200, 420, 200),
        (person, 140, 560, 10),
    )
    for piece, side, left, top in pieces:
        small = cv2.resize(np.ascontiguousarray(piece), (side, side), interpolation=cv2.INTER_AREA)
        target = scene[top : top + side, left : left + side]
        target[:] = small[: target.shape[0], : target.shape[1]]
    return scene


def faces_of(run: Run, pixels: Pixels) -> Array:
    """Rows as FaceDetectorYN gives them, [m, 15], the most confident first."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % 32), (0, -width % 32), (0, 0)))
    boxes, scores, landmarks = (output[0] for output in run(padded[None]))
    sure = np.flatnonzero(scores >= CONFIDENCE)
    sure = sure[nms(boxes[sure], scores[sure], IOU)]
    corners = boxes[sure]
    return np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2], landmarks[sure], scores[sure, None]])


def differences(found: Array, wanted: Array) -> tuple[float, float]:
    """Largest difference in pixels and in score; the same faces in the same order are needed."""
    assert found.shape == wanted.shape
    gaps = np.abs(found - wanted)
    return float(gaps[:, :14].max()), float(gaps[:, 14].max())


def opencv(weights: Path, pixels: Pixels) -> Array:
    detector = cv2.FaceDetectorYN.create(str(weights), "", pixels.shape[1::-1], CONFIDENCE, IOU)
    faces: Array = detector.detect(np.ascontiguousarray(pixels[..., ::-1]))[1]
    return faces[np.argsort(-faces[:, 14], kind="stable")]


def test_faces_are_those_of_opencvs_detector(run: Run, weights: Path, collage: Pixels) -> None:
    wanted = opencv(weights, collage)
    assert len(wanted) == 5
    pixels, score = differences(faces_of(run, collage), wanted)
    assert pixels < PIXELS
    assert score < SCORE


@pytest.mark.parametrize("name", ["photo", "mirror"])
def test_faces_are_those_stored_from_opencv_4(
    run: Run, photo: Callable[[str], Pixels], golden: Mapping[str, Array], name: str
) -> None:
    astronaut = photo("astronaut")
    pixels = astronaut if name == "photo" else astronaut[:, ::-1]
    moved, score = differences(faces_of(run, pixels), golden[f"{name}/detections"])
    assert moved < PIXELS
    assert score < SCORE


@pytest.mark.parametrize("fault", ["swapped channels", "half a pixel"])
def test_the_tolerance_is_tight_enough_to_see_a_fault(
    run: Run, photo: Callable[[str], Pixels], golden: Mapping[str, Array], fault: str
) -> None:
    astronaut = photo("astronaut")
    shifted = cv2.warpAffine(astronaut, np.float32([[1, 0, 0.5], [0, 1, 0]]), (512, 512))
    pixels, _ = differences(
        faces_of(run, astronaut[..., ::-1] if fault == "swapped channels" else shifted), golden["photo/detections"]
    )
    assert pixels > 20 * PIXELS


@pytest.mark.parametrize("shape", [(32, 32), (64, 320), (416, 96)])
def test_any_multiple_of_32_has_a_place_for_each_cell(run: Run, shape: tuple[int, int]) -> None:
    boxes, scores, landmarks = run(np.zeros((1, *shape, 3), np.uint8))
    cells = sum(shape[0] // stride * (shape[1] // stride) for stride in (8, 16, 32))
    assert (boxes.shape, scores.shape, landmarks.shape) == ((1, cells, 4), (1, cells), (1, cells, 10))
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_a_batch_answers_each_item_as_it_would_alone(run: Run, collage: Pixels) -> None:
    batch = np.stack([collage[:320, :320], collage[100:420, 320:], collage[:320, :320, ::-1]])
    for together, item in zip(zip(*run(batch), strict=True), batch, strict=True):
        for part, alone in zip(together, run(item[None]), strict=True):
            np.testing.assert_allclose(part, alone[0], rtol=1e-4, atol=1e-3)


def test_the_graph_takes_pixels_and_holds_nothing_quantised(weights: Path) -> None:
    graph = export({weights.name: weights})["model"].graph
    entrance = graph.input[0].type.tensor_type
    assert [dim.dim_param or dim.dim_value for dim in entrance.shape.dim] == ["n", "height", "width", 3]
    assert entrance.elem_type == onnx.TensorProto.UINT8
    assert "DequantizeLinear" not in {node.op_type for node in graph.node}
    assert [output.name for output in graph.output] == ["boxes", "scores", "landmarks"]


def test_another_network_is_refused(models: Callable[[str], Path]) -> None:
    with pytest.raises(ExportFailed, match="bbox_16"):
        export({"sface.onnx": models("sface") / "model.onnx"})
