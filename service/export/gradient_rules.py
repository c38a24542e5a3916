"""The rules of service.export.gradient: for each operator, the gradient of one of its inputs from that of its output.

rule(back, node, dy, index) appends nodes to back.graph and gives the name of the gradient of node.input[index], which has that
input's shape, or None where that of an input before, of the same tensor, holds it already; dy names the gradient of
node.output[0]. What the forward pass has computed is read again, nothing is computed twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from service.errors import ExportFailed
from service.export.graph import Axis, Graph


@dataclass(frozen=True)
class Backward:
    """The graph that gradients are appended to, and the shapes of the tensors of its forward pass, where they are known."""

    graph: Graph
    shapes: Mapping[str, tuple[Axis, ...]]

    def rank(self, name: str) -> int:
        return len(self.shape(name))

    def shape(self, name: str) -> tuple[Axis, ...]:
        if name not in self.shapes:
            raise ExportFailed(f"the rank of {name!r} is not known, which its gradient needs")
        return self.shapes[name]

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.graph.node(operator, *inputs, **attributes)

    def whole(self, *numbers: int) -> str:
        """An int64 constant [n]."""
        return self.graph.constant(np.array(numbers, np.int64))

    def number(self, value: float) -> str:
        return self.graph.constant(np.float32(value))

    def placed(self, dy: str, like: str, at: str) -> str:
        """`dy` among zeros, of `like`'s shape, its corner at the indices `at` (int64 [rank]); what lies outside is cut off."""
        length = self.node("Shape", dy)
        after = self.node("Sub", self.node("Sub", self.node("Shape", like), at), length)
        return self.node("Pad", dy, self.node("Concat", at, after, axis=0))


Rule = Callable[[Backward, NodeProto, str, int], str | None]


def _attributes(node: NodeProto, **defaults: Any) -> dict[str, Any]:
    """The attributes of a node. Raises ExportFailed for one that is not among `defaults`, and so not understood."""
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if more := given.keys() - defaults.keys():
        raise _unfit(node, f"its attribute {sorted(more)[0]} is not understood")
    return {**defaults, **given}


def _unfit(node: NodeProto, why: str) -> ExportFailed:
    return ExportFailed(f"{node.op_type} {node.output[0]!r}: no rule for its gradient: {why}")


def _summed(back: Backward, dy: str, node: NodeProto, index: int) -> str:
    """dy summed over the axes that input `index` was broadcast along."""
    ours, whole = back.shape(node.input[index]), back.shape(node.output[0])
    more = len(whole) - len(ours)
    axes = [*range(more), *(more + axis for axis, length in enumerate(ours) if length == 1 and whole[more + axis] != 1)]
    if not axes:
        return dy
    dy = back.node("ReduceSum", dy, back.whole(*axes), keepdims=1)
    return back.node("Squeeze", dy, back.whole(*range(more))) if more else dy


def _add(back: Backward, node: NodeProto, dy: str, index: int) -> str:
    return _summed(back, dy, node, index)


def _sub(back: Backward, node: NodeProto, dy: str, index: int) -> str:
    dx = _summed(back, dy, node, index)
    return back.node("Neg", dx) if index else dx


def _mul(back: Backward, node: NodeProto, dy: str, index: int) -> str:
    return _summed(back, back.node("Mul", dy, node.input[1 - index]), node, index)


def _matmul(back: Backward, node: NodeProto, dy: str, index: int) -> str:
    """Y = A B: dA = dY B^T, dB = A^T dY, for matrices, or stacks of them of the same batch axes."""
    ranks = [back.rank(name) for name in node.input]
    batches = [back.shape(name)[:-2] for name in node.input]
    if min(ranks) < 2 or batches[0] != batches[1] or None in batches[0]:
        raise _unfit(node, f"it joins the shapes {' and '.join(str(back.shape(name)) for name in node.input)}")
    order = [*range(ranks[0] - 2), ranks[0] - 1, ranks[0] - 2]
    other = back.node("Transpose", node.input[1 - index], perm=order)
    return back.node("MatMul", other, dy) if index else back.node("MatMul", dy, other)


