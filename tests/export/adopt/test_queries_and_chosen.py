"""Detectors that choose their boxes themselves, and NanoDet: tiny graphs with random answers against a decode in numpy."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

from service.errors import ExportFailed
from service.export.adopt import adopt
from service.export.contract import Contract
from service.runtime.session import run_once

Array = NDArray[Any]
Answer = Callable[..., dict[str, Array]]
HEIGHT, WIDTH = 48, 64
OPSETS = (7, 9, 11, 13, 18)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


def softmax(x: Array) -> Array:
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def network(answers: Mapping[str, Array], opset: int, size_input: tuple[str, int] | None = None) -> ModelProto:
    """A network that answers `answers`, whatever the picture: those of float32 and a leading axis of 1 once for each picture.

    size_input: name and type of a second input [n, 2], which the float answers called "boxes" are multiplied by: w, h, w, h.
    """
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])]
    constants = {"none": np.zeros((1, 3, 1, 1), np.float32), **{f"{name}/values": values for name, values in answers.items()}}
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["mean"]), helper.make_node("Conv", ["mean", "none"], ["zero"])]
    if size_input is not None:
        inputs.append(helper.make_tensor_value_info(size_input[0], size_input[1], ["n", 2]))
        nodes.append(helper.make_node("Cast", [size_input[0]], ["side"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Concat", ["side", "side"], ["sides"], axis=1))
    for name, values in answers.items():
        if values.dtype == np.float32 and values.shape[0] == 1 and values.ndim > 1:
            constants[f"{name}/shape"] = np.array([0, *[1] * (values.ndim - 1)])
            nodes.append(helper.make_node("Reshape", ["zero", f"{name}/shape"], [f"{name}/zero"]))
            last = f"{name}/sum" if size_input and name == "boxes" else name
            nodes.append(helper.make_node("Add", [f"{name}/zero", f"{name}/values"], [last]))
            if last != name:
                nodes.append(helper.make_node("Mul", [last, "sides"], [name]))
        else:
            nodes.append(helper.make_node("Identity", [f"{name}/values"], [name]))
    kinds = {name: helper.np_dtype_to_tensor_dtype(values.dtype) for name, values in answers.items()}
    outputs = [helper.make_tensor_value_info(name, kinds[name], [None] * values.ndim) for name, values in answers.items()]
    weights = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "network", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4 if opset < 15 else 8)


@pytest.fixture
def answer(tmp_path: Path) -> Answer:
    """The house's answers for one black picture, or `batch` of them, of a network with these answers and contract."""

    def ask(answers: Mapping[str, Array], opset: int, batch: int = 1, size: tuple[str, int] | None = None, **given: Any) -> Any:
        given = {"outputs": tuple(answers), "free_batch": batch > 1, "classes": 3, **given}
        save(network(answers, opset, size), tmp_path / "foreign.onnx")
        save(adopt(tmp_path / "foreign.onnx", Contract(**given)), tmp_path / "model.onnx")
        return run_once(tmp_path / "model.onnx", {"pixels": np.zeros((batch, HEIGHT, WIDTH, 3), np.uint8)})

    return ask


