"""What one request over HTTP costs on top of decoding and the model itself, both measured in turn in one run.

    python benchmarks/latency.py [--rounds 200] [--json OUT]

Starts a server on a free port of this machine with default settings. Each round times, one after the other and in changing
order: (a) decode + one run of the model's graph on a prepared input, in this process, with the same number of threads; (b) a
multipart POST of the same photo over a kept-alive connection, from the first byte sent to the last byte read. One caller, so
nothing ever queues. Prints medians and b/a.
"""

import argparse
import json
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import sklearn.datasets
from servers import running_server

from service.engine import Engine
from service.imaging.codec import decode
from service.settings import Settings
from service.tasks.classify import ClassifyOptions, classify
from service.tasks.detect import DetectOptions, detect
from service.tasks.task import Tensors, Timing

PHOTO = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"  # 640 x 427, 197 kB
BOUNDARY = "benchmark"
MODELS = {"classify": "efficientnet-lite0", "detect": "yolov3-tiny"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    photo = arguments.photo.read_bytes()
    with running_server() as port, Engine(Settings.from_env()) as engine:
        figures = {task: compare(engine, task, photo, port, arguments.rounds) for task in MODELS}
    print(f"{arguments.photo.name}, {len(photo)} bytes, {arguments.rounds} rounds, medians in ms")
    for task, values in figures.items():
        print(f"/{task:<10}" + "  ".join(f"{name} {value:.2f}" for name, value in values.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def compare(engine: Engine, task: str, photo: bytes, port: int, rounds: int) -> dict[str, float]:
    """Medians of both ways, and their ratio."""
    session = engine.load(MODELS[task]).sessions["model"]
    feeds = _prepared(engine, task, photo)
    connection, message = socket.create_connection(("127.0.0.1", port), 30), _request(task, photo)

    def alone() -> None:
        decode(photo)
        session.run(feeds)

    def over_http() -> None:
        connection.sendall(message)
        _read_answer(connection)

    times: dict[str, list[float]] = {"alone": [], "http": []}
    ways: list[tuple[str, Callable[[], None]]] = [("alone", alone), ("http", over_http)]
    for number in range(rounds + 10):
        for name, way in ways if number % 2 else reversed(ways):
            start = time.perf_counter()
            way()
            if number >= 10:  # the first rounds warm caches
                times[name].append((time.perf_counter() - start) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"decode + model": medians["alone"], "over HTTP": medians["http"], "ratio": medians["http"] / medians["alone"]}


def _prepared(engine: Engine, task: str, photo: bytes) -> Tensors:
    """The tensors that the task feeds its model for `photo`, caught on their way."""
    caught: list[Tensors] = []
    model = engine.load(MODELS[task])

    class Catcher:
        spec, labels = model.spec, model.labels

        def run(self, feeds: Tensors, timing: Timing, graph: str = "model") -> Tensors:
            caught.append(feeds)
            return model.run(feeds, timing, graph)

    pixels = decode(photo)
    if task == "classify":
        classify(pixels, ClassifyOptions(), Catcher(), Timing())
    else:
        detect(pixels, DetectOptions(), Catcher(), Timing())
    return caught[0]


def _request(task: str, photo: bytes) -> bytes:
    """The whole request, built beforehand: what an HTTP library of the client's would take is not the server's time."""
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    body = part.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}"
    return f"POST /{task} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n\r\n".encode() + body


def _read_answer(connection: socket.socket) -> None:
    """Read one answer to its last byte. Raises RuntimeError unless its status is 200."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    if b" 200 " not in head[:20]:
        raise RuntimeError(f"the server answered {head[:40]!r}: {body[:200]!r}")


if __name__ == "__main__":
    main()
