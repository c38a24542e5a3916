"""A model is added, replaced and deleted while clients hammer another one: does a request fail, do answers come slower?

    python benchmarks/hotload.py [--task classify] [--clients 16] [--seconds 30] [--model FILE] [--told NAME=VALUE ...] [--json OUT]

Starts a server of its own on this machine, with the settings of the environment and a data folder that is thrown away. The clients
ask again as soon as they are answered. Meanwhile FILE, or a detector of about 10 MB made here, is sent to POST /models; then the
same name comes with replace=true (a detector with other weights; a given FILE once more), and DELETE takes it away. `--told` gives
an option that the file needs. The client runs on the same cores as the server.
"""

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np
import onnx
from client import multipart
from load import Load, Tally
from onnx import TensorProto, helper, numpy_helper
from photos import photo
from report import Bar
from servers import running_server

NAME: Final = "hotload"
BIN: Final = 0.25  # seconds over which a median is taken
STEP: Final = 2.0  # times the median of before: what counts as slower
AROUND: Final = 2.0  # seconds that are shown before and after an event
SIDE: Final = 320
CLASSES: Final = 80


@dataclass(frozen=True)
class Event:
    """What was asked of /models, from `begin` to `end` in seconds since the start, and how it was answered."""

    what: str
    begin: float
    end: float
    status: int
    said: str


