"""Static quantisation of a float32 graph to 8 bits, as QuantizeLinear/DequantizeLinear pairs around its operators.

Activations are uint8, one scale and zero point a tensor, from ranges that were measured beforehand; weights are int8, symmetric,
one scale an output channel; biases are int32 in steps of activation times weight, which is what their sums are counted in. The
pairs stand where onnxruntime's CPU kernels fuse them: a convolution reads uint8 and writes uint8.

Reference: Jacob and others 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference
(arXiv 1712.05877).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, checker, helper, numpy_helper

from service.errors import ExportFailed
from service.export.quantize_plan import WEIGHTED, Plan, Steps, make_plan, prepare
from service.export.rewrite import constants, copy_node, copy_of, drop_unused, replace_nodes

__all__ = ["Ranges", "measured_tensors", "prepare", "quantize", "quantize_weight", "steps_of"]

Array = NDArray[Any]
Ranges = Mapping[str, tuple[float, float]]
"""The lowest and the highest value of each tensor that matters, by the tensor's name."""

LARGEST_WEIGHT = 127
_LARGEST_BIAS = 2.0**31 - 256


class _Quantized(NamedTuple):
    """values * scale, with one scale for each index of the first axis."""

    values: Array
    scale: NDArray[np.float32]


def measured_tensors(model: ModelProto, keep_float: Collection[str] = ()) -> list[str]:
    """The tensors of the prepared graph `model` whose ranges `quantize` needs, in the graph's order."""
    return make_plan(model, keep_float).needed


def quantize(model: ModelProto, ranges: Ranges, keep_float: Collection[str] = ()) -> ModelProto:
    """The graph in 8 bits; its inputs and outputs keep their names and types.

    ranges: of exactly the tensors that `measured_tensors` names for the prepared graph. keep_float: tensors that stay float32, and
    so does what is computed from them up to the next convolution. Raises ExportFailed naming the tensor whose range is missing,
    meaningless, or of no use here.
    """
    model = prepare(model)
    plan = make_plan(model, keep_float)
    for name in plan.needed:
        if name not in ranges:
            raise ExportFailed(f"the ranges lack the tensor {name!r}; measure them again")
    for name in ranges:
        if name not in plan.needed:
            raise ExportFailed(f"the ranges name {name!r}, which this graph does not quantise; measure them again")
    return _Writer(model, plan, {name: steps_of(name, *ranges[name]) for name in plan.needed}).write()


def steps_of(name: str, low: float, high: float) -> Steps:
    """255 even steps from `low` to `high`, moved so that one of them is exactly 0, which padding and Relu need.

    Raises ExportFailed naming the tensor `name` when the range is empty or not finite.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if not np.isfinite([low, high]).all() or low == high:
        raise ExportFailed(f"the range of {name!r} is {low:g} to {high:g}; it must be finite and hold more than 0")
    scale = np.float32((high - low) / 255)
    return Steps(scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255)))


def quantize_weight(weight: Array, least: Array | float = 0.0) -> _Quantized:
    """`weight` [out, ...] as int8, so that the largest of each output becomes 127; no scale is smaller than `least`."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1, initial=0)
    scale = np.maximum(largest / LARGEST_WEIGHT, least)
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    values = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return _Quantized(np.clip(values, -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8), scale)


