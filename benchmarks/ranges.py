"""Measure the ranges of a model's tensors on photos, for its int8 form, and store them beside its model.toml.

    python benchmarks/ranges.py MODEL FOLDER... [--every 2] [--method squares] [--says "100 photos of ..."]

Takes every photo below the folders (or each second, third, ...), prepares it as the model's task does (for an embedding model:
each face of it), and runs the float32 graph with all tensors that matter as outputs. Never take photos that accuracy is measured
on. Methods:
    squares     the range whose 255 steps give the least squared error, counted behind the activation that follows
    cubes       the same with cubes, which cut off less of the rare large values
    percentile  without the 0.01 % of values that lie furthest out on each side
    minmax      all values
The next start builds the model again with the new ranges.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from rich.console import Console
from rich.progress import track

from service import Engine
from service.export.quantize import measured_tensors, prepare, steps_of
from service.export.recipes import find_recipe
from service.export.rewrite import attribute
from service.repository.fetch import fetch_weights
from service.repository.progress import terminal_progress
from service.repository.spec import ModelSpec
from service.repository.store import build_folder, scan
from service.settings import Settings
from service.tasks import classify, detect, faces
from service.tasks.face_detector import find_faces
from service.tasks.task import Pixels, Timing

SCREEN = Console(stderr=True)
BINS = 4096
SMALLEST_FACE = 24  # pixels
POWERS = {"squares": 2, "cubes": 3}
Bend = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass
class Seen:
    """All values of one tensor: the lowest, the highest, and a histogram of even bins between them."""

    low: float = np.inf
    high: float = -np.inf
    counts: NDArray[np.int64] | None = None

    def widen(self, values: NDArray[np.float32]) -> None:
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def count(self, values: NDArray[np.float32]) -> None:
        found = np.histogram(values, BINS, (self.low, self.high))[0]
        self.counts = found if self.counts is None else self.counts + found


class Values(NamedTuple):
    """The middles of a histogram's bins, and how many values lie in each."""

    values: NDArray[np.float64]
    counts: NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--every", type=int, default=1, help="take each n-th photo only")
    parser.add_argument("--method", choices=[*POWERS, "percentile", "minmax"], default="squares")
    parser.add_argument("--says", help="what the file says about the photos")
    arguments = parser.parse_args()
    found = (path for folder in arguments.folders for path in sorted(folder.rglob("*")))
    paths = [path for path in found if path.suffix.lower() in {".jpg", ".jpeg", ".png"}][:: arguments.every]
    if not paths:
        sys.exit("the folders hold no .jpg, .jpeg or .png")
    settings = Settings.from_env()
    spec = scan(settings).get(arguments.model) or sys.exit(f"there is no model {arguments.model}")
    quantize = spec.quantize or sys.exit(f"{spec.name}'s model.toml has no [quantize]")
    graph = prepare(_export(spec, settings))
    inputs = list(track(_inputs(spec, paths), "prepare", len(paths), console=SCREEN, transient=True))
    seen = observe(graph, measured_tensors(graph, quantize.keep_float), inputs)
    bends = _bends(graph)
    ranges = {name: choose(values, arguments.method, bends.get(name)) for name, values in seen.items()}
    target = spec.folder / quantize.ranges
    _write(target, arguments.says or f"{len(paths)} photos, {len(inputs)} inputs", arguments.method, ranges)
    print(f"{target}: {len(ranges)} ranges by {arguments.method} on {len(inputs)} inputs from {len(paths)} photos")


def _export(spec: ModelSpec, settings: Settings) -> ModelProto:
    """The float32 graph, straight from its weights: with no ranges yet, there may be no build."""
    folder = build_folder(spec, settings)
    weights = fetch_weights(spec, folder, offline=settings.offline, progress=terminal_progress())
    return find_recipe(spec.export.recipe)(weights)["model"]


def _inputs(spec: ModelSpec, paths: Sequence[Path]) -> Iterator[Pixels]:
    """What the model is given for the photos, [h, w, 3] each."""
    with Engine(Settings(models=("yunet",), precision="float", tune=False)) as engine:
        for path in paths:
            pixels = engine.decode(path).pixels
            if spec.task == "classify":
                yield classify.prepare(pixels, spec)
            elif spec.task == "detect":
                yield detect.prepare(pixels, spec)[0]
            else:
                found = find_faces(pixels, 0.6, engine.load("yunet"), Timing())
                for box, landmarks in zip(found.boxes, found.landmarks, strict=True):
                    if min(box[2:] - box[:2]) >= SMALLEST_FACE:
                        yield faces.align(pixels, landmarks)


def observe(model: ModelProto, tensors: Sequence[str], inputs: Sequence[Pixels]) -> dict[str, Seen]:
    """What values `tensors` of the graph take on `inputs`: a first pass for the ends, a second for the histograms."""
    watched = ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = {name: Seen() for name in tensors}
    for see in (Seen.widen, Seen.count):
        for pixels in track(inputs, see.__name__, console=SCREEN, transient=True):
            for name, values in zip(tensors, session.run(list(tensors), {"pixels": pixels[None]}), strict=True):
                see(seen[name], values)
    return seen


def choose(seen: Seen, method: str, bend: Bend | None = None) -> tuple[float, float]:
    """The range of one tensor. `bend` is the activation that follows it."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    assert seen.counts is not None
    values = seen.low + (np.arange(BINS) + 0.5) * (seen.high - seen.low) / BINS
    if method == "percentile":
        share = np.cumsum(seen.counts) / seen.counts.sum()
        return min(float(values[np.searchsorted(share, 1e-4)]), 0.0), max(float(values[np.searchsorted(share, 1 - 1e-4)]), 0.0)
    if method == "minmax":
        return low, high
    there = seen.counts > 0
    return least_error(Values(values[there], seen.counts[there]), (low, high), bend or (lambda x: x), POWERS[method])


def least_error(values: Values, ends: tuple[float, float], bend: Bend, power: int) -> tuple[float, float]:
    """The range inside `ends` with the least sum of |error| ** power of bend(values), each end tried in turn at steps of 1 %."""
    wanted, (low, high) = bend(values.values), ends

    def error(ends: tuple[float, float]) -> float:
        scale, zero = steps_of("", *ends)
        steps = np.clip(np.rint(values.values / scale) + int(zero), 0, 255)
        return float((values.counts * np.abs(bend((steps - int(zero)) * float(scale)) - wanted) ** power).sum())

    best = (low, high)
    for _ in range(3):
        best = min((best, *((best[0], high * share) for share in np.linspace(0.05, 1, 96))), key=error)
        best = min((best, *((low * share, best[1]) for share in np.linspace(0, 1, 101))), key=error)
    return best


def _bends(model: ModelProto) -> dict[str, Bend]:
    """The LeakyRelu behind a tensor, with or without a MaxPool between, by the tensor's name."""
    bends: dict[str, Bend] = {}
    pooled = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "MaxPool"}
    for node in model.graph.node:
        if node.op_type == "LeakyRelu":
            slope, x = float(attribute(node, "alpha", 0.01)), node.input[0]
            bends[x] = bends[pooled.get(x, x)] = lambda v, slope=slope: np.where(v > 0, v, slope * v)
    return bends


def _write(path: Path, photos: str, method: str, ranges: dict[str, tuple[float, float]]) -> None:
    lines = [f'"{name}" = [{float(f"{low:.5g}")}, {float(f"{high:.5g}")}]' for name, (low, high) in ranges.items()]
    head = ["# Measured by benchmarks/ranges.py.", f'photos = "{photos}"', f'method = "{method}"', "", "[ranges]"]
    path.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
