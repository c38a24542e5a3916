"""The benchmarks start, count every answer and every loss, and pin what they install."""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

SCRIPTS = (
    *("accuracy", "decoders", "faces", "frigate", "gallery", "gallery_crash", "gallery_load", "hotload", "latency"),
    *("limit", "overload", "painting", "pointing", "serve", "sliding", "soak", "startup"),
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REFUSAL = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n"


@pytest.fixture(autouse=True)
def _on_the_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks")
    monkeypatch.setattr(sys, "modules", sys.modules.copy())  # their plain names (client, load) must not stay behind


def test_every_benchmark_says_how_it_is_called(root: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(root), "NO_COLOR": "1", "COLUMNS": "200"}
    started = [
        subprocess.Popen(
            [sys.executable, root / "benchmarks" / f"{name}.py", "--help"], cwd=root, env=environ, stdout=subprocess.PIPE, text=True
        )
        for name in SCRIPTS
    ]
    said = {name: process.communicate(timeout=60)[0] for name, process in zip(SCRIPTS, started, strict=True)}
    assert [name for name, text in said.items() if f"python benchmarks/{name}.py" not in text] == []


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """A server that gives each request of 100 bytes the next of `answers`, the last one for ever; b"" closes the connection."""
    waiting, lock = list(answers), threading.Lock()

    def serve(connection: socket.socket) -> None:
        with connection:
            while connection.recv(100, socket.MSG_WAITALL):
                with lock:
                    answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                if not answer:
                    return
                connection.sendall(answer)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


def test_the_client_counts_answers_refusals_and_what_is_lost() -> None:
    from load import Load

    refused = REFUSAL + b"Retry-After: 1\r\n\r\n", REFUSAL + b"\r\n"
    with answering(ANSWER, *refused, b"", ANSWER, REFUSAL + b"Connection: close\r\n\r\n", ANSWER) as port:
        tally = Load(port, repeat(b"x" * 100, 20), 1).run()
    assert (tally.sent, tally.answers("200"), tally.answers("503")) == (20, 16, 3)
    assert (tally.without_retry_after, tally.broken, tally.unanswered) == (2, 1, 0)


def test_requests_that_are_never_answered_are_counted() -> None:
    from load import Load

    with socket.create_server(("127.0.0.1", 0)) as silent:
        tally = Load(silent.getsockname()[1], repeat(b"x" * 100, 3), 3).run(patience=0.1)
    assert (tally.sent, tally.unanswered, tally.latencies) == (3, 3, {})


def test_an_open_loop_keeps_its_rate() -> None:
    from load import Load

    with answering(ANSWER) as port:
        tally = Load(port, repeat(b"x" * 100), 4, rate=200).run(seconds=0.5)
    assert tally.sent == tally.answers("200") <= tally.due <= 100


def turn(server: str, rate: float, **others: Any) -> Any:
    from report import Turn

    usual: dict[str, Any] = {
        "round": 1,
        "task": "classify",
        "photo": "small",
        "connections": 8,
        "p50": 10.0,
        "p90": 12.0,
        "p99": 14.0,
    }
    return Turn(server=server, rate=rate, **usual | {"errors": 0, "limit": 100.0, "limit_int8": 200.0, "alone_ms": 9.0} | others)


def test_bars_compare_within_a_round() -> None:
    from report import promised

    turns = [turn("vision-service", 180), turn("mosec", 90), turn("FastAPI, threads", 60)]
    turns += [turn("vision-service", 100, round=2), turn("mosec", 80, round=2)]
    values = {bar.what: (bar.value, bar.held) for bar in promised(turns)}
    assert values["/classify defaults, 8 connections, of the best peer"] == (pytest.approx((2 + 1.25) / 2), "yes")
    assert values["/classify defaults, 8 connections, of the int8 limit"] == (pytest.approx(0.7), "no")
    assert values["/classify defaults, p99 / p50 at 8 connections"] == (pytest.approx(1.4), "yes")
    assert values["/detect defaults, 8 connections, of the best peer"] == (None, "not measured")


def test_answers_that_frigate_would_not_wait_for_are_counted() -> None:
    from frigate import summary

    figures = summary([10.0] * 98 + [100.0, 250.0])
    assert (figures["answers"], figures["p50, ms"], figures["longest, ms"], figures["share over 0.1 s"]) == (100, 10, 250, 0.01)
    assert summary([5.0])["p99, ms"] == 5


def test_plots_are_pictures_with_every_name_in_them() -> None:
    from plots import curve
    from report import as_plots

    plots = as_plots([turn("vision-service", 180), turn("mosec & co", 90)]) | {
        "soak": curve("memory", [(0, 1), (5, 2)], "s", "MiB", 1)
    }
    texts = {name: " ".join(ElementTree.fromstring(plot).itertext()) for name, plot in plots.items()}
    assert "mosec & co" in texts["classify-small"]
    assert "vision-service" in texts["classify-small"]
    assert "MiB" in texts["soak"]


def test_every_peer_pins_what_it_installs(root: Path) -> None:
    from contenders import contenders

    peers = {contender.script: contender for contender in contenders(2) if not contender.ours}
    assert set(peers) == {path.name for path in (root / "benchmarks" / "peers").glob("with_*.py")}
    for contender in peers.values():
        pins = contender.requirements()
        assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", pin)] == []
        assert {"numpy", "onnxruntime", "simplejpeg"} < {pin.split("==")[0] for pin in pins}
