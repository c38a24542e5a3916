"""Appends what the house adds to a foreign graph, in the words of that graph's own opset, from 7 on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from service.errors import ExportFailed
from service.export.rewrite import Array

GIVEN = "given/"
"""Before every name of the foreign file, so that none of them is one of the house."""
PIXELS = "pixels"
Dim = int | str | None
Values = float | Sequence[Any] | Array


@dataclass(frozen=True)
class Output:
    """A tensor that the foreign file answers. `dtype` as TensorProto counts them; `shape`: None for a free or unknown axis, and for
    the whole where not even the number of axes is known."""

    name: str
    dtype: int
    shape: tuple[int | None, ...] | None

    @property
    def label(self) -> str:
        """Name and shape as its own file has them, for messages."""
        axes = "unknown" if self.shape is None else f"[{', '.join('?' if n is None else str(n) for n in self.shape)}]"
        return f"{self.name.removeprefix(GIVEN)!r} {axes}"

    @property
    def rank(self) -> int:
        """How many axes; 0 where unknown."""
        return len(self.shape or ())


class Tail:
    """Adds nodes to `model`, in place; names are made up. Most methods give the name of the tensor that they made.

    Nodes may be added in any order and may feed the foreign graph: `finish` sorts them.
    size: height and width of the pixels where they are fixed.
    """

    def __init__(self, model: ModelProto, size: tuple[int, int] | None = None) -> None:
        self.model = model
        self.graph = model.graph
        self.size = size
        self.opset: int = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
        self._made = 0
        self._exposed: list[ValueInfoProto] = []

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        """An initialiser; 0-d values stay 0-d."""
        self._made += 1
        name = f"adopt/constant{self._made}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype, order="C"), name))
        return name

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Any operator with one output."""
        return self.nodes(operator, *inputs, outputs=1, output=output, **attributes)[0]

    def nodes(self, operator: str, *inputs: str, outputs: int, output: str = "", **attributes: Any) -> list[str]:
        """Any operator; gives the names of its outputs."""
        self._made += 1
        name = output or f"adopt/{operator.lower()}{self._made}"
        names = [name] if outputs == 1 else [f"{name}.{index}" for index in range(outputs)]
        self.graph.node.append(helper.make_node(operator, inputs, names, name, **attributes))
        return names

    def cut(self, x: str, start: int, end: int, axis: int) -> str:
        """x[start:end] along `axis` (counted from the front); `end` may be large."""
        if self.opset < 10:
            return self.node("Slice", x, starts=[start], ends=[end], axes=[axis])
        return self.node("Slice", x, *(self.constant([value], np.int64) for value in (start, end, axis)))

    def concat(self, *parts: str, axis: int) -> str:
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=axis)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """0 keeps an axis as it comes in, -1 is whatever is left."""
        return self.node("Reshape", x, self.constant(shape, np.int64))

    def transpose(self, x: str, *axes: int) -> str:
        return self.node("Transpose", x, perm=axes)

    def gather(self, x: str, indices: Sequence[int] | int, axis: int) -> str:
        return self.node("Gather", x, self.constant(indices, np.int64), axis=axis)

    def squeeze(self, x: str, *axes: int) -> str:
        return self._with_axes("Squeeze", x, axes)

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self._with_axes("Unsqueeze", x, axes)

    def _with_axes(self, operator: str, x: str, axes: Sequence[int]) -> str:
        if self.opset < 13:
            return self.node(operator, x, axes=list(axes))
        return self.node(operator, x, self.constant(axes, np.int64))

    def cast(self, x: str, dtype: int) -> str:
        return self.node("Cast", x, to=dtype)

    def as_float(self, output: Output) -> str:
        """In float32: half precision holds no coordinate above 2048 exactly, and few fractions of one."""
        return output.name if output.dtype == TensorProto.FLOAT else self.cast(output.name, TensorProto.FLOAT)

    def sigmoid(self, x: str) -> str:
        return self.node("Sigmoid", x)

    def softmax(self, x: str, rank: int) -> str:
        """Over the last of `rank` axes, which means the same in every opset."""
        return self.node("Softmax", x, axis=rank - 1)

    def activated(self, x: str, activation: Literal["none", "sigmoid", "softmax"], rank: int = 3) -> str:
        """`x` after what a contract says that its scores still need."""
        if activation == "none":
            return x
        return self.sigmoid(x) if activation == "sigmoid" else self.softmax(x, rank)

    def add(self, x: str, by: str | Values) -> str:
        return self._arithmetic("Add", x, by)

    def sub(self, x: str, by: str | Values) -> str:
        return self._arithmetic("Sub", x, by)

    def mul(self, x: str, by: str | Values) -> str:
        return self._arithmetic("Mul", x, by)

    def _arithmetic(self, operator: str, x: str, by: str | Values) -> str:
        return self.node(operator, x, by if isinstance(by, str) else self.constant(by))

    def corners(self, boxes: str) -> str:
        """cx, cy, w, h [n, k, 4] as x_min, y_min, x_max, y_max."""
        centre, half = self.cut(boxes, 0, 2, 2), self.mul(self.cut(boxes, 2, 4, 2), 0.5)
        return self.concat(self.sub(centre, half), self.add(centre, half), axis=2)

    def side(self, axis: Literal["height", "width"]) -> str:
        """Height or width of the pixels, int64 [1]."""
        if self.size is not None:
            return self.constant([self.size[axis == "width"]], np.int64)
        position = 1 if axis == "height" else 2
        return self.cut(self.node("Shape", PIXELS), position, position + 1, 0)

    def sides(self) -> str:
        """Width, height, width, height of the pixels, float32 [4]: what coordinates of 0..1 are multiplied by."""
        if self.size is not None:
            height, width = self.size
            return self.constant([width, height, width, height])
        across, down = self.side("width"), self.side("height")
        return self.cast(self.concat(across, down, across, down, axis=0), TensorProto.FLOAT)

    def one_hot(self, labels: str, scores: str, classes: int) -> str:
        """labels [n, k] of any number type and scores [n, k] float32 as [n, k, classes]: the score at its class, 0 elsewhere."""
        whole = self.node("Floor", self.add(self.cast(labels, TensorProto.FLOAT), 0.5))
        column = self.unsqueeze(self.cast(whole, TensorProto.INT64), 2)
        is_it = self.node("Equal", column, self.constant(range(classes), np.int64))
        return self.mul(self.cast(is_it, TensorProto.FLOAT), self.unsqueeze(scores, 2))

    def replace_input(self, name: str, made: str) -> None:
        """Let `made`, computed from the pixels or constant, stand in for the foreign input `name`."""
        self.node("Identity", made, output=name)
        self._set_inputs(value for value in self.graph.input if value.name != name)

    def add_input(self, name: str, dtype: int, shape: Sequence[Dim]) -> None:
        """A further input of the graph, before all that are there."""
        self._set_inputs([helper.make_tensor_value_info(name, dtype, shape), *self.graph.input])

    def _set_inputs(self, values: Iterable[ValueInfoProto]) -> None:
        kept = list(values)
        del self.graph.input[:]
        self.graph.input.extend(kept)

    def expose(self, x: str, name: str, shape: Sequence[Dim], dtype: int = TensorProto.FLOAT) -> None:
        """`x`, which has the type `dtype` already, as the house's output `name`."""
        self.node("Identity", x, output=name)
        self._exposed.append(helper.make_tensor_value_info(name, dtype, shape))

    def finish(self) -> None:
        """Only what was exposed is answered; nodes in running order, those that nothing reads any more are dropped."""
        del self.graph.output[:], self.graph.value_info[:]
        self.graph.output.extend(self._exposed)
        nodes = in_order(_needed(self.graph))
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        read = {name for node in nodes for name in read_by(node)}
        weights = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(weights)


