"""int8: a tiny graph stays within its steps of float32, and what is asked wrongly is named."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from service.errors import ExportFailed
from service.export.graph import Graph
from service.export.quantize import measured_tensors, prepare, quantize, quantize_weight, steps_of
from service.export.rewrite import constants

Array = NDArray[Any]


def tiny_graph(mean: float = 127.0, std: float = 128.0) -> ModelProto:
    """Two convolutions with all that stands between such in the real models, and a classifier: "pixels" [n, 12, 12, 3] -> "y"."""
    rng = np.random.default_rng(0)
    graph = Graph("tiny")

    def conv(x: str, out: int, into: int, side: int, groups: int = 1) -> str:
        weight = rng.normal(0, 1 / np.sqrt(into * side * side), (out, into, side, side))
        return graph.conv(x, weight, rng.normal(0, 0.3, out), pads=(side // 2,) * 4, groups=groups)

    bounds = [graph.constant(np.float32(bound)) for bound in (0, 1.5)]
    x = graph.node("Clip", conv(graph.pixels(12, 12, mean=mean, std=std), 8, 3, 3), *bounds)
    x = graph.node("LeakyRelu", conv(x, 8, 1, 3, groups=8), alpha=0.1)
    pooled = graph.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = graph.node("Add", conv(pooled, 8, 8, 1), pooled)
    slope = graph.constant(rng.uniform(-0.5, 0.8, (8, 1, 1)).astype(np.float32))
    rest = graph.constant(rng.uniform(0.2, 1.5, (8, 1, 1)).astype(np.float32))
    y = graph.node("Add", graph.node("Mul", y, slope), graph.node("Mul", graph.node("Relu", y), rest))
    up = graph.node("Resize", y, "", graph.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    y = graph.node("Flatten", graph.node("GlobalAveragePool", graph.node("Concat", conv(up, 4, 8, 1), x, axis=1)))
    weight = graph.constant(rng.normal(0, 0.5, (5, 12)).astype(np.float32))
    y = graph.node("Gemm", y, weight, graph.constant(np.linspace(-1, 1, 5, dtype=np.float32)), transB=1)
    graph.output(y, "y", ["n", 5])
    return graph.build()


def photos(count: int = 3, side: int = 12) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8)


def run(model: ModelProto, feeds: Array, outputs: list[str] | None = None) -> list[Array]:
    if outputs:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        del model.graph.output[:]
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(outputs, {"pixels": feeds})]


def ranges_of(model: ModelProto, feeds: Array, keep_float: tuple[str, ...] = ()) -> dict[str, tuple[float, float]]:
    prepared = prepare(model)
    names = measured_tensors(prepared, keep_float)
    return {name: (float(v.min()), float(v.max())) for name, v in zip(names, run(prepared, feeds, names), strict=True)}


def operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def after_onnxruntime(model: ModelProto, path: Path) -> Counter[str]:
    """The operators that are left once onnxruntime has fused what it can, without the layouts of its level "all"."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return operators(onnx.load(path))


@pytest.mark.parametrize("mean", [127.0, 127.5, 0.0])
def test_int8_stays_close_to_float32(mean: float) -> None:
    model, feeds = tiny_graph(mean), photos()
    ranges = ranges_of(model, feeds)
    (exact,), (rounded,) = run(model, feeds), run(quantize(model, ranges), feeds)
    widest = max(high - low for low, high in ranges.values())
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=2 * widest / 255)
    assert np.abs(rounded - exact).max() > 0


def test_a_single_layer_is_within_half_a_step_of_its_output_and_its_weights() -> None:
    graph = Graph("one")
    weight = np.random.default_rng(2).normal(0, 1, (4, 3, 1, 1))
    x = graph.conv(graph.pixels(4, 4, std=255.0), weight, np.array([0.5, 0, -0.5, 1]))
    graph.output(graph.node("MaxPool", x, kernel_shape=[1, 1]), "y", ["n", 4, 4, 4])
    model, feeds = graph.build(), photos(2, 4)
    ranges = ranges_of(model, feeds)
    (exact,), (rounded,) = run(model, feeds), run(quantize(model, ranges), feeds)
    low, high = ranges["conv3"]
    weights_off = 3 * np.abs(weight).max() / 127 / 2
    assert np.abs(rounded - exact).max() <= (high - low) / 255 / 2 + weights_off + 1e-3


