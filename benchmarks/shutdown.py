"""What becomes of requests when the server is told to end: SIGTERM under load, again and again.

python benchmarks/shutdown.py [--rounds 20] [--workers 1] [--kept 8] [--fresh 4]

Kept-alive connections send POST /classify one after another, others open a new connection for each. A request counts as taken once
its connection is open and all its bytes are sent; whatever is taken must get a whole answer, 200 or 503, and the server must end
with status 0.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SERVE = [sys.executable, "-c", "from service.cli import main; raise SystemExit(main())", "serve"]
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Load:
    """Clients on threads. `seen`: how often requests were answered 200 or 503, lost, or not taken at all."""

    port: int
    photo: bytes
    seen: Counter[str] = field(default_factory=Counter)
    stopped: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, kept: int, fresh: int) -> None:
        for target, count in ((self._keep_asking, kept), (self._ask_anew, fresh)):
            self.threads += [threading.Thread(target=target, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)

    def _connect(self) -> http.client.HTTPConnection | None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.connect()
        except OSError:
            self.seen["not taken"] += 1
            self.stopped.wait(0.02)
            return None
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _ask(self, connection: http.client.HTTPConnection) -> bool:
        """Send one request. May the connection be used again?"""
        reused = bool(getattr(connection, "used", False))
        try:
            connection.request("POST", "/classify", self.photo, {"Content-Type": "image/jpeg"})
        except OSError:  # closed while it rested, before the request was sent whole
            self.seen["not taken" if reused else "lost"] += 1
            return False
        try:
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            self.seen["lost"] += 1
            return False
        self.seen[str(response.status)] += 1
        connection.used = True  # type: ignore[attr-defined]
        return not response.will_close

    def _keep_asking(self) -> None:
        while not self.stopped.is_set():
            connection = self._connect()
            while connection is not None and not self.stopped.is_set() and self._ask(connection):
                pass
            if connection is not None:
                connection.close()

    def _ask_anew(self) -> None:
        while not self.stopped.is_set():
            connection = self._connect()
            if connection is not None:
                self._ask(connection)
                connection.close()


@dataclass(frozen=True)
class Outcome:
    status: int
    seconds: float  # from the signal to the end of the process
    seen: Counter[str]


@dataclass(frozen=True)
class Running:
    """A server process, the port it listens on, and what it logs."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def pids(self) -> list[int]:
        """Of all workers that were ever started, the oldest first."""
        return [line["pid"] for line in map(_parsed, self.log.read_text().splitlines()) if line.get("message") == "a worker starts"]

    def answers(self, path: str = "/health/ready") -> bool:
        """Is the answer 200?"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def end(self) -> tuple[int, float]:
        """SIGTERM; the exit status, and the seconds until then."""
        start = time.monotonic()
        self.process.terminate()
        return self.process.wait(60), time.monotonic() - start


def _parsed(line: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
    return parsed


@contextmanager
def server(workers: int = 1, **settings: str) -> Iterator[Running]:
    """A server process, killed in the end if it is still there; its log is shown where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        environ = os.environ | {"VISION_MODELS": "efficientnet-lite0", "VISION_DEVICE": "cpu"} | settings
        command = [*SERVE, "--port", str(free_port()), "--workers", str(workers)]
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=file, stderr=file)
        try:
            yield Running(process, int(command[-3]), log)
        finally:
            process.kill()
            if process.wait() not in (0, -signal.SIGKILL):
                sys.stderr.write(log.read_text())


def free_port() -> int:
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        port: int = finder.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("waited in vain")
        time.sleep(0.03)


def trial(photo: bytes, *, workers: int = 1, kept: int = 8, fresh: int = 4, seconds: float = 1.0) -> Outcome:
    """Start a server, load it, end it by SIGTERM in the middle, and see what became of the requests."""
    with server(workers) as running:
        wait_until(running.answers)
        load = Load(running.port, photo)
        load.start(kept, fresh)
        time.sleep(seconds)
        status, took = running.end()
        load.stop()
    return Outcome(status, took, load.seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kept", type=int, default=8)
    parser.add_argument("--fresh", type=int, default=4)
    arguments = parser.parse_args()
    import sklearn.datasets

    photo = (Path(sklearn.datasets.__file__).parent / "images" / "china.jpg").read_bytes()
    print(f"{'round':>5} {'200':>6} {'503':>5} {'lost':>5} {'status':>7} {'seconds':>8}")
    total: Counter[str] = Counter()
    for number in range(1, arguments.rounds + 1):
        outcome = trial(photo, workers=arguments.workers, kept=arguments.kept, fresh=arguments.fresh)
        seen = outcome.seen
        print(f"{number:5} {seen['200']:6} {seen['503']:5} {seen['lost']:5} {outcome.status:7} {outcome.seconds:8.2f}", flush=True)
        total += seen + Counter({"bad ends": int(outcome.status != 0)})
    print(f"{arguments.rounds} times: {total['200'] + total['503']} answered, {total['lost']} lost, {total['bad ends']} bad ends")


if __name__ == "__main__":
    main()
