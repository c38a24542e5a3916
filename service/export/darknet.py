"""darknet's .cfg and .weights to ONNX: the sections that yolov3-tiny is made of, boxes decoded inside the graph.

    pixels  uint8 RGB [n, h, w, 3], h and w any multiples of the largest stride
    boxes   float32 [n, k, 4], x_min, y_min, x_max, y_max in pixels of the input, not clipped to it
    scores  float32 [n, k, classes], objectness times class probability, 0..1
k runs over the [yolo] heads in the cfg's order, in each over rows, columns and anchors.

References: Redmon and Farhadi 2018 (arXiv 1804.02767); darknet's src/parser.c for the files, src/yolo_layer.c for the boxes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from service.errors import ExportFailed
from service.export.graph import Graph, fold_batch_norm

T = TypeVar("T")
EPSILON = 1e-6
LEAKY_SLOPE = 0.1
BEYOND_BOX = 5  # numbers per anchor besides the classes: x, y, w, h, objectness

OPTIONS: dict[str, frozenset[str]] = {
    "convolutional": frozenset({"batch_normalize", "filters", "size", "stride", "pad", "activation"}),
    "maxpool": frozenset({"size", "stride"}),
    "upsample": frozenset({"stride"}),
    "route": frozenset({"layers"}),
    "yolo": frozenset({"mask", "anchors", "classes", "num", "jitter", "ignore_thresh", "truth_thresh", "random"}),
}
"""What each section may say: all options that change its arithmetic and are understood, and those for training only."""


@dataclass(frozen=True)
class Section:
    """One [name] block of a cfg. `line` is where it starts, from 1."""

    name: str
    line: int
    options: Mapping[str, str]

    def text(self, key: str, default: str | None = None) -> str:
        value = self.options.get(key, default)
        if value is None:
            raise ExportFailed(f"line {self.line}: [{self.name}] lacks {key}")
        return value

    def numbers(self, key: str, default: str | None = None, *, least: int = 0) -> list[int]:
        """Whole numbers separated by commas, none below `least`."""
        text = self.text(key, default)
        numbers = [int(part) for part in re.findall(r"-?\d+", text)]
        if not re.fullmatch(r"-?\d+(\s*,\s*-?\d+)*", text) or min(numbers) < least:
            raise ExportFailed(f"line {self.line}: [{self.name}] {key}={text} should be whole numbers of at least {least}")
        return numbers

    def number(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        numbers = self.numbers(key, None if default is None else str(default), least=least)
        if len(numbers) != 1:
            raise ExportFailed(f"line {self.line}: [{self.name}] {key} should be one number")
        return numbers[0]


def parse_cfg(text: str) -> list[Section]:
    """The sections in order, the first being [net]. Raises ExportFailed naming the line that is not understood.

    Sections and options that are not known are refused, since leaving one out would give another network.
    """
    sections: list[tuple[str, int, dict[str, str]]] = []
    for count, raw in enumerate(text.splitlines(), 1):
        line = re.split("[#;]", raw)[0].strip()
        if not line:
            continue
        if match := re.fullmatch(r"\[(\w+)\]", line):
            sections.append((match[1], count, {}))
            continue
        key, separator, value = (part.strip() for part in line.partition("="))
        if not separator or not sections:
            raise ExportFailed(f"line {count}: {line!r} is neither a [section] nor an option of one")
        name, _, options = sections[-1]
        if name in OPTIONS and key not in OPTIONS[name]:
            raise ExportFailed(f"line {count}: [{name}] {key} is not known; known are: {', '.join(sorted(OPTIONS[name]))}")
        options[key] = value
    if not sections or sections[0][0] not in {"net", "network"}:
        raise ExportFailed("the cfg does not start with [net]")
    for name, count, _ in sections[1:]:
        if name not in OPTIONS:
            raise ExportFailed(f"line {count}: the section [{name}] is not known; known are: {', '.join(sorted(OPTIONS))}")
    return [Section(*section) for section in sections]


class Weights:
    """The numbers of a .weights file, handed out in order.

    Layout: int32 major, minor, revision; images seen, as int64 from version 0.2 on, else int32; then float32.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < 16:
            raise ExportFailed("the weights end within their header")
        major, minor, _ = np.frombuffer(data, "<i4", 3).tolist()
        header = 20 if major * 10 + minor >= 2 else 16
        if (len(data) - header) % 4 or not 0 <= major < 1000:
            raise ExportFailed("the weights are not a darknet file, or cut short")
        self._numbers = np.frombuffer(data, "<f4", offset=header)
        self._used = 0

    def take(self, *shape: int) -> NDArray[np.float32]:
        """The next prod(shape) numbers. Raises ExportFailed when there are fewer."""
        start, self._used = self._used, self._used + int(np.prod(shape))
        if self._used > len(self._numbers):
            raise ExportFailed(f"the weights hold {len(self._numbers)} numbers, the cfg needs more; they do not belong together")
        return self._numbers[start : self._used].reshape(shape)

    def done(self) -> None:
        """Raises ExportFailed when numbers are left: a network was built that these weights were not trained in."""
        if self._used != len(self._numbers):
            raise ExportFailed(
                f"the weights hold {len(self._numbers)} numbers, the cfg uses {self._used}; they do not belong together"
            )


