"""The supervisor on workers that do nothing but die, hang or say why they cannot start; and how workers take turns."""

import importlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from service.cli import supervisor
from service.cli.supervisor import ABSENT, NOT_READY, Seat, Supervisor
from service.errors import SetupError

# What follows runs in other processes, which find it by this module's name.


def well(listener: socket.socket, table: Any, index: int, pipe: Connection) -> None:
    """Serve nobody until the pipe ends."""
    seat = Seat(table, index, lambda: True)
    while not pipe.poll(0.02):
        seat.beat()


def crash(listener: socket.socket, table: Any, index: int, pipe: Connection) -> None:
    os._exit(7)


def explain(listener: socket.socket, table: Any, index: int, pipe: Connection) -> None:
    pipe.send("the GPU is gone")
    os._exit(1)


def hang(listener: socket.socket, table: Any, index: int, pipe: Connection) -> None:
    """The second worker beats once and then no more."""
    Seat(table, index, lambda: True).beat()
    if index == 1:
        time.sleep(600)
    well(listener, table, index, pipe)


def stubborn(listener: socket.socket, table: Any, index: int, pipe: Connection) -> None:
    Seat(table, index, lambda: True).beat()
    time.sleep(600)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def make(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Supervisor]:
    for name, value in (("FIRST_PAUSE", 0.01), ("LOOK", 0.05), ("MOST_FAILURES", 3)):
        monkeypatch.setattr(supervisor, name, value)
    module = importlib.import_module("tests.cli.test_supervisor")  # as the other processes will know it
    return lambda work, **given: Supervisor(getattr(module, work), listener, 2, **{"grace": 5.0, **given})


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Act as soon as `condition` holds, or after 20 seconds."""

    def watch() -> None:
        end = time.monotonic() + 20
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def all_ready(kept: Supervisor) -> bool:
    return max(kept.table[1::2]) < NOT_READY and all(kept.pids)


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_workers_that_die_are_replaced_until_a_signal_ends_all(make: Any) -> None:
    kept, first = make("well"), []

    def kill_one() -> None:
        first.extend(kept.pids)
        os.kill(first[0], signal.SIGKILL)

    watchers = [
        when(lambda: all_ready(kept), kill_one),
        when(lambda: bool(first) and all_ready(kept) and kept.pids[0] != first[0], sigterm),
    ]
    before = signal.getsignal(signal.SIGTERM)
    kept.run()
    for watcher in watchers:
        watcher.join()
    assert kept.pids[0] not in (None, first[0])
    assert kept.pids[1] == first[1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_workers_that_die_before_they_are_ready_are_given_up(make: Any) -> None:
    with pytest.raises(SetupError, match=f"status 7, {supervisor.MOST_FAILURES} times in a row"):
        make("crash").run()


def test_why_a_worker_cannot_start_is_told_at_once(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SetupError, match="the GPU is gone"):
        make("explain").run()
    assert len([record for record in caplog.records if "ended with status 1" in record.getMessage()]) == 1


def test_a_worker_that_hangs_is_killed_and_replaced(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    kept = make("hang", hung=10, grace=0.5)
    watcher = when(lambda: "ended by signal 9" in caplog.text, sigterm)
    kept.run()
    watcher.join()
    assert "a worker hangs and is killed" in caplog.text


@pytest.mark.parametrize(("grace", "signals"), [(0.1, 1), (60.0, 2)], ids=["time is up", "a second signal"])
def test_workers_that_do_not_end_are_killed(make: Any, grace: float, signals: int) -> None:
    kept = make("stubborn", grace=grace)
    watchers = [when(lambda: all_ready(kept), sigterm)]
    if signals == 2:
        watchers.append(when(lambda: kept.ending, sigterm))
    start = time.monotonic()
    kept.run()
    for watcher in watchers:
        watcher.join()
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("mine", "others", "at_first", "then"),
    [
        (3, [3], 0, 0),
        (2, [3], 0, 0),
        (4, [3], supervisor.LEFT_TO_OTHERS, 0),
        (4, [NOT_READY], 0, 0),
        (4, [ABSENT, 5], 0, 0),
        (NOT_READY, [ABSENT], 0, 0),
        (NOT_READY + 2, [NOT_READY], supervisor.LEFT_TO_OTHERS, 0),
        (NOT_READY, [50], supervisor.NOT_READY_WAIT, supervisor.NOT_READY_WAIT),
    ],
)
def test_the_worker_with_the_fewest_connections_takes_the_next(mine: int, others: list[int], at_first: float, then: float) -> None:
    table = [0, 0, *(value for load in others for value in (0, load))]
    seat = Seat(table, 0, lambda: mine < NOT_READY)
    seat.count(mine % NOT_READY)
    assert table[1] == mine
    assert (seat.wait(False), seat.wait(True)) == (at_first, then)


def test_a_beat_tells_of_readiness() -> None:
    table, ready = [0, ABSENT, 0, ABSENT], [False]
    seat = Seat(table, 1, lambda: ready[0])
    seat.beat()
    assert table == [0, ABSENT, 1, NOT_READY]
    ready[0] = True
    seat.beat()
    assert table == [0, ABSENT, 2, 0]
