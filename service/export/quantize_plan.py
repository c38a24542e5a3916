"""Which tensors and nodes of a graph compute in 8 bits, and in whose steps: what service.export.quantize then writes.

Three things cost no accuracy and save work: pixels go into the first layer as they are, a Clip or Relu behind a convolution is
nothing but the range of its output, and pooling goes before bending.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from service.export.rewrite import attribute, constants, copy_node, copy_of

Array = NDArray[Any]

WEIGHTED = frozenset({"Conv", "Gemm"})
MEASURED = frozenset({"Add", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Relu"})
"""Operators that compute in uint8 and whose output has steps of its own."""
CARRIED = frozenset({"Flatten", "MaxPool", "Reshape", "Resize", "Transpose"})
"""Operators that move values or pick among them: the output keeps the input's steps."""


class Steps(NamedTuple):
    """The uint8 value q of a tensor stands for (q - zero) * scale."""

    scale: np.float32
    zero: np.uint8


class Entrance(NamedTuple):
    """The chain of `nodes` from uint8 `pixels` [n, h, w, 3] to the float32 tensor `output` [n, 3, h, w], which is
    (pixels - steps.zero) * steps.scale + rest; the rest is what is left where the mean is not a whole number."""

    pixels: str
    output: str
    nodes: frozenset[str]
    steps: Steps
    rest: float


@dataclass
class Plan:
    """What becomes of each tensor and node; a node goes by the name of its first output.

    source: for each quantised tensor the one in whose steps it is counted. quantised: nodes that compute in 8 bits. absorbed: the
    clamp that such a node's range stands for. needed: tensors whose ranges must be known, in the graph's order.
    """

    entrance: Entrance | None
    source: dict[str, str] = field(default_factory=dict)
    quantised: set[str] = field(default_factory=set)
    absorbed: dict[str, str] = field(default_factory=dict)
    needed: list[str] = field(default_factory=list)

    @property
    def dropped(self) -> set[str]:
        """Nodes that the quantised graph does without."""
        return set(self.absorbed.values()) | (set(self.entrance.nodes) if self.entrance else set())

    def measure(self, tensor: str) -> None:
        if tensor not in self.source:
            self.source[tensor] = tensor
            self.needed.append(tensor)


