"""What the benchmarks share: a server of their own on a free port of this machine."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def running_server() -> Iterator[int]:
    """Start `vision-service serve` with this Python and the settings of the environment; gives its port once it is ready."""
    port = free_port()
    command = [sys.executable, "-c", "from service.cli import main; raise SystemExit(main())", "serve", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(port, server)
        yield port
    finally:
        server.terminate()
        server.wait(30)


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
        except (urllib.error.URLError, ConnectionError):
            pass
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}; run it by hand to see why: vision-service serve")
        time.sleep(0.02)
    raise SystemExit("the server was not ready within two minutes")
