"""A client that costs little: prepared bytes over kept-alive connections, one epoll loop, no HTTP library.

    due -> an idle connection -> send -> read status, headers and body -> idle again

Closed loop (rate None): each connection asks again as soon as it has its answer. Open loop: requests fall due at a fixed rate
whatever the server does; one for which no connection is free is sent as soon as there is one.
"""

import os
import re
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

BUFFER = 2**18
CODE = re.compile(rb'"code": *"(\w+)"')


@dataclass
class Tally:
    """What came back. Latencies in seconds, from the first byte sent to the last one read, by status and problem code.

    `seconds` is the time of asking, and `rate` counts the 200s in it; latencies also those that came after it.
    """

    seconds: float = 0.0
    rate: float = 0.0
    sent: int = 0
    due: int = 0
    latencies: dict[str, list[float]] = field(default_factory=dict)
    without_retry_after: int = 0
    broken: int = 0
    unanswered: int = 0
    client_cores: float = 0.0

    def times(self, kind: str) -> list[float]:
        """Latencies of answers whose kind ("200", "503 queue_full") begins so."""
        return [seconds for name, times in self.latencies.items() if name.startswith(kind) for seconds in times]

    def answers(self, kind: str) -> int:
        return len(self.times(kind))

    def milliseconds(self, kind: str, percentile: float) -> float | None:
        times = self.times(kind)
        return float(np.percentile(times, percentile)) * 1e3 if times else None


class _Connection:
    """One socket, and the request on it: `rest` is what is still to be sent, `began` is 0 while nothing is asked."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.rest = memoryview(b"")
        self.answer = b""
        self.began = 0.0

    def send(self) -> None:
        """Send what fits. No error when the server has closed: it may have answered before, and that is still to be read."""
        try:
            self.rest = self.rest[self.socket.send(self.rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self.rest = memoryview(b"")

    def read(self) -> bool:
        """Read what has come. False when the server has closed, or the connection broke."""
        try:
            data = self.socket.recv(BUFFER)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.answer += data
        return bool(data)

    def parsed(self) -> tuple[int, bytes] | None:
        """Status and lower-case headers as soon as the whole answer is there."""
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if not found:
            return None
        headers = head.lower()
        _, named, length = headers.partition(b"\r\ncontent-length:")
        if named and len(body) < int(length.split(b"\r\n", 1)[0]):
            return None
        return int(head[9:12]), headers


class Load:
    """Sends `messages` to a port of this machine until they or `seconds` are over, then waits for what is still unanswered."""

    def __init__(self, port: int, messages: Iterator[bytes], connections: int, rate: float | None = None) -> None:
        self._port, self._messages, self._rate = port, messages, rate
        self._next = next(messages, None)
        self._poll = select.epoll()
        self._all: dict[int, _Connection] = {}
        self._idle: deque[_Connection] = deque()
        self._tally = Tally()
        for _ in range(connections):
            self._open()

    @property
    def answered(self) -> int:
        """Requests that have their answer so far; may be asked from another thread."""
        return sum(map(len, list(self._tally.latencies.values())))

    def run(self, seconds: float = float("inf"), patience: float = 60.0) -> Tally:
        """Requests that have no answer `patience` seconds after the last one was sent count as unanswered."""
        self._begin, self._cpu = time.perf_counter(), os.times()
        while (elapsed := time.perf_counter() - self._begin) < seconds and self._ask(elapsed):
            self._wait(0.001 if self._rate else 0.05)
        self._stop_watch()
        limit = time.perf_counter() + patience
        while len(self._idle) < len(self._all) and time.perf_counter() < limit:
            self._wait(0.05)
        tally = self._tally
        tally.unanswered = sum(connection.began > 0 for connection in self._all.values())
        for connection in self._all.values():
            connection.socket.close()
        self._poll.close()
        return tally

    def _wait(self, seconds: float) -> None:
        for number, _ in self._poll.poll(seconds):
            self._advance(self._all[number])

    def _stop_watch(self) -> None:
        tally, cpu = self._tally, os.times()
        tally.seconds = time.perf_counter() - self._begin
        tally.rate = tally.answers("200") / tally.seconds
        tally.client_cores = (cpu.user + cpu.system - self._cpu.user - self._cpu.system) / tally.seconds

    def _ask(self, elapsed: float) -> bool:
        """Send what is due on the connections that are free. False when there is nothing more to send, ever."""
        tally = self._tally
        tally.due = tally.sent + len(self._idle) if self._rate is None else int(elapsed * self._rate)
        while self._idle and tally.sent < tally.due and self._next is not None:
            connection = self._idle.popleft()
            connection.rest, connection.answer, connection.began = memoryview(self._next), b"", time.perf_counter()
            self._next = next(self._messages, None)
            tally.sent += 1
            self._advance(connection)
        return self._next is not None

    def _advance(self, connection: _Connection) -> None:
        if connection.rest:
            connection.send()
            self._poll.modify(connection.socket, select.EPOLLIN | (select.EPOLLOUT if connection.rest else 0))
        alive = connection.read()
        found = connection.parsed() if connection.began else None
        if found:
            self._count(connection, *found)
            alive = alive and b"\r\nconnection: close" not in found[1]
            if alive and not connection.rest:
                self._idle.append(connection)
        elif alive and not connection.began and not connection.rest and connection not in self._idle:
            self._idle.append(connection)  # answered before all of it was sent, and now it is
        if not alive:
            self._tally.broken += connection.began > 0
            self._replace(connection)

    def _count(self, connection: _Connection, status: int, headers: bytes) -> None:
        code = None if status == 200 else CODE.search(connection.answer)
        kind = f"{status} {code[1].decode()}" if code else str(status)
        self._tally.latencies.setdefault(kind, []).append(time.perf_counter() - connection.began)
        self._tally.without_retry_after += status == 503 and b"\r\nretry-after:" not in headers
        connection.began = 0.0

    def _replace(self, connection: _Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        del self._all[connection.socket.fileno()]
        self._poll.unregister(connection.socket)
        connection.socket.close()
        self._open()

    def _open(self) -> None:
        connection = _Connection(self._port)
        self._all[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, select.EPOLLIN)
        self._idle.append(connection)
