"""Put a model where models live: all is built and checked in a folder aside, then swapped in by renaming."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from service.errors import ExportFailed, ModelExists, ModelFixed, ModelRefused, ModelUnknown
from service.intake.finding import Finding, name_of
from service.intake.inspecting import inspect
from service.intake.manifest import told_of, write
from service.intake.told import LABELS, Told
from service.repository.build import RunGraph
from service.repository.files import locked, put_in_place, write_whole
from service.repository.progress import Progress, Silent
from service.repository.spec import MANIFEST, ModelSpec, load_spec
from service.repository.store import BUILT, ensure, manifests, own_manifests
from service.settings import Settings

LOCK = ".intake.lock"
STAGING, OLD, GONE = ".adding-", ".old-", ".gone-"
MODEL = "model.onnx"


def place(  # noqa: PLR0913
    file: Path,
    told: Told,
    root: Path,
    settings: Settings,
    *,
    replace: bool = False,
    finding: Finding | None = None,
    run_graph: RunGraph,
    progress: Progress,
) -> ModelSpec:
    """Copy the ONNX file at `file` into a model folder of its own in `root`, with what was found written down and built.

    replace: may it take the place of an added model of that name? What was there stays whole until the new one is. finding: what
    inspect() gave for the same file and `told`, where it was asked already. Raises ModelRefused, ModelUnclear, ModelExists,
    ModelFixed, OptionInvalid, OSError.
    """
    name = name_of(file, told)
    _check_free(name, root, settings, replace)
    finding = finding or inspect(file, told, settings)
    with _staging(root, name) as folder:
        shutil.copyfile(file, folder / MODEL)
        for extra in finding.file.external:
            shutil.copyfile(extra, folder / extra.name)
        files = {path.name: path for path in (folder / MODEL, *(folder / extra.name for extra in finding.file.external))}
        _built(write(folder, finding, told, files), settings, run_graph, progress)
        with lock_of(root, progress):
            _check_free(name, root, settings, replace)
            _swap(folder, root / name)
    return load_spec(root / name)


def change(spec: ModelSpec, told: Told, settings: Settings, *, run_graph: RunGraph, progress: Progress) -> ModelSpec:
    """The added model `spec` with more, or other things, said of it: found out and built again in its own folder.

    Raises ModelFixed for another's model, and what `place` raises; then all is as it was.
    """
    _check_own(spec.folder, spec)
    if told.name not in (None, spec.name):
        raise ModelFixed(f"{spec.name} cannot be renamed; add it again by another name, and remove this one")
    return settle(spec.folder, spec.folder / spec.files[0].name, told.over(told_of(spec)), settings, run_graph, progress)


def settle(folder: Path, file: Path, told: Told, settings: Settings, run_graph: RunGraph, progress: Progress) -> ModelSpec:
    """Write down and build the model whose `file` lies in `folder` already, and is left as it is. Raises what `place` raises."""
    told = told.model_copy(update={"name": folder.name})
    finding = inspect(file, told, settings)
    if not os.access(folder, os.W_OK):
        raise ModelFixed(f"{folder} cannot be written, so nothing can be written down beside {file.name}")
    with _staging(folder.parent, folder.name) as staged:
        files = _copied(finding, file, folder, staged)
        _built(write(staged, finding, told, files), settings, run_graph, progress)
        with lock_of(folder.parent, progress):
            _install(staged, folder)
    return load_spec(folder)


def remove(folder: Path, settings: Settings) -> None:
    """Delete the folder of an added model. Raises ModelUnknown where there is none, ModelFixed for a model of the service's own."""
    if not folder.is_dir():
        raise ModelUnknown(folder.name, sorted(manifests(settings)))
    _check_own(folder, None)
    with lock_of(folder.parent, Silent()):
        gone = folder.with_name(f"{GONE}{folder.name}-{uuid.uuid4().hex[:8]}")
        try:
            folder.rename(gone)
        except OSError as error:
            raise ModelFixed(f"{folder} cannot be removed: {error.strerror or error}") from None
    if gone.is_symlink():
        gone.unlink()
    shutil.rmtree(gone, ignore_errors=True)


def _check_free(name: str, root: Path, settings: Settings, replace: bool) -> None:
    """Raises ModelFixed for the name of a model of the service's own, ModelExists for one that is taken and not to be replaced."""
    there = manifests(settings).get(name)
    if there is not None and there.is_relative_to(own_manifests()):
        raise ModelFixed(f"{name} is a model that comes with the service; give another name")
    taken = root / name
    if there is None and not taken.exists():
        return
    if not replace:
        raise ModelExists(
            f"there is a model {name} already, in {there or taken}; give another name, or say that it is to be replaced"
        )
    if there is not None and there != taken:
        raise ModelFixed(f"the model {name} lies in {there}, from where it cannot be replaced; give another name")


def _check_own(folder: Path, spec: ModelSpec | None) -> None:
    if folder.is_relative_to(own_manifests()) or (spec is not None and spec.is_published):
        raise ModelFixed(f"{folder.name} is a model that comes with the service, or was pulled; it cannot be changed here")
    if not os.access(folder.parent, os.W_OK):
        raise ModelFixed(f"{folder.parent} cannot be written, so {folder.name} cannot be changed")


@contextmanager
def _staging(root: Path, name: str) -> Iterator[Path]:
    """A folder of that name in a hidden one in `root`, gone at the end."""
    root.mkdir(parents=True, exist_ok=True)
    aside = root / f"{STAGING}{uuid.uuid4().hex[:12]}"
    try:
        (aside / name).mkdir(parents=True)
        yield aside / name
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def lock_of(root: Path, progress: Progress) -> AbstractContextManager[None]:
    """What adding, changing and removing hold while they rename folders in `root`."""
    return locked(root / LOCK, progress, f"another process is adding a model to {root}; waiting for it")


def _built(spec: ModelSpec, settings: Settings, run_graph: RunGraph, progress: Progress) -> None:
    try:
        ensure(spec, settings, run_graph, progress)
    except ExportFailed as error:
        raise ModelRefused(f"the file cannot be used: {error}") from None


def _copied(finding: Finding, file: Path, folder: Path, staged: Path) -> dict[str, Path]:
    """The files that lie in `folder`, for the time of building in `staged` too, by the names in model.toml.

    No links: onnx takes them for an attack, and to make one changes the times by which a changed file is known.
    """
    files = {}
    for path in (file, *(file.parent / extra.name for extra in finding.file.external)):
        name = path.relative_to(folder).as_posix()
        target = staged / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        files[name] = target
    return files


def _swap(new: Path, target: Path) -> None:
    """`new` as `target`; what was there is put aside first, and back again where the second renaming fails."""
    old = target.with_name(f"{OLD}{target.name}-{uuid.uuid4().hex[:8]}")
    if target.exists():
        target.rename(old)
    try:
        put_in_place(new, target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _install(staged: Path, folder: Path) -> None:
    """What was built and written in `staged` into `folder`, model.toml last: after a crash before that it is built again."""
    shutil.rmtree(folder / BUILT, ignore_errors=True)
    if (staged / BUILT).is_dir():
        (staged / BUILT).rename(folder / BUILT)
    if (staged / LABELS).exists():
        write_whole(folder / LABELS, (staged / LABELS).read_bytes())
    write_whole(folder / MANIFEST, (staged / MANIFEST).read_bytes())