def read_by(node: NodeProto) -> set[str]:
    """All tensors that a node reads, those that its subgraphs take from outside among them."""
    names = {name for name in node.input if name}
    for graph in subgraphs(node):
        names |= {name for inner in graph.node for name in read_by(inner)} | {value.name for value in graph.output}
    return names


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The bodies of an If, Loop or Scan."""
    return [graph for item in node.attribute for graph in (*([item.g] if item.HasField("g") else ()), *item.graphs)]


def _needed(graph: GraphProto) -> list[NodeProto]:
    """The nodes that the outputs of `graph` rest on, copied, in the order in which they stand."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    wanted: set[int] = set()
    open_ = [value.name for value in graph.output]
    while open_:
        index = maker.get(open_.pop())
        if index is not None and index not in wanted:
            wanted.add(index)
            open_ += read_by(graph.node[index])
    return [node for index, node in enumerate(graph.node) if index in wanted]


def in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Each node after those that make what it reads, otherwise in the order in which they came. Raises ExportFailed at a circle."""
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[name] for name in read_by(node) if name in maker} for node in nodes]
    done: set[int] = set()
    ordered: list[NodeProto] = []
    stack = list(range(len(nodes) - 1, -1, -1))
    opened: set[int] = set()
    while stack:
        index = stack[-1]
        missing = sorted(needs[index] - done, reverse=True)
        if index in done or not missing:
            stack.pop()
            if index not in done:
                done.add(index)
                ordered.append(nodes[index])
            continue
        if index in opened:
            raise ExportFailed("the graph's nodes run in a circle")
        opened.add(index)
        stack += missing
    return ordered