def prepare(model: ModelProto) -> ModelProto:
    """The same arithmetic in float32, in the order in which it is quantised: the graph to measure ranges on.

    MaxPool(LeakyRelu(x)) becomes LeakyRelu(MaxPool(x)): equal where the slope is not negative, with fewer values to bend. It also
    keeps onnxruntime from moving a QuantizeLinear in front of a pooling in float32, which then runs ten times slower.
    """
    model = copy_of(model)
    readers, producers = _readers(model), {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        bend = producers.get(node.input[0]) if node.op_type == "MaxPool" else None
        if bend is None or bend.op_type != "LeakyRelu" or len(readers[bend.output[0]]) != 1:
            continue
        slope = attribute(bend, "alpha", 0.01)
        if slope >= 0:
            x, pooled = bend.input[0], f"{bend.input[0]}/pooled"
            bend.CopyFrom(copy_node(node, [x], [pooled]))
            node.CopyFrom(helper.make_node("LeakyRelu", [pooled], node.output, node.output[0], alpha=slope))
    return model


def make_plan(model: ModelProto, keep_float: Collection[str]) -> Plan:
    """Plan the prepared graph `model`. Tensors in `keep_float` are computed in float32.

    Convolutions and Gemms quantise what they read; the others join in where all that they read is quantised already.
    """
    known, readers = constants(model), _readers(model)
    plan = Plan(_find_entrance(model, known, keep_float))
    if plan.entrance:
        plan.source[plan.entrance.output] = plan.entrance.output
    for node in model.graph.node:
        out = node.output[0]
        data = [name for name in node.input if name and name not in known]
        if out in keep_float or out in plan.dropped or not data or not _has_kernel(node, known):
            continue
        if node.op_type in WEIGHTED and data == [node.input[0]]:
            plan.measure(data[0])
        elif node.op_type not in MEASURED | CARRIED or not all(name in plan.source for name in data):
            continue
        plan.quantised.add(out)
        if node.op_type in CARRIED:
            plan.source[out] = plan.source[data[0]]
        elif node.op_type != "Gemm":  # whose kernel writes float32 just as well
            clamp = _clamp_behind(readers[out], known)
            if clamp is not None and clamp not in keep_float:
                plan.absorbed[out] = clamp
            plan.measure(plan.absorbed.get(out, out))
    return plan


def _has_kernel(node: NodeProto, known: Mapping[str, Array]) -> bool:
    """Whether the 8-bit kernel for this operator computes all that this node asks for."""
    fixed = [known[name] for name in node.input if name in known]
    match node.op_type:
        case "Gemm":
            return bool(attribute(node, "transB", 0)) and all(attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
        case "Resize":
            return bool(attribute(node, "mode", b"nearest") == b"nearest")
        case "Mul":
            return len(fixed) == 1 and fixed[0].ndim in (3, 4) and fixed[0].size == fixed[0].shape[-3] > 1
        case "Add" | "Concat":
            return not fixed
    return True


def _clamp_behind(readers: Sequence[NodeProto | None], known: Mapping[str, Array]) -> str | None:
    """The output of the only reader, where all it does is to cut off values on both sides of 0, as a range does too."""
    node = readers[0] if len(readers) == 1 else None
    if node is None or node.op_type not in ("Clip", "Relu"):
        return None
    bounds = [known[name] for name in node.input[1:] if name in known]
    return node.output[0] if node.op_type == "Relu" or (len(bounds) == 2 and bounds[0] <= 0 <= bounds[1]) else None


def _find_entrance(model: ModelProto, known: Mapping[str, Array], keep_float: Collection[str]) -> Entrance | None:
    """The Cast, the Transpose and any Sub and Mul by one number behind a uint8 input; None where the graph starts otherwise, or
    its first layer stays float32 (which the runtime would quantise on its own, and worse, if it read a DequantizeLinear)."""
    readers = _readers(model)
    for value in model.graph.input:
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        x, nodes, scale, offset, moved = value.name, list[str](), 1.0, 0.0, False
        while (node := _only(readers[x])) is not None:
            number = float(known[node.input[1]].item()) if len(node.input) == 2 and _is_one(known.get(node.input[1])) else None
            if node.op_type == "Transpose" and list(attribute(node, "perm")) == [0, 3, 1, 2]:
                moved = True
            elif node.op_type == "Sub" and number is not None:
                offset -= number
            elif node.op_type == "Mul" and number is not None:
                scale, offset = scale * number, offset * number
            elif node.op_type != "Cast":
                break
            nodes.append(node.output[0])
            x = node.output[0]
        zero = -offset / scale
        whole = np.rint(zero)
        read = all(node is not None and node.op_type in WEIGHTED and node.output[0] not in keep_float for node in readers[x])
        if moved and read and scale > 0 and 0 <= whole <= 255:
            steps = Steps(np.float32(scale), np.uint8(whole))
            return Entrance(value.name, x, frozenset(nodes), steps, float(whole - zero) * scale)
    return None


def _only(readers: Sequence[NodeProto | None]) -> NodeProto | None:
    return readers[0] if len(readers) == 1 else None


def _is_one(value: Array | None) -> bool:
    return value is not None and value.size == 1


def _readers(model: ModelProto) -> dict[str, list[NodeProto | None]]:
    """The nodes that read each tensor; None stands for the graph's output."""
    readers: dict[str, list[NodeProto | None]] = {value.name: [] for value in model.graph.input}
    for node in model.graph.node:
        readers.update({name: [] for name in node.output})
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for value in model.graph.output:
        readers[value.name].append(None)
    return readers
