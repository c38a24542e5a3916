"""`vision-service serve`: fetch what is missing, then answer HTTP, in this process or in several."""

import argparse
import errno
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Sequence

from service.cli.verbs import Verbs
from service.doctor import NVIDIA_DRIVER
from service.errors import SettingInvalid
from service.fleet import prepare
from service.loaded import tune_ahead
from service.repository.progress import terminal_progress
from service.runtime.machine import usable_cores
from service.runtime.providers import choose
from service.settings import Settings

GRACE = 10.0  # seconds over VISION_SHUTDOWN_SECONDS after which a worker that has not ended is killed


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser("serve", help="answer HTTP requests; missing models are fetched first")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with its own models (default: 1)")
    parser.add_argument(
        "--published-on",
        metavar="ADDRESS",
        help="the address that clients reach this one by, where a container or a proxy hides it (default: the host); "
        "other than a loopback address it needs VISION_API_KEYS, or VISION_OPEN=true",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; then finish what runs, and exit with 0. Everything that can go wrong before the first request
    is said before the port opens."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    check_place(arguments.host, arguments.port, arguments.workers)
    settings = Settings.from_env()
    published = arguments.host if arguments.published_on is None else arguments.published_on
    told = check_reach(published, settings)
    choice = choose(settings.device)
    if choice.note and NVIDIA_DRIVER.exists():
        print(f"running on {choice.provider}: {choice.note}", file=sys.stderr)
    built = prepare(settings, terminal_progress())
    os.environ["VISION_CORES"] = str(share(settings.cores or usable_cores(), arguments.workers))
    settings = Settings.from_env()
    if arguments.workers > 1:  # which would measure all at once, and each other
        for model in built:
            tune_ahead(model, choice, settings)
    serve(arguments.host, arguments.port, arguments.workers, settings, told)
    return 0


def serve(host: str, port: int, workers: int, settings: Settings, told: Sequence[str]) -> None:
    """Open the port and answer; `told` is logged as warnings. Raises SetupError where workers cannot start; does not return where
    there is just one."""
    from service.cli.supervisor import Supervisor  # what serves takes a second to import: other commands need none of it
    from service.cli.worker import serve_alone, work
    from service.http import cells, gate, logs
    from service.http.listening import listen

    logs.configure(settings.log_level)
    gate.warn(told)
    try:
        listener = listen(host, port)
    except OSError as error:
        raise nobody_listens(host, port, error) from None
    print(f"vision-service listens on http://{host}:{listener.getsockname()[1]} (try /docs)", file=sys.stderr, flush=True)
    if workers == 1:
        serve_alone(listener, settings)
    with cells.shared(workers):
        Supervisor(work, listener, workers, settings.shutdown_seconds + GRACE).run()


def check_reach(published: str, settings: Settings) -> list[str]:
    """What should be told of who can come in, where clients reach the service at `published`: an address or a name.

    Raises SettingInvalid for keys that are written wrong, and where there are none though other machines could come in.
    """
    from service.http import gate, keys

    ring, elsewhere = keys.load(settings), not is_loopback(published)
    if ring is None and elsewhere and not settings.open:
        raise SettingInvalid(
            f"{published or 'an empty address'} can be reached by other machines, and no keys are set: "
            "set VISION_API_KEYS=NAME:use+manage:KEY (a key: openssl rand -hex 32), or VISION_OPEN=true to serve whoever comes, "
            "or listen on 127.0.0.1; where a container or a proxy is reached from this machine only, add --published-on 127.0.0.1"
        )
    told = gate.worries(settings, ring, elsewhere=elsewhere)
    for text in told:
        print(f"vision-service: warning: {text}", file=sys.stderr)
    return told


def is_loopback(host: str) -> bool:
    """Is `host`, an address or a name, this machine for itself and nobody else? A name must mean loopback addresses only."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return host != "" and all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


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
        raise nobody_listens(host, port, error) from None


def nobody_listens(host: str, port: int, error: OSError) -> SettingInvalid:
    advice = "name another port, such as PORT=8001" if error.errno == errno.EADDRINUSE else "name another address or port"
    return SettingInvalid(f"nobody can listen on {host}, port {port}: {error.strerror}; {advice}")


def share(cores: int, workers: int) -> int:
    """Cores for each of `workers` processes, at least one."""
    return max(1, cores // workers)
