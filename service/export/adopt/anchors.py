"""Raw heads by anchors: YOLOv2, YOLOv3, YOLOv4 and the undecoded heads of YOLOv5 and 7.

A head of `a` anchors answers, for each cell and anchor, tx, ty, tw, th, objectness and C classes, in one of four orders:
[n, a * (5 + C), h, w], [n, a, h, w, 5 + C], [n, h, w, a, 5 + C] or [n, h, w, a * (5 + C)]. Each is brought to [n, h * w, a, 5 + C].

Reference: Redmon and Farhadi 2016, YOLO9000; 2018, YOLOv3; Bochkovskiy, Wang and Liao 2020, YOLOv4 (xy_scale).
"""

from collections.abc import Sequence

import numpy as np

from service.errors import ExportFailed
from service.export.adopt.cells import grid
from service.export.adopt.tail import Output, Tail
from service.export.adopt.yolo import expose_detections
from service.export.contract import Contract
from service.export.rewrite import Array


def yolov2(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Classes are a softmax; score = objectness * class."""
    _decode(tail, outputs, contract, softmax=True)


def yolov3(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Classes are independent of each other; score = objectness * class. One head a stride."""
    _decode(tail, outputs, contract, softmax=False)


def _decode(tail: Tail, outputs: Sequence[Output], contract: Contract, *, softmax: bool) -> None:
    heads = len(outputs)
    for name in ("anchors", "strides", "xy_scale"):
        given = len(getattr(contract, name))
        if given != heads and (given or name != "xy_scale"):
            raise ExportFailed(f"there are {heads} heads, and {name} for {given}: {', '.join(o.label for o in outputs)}")
    parts = [_decode_head(tail, outputs[index], index, contract, softmax=softmax) for index in range(heads)]
    boxes, scores = (tail.concat(*(part[position] for part in parts), axis=1) for position in (0, 1))
    expose_detections(tail, boxes, scores, contract)


def _decode_head(tail: Tail, output: Output, index: int, contract: Contract, *, softmax: bool) -> tuple[str, str]:
    """Boxes [n, k, 4] and scores [n, k, C] of one head, k = h * w * a.

    centre = (sigmoid(t) * s - (s - 1) / 2 + cell) * stride with s = xy_scale, size as `Contract.head` says.
    """
    anchors = np.array(contract.anchors[index]).reshape(-1, 2)
    stride = contract.strides[index]
    reach = contract.xy_scale[index] if contract.xy_scale else (2.0 if contract.head == "v5" else 1.0)
    rows = _by_cell(tail, output, len(anchors), stride, contract)

    offset = tail.sigmoid(tail.cut(rows, 0, 2, 3))
    if reach != 1:
        offset = tail.sub(tail.mul(offset, reach), (reach - 1) / 2)
    cells = tail.unsqueeze(grid(tail, stride), 2)
    centre = tail.mul(tail.add(offset, cells), float(stride))
    half = _half_size(tail, tail.cut(rows, 2, 4, 3), anchors / 2, contract)
    boxes = tail.concat(tail.sub(centre, half), tail.add(centre, half), axis=3)

    first = 5 + contract.first_class
    objectness, classes = tail.cut(rows, 4, 5, 3), tail.cut(rows, first, first + contract.classes, 3)
    if not contract.probabilities:
        objectness = tail.sigmoid(objectness)
        classes = tail.softmax(classes, 4) if softmax else tail.sigmoid(classes)
    scores = tail.mul(objectness, classes)
    return tail.reshape(boxes, [0, -1, 4]), tail.reshape(scores, [0, -1, contract.classes])


def _half_size(tail: Tail, t: str, half_anchors: Array, contract: Contract) -> str:
    if contract.head == "v3":
        return tail.mul(tail.node("Exp", t), tail.constant(half_anchors))
    twice = tail.mul(tail.sigmoid(t), 2.0)
    return tail.mul(tail.mul(twice, twice), tail.constant(half_anchors))


def _by_cell(tail: Tail, output: Output, anchors: int, stride: int, contract: Contract) -> str:
    """The head as float32 [n, h * w, a, 5 + C]."""
    columns = 5 + contract.first_class + contract.classes
    order = _order(tail, output, anchors, columns, stride, contract)
    x = tail.as_float(output)
    if order == "achw":
        x = tail.transpose(tail.reshape(x, [0, anchors, columns, -1]), 0, 3, 1, 2)
    elif order == "ahwc":
        x = tail.transpose(tail.reshape(x, [0, 0, -1, columns]), 0, 2, 1, 3)
    return tail.reshape(x, [0, -1, anchors, columns])


def _order(tail: Tail, output: Output, anchors: int, columns: int, stride: int, contract: Contract) -> str:
    """Which of the four orders: "achw" [n, a * c, h, w], "hwac" [n, h, w, a * c] or [n, h, w, a, c], "ahwc" [n, a, h, w, c]."""
    rows, across = (None, None) if tail.size is None else (side // stride for side in tail.size)
    shapes: tuple[tuple[str, tuple[int | None, ...]], ...] = (
        ("achw", (anchors * columns, rows, across)),
        ("ahwc", (anchors, rows, across, columns)),
        ("hwac", (rows, across, anchors * columns)),
        ("hwac", (rows, across, anchors, columns)),
    )
    shape = (output.shape or ())[1:]
    agreeing = [(_agreeing(shape, wanted), order) for order, wanted in shapes]
    most = max(count for count, _ in agreeing)
    if most <= 0:
        wanted = f"{anchors} anchors of {columns} numbers ({columns - 5} classes)"
        raise ExportFailed(f"the head {output.label} does not hold {wanted} in cells of {stride} pixels")
    best = [order for count, order in agreeing if count == most]
    return "hwac" if "hwac" in best and contract.layout == "NHWC" else best[0]  # a grid may be as long as it has anchors


def _agreeing(shape: Sequence[int | None], wanted: Sequence[int | None]) -> int:
    """How many axes are known to be as wanted; -1 where one is not."""
    if len(shape) != len(wanted):
        return -1
    pairs = [(a, b) for a, b in zip(shape, wanted, strict=True) if a is not None and b is not None]
    return len(pairs) if all(a == b for a, b in pairs) else -1
