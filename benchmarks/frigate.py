"""Is the service quick enough for Frigate, which gives a detector 0.1 s and then drops the frame?

    python benchmarks/frigate.py [--seconds 60] [--rate 5] [--model NAME] [--json OUT]

Starts a server of its own with the settings of the environment and asks it as Frigate's `deepstack` detector does: JPEGs of
320 x 320 pixels in the form field `image`, one after the other, each over a new connection. An answer is timed from before the
connection to its last byte, and waited for however long it takes, so that the share of those over 0.1 s is known. The client
runs on the same cores. Nothing is left out, the first answers after the start no more than others.
"""

import argparse
import json
import statistics
import time
import urllib.request
from collections.abc import Sequence
from http.client import HTTPConnection
from itertools import cycle
from pathlib import Path
from typing import Any

from client import Message, multipart
from photos import PALACE, PORTRAIT, jpeg
from report import Bar
from servers import processor, running_server

from service.runtime.machine import usable_cores

PATIENCE_MS = 100.0  # of Frigate, where its configuration says nothing else
SIDE, QUALITY = 320, 75  # Pillow's usual quality, which Frigate leaves as it is
PATIENT_SECONDS = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=5, help="requests a second")
    parser.add_argument("--model", help="the detector; else the default one")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    path = "/v1/vision/detection" if arguments.model is None else f"/v1/vision/custom/{arguments.model}"
    messages = [multipart(path, "image", photo=jpeg(SIDE, SIDE, QUALITY, source)) for source in (PALACE, PORTRAIT)]
    with running_server() as port:
        times, answer = ask_in_time(port, messages, arguments.rate, arguments.seconds)
        precision = precision_of(port, answer["moduleId"])
    figures = summary(times) | {"detector": answer["moduleId"], "precision": precision, "provider": answer["executionProvider"]}
    print(f"{path}, {SIDE} x {SIDE} pixels, {arguments.rate:g} requests/s for {arguments.seconds:g} s")
    print(f"on {usable_cores()} cores of {processor()}, which the client shares")
    for name, value in figures.items():
        print(f"  {name:<32} {value:.4g}" if isinstance(value, float) else f"  {name:<32} {value}")
    bar = Bar("p99, ms", float(figures["p99, ms"]), PATIENCE_MS, at_most=True)
    print("\n".join(["", "| what | measured | bar | held |", "| --- | --- | --- | --- |", bar.row()]))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def ask_in_time(port: int, messages: Sequence[Message], rate: float, seconds: float) -> tuple[list[float], dict[str, Any]]:
    """Milliseconds of each answer, and the last one. Requests fall due at `rate`; one that comes late puts none off for good.

    Raises SystemExit where one is not answered with success.
    """
    times, answer, start = list[float](), dict[str, Any](), time.perf_counter()
    for number, message in zip(range(max(1, round(seconds * rate))), cycle(messages), strict=False):
        time.sleep(max(0.0, start + number / rate - time.perf_counter()))
        begin = time.perf_counter()
        body = _post(port, message)
        times.append((time.perf_counter() - begin) * 1e3)
        answer = json.loads(body)
        if not answer["success"]:
            raise SystemExit(f"the server answered {answer}")
    return times, answer


def _post(port: int, message: Message) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENT_SECONDS)
    try:
        connection.request("POST", message.path, message.body, message.headers)
        return connection.getresponse().read()
    finally:
        connection.close()


def precision_of(port: int, model: str) -> str:
    """The arithmetic that a model runs in, as GET /models says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/models", timeout=PATIENT_SECONDS) as response:
        cards = json.load(response)["models"]
    return str(next(card["precision"] for card in cards if card["name"] == model))


def summary(times: Sequence[float]) -> dict[str, float | int | str]:
    """What times in milliseconds come to."""
    late = sum(value > PATIENCE_MS for value in times)
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else [times[0]] * 99
    return {
        "answers": len(times),
        **{f"p{percent}, ms": cuts[percent - 1] for percent in (50, 90, 99)},
        "longest, ms": max(times),
        "share over 0.1 s": late / len(times),
    }


if __name__ == "__main__":
    main()
