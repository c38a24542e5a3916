"""What the benchmarks share: servers of their own on free ports of this machine, each with all its processes."""

import os
import platform
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
OURS: Final = ("-c", "from service.cli import main; raise SystemExit(main())", "serve", "--port")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running_server(environ: Mapping[str, str] | None = None, *options: str) -> Iterator[int]:
    """Start `vision-service serve` with this Python and the settings of the environment; gives its port once it is ready."""
    with running_process(environ, *options) as (port, _):
        yield port


@contextmanager
def running_process(environ: Mapping[str, str] | None = None, *options: str) -> Iterator[tuple[int, int]]:
    """The same; gives the port and the process id."""
    port = free_port()
    with started([sys.executable, *OURS, str(port), *options], environ or {}) as server:
        wait_until_ready(port, server)
        yield port, server.pid


@contextmanager
def started(command: Sequence[str], environ: Mapping[str, str], log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, and every process that it started with it. What it says goes to `log`."""
    with Path(log or os.devnull).open("wb") as said:
        server = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | dict(environ))
    try:
        yield server
    finally:
        processes = family(server.pid)
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(30)
        for process in processes:  # some frameworks leave processes behind
            with suppress(ProcessLookupError):
                os.kill(process, 9)
        server.wait()


def family(process: int) -> list[int]:
    """Ids of a process and of all that descend from it (Linux: /proc)."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [process]
    for parent in found:  # grows while it is walked
        found += [child for child, of in parents.items() if of == parent]
    return found


def resident_bytes(process: int) -> int:
    """Memory in RAM of a process and all that descend from it; pages that they share count once for each."""
    total = 0
    for member in family(process):
        with suppress(OSError):
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1]) * PAGE
    return total


def processor() -> str:
    """Its model, as the system names it."""
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return found[0].partition(":")[2].strip() if found else platform.machine()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until_ready(port: int, server: subprocess.Popen[bytes]) -> None:
    """Raises SystemExit when the server ends, or is not ready within two minutes."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2) as response:
                if response.status == 200:
                    return
        except OSError:  # urllib's errors are such, and timeouts
            pass
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}; run it by hand to see why: vision-service serve")
        time.sleep(0.02)
    raise SystemExit("the server was not ready within two minutes")
