"""YuNet, OpenCV Zoo's block-quantised file, to float32 with box decoding inside.

Input "pixels": uint8 RGB [n, h, w, 3], sides multiples of 32. Outputs, for k = h * w * (1/64 + 1/256 + 1/1024) places:
"boxes" float32 [n, k, 4] as x_min, y_min, x_max, y_max in input pixels, "scores" [n, k] in 0..1, and "landmarks" [n, k, 10]
as x, y of the right eye, left eye, nose, right and left mouth corner (the person's right), in input pixels.

Reference: Wu, Peng and Yu 2023, YuNet: A Tiny Millisecond-level Face Detector, Machine Intelligence Research 20, 656-665.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from service.errors import ExportFailed
from service.export.rewrite import BATCH, drop_initializer_inputs, fold_dequantize, free_batch, pixels_input

STRIDES = (8, 16, 32)
HEADS = ("cls", "obj", "bbox", "kps")
POINTS = 5


def export(files: Mapping[str, Path]) -> dict[str, ModelProto]:
    """The graph "model" from the one .onnx file given. Raises ExportFailed when its heads are not YuNet's."""
    (path,) = files.values()
    model = free_batch(fold_dequantize(drop_initializer_inputs(onnx.load(path))))
    found = {output.name for output in model.graph.output}
    if wanted := {f"{head}_{stride}" for head in HEADS for stride in STRIDES} - found:
        raise ExportFailed(f"{path.name} lacks the outputs {', '.join(sorted(wanted))}; this is not YuNet of 2023")
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], ("height", "width"), strict=True):
        dim.dim_param = name
    model = pixels_input(model, model.graph.input[0].name, reverse_channels=True)
    _decode(model)
    checker.check_model(model, full_check=True)
    return {"model": model}


class _Tail:
    """Appends nodes to a graph; names are made up."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        name = f"decode/constant{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"decode/{operator.lower()}{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def cut(self, x: str, start: int, end: int, axis: int) -> str:
        return self.node("Slice", x, *(self.constant([value], np.int64) for value in (start, end, axis)))


def _decode(model: ModelProto) -> None:
    """Replace the twelve heads by boxes, scores and landmarks; strides one after the other, rows of cells from the top left.

    Reshape stands where Squeeze and Unsqueeze would do: published files are of opset 11 and 13, between which those changed.
    """
    tail = _Tail(model)
    shape = tail.node("Shape", "pixels")
    sides = [tail.node("Squeeze", tail.cut(shape, axis, axis + 1, 0)) for axis in (1, 2)]
    parts = [_decode_stride(tail, stride, sides) for stride in STRIDES]
    del model.graph.output[:]
    shapes: dict[str, list[str | int | None]] = {
        "boxes": [BATCH, "k", 4],
        "scores": [BATCH, "k"],
        "landmarks": [BATCH, "k", 2 * POINTS],
    }
    for position, (name, dims) in enumerate(shapes.items()):
        tail.node("Concat", *(part[position] for part in parts), output=name, axis=1)
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))


def _decode_stride(tail: _Tail, stride: int, sides: Sequence[str]) -> tuple[str, str, str]:
    """Boxes [n, cells, 4], scores [n, cells] and landmarks [n, cells, 10] of one stride.

    A cell at column c, row r: centre = ((c, r) + d) * stride, size = exp(s) * stride, landmark = ((c, r) + t) * stride,
    score = sqrt(class * objectness).
    """
    cells, unit = _cells(tail, stride, sides), tail.constant(stride)
    offset, size = (tail.cut(f"bbox_{stride}", start, start + 2, 2) for start in (0, 2))
    centre = tail.node("Mul", tail.node("Add", offset, cells), unit)
    half = tail.node("Mul", tail.node("Exp", size), tail.constant(stride / 2))
    boxes = tail.node("Concat", tail.node("Sub", centre, half), tail.node("Add", centre, half), axis=2)
    repeated = tail.node("Concat", *[cells] * POINTS, axis=2)
    landmarks = tail.node("Mul", tail.node("Add", f"kps_{stride}", repeated), unit)
    squared = tail.node("Mul", f"cls_{stride}", f"obj_{stride}")
    scores = tail.node("Sqrt", tail.node("Reshape", squared, tail.constant([0, -1], np.int64)))
    return boxes, scores, landmarks


def _cells(tail: _Tail, stride: int, sides: Sequence[str]) -> str:
    """Column and row of every cell, float32 [1, rows * columns, 2], row after row."""
    zero, one, unit = (tail.constant(value, np.int64) for value in (0, 1, stride))
    rows, columns = (tail.node("Range", zero, tail.node("Div", side, unit), one) for side in sides)
    grid_shape = tail.node("Concat", tail.node("Shape", rows), tail.node("Shape", columns), axis=0)
    across = tail.node("Expand", columns, grid_shape)
    down = tail.node("Expand", tail.node("Reshape", rows, tail.constant([-1, 1], np.int64)), grid_shape)
    flat = tail.constant([1, -1, 1], np.int64)
    pairs = tail.node("Concat", tail.node("Reshape", across, flat), tail.node("Reshape", down, flat), axis=2)
    return tail.node("Cast", pairs, to=TensorProto.FLOAT)
