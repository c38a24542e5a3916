"""Logs as one JSON object a line on stderr: time, level, logger, message, and whatever `extra` a record carries."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TextIO

from pydantic_core import to_json

HOLD_SECONDS, MOST_HELD = 0.02, 100
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, separators=(",", ":"))


class Lines(logging.StreamHandler[TextIO]):
    """A handler with a second, short way in, for what is logged with every request.

    Such lines are written together, HOLD_SECONDS after the first of them or when there are many: a write for each would have every
    thread of a busy service wait for it. A record that comes the long way is written at once, after them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._held: list[str] = []
        self._second, self._told = 0, ""

    def put(self, logger: str, message: str, fields: Mapping[str, object]) -> None:
        """Write one line at the level info, as a log record would come out; at once where no event loop is running."""
        with self.lock or nullcontext():
            head = {"time": self._now(), "level": "info", "logger": logger, "message": message}
            try:
                self._held.append(str(to_json({**head, **fields}, ensure_ascii=True), "ascii"))
            except ValueError:
                self.handleError(logging.makeLogRecord({"name": logger, "msg": message}))
            count = len(self._held)
        if count == 1:
            try:
                asyncio.get_running_loop().call_later(HOLD_SECONDS, self.flush)
            except RuntimeError:
                self.flush()
        elif count >= MOST_HELD:
            self.flush()

    def _now(self) -> str:
        """The time as JsonLines tells it; what it says of the second is worked out once a second."""
        milliseconds = time.time_ns() // 1_000_000
        second, rest = divmod(milliseconds, 1000)
        if second != self._second:
            self._second, self._told = second, datetime.fromtimestamp(second, UTC).isoformat()[:19]
        return f"{self._told}.{rest:03d}+00:00"

    def emit(self, record: logging.LogRecord) -> None:
        self.flush()
        super().emit(record)

    def flush(self) -> None:
        """Write what is held back. The end of a process does so too, by logging.shutdown()."""
        with self.lock or nullcontext():
            if self._held:
                lines, self._held = self.terminator.join([*self._held, ""]), []
                try:
                    self.stream.write(lines)
                except Exception:  # noqa: BLE001 - as logging itself does: a log that cannot be written fails no request
                    self.handleError(logging.makeLogRecord({"msg": "lines of requests"}))
        super().flush()


def info(logger: logging.Logger, message: str, fields: Mapping[str, object]) -> None:
    """Log `message` with `fields`, by the short way where the logs of this process are as configure() has set them up."""
    if not logger.isEnabledFor(logging.INFO):
        return
    match logging.getLogger().handlers:
        case [Lines() as handler]:
            handler.put(logger.name, message, fields)
        case _:
            logger.info(message, extra=dict(fields))


def configure(level: str) -> None:
    """Send every log of this process to stderr as JSON lines: ours and uvicorn's from `level` up, others' from warnings up."""
    root = logging.getLogger()
    root.handlers = [Lines()]
    root.setLevel(logging.WARNING)  # Pillow at "debug" would log what is in a picture's metadata
    for name in ("service", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = [], False  # service.http.access writes its own line
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what it warns of is told to the client
