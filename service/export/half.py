"""A float32 graph in float16, for GPUs whose tensor cores are several times faster with it.

From the first layer to the last one values are float16. What comes before (pixels, mean, std) and after (box decoding, where an
exponential could overflow and 11 bits are too coarse for a pixel) stays float32, and so do the graph's inputs and outputs.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from service.errors import ExportFailed
from service.export.rewrite import constants, copy_node, copy_of, drop_unused, replace_nodes

Array = NDArray[Any]

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
BETWEEN = frozenset(
    {
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "Flatten",
        "GlobalAveragePool",
        "LeakyRelu",
        "MaxPool",
        "Mul",
        "PRelu",
        "Relu",
        "Reshape",
    }
    | {"Resize", "Sigmoid", "Sub", "Transpose"}
)
"""Operators that compute in float16 where they stand between layers."""
_FLOAT32_INPUTS = {"Resize": (1, 2)}
"""Positions of constants that stay float32 whatever the data is."""
_LARGEST = float(np.finfo(np.float16).max)


def to_half(model: ModelProto) -> ModelProto:
    """The graph with its layers in float16; inputs and outputs keep their names and types.

    Raises ExportFailed naming a weight that float16 cannot hold, or when the graph has no layer at all.
    """
    model = copy_of(model)
    known = constants(model)
    halved = _halved_nodes(model, known)
    if not halved:
        raise ExportFailed("the graph has no convolution or matrix product that could be computed in float16")
    made = {name for node in model.graph.node if node.output[0] in halved for name in node.output}
    writer = _Writer(model, known, made)
    for node in model.graph.node:
        writer.write(node, half=node.output[0] in halved)
    for value in model.graph.output:
        if value.name in made:
            writer.cast(f"{value.name}/half", value.name, TensorProto.FLOAT)
    replace_nodes(model, writer.nodes)
    del model.graph.value_info[:]
    model = drop_unused(model)
    checker.check_model(model, full_check=True)
    return model


def _halved_nodes(model: ModelProto, known: Mapping[str, Array]) -> set[str]:
    """First outputs of the layers, and of what lies between them: computed from a layer, and read by one in the end."""
    wanted: set[str] = set()  # tensors that a layer is computed from
    for node in reversed(model.graph.node):
        if node.op_type in LAYERS or (node.op_type in BETWEEN and not wanted.isdisjoint(node.output)):
            wanted.update(node.input)
    halved: set[str] = set()
    for node in model.graph.node:
        data = [name for name in node.input if name and name not in known]
        between = node.op_type in BETWEEN and not wanted.isdisjoint(node.output) and bool(data) and halved.issuperset(data)
        if node.op_type in LAYERS or between:
            halved.update(node.output)
    return halved


class _Writer:
    """Copies nodes; a tensor t made in float16 is called t/half, its float32 form t."""

    def __init__(self, model: ModelProto, known: dict[str, Array], made: Collection[str]) -> None:
        self.model, self.known, self.made = model, known, made
        self.outputs = {value.name for value in model.graph.output}
        self.nodes: list[NodeProto] = []
        self.there: set[str] = set()

    def write(self, node: NodeProto, *, half: bool) -> None:
        if not half:
            inputs = [self._as_float(name) if name in self.made else name for name in node.input]
            self.nodes.append(copy_node(node, inputs, node.output))
            return
        kept = _FLOAT32_INPUTS.get(node.op_type, ())
        inputs = [name if position in kept else self._as_half(name) for position, name in enumerate(node.input)]
        self.nodes.append(copy_node(node, inputs, [f"{name}/half" for name in node.output]))

    def cast(self, x: str, y: str, to: int) -> str:
        if y not in self.there:
            self.there.add(y)
            self.nodes.append(helper.make_node("Cast", [x], [y], y, to=to))
        return y

    def _as_float(self, name: str) -> str:
        return self.cast(f"{name}/half", name, TensorProto.FLOAT)

    def _as_half(self, name: str) -> str:
        if name in self.made or not name:
            return f"{name}/half" if name else ""
        value = self.known.get(name)
        if value is None:
            return self.cast(name, f"{name}/half", TensorProto.FLOAT16)
        if value.dtype != np.float32:
            return name
        if f"{name}/half" not in self.known:
            if value.size and not np.abs(value).max() <= _LARGEST:
                raise ExportFailed(f"the constant {name!r} reaches {np.abs(value).max():g}, more than float16 holds")
            self.known[f"{name}/half"] = value.astype(np.float16)
            self.model.graph.initializer.append(numpy_helper.from_array(self.known[f"{name}/half"], f"{name}/half"))
        return f"{name}/half"
