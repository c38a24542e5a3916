"""Grids of cells, as constants where the size is known and computed from the pixels where it is free."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, numpy_helper

from service.errors import ExportFailed
from service.export.adopt.tail import Tail


def grid(tail: Tail, stride: int) -> str:
    """Column and row of every cell of `stride` pixels, float32 [1, rows * columns, 2], row after row from the top left.

    Raises ExportFailed where the size is free and the graph's opset cannot compute it.
    """
    if tail.size is not None:
        height, width = (side // stride for side in tail.size)
        rows, columns = np.divmod(np.arange(height * width), width)
        return tail.constant(np.stack([columns, rows], axis=1)[None])
    if tail.opset < 9:
        raise ExportFailed(f"a graph of opset {tail.opset} cannot be decoded for any size; fix its size")
    unit = tail.constant([stride], np.int64)
    shape = tail.concat(*(tail.node("Div", tail.side(axis), unit) for axis in ("height", "width")), axis=0)
    found = tail.node("NonZero", _filled(tail, shape, 1))  # of ones, it lists every place: there is no Range before opset 11
    pairs = tail.gather(tail.transpose(found, 1, 0), [1, 0], axis=1)
    return tail.unsqueeze(tail.cast(pairs, TensorProto.FLOAT), 0)


def grids(tail: Tail, strides: Sequence[int]) -> tuple[str, str]:
    """One stride after the other: column and row of each place [1, k, 2] and the stride that it has [1, k, 1], float32."""
    cells = [grid(tail, stride) for stride in strides]
    if tail.size is not None:
        counts = [places(tail.size, [stride]) for stride in strides]
        return tail.concat(*cells, axis=1), tail.constant(np.repeat(strides, counts)[None, :, None])
    shapes = [tail.node("Shape", tail.cut(part, 0, 1, 2)) for part in cells]
    units = [_filled(tail, shape, stride) for shape, stride in zip(shapes, strides, strict=True)]
    return tail.concat(*cells, axis=1), tail.concat(*units, axis=1)


def places(size: tuple[int, int], strides: Sequence[int]) -> int:
    """How many cells grids of `strides` have together on pixels of `size`."""
    return sum((size[0] // stride) * (size[1] // stride) for stride in strides)


def _filled(tail: Tail, shape: str, value: float) -> str:
    return tail.node("ConstantOfShape", shape, value=numpy_helper.from_array(np.array([value], np.float32)))
