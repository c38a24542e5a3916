"""float16: layers in half precision, doors and decoding in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from service.errors import ExportFailed
from service.export.graph import Graph
from service.export.half import to_half

RNG = np.random.default_rng(8)


def tiny_graph(weight: float = 1.0) -> ModelProto:
    graph = Graph("half")
    x = graph.conv(graph.pixels(8, 8, std=255.0), RNG.normal(size=(4, 3, 3, 3)) * weight, RNG.normal(size=4), pads=(1,) * 4)
    bounds = [graph.constant(np.float32(bound)) for bound in (0, 6)]
    x = graph.node("Clip", x, *bounds)
    x = graph.node("Resize", x, "", graph.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    x = graph.conv(x, RNG.normal(size=(2, 4, 1, 1)), np.zeros(2))
    graph.output(graph.node("Exp", x), "sizes", ["n", 2, 16, 16])
    graph.output(graph.node("Shape", x), "shape", [4], TensorProto.INT64)
    graph.output(x, "raw", ["n", 2, 16, 16])
    return graph.build()


def run(model: ModelProto | Path, pixels: NDArray[np.uint8]) -> list[NDArray[Any]]:
    given = model if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(given, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, {"pixels": pixels})]


def types(model: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*inferred.input, *inferred.value_info, *inferred.output)}


def test_layers_are_half_and_the_rest_is_not() -> None:
    model = tiny_graph()
    half = to_half(model)
    found = types(half)
    for node in half.graph.node:
        wanted = TensorProto.FLOAT16 if node.op_type in ("Conv", "Clip", "Resize") else None
        wanted = TensorProto.FLOAT if node.op_type in ("Mul", "Exp", "Identity") else wanted
        if wanted is not None:
            assert found[node.output[0]] in (wanted, TensorProto.INT64), node.output[0]
    assert [value.name for value in half.graph.output] == ["sizes", "shape", "raw"]
    assert found["pixels"] == TensorProto.UINT8
    assert found["raw"] == TensorProto.FLOAT
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in half.graph.initializer}
    (resize,) = (node for node in half.graph.node if node.op_type == "Resize")
    assert stored[resize.input[2]].dtype == np.float32
    pixels = RNG.integers(0, 256, (2, 8, 8, 3), np.uint8)
    for exact, rounded in zip(run(model, pixels), run(half, pixels), strict=True):
        assert rounded.dtype == exact.dtype
        np.testing.assert_allclose(rounded, exact, rtol=0.05, atol=0.02)


def test_a_layer_that_is_the_output_itself_is_cast_back() -> None:
    graph = Graph("half")
    x = graph.conv(graph.pixels(4, 4), np.ones((1, 3, 1, 1)), np.zeros(1))
    graph.output(x, "y", ["n", 1, 4, 4])
    model = graph.build()
    model.graph.node[-2].output[0] = "y"
    del model.graph.node[-1]
    assert types(to_half(model))["y"] == TensorProto.FLOAT
    pixels = np.full((1, 4, 4, 3), 200, np.uint8)
    np.testing.assert_array_equal(run(to_half(model), pixels)[0], 600)


def test_a_weight_beyond_float16_is_named() -> None:
    with pytest.raises(ExportFailed, match=r"the constant 'c1' reaches .*, more than float16 holds"):
        to_half(tiny_graph(1e6))


def test_a_graph_without_layers_is_refused() -> None:
    graph = Graph("none")
    graph.output(graph.node("Relu", graph.pixels(4, 4)), "y", ["n", 3, 4, 4])
    with pytest.raises(ExportFailed, match="no convolution or matrix product"):
        to_half(graph.build())


@pytest.mark.parametrize("name", ["efficientnet-lite0", "yolov3-tiny", "sface"])
def test_real_models_in_half_answer_as_in_float32(name: str, models: Callable[[str], Path]) -> None:
    folder = models(name)
    half, exact = folder / "model.float16.onnx", folder / "model.onnx"
    assert half.stat().st_size < 0.51 * exact.stat().st_size
    with np.load(folder / "parity.npz") as stored:
        pixels = stored["model/in/pixels"][:1]
    for wanted, got in zip(run(exact, pixels), run(half, pixels), strict=True):
        assert got.dtype == wanted.dtype
        assert np.sqrt(np.mean((got - wanted) ** 2)) < 0.01 * wanted.std()
