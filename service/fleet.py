"""The models of an engine: which there are, which are loaded, and how they come and go while requests run.

    folders -> specs -> chosen for each task -> loaded -> lent to requests

A model is replaced by putting another in its place: requests that hold the old one end on it, and its lane closes when the last of
them has let go. What cannot be loaded never takes the place of what runs. Own models of a user that do not load are left out and
said; those that come with the service, or that VISION_MODELS names, must load.
"""

import logging
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from service.catalogue import ModelCard, card, check, choices
from service.errors import ModelFixed, ModelUnknown, NotReady, SettingInvalid, SetupError, VisionError
from service.loaded import LoadedModel, load, load_known
from service.repository.progress import Progress
from service.repository.spec import MANIFEST, ModelSpec, Task, load_spec
from service.repository.store import added_models, dropped, ensure, find_built, manifests, own_manifests, roots
from service.runtime.machine import give_back_memory, in_background
from service.runtime.providers import Choice, choose
from service.runtime.session import run_once
from service.settings import Settings

if TYPE_CHECKING:
    from service.intake import Finding, Told

State = Literal["ready", "loading", "unloaded", "failed"]
Signature = tuple[tuple[str, int, int], ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Known:
    """One model's folder as it was last read; `signature` of its files then."""

    folder: Path
    signature: Signature


class Fleet:
    """All models of the settings, or `models` by name, for tests. Safe to use from several threads.

    A model is fetched, built and loaded by start() or at its first use.
    """

    def __init__(self, settings: Settings, progress: Progress, models: Mapping[str, LoadedModel] | None = None) -> None:
        self.settings = settings
        self._progress = progress
        self._models: dict[str, LoadedModel] = dict(models or {})
        self._fixed = models is not None
        self._specs: dict[str, ModelSpec] = {name: model.spec for name, model in self._models.items()}
        self._known: dict[str, _Known] = {}
        self._failed: dict[str, str] = {}
        self._unloaded: set[str] = set()
        self._chosen: dict[tuple[Task, str | None], ModelSpec] = {}
        self._choice: Choice | None = None
        self._loading, self._changing = threading.RLock(), threading.Lock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self._closed = self._serving = False
        if models is None:
            self._read_folders()
        for spec in self._specs.values():
            check(spec)
        self._choose()

    # What there is

    def names(self) -> list[str]:
        """All models that are known, loaded or not."""
        return list(dict.fromkeys([*self._specs, *self._failed]))

    @property
    def specs(self) -> list[ModelSpec]:
        """Manifests of the models that requests can have."""
        return [spec for name, spec in self._specs.items() if name not in self._unloaded]

    @property
    def loaded(self) -> list[LoadedModel]:
        return list(self._models.values())

    @property
    def pending(self) -> list[str]:
        """Names of models that are to be there and have not answered a warm-up run."""
        return [spec.name for spec in self.specs if spec.name not in self._models or not self._models[spec.name].warm]

    def state(self, name: str) -> State:
        """Raises ModelUnknown."""
        if name in self._unloaded:
            return "unloaded"
        if name in self._specs:
            return "loading" if name in self.pending else "ready"
        if name in self._failed:
            return "failed"
        raise ModelUnknown(name, self.names())

    def reason(self, name: str) -> str | None:
        """Why a model did not load, or why its newest version did not take the place of the one that runs; else None."""
        return self._failed.get(name)

    def describe(self) -> list[ModelCard]:
        """A card for every model that is loaded."""
        return [card(model) for model in self.loaded]

    def spec(self, task: Task, name: str | None) -> ModelSpec:
        """The manifest of the model for `task` of that name or alias, or of the default one. Raises ModelUnknown."""
        spec = self._chosen.get((task, name))
        if spec is None:
            raise ModelUnknown(name or "(default)", [spec.name for spec in self.specs if spec.task == task])
        return spec

    def has(self, task: Task) -> bool:
        return (task, None) in self._chosen

    def get(self, name: str) -> LoadedModel:
        """The model called `name`, fetched, built, loaded and warmed up if it is not yet.

        Raises ModelUnknown, also for one that was unloaded, SetupError, and NotReady after close().
        """
        model = self._models.get(name)
        if model is not None and model.warm:
            return model
        if name not in self._specs or name in self._unloaded:
            raise ModelUnknown(name, [spec.name for spec in self.specs])
        with self._loading:
            if self._closed:
                raise NotReady("the engine is closed")
            if name not in self._models:
                self._models[name] = self._open(self._specs[name])
            self._models[name].warm_up()
            give_back_memory()
            return self._models[name]

    # Start and end

    def start(self) -> None:
        """Load every model, then follow the folders. Raises SetupError saying what to do."""
        if not self._specs:
            raise SettingInvalid("no models were found; check VISION_MODELS and VISION_MODEL_REPOSITORY")
        for name, spec in list(self._specs.items()):
            try:
                self.get(name)
            except (SetupError, VisionError) as error:
                if not self._may_fail(spec):
                    raise
                self._leave_out(name, error)
        self._serving = True
        if self.settings.reload_seconds and not self._fixed:
            self._watcher = threading.Thread(target=self._watch, name="models", daemon=True)
            self._watcher.start()

    def close(self) -> None:
        """Stop taking work, finish what runs, free the models. A fleet does not open again."""
        self._stop.set()
        with self._loading:
            self._closed = True
            models, self._models = self._models, {}
        for model in models.values():
            model.close()

    # Changes

    def load(self, name: str) -> LoadedModel:
        """Have a model loaded that was unloaded; nothing where it is. Raises as get()."""
        with self._loading:
            self._unloaded.discard(name)
            self._choose()
        return self.get(name)

    def unload(self, name: str) -> None:
        """Take a model out of service until load() or the next start; requests that run end on it. Raises ModelUnknown."""
        if name not in self._specs:
            raise ModelUnknown(name, self.names())
        with self._loading:
            self._unloaded.add(name)
            self._choose()
            self._models.pop(name, None)
        give_back_memory()

    def inspect(self, file: Path, told: "Told") -> "Finding":
        """What a file is, without adding it. Raises ModelRefused, ModelUnclear."""
        from service.intake import inspect

        return in_background(lambda: inspect(file, told, self.settings))

    def add(self, file: Path, told: "Told", *, replace: bool = False) -> ModelCard:
        """Add the ONNX file at `file`, which is copied, and load it beside or, with `replace`, in place of what is there.

        Raises ModelRefused, ModelUnclear, ModelExists, ModelFixed, OptionInvalid.
        """
        from service.intake import place

        def placed() -> ModelSpec:
            root = added_models(self.settings)
            root.mkdir(parents=True, exist_ok=True)
            return place(file, told, root, self.settings, replace=replace, run_graph=run_once, progress=self._progress)

        with self._changing:
            return self._take_in(in_background(placed))

    def change(self, name: str, told: "Told") -> ModelCard:
        """Know more of an added model, or other than before: it is built again and takes its own place.

        Raises what add() raises, and ModelUnknown.
        """
        from service.intake import change

        spec = self._own(name)
        with self._changing:
            return self._take_in(
                in_background(lambda: change(spec, told, self.settings, run_graph=run_once, progress=self._progress))
            )

    def remove(self, name: str) -> None:
        """Delete an added model's folder; requests that run end on it. Raises ModelUnknown, ModelFixed."""
        from service.intake import remove

        with self._changing:
            folder = self._failed_folder(name) or self._own(name).folder
            remove(folder, self.settings)
            self._drop(name)

    def refresh(self) -> None:
        """Look at the folders, and take in what is new or has changed, drop what has gone. What is wrong is logged and left out."""
        with self._changing:
            self._adopt_dropped()
            found = self._folders()
            for name in [name for name in self._known if name not in found]:
                logger.info("the model %s is gone from its folder", name)
                self._drop(name)
            for name, folder in found.items():
                self._follow(name, folder)

    # Inside

    def _read_folders(self) -> None:
        self._adopt_dropped()
        found = self._folders()
        unknown = [name for name in self.settings.models if name not in found]
        if unknown:
            known = ", ".join(found) or "(none)"
            raise SettingInvalid(f"VISION_MODELS: there is no model {unknown[0]!r}; the models are: {known}")
        for name in self.settings.models or found:
            self._known[name] = _Known(found[name], signature(found[name]))
            try:
                self._specs[name] = load_spec(found[name])
            except SetupError as error:
                if name in self.settings.models or found[name].is_relative_to(own_manifests()):
                    raise
                self._leave_out(name, error)

    def _folders(self) -> dict[str, Path]:
        """The folders of the models that there should be: all, or with VISION_MODELS those named and those added since the start."""
        found = manifests(self.settings)
        if not (self.settings.models and self._serving):
            return found
        return {name: folder for name, folder in found.items() if name in self._known or not folder.is_relative_to(own_manifests())}

    def _adopt_dropped(self) -> None:
        if not dropped(self.settings):
            return
        from service.intake import adopt_dropped

        refused = in_background(lambda: adopt_dropped(self.settings, run_graph=run_once, progress=self._progress))
        for folder, error in refused:
            self._leave_out(folder.name, error)

    def _may_fail(self, spec: ModelSpec) -> bool:
        return not spec.is_published and spec.name not in self.settings.models

    def _leave_out(self, name: str, error: Exception) -> None:
        if self._failed.get(name) != str(error):
            logger.error("the model %s is left out: %s", name, error)
        self._failed[name] = str(error)
        if name not in self._models:
            self._specs.pop(name, None)
            self._choose()

    def _choose(self) -> None:
        self._chosen = choices(self.specs)

    def _own(self, name: str) -> ModelSpec:
        spec = self._specs.get(name)
        if spec is None:
            raise ModelUnknown(name, self.names())
        if spec.folder.is_relative_to(own_manifests()):
            raise ModelFixed(f"{name} comes with the service; add a model of your own under another name")
        return spec

    def _failed_folder(self, name: str) -> Path | None:
        if name in self._specs or name not in self._failed:
            return None
        for root in roots(self.settings):
            if (root / name).is_dir() and not root.is_relative_to(own_manifests()):
                return root / name
        return None

    def _take_in(self, spec: ModelSpec) -> ModelCard:
        """Load `spec` and let it have its place. Raises what loading raises; nothing has changed then."""
        check(spec)
        model = self._open(spec)
        model.warm_up()
        with self._loading:
            if self._closed:
                model.close()
                raise NotReady("the engine is closed")
            self._models[spec.name], self._specs[spec.name] = model, spec
            self._known[spec.name] = _Known(spec.folder, signature(spec.folder))
            self._failed.pop(spec.name, None)
            self._unloaded.discard(spec.name)
            self._choose()
        give_back_memory()
        return card(model)

    def _drop(self, name: str) -> None:
        with self._loading:
            for held in (self._specs, self._known, self._failed, self._models):
                held.pop(name, None)  # type: ignore[attr-defined]
            self._unloaded.discard(name)
            self._choose()
        give_back_memory()

    def _follow(self, name: str, folder: Path) -> None:
        known, now = self._known.get(name), signature(folder)
        if known is not None and known == _Known(folder, now):
            return
        self._known[name] = _Known(folder, now)
        try:
            spec = load_spec(folder)
            before = self._specs.get(name)
            if before == spec and name in self._models:
                return
            in_background(lambda: ensure(spec, self.settings, run_once, self._progress))
            self._take_in(spec)
            self._known[name] = _Known(folder, signature(folder))
            logger.info("the model %s was %s", name, "taken in" if before is None else "replaced by its new version")
        except VisionError as error:
            self._leave_out(name, error)

    def _open(self, spec: ModelSpec) -> LoadedModel:
        self._choice = self._choice or choose(self.settings.device)
        choice, settings = self._choice, self.settings
        if self._serving:  # measuring beside requests would slow them, and find what is not so
            settings = settings.model_copy(update={"tune": False})
            in_background(lambda: load(ensure(spec, settings, run_once, self._progress), choice, settings).close())
        built = find_built(spec, settings)
        known = None if built is None else load_known(built, choice, settings)
        model = known or load(ensure(spec, settings, run_once, self._progress), choice, settings)
        weakref.finalize(model, model.lane.close).atexit = False
        return model

    def _watch(self) -> None:
        """Look every few seconds; what has changed is taken in once it has stayed the same from one look to the next."""
        seen = look(self.settings)
        settled = seen
        while not self._stop.wait(self.settings.reload_seconds):
            try:
                now = look(self.settings)
                if now != settled and now == seen:
                    self.refresh()
                    settled = look(self.settings)
                seen = now
            except Exception:  # whatever is wrong with a folder, the service goes on
                logger.exception("the model folders cannot be followed")


def signature(folder: Path) -> Signature:
    """Names, sizes and times of the files of a model's folder that its owner may change."""
    return tuple(_files(folder))


def look(settings: Settings) -> dict[Path, Signature]:
    """The signatures of every folder that is or may become a model."""
    return {folder: signature(folder) for root in roots(settings) for folder in sorted(root.iterdir()) if folder.is_dir()}


def _files(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    own = folder.is_relative_to(own_manifests())
    for path in sorted(folder.glob("*")) + ([] if own else sorted(folder.glob("[0-9]*/*.onnx"))):
        if path.name.startswith(".") or not (path.name == MANIFEST or (not own and path.suffix in {".onnx", ".txt", ".toml"})):
            continue
        try:
            about = path.stat()
        except OSError:
            continue
        found.append((str(path.relative_to(folder)), about.st_mtime_ns, about.st_size))
    return found
