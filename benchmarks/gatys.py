"""What painting by optimisation costs: seconds an iteration next to the forward pass alone, memory, and whether the loss ever rose.

    python benchmarks/gatys.py [--rounds 5] [--iterations 8]

For each backbone and size, in a process of its own: the median time of the backbone's forward pass up to its deepest default layer;
of one run that gives the losses and the gradient, in turns with it; their ratio, and the same in processor time, which other
work on the machine disturbs less; of an iteration of L-BFGS with all that belongs to it; the largest resident memory that the
process had; and how often a total loss was above the one before.

Paints scikit-learn's palace in the style of scikit-image's coffee cup, on all cores. Bars: a gradient takes at most 3.5 times the
forward pass, and no loss rises.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import skimage
import sklearn.datasets
from PIL import Image

from service.engine import Engine
from service.export.graph import Graph
from service.loaded import LoadedModel
from service.settings import Settings
from service.tasks.optimize import to_picture
from service.tasks.task import Timing

STYLE = Path(skimage.__file__).parent / "data" / "coffee.png"
BACKBONES, SIDES, BAR = ("vgg16-hed", "yolov3-tiny-features"), (256, 512), 3.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "SIDE"), help="only this one, in this process")
    arguments = parser.parse_args()
    if arguments.only:
        name, side = arguments.only
        print(json.dumps(measure(name, int(side), arguments.rounds, arguments.iterations)))
        return
    print(
        "backbone               pixels     forward, s  gradient, s   ratio  of CPU time  iteration, s  peak, MiB  loss rose  bars"
    )
    held = True
    for name in BACKBONES:
        for side in SIDES:
            options = ["--rounds", str(arguments.rounds), "--iterations", str(arguments.iterations)]
            command = [sys.executable, __file__, "--only", name, str(side), *options]
            row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            good = row["ratio"] <= BAR and row["rises"] == 0
            held &= good
            print(
                f"{name:<21}  {side:>3} x {side:<3}  {row['forward']:>10.4f}  {row['gradient']:>11.4f}  {row['ratio']:>6.2f}  "
                f"{row['cpu']:>11.2f}  "
                f"{row['iteration']:>12.4f}  {row['peak']:>9.0f}  {row['rises']:>9}  {'held' if good else 'MISSED'}",
                flush=True,
            )
    print(f"bars: ratio at most {BAR}, no loss rises: {'held' if held else 'MISSED'}")


def measure(name: str, side: int, rounds: int, iterations: int) -> dict[str, float]:
    photo, style = (np.array(Image.fromarray(pixels).resize((side, side))) for pixels in pictures())
    settings = Settings.from_env().model_copy(update={"models": (name,)})
    with Engine(settings) as engine:
        started = time.perf_counter()
        totals, moments = [], [started]
        for step in engine.optimize(photo, style, model=name, iterations=iterations, max_side=side, multi_scale=False):
            totals.append(step.total)
            moments.append(time.perf_counter())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        forward, gradient, ratio, cpu = compared(engine.load(name), photo, rounds)
    return {
        "forward": forward,
        "gradient": gradient,
        "ratio": ratio,
        "cpu": cpu,
        "iteration": statistics.median(later - earlier for earlier, later in pairwise(moments[1:])),
        "peak": peak,
        "rises": sum(later > earlier for earlier, later in pairwise(totals)),
    }


def pictures() -> tuple[np.ndarray, np.ndarray]:
    with Image.open(STYLE) as style:
        return sklearn.datasets.load_sample_image("china.jpg"), np.array(style.convert("RGB"))


def compared(model: LoadedModel, photo: np.ndarray, rounds: int) -> tuple[float, float, float, float]:
    """Median seconds of the forward pass and of the gradient, taking turns, and of their ratios, by the clock and by processors."""
    layers = model.spec.layers
    deepest = max((*layers.content, *layers.style), key=layers.known.index)
    graph = Graph.resumed(onnx.load(model.folder / "features.onnx"))
    graph.output(graph.node("ReduceMean", f"features/{deepest}", keepdims=1), "mean", [1, 1, 1, 1])
    graph.prune()
    forward = model.open_made(graph.build().SerializeToString())  # as many threads, and as patient ones
    feeds = {"picture": to_picture(photo)}
    targets = model.run(feeds, Timing(), "targets")
    more = {f"{name}_weight": np.ones(1, np.float32) for name in ("content", "style", "variation")}
    whole = {**feeds, **more, **{name.replace("features/", "content/"): value for name, value in targets.items()}}
    forward.run(feeds)
    alone, both = [], []
    for _ in range(rounds):
        alone.append(timed(lambda: forward.run(feeds)))
        both.append(timed(lambda: model.sessions["model"].run(whole)))
    seconds = (statistics.median(clock for clock, _ in times) for times in (alone, both))
    pairs = list(zip(alone, both, strict=True))
    return *seconds, *(statistics.median(after[by] / before[by] for before, after in pairs) for by in (0, 1))


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of all processors together."""
    start, worked = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - worked


if __name__ == "__main__":
    main()
