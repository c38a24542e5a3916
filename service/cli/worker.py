"""A process that serves: by itself, or as one of a supervisor's workers.

Either leaves by os._exit() once the server has ended: by then every request is answered, and a painting that nobody waits for, or a
model still being loaded, must not keep the process alive, nor meet an interpreter that is taken apart around it.
"""

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NoReturn

from service.cli.supervisor import Seat, Table
from service.engine import Engine
from service.errors import SetupError
from service.http import logs
from service.http.app import create_app
from service.http.server import Server, Turns
from service.repository.progress import Silent
from service.settings import Settings


def serve_alone(listener: socket.socket, settings: Settings) -> NoReturn:
    """Serve until SIGTERM or SIGINT, and leave: with status 0, or 1 where the engine cannot start. Raises SetupError for what is
    wrong with the settings."""
    reasons: list[str] = []
    server = _server(listener, settings, reasons.append, lambda _: None)
    server.run()
    for reason in reasons:
        print(f"vision-service: {reason}", file=sys.stderr)
    leave(server.status)


def work(listener: socket.socket, table: Table, index: int, pipe: Connection) -> NoReturn:
    """What each worker of a supervisor runs, until `pipe` ends: then the supervisor wants it to end, or is dead. Why it cannot
    start goes up the pipe."""
    servers: list[Server] = []

    def obey() -> None:
        with suppress(EOFError, OSError):
            pipe.recv()
        if not servers:
            os._exit(0)  # before anything was accepted
        servers[0].stop()

    def tell(reason: str) -> None:
        with suppress(OSError):
            pipe.send(reason)

    threading.Thread(target=obey, name="obey", daemon=True).start()
    listener.setblocking(False)
    try:
        server = _server(listener, Settings.from_env(), tell, lambda engine: Seat(table, index, lambda: engine.ready))
    except SetupError as error:
        tell(str(error))
        leave(1)
    servers.append(server)
    server.run()
    leave(server.status)


def _server(
    listener: socket.socket, settings: Settings, tell: Callable[[str], None], turns: Callable[[Engine], Turns | None]
) -> Server:
    logs.configure(settings.log_level)
    engine = Engine(settings, progress=Silent())

    def give_up(reason: str) -> None:
        tell(reason)
        server.stop(1)

    app = create_app(engine, give_up=give_up)
    server = Server(app, settings, listener, turns=turns(engine), ending=app.ending)
    return server


def leave(status: int) -> NoReturn:
    """End this process now, whatever its other threads do."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