def some(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def fractions(*shape: int) -> Array:
    return np.random.default_rng(7).uniform(0.05, 0.95, shape).astype(np.float32)


def corners_of(unit: Array) -> Array:
    cx, cy, w, h = np.moveaxis(unit.astype(np.float64), -1, 0)
    return np.stack([(cx - w / 2) * WIDTH, (cy - h / 2) * HEIGHT, (cx + w / 2) * WIDTH, (cy + h / 2) * HEIGHT], axis=-1)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("boxes_first", [False, True])
def test_detr_takes_logits_and_boxes_in_either_order(opset: int, boxes_first: bool, answer: Answer) -> None:
    logits, boxes = some(1, 6, 3), fractions(1, 6, 4)
    answers = {"a": boxes, "b": logits} if boxes_first else {"a": logits, "b": boxes}
    found = answer(answers, opset, batch=2, decoder="detr", activation="sigmoid")
    np.testing.assert_allclose(found["scores"], np.repeat(sigmoid(logits), 2, axis=0), atol=1e-6)
    np.testing.assert_allclose(found["boxes"], np.repeat(corners_of(boxes), 2, axis=0), atol=1e-4)


@pytest.mark.parametrize(("classes", "first", "columns"), [(3, 0, 4), (4, 0, 5), (2, 1, 4)])
def test_detrs_softmax_leaves_out_no_object_and_what_stands_before_the_first_class(
    classes: int, first: int, columns: int, answer: Answer
) -> None:
    logits, boxes = some(1, 5, columns), fractions(1, 5, 4)
    given = {"decoder": "detr", "activation": "softmax", "classes": classes, "first_class": first}
    found = answer({"logits": logits, "boxes": boxes}, 13, **given)
    np.testing.assert_allclose(found["scores"], softmax(logits)[..., first : first + classes], atol=1e-6)
    np.testing.assert_allclose(found["boxes"], corners_of(boxes), atol=1e-4)


@pytest.mark.parametrize("opset", OPSETS)
def test_corners_and_scores_of_all_places_leave_the_background_out(opset: int, answer: Answer) -> None:
    scores, unit = fractions(1, 7, 3), np.sort(fractions(1, 7, 4))
    given = {"decoder": "corners-scores", "outputs": ("b", "a"), "boxes": "unit", "classes": 2, "first_class": 1}
    found = answer({"a": scores, "b": unit}, opset, batch=2, **given)
    np.testing.assert_allclose(found["boxes"], np.repeat(unit * (WIDTH, HEIGHT, WIDTH, HEIGHT), 2, axis=0), atol=1e-4)
    np.testing.assert_allclose(found["scores"], np.repeat(scores[..., 1:], 2, axis=0), atol=1e-6)
    with pytest.raises(ExportFailed, match="in this order"):
        answer({"a": scores, "b": unit}, opset, **{**given, "outputs": ("a", "b")})


def chosen(labels: Array, scores: Array, classes: int = 3, first: int = 0) -> Array:
    """Scores [n, k, classes] of labels [n, k] and scores [n, k]."""
    table = np.zeros((*labels.shape, classes))
    for place in np.ndindex(labels.shape):
        if 0 <= int(labels[place]) - first < classes:
            table[(*place, int(labels[place]) - first)] = scores[place]
    return table


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.FLOAT])
def test_decoded_detr_gets_the_size_of_the_pixels(opset: int, kind: int, answer: Answer) -> None:
    labels, unit, scores = np.array([[2, 0, 1, 1]]), np.sort(fractions(1, 4, 4)), fractions(1, 4)
    answers = {"labels": labels, "boxes": unit, "scores": scores}
    found = answer(answers, opset, size=("orig_target_sizes", kind), decoder="detr-decoded", input="image")
    np.testing.assert_allclose(found["boxes"], unit * (WIDTH, HEIGHT, WIDTH, HEIGHT), atol=1e-4)
    np.testing.assert_allclose(found["scores"], chosen(labels, scores), atol=1e-6)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("axes", [2, 3])
def test_boxes_are_picked_by_the_indices_of_nms(opset: int, axes: int, answer: Answer) -> None:
    boxes, scores = np.sort(fractions(1, 7, 4)) * np.float32(40), fractions(1, 3, 7)
    rows = np.array([(0, 2, 5), (0, 0, 5), (0, 1, 0)], np.int32)
    answers = {"boxes": boxes, "scores": scores, "indices": rows[None] if axes == 3 else rows}
    found = answer(answers, opset, decoder="nms-indices")
    np.testing.assert_allclose(found["boxes"], boxes[:, [5, 5, 0]][..., [1, 0, 3, 2]])
    wanted = chosen(np.array([[2, 0, 1]]), np.array([[scores[0, 2, 5], scores[0, 0, 5], scores[0, 1, 0]]]))
    np.testing.assert_allclose(found["scores"], wanted)


