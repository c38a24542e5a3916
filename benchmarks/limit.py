"""The in-process limit: decode, prepare, run and answer on as many threads as cores, in one process, with no HTTP at all.

    python benchmarks/limit.py --task classify --graph model.onnx --labels labels.txt --photo photo.jpg [--reduced] [--seconds 3]

Prints one line of JSON: per_second with all threads, and the milliseconds that decoding and the model take one caller alone.
Nothing that answers HTTP on the same cores with the same functions can be expected to do more than this.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from peers.work import Work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("classify", "detect"), required=True)
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--reduced", action="store_true", help="decode a JPEG at the smallest scale that the model can use")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    work = Work(arguments.task, arguments.graph, arguments.labels, reduced=arguments.reduced)
    photo = arguments.photo.read_bytes()
    batch = work.prepare(photo)[0][None]
    labels = [prediction["label"] for prediction in work(photo)["predictions"]]
    alone = {"decode_ms": median_ms(lambda: work.decode(photo)), "model_ms": median_ms(lambda: work.run(batch))}
    rate = per_second(lambda: work(photo), arguments.threads, arguments.seconds)
    print(json.dumps({"per_second": rate, **alone, "labels": labels}))


def median_ms(call: Callable[[], object], seconds: float = 0.5) -> float:
    """Milliseconds of one call, the median of those that fit into `seconds`, at least three."""
    times: list[float] = []
    limit = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < limit:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def per_second(call: Callable[[], object], threads: int, seconds: float) -> float:
    """Calls in a second on `threads` threads, counted from the first to the last moment that all of them were busy."""
    limit = time.perf_counter() + seconds
    ended: list[list[float]] = [[time.perf_counter()] for _ in range(threads)]

    def repeat(times: list[float]) -> None:
        while times[-1] < limit:
            call()
            times.append(time.perf_counter())

    running = [threading.Thread(target=repeat, args=(times,)) for times in ended]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return float(np.sum([(len(times) - 1) / (times[-1] - times[0]) for times in ended]))


if __name__ == "__main__":
    main()
