"""Detectors with NMS inside: boxes that were chosen already, each with its label and score."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, numpy_helper

from service.export.adopt.queries import expected, expose_chosen, state_size
from service.export.adopt.tail import Output, Tail
from service.export.contract import Contract


def nms_indices(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Boxes [1, k, 4] as y, x, y, x, scores [1, C, k] and indices [m, 3] (picture, class, box) as m boxes and scores.

    A second input gets height and width of the pixels, as the YOLOv3 of the ONNX Zoo asks for them. One picture at a time.
    """
    boxes, scores, indices = expected(outputs, "boxes", "scores", "indices")
    state_size(tail, "height", "width")
    rows = tail.reshape(tail.cast(indices.name, TensorProto.INT64), [-1, 3])
    label, place = (tail.reshape(tail.cut(rows, column, column + 1, 1), [-1]) for column in (1, 2))
    corners = tail.node("Gather", _x_first(tail, tail.reshape(tail.as_float(boxes), [-1, 4]), 1), place, axis=0)
    of_box = tail.node("Gather", tail.transpose(tail.squeeze(tail.as_float(scores), 0), 1, 0), place, axis=0)
    first, last = contract.first_class, contract.first_class + contract.classes
    is_it = tail.node("Equal", tail.unsqueeze(label, 1), tail.constant(range(first, last), np.int64))
    score = tail.mul(tail.cut(of_box, first, last, 1), tail.cast(is_it, TensorProto.FLOAT))
    corners = tail.unsqueeze(corners, 0)
    tail.expose(tail.mul(corners, tail.sides()) if contract.boxes == "unit" else corners, "boxes", ["n", "k", 4])
    tail.expose(tail.unsqueeze(score, 0), "scores", ["n", "k", contract.classes])


def nms_rows(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Rows [m, 7] of picture, corners, label and score as boxes and scores of one picture."""
    (rows,) = expected(outputs, "rows")
    found = tail.unsqueeze(tail.as_float(rows), 0)
    boxes, label, score = (tail.cut(found, start, end, 2) for start, end in ((1, 5), (5, 6), (6, 7)))
    expose_chosen(tail, contract, boxes, tail.squeeze(label, 2), tail.squeeze(score, 2))


def efficient_nms(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Counts [n, 1] or [n], boxes [n, k, 4], scores [n, k] and labels [n, k]: rows from the count on get the score 0."""
    counts, boxes, scores, labels = expected(outputs, "counts", "boxes", "scores", "labels")
    score, corners = tail.as_float(scores), tail.as_float(boxes)
    if contract.y_first:
        corners = _x_first(tail, corners, 2)
    one = numpy_helper.from_array(np.ones(1, np.float32))
    length = tail.cut(tail.node("Shape", score), 1, 2, 0)
    row = tail.cast(tail.node("NonZero", tail.node("ConstantOfShape", length, value=one)), TensorProto.FLOAT)  # [1, k]: 0, 1, ...
    counted = tail.node("Less", row, tail.reshape(tail.cast(counts.name, TensorProto.FLOAT), [-1, 1]))
    expose_chosen(tail, contract, corners, labels.name, tail.mul(score, tail.cast(counted, TensorProto.FLOAT)))


def boxes_labels_scores(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Boxes [k, 4], labels [k] and scores [k] of one picture."""
    boxes, labels, scores = expected(outputs, "boxes", "labels", "scores")
    box, label, score = tail.as_float(boxes), labels.name, tail.as_float(scores)
    expose_chosen(tail, contract, *(tail.unsqueeze(x, 0) for x in (box, label, score)))


def _x_first(tail: Tail, boxes: str, axis: int) -> str:
    """y, x, y, x along `axis` as x, y, x, y."""
    return tail.gather(boxes, [1, 0, 3, 2], axis)
