"""EfficientNet-Lite0's state dict to ONNX. Input "pixels" uint8 RGB [n, 224, 224, 3], output "logits" float32 [n, 1000].

Inverted residual blocks without squeeze-and-excitation, ReLU6 throughout, TensorFlow's SAME padding (at stride 2 the odd
pixel of padding goes right and bottom). Reference: Tan and Le 2019 (arXiv 1905.11946); the Lite variant is described in
the tensorflow/tpu repository, models/official/efficientnet/lite.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from service.errors import ExportFailed
from service.export.class_maps import class_maps
from service.export.graph import Graph, fold_batch_norm
from service.export.torchfile import read_state_dict

SIZE = 224
MEAN, STD = 127.0, 128.0
EPSILON = 1e-3
STAGES = (  # blocks, kernel, stride of the first block, expansion, channels in, channels out
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000

Shape = tuple[int, ...]


class _Weights:
    """A state dict that hands out each tensor once, of the shape expected, and knows what nobody asked for."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._left = dict(tensors)

    def take(self, name: str, shape: Shape) -> NDArray[Any]:
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise ExportFailed(f"the weights lack {name}; this is not EfficientNet-Lite0")
        if tensor.shape != shape:
            raise ExportFailed(f"{name} is of shape {list(tensor.shape)}, EfficientNet-Lite0 has {list(shape)}")
        return tensor

    def conv(self, conv: str, norm: str, shape: Shape) -> tuple[NDArray[Any], NDArray[Any]]:
        """A convolution of `shape` with the batch norm behind it folded in: weight and bias."""
        self._left.pop(f"{norm}.num_batches_tracked", None)
        gamma, beta, mean, variance = (
            self.take(f"{norm}.{part}", shape[:1]) for part in ("weight", "bias", "running_mean", "running_var")
        )
        weight = self.take(f"{conv}.weight", shape)
        return fold_batch_norm(weight, gamma=gamma, beta=beta, mean=mean, variance=variance, epsilon=EPSILON)

    def done(self) -> None:
        if self._left:
            raise ExportFailed(f"the weights hold {', '.join(sorted(self._left)[:5])}, which EfficientNet-Lite0 does not have")


def export(files: Mapping[str, Path]) -> dict[str, ModelProto]:
    """The recipe `efficientnet-lite`: one .pth file in torch's legacy format to the graphs "model" and "maps".

    The padding that is fixed for 224 pixels is TensorFlow's for every side that is a multiple of 32: "maps" takes those.

    Raises ExportFailed where the file is not such a state dict.
    """
    (path,) = files.values()
    model = build(read_state_dict(path))
    return {"model": model, "maps": class_maps(model)}


def build(tensors: Mapping[str, NDArray[Any]]) -> ModelProto:
    """The graph from a state dict with the names that lukemelas/EfficientNet-PyTorch gave them. Raises ExportFailed."""
    weights, graph, side = _Weights(tensors), Graph("efficientnet-lite0"), SIZE
    x = graph.pixels(SIZE, SIZE, mean=MEAN, std=STD)
    pads, side = same_padding(side, 3, 2)
    x = _relu6(graph, graph.conv(x, *weights.conv("_conv_stem", "_bn0", (STEM, 3, 3, 3)), stride=2, pads=pads))
    block = 0
    for repeats, kernel, first_stride, expansion, first_channels, channels in STAGES:
        for repeat in range(repeats):
            stride, before = (first_stride, first_channels) if repeat == 0 else (1, channels)
            pads, side = same_padding(side, kernel, stride)
            prefix, inside, y = f"_blocks.{block}", before * expansion, x
            if expansion != 1:
                expand = weights.conv(f"{prefix}._expand_conv", f"{prefix}._bn0", (inside, before, 1, 1))
                y = _relu6(graph, graph.conv(y, *expand))
            depthwise = weights.conv(f"{prefix}._depthwise_conv", f"{prefix}._bn1", (inside, 1, kernel, kernel))
            y = _relu6(graph, graph.conv(y, *depthwise, stride=stride, pads=pads, groups=inside))
            y = graph.conv(y, *weights.conv(f"{prefix}._project_conv", f"{prefix}._bn2", (channels, inside, 1, 1)))
            x = graph.node("Add", y, x) if stride == 1 and before == channels else y
            block += 1
    x = _relu6(graph, graph.conv(x, *weights.conv("_conv_head", "_bn1", (HEAD, STAGES[-1][-1], 1, 1))))
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    weight, bias = weights.take("_fc.weight", (CLASSES, HEAD)), weights.take("_fc.bias", (CLASSES,))
    graph.output(graph.node("Gemm", x, graph.constant(weight), graph.constant(bias), transB=1), "logits", ["n", CLASSES])
    weights.done()
    return graph.build()


def same_padding(side: int, kernel: int, stride: int) -> tuple[tuple[int, int, int, int], int]:
    """TensorFlow's SAME padding of a square map: (top, left, bottom, right), and the side after the convolution."""
    after = -(-side // stride)
    total = max((after - 1) * stride + kernel - side, 0)
    before = total // 2
    return (before, before, total - before, total - before), after


def _relu6(graph: Graph, x: str) -> str:
    return graph.node("Clip", x, graph.constant(np.float32(0)), graph.constant(np.float32(6)))