class TimedLoad(Load):
    """Also keeps when each answer came: pairs of a time.perf_counter() moment and its latency, in seconds."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.moments: list[tuple[float, float]] = []

    def _count(self, connection: Any, status: int, headers: bytes) -> None:
        now = time.perf_counter()
        self.moments.append((now, now - connection.began))
        super()._count(connection, status, headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="classify", choices=("classify", "detect"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--model", type=Path, help="the ONNX file to add; without it one is made")
    parser.add_argument("--told", action="append", default=[], metavar="NAME=VALUE", help="an option to add it with")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    message = multipart(f"/{arguments.task}", "image", photo=photo("small")).raw()
    told = dict(given.split("=", 1) for given in arguments.told)
    with tempfile.TemporaryDirectory() as folder, running_server({"VISION_DATA_DIR": folder}) as port:
        first, second = models(arguments.model)
        Load(port, repeat(message), arguments.clients).run(3)  # warms up
        load = TimedLoad(port, repeat(message), arguments.clients)
        events: list[Event] = []
        begin = time.perf_counter()
        calls = threading.Thread(target=change, args=(port, begin, arguments.seconds, first, second, told, events))
        calls.start()
        tally = load.run(arguments.seconds)
        calls.join()
    if not events or not tally.answers("200"):
        sys.exit(f"/{arguments.task} answered nothing but {sorted(tally.latencies)}")
    moments = np.array([(moment - begin, latency) for moment, latency in load.moments])
    figures = report(arguments, len(first), tally, moments, events)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def models(given: Path | None) -> tuple[bytes, bytes]:
    """The file to add, and the one to put in its place."""
    if given is not None:
        return given.read_bytes(), given.read_bytes()
    return detector(1), detector(2)


def change(port: int, begin: float, seconds: float, first: bytes, second: bytes, told: dict[str, str], events: list[Event]) -> None:
    """Add, replace and delete, a fifth of the time apart or as soon as the one before is done."""
    query = {"name": NAME, **told}
    calls: Sequence[tuple[str, str, str, bytes]] = (
        ("added", "POST", f"/models?{urlencode(query)}", first),
        ("replaced", "POST", f"/models?{urlencode(query | {'replace': 'true'})}", second),
        ("deleted", "DELETE", f"/models/{NAME}", b""),
    )
    for number, (what, method, path, body) in enumerate(calls):
        time.sleep(max(0.0, begin + seconds * (0.25 + 0.22 * number) - time.perf_counter()))
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        connection.request(method, path, body, {"Content-Type": "application/octet-stream"} if body else {})
        response = connection.getresponse()
        answer = response.read().decode()
        connection.close()
        events.append(Event(what, start - begin, time.perf_counter() - begin, response.status, answer))


def report(
    arguments: argparse.Namespace, size: int, tally: Tally, moments: np.ndarray[Any, Any], events: Sequence[Event]
) -> dict[str, Any]:
    """Print and give the figures. `moments` [n, 2]: seconds since the start and latency in seconds of every answer."""
    print(
        f"{arguments.clients} clients asked /{arguments.task} for {tally.seconds:.0f} s, {tally.rate:.0f} answers a second; "
        f"the client took {tally.client_cores:.2f} cores. Meanwhile a model of {size / 1e6:.1f} MB came and went:"
    )
    for event in events:
        print(f"  {event.what} at {event.begin:.2f} s, done at {event.end:.2f} s: {event.status} {told_of(event)}")
    for event in events:
        print(f"\n  {event.what}: second, answers, p50 ms, p99 ms")
        first, last = int(event.begin - AROUND), int(event.end + AROUND)
        for second in range(max(0, first), last + 1):
            found = moments[(moments[:, 0] >= second) & (moments[:, 0] < second + 1), 1] * 1e3
            mark = "*" if second <= event.end and second + 1 > event.begin else " "
            if len(found):
                print(f"  {mark} {second:>4} {len(found):>6} {np.percentile(found, 50):>8.1f} {np.percentile(found, 99):>8.1f}")
    before = float(np.median(moments[moments[:, 0] < events[0].begin, 1]))
    slow = longest_slow(moments, before, tally.seconds)
    failed = tally.sent - tally.answers("200")
    bars = [
        Bar("requests that failed", failed, 0, at_most=True),
        Bar("changes of /models that failed", sum(event.status >= 300 for event in events), 0, at_most=True),
        Bar(f"longest time with a median of {BIN * 1e3:.0f} ms above {STEP:g} x {before * 1e3:.1f} ms, s", slow, 1.0, at_most=True),
    ]
    rows = ["", "| what | measured | bar | held |", "| --- | --- | --- | --- |", *(bar.row() for bar in bars)]
    print("\n".join(rows), flush=True)
    return {bar.what: bar.value for bar in bars} | {event.what: event.end - event.begin for event in events}


def told_of(event: Event) -> str:
    return "" if event.status < 300 else event.said[:300]


def longest_slow(moments: np.ndarray[Any, Any], before: float, seconds: float) -> float:
    """Seconds of the longest run of bins whose median latency is above STEP times `before`, or in which no answer came."""
    longest = now = 0
    for number in range(int(seconds / BIN)):
        found = moments[(moments[:, 0] >= number * BIN) & (moments[:, 0] < (number + 1) * BIN), 1]
        now = 0 if len(found) and np.median(found) <= STEP * before else now + 1
        longest = max(longest, now)
    return longest * BIN


def detector(seed: int) -> bytes:
    """A detector as Ultralytics exports YOLOv8, [1, 84, 2100] for 320 x 320 pixels, of random weights that find hardly anything."""
    random = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, values: Any, kind: Any = np.float32) -> str:
        weights.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def convolved(source: str, inside: int, outside: int, name: str, size: int = 3, stride: int = 2, bias: float = 0.0) -> str:
        kernel = random.normal(0, (2 / (inside * size * size)) ** 0.5, (outside, inside, size, size))
        names = [source, constant(f"{name}.weight", kernel), constant(f"{name}.bias", np.full(outside, bias))]
        margin = size // 2
        nodes.append(helper.make_node("Conv", names, [name], name, strides=[stride] * 2, pads=[margin] * 4))
        return name

    heads, last, inside = [], "images", 3
    for stage, outside in enumerate((40, 80, 160, 320, 640)):
        last = convolved(last, inside, outside, f"stage{stage}")
        nodes.append(helper.make_node("Relu", [last], [f"{last}.out"]))
        last, inside = f"{last}.out", outside
        if stage < 2:
            continue
        parts = []
        for part, channels, bias in (("box", 4, 0.0), ("class", CLASSES, -9.0)):
            made = convolved(last, outside, channels, f"head{stage}.{part}", 1, 1, bias)
            shape = constant(f"{made}.shape", [1, channels, -1], np.int64)
            nodes.append(helper.make_node("Reshape", [made, shape], [f"{made}.flat"]))
            parts.append(f"{made}.flat")
        heads.append(parts)
    for number, name in enumerate(("boxes", "scores")):
        nodes.append(helper.make_node("Concat", [head[number] for head in heads], [f"{name}.raw"], axis=2))
        nodes.append(helper.make_node("Sigmoid", [f"{name}.raw"], [name]))
    nodes.append(helper.make_node("Mul", ["boxes", constant("side", float(SIDE))], ["boxes.pixels"]))
    nodes.append(helper.make_node("Concat", ["boxes.pixels", "scores"], ["output0"], axis=1))
    cells = sum((SIDE // stride) ** 2 for stride in (8, 16, 32))
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4 + CLASSES, cells])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    names = {number: f"thing {number}" for number in range(CLASSES)}
    helper.set_model_props(
        model, {"task": "detect", "stride": "32", "batch": "1", "imgsz": f"[{SIDE}, {SIDE}]", "names": repr(names)}
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
