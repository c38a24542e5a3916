"""A whole photo's windows in one fully convolutional pass, next to the same windows cropped and classified one by one.

    python benchmarks/sliding.py [--width 1536] [--height 1024] [--threads 1] [--json OUT]

Sermanet et al. 2013 (arXiv 1312.6229) share the work of windows that overlap. The network pads with zeros, so that a window that
is cropped alone sees zeros where the pass sees the photo around it. Hence three comparisons, each with its speed-up:

    alone             each window cropped and classified alone: the answers differ, and by how much is said
    with surroundings each cropped with all that its receptive field reaches: the same numbers but for rounding, at a high price
    without padding   a network of random weights of the same kind that does not pad, each window cropped alone: the same numbers
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from photos import jpeg

from service.export.class_maps import class_maps
from service.export.graph import Graph
from service.export.rewrite import attribute
from service.imaging.codec import decode
from service.repository.progress import terminal_progress
from service.repository.store import ensure, scan
from service.runtime.providers import CPU, Choice
from service.runtime.session import OrtSession, run_once
from service.settings import Settings
from service.tasks.activation import window_logits
from service.tasks.classify import softmax

SIZE, CELLS, STRIDE = 224, 7, 32
FEW = 24
"""Windows that are cropped with their surroundings: each costs as much as many alone."""

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float64]


@dataclass(frozen=True)
class Field:
    """Position i of a feature map depends on the pixels from i * stride + first to i * stride + last."""

    stride: int
    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1536, help="of the photo, a multiple of 32")
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    photo = decode(jpeg(arguments.width, arguments.height, 95))
    figures = {**real(photo, arguments.threads), "without padding": padding_free(photo, arguments.threads)}
    print(f"photo of {arguments.width} x {arguments.height}, threads in a run: {arguments.threads}")
    for name, found in figures.items():
        print(name)
        for key, value in found.items():
            print(f"  {key:<44}{value:.4g}" if isinstance(value, float) else f"  {key:<44}{value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def real(photo: Pixels, threads: int) -> dict[str, dict[str, Any]]:
    """EfficientNet-Lite0's windows alone and with their surroundings."""
    settings = Settings.from_env()
    built = ensure(scan(settings)["efficientnet-lite0"], settings, run_once, terminal_progress())
    one = OrtSession(built.graphs["model"], Choice(CPU), threads=threads)
    all_ = OrtSession(built.graphs["maps"], Choice(CPU), threads=threads, sizes="some")
    places = places_of(photo, SIZE, STRIDE)
    spent, logits = timed(lambda: at(sliding(all_, photo, CELLS), places))
    alone_spent, alone = timed(lambda: cropped(one, photo, places, SIZE, STRIDE))
    field = receptive_field(onnx.load(built.graphs["maps"]))
    few = places[:: max(1, len(places) // FEW)]
    wide_spent, wide = timed(lambda: surrounded(all_, photo, few, field, CELLS), rounds=1)
    same, sure = alone.argmax(1) == logits.argmax(1), np.array([softmax(row).max() for row in alone]) > 0.5
    shared = {"windows": len(places), "one pass, ms": spent * 1e3}
    return {
        "alone": shared
        | {
            "one by one, ms": alone_spent * 1e3,
            "times faster": alone_spent / spent,
            "same best class": float(same.mean()),
            "windows more than half sure alone": int(sure.sum()),
            "same best class, of those": float(same[sure].mean()) if sure.any() else float("nan"),
            "correlation of the logits": float(np.corrcoef(alone.ravel(), logits.ravel())[0, 1]),
            "mean difference of a logit": float(np.abs(alone - logits).mean()),
        },
        "with surroundings": {
            "receptive field, pixels": field.size,
            "windows": len(few),
            "one by one, ms a window": wide_spent / len(few) * 1e3,
            "times faster, all windows": wide_spent / len(few) * len(places) / spent,
            "largest difference of a logit": float(np.abs(wide - at(sliding(all_, photo, CELLS), few)).max()),
        },
    }


def padding_free(photo: Pixels, threads: int) -> dict[str, Any]:
    """The same for a network without padding, whose windows need no surroundings."""
    model = valid_network()
    maps = class_maps(model)
    field = receptive_field(maps)
    size = field.size + (CELLS - 1) * field.stride
    with TemporaryDirectory() as folder:
        for name, graph in (("model", model), ("maps", maps)):
            onnx.save(graph, Path(folder) / f"{name}.onnx")
        one, all_ = (
            OrtSession(Path(folder) / f"{name}.onnx", Choice(CPU), threads=threads, sizes="some") for name in ("model", "maps")
        )
    places = places_of(photo, size, field.stride)
    spent, logits = timed(lambda: at(sliding(all_, photo, CELLS), places))
    alone_spent, alone = timed(lambda: cropped(one, photo, places, size, field.stride), rounds=1)
    return {
        "window, pixels": size,
        "windows": len(places),
        "one pass, ms": spent * 1e3,
        "one by one, ms": alone_spent * 1e3,
        "times faster": alone_spent / spent,
        "largest difference of a logit": float(np.abs(alone - logits).max()),
        "spread of the logits": float(logits.std()),
    }


def places_of(photo: Pixels, size: int, stride: int) -> list[tuple[int, int]]:
    """Rows and columns of all windows, counted in strides."""
    rows, columns = ((side - size) // stride + 1 for side in photo.shape[:2])
    return [(row, column) for row in range(rows) for column in range(columns)]


def sliding(session: OrtSession, photo: Pixels, cells: int) -> Logits:
    """Logits of all windows by one pass: [classes, rows, columns]."""
    return window_logits(np.asarray(session.run({"pixels": photo[None]})["maps"][0], np.float32), cells)


def at(logits: Logits, places: list[tuple[int, int]]) -> Logits:
    """[windows, classes] of [classes, rows, columns]."""
    return np.stack([logits[:, row, column] for row, column in places])


def cropped(session: OrtSession, photo: Pixels, places: list[tuple[int, int]], size: int, stride: int) -> Logits:
    """Logits [windows, classes] of each window cropped and classified alone."""
    crops = (photo[r * stride : r * stride + size, c * stride : c * stride + size] for r, c in places)
    return np.stack([session.run({"pixels": np.ascontiguousarray(crop)[None]})["logits"][0].astype(np.float64) for crop in crops])


def surrounded(session: OrtSession, photo: Pixels, places: list[tuple[int, int]], field: Field, cells: int) -> Logits:
    """Logits [windows, classes] of each window cropped with all that its receptive field reaches, as far as there is photo."""
    before = -(field.first // field.stride)  # in strides, rounded up: the crop must begin where the pass has a position
    after = -(-(field.last + 1) // field.stride)
    found = []
    for place in places:
        low = [max(0, at - before) for at in place]
        high = [min(side // field.stride, at + cells - 1 + after) for at, side in zip(place, photo.shape[:2], strict=True)]
        top, left, bottom, right = (edge * field.stride for edge in (*low, *high))
        logits = sliding(session, np.ascontiguousarray(photo[top:bottom, left:right]), cells)
        found.append(logits[:, place[0] - low[0], place[1] - low[1]])
    return np.stack(found)


def receptive_field(model: ModelProto) -> Field:
    """That of the output "maps", along the height, from the graph's convolutions and their padding.

    Each pixel or position x of a layer's input has a place; a convolution of kernel k, stride s and padding p in front looks from
    s * i - p to s * i - p + k - 1.
    """
    fields = {"pixels": Field(1, 0, 0)}
    for node in model.graph.node:
        found = [fields[name] for name in node.input if name in fields]
        if not found or node.output[0] in fields:
            continue
        here = Field(found[0].stride, min(f.first for f in found), max(f.last for f in found))
        if node.op_type == "Conv":
            kernel, stride = attribute(node, "kernel_shape")[0], (attribute(node, "strides") or [1])[0]
            pad = (attribute(node, "pads") or [0])[0]
            here = Field(here.stride * stride, here.first - pad * here.stride, here.last + (kernel - 1 - pad) * here.stride)
        fields[node.output[0]] = here
    return fields["maps"]


def valid_network(seed: int = 0, classes: int = 100) -> ModelProto:
    """Inverted bottlenecks with depthwise convolutions and ReLU6 at random weights, four at stride 2, none padded."""
    random, graph = np.random.default_rng(seed), Graph("padding-free")

    def conv(x: str, inside: int, outside: int, kernel: int, *, stride: int = 1, groups: int = 1, bend: bool = True) -> str:
        fan = inside // groups * kernel * kernel
        weight = random.normal(0, np.sqrt(2 / fan), (outside, inside // groups, kernel, kernel))
        x = graph.conv(x, weight, random.normal(0, 0.1, outside), stride=stride, groups=groups)
        return graph.node("Clip", x, graph.constant(np.float32(0)), graph.constant(np.float32(6))) if bend else x

    x = conv(graph.pixels(None, None, mean=127, std=128), 3, 16, 3, stride=2)
    before = 16
    for after, stride in ((24, 2), (24, 1), (40, 2), (80, 2), (80, 1)):
        x = conv(x, before, 4 * before, 1)
        x = conv(x, 4 * before, 4 * before, 3, stride=stride, groups=4 * before)
        x = conv(x, 4 * before, after, 1, bend=False)
        before = after
    x = graph.node("Flatten", graph.node("GlobalAveragePool", conv(x, before, 320, 1)))
    weight, bias = (graph.constant(random.normal(0, 0.1, shape).astype(np.float32)) for shape in ((classes, 320), (classes,)))
    graph.output(graph.node("Gemm", x, weight, bias, transB=1), "logits", ["n", classes])
    return graph.build()


def timed(work: Callable[[], Logits], rounds: int = 3) -> tuple[float, Logits]:
    """The median of `rounds` in seconds, after one that is not counted where there are several, and what came out."""
    spent, found = [], work() if rounds > 1 else None
    for _ in range(rounds):
        start = time.perf_counter()
        found = work()
        spent.append(time.perf_counter() - start)
    assert found is not None
    return float(np.median(spent)), found


if __name__ == "__main__":
    main()
