"""Logs as one JSON object a line on stderr: time, level, logger, message, and whatever `extra` a record carries."""

import json
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

from pydantic_core import to_json

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
    """A handler with a second, short way in, for what is logged with every request."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._second, self._told = 0, ""

    def put(self, logger: str, message: str, fields: Mapping[str, object]) -> None:
        """Write one line at the level info: as a log record would come out, at a fifth of its time."""
        self.acquire()
        try:
            head = {"time": self._now(), "level": "info", "logger": logger, "message": message}
            line = str(to_json({**head, **fields}, ensure_ascii=True), "ascii")
            self.stream.write(line + self.terminator)
            self.stream.flush()
        except Exception:  # noqa: BLE001 - as logging itself does: a log that cannot be written fails no request
            self.handleError(logging.makeLogRecord({"name": logger, "msg": message}))
        finally:
            self.release()

    def _now(self) -> str:
        """The time as JsonLines tells it; what it says of the second is worked out once a second."""
        milliseconds = time.time_ns() // 1_000_000
        second, rest = divmod(milliseconds, 1000)
        if second != self._second:
            self._second, self._told = second, datetime.fromtimestamp(second, UTC).isoformat()[:19]
        return f"{self._told}.{rest:03d}+00:00"


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
