"""Graph passes on tiny graphs: what they must change, what they must leave alone, and that the arithmetic stays the same."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from service.errors import ExportFailed
from service.export.rewrite import (
    constants,
    drop_initializer_inputs,
    drop_unused,
    fold_dequantize,
    free_batch,
    pixels_input,
    replace_prelu,
)

Array = NDArray[Any]
Dims = Sequence[int | str | None]
RANDOM = np.random.default_rng(7)
PICTURES = RANDOM.integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)


def tiny(
    nodes: Sequence[NodeProto], inputs: Mapping[str, Dims], outputs: Mapping[str, Dims], weights: Mapping[str, Array] | None = None
) -> ModelProto:
    infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in part.items()] for part in (inputs, outputs)]
    tensors = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "tiny", infos[0], infos[1], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model: ModelProto, **feeds: Array) -> Array:
    onnx.checker.check_model(model, full_check=True)
    result: Array = ort.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    return result


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


# pixels_input


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        pytest.param({}, lambda x: x, id="as they are"),
        pytest.param({"reverse_channels": True}, lambda x: x[..., ::-1], id="BGR"),
        pytest.param({"scale": 1 / 255}, lambda x: x / 255, id="0..1"),
        pytest.param({"mean": (127.0, 127.0, 127.0), "std": (128.0, 128.0, 128.0)}, lambda x: (x - 127) / 128, id="one mean"),
        pytest.param(
            {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
            lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
            id="means of the channels",
        ),
        pytest.param(
            {"reverse_channels": True, "mean": (104.0, 117.0, 123.0)},
            lambda x: x[..., ::-1] - [104.0, 117, 123],
            id="BGR, BGR means",
        ),
    ],
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pixels_become_what_the_graph_wanted(layout: Any, options: dict[str, Any], wanted: Callable[[Array], Array]) -> None:
    shape = ["n", 3, "h", "w"] if layout == "NCHW" else ["n", "h", "w", 3]
    model = tiny([helper.make_node("Identity", ["data"], ["y"])], {"data": shape}, {"y": shape})
    axes = (0, 3, 1, 2) if layout == "NCHW" else (0, 1, 2, 3)
    answer = run(pixels_input(model, "data", layout=layout, **options), pixels=PICTURES)
    np.testing.assert_allclose(answer, wanted(PICTURES.astype(np.float64)).transpose(axes), rtol=1e-6, atol=2e-5)


def test_pixels_keep_free_axes_free_and_other_inputs() -> None:
    nodes = [helper.make_node("Mul", ["data", "weight"], ["y"])]
    model = tiny(nodes, {"data": [1, 3, "h", 7], "weight": [1]}, {"y": [1, 3, "h", 7]})
    before = model.SerializeToString()
    made = pixels_input(model, "data", name="photo")
    assert [(value.name, dims(value)) for value in made.graph.input] == [("photo", [1, "h", 7, 3]), ("weight", [1])]
    assert made.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert model.SerializeToString() == before, "the model that came in was changed"


@pytest.mark.parametrize(("name", "shape"), [("other", ["n", 3, 4, 4]), ("data", ["n", 3])])
def test_pixels_need_an_input_of_four_axes(name: str, shape: Dims) -> None:
    model = tiny([helper.make_node("Identity", ["data"], ["y"])], {"data": shape}, {"y": shape})
    with pytest.raises(ExportFailed, match=name):
        pixels_input(model, name)


# fold_dequantize

QUANTISED = RANDOM.integers(-128, 128, (6, 10), dtype=np.int8)


def scales(*shape: int) -> Array:
    return RANDOM.uniform(0.001, 0.1, shape).astype(np.float32)


def zeros(*shape: int) -> Array:
    return RANDOM.integers(-20, 20, shape, dtype=np.int8)


@pytest.mark.parametrize(
    ("scale", "zero", "attributes"),
    [
        pytest.param(scales(), zeros(), {}, id="per tensor"),
        pytest.param(scales(6), zeros(6), {"axis": 0}, id="per row"),
        pytest.param(scales(10), None, {"axis": 1}, id="per column, no zero point"),
        pytest.param(scales(6, 5), zeros(6, 5), {"axis": 1, "block_size": 2}, id="blocks of columns"),
        pytest.param(scales(3, 10), zeros(3, 10), {"axis": 0, "block_size": 2}, id="blocks of rows"),
    ],
)
def test_folded_weights_are_exactly_those_of_the_operator(scale: Array, zero: Array | None, attributes: dict[str, int]) -> None:
    weights = {"q": QUANTISED, "scale": scale} | ({} if zero is None else {"zero": zero})
    nodes = [helper.make_node("DequantizeLinear", list(weights), ["w"], **attributes), helper.make_node("Add", ["x", "w"], ["y"])]
    model = tiny(nodes, {"x": [6, 10]}, {"y": [6, 10]}, weights)
    folded = fold_dequantize(model)
    assert operators(folded) == ["Add"]
    x = np.zeros((6, 10), np.float32)
    np.testing.assert_array_equal(run(folded, x=x), ReferenceEvaluator(model).run(None, {"x": x})[0])


def test_last_block_may_be_cut_short() -> None:
    scale = scales(6, 3)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], axis=1, block_size=4),
        helper.make_node("Identity", ["w"], ["y"]),
    ]
    folded = fold_dequantize(tiny(nodes, {}, {"y": [6, 10]}, {"q": QUANTISED, "scale": scale}))
    by_hand = QUANTISED.astype(np.float32) * np.repeat(scale, 4, axis=1)[:, :10]
    np.testing.assert_array_equal(constants(folded)["w"], by_hand)


def test_block_size_with_one_scale_is_per_tensor() -> None:
    """As in YuNet's biases, which onnxruntime refuses to run."""
    weights = {"q": QUANTISED[0], "scale": scales(1), "zero": zeros(1)}
    nodes = [
        helper.make_node("DequantizeLinear", list(weights), ["w"], axis=0, block_size=64),
        helper.make_node("Identity", ["w"], ["y"]),
    ]
    folded = fold_dequantize(tiny(nodes, {}, {"y": [10]}, weights))
    by_hand = (QUANTISED[0].astype(np.float32) - weights["zero"]) * weights["scale"]
    np.testing.assert_array_equal(constants(folded)["w"], by_hand)