def _gemm(back: Backward, node: NodeProto, dy: str, index: int) -> str | None:
    """Y = A B^T: dA = dY B, dB = dY^T A; of a Gram matrix Y = A A^T both at once, (dY + dY^T) A."""
    how = _attributes(node, alpha=1.0, beta=1.0, transA=0, transB=0)
    if how != {"alpha": 1.0, "beta": how["beta"], "transA": 0, "transB": 1} or len(node.input) != 2:
        raise _unfit(node, "only A B^T has one")
    a, b = node.input
    if a == b:
        return None if index else back.node("MatMul", back.node("Add", dy, back.node("Transpose", dy, perm=[1, 0])), a)
    return back.node("MatMul", back.node("Transpose", dy, perm=[1, 0]), a) if index else back.node("MatMul", dy, b)


def _relu(back: Backward, node: NodeProto, dy: str, _: int) -> str:
    return back.node("Mul", dy, _positive(back, node.output[0]))


def _leaky_relu(back: Backward, node: NodeProto, dy: str, _: int) -> str:
    slope = _attributes(node, alpha=0.01)["alpha"]
    if not 0 <= slope <= 1:
        raise _unfit(node, f"its slope {slope:g} is not from 0 to 1")
    return back.node("Mul", dy, back.node("Max", _positive(back, node.output[0]), back.number(slope)))


def _positive(back: Backward, y: str) -> str:
    """1 where y is above 0, else 0, as float32: to multiply by it takes onnxruntime a tenth of the time of Where."""
    return back.node("Cast", back.node("Greater", y, back.number(0)), to=TensorProto.FLOAT)


def _conv(back: Backward, node: NodeProto, dy: str, index: int) -> str:
    """A convolution of dy with the kernels flipped and their two channel axes exchanged; with a stride, its transpose."""
    if index:
        raise _unfit(node, "only that by its picture is known, not by its weights")
    weight = node.input[1]
    size = [_fixed(node, axis) for axis in back.shape(weight)[2:]]
    ones, zeros = [1] * len(size), [0] * 2 * len(size)
    how = _attributes(node, auto_pad=b"NOTSET", dilations=ones, group=1, kernel_shape=size, pads=zeros, strides=ones)
    if how["auto_pad"] not in (b"NOTSET", b"VALID"):
        raise _unfit(node, f"auto_pad={how['auto_pad'].decode()}")
    spread = {"dilations": how["dilations"], "group": how["group"], "kernel_shape": size}
    reach = [dilation * (length - 1) for dilation, length in zip(how["dilations"], size, strict=True)]
    pads = [most - pad for most, pad in zip(reach * 2, how["pads"], strict=True)]
    if how["strides"] == ones and min(pads) >= 0:
        return back.node("Conv", dy, _flipped(back, node, how["group"]), pads=pads, **spread)
    whole = back.node("ConvTranspose", dy, weight, strides=how["strides"], **spread)
    return back.placed(whole, node.input[0], back.whole(0, 0, *(-pad for pad in how["pads"][: len(size)])))


