"""Folders that were put into a model repository by hand: one ONNX file without a model.toml, or one that has changed since."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from service.errors import ModelFixed, ModelRefused, VisionError
from service.intake.manifest import told_of
from service.intake.place import GONE, OLD, STAGING, lock_of, settle
from service.intake.told import LABELS, NAME, NOTHING, Told, read_labels, read_told
from service.repository.build import RunGraph
from service.repository.files import digest_of
from service.repository.progress import Progress
from service.repository.spec import MANIFEST, ModelSpec, load_spec
from service.repository.store import changed_at, own_manifests, roots
from service.settings import Settings

LEFT_OVER = 3600.0
"""Seconds after which what a killed process left behind is cleared away."""


def adopt_dropped(settings: Settings, *, run_graph: RunGraph, progress: Progress) -> list[tuple[Path, VisionError]]:
    """Write a model.toml for each dropped folder that has none, or whose file has changed, and build it; what was refused.

    A folder holds one .onnx, or a version of it below, as Triton has it: <name>/1/model.onnx, of which the highest counts. Files
    are left where and as they are. A bad new file leaves what was built of the good old one.
    """
    refused: list[tuple[Path, VisionError]] = []
    for root in roots(settings):
        if root == own_manifests():
            continue
        _recover(root, progress)
        for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
            try:
                found = _to_settle(folder)
                if found is not None:
                    settle(folder, found[0], found[1], settings, run_graph, progress)
            except VisionError as error:
                refused.append((folder, error))
            except OSError as error:
                refused.append((folder, ModelFixed(f"{folder}: {error.strerror or error}")))
    return refused


def _to_settle(folder: Path) -> tuple[Path, Told] | None:
    """The file to be written down and what is told of it; None where nothing is to be done. Raises ModelRefused, OptionInvalid."""
    if not (folder / MANIFEST).is_file():
        file = _only_file(folder)
        if file is None:
            return None
        if re.fullmatch(NAME, folder.name) is None:
            raise ModelRefused(
                f"the folder {folder.name!r} cannot be a model's name: small letters, digits, dots, dashes; rename it"
            )
        labels = folder / LABELS
        return file, read_told({"labels": read_labels(labels)}) if labels.is_file() else NOTHING
    spec = load_spec(folder)
    if spec.is_published or not _has_changed(spec):
        return None
    newest = _only_file(folder)
    return (newest or folder / spec.files[0].name), told_of(spec)


def _has_changed(spec: ModelSpec) -> bool:
    """Reads a file only where its size is the same and one of its times is later than the manifest's."""
    written = (spec.folder / MANIFEST).stat().st_mtime_ns
    for file in spec.files:
        path = spec.folder / file.name
        about = path.stat()
        if about.st_size != file.size or (changed_at(path) >= written and digest_of(path) != file.sha256):
            return True
    return False


def _only_file(folder: Path) -> Path | None:
    """The folder's ONNX file, None where it has none. Raises ModelRefused where there are several."""
    files = sorted(path for path in folder.glob("*.onnx") if path.is_file() and not path.name.startswith("."))
    if not files:
        versions = [path for path in folder.glob("*/model.onnx") if path.is_file() and path.parent.name.isdecimal()]
        return max(versions, key=lambda path: int(path.parent.name), default=None)
    if len(files) > 1:
        raise ModelRefused(
            f"{folder} holds {len(files)} ONNX files ({', '.join(file.name for file in files)}); leave one in each folder"
        )
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", files[0].name) is None:
        raise ModelRefused(f"{files[0].name!r} in {folder}: letters, digits, dots, dashes and underscores only, please; rename it")
    return files[0]


def _recover(root: Path, progress: Progress) -> None:
    """After a killed process: the old folder back where the new one had not come yet, and what is stale cleared away."""
    if not (left := list(_hidden(root))) or not os.access(root, os.W_OK):
        return
    with lock_of(root, progress):
        for path in left:
            _tidy(root, path)


def _tidy(root: Path, path: Path) -> None:
    with suppress(OSError):  # another process has done it
        name = path.name.removeprefix(OLD).rpartition("-")[0]
        if path.name.startswith(OLD) and not (root / name).exists() and (path / MANIFEST).is_file():
            path.rename(root / name)
        elif path.is_symlink():
            path.unlink()
        elif time.time() - path.stat().st_mtime > LEFT_OVER:
            shutil.rmtree(path, ignore_errors=True)


def _hidden(root: Path) -> Iterator[Path]:
    yield from [path for path in root.iterdir() if path.name.startswith((STAGING, OLD, GONE)) and path.is_dir()]
