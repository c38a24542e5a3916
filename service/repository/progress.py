"""How people see what takes long: bars on a terminal, plain lines in a log, nothing in tests."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichBars
from rich.table import Column

Advance = Callable[[int], None]


class Progress(Protocol):
    """Where long work reports to. Safe to use from several threads."""

    def note(self, message: str) -> None:
        """Say one line."""
        ...

    def bar(self, label: str, total: int | None, done: int = 0) -> AbstractContextManager[Advance]:
        """Follow a download of `total` bytes, None where unknown, of which `done` were there before; call with each gain."""
        ...


class Silent:
    """Says nothing."""

    def note(self, message: str) -> None:
        pass

    def bar(self, label: str, total: int | None, done: int = 0) -> AbstractContextManager[Advance]:  # noqa: ARG002
        return nullcontext(lambda _: None)


class Plain:
    """Lines on `stream`: at the start, at every tenth of the way or 5 s, and at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def note(self, message: str) -> None:
        print(message, file=self._stream, flush=True)

    @contextmanager
    def bar(self, label: str, total: int | None, done: int = 0) -> Iterator[Advance]:
        whole = "unknown size" if total is None else _megabytes(total)
        self.note(f"{label}: downloading, {whole}" + (f", {_megabytes(done)} of it already here" if done else ""))
        started = told = time.monotonic()
        now, told_at = done, done

        def advance(gained: int) -> None:
            nonlocal now, told, told_at
            now += gained
            clock = time.monotonic()
            tenth = total is not None and now - told_at >= total / 10 and clock - told >= 0.5
            if (tenth or clock - told >= 5) and now != total:
                share = "" if not total else f"{100 * now // total} % of "
                self.note(f"{label}: {share}{whole if total else _megabytes(now)}, {_speed(now - done, clock - started)}")
                told, told_at = clock, now

        yield advance
        seconds = time.monotonic() - started
        self.note(f"{label}: {_megabytes(now)} complete in {seconds:.1f} s, {_speed(now - done, seconds)}")


class Bars:
    """Bars with size and speed on a terminal; several at once share the place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._bars: RichBars | None = None
        self._open = 0

    def note(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, label: str, total: int | None, done: int = 0) -> Iterator[Advance]:
        with self._lock:
            if self._bars is None:
                self._bars = RichBars(
                    TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
                    BarColumn(bar_width=20),
                    DownloadColumn(),
                    TransferSpeedColumn(),
                    TimeRemainingColumn(),
                    console=self._console,
                    expand=True,
                )
                self._bars.start()
            bars = self._bars
            self._open += 1
        task = bars.add_task(label, total=total, completed=done)
        try:
            yield lambda gained: bars.advance(task, gained)
        finally:
            with self._lock:
                self._open -= 1
                if not self._open:
                    bars.stop()
                    self._bars = None


def terminal_progress(stream: TextIO | None = None) -> Progress:
    """Bars where `stream` (default: stderr) is a terminal, plain lines elsewhere."""
    stream = sys.stderr if stream is None else stream
    return Bars(Console(file=stream)) if stream.isatty() else Plain(stream)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"


def _speed(size: int, seconds: float) -> str:
    return f"{size / 1e6 / max(seconds, 1e-3):.1f} MB/s"