@dataclass(frozen=True)
class _Map:
    """What a layer gives: the tensor's name, its channels, and how many pixels of the input one cell spans per side."""

    name: str
    channels: int
    stride: int


def export(files: Mapping[str, Path]) -> dict[str, ModelProto]:
    """The recipe `darknet`: one .cfg and one .weights file to the graph "model". Raises ExportFailed naming the file."""
    return {"model": read(files, build)}


def read(files: Mapping[str, Path], make: Callable[[list[Section], Weights, str], T]) -> T:
    """make(sections, weights, name) of one .cfg and one .weights file. Raises ExportFailed naming them."""
    cfg, weights = (next((path for name, path in files.items() if name.endswith(end)), None) for end in (".cfg", ".weights"))
    if cfg is None or weights is None:
        raise ExportFailed(f"needs a .cfg and a .weights file, got: {', '.join(files) or 'none'}")
    try:
        return make(parse_cfg(cfg.read_text(encoding="utf-8")), Weights(weights.read_bytes()), cfg.stem)
    except (ExportFailed, OSError, UnicodeDecodeError) as error:
        raise ExportFailed(f"{cfg.name} with {weights.name}: {error}") from None


def build(sections: list[Section], weights: Weights, name: str = "darknet") -> ModelProto:
    """The graph of a parsed cfg. Raises ExportFailed where cfg and weights do not fit or something is out of reach here."""
    if sections[0].number("channels", 3) != 3:
        raise ExportFailed(f"line {sections[0].line}: [net] channels must be 3")
    graph = Graph(name)
    x = _Map(graph.pixels("h", "w", std=255.0), 3, 1)
    layers: list[_Map] = []
    heads: list[tuple[str, str]] = []
    classes = {section.number("classes") for section in sections if section.name == "yolo"}
    if len(classes) != 1:
        raise ExportFailed(f"the cfg needs [yolo] heads of one number of classes, it has {sorted(classes) or 'no heads'}")
    for index, section in enumerate(sections[1:]):
        match section.name:
            case "convolutional":
                x = _convolution(graph, section, weights, x)
            case "maxpool":
                x = _maxpool(graph, section, x)
            case "upsample":
                x = _upsample(graph, section, x)
            case "route":
                x = _route(graph, section, layers, index)
            case "yolo":
                heads.append(_decode(graph, section, x))
        layers.append(x)
    weights.done()
    for output, tensors, width in zip(("boxes", "scores"), zip(*heads, strict=True), (4, *classes), strict=True):
        graph.output(graph.node("Concat", *tensors, axis=1) if len(tensors) > 1 else tensors[0], output, ["n", "k", width])
    return graph.build()


