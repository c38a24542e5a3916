"""The model folders as the fleet follows them: what in them may change, and when it has stayed the same for long enough."""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from service.repository.spec import MANIFEST
from service.repository.store import own_manifests, roots
from service.settings import Settings

Signature = tuple[tuple[str, int, int], ...]
"""Names below the folder, times in nanoseconds and sizes in bytes of the files that their owner may change."""

OWNERS = frozenset({".onnx", ".txt", ".toml"})

logger = logging.getLogger(__name__)


def signature(folder: Path) -> Signature:
    """What `folder` holds now. Of models that come with the service only the manifest counts: the rest is built there."""
    own = folder.is_relative_to(own_manifests())
    found = []
    for path in [*folder.glob("*"), *([] if own else folder.glob("[0-9]*/*.onnx"))]:
        if not path.name.startswith(".") and (path.name == MANIFEST or (not own and path.suffix in OWNERS)):
            try:
                about = path.stat()
            except OSError:  # it has gone between two looks
                continue
            found.append((str(path.relative_to(folder)), about.st_mtime_ns, about.st_size))
    return tuple(sorted(found))


def look(settings: Settings) -> Mapping[Path, Signature]:
    """The signatures of every folder that is or may become a model."""
    folders = (folder for root in roots(settings) for folder in root.iterdir())
    return {folder: signature(folder) for folder in folders if folder.is_dir() and not folder.name.startswith(".")}


class Watcher:
    """Calls `changed` on a thread of its own when the folders are not as they were, and have been the same for two looks."""

    def __init__(self, settings: Settings, changed: Callable[[], None]) -> None:
        self._settings, self._changed = settings, changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="model-folders", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait: what is being taken in meets a fleet that is closed."""
        self._stop.set()

    def _watch(self) -> None:
        settled = before = look(self._settings)
        while not self._stop.wait(self._settings.reload_seconds):
            try:
                now = look(self._settings)
                if now == before != settled:
                    settled = now  # whatever comes of it: the same change is not tried again and again
                    self._changed()
                    now = settled = look(self._settings)
                before = now
            except Exception:  # whatever is wrong with a folder, the service goes on
                logger.exception("the model folders cannot be followed")