def test_every_operator_runs_in_8_bits(tmp_path: Path) -> None:
    model = tiny_graph()
    left = after_onnxruntime(quantize(model, ranges_of(model, photos())), tmp_path / "fused.onnx")
    assert left["QLinearConv"] == 6  # four convolutions, and two factors a channel
    assert left["QGemm"] == left["QLinearGlobalAveragePool"] == left["QLinearConcat"] == 1
    assert (left["QLinearAdd"], left["QLinearLeakyRelu"]) == (2, 2)
    assert not set(left) & {"Conv", "Gemm", "Mul", "Relu", "Clip", "LeakyRelu", "QuantizeLinear", "DequantizeLinear", "Cast", "Add"}


def test_pixels_enter_as_they_are_and_clips_are_ranges() -> None:
    model = tiny_graph()
    whole = quantize(model, ranges_of(model, photos()))
    known = constants(whole)
    assert operators(whole)["Cast"] == operators(whole)["Clip"] == operators(whole)["Sub"] == 0
    first, second = whole.graph.node[:2]
    assert (first.op_type, list(first.input)) == ("Transpose", ["pixels"])
    assert second.op_type == "DequantizeLinear"
    assert known[second.input[1]] == np.float32(1 / 128)
    assert known[second.input[2]] == 127
    assert known[second.input[2]].dtype == np.uint8
    assert [(value.name, value.type.tensor_type.elem_type) for value in whole.graph.input] == [("pixels", TensorProto.UINT8)]
    assert [(value.name, value.type.tensor_type.elem_type) for value in whole.graph.output] == [("y", TensorProto.FLOAT)]


def test_each_output_channel_has_its_own_scale() -> None:
    weight = np.random.default_rng(3).normal(0, 1, (3, 5, 3, 3)) * np.array([1, 1e-4, 0]).reshape(-1, 1, 1, 1)
    values, scale = quantize_weight(weight)
    assert values.dtype == np.int8
    assert np.abs(values).max(axis=(1, 2, 3)).tolist() == [127, 127, 0]
    assert np.abs(values * scale.reshape(-1, 1, 1, 1) - weight).max(axis=(1, 2, 3)) == pytest.approx(
        0, abs=float(scale.max()) / 2 + 1e-9
    )
    assert np.abs(values[1] * scale[1] - weight[1]).max() <= scale[1] * 0.501
    model = tiny_graph()
    stored = constants(quantize(model, ranges_of(model, photos())))
    assert stored["conv4/weight"].dtype == np.int8
    assert stored["conv4/weight/scale"].shape == (8,)
    assert stored["conv4/bias"].dtype == np.int32
    np.testing.assert_allclose(stored["conv4/bias/scale"], stored["conv4/weight/scale"] / 128, rtol=1e-6)


def test_a_bias_far_larger_than_its_weights_fits_in_32_bits() -> None:
    graph = Graph("one")
    x = graph.conv(graph.pixels(4, 4, std=255.0), np.full((1, 3, 1, 1), 1e-12), np.array([4.0]))
    graph.output(graph.node("MaxPool", x, kernel_shape=[1, 1]), "y", ["n", 1, 4, 4])
    model = graph.build()
    (found,) = run(quantize(model, {"conv3": (0.0, 5.0)}), photos(1, 4))
    np.testing.assert_allclose(found, 4.0, atol=5 / 255)


@pytest.mark.parametrize(
    ("low", "high", "zero"), [(0.0, 6.0, 0), (-6.0, 0.0, 255), (-1.0, 2.0, 85), (0.5, 2.0, 0), (-3.0, -1.0, 255)]
)
def test_zero_is_one_of_the_steps(low: float, high: float, zero: int) -> None:
    steps = steps_of("x", low, high)
    assert steps.zero == zero
    assert (255 - int(steps.zero)) * steps.scale >= high - steps.scale
    assert int(steps.zero) * steps.scale >= -low - steps.scale


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_range_without_meaning_is_refused_by_name(low: float, high: float) -> None:
    model = tiny_graph()
    ranges = ranges_of(model, photos()) | {"clip5": (low, high)}
    with pytest.raises(ExportFailed, match=r"the range of 'clip5' is .*; it must be finite"):
        quantize(model, ranges)


