"""What tuning found, kept in tuning.json beside the model, so that only the first start on a machine measures.

An entry counts for exactly what was measured: the build of the model, the machine (processor, GPUs, cores to plan for), the
provider, onnxruntime's version, this code's version, and the plans that the settings left to choose from. Several machines may
share a folder: each has its own entries, the newest ENTRIES of all are kept. A file that cannot be read as such is ignored and
written anew. One process measures at a time; others wait for it, and then find its result.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from service.repository.files import write_whole
from service.runtime.machine import gpu_names, processor
from service.runtime.providers import CPU, import_onnxruntime
from service.runtime.tuning import TUNING_VERSION, Plan, Tuning

FILE = "tuning.json"
LOCK = ".tuning.lock"
ENTRIES = 32
WAIT_SECONDS = 60.0
"""How long another process's measuring is waited for; it takes about a second."""


class _Entry(BaseModel):
    """`machine` is for readers; what counts is `key`."""

    key: str
    machine: str
    tuning: Tuning


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")

    entries: list[_Entry] = []


@dataclass(frozen=True)
class Memory:
    """Where the tuning of one model is kept: `folders`, the best first; `build` is the digest of its build, None: keep nothing."""

    folders: Sequence[Path]
    build: str | None
    provider: str
    cores: int

    def recall(self, plans: Sequence[Plan]) -> Tuning | None:
        """What was measured among `plans` before, on a machine like this one."""
        key = self._key(plans)
        for folder in self.folders if key else ():
            for entry in _read(folder / FILE).entries:
                if entry.key == key and entry.tuning.plan in plans:
                    return entry.tuning.model_copy(update={"source": "remembered"})
        return None

    def keep(self, plans: Sequence[Plan], tuning: Tuning) -> None:
        """Add what was measured, in the first folder that can be written; without one it is measured again next time."""
        key = self._key(plans)
        if key is None:
            return
        entry = _Entry(key=key, machine=self._machine(), tuning=tuning)
        for folder in self.folders:
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                others = [other for other in _read(folder / FILE).entries if other.key != key]
                kept = _Kept(entries=[*others, entry][-ENTRIES:])
                write_whole(folder / FILE, json.dumps(kept.model_dump(mode="json"), indent=1).encode())
                return

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Wait until no other process measures this model. False where that took too long: then it is no good time to measure."""
        for folder in self.folders:
            lock = FileLock(folder / LOCK)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=WAIT_SECONDS)
            except Timeout:
                yield False
                return
            except (OSError, NotImplementedError):  # it cannot be written, or its file system knows no locks
                continue
            try:
                yield True
            finally:
                lock.release()
            return
        yield True

    def _key(self, plans: Sequence[Plan]) -> str | None:
        if self.build is None:
            return None
        parts = (TUNING_VERSION, self.build, self._machine(), processor()[1], [plan.model_dump_json() for plan in plans])
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _machine(self) -> str:
        gpus = "" if self.provider == CPU else f", {', '.join(gpu_names()) or 'unknown GPU'}"
        runtime = f"{self.provider} of onnxruntime {import_onnxruntime().__version__}"
        return f"{processor()[0]}, {self.cores} cores{gpus}, {runtime}"


def _read(path: Path) -> _Kept:
    try:
        return _Kept.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return _Kept()
