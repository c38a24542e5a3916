"""Detectors that answer rows: YOLOv5 to 12, YOLOX and what has its NMS behind it.

Every decoder appends nodes that give "boxes" float32 [n, k, 4] as x_min, y_min, x_max, y_max in input pixels and "scores" float32
[n, k, classes], and raises ExportFailed where the outputs have another shape than it reads.
"""

from collections.abc import Sequence

from service.errors import ExportFailed
from service.export.adopt.cells import grids, places
from service.export.adopt.tail import Output, Tail
from service.export.contract import Contract
from service.export.rewrite import BATCH

STRIDES = (8, 16, 32)
"""YOLOX's, where the contract names none."""


def yolov5(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """[n, k, 5 + C]: cx, cy, w, h, objectness, classes. score = objectness * class."""
    rows = _rows(tail, outputs, contract, 5)
    expose_detections(tail, tail.corners(_scaled(tail, tail.cut(rows, 0, 4, 2), contract)), _scores(tail, rows, contract), contract)


def yolov8(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """[n, 4 + C, k], or [n, k, 4 + C]: cx, cy, w, h, classes."""
    rows = _rows(tail, outputs, contract, 4)
    scores = tail.activated(_classes(tail, rows, 4, contract), contract.activation)
    expose_detections(tail, tail.corners(_scaled(tail, tail.cut(rows, 0, 4, 2), contract)), scores, contract)


def yolox(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """[n, k, 5 + C], strides one after the other: centre = (t + cell) * stride, size = exp(t) * stride.

    Reference: Ge, Liu, Wang, Li and Sun 2021, YOLOX: Exceeding YOLO Series in 2021.
    """
    rows = _rows(tail, outputs, contract, 5)
    strides = contract.strides or STRIDES
    _check_places(tail, outputs[0], strides)
    cells, unit = grids(tail, strides)
    centre = tail.mul(tail.add(tail.cut(rows, 0, 2, 2), cells), unit)
    half = tail.mul(tail.mul(tail.node("Exp", tail.cut(rows, 2, 4, 2)), unit), 0.5)
    boxes = tail.concat(tail.sub(centre, half), tail.add(centre, half), axis=2)
    expose_detections(tail, boxes, _scores(tail, rows, contract), contract)


def corners_scores(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Boxes [n, k, 4] as corners, then scores [n, k, classes], of all places."""
    if len(outputs) != 2 or any(output.rank != 3 for output in outputs) or (outputs[0].shape or ())[2] not in (4, None):
        found = ", ".join(output.label for output in outputs)
        raise ExportFailed(
            f"this decoder reads boxes [n, k, 4] and scores [n, k, classes], in this order; the outputs are: {found}"
        )
    boxes, scores = (tail.as_float(output) for output in outputs)
    kept = tail.activated(_classes(tail, scores, 0, contract), contract.activation)
    expose_detections(tail, _scaled(tail, boxes, contract), kept, contract)


def end_to_end(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """[n, k, 6]: corners, score, class; rows without an object have a score of 0."""
    rows = _rows_of_six(tail, outputs)
    _expose_rows(tail, rows, tail.cut(rows, 0, 4, 2), contract)


def end_to_end_centres(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """[n, k, 6]: cx, cy, w, h, score, class."""
    rows = _rows_of_six(tail, outputs)
    _expose_rows(tail, rows, tail.corners(tail.cut(rows, 0, 4, 2)), contract)


def _rows_of_six(tail: Tail, outputs: Sequence[Output]) -> str:
    rows = tail.as_float(one_of(outputs, "one output [n, k, 6]"))
    if outputs[0].rank != 3 or (outputs[0].shape or ())[2] not in (6, None):
        raise ExportFailed(f"an end-to-end detector answers [n, k, 6], not {outputs[0].label}")
    return rows


def _expose_rows(tail: Tail, rows: str, corners: str, contract: Contract) -> None:
    score, label = (tail.squeeze(tail.cut(rows, column, column + 1, 2), 2) for column in (4, 5))
    scores = tail.one_hot(label, tail.activated(score, contract.activation, rank=2), contract.first_class + contract.classes)
    expose_detections(tail, _scaled(tail, corners, contract), _without_first(tail, scores, contract), contract)


def expose_detections(tail: Tail, boxes: str, scores: str, contract: Contract) -> None:
    """Boxes [n, k, 4] and scores [n, k, classes], both float32, as the task "detect" reads them."""
    batch = BATCH if contract.free_batch else 1
    tail.expose(boxes, "boxes", [batch, "k", 4])
    tail.expose(scores, "scores", [batch, "k", contract.classes])


def one_of(outputs: Sequence[Output], wanted: str) -> Output:
    if len(outputs) != 1:
        raise ExportFailed(f"this decoder reads {wanted}; name the right ones of: {', '.join(o.label for o in outputs)}")
    return outputs[0]


def _rows(tail: Tail, outputs: Sequence[Output], contract: Contract, before: int) -> str:
    """The output as float32 [n, k, before + C], whichever of its last two axes are the columns.

    Rows with an objectness have them last wherever their number is not known before it runs, as old YOLOv5's of free size.
    """
    columns = before + contract.first_class + contract.classes
    output = one_of(outputs, f"one output with {columns} columns")
    unknown = before == 5 and output.rank == 3 and (output.shape or ())[2] is None
    if output.rank != 3 or output.shape is None or not (unknown or columns in output.shape[1:]):
        raise ExportFailed(f"there is no axis of {columns} ({before} and {columns - before} classes) in {output.label}")
    rows = tail.as_float(output)
    first = output.shape[2] not in (columns, None) if before == 5 else output.shape[1] == columns
    return tail.transpose(rows, 0, 2, 1) if first else rows


def _classes(tail: Tail, rows: str, before: int, contract: Contract) -> str:
    start = before + contract.first_class
    return tail.cut(rows, start, start + contract.classes, 2)


def _scores(tail: Tail, rows: str, contract: Contract) -> str:
    """Objectness times class; both after their sigmoid where they still need it."""
    objectness = tail.activated(tail.cut(rows, 4, 5, 2), "none" if contract.activation == "none" else "sigmoid")
    return tail.mul(objectness, tail.activated(_classes(tail, rows, 5, contract), contract.activation))


def _without_first(tail: Tail, scores: str, contract: Contract) -> str:
    if not contract.first_class:
        return scores
    return tail.cut(scores, contract.first_class, contract.first_class + contract.classes, 2)


def _scaled(tail: Tail, coordinates: str, contract: Contract) -> str:
    return tail.mul(coordinates, tail.sides()) if contract.boxes == "unit" else coordinates


def _check_places(tail: Tail, output: Output, strides: Sequence[int]) -> None:
    shape = output.shape or ()
    if tail.size is None or None in shape[1:]:
        return
    if (wanted := places(tail.size, strides)) not in shape[1:]:
        height, width = tail.size
        raise ExportFailed(f"{width}x{height} pixels have {wanted} places in strides {list(strides)}, other than {output.label}")
