"""The convolutional parts of trained networks as graphs of features, for style transfer by optimisation; see service.export.gatys.

    "picture" float32 RGB [1, 3, h, w], 0..255 -> "features/<layer>" [1, c, h', w'] after each convolution's activation

Pooling is by averages, whatever the network was trained with: "replacing the max-pooling operation by average pooling improves the
gradient flow and one obtains slightly more appealing results" (Gatys, Ecker and Bethge 2015, section 2).

Recipes:
    vgg16-features    conv1_1 ... conv5_3 of VGG-16 (Simonyan and Zisserman 2014) from the Keras weights of an edge detector that
                      was trained from it (HED, Xie and Tu 2015)
    darknet-features  conv1 ... convN of a .cfg with its .weights, up to the first pooling that keeps the size
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from service.errors import ExportFailed
from service.export import gatys
from service.export.darknet import LEAKY_SLOPE, Section, Weights, read, take_convolution
from service.export.graph import Axis, Graph

VGG16 = (2, 2, 3, 3, 3)
"""Convolutions of each block; a pooling lies between two blocks."""
CAFFE_MEAN = (123.68, 116.779, 103.939)
"""Of ImageNet, RGB, 0..255: what the weights were trained on lacks it, in the order BGR."""


@dataclass(frozen=True)
class Layer:
    """A convolution that keeps the size, kernels [out, in, k, k] with k odd; `pooled` says that a 2 x 2 pooling lies before it."""

    name: str
    weight: NDArray[Any]
    bias: NDArray[Any]
    pooled: bool = False


def export_vgg16(files: Mapping[str, Path]) -> dict[str, ModelProto]:
    """The recipe `vgg16-features`. Raises ExportFailed where a weight is missing or has another shape."""
    path = next(iter(files.values()))
    features = build(read_vgg16(path), "vgg16", mean=CAFFE_MEAN)
    return gatys.export(features, ["conv4_2"], ["conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"])


def export_darknet(files: Mapping[str, Path]) -> dict[str, ModelProto]:
    """The recipe `darknet-features`. Raises ExportFailed naming the file."""
    features = build(read(files, take_layers), "darknet", std=255.0, slope=LEAKY_SLOPE)
    names = gatys.layers(features)
    return gatys.export(features, names[3:4], names[:5])


def read_vgg16(path: Path) -> list[Layer]:
    """VGG-16's thirteen convolutions for RGB from an HDF5 file of Keras: block<b>/layers/conv2d[_n]/vars/0 (HWIO, for BGR), 1."""
    import h5py

    layers: list[Layer] = []
    channels = 3
    with h5py.File(path, "r") as file:
        for block, count in enumerate(VGG16, 1):
            for index in range(count):
                name = f"block{block}/layers/conv2d{f'_{index}' if index else ''}/vars"
                try:
                    weight, bias = (np.asarray(file[f"{name}/{part}"], np.float32) for part in (0, 1))
                except KeyError:
                    raise ExportFailed(f"{path.name} has no {name}; this is not VGG-16 as Keras keeps it") from None
                if weight.shape != (3, 3, channels, len(bias)):
                    raise ExportFailed(f"{path.name}: {name} has the shape {weight.shape}, not (3, 3, {channels}, {len(bias)})")
                channels = len(bias)
                weight = weight.transpose(3, 2, 0, 1)
                weight = weight[:, ::-1] if not layers else weight
                layers.append(Layer(f"conv{block}_{index + 1}", weight, bias, pooled=block > 1 and index == 0))
    return layers


def take_layers(sections: Sequence[Section], weights: Weights, _name: str = "") -> list[Layer]:
    """The convolutions of a .cfg in a row, batch norms folded in, up to the first pooling that keeps the size, or anything else."""
    layers: list[Layer] = []
    pooled, channels = False, 3
    for section in sections[1:]:
        if section.name == "maxpool" and section.number("stride", 1) == 2 and not pooled:
            pooled = True
        elif section.name == "convolutional" and section.number("stride", 1) == 1 and section.text("activation") == "leaky":
            weight, bias = take_convolution(section, weights, channels)
            layers.append(Layer(f"conv{len(layers) + 1}", weight, bias, pooled))
            pooled, channels = False, len(bias)
        else:
            break
    return layers


def build(
    layers: Sequence[Layer], name: str, *, mean: Sequence[float] = (0, 0, 0), std: float = 1.0, slope: float = 0.0
) -> ModelProto:
    """The graph of the layers in a row on (picture - mean) / std; slope: of the activations below 0, none for ReLU."""
    graph = Graph(name)
    x = graph.input(gatys.PICTURE, [1, 3, "h", "w"])
    if any(mean):
        x = graph.node("Sub", x, graph.constant(np.array(mean, np.float32).reshape(1, 3, 1, 1)))
    if std != 1:
        x = graph.node("Mul", x, graph.constant(np.float32(1 / std)))
    step = 1
    for layer in layers:
        if layer.pooled:
            x = graph.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
            step *= 2
        x = graph.conv(x, layer.weight, layer.bias, pads=(layer.weight.shape[2] // 2,) * 4)
        x = graph.node("LeakyRelu", x, alpha=slope) if slope else graph.node("Relu", x)
        shape: list[Axis] = [1, len(layer.bias), *(side if step == 1 else f"{side}/{step}" for side in "hw")]
        graph.output(x, f"features/{layer.name}", shape)
    return graph.build()