def take_convolution(section: Section, weights: Weights, channels: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The next convolution's (kernels [out, channels, k, k], bias [out]), its batch norm folded in."""
    filters, size = section.number("filters"), section.number("size")
    beta = weights.take(filters)
    if not section.number("batch_normalize", 0, least=0):
        return weights.take(filters, channels, size, size), beta
    gamma, mean, variance = weights.take(3, filters)
    kernel = weights.take(filters, channels, size, size)
    return fold_batch_norm(kernel, gamma=gamma, beta=beta, mean=mean, variance=variance, epsilon=EPSILON)


def _convolution(graph: Graph, section: Section, weights: Weights, x: _Map) -> _Map:
    filters, size, stride = section.number("filters"), section.number("size"), section.number("stride", 1)
    kernel, bias = take_convolution(section, weights, x.channels)
    pads = (size // 2,) * 4 if section.number("pad", 0, least=0) else (0,) * 4
    y = graph.conv(x.name, kernel, bias, stride=stride, pads=pads)
    match section.text("activation", "logistic"):
        case "leaky":
            y = graph.node("LeakyRelu", y, alpha=LEAKY_SLOPE)
        case "linear":
            pass
        case other:
            raise ExportFailed(f"line {section.line}: [convolutional] activation={other} is not known; known are: leaky, linear")
    return _Map(y, filters, x.stride * stride)


def _maxpool(graph: Graph, section: Section, x: _Map) -> _Map:
    stride = section.number("stride", 1)
    size = section.number("size", stride)
    # darknet pads size - 1 in all, the smaller half first: a window of 2 reaches one cell right and down, never left or up
    before = (size - 1) // 2
    after = size - 1 - before
    y = graph.node("MaxPool", x.name, kernel_shape=[size, size], strides=[stride, stride], pads=[before, before, after, after])
    return _Map(y, x.channels, x.stride * stride)


def _upsample(graph: Graph, section: Section, x: _Map) -> _Map:
    stride = section.number("stride", 2)
    if x.stride % stride:
        raise ExportFailed(f"line {section.line}: [upsample] would give a map finer than the input")
    scales = graph.constant(np.array([1, 1, stride, stride], np.float32))
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _Map(graph.node("Resize", x.name, "", scales, **how), x.channels, x.stride // stride)


def _route(graph: Graph, section: Section, layers: list[_Map], index: int) -> _Map:
    wanted = [number + index if number < 0 else number for number in section.numbers("layers", least=-len(layers))]
    if not all(0 <= number < index for number in wanted):
        raise ExportFailed(f"line {section.line}: [route] layers={section.text('layers')} points outside the layers before it")
    maps = [layers[number] for number in wanted]
    if any(a.stride != b.stride for a, b in pairwise(maps)):
        raise ExportFailed(f"line {section.line}: [route] joins maps of different sizes")
    if len(maps) == 1:
        return maps[0]
    return _Map(graph.node("Concat", *(one.name for one in maps), axis=1), sum(one.channels for one in maps), maps[0].stride)


def _decode(graph: Graph, section: Section, x: _Map) -> tuple[str, str]:
    """Boxes [n, rows * columns * anchors, 4] and scores [n, the same, classes] of one [yolo] head.

    centre = (sigmoid(t) + cell) * stride, size = exp(t) * anchor, score = sigmoid(objectness) * sigmoid(class).
    """
    classes, mask = section.number("classes"), section.numbers("mask")
    sizes = np.array(section.numbers("anchors", least=1), np.float32).reshape(-1, 2)
    if max(mask) >= len(sizes) or x.channels != len(mask) * (classes + BEYOND_BOX):
        raise ExportFailed(f"line {section.line}: [yolo] has other classes or anchors than the {x.channels} filters before it hold")
    anchors = sizes[mask]
    t = graph.node("Transpose", x.name, perm=[0, 2, 3, 1])
    t = graph.node("Reshape", t, graph.constant(np.array([0, 0, 0, len(anchors), classes + BEYOND_BOX])))
    parts = graph.constant(np.array([2, 2, 1, classes]))
    xy, wh, objectness, probability = graph.nodes("Split", t, parts, outputs=4, axis=-1)
    cells = graph.node("Add", graph.node("Sigmoid", xy), _cells(graph, x.name))
    centre = graph.node("Mul", cells, graph.constant(np.float32(x.stride)))
    half = graph.node("Mul", graph.node("Exp", wh), graph.constant(anchors / 2))
    boxes = graph.node("Concat", graph.node("Sub", centre, half), graph.node("Add", centre, half), axis=-1)
    scores = graph.node("Mul", graph.node("Sigmoid", objectness), graph.node("Sigmoid", probability))
    flat = [graph.constant(np.array([0, -1, width])) for width in (4, classes)]
    return graph.node("Reshape", boxes, flat[0]), graph.node("Reshape", scores, flat[1])


def _cells(graph: Graph, x: str) -> str:
    """Column and row of every cell of map `x`, float32 [1, rows, columns, 1, 2], from its size at run time."""
    zero, one, shape = graph.constant(np.int64(0)), graph.constant(np.int64(1)), graph.node("Shape", x)
    axes = []
    for axis, view, place in ((3, (1, 1, -1, 1, 1), (1, 0)), (2, (1, -1, 1, 1, 1), (0, 1))):
        length = graph.node("Gather", shape, graph.constant(np.int64(axis)), axis=0)
        steps = graph.node("Cast", graph.node("Range", zero, length, one), to=TensorProto.FLOAT)
        steps = graph.node("Reshape", steps, graph.constant(np.array(view)))
        axes.append(graph.node("Mul", steps, graph.constant(np.array(place, np.float32))))
    return graph.node("Add", *axes)
