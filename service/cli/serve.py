"""`vision-service serve`: fetch what is missing, then answer HTTP."""

import argparse
import errno
import os
import socket
import sys

from service.cli.verbs import Verbs
from service.doctor import NVIDIA_DRIVER
from service.errors import SettingInvalid
from service.repository.progress import terminal_progress
from service.repository.store import ensure, scan
from service.runtime.machine import usable_cores
from service.runtime.providers import choose
from service.runtime.session import run_once
from service.settings import Settings


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser("serve", help="answer HTTP requests; missing models are fetched first")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with its own models (default: 1)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped. Everything that can go wrong before the first request is said before the port opens."""
    check_place(arguments.host, arguments.port, arguments.workers)
    settings = Settings.from_env()
    choice = choose(settings.device)
    if choice.note and NVIDIA_DRIVER.exists():
        print(f"running on {choice.provider}: {choice.note}", file=sys.stderr)
    for spec in scan(settings).values():
        ensure(spec, settings, run_once, terminal_progress())
    os.environ["VISION_CORES"] = str(share(settings.cores or usable_cores(), arguments.workers))

    import uvicorn

    print(f"vision-service listens on http://{arguments.host}:{arguments.port} (try /docs)", file=sys.stderr)
    uvicorn.run(
        "service.http.app:from_env",
        factory=True,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers,
        access_log=False,  # service.http writes its own line, as JSON
        log_level=settings.log_level,
        timeout_graceful_shutdown=30,
    )
    return 0


def check_place(host: str, port: int, workers: int) -> None:
    """Raises SettingInvalid when nobody could listen there, before anything else takes time."""
    if not 0 <= port <= 65535:
        raise SettingInvalid(f"port {port}: use 1 to 65535")
    if workers < 1:
        raise SettingInvalid(f"workers {workers}: use 1 or more")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        advice = "name another port, such as PORT=8001" if error.errno == errno.EADDRINUSE else "name another address or port"
        raise SettingInvalid(f"nobody can listen on {host}, port {port}: {error.strerror}; {advice}") from None


def share(cores: int, workers: int) -> int:
    """Cores for each of `workers` processes, at least one."""
    return max(1, cores // workers)
