"""Class maps of the ends that classifiers have, at random weights on the real runtime: means are logits, places as in numpy."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper, save

from service.errors import ExportFailed
from service.export.adopt import adopt
from service.export.class_maps import class_maps
from service.export.contract import Contract
from service.runtime.session import run_once

Array = NDArray[Any]
SIDE, CHANNELS, CLASSES = 28, 6, 5
RANDOM = np.random.default_rng(3)
WEIGHT = RANDOM.normal(0, 1, (CLASSES, CHANNELS)).astype(np.float32)
BIAS = RANDOM.normal(0, 1, CLASSES).astype(np.float32)
BODY = RANDOM.normal(0, 0.02, (CHANNELS, 3, 4, 4)).astype(np.float32)
PIXELS = RANDOM.integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)
LARGER = RANDOM.integers(0, 256, (1, SIDE + 8, SIDE + 16, 3)).astype(np.uint8)


def node(operator: str, *names: str, **attributes: Any) -> NodeProto:
    """The last of `names` is the output."""
    return helper.make_node(operator, names[:-1], names[-1:], **attributes)


def features(pixels: Array) -> Array:
    """What the body gives: 4 x 4 pixels at a time, not below 0. [n, CHANNELS, h / 4, w / 4]"""
    n, height, width, _ = pixels.shape
    cells = pixels.astype(np.float64).reshape(n, height // 4, 4, width // 4, 4, 3)
    return np.maximum(np.einsum("nrychx,kxyh->nkrc", cells, BODY), 0)


def network(nodes: Sequence[NodeProto], weights: Mapping[str, Array], path: Path, opset: int = 13) -> Path:
    """The body, then `nodes` from "x" to "out", as somebody's file."""
    body = [node("Conv", "image", "body", "y", strides=[4, 4], kernel_shape=[4, 4]), node("Relu", "y", "x")]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    arrays = {"body": BODY, "w": WEIGHT, "wt": WEIGHT.T, "w1": WEIGHT[:, :, None, None], "b": BIAS, **weights}
    initializers = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph([*body, *nodes], "network", [image], [out], initializers)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


DENSE = [node("Gemm", "flat", "w", "b", "out", transB=1)]
ROW = np.array([1, CHANNELS], np.int64)
POOL = node("GlobalAveragePool", "x", "pooled")
FLAT = node("Flatten", "pooled", "flat")
SOFTMAX = [node("Gemm", "flat", "w", "b", "z", transB=1), node("Softmax", "z", "out", axis=1)]
ENDS: dict[str, tuple[list[NodeProto], dict[str, Array]]] = {
    "ResNet": ([POOL, FLAT, *DENSE], {}),
    "EfficientNet": ([POOL, FLAT, node("Dropout", "flat", "kept"), node("Gemm", "kept", "wt", "b", "out")], {}),
    "GoogLeNet": (
        [node("AveragePool", "x", "pooled", kernel_shape=[7, 7]), node("Reshape", "pooled", "row", "flat"), *DENSE],
        {"row": ROW},
    ),
    "MobileNetV2": (
        [POOL, node("Conv", "pooled", "w1", "b", "z", kernel_shape=[1, 1]), node("Reshape", "z", "row", "out")],
        {"row": np.array([1, CLASSES], np.int64)},
    ),
    "a mean and a product": (
        [
            node("ReduceMean", "x", "flat", axes=[2, 3], keepdims=0),
            node("MatMul", "flat", "wt", "z"),
            node("Add", "z", "b", "out"),
        ],
        {},
    ),
    "a squeezed average": ([POOL, node("Squeeze", "pooled", "axes", "flat"), *DENSE], {"axes": np.array([2, 3], np.int64)}),
}


def adopted(path: Path, **contract: Any) -> ModelProto:
    return adopt(path, Contract.model_validate({"decoder": "logits", "size": (SIDE, SIDE), "classes": CLASSES} | contract))


def ran(model: ModelProto, path: Path, pixels: Array) -> dict[str, Array]:
    checker.check_model(model, full_check=True)
    save(model, path)
    return run_once(path, {"pixels": pixels})


def spread(pixels: Array, weight: Array = WEIGHT, bias: Array = BIAS) -> Array:
    return np.einsum("kc,nchw->nkhw", weight, features(pixels)) + bias[:, None, None]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("opset", [11, 13])
def test_maps_are_the_last_layer_at_every_place(end: str, opset: int, tmp_path: Path) -> None:
    if opset < 13 and end == "a squeezed average":
        nodes, weights = [POOL, node("Squeeze", "pooled", "flat", axes=[2, 3]), *DENSE], {}
    else:
        nodes, weights = ENDS[end]
    model = adopted(network(nodes, weights, tmp_path / "given.onnx", opset))
    own = ran(model, tmp_path / "model.onnx", PIXELS)["logits"]
    maps = class_maps(model)
    for pixels in (PIXELS, LARGER):
        found = ran(maps, tmp_path / "maps.onnx", pixels)
        np.testing.assert_allclose(found["maps"], spread(pixels), atol=1e-3)
        np.testing.assert_allclose(found["maps"].mean(axis=(2, 3)), found["logits"], atol=1e-4)
    np.testing.assert_allclose(run_once(tmp_path / "maps.onnx", {"pixels": PIXELS})["logits"], own, atol=1e-4)