@pytest.mark.parametrize("shape", [[2, 3, 10], [-1, 5], [0, 2, 5]])
def test_reshapes_of_weights_are_folded_and_what_is_left_over_dropped(shape: list[int]) -> None:
    weights = {"q": QUANTISED, "scale": scales(), "shape": np.array(shape), "spare": scales(4)}
    wanted = QUANTISED.reshape([QUANTISED.shape[i] if n == 0 else n for i, n in enumerate(shape)])
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("Reshape", ["w", "shape"], ["v"]),
        helper.make_node("Identity", ["v"], ["y"]),
    ]
    folded = fold_dequantize(tiny(nodes, {}, {"y": wanted.shape}, weights))
    assert set(constants(folded)) == {"v"}
    assert constants(folded)["v"].shape == wanted.shape
    np.testing.assert_array_equal(run(folded), wanted.astype(np.float32) * weights["scale"])


def test_activations_stay_quantised() -> None:
    weights = {"scale": np.float32(0.1), "zero": np.uint8(3), "shape": np.array([-1])}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["y"]),
    ]
    model = tiny(nodes, {"x": [2, 3]}, {"y": [6]}, {name: np.asarray(value) for name, value in weights.items()})
    assert fold_dequantize(model).SerializeToString() == model.SerializeToString()


# inputs and left-overs


def test_inputs_that_are_weights_or_unread_are_dropped() -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    model = tiny(nodes, {"x": [2], "w": [2], "old": [2]}, {"y": [2]}, {"w": np.ones(2, np.float32)})
    assert [value.name for value in drop_initializer_inputs(model).graph.input] == ["x"]


def test_constants_that_an_output_or_a_node_reads_stay() -> None:
    one = numpy_helper.from_array(np.ones(2, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["read"], value=one),
        helper.make_node("Constant", [], ["unread"], value=one),
        helper.make_node("Add", ["x", "read"], ["y"]),
    ]
    model = tiny(nodes, {"x": [2]}, {"y": [2], "w": [2]}, {"w": np.ones(2, np.float32), "spare": np.ones(2, np.float32)})
    assert set(constants(drop_unused(model))) == {"read", "w"}


# free_batch


