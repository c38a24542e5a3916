"""The network that both style models share, written as ONNX from its weights, with instance norm's statistics laid open.

contract (3 convolutions, two of stride 2) -> residual blocks -> expand (3 convolutions, two after nearest x2) -> sigmoid
Every convolution is padded by reflection. A layer's norm takes each channel's mean and variance over the whole picture away and
puts a scale and a shift in their place that are affine functions of the style vector: conditional instance norm.

Two graphs come out, with the inputs "pixels" uint8 RGB [n, h, w, 3] (sides multiples of 4) and "style" float32 [n, s]:
    model   measures each picture's own statistics; outputs "painted" uint8 RGB [n, h, w, 3] and "statistics" float32
            [n, 2, c], the means and variances of all c normalised channels in the order of the layers
    tile    takes "statistics" as an input instead, so that parts of a picture come out as they do in the whole

References: Dumoulin, Shlens and Kudlur 2017, A Learned Representation for Artistic Style; Ghiasi, Lee, Kudlur, Dumoulin and
Shlens 2017, Exploring the Structure of a Real-time, Arbitrary Neural Artistic Stylization Network.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from service.export.graph import Graph

EPSILON = 1e-5
AREA = np.array([2, 3])

Array = NDArray[Any]


@dataclass(frozen=True)
class Affine:
    """style [n, s] -> style @ weight [s, c] + bias [c]."""

    weight: Array
    bias: Array


@dataclass(frozen=True)
class Layer:
    """One convolution, weight [out, in, k, k], bias [out]; `scale` and `shift` (both or none) make its norm."""

    weight: Array
    bias: Array
    stride: int = 1
    upsample: bool = False
    scale: Affine | None = None
    shift: Affine | None = None


@dataclass(frozen=True)
class Painter:
    """All layers in running order. ReLU follows each but the second of a residual block and the last of all."""

    contract: Sequence[Layer]
    residual: Sequence[tuple[Layer, Layer]]
    expand: Sequence[Layer]

    def layers(self) -> Iterator[Layer]:
        yield from self.contract
        for first, second in self.residual:
            yield from (first, second)
        yield from self.expand

    def export(self) -> dict[str, ModelProto]:
        """The graphs "model" and "tile"."""
        return {"model": _Writer(self, frozen=False).write("model"), "tile": _Writer(self, frozen=True).write("tile")}


class _Writer:
    """Writes one of the two graphs. frozen: statistics come from outside."""

    def __init__(self, painter: Painter, *, frozen: bool) -> None:
        self.painter, self.frozen = painter, frozen
        self.measured: list[tuple[str, str]] = []
        normed = [(layer.scale, layer.shift) for layer in painter.layers() if layer.scale and layer.shift]
        self.sizes = [len(scale.bias) for scale, _ in normed]
        self.scales = _joined([scale for scale, _ in normed])
        self.shifts = _joined([shift for _, shift in normed])

    def write(self, name: str) -> ModelProto:
        graph = self.graph = Graph(name)
        x = graph.pixels("h", "w", std=255)
        self.norms = self._norms()
        for layer in self.painter.contract:
            x = graph.node("Relu", self._layer(x, layer))
        for first, second in self.painter.residual:
            x = graph.node("Add", x, self._layer(graph.node("Relu", self._layer(x, first)), second))
        *inner, last = self.painter.expand
        for layer in inner:
            x = graph.node("Relu", self._layer(x, layer))
        x = graph.node("Sigmoid", self._layer(x, last))
        x = graph.node("Mul", x, graph.constant(np.float32(255)))
        x = graph.node("Add", x, graph.constant(np.float32(0.5)))  # the cast truncates
        x = graph.node("Cast", graph.node("Transpose", x, perm=[0, 2, 3, 1]), to=TensorProto.UINT8)
        graph.output(x, "painted", ["n", "h", "w", 3], TensorProto.UINT8)
        if not self.frozen:
            graph.output(self._statistics(), "statistics", ["n", 2, sum(self.sizes)])
        return graph.build()

    def _norms(self) -> Iterator[tuple[str, str]]:
        """Each norm's scale and shift, [n, c, 1, 1]; of a frozen one with the statistics worked in."""
        graph = self.graph
        style = graph.input("style", ["n", len(self.scales.weight)])
        scale, shift = (
            graph.node("Gemm", style, graph.constant(affine.weight), graph.constant(affine.bias))
            for affine in (self.scales, self.shifts)
        )
        if self.frozen:
            statistics = graph.input("statistics", ["n", 2, sum(self.sizes)])
            mean, variance = (
                graph.node("Squeeze", part, graph.constant(np.array([1])))
                for part in graph.nodes("Split", statistics, outputs=2, axis=1, num_outputs=2)
            )
            scale = graph.node("Div", scale, self._deviation(variance))
            shift = graph.node("Sub", shift, graph.node("Mul", mean, scale))
        sizes, area = graph.constant(np.array(self.sizes)), graph.constant(AREA)
        split = (graph.nodes("Split", x, sizes, outputs=len(self.sizes), axis=1) for x in (scale, shift))
        pairs = zip(*([graph.node("Unsqueeze", part, area) for part in parts] for parts in split), strict=True)
        return iter(list(pairs))

    def _layer(self, x: str, layer: Layer) -> str:
        """Everything of a layer but its activation."""
        graph, half = self.graph, layer.weight.shape[2] // 2
        if layer.upsample:
            sizes = graph.constant(np.array([1, 1, 2, 2], np.float32))
            how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            x = graph.node("Resize", x, "", sizes, **how)
        x = graph.node("Pad", x, graph.constant(np.array([0, 0, half, half, 0, 0, half, half])), mode="reflect")
        x = graph.conv(x, layer.weight, layer.bias, stride=layer.stride)
        return self._norm(x) if layer.scale else x

    def _norm(self, x: str) -> str:
        graph = self.graph
        scale, shift = next(self.norms)
        if not self.frozen:
            area = graph.constant(AREA)
            mean = graph.node("ReduceMean", x, area, keepdims=1)
            x = graph.node("Sub", x, mean)
            variance = graph.node("ReduceMean", graph.node("Mul", x, x), area, keepdims=1)
            scale = graph.node("Div", scale, self._deviation(variance))
            self.measured.append((mean, variance))
        return graph.node("Add", graph.node("Mul", x, scale), shift)

    def _deviation(self, variance: str) -> str:
        return self.graph.node("Sqrt", self.graph.node("Add", variance, self.graph.constant(np.float32(EPSILON))))

    def _statistics(self) -> str:
        graph, shape = self.graph, self.graph.constant(np.array([0, 1, -1]))
        parts = [graph.node("Reshape", graph.node("Concat", *kind, axis=1), shape) for kind in zip(*self.measured, strict=True)]
        return graph.node("Concat", *parts, axis=1)


def _joined(affines: Sequence[Affine]) -> Affine:
    return Affine(np.concatenate([a.weight for a in affines], axis=1), np.concatenate([a.bias for a in affines]))
