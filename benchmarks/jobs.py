"""What a painting by optimisation costs the requests beside it: /classify and /detect alone, and while a job runs.

    python benchmarks/jobs.py [--rounds 4] [--seconds 3] [--connections 8] [--model vgg16-hed] [--max-side 384] [--json OUT]

Starts a server of its own with the settings of the environment. In turns without and with a job that runs (alone, job, job, alone,
...) both tasks are asked over kept-alive connections that ask again as soon as they are answered; each turn with a job is held
against the turn alone beside it, and the median of these shares counts. The client runs on the same cores. The job paints at one
size, so that all its iterations are alike; how many it makes a second is told too, undisturbed and beside the requests.
"""

import argparse
import json
import os
import statistics
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from client import multipart
from load import Load, Tally
from photos import photo
from report import Bar
from servers import family, running_process

TASKS = ("classify", "detect")
MODELS = "efficientnet-lite0,yolov3-tiny"
LEAST = 0.8  # of the requests a second that are answered without a job
QUIET = 0.1  # cores that a server uses which does nothing
PATIENCE = 60.0


@dataclass
class Turn:
    """Both tasks once, with a job beside them or without. `pace`: iterations a second that the job made meanwhile."""

    with_job: bool
    tallies: dict[str, Tally] = field(default_factory=dict)
    pace: dict[str, float] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="pairs of turns")
    parser.add_argument("--seconds", type=float, default=3, help="for which each task is asked in a turn")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--model", default="vgg16-hed", help="the network of the job")
    parser.add_argument("--max-side", type=int, default=384, help="of the job's painting, in pixels")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with running_process({"VISION_MODELS": f"{MODELS},{arguments.model}", "VISION_DETECTOR": "yolov3-tiny"}) as (port, pid):
        for task in TASKS:
            ask(port, task, arguments.connections, 1.0)  # warms up
        turns, free = measured(port, pid, arguments)
    figures = told(turns, free)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measured(port: int, pid: int, arguments: argparse.Namespace) -> tuple[list[Turn], float]:
    """All turns, and the iterations a second of a job that has the cores to itself."""
    turns: list[Turn] = []
    paces: list[float] = []
    for pair in range(0, arguments.rounds, 2):
        turns.append(turn(port, arguments, None))
        with job(port, pid, arguments) as identity:
            paces.append(pace(port, identity, arguments.seconds / 2))
            turns += [turn(port, arguments, identity) for _ in range(min(2, arguments.rounds - pair))]
        if pair + 1 < arguments.rounds:
            turns.append(turn(port, arguments, None))
    return turns, statistics.median(paces)


def turn(port: int, arguments: argparse.Namespace, identity: str | None) -> Turn:
    made = Turn(identity is not None)
    for task in TASKS:
        before = None if identity is None else shown(port, identity)
        made.tallies[task] = ask(port, task, arguments.connections, arguments.seconds)
        if identity is not None and before is not None:
            after = shown(port, identity)
            if after["state"] != "running":
                raise SystemExit(f"the job is {after['state']}: {after['problem']}")
            made.pace[task] = (after["iteration"] - before["iteration"]) / (after["seconds"] - before["seconds"])
    return made


def ask(port: int, task: str, connections: int, seconds: float) -> Tally:
    return Load(port, repeat(multipart(f"/{task}", "image", photo=photo("small")).raw()), connections).run(seconds)


@contextmanager
def job(port: int, pid: int, arguments: argparse.Namespace) -> Iterator[str]:
    """A job that runs until the block ends, and has then really ended."""
    path = f"/stylize/optimize?iterations=5000&multi_scale=false&model={arguments.model}&max_side={arguments.max_side}"
    identity = str(fetched(port, "POST", path, multipart(path, "image", "style_image", photo=photo("small")))["id"])
    until(lambda: shown(port, identity)["iteration"] > 0)
    yield identity
    fetched(port, "DELETE", f"/jobs/{identity}")
    until(lambda: cores_used(pid, 0.5) < QUIET)


def pace(port: int, identity: str, seconds: float) -> float:
    """Iterations a second while nobody asks for anything else."""
    first = shown(port, identity)
    time.sleep(seconds)
    until(lambda: shown(port, identity)["iteration"] > first["iteration"])
    last = shown(port, identity)
    return float((last["iteration"] - first["iteration"]) / (last["seconds"] - first["seconds"]))


def shown(port: int, identity: str) -> Any:
    return fetched(port, "GET", f"/jobs/{identity}")


def fetched(port: int, method: str, path: str, message: Any = None) -> Any:
    body, headers = (None, {}) if message is None else (message.body, message.headers)
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def cores_used(pid: int, seconds: float) -> float:
    """By a process and its children, over the next seconds (Linux)."""

    def ticks() -> int:
        stats = [Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split() for member in family(pid)]
        return sum(int(stat[11]) + int(stat[12]) for stat in stats)

    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def until(condition: Any) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > limit:
            raise SystemExit(f"nothing came of it within {PATIENCE:g} seconds")
        time.sleep(0.05)


def told(turns: list[Turn], free: float) -> dict[str, float | None]:
    """Print and give the figures: shares within each pair of turns, medians over the pairs."""
    pairs = [sorted(turns[at : at + 2], key=lambda one: one.with_job) for at in range(0, len(turns) - 1, 2)]
    figures: dict[str, float | None] = {"iterations/s of the job with the cores to itself": free}
    bars = []
    for task in TASKS:
        for name, at in (("alone", 0), ("beside a job", 1)):
            tallies = [pair[at].tallies[task] for pair in pairs]
            figures[f"/{task} {name}, requests/s"] = statistics.median(tally.rate for tally in tallies)
            figures[f"/{task} {name}, p50 ms"] = statistics.median(tally.milliseconds("200", 50) or 0.0 for tally in tallies)
        figures[f"iterations/s of the job beside /{task}"] = statistics.median(pair[1].pace[task] for pair in pairs)
        shares = [pair[1].tallies[task].rate / pair[0].tallies[task].rate for pair in pairs]
        print(f"/{task}: shares of the pairs: {', '.join(f'{share:.2f}' for share in shares)}")
        bars.append(Bar(f"/{task} beside a job, requests/s of those alone", statistics.median(shares), LEAST))
    every = [tally for one in turns for tally in one.tallies.values()]
    others = sum(len(times) for tally in every for kind, times in tally.latencies.items() if kind != "200")
    bars.append(Bar("answers of another status than 200", others, 0, at_most=True))
    for name, value in figures.items():
        print(f"  {name:<52} {value:.4g}")
    print("\n".join(["", "| what | measured | bar | held |", "| --- | --- | --- | --- |", *(bar.row() for bar in bars), ""]))
    return figures | {bar.what: bar.value for bar in bars}


if __name__ == "__main__":
    main()
