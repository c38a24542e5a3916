"""The multistyle26 recipe: against the published file on real photos, one blend for each picture, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from service.errors import ExportFailed
from service.export.multistyle import build, export

Photo = Callable[[str], NDArray[np.uint8]]
Models = Callable[[str], Path]


def session(model: Path | ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = model.SerializeToString() if isinstance(model, ModelProto) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def published(path: Path, pixels: NDArray[np.uint8], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the file as it was published paints, in levels 0..255, [h, w, 3]."""
    image = (pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    (stylized,) = session(path).run(None, {"image": image, "style_weights": weights})
    return stylized[0].transpose(1, 2, 0).astype(np.float64) * 255


def test_paints_as_the_published_file_with_a_blend_for_each_picture(models: Models, photo: Photo) -> None:
    weights_file = models("multistyle26") / "weights" / "multistyle26.onnx"
    graphs = export({weights_file.name: weights_file})
    pixels = np.stack([photo("astronaut")[:128, 100:260], photo("chelsea")[:128, 100:260]])
    weights = np.zeros((2, 26), np.float32)
    weights[0, 19] = 1
    weights[1, [3, 8]] = 0.25, 0.75
    painted, statistics = session(graphs["model"]).run(["painted", "statistics"], {"pixels": pixels, "style": weights})
    (tiles,) = session(graphs["tile"]).run(None, {"pixels": pixels, "style": weights, "statistics": statistics})
    for item in range(2):
        levels = published(weights_file, pixels[item], weights[item])
        assert np.abs(painted[item] - levels).max() < 0.52  # rounding, and float32 added up in another order
        assert np.abs(tiles[item] - levels).max() < 0.52


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((4, 3, 9, 9), np.float32), "contract.0.w")
    path = tmp_path / "other.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "other", [], [], [weight])), path)
    with pytest.raises(ExportFailed, match=r"other\.onnx has no weight 'contract\.0\.norm\.gamma'"):
        export({"photo": tmp_path / "sample.png", "weights": path})


def test_layers_are_taken_by_name() -> None:
    names = [f"contract.{i}" for i in range(3)] + ["res.0.0", "res.0.1"] + [f"expand.{i}" for i in range(3)]
    weights = {}
    for number, name in enumerate(names):
        weights[f"{name}.w"] = np.full((1, 1, 3, 3), number, np.float32)
        weights[f"{name}.norm.gamma"] = np.full((26, 1), number + 0.5, np.float32)
        weights[f"{name}.norm.beta"] = np.full((26, 1), -number, np.float32)
    layers = list(build(weights, blocks=1).layers())
    assert [layer.weight[0, 0, 0, 0] for layer in layers] == list(range(8))
    assert [layer.scale.weight[0, 0] for layer in layers if layer.scale] == [number + 0.5 for number in range(8)]
    assert [layer.shift.weight[0, 0] for layer in layers if layer.shift] == [-number for number in range(8)]
    assert [layer.stride for layer in layers] == [1, 2, 2, 1, 1, 1, 1, 1]
    assert [layer.upsample for layer in layers] == [False] * 5 + [True, True, False]
