"""`vision-service serve`: fetch what is missing, then answer HTTP."""

import argparse
import os
import sys

from service.cli.verbs import Verbs
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
    settings = Settings.from_env()
    choice = choose(settings.device)
    if choice.note:
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


def share(cores: int, workers: int) -> int:
    """Cores for each of `workers` processes, at least one."""
    return max(1, cores // workers)
