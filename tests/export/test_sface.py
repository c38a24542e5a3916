"""SFace's export: the same embedding as OpenCV 4's recognizer gives for the same crop."""

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
from service.export.sface import export

Pixels = NDArray[np.uint8]
Array = NDArray[Any]
Run = Callable[[Pixels], Array]
TOLERANCE = 1e-4
"""Of numbers between -4 and 4. Found: 3e-6."""


@pytest.fixture(scope="module")
def golden() -> Mapping[str, Array]:
    with np.load(Path(__file__).parents[1] / "golden" / "faces.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def run(models: Callable[[str], Path]) -> Run:
    session = ort.InferenceSession(models("sface") / "model.onnx")
    return lambda pixels: np.asarray(session.run(["embedding"], {"pixels": pixels})[0])


def test_embeddings_are_those_stored_from_opencv_4(run: Run, golden: Mapping[str, Array]) -> None:
    crops, wanted = (np.stack([golden[f"{name}/{kind}"] for name in ("photo", "mirror")]) for kind in ("crop", "feature"))
    np.testing.assert_allclose(run(crops), wanted, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(run(crops[1:]), wanted[1:], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("fault", ["swapped channels", "half a pixel"])
def test_the_tolerance_is_tight_enough_to_see_a_fault(run: Run, golden: Mapping[str, Array], fault: str) -> None:
    crop = golden["photo/crop"]
    shifted = cv2.warpAffine(crop, np.float32([[1, 0, 0.5], [0, 1, 0]]), (112, 112), borderMode=cv2.BORDER_REPLICATE)
    spoiled = np.ascontiguousarray(crop[..., ::-1]) if fault == "swapped channels" else shifted
    assert np.abs(run(spoiled[None])[0] - golden["photo/feature"]).max() > 1000 * TOLERANCE


def test_the_graph_takes_pixels_and_holds_nothing_slow(models: Callable[[str], Path]) -> None:
    weights = models("sface") / "weights" / "face_recognition_sface_2021dec_int8bq.onnx"
    graph = export({weights.name: weights})["model"].graph
    (entrance,) = graph.input
    assert [dim.dim_param or dim.dim_value for dim in entrance.type.tensor_type.shape.dim] == ["n", 112, 112, 3]
    assert entrance.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert {"DequantizeLinear", "PRelu"}.isdisjoint(node.op_type for node in graph.node)


def test_another_network_is_refused(models: Callable[[str], Path]) -> None:
    weights = models("yunet") / "weights" / "face_detection_yunet_2023mar_int8bq.onnx"
    with pytest.raises(ExportFailed, match="112"):
        export({weights.name: weights})