def conv_and_flatten(shape: list[int], as_node: bool) -> ModelProto:
    """[1, 3, 4, 4] -> convolution with a reshaped bias -> reshape by a constant `shape` -> its rows."""
    weights = {"kernel": scales(2, 3, 3, 3), "bias": scales(2), "column": np.array([1, 2, 1, 1]), "shape": np.array(shape)}
    nodes = [
        helper.make_node("Reshape", ["bias", "column"], ["b"]),
        helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "b"], ["d"]),
        helper.make_node("Transpose", ["d"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["t", "shape"], ["y"]),
    ]
    if as_node:
        nodes.insert(0, helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(weights.pop("shape"))))
    return tiny(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, *np.empty((16, 2)).reshape(shape[1:]).shape]}, weights)


@pytest.mark.parametrize("as_node", [False, True], ids=["initialiser", "Constant node"])
@pytest.mark.parametrize("shape", [[1, -1, 2], [1, 16, 2], [1, -1]])
def test_a_freed_batch_answers_each_item_as_it_would_alone(shape: list[int], as_node: bool) -> None:
    model = conv_and_flatten(shape, as_node)
    freed = free_batch(model)
    x = RANDOM.normal(size=(3, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(freed, x=x), np.concatenate([run(model, x=item[None]) for item in x]), rtol=1e-5, atol=1e-6)
    assert [dims(value)[0] for value in (*freed.graph.input, *freed.graph.output)] == ["n", "n"]


def test_a_reshape_that_folds_the_batch_away_is_opened_by_what_is_left() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "apart"], ["rows"]),
        helper.make_node("Relu", ["rows"], ["r"]),
        helper.make_node("Reshape", ["r", "together"], ["y"]),
    ]
    weights = {"apart": np.array([-1, 2]), "together": np.array([1, 4, 2])}
    freed = free_batch(tiny(nodes, {"x": [1, 4, 2]}, {"y": [1, 4, 2]}, weights))
    x = RANDOM.normal(size=(3, 4, 2)).astype(np.float32)
    np.testing.assert_array_equal(run(freed, x=x), np.maximum(x, 0))


def test_a_batch_that_cannot_be_freed_is_refused() -> None:
    nodes = [helper.make_node("Reshape", ["x", "apart"], ["r"]), helper.make_node("Reshape", ["r", "together"], ["y"])]
    weights = {"apart": np.array([-1, 2]), "together": np.array([1, -1, 2])}
    with pytest.raises(ExportFailed, match=r"'y' to \[1, -1, 2\]"):
        free_batch(tiny(nodes, {"x": [1, 4, 2]}, {"y": [1, 4, 2]}, weights))


def test_shapes_computed_from_shapes_are_not_data() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=1),
        helper.make_node("Reshape", ["s", "row"], ["r"]),
        helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
    ]
    freed = free_batch(tiny(nodes, {"x": [1, 4]}, {"y": [1, 1]}, {"row": np.array([1, 1])}))
    assert run(freed, x=np.zeros((3, 4), np.float32)).tolist() == [[4.0]]


# replace_prelu


@pytest.mark.parametrize(
    "slope",
    [np.float32([0.25]), np.float32([-0.81]), np.float32([1.12]), np.float32([[[0.5]], [[-0.81]], [[1.12]]])],
    ids=["0.25", "negative", "above one", "per channel"],
)
def test_prelu_is_the_same_without_prelu(slope: Array) -> None:
    model = tiny([helper.make_node("PRelu", ["x", "a"], ["y"])], {"x": ["n", 3, 2, 2]}, {"y": ["n", 3, 2, 2]}, {"a": slope})
    replaced = replace_prelu(model)
    x = RANDOM.normal(scale=3, size=(2, 3, 2, 2)).astype(np.float32)
    assert "PRelu" not in operators(replaced)
    np.testing.assert_allclose(run(replaced, x=x), np.where(x > 0, x, x * slope), rtol=0, atol=2e-6)


def test_two_prelus_may_share_a_slope() -> None:
    nodes = [helper.make_node("PRelu", ["x", "a"], ["h"]), helper.make_node("PRelu", ["h", "a"], ["y"])]
    model = tiny(nodes, {"x": [3]}, {"y": [3]}, {"a": np.float32([0.5])})
    assert run(replace_prelu(model), x=np.float32([-4, 0, 2])).tolist() == [-1, 0, 2]


def test_prelu_with_a_computed_slope_stays() -> None:
    model = tiny([helper.make_node("PRelu", ["x", "a"], ["y"])], {"x": [3], "a": [1]}, {"y": [3]})
    assert operators(replace_prelu(model)) == ["PRelu"]