def test_yolov3_of_the_zoo_is_told_height_and_width(answer: Answer) -> None:
    boxes, rows = np.ones((1, 2, 4), np.float32), np.array([(0, 0, 1)])
    answers = {"boxes": boxes, "scores": fractions(1, 3, 2), "indices": rows}
    found = answer(answers, 10, size=("image_shape", TensorProto.FLOAT), decoder="nms-indices")
    assert found["boxes"].tolist() == [[[WIDTH, HEIGHT, WIDTH, HEIGHT]]]  # y, x, y, x times height, width, height, width, turned


@pytest.mark.parametrize("opset", OPSETS)
def test_rows_become_boxes_and_scores(opset: int, answer: Answer) -> None:
    rows = np.column_stack([np.zeros(4), fractions(4, 4) * 40, [0, 2, 2, 1], fractions(4)]).astype(np.float32)
    found = answer({"rows": rows}, opset, decoder="nms-rows")
    np.testing.assert_allclose(found["boxes"][0], rows[:, 1:5])
    np.testing.assert_allclose(found["scores"], chosen(rows[None, :, 5], rows[None, :, 6]))


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
@pytest.mark.parametrize(("y_first", "boxes"), [(False, "pixels"), (True, "unit")])
def test_rows_beyond_the_count_are_worth_nothing(opset: int, y_first: bool, boxes: str, answer: Answer) -> None:
    corners, scores, labels = np.sort(fractions(2, 5, 4)), fractions(2, 5), np.array([[1, 2, 3, 0, 1]] * 2, np.float32)
    counts = np.array([[3], [5]], np.int32)
    answers = {"counts": counts, "boxes": corners, "scores": scores, "labels": labels}
    found = answer(answers, opset, decoder="efficient-nms", y_first=y_first, boxes=boxes, first_class=1)
    wanted = corners[..., [1, 0, 3, 2]] * (WIDTH, HEIGHT, WIDTH, HEIGHT) if y_first else corners
    np.testing.assert_allclose(found["boxes"], wanted, rtol=1e-6)
    np.testing.assert_allclose(found["scores"], chosen(labels, np.where(np.arange(5) < counts, scores, 0), first=1))


@pytest.mark.parametrize("opset", OPSETS)
def test_labels_count_from_the_first_class(opset: int, answer: Answer) -> None:
    boxes, labels, scores = fractions(4, 4) * np.float32(40), np.array([1, 3, 2, 0]), fractions(4)
    found = answer({"boxes": boxes, "labels": labels, "scores": scores}, opset, decoder="boxes-labels-scores", first_class=1)
    np.testing.assert_allclose(found["boxes"], boxes[None])
    np.testing.assert_allclose(found["scores"], chosen(labels[None], scores[None], first=1))


EMPTY = {
    "nms-rows": {"rows": np.zeros((0, 7), np.float32)},
    "boxes-labels-scores": {
        "boxes": np.zeros((0, 4), np.float32),
        "labels": np.zeros(0, np.int64),
        "scores": np.zeros(0, np.float32),
    },
    "nms-indices": {"boxes": some(1, 7, 4), "scores": some(1, 3, 7), "indices": np.zeros((0, 3), np.int64)},
}


@pytest.mark.parametrize("opset", [9, 18])
@pytest.mark.parametrize("decoder", EMPTY)
def test_no_boxes_at_all_are_no_boxes(decoder: str, opset: int, answer: Answer) -> None:
    found = answer(EMPTY[decoder], opset, decoder=decoder)
    assert (found["boxes"].shape, found["scores"].shape) == ((1, 0, 4), (1, 0, 3))


