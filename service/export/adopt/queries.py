"""DETR and its kin: one box for each of a fixed number of queries, no NMS."""

from collections.abc import Sequence
from typing import Literal

from onnx import TensorProto

from service.errors import ExportFailed
from service.export.adopt.tail import GIVEN, PIXELS, Output, Tail
from service.export.contract import Contract


def detr(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Logits [n, k, C] and boxes [n, k, 4], in either order, as boxes in pixels and scores.

    Softmax logits hold the class "no object" behind the others, which is left out. Reference: Carion and others, End-to-end object
    detection with transformers, ECCV 2020.
    """
    logits, boxes = _boxes_last(outputs)
    scores = tail.activated(tail.as_float(logits), contract.activation)
    if contract.classes:
        scores = tail.cut(scores, contract.first_class, contract.first_class + contract.classes, 2)
    tail.expose(tail.mul(tail.corners(tail.as_float(boxes)), tail.sides()), "boxes", ["n", "k", 4])
    tail.expose(scores, "scores", ["n", "k", contract.classes or "classes"])


def detr_decoded(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Labels [n, k], boxes [n, k, 4] as corners and scores [n, k] as boxes and scores [n, k, classes].

    The second input gets width and height of the pixels, as RT-DETR and D-FINE ask for them: so the corners come in pixels.
    """
    labels, boxes, scores = expected(outputs, "labels", "boxes", "scores")
    state_size(tail, "width", "height")
    expose_chosen(tail, contract, tail.as_float(boxes), labels.name, tail.as_float(scores))


def expected(outputs: Sequence[Output], *names: str) -> Sequence[Output]:
    """`outputs`, where they are as many as `names`. Raises ExportFailed saying what was found and what is wanted."""
    if len(outputs) != len(names):
        found = ", ".join(output.label for output in outputs)
        raise ExportFailed(f"the outputs should be {', '.join(names)}, in this order, and these were found: {found}")
    return outputs


def state_size(tail: Tail, *order: Literal["height", "width"]) -> None:
    """Every input beside the pixels becomes a constant [1, 2], the size of the pixels. Raises ExportFailed for another shape."""
    for value in [value for value in tail.graph.input if value.name != PIXELS]:
        kind = value.type.tensor_type
        axes = [dim.dim_value for dim in kind.shape.dim]
        if len(axes) not in {1, 2} or axes[-1] not in {0, 2}:
            name = value.name.removeprefix(GIVEN)
            raise ExportFailed(f"the input {name!r} with the shape {axes} is not the size of a picture: one of [n, 2] is")
        size = tail.cast(tail.concat(*(tail.side(axis) for axis in order), axis=0), kind.elem_type)
        tail.replace_input(value.name, size if len(axes) == 1 else tail.reshape(size, [1, 2]))


def expose_chosen(tail: Tail, contract: Contract, boxes: str, labels: str, scores: str) -> None:
    """Boxes [n, k, 4] that were chosen already, with one label [n, k] and one score float32 [n, k] each, as the house's outputs."""
    if contract.boxes == "unit":
        boxes = tail.mul(boxes, tail.sides())
    labels = tail.cast(labels, TensorProto.FLOAT)
    if contract.first_class:
        labels = tail.sub(labels, contract.first_class)
    tail.expose(boxes, "boxes", ["n", "k", 4])
    tail.expose(tail.one_hot(labels, scores, contract.classes), "scores", ["n", "k", contract.classes])


def _boxes_last(outputs: Sequence[Output]) -> Sequence[Output]:
    """Logits and boxes; boxes are what has four columns, where the other has not."""
    first, second = expected(outputs, "logits", "boxes")
    columns = [output.shape[-1] if output.shape else None for output in (first, second)]
    return (second, first) if columns[0] == 4 != columns[1] else (first, second)