def test_a_missing_range_and_one_too_many_are_named() -> None:
    model = tiny_graph()
    ranges = ranges_of(model, photos())
    with pytest.raises(ExportFailed, match="the ranges lack the tensor 'clip5'"):
        quantize(model, {name: ends for name, ends in ranges.items() if name != "clip5"})
    with pytest.raises(ExportFailed, match="the ranges name 'clip99'"):
        quantize(model, ranges | {"clip99": (0, 1)})


def test_preparing_changes_the_order_and_no_number() -> None:
    model, feeds = tiny_graph(), photos()
    graph = Graph("pool")
    x = graph.node("LeakyRelu", graph.pixels(12, 12, mean=100.0), alpha=0.25)
    graph.output(graph.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), "y", ["n", 3, 6, 6])
    pooled = graph.build()
    assert [node.op_type for node in prepare(pooled).graph.node][-3:] == ["MaxPool", "LeakyRelu", "Identity"]
    np.testing.assert_array_equal(run(prepare(pooled), feeds)[0], run(pooled, feeds)[0])
    np.testing.assert_array_equal(run(prepare(model), feeds)[0], run(model, feeds)[0])
    before = model.SerializeToString()
    quantize(model, ranges_of(model, feeds))
    assert model.SerializeToString() == before


def test_a_bent_tensor_that_others_read_too_is_not_pooled_first() -> None:
    model = tiny_graph()  # its LeakyRelu feeds a Concat as well
    order = [node.op_type for node in prepare(model).graph.node]
    assert order.index("LeakyRelu") < order.index("MaxPool")


def test_what_is_kept_in_float32_has_no_steps_and_the_next_layer_quantises_it() -> None:
    model, feeds = tiny_graph(), photos()
    ranges = ranges_of(model, feeds, ("conv4",))
    assert "conv4" not in ranges
    kept = quantize(model, ranges, ("conv4",))
    (node,) = (node for node in kept.graph.node if node.output[0] == "conv4")
    assert constants(kept)[node.input[1]].dtype == np.float32
    assert operators(kept)["Cast"] == 1  # a first layer in float32 gets its pixels in float32
    (clip,) = (node for node in kept.graph.node if node.op_type == "Clip")
    assert any(node.op_type == "QuantizeLinear" and node.input[0] == clip.output[0] for node in kept.graph.node)
    np.testing.assert_allclose(run(kept, feeds)[0], run(model, feeds)[0], rtol=0, atol=0.1)


def test_gemms_whose_kernel_would_do_something_else_stay_float32() -> None:
    graph = Graph("gemm")
    x = graph.node("Flatten", graph.pixels(4, 4, std=255.0))
    y = graph.node("Gemm", x, graph.constant(np.ones((48, 2), np.float32)), graph.constant(np.zeros(2, np.float32)), alpha=0.5)
    graph.output(y, "y", ["n", 2])
    model = graph.build()
    assert measured_tensors(prepare(model)) == []
    assert operators(quantize(model, {}))["DequantizeLinear"] == 0


def test_a_graph_without_uint8_pixels_gets_its_input_quantised() -> None:
    graph = Graph("floats")
    x = graph.node("Relu", graph.conv(graph.input("x", ["n", 3, 4, 4]), np.ones((2, 3, 1, 1)), np.zeros(2)))
    graph.output(graph.node("MaxPool", x, kernel_shape=[2, 2]), "y", ["n", 2, 3, 3])
    model = graph.build()
    assert measured_tensors(prepare(model)) == ["x", "relu1"]
    session = ort.InferenceSession(quantize(model, {"x": (0.0, 1.0), "relu1": (0.0, 3.0)}).SerializeToString())
    x = np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 3, 4, 4)
    np.testing.assert_allclose(session.run(None, {"x": x})[0][0, 0], x[0].sum(axis=0)[1:, 1:], atol=2 * 3 / 255)