def _flipped(back: Backward, node: NodeProto, groups: int) -> str:
    """Kernels [out, in / groups, ...] turned round, as [in, out / groups, ...]; onnxruntime does it once, at loading."""
    weight = node.input[1]
    outs, ins, *size = [_fixed(node, axis) for axis in back.shape(weight)]
    axes = range(2, 2 + len(size))
    last, end = back.whole(*[-1] * len(size)), back.whole(*[-(2**31)] * len(size))
    turned = back.node("Slice", weight, last, end, back.whole(*axes), last)
    if groups > 1:
        turned = back.node("Reshape", turned, back.whole(groups, outs // groups, ins, *size))
        turned = back.node("Transpose", turned, perm=[0, 2, 1, *(axis + 1 for axis in axes)])
        return back.node("Reshape", turned, back.whole(groups * ins, outs // groups, *size))
    return back.node("Transpose", turned, perm=[1, 0, *axes])


def _fixed(node: NodeProto, axis: Axis) -> int:
    if not isinstance(axis, int):
        raise _unfit(node, "the shape of its weights is not fixed")
    return axis


def _average_pool(back: Backward, node: NodeProto, dy: str, _: int) -> str:
    """Without overlap, each pixel of a window has its share of the window's gradient: dy enlarged to the nearest, over the area."""
    size, zeros = _windows(node, count_include_pad=0)
    scales = back.graph.constant(np.array([1, 1, *size], np.float32))
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    share = back.node("Mul", dy, back.number(1 / np.prod(size)))
    return back.placed(back.node("Resize", share, "", scales, **how), node.input[0], back.whole(*zeros))


def _max_pool(back: Backward, node: NodeProto, dy: str, _: int) -> str:
    """Without overlap, the largest pixel of each window has its gradient; of several equal ones, the first."""
    size, _zeros = _windows(node, storage_order=0)
    how = {"kernel_shape": size, "strides": size}
    where = back.graph.nodes("MaxPool", node.input[0], outputs=2, **how)[1]
    return back.node("MaxUnpool", dy, where, back.node("Shape", node.input[0]), **how)


def _windows(node: NodeProto, **more: int) -> tuple[list[int], list[int]]:
    """The sides of a pool's windows, and zeros for all axes. Raises ExportFailed unless they lie side by side, unpadded."""
    plain = {"auto_pad": b"NOTSET", "ceil_mode": 0, "dilations": None, "kernel_shape": [], "pads": [0], "strides": [1, 1]}
    how = _attributes(node, **plain, **more)
    size = list(how["kernel_shape"])
    tight = list(how["strides"]) == size and not any(how["pads"]) and not how["ceil_mode"] and how["auto_pad"] == b"NOTSET"
    if not tight or any(step != 1 for step in how["dilations"] or ()):
        raise _unfit(node, "its windows overlap, or reach beyond the picture")
    return size, [0] * (len(size) + 2)


def _reshape(back: Backward, node: NodeProto, dy: str, _: int) -> str:
    return back.node("Reshape", dy, back.node("Shape", node.input[0]))


def _transpose(back: Backward, node: NodeProto, dy: str, _: int) -> str:
    order = _attributes(node, perm=list(range(back.rank(node.input[0])))[::-1])["perm"]
    return back.node("Transpose", dy, perm=[int(axis) for axis in np.argsort(order)])


def _slice(back: Backward, node: NodeProto, dy: str, _: int) -> str:
    """dy at its place among zeros. Starts, axes and steps are constants, and steps are 1."""
    x, starts, axes, steps = [*node.input[:2], *node.input[3:], "", ""][:4]
    rank, begins = back.rank(x), back.graph.value(starts)
    at, along = back.graph.value(axes), back.graph.value(steps)
    if begins is None or (axes and at is None) or (steps and (along is None or (along != 1).any())):
        raise _unfit(node, "its starts and axes are no constants, or its steps are not 1")
    given = dict(zip((np.arange(len(begins)) if at is None else at % rank).tolist(), begins.tolist(), strict=True))
    corner = np.array([given.get(axis, 0) for axis in range(rank)], np.int64)
    if (corner >= 0).all():
        return back.placed(dy, x, back.graph.constant(corner))
    length = back.node("Mul", back.node("Shape", x), back.graph.constant((corner < 0).astype(np.int64)))
    counted = back.node("Max", back.node("Add", length, back.graph.constant(corner)), back.whole(0))  # from the end, not before 0
    return back.placed(dy, x, counted)


def _reduce_sum(back: Backward, node: NodeProto, dy: str, _: int) -> str:
    return _spread(back, node, dy)


def _reduce_mean(back: Backward, node: NodeProto, dy: str, _: int) -> str:
    x = node.input[0]
    counts = [back.node("Cast", back.node("Size", name), to=TensorProto.FLOAT) for name in (dy, x)]
    return _spread(back, node, back.node("Mul", dy, back.node("Div", *counts)))


def _spread(back: Backward, node: NodeProto, dy: str) -> str:
    """dy copied along the axes that were reduced."""
    how = _attributes(node, keepdims=1, noop_with_empty_axes=0)
    if how["noop_with_empty_axes"]:
        raise _unfit(node, "noop_with_empty_axes")
    x, axes = [*node.input, ""][:2]
    if axes and not how["keepdims"]:
        dy = back.node("Unsqueeze", dy, axes)
    return back.node("Expand", dy, back.node("Shape", x))


def _identity(_back: Backward, _node: NodeProto, dy: str, _: int) -> str:
    return dy


RULES: dict[str, Rule] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "Conv": _conv,
    "Gemm": _gemm,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "ReduceMean": _reduce_mean,
    "ReduceSum": _reduce_sum,
    "Relu": _relu,
    "Reshape": _reshape,
    "Slice": _slice,
    "Sub": _sub,
    "Transpose": _transpose,
}
"""Operator to rule."""
