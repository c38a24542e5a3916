"""A small builder for ONNX graphs: a recipe adds nodes one after the other, weights become initialisers, names are made up."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper, shape_inference

OPSET = 18
IR_VERSION = 8

Axis = int | str | None
"""A fixed length, or the name of a free axis."""


class Graph:
    """Nodes, initialisers, inputs and outputs in the order in which they were added. All arithmetic is float32, NCHW."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []

    @classmethod
    def resumed(cls, model: ModelProto) -> Self:
        """A graph that build() gave, to be built on; its outputs are none any more, but tensors of their names."""
        graph = cls(model.graph.name)
        graph._nodes += model.graph.node
        graph._initializers += model.graph.initializer
        graph._inputs += model.graph.input
        return graph

    @property
    def made(self) -> tuple[NodeProto, ...]:
        """The nodes so far, each after those that it reads."""
        return tuple(self._nodes)

    def shapes(self) -> dict[str, tuple[Axis, ...]]:
        """The shapes of all tensors so far, as far as they can be told before a run; free axes of one name are of one length."""
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
        found = {item.name: tuple(item.dims) for item in self._initializers}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            if value.type.tensor_type.HasField("shape"):
                found[value.name] = tuple(_axis(dim) for dim in value.type.tensor_type.shape.dim)
        return found

    def value(self, name: str) -> NDArray[Any] | None:
        """The numbers of the initialiser called `name`; None where it is none."""
        return next((numpy_helper.to_array(item) for item in self._initializers if item.name == name), None)

    def pixels(self, height: Axis, width: Axis, *, mean: float = 0.0, std: float = 1.0) -> str:
        """The input "pixels", uint8 RGB [n, height, width, 3]; gives (pixels - mean) / std as float32 [n, 3, height, width]."""
        self._inputs.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", height, width, 3]))
        x = self.node("Cast", "pixels", to=TensorProto.FLOAT)
        x = self.node("Transpose", x, perm=[0, 3, 1, 2])
        if mean:
            x = self.node("Sub", x, self.constant(np.float32(mean)))
        return self.node("Mul", x, self.constant(np.float32(1 / std))) if std != 1 else x

    def input(self, name: str, shape: Sequence[Axis]) -> str:
        """A further float32 input; gives its name."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """An initialiser; 0-d values stay 0-d."""
        name = f"c{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output; gives that output's name."""
        return self.nodes(operator, *inputs, outputs=1, **attributes)[0]

    def nodes(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Append a node with several outputs; gives their names."""
        name = f"{operator.lower()}{len(self._nodes)}"
        names = [name] if outputs == 1 else [f"{name}.{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, name, **attributes))
        return names

    def conv(
        self,
        x: str,
        weight: NDArray[Any],
        bias: NDArray[Any],
        *,
        stride: int = 1,
        pads: Sequence[int] = (0, 0, 0, 0),
        groups: int = 1,
    ) -> str:
        """A convolution. weight: [out, in / groups, k, k]; bias: [out]; pads: top, left, bottom, right."""
        given = (self.constant(array.astype(np.float32)) for array in (weight, bias))
        return self.node("Conv", x, *given, kernel_shape=weight.shape[2:], strides=[stride, stride], pads=list(pads), group=groups)

    def output(self, x: str, name: str, shape: Sequence[Axis], dtype: int = TensorProto.FLOAT) -> None:
        """Expose `x` as the output `name`, of `x`'s type `dtype`."""
        self._nodes.append(helper.make_node("Identity", [x], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def expose(self, x: str, shape: Sequence[Axis]) -> None:
        """Have the tensor `x` as an output of its own name, in float32."""
        self._outputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, shape))

    def prune(self) -> None:
        """Drop the nodes and initialisers that no output is computed from."""
        read = {value.name for value in self._outputs}
        kept: list[NodeProto] = []
        for node in reversed(self._nodes):
            if not read.isdisjoint(node.output):
                kept.append(node)
                read.update(node.input)
        self._nodes = kept[::-1]
        self._initializers = [item for item in self._initializers if item.name in read]

    def build(self) -> ModelProto:
        """The model, checked with full shape inference. Raises onnx's errors where the graph is wrong."""
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="vision-service"
        )
        checker.check_model(model, full_check=True)
        return model


def _axis(dim: Any) -> Axis:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def fold_batch_norm(
    weight: NDArray[Any], *, gamma: NDArray[Any], beta: NDArray[Any], mean: NDArray[Any], variance: NDArray[Any], epsilon: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A convolution without bias and the batch norm after it, as one convolution: (weight [out, in, k, k], bias [out]).

    Computed in float64. Reference: Ioffe and Szegedy 2015, at inference.
    """
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    return weight * scale[:, None, None, None], beta - mean * scale