STRIDES = (8, 16, 32)
COUNTS = [(HEIGHT // s) * (WIDTH // s) if s < 32 else 2 * 2 for s in STRIDES]  # 48 is one and a half cells of 32


def reach_of(distributions: Array) -> Array:
    """Expected distances [n, k, 4] of [n, k, 4 * bins], in strides."""
    bins = distributions.shape[-1] // 4
    return np.asarray(softmax(distributions.reshape(*distributions.shape[:2], 4, bins)) @ np.arange(bins))


def nanodet_boxes(distributions: list[Array], strides: tuple[int, ...], shift: float) -> Array:
    boxes = []
    for values, stride in zip(distributions, strides, strict=True):
        columns = -(-WIDTH // stride)
        for cell, (left, top, right, bottom) in enumerate(reach_of(values)[0] * stride):
            x, y = (cell % columns + shift) * stride, (cell // columns + shift) * stride
            boxes.append((x - left, y - top, x + right, y + bottom))
    return np.array([boxes])


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("activation", "by_turns", "classes"), [("none", False, 3), ("sigmoid", True, 3), ("none", False, 32)])
def test_nanodets_distributions_become_boxes(opset: int, activation: str, by_turns: bool, classes: int, answer: Answer) -> None:
    heads = [fractions(1, count, classes) for count in COUNTS]
    reach = [some(1, count, 32, seed=count) for count in COUNTS]
    named = [*((f"cls{i}", x) for i, x in enumerate(heads)), *((f"dis{i}", x) for i, x in enumerate(reach))]
    order = [0, 3, 1, 4, 2, 5] if by_turns else range(6)
    answers = dict(named[i] for i in order)
    given = {"decoder": "nanodet", "activation": activation, "classes": classes, "strides": STRIDES}
    found = answer(answers, opset, batch=2, **given)
    scores = np.concatenate(heads, axis=1)
    np.testing.assert_allclose(found["scores"][1:], sigmoid(scores) if activation == "sigmoid" else scores, atol=1e-6)
    np.testing.assert_allclose(found["boxes"][1:], nanodet_boxes(reach, STRIDES, 0.5), atol=1e-4)


def test_nanodet_plus_answers_with_one_table_and_corners_of_cells(answer: Answer) -> None:
    strides, counts = (*STRIDES, 64), [*COUNTS, 1]
    tables = [np.concatenate([fractions(1, count, 3), some(1, count, 32, seed=count)], axis=2) for count in counts]
    found = answer({"output": np.concatenate(tables, axis=1)}, 11, decoder="nanodet")
    np.testing.assert_allclose(found["scores"], np.concatenate(tables, axis=1)[..., :3])
    np.testing.assert_allclose(found["boxes"], nanodet_boxes([table[..., 3:] for table in tables], strides, 0), atol=1e-4)


@pytest.mark.parametrize(
    ("answers", "given", "message"),
    [
        ({"a": some(1, 5, 3)}, {"decoder": "detr"}, r"should be logits, boxes, in this order.*'a' \[1, 5, 3\]"),
        ({"rows": some(5, 7), "more": some(5)}, {"decoder": "nms-rows"}, "should be rows, in this order"),
        ({"a": some(1, 5, 3), "b": some(1, 5, 30)}, {"decoder": "nanodet"}, r"\[n, k, 4 \* bins\] for every stride"),
        ({"a": some(1, 5, 3), "b": some(1, 5, 32)}, {"decoder": "nanodet", "strides": (8, 16)}, "for every stride"),
        ({"a": some(1, 5, 3), "b": some(1, 5, 32)}, {"decoder": "nanodet"}, r"5 cells were found, and strides \[8\] make 48 of"),
    ],
)
def test_other_outputs_are_refused_with_what_was_found(
    answers: dict[str, Array], given: dict[str, Any], message: str, answer: Answer
) -> None:
    with pytest.raises(ExportFailed, match=message):
        answer(answers, 13, **given)


def test_a_second_input_that_is_no_size_is_refused(tmp_path: Path) -> None:
    model = network({"labels": np.zeros((1, 2), np.int64), "boxes": some(1, 2, 4), "scores": some(1, 2)}, 13, ("extra", 1))
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 4
    del model.graph.node[2:4]
    save(model, tmp_path / "foreign.onnx")
    contract = Contract(decoder="detr-decoded", input="image", classes=3, free_batch=False)
    with pytest.raises(ExportFailed, match=r"'extra' with the shape \[0, 4\] is not the size"):
        adopt(tmp_path / "foreign.onnx", contract)
