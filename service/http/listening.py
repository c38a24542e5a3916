"""Sockets that listen: opened, and closed without losing a connection. Imports nothing heavy: supervisors need it too."""

import ctypes
import resource
import socket
import struct
import sys
from contextlib import suppress

BACKLOG = 2048  # connections that may wait to be accepted
MAX_CONNECTIONS = 4096
SPARE_FILES = 128  # for models, logs and what else a process opens
SO_ATTACH_FILTER = 26


def listen(host: str, port: int) -> socket.socket:
    """A non-blocking listening socket; port 0 is a free one. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def hold_off(listener: socket.socket) -> None:
    """Let no further handshake begin on a listening socket. Clients try again on their own after a second, and find another
    server or a closed port; a handshake done after the last accept() would be reset together with the request on it."""
    if sys.platform == "linux":
        drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # a packet filter: return 0 bytes
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop_all)))


def allow_connections() -> int:
    """How many connections this process may have, after raising its limit of open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    room = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else (soft - SPARE_FILES) // 2  # the other half: to refuse politely
    return max(16, min(MAX_CONNECTIONS, room))
