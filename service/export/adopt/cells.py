"""Grids of cells, as constants where the size is known and computed from the pixels where it is free."""

import numpy as np
from onnx import TensorProto, numpy_helper

from service.errors import ExportFailed
from service.export.adopt.tail import Tail


def grid(tail: Tail, stride: int) -> str:
    """Column and row of every cell of `stride` pixels, float32 [1, rows * columns, 2], row after row from the top left."""
    if tail.size is not None:
        height, width = (side // stride for side in tail.size)
        rows, columns = np.divmod(np.arange(height * width), width)
        return tail.constant(np.stack([columns, rows], axis=1)[None])
    if tail.opset < 9:
        raise ExportFailed(f"a graph of opset {tail.opset} with a free size cannot be decoded; give a size")
    unit = tail.constant([stride], np.int64)
    shape = tail.concat(*(tail.node("Div", tail.side(axis), unit) for axis in ("height", "width")), axis=0)
    return _all_cells(tail, shape)


def _all_cells(tail: Tail, shape: str) -> str:
    """`shape`: rows and columns, int64 [2]. NonZero of ones lists every place: there is no Range before opset 11."""
    one = numpy_helper.from_array(np.ones(1, np.float32))
    places = tail.node("NonZero", tail.node("ConstantOfShape", shape, value=one))
    pairs = tail.gather(tail.transpose(places, 1, 0), [1, 0], axis=1)
    return tail.unsqueeze(tail.cast(pairs, TensorProto.FLOAT), 0)