class _Writer:
    """Writes the planned graph. A quantised tensor t is found three times in it: as t, what its operator gives in float32 on paper;
    as t/quantised; and as t/dequantised, which is what its readers read."""

    def __init__(self, model: ModelProto, plan: Plan, steps: dict[str, Steps]) -> None:
        self.model, self.plan, self.steps = copy_of(model), plan, steps
        self.known = constants(model)
        self.nodes: list[NodeProto] = []
        self.read: dict[str, str] = {}

    def write(self) -> ModelProto:
        if self.plan.entrance:
            self._enter()
        for value in self.model.graph.input:
            if value.name in self.plan.source:
                self._quantise(value.name)
        for node in self.model.graph.node:
            if node.output[0] not in self.plan.dropped:
                self._write_node(node)
        replace_nodes(self.model, self.nodes)
        del self.model.graph.value_info[:]
        model = drop_unused(self.model)
        checker.check_model(model, full_check=True)
        return model

    def _write_node(self, node: NodeProto) -> None:
        outputs = [self.plan.absorbed.get(node.output[0], node.output[0]), *node.output[1:]]
        inputs = [self.read.get(name, name) for name in node.input]
        if node.output[0] in self.plan.quantised:
            written = self._eight_bit(node, inputs, outputs)
        else:
            written = copy_node(node, inputs, outputs)
        self.nodes.append(written)
        for name in outputs:
            if name in self.plan.source:
                self._quantise(name)

    def _eight_bit(self, node: NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> NodeProto:
        """The node whose 8-bit kernel does what `node` does."""
        out = node.output[0]
        if node.op_type in WEIGHTED:
            weight = self.known[node.input[1]].astype(np.float64)
            bias = self.known[node.input[2]].astype(np.float64) if len(node.input) > 2 else np.zeros(len(weight))
            return copy_node(node, [inputs[0], *self._weigh(node, weight, bias)], outputs)
        if node.op_type == "Mul":  # by one number a channel: a depthwise convolution of one pixel
            x, factor = node.input if node.input[1] in self.known else reversed(node.input)
            weight = self.known[factor].astype(np.float64).reshape(-1, 1, 1, 1)
            given = [self.read[x], *self._weigh(node, weight, np.zeros(len(weight)), x)]
            return helper.make_node("Conv", given, outputs, out, kernel_shape=[1, 1], group=len(weight))
        if node.op_type == "Relu":  # for which there is no kernel of its own
            return helper.make_node("LeakyRelu", inputs, outputs, out, alpha=0.0)
        return copy_node(node, inputs, outputs)

    def _enter(self) -> None:
        """Pixels as they are: their scale and zero point say what mean and std said."""
        entrance = self.plan.entrance
        assert entrance is not None
        self.steps[entrance.output] = entrance.steps
        x = f"{entrance.output}/quantised"
        self.nodes.append(helper.make_node("Transpose", [entrance.pixels], [x], x, perm=[0, 3, 1, 2]))
        self._dequantise(entrance.output)

    def _quantise(self, name: str) -> None:
        x = f"{name}/quantised"
        self.nodes.append(helper.make_node("QuantizeLinear", [name, *self._steps(name)], [x], x))
        self._dequantise(name)

    def _dequantise(self, name: str) -> None:
        self.read[name] = f"{name}/dequantised"
        given = [f"{name}/quantised", *self._steps(name)]
        self.nodes.append(helper.make_node("DequantizeLinear", given, [self.read[name]], self.read[name]))

    def _steps(self, name: str) -> list[str]:
        """Names of a tensor's scale and zero point."""
        source = self.plan.source[name]
        scale, zero = self.steps[source]
        return [self._constant(f"{source}/scale", scale), self._constant(f"{source}/zero", zero)]

    def _weigh(self, node: NodeProto, weight: Array, bias: Array, x: str | None = None) -> list[str]:
        """Names of weight [out, ...] and bias [out] behind a DequantizeLinear each, for the quantised input `x` of `node`."""
        source = self.plan.source[x or node.input[0]]
        if self.plan.entrance and source == self.plan.entrance.output:
            bias = bias + self.plan.entrance.rest * weight.reshape(len(weight), -1).sum(axis=1)
        step = float(self.steps[source].scale)
        values, scale = quantize_weight(weight, np.abs(bias) / step / _LARGEST_BIAS)
        bias_scale = (scale * step).astype(np.float32)
        whole = _Quantized(np.rint(bias / bias_scale).astype(np.int32), bias_scale)
        name = node.output[0]
        return [self._constant_pair(f"{name}/weight", _Quantized(values, scale)), self._constant_pair(f"{name}/bias", whole)]

    def _constant_pair(self, name: str, pair: _Quantized) -> str:
        zero = np.zeros(len(pair.scale), pair.values.dtype)
        parts = {name: pair.values, f"{name}/scale": pair.scale, f"{name}/zero": zero}
        given = [self._constant(*part) for part in parts.items()]
        self.nodes.append(helper.make_node("DequantizeLinear", given, [f"{name}/dequantised"], f"{name}/dequantised", axis=0))
        return f"{name}/dequantised"

    def _constant(self, name: str, value: Array | np.generic) -> str:
        if name not in self.known:
            self.known[name] = np.array(value, order="C")
            self.model.graph.initializer.append(numpy_helper.from_array(self.known[name], name))
        return name
