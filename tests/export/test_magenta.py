"""The magenta-arbitrary recipe: close to the published int8 files on real photos, any batch and size, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from service.errors import ExportFailed
from service.export.magenta import PREDICT, TRANSFORM, drop_quantization, export
from service.export.rewrite import fold_dequantize

Photo = Callable[[str], NDArray[np.uint8]]
Models = Callable[[str], Path]


def session(model: Path | ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = model.SerializeToString() if isinstance(model, ModelProto) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def weights(models: Models) -> dict[str, Path]:
    return {name: models("magenta-arbitrary") / "weights" / name for name in (PREDICT, TRANSFORM)}


@pytest.fixture(scope="module")
def graphs(weights: dict[str, Path]) -> dict[str, ModelProto]:
    return export(weights)


def test_stays_close_to_the_published_int8_files(weights: dict[str, Path], graphs: dict[str, ModelProto], photo: Photo) -> None:
    picture, content = cv2.resize(photo("coffee"), (256, 256)), cv2.resize(photo("astronaut"), (384, 384))
    (vector,) = session(weights[PREDICT]).run(None, {"style_image": (picture[None] / 255).astype(np.float32)})
    feeds = {"content_image": (content[None] / 255).astype(np.float32), "mobilenet_conv/Conv/BiasAdd": vector}
    (published,) = session(weights[TRANSFORM]).run(None, feeds)

    (style,) = session(graphs["predict"]).run(None, {"pixels": picture[None]})
    painted, _ = session(graphs["model"]).run(["painted", "statistics"], {"pixels": content[None], "style": style})

    assert np.abs(style - vector.reshape(1, 100)).mean() < 0.02  # of 0.7 on average
    error = np.abs(painted / 255 - published).mean()
    assert error < 0.025  # what int8 costs
    assert np.abs(painted[..., ::-1] / 255 - published).mean() > 4 * error
    assert np.abs(painted[:, :, 1:] / 255 - published[:, :, :-1]).mean() > 1.4 * error


def test_any_batch_and_size(graphs: dict[str, ModelProto], photo: Photo) -> None:
    predict, model = session(graphs["predict"]), session(graphs["model"])
    pictures = np.stack([photo("coffee")[:128, :320], photo("astronaut")[:128, :320]])
    (styles,) = predict.run(None, {"pixels": pictures})
    painted, statistics = model.run(["painted", "statistics"], {"pixels": pictures[:, :64, :96], "style": styles})
    assert styles.shape == (2, 100)
    assert painted.shape == (2, 64, 96, 3)
    for item in range(2):
        (alone,) = predict.run(None, {"pixels": pictures[item : item + 1]})
        feeds = {"pixels": pictures[item : item + 1, :64, :96], "style": alone}
        once, measured = model.run(["painted", "statistics"], feeds)
        np.testing.assert_allclose(alone[0], styles[item], atol=1e-5)
        assert np.abs(once[0].astype(int) - painted[item]).max() <= 1
        np.testing.assert_allclose(measured[0], statistics[item], rtol=1e-3, atol=1e-4)


def quantised(weight: NDArray[np.int8]) -> ModelProto:
    """y = DQ(Q(x)) @ DQ(weight), quantised again at the output, with steps far too coarse for x."""
    scale, zero = helper.make_tensor("scale", TensorProto.FLOAT, [], [10.0]), helper.make_tensor("zero", TensorProto.INT8, [], [0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "scale", "zero"], ["x32"]),
        helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["w32"]),
        helper.make_node("MatMul", ["x32", "w32"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "scale", "zero"], ["y8"]),
        helper.make_node("DequantizeLinear", ["y8", "scale", "zero"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], [scale, zero, numpy_helper.from_array(weight, "w8")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


def test_activations_pass_unrounded() -> None:
    model = quantised(np.array([[1, 2], [3, 4]], np.int8))
    before = model.SerializeToString()
    floating = drop_quantization(fold_dequantize(model))
    x = np.array([[0.25, -1.5]], np.float32)
    (y,) = session(floating).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ np.array([[10, 20], [30, 40]], np.float32), rtol=1e-6)
    assert {node.op_type for node in floating.graph.node} == {"MatMul", "Identity"}
    assert model.SerializeToString() == before


def test_a_weight_left_in_int8_is_refused() -> None:
    with pytest.raises(ExportFailed, match="'w8' is still quantised"):
        drop_quantization(quantised(np.eye(2, dtype=np.int8)))


@pytest.mark.parametrize("given", [[PREDICT], [PREDICT, TRANSFORM]], ids=["a file is missing", "a layer is missing"])
def test_what_is_missing_is_named(given: list[str], tmp_path: Path) -> None:
    for name in given:
        onnx.save(quantised(np.eye(2, dtype=np.int8)), tmp_path / name)
    with pytest.raises(ExportFailed, match=r"arbitrary_transform\.onnx|transformer/contract/conv1"):
        export({name: tmp_path / name for name in given})