def test_classes_may_come_before_the_average(tmp_path: Path) -> None:
    """SqueezeNet: a 1 x 1 convolution to classes, Relu, the average."""
    nodes = [node("Conv", "x", "w1", "b", "y2", kernel_shape=[1, 1]), node("Relu", "y2", "z"), node("GlobalAveragePool", "z", "p")]
    maps = class_maps(adopted(network([*nodes, node("Flatten", "p", "out")], {}, tmp_path / "given.onnx")))
    found = ran(maps, tmp_path / "maps.onnx", LARGER)
    np.testing.assert_allclose(found["maps"], np.maximum(spread(LARGER), 0), atol=1e-3)
    np.testing.assert_allclose(found["maps"].mean(axis=(2, 3)), found["logits"], atol=1e-4)


@pytest.mark.parametrize("decoder", ["probabilities", "logits-or-probabilities"])
def test_of_probabilities_the_maps_are_what_the_softmax_got(decoder: str, tmp_path: Path) -> None:
    model = adopted(network([POOL, FLAT, *SOFTMAX], {}, tmp_path / "given.onnx"), decoder=decoder)
    own = ran(model, tmp_path / "model.onnx", PIXELS)["logits"]
    found = ran(class_maps(model), tmp_path / "maps.onnx", PIXELS)
    np.testing.assert_allclose(found["maps"], spread(PIXELS), atol=1e-3)
    first, second = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (own, found["logits"]))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_background_class_is_left_out(tmp_path: Path) -> None:
    model = adopted(network([POOL, FLAT, *DENSE], {}, tmp_path / "given.onnx"), classes=CLASSES - 1, first_class=1)
    found = ran(class_maps(model), tmp_path / "maps.onnx", PIXELS)
    np.testing.assert_allclose(found["maps"], spread(PIXELS)[:, 1:], atol=1e-3)
    assert found["logits"].shape == (2, CLASSES - 1)


def quantised() -> tuple[list[NodeProto], dict[str, Array]]:
    unpack = node("DequantizeLinear", "w8", "scale", "unpacked")
    weights = {"w8": np.ones((CLASSES, CHANNELS), np.int8), "scale": np.float32(0.1)}
    return [POOL, FLAT, unpack, node("Gemm", "flat", "unpacked", "b", "out", transB=1)], weights


REFUSED: dict[str, tuple[Callable[[], tuple[list[NodeProto], dict[str, Array]]], str]] = {
    "VGG": (
        lambda: (
            [node("Flatten", "x", "flat"), node("MatMul", "flat", "large", "out")],
            {"large": np.ones((CHANNELS * 49, CLASSES), np.float32)},
        ),
        "is Relu",
    ),
    "two layers": (
        lambda: (
            [POOL, FLAT, node("Gemm", "flat", "square", "h"), node("Relu", "h", "r"), node("Gemm", "r", "w", "b", "out", transB=1)],
            {"square": np.ones((CHANNELS, CHANNELS), np.float32)},
        ),
        "is Relu",
    ),
    "two layers without a bend": (
        lambda: (
            [POOL, FLAT, node("Gemm", "flat", "square", "h"), node("Gemm", "h", "w", "b", "out", transB=1)],
            {"square": np.ones((CHANNELS, CHANNELS), np.float32)},
        ),
        "several layers",
    ),
    "an average of parts": (
        lambda: (
            [
                node("AveragePool", "x", "p", kernel_shape=[3, 3]),
                node("ReduceMax", "p", "flat", axes=[2, 3], keepdims=0),
                *DENSE,
            ],
            {},
        ),
        "is ReduceMax",
    ),
    "not all of the map": (
        lambda: (
            [node("AveragePool", "x", "p", kernel_shape=[6, 6], strides=[6, 6]), node("Flatten", "p", "flat"), *DENSE],
            {},
        ),
        "not over all positions",
    ),
    "quantised": (quantised, "quantised"),
    "a softmax taken for logits": (lambda: ([POOL, FLAT, *SOFTMAX], {}), "probabilities where logits were expected"),
}


@pytest.mark.parametrize("end", REFUSED)
def test_other_ends_are_refused_with_the_reason(end: str, tmp_path: Path) -> None:
    made, reason = REFUSED[end]
    with pytest.raises(ExportFailed, match=reason):
        class_maps(adopted(network(*made(), tmp_path / "given.onnx")))


def test_the_graph_that_came_in_stays_as_it_was(tmp_path: Path) -> None:
    model = adopted(network(*ENDS["ResNet"], tmp_path / "given.onnx"))
    before = model.SerializeToString()
    class_maps(model)
    assert model.SerializeToString() == before
