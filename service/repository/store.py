"""Where models live, and how to get one ready to load.

Manifests come from the folders in VISION_MODEL_REPOSITORY, then from repository/ in the data folder, where added models go by
default, then from the service itself: models/ in a checkout, service/manifests in an installed wheel. A model is built beside its
manifest where that can be written, else in the data folder; a wheel's models always there. What is made of a user's own model,
whose file lies beside model.toml, is in the folder .built.
"""

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from service.errors import ExportFailed, ModelUnknown, SettingInvalid, SetupError
from service.repository.build import BuiltModel, Record, RunGraph, build, damage, describe, graph_files, read_record
from service.repository.files import locked
from service.repository.places import PACKAGE, own_manifests
from service.repository.progress import Progress
from service.repository.public import check_licence, find_public, wanted
from service.repository.spec import MANIFEST, ModelSpec, load_spec
from service.settings import Settings

__all__ = [
    "BUILT",
    "BuiltModel",
    "added_models",
    "build_folder",
    "changed_at",
    "dropped",
    "ensure",
    "find_built",
    "manifests",
    "own_manifests",
    "roots",
    "scan",
    "selected",
    "verify_built",
]

BUILT = ".built"
"""The folder, beside a user's own model, of what is made of it."""


def scan(settings: Settings) -> dict[str, ModelSpec]:
    """The models selected by `settings`, by name, or all; of two with one name the first found counts.

    Raises SpecInvalid for a broken manifest among them, SettingInvalid for a folder or a model that does not exist.
    """
    found = manifests(settings)
    return {name: load_spec(found[name]) for name in selected(settings, found) or found}


def selected(settings: Settings, found: Collection[str]) -> list[str]:
    """The names that VISION_MODELS gives, aliases of public models being replaced by the names themselves.

    Raises SettingInvalid where one is none of `found`, the names of all manifests.
    """
    names = []
    for name in settings.models:
        try:
            names.append(name if name in found else find_public(name).name)
        except ModelUnknown:
            text = f"VISION_MODELS: there is no model {name!r}; the models are: {', '.join(found) or '(none)'}"
            raise SettingInvalid(f"{text}; vision-service models list --available shows more") from None
    return list(dict.fromkeys(names))


def roots(settings: Settings) -> list[Path]:
    """The folders that hold model folders, absolute; of two models with one name that in the first counts. Users' folders come
    before the service's own, which is the last. Raises SettingInvalid for one that does not exist."""
    for root in settings.model_repository:
        if (root / MANIFEST).exists():
            raise SettingInvalid(f"VISION_MODEL_REPOSITORY: {root} is a model's own folder; name the folder around it")
        if not root.is_dir():
            raise SettingInvalid(f"VISION_MODEL_REPOSITORY: there is no folder {root}")
    added = settings.data_folder / "repository"
    named = [*settings.model_repository, *([added] if added.is_dir() else []), own_manifests()]
    return list(dict.fromkeys(root.absolute() for root in named))


def added_models(settings: Settings) -> Path:
    """Where models go that are added: the first folder of VISION_MODEL_REPOSITORY, else one in the data folder."""
    return (settings.model_repository[0] if settings.model_repository else settings.data_folder / "repository").absolute()


def manifests(settings: Settings) -> dict[str, Path]:
    """The folder of every model by its name, unread; of public ones, those that were pulled or that settings name.

    Raises SettingInvalid as `roots` does.
    """
    found: dict[str, Path] = {}
    for root in roots(settings):
        for folder in sorted(root.iterdir()):
            if (folder / MANIFEST).is_file() and not folder.name.startswith("."):
                found.setdefault(folder.name, folder)
    for name, folder in wanted(settings, found).items():
        found.setdefault(name, folder)
    return found


def dropped(settings: Settings) -> list[Path]:
    """Folders in users' roots that hold an ONNX file and no manifest, or one that was put there after its manifest was written."""
    found = []
    for root in roots(settings):
        if root.is_relative_to(own_manifests()):
            continue
        for folder in sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")):
            files = [*folder.glob("*.onnx"), *folder.glob("[0-9]*/*.onnx")]
            if files and _is_news(files, folder / MANIFEST):
                found.append(folder)
    return found


def _is_news(files: Iterable[Path], manifest: Path) -> bool:
    if not manifest.is_file():
        return True
    try:
        spec = load_spec(manifest.parent)
    except SetupError:  # said where it is read
        return False
    return not spec.is_published and any(changed_at(file) > manifest.stat().st_mtime_ns for file in files)


def changed_at(file: Path) -> int:
    """When a file was written or, where the system tells that, put in its place: copying and moving may keep an old time. In ns."""
    about = file.stat()
    return about.st_mtime_ns if os.name == "nt" else max(about.st_mtime_ns, about.st_ctime_ns)


def build_folder(spec: ModelSpec, settings: Settings) -> Path:
    """Where `spec` is built: beside its manifest if that folder and the one around it can be written, else in the data folder."""
    return next((folder for folder in _folders(spec, settings) if _writable(folder)), _data_folder(spec, settings))


