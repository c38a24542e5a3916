"""Seconds and memory of one painting, by size of the photo; each size in a process of its own.

    python benchmarks/painting.py [--rounds 3]

Paints scikit-image's coffee cup, scaled to each size, through the engine: a built-in style, and the photo's own as a style picture.
Prints the median time, and the largest resident memory that the process ever had (models loaded included).
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from service.engine import Engine
from service.settings import Settings

PHOTO = Path(skimage.__file__).parent / "data" / "coffee.png"
SIZES = ("512x512", "1024x1024", "2048x2048", "4000x3000")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", help="only this one, in this process")
    arguments = parser.parse_args()
    if arguments.size:
        measure(arguments.size, arguments.rounds)
        return
    print("size        built-in style   style picture   peak memory")
    for size in SIZES:
        subprocess.run([sys.executable, __file__, "--size", size, "--rounds", str(arguments.rounds)], check=True)


def measure(size: str, rounds: int) -> None:
    width, height = map(int, size.split("x"))
    with Image.open(PHOTO) as picture:
        photo = np.array(picture.convert("RGB").resize((width, height)))
    settings = Settings.from_env().model_copy(update={"max_style_side": 8192, "models": ("multistyle26", "magenta-arbitrary")})
    times: dict[str, list[float]] = {"style": [], "style_image": []}
    with Engine(settings) as engine:
        for _ in range(rounds):
            for way, given in (("style", {"style": "ink-wash"}), ("style_image", {"style_image": photo})):
                start = time.perf_counter()
                engine.stylize(photo, **given)
                times[way].append(time.perf_counter() - start)
    built_in, picture_style = (statistics.median(values) for values in times.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{size:<10}  {built_in:>12.2f} s  {picture_style:>12.2f} s  {peak:>8.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
