"""Ten times more requests than the service can answer, for a minute: does it keep its pace, and does everybody get an answer?

    python benchmarks/overload.py [--times 10] [--seconds 60] [--tasks classify,detect] [--json OUT]

Starts a server of its own with the settings of the environment. For each task: the peak is measured with 16 connections that
ask again as soon as they are answered; then requests fall due at ten times that rate, whatever the server does, over twice as
many connections as its queue is long. The client (load.py) runs on the same cores: what it takes is measured and printed, for
the server cannot have it.
"""

import argparse
import json
import sys
from itertools import repeat
from pathlib import Path

from client import multipart
from load import Load, Tally
from photos import photo
from report import Bar
from servers import running_server

from service.runtime.machine import usable_cores
from service.settings import Settings

REFUSED_MS = 10.0
AT_ONCE, IN_QUEUE = "503 queue_full", "503 queue_timeout"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=10, help="the load, as a multiple of the peak")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=2 * Settings.from_env().queue_length)
    parser.add_argument("--tasks", default="classify,detect")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float | None]] = {}
    for task in arguments.tasks.split(","):
        message = multipart(f"/{task}", "image", photo=photo("small")).raw()
        with running_server() as port:
            Load(port, repeat(message), 16).run(2)  # warms up
            peak = Load(port, repeat(message), 16).run(max(3.0, arguments.seconds / 4))
            if not peak.rate:
                sys.exit(f"/{task} answered nothing but {sorted(peak.latencies)}")
            over = Load(port, repeat(message), arguments.connections, peak.rate * arguments.times).run(arguments.seconds)
            after = Load(port, repeat(message), 16).run(max(3.0, arguments.seconds / 4))
        figures[task] = told(task, peak, over, after)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def told(task: str, peak: Tally, over: Tally, after: Tally) -> dict[str, float | None]:
    """Print and give the figures of one task."""
    cores, patience = usable_cores(), Settings.from_env().queue_timeout
    best = (peak.rate + after.rate) / 2  # before and after: machines drift
    free = (cores - over.client_cores) / (cores - peak.client_cores)  # of what the server had at its peak
    others = sum(len(times) for kind, times in over.latencies.items() if not kind.startswith(("200", "503")))
    figures: dict[str, float | None] = {
        "peak, requests/s": best,
        "load that fell due, requests/s": over.due / over.seconds,
        "load that was sent, requests/s": over.sent / over.seconds,
        "accepted, requests/s": over.rate,
        "accepted p50, ms": over.milliseconds("200", 50),
        "refused at once, requests/s": over.answers(AT_ONCE) / over.seconds,
        "refused at once p50, ms": over.milliseconds(AT_ONCE, 50),
        "given up in the queue, requests/s": over.answers(IN_QUEUE) / over.seconds,
        "given up in the queue p99, ms": over.milliseconds(IN_QUEUE, 99),
        "client at the peak, cores": peak.client_cores,
        "client under overload, cores": over.client_cores,
        "accepted of the peak, for the cores that the client left": over.rate / (best * free),
    }
    bars = [
        Bar("accepted of the peak", over.rate / best, 0.95),
        Bar("accepted p99, ms", over.milliseconds("200", 99), 2e3 * patience, at_most=True),
        Bar("refused at once p99, ms", over.milliseconds(AT_ONCE, 99), REFUSED_MS, at_most=True),
        Bar("refused without Retry-After", over.without_retry_after, 0, at_most=True),
        Bar("answers of another status than 200 and 503", others, 0, at_most=True),
        Bar("connections that broke before an answer", over.broken, 0, at_most=True),
        Bar("requests without any answer", over.unanswered, 0, at_most=True),
    ]
    print(f"/{task}, {over.seconds:.0f} s")
    for name, value in figures.items():
        print(f"  {name:<58} " + ("" if value is None else f"{value:.4g}"))
    print(
        "\n".join(["", "| what | measured | bar | held |", "| --- | --- | --- | --- |", *(bar.row() for bar in bars), ""]),
        flush=True,
    )
    return figures | {bar.what: bar.value for bar in bars}


if __name__ == "__main__":
    main()