def _writable(folder: Path) -> bool:
    there = folder if folder.exists() else folder.parent
    return os.access(there, os.W_OK) and os.access(folder.parent, os.W_OK)


def find_built(spec: ModelSpec, settings: Settings) -> BuiltModel | None:
    """The built model, or None when it was never built, or by another recipe. Quick: reads no graph, so it may be damaged."""
    return next((describe(spec, folder, record) for folder, record in _records(spec, settings)), None)


def verify_built(spec: ModelSpec, settings: Settings) -> BuiltModel:
    """The built model, its labels and every byte of its graphs checked.

    Raises SetupError saying what is damaged, or that it is not built; SpecInvalid for the labels.
    """
    spec.read_labels()
    found = None
    for folder, record in _records(spec, settings):
        found = damage(spec, folder, record)
        if found is None:
            return describe(spec, folder, record)
    raise SetupError(found or f"{spec.name} is not built yet, or was built by another version of its recipe")


def ensure(
    spec: ModelSpec,
    settings: Settings,
    run_graph: RunGraph,
    progress: Progress,
    *,
    accepted: Collection[str] = (),
    retries: int | None = None,
) -> BuiltModel:
    """The built model: at once when it is in place and intact, else fetched, exported and checked first.

    run_graph(path, feeds) runs one ONNX graph once and gives its outputs by name. Processes that start at the same time wait for
    the first. accepted: licences or models whose terms are known, see service.repository.public. retries: see fetch_weights.

    Raises FetchFailed, DigestMismatch, LicenceNotAccepted, ExportFailed, ParityFailed, SpecInvalid, or SettingInvalid.
    """
    spec.read_labels()
    if find_built(spec, settings):
        try:
            return verify_built(spec, settings)
        except SetupError as error:
            progress.note(f"{error}; building {spec.name} again")
    folder = build_folder(spec, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingInvalid(_unwritable(spec, folder, error.strerror or str(error))) from None
    if not os.access(folder, os.W_OK):
        raise SettingInvalid(_unwritable(spec, folder, "it cannot be written"))
    with locked(folder / ".lock", progress, f"{spec.name}: another process is building it; waiting for it"):
        try:
            return verify_built(spec, settings)  # the other process has done it
        except SetupError:
            if not _has_weights(spec, folder):
                check_licence(spec, accepted)
            return _make(spec, folder, settings, run_graph, progress, retries)


def _make(
    spec: ModelSpec, folder: Path, settings: Settings, run_graph: RunGraph, progress: Progress, retries: int | None
) -> BuiltModel:
    from service.repository.fetch import fetch_weights, release_downloads  # an HTTP client: 0.2 s that a second start saves

    weights = fetch_weights(spec, folder, offline=settings.offline, progress=progress, retries=retries)
    release_downloads(spec, folder, _unfetched(spec, settings), progress)
    progress.note(f"{spec.name}: exporting")
    try:
        record = build(spec, folder, weights, run_graph)
    except OSError as error:
        raise ExportFailed(f"{spec.name} could not be built in {folder}: {error}") from error
    progress.note(f"{spec.name}: built; {'; '.join(record.parity.values())}")
    for name, reason in record.refused.items():
        what = f"{name}.onnx" if name in graph_files(spec) else name
        progress.note(f"{spec.name}: {what} is left out: {reason}")
    return describe(spec, folder, record)


def _unwritable(spec: ModelSpec, folder: Path, reason: str) -> str:
    return f"{spec.name} cannot be built in {folder}: {reason}; set VISION_DATA_DIR to another folder"


def _unfetched(spec: ModelSpec, settings: Settings) -> list[ModelSpec]:
    """The other selected models that still lack weights."""
    try:
        others = [other for name, other in scan(settings).items() if name != spec.name and not find_built(other, settings)]
    except SetupError:  # a broken manifest elsewhere is no reason to fail here
        return []
    return [other for other in others if not _has_weights(other, build_folder(other, settings))]


def _has_weights(spec: ModelSpec, folder: Path) -> bool:
    from service.repository.fetch import weight_paths

    return all(path.is_file() for path in weight_paths(spec, folder).values())


def _records(spec: ModelSpec, settings: Settings) -> list[tuple[Path, Record]]:
    found = [(folder, read_record(spec, folder)) for folder in _folders(spec, settings)]
    return [(folder, record) for folder, record in found if record]


def _folders(spec: ModelSpec, settings: Settings) -> list[Path]:
    """Where it may be built, best first. An installed wheel's own folders are not for writing."""
    data = _data_folder(spec, settings)
    if not spec.is_published:
        return [spec.folder / BUILT, data]
    return [data] if spec.folder.is_relative_to(PACKAGE) else [spec.folder, data]


def _data_folder(spec: ModelSpec, settings: Settings) -> Path:
    return settings.data_folder / "models" / spec.name
