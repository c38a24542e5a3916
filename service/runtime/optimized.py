"""Optimised graphs, kept: what onnxruntime makes of a graph while loading it, saved beside the model for the next start.

.optimized/<graph>-<key>-<sha256>.onnx

The key stands for everything the file depends on: the build of the model, onnxruntime's version, the provider and the
processor with its features, since the weights lie in the order that its vector units want. The last part of the name is the
file's own SHA-256, so that a file and the record of it cannot disagree: it is checked before each use, and a file that is
damaged or refused by onnxruntime is dropped and made again. Files appear by renaming, so several processes may do all
this at once. Where no folder can be written, everything works without.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.repository.files import digest_of
from service.runtime.machine import processor
from service.runtime.providers import CPU, Choice, import_onnxruntime
from service.runtime.session import OrtSession, Sizes

FOLDER = ".optimized"
FORMAT = 1
KEPT = 4
"""Files kept for one graph, the newest ones: machines of different kinds may share a folder."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Optimized:
    """The optimised graphs of one build of a model. `folders`: where they may lie, the best place first; `build`: digest of the
    record of that build, None where there is no record and nothing can be kept."""

    folders: Sequence[Path]
    build: str | None
    choice: Choice

    def find(self, graph: Path) -> Path | None:
        """The optimised form of `graph`, every byte of it checked; None when there is none, and always on a GPU: there it was
        not measured that it pays."""
        for path in self._named(graph):
            try:
                if digest_of(path) == path.stem.rpartition("-")[2]:
                    return path
                path.unlink()
            except OSError:
                continue
        return None

    def open(self, graph: Path, *, threads: int, sizes: Sizes, found: Path | None = None) -> OrtSession:
        """A session of `graph`: from its optimised form (`found`, or looked for, or made now), else from the graph itself."""
        found = found or self.find(graph) or self._make(graph)
        if found is not None:
            try:
                return OrtSession(found, self.choice, threads=threads, sizes=sizes, optimized=True)
            except Exception:  # noqa: BLE001 - onnxruntime's errors share no base class; the graph itself is the way out
                with suppress(OSError):
                    found.unlink()
        return OrtSession(graph, self.choice, threads=threads, sizes=sizes)

    def _make(self, graph: Path) -> Path | None:
        """Write the optimised form into the first folder that can be written; None where there is none. The session that writes it
        is not kept: optimising leaves tens of megabytes in it."""
        for folder in (folder / FOLDER for folder in self.folders if self._key(graph)):
            part = folder / f".{graph.stem}-{secrets.token_hex(8)}.part"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                part.touch()
                OrtSession(graph, self.choice, save_to=part)
                _drop_old(folder, graph.stem)
                return part.replace(folder / f"{graph.stem}-{self._key(graph)}-{digest_of(part)}.onnx")
            except Exception as error:  # noqa: BLE001 - a full disk is no reason not to start; a broken graph will say so again
                logger.debug("the optimised form of %s is not kept in %s: %s", graph, folder, error)
            finally:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
        return None

    def _named(self, graph: Path) -> list[Path]:
        key = self._key(graph)
        return [path for folder in self.folders if key for path in (folder / FOLDER).glob(f"{graph.stem}-{key}-*.onnx")]

    def _key(self, graph: Path) -> str | None:
        _, features = processor()
        if self.build is None or features is None or self.choice.provider != CPU:
            return None
        parts = (FORMAT, self.build, graph.name, import_onnxruntime().__version__, self.choice.provider, features)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _drop_old(folder: Path, stem: str) -> None:
    """Make room for one file more of a graph: the newest stay, but no part that a killed process left.

    Another process may be doing the same.
    """
    kept = sorted(_ages(folder, f"{stem}-{'[0-9a-f]' * 16}-*.onnx"), reverse=True)
    parts = [(age, path) for age, path in _ages(folder, f".{stem}-*.part") if age < time.time() - 3600]
    for _, path in (*kept[KEPT - 1 :], *parts):
        with suppress(OSError):
            path.unlink()


def _ages(folder: Path, pattern: str) -> list[tuple[float, Path]]:
    found: list[tuple[float, Path]] = []
    for path in folder.glob(pattern):
        with suppress(OSError):
            found.append((path.stat().st_mtime, path))
    return found
