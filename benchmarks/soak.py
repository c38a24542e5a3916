"""Very many requests of all tasks and sizes, huge photos among them: does memory come back, and does anything get lost?

    python benchmarks/soak.py [--requests 50000] [--connections 4] [--minutes 60] [--out DIR]

Starts a server of its own with the settings of the environment. One request in 200 carries a photo of 50 megapixels. The memory of
all the server's processes is compared when it is idle after the first 2,000 requests and when it is idle after the last; the curve
between is drawn to soak.svg. Linux only (/proc).
"""

import argparse
import json
import random
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from client import multipart
from load import Load, Tally
from photos import PORTRAIT, jpeg
from plots import curve
from report import Bar
from servers import resident_bytes, running_process

FIRST = 2000
SIZES = {"small": (640, 480, 91), "tall": (720, 1280, 85), "tiny": (160, 120, 85), "camera": (4000, 3000, 85)}
HUGE = (8000, 6250, 85)  # 50 megapixels
SHARES = {
    "/classify": 50,
    "/detect": 25,
    "/detect-faces": 20,
    "/verify-face": 4,
    "/stylize?style=ink-wash": 1,
}  # of a hundred requests
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=60, help="after which no more requests are sent")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    first = min(FIRST, arguments.requests // 2)
    kinds = requests()
    curve_points: list[tuple[float, float]] = []
    with running_process() as (port, process):
        begin = time.monotonic()
        early = asked(port, process, kinds, first, arguments, curve_points)
        early_mib = idle_mib(process)
        arguments.minutes -= (time.monotonic() - begin) / 60
        late = asked(port, process, kinds, arguments.requests - first, arguments, curve_points)
        late_mib = idle_mib(process)
    arguments.out.mkdir(parents=True, exist_ok=True)
    title = "Memory of the server while it answers mixed requests, 1 in 200 of 50 megapixels"
    (arguments.out / "soak.svg").write_text(curve(title, curve_points, "requests", "MiB", early_mib), encoding="utf-8")
    figures = told(first, early, late, early_mib, late_mib)
    (arguments.out / "soak.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def requests() -> Iterator[bytes]:
    """Endlessly many requests in a random order that is the same each time."""
    chance = random.Random(0)
    photos = {name: (jpeg(*size), jpeg(*size, source=PORTRAIT)) for name, size in SIZES.items()}
    huge = (jpeg(*HUGE), jpeg(*HUGE, source=PORTRAIT))
    ready: dict[tuple[str, str], bytes] = {}
    for number in range(2**62):
        path = chance.choices(list(SHARES), list(SHARES.values()))[0]
        size = chance.choice(list(SIZES))
        if number % 200 == 199:
            path, size = ("/classify", "/detect", "/detect-faces")[number // 200 % 3], "huge"
        elif path.startswith(("/verify-face", "/stylize")):
            size = "small"
        if (path, size) not in ready:
            place, portrait = photos.get(size, huge)
            fields = ("image1", "image2") if path == "/verify-face" else ("image",)
            ready[path, size] = multipart(path, *fields, photo=portrait if "face" in path else place).raw()
        yield ready[path, size]


def asked(
    port: int, process: int, kinds: Iterator[bytes], count: int, arguments: argparse.Namespace, points: list[tuple[float, float]]
) -> Tally:
    """Send `count` requests and add (requests so far, MiB) to `points` twice a second."""
    before = points[-1][0] if points else 0.0
    load = Load(port, islice(kinds, count), arguments.connections)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            points.append((before + load.answered, resident_bytes(process) / MIB))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return load.run(arguments.minutes * 60)
    finally:
        over.set()
        watcher.join()


def idle_mib(process: int) -> float:
    time.sleep(3)
    return resident_bytes(process) / MIB


def told(first: int, early: Tally, late: Tally, early_mib: float, late_mib: float) -> dict[str, float | None]:
    """Print and give the figures."""
    answers: dict[str, int] = {}
    for tally in (early, late):
        for kind, times in tally.latencies.items():
            answers[kind] = answers.get(kind, 0) + len(times)
    figures: dict[str, float | None] = {
        "requests": early.sent + late.sent,
        "seconds": early.seconds + late.seconds,
        f"MiB after {first}": early_mib,
        "MiB at the end": late_mib,
        **{f"answers {kind}": count for kind, count in sorted(answers.items())},
    }
    lost = early.sent + late.sent - answers.get("200", 0)
    bars = [
        Bar(f"memory at the end, of that after the first {first}", late_mib / early_mib, 1.05, at_most=True),
        Bar("requests without a 200", lost, 0, at_most=True),
    ]
    for name, value in figures.items():
        print(f"{name:<24} {value:.6g}")
    print("\n".join(["", "| what | measured | bar | held |", "| --- | --- | --- | --- |", *(bar.row() for bar in bars)]))
    return figures | {bar.what: bar.value for bar in bars}


if __name__ == "__main__":
    main()
