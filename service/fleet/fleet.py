"""The models of an engine: read from their folders at the start, and followed there while requests run.

    folders -> specs -> chosen for each task -> loaded -> lent to requests

What cannot be loaded never takes the place of what runs. A user's own model that does not load is left out and said; those that
come with the service, or that VISION_MODELS names, must load.
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.catalogue import ModelCard, check
from service.errors import ModelFixed, ModelUnknown, SettingInvalid, SetupError, VisionError
from service.fleet.folders import Signature, Watcher, signature
from service.fleet.shelf import Shelf
from service.loaded import LoadedModel
from service.repository.preference import choose_detector, standing_detector
from service.repository.preference import told as in_words
from service.repository.progress import Progress
from service.repository.public import is_public, remove_pulled
from service.repository.spec import ModelSpec, load_spec
from service.repository.store import (
    BuiltModel,
    added_models,
    dropped,
    ensure,
    find_built,
    manifests,
    own_manifests,
    roots,
    selected,
)
from service.runtime.machine import in_background
from service.runtime.session import run_once
from service.settings import Settings

if TYPE_CHECKING:
    from service.intake import Finding, Told

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Seen:
    """A model's folder as it was last read."""

    folder: Path
    signature: Signature


class Fleet(Shelf):
    """All models of the settings, or only `models` by name, for tests."""

    def __init__(self, settings: Settings, progress: Progress, models: Mapping[str, LoadedModel] | None = None) -> None:
        super().__init__(settings, progress, models or {})
        self._seen: dict[str, _Seen] = {}
        self._unwanted: dict[str, _Seen] = {}
        self._changing = threading.Lock()
        self._watcher = Watcher(settings, self.refresh) if models is None and settings.reload_seconds else None
        self._given = models is not None
        if models is None:
            self._read_folders()
            self.detector = standing_detector(settings)
            self._choose()
        for spec in self.specs:
            check(spec)

    def start(self) -> None:
        """Load every model, or build those that are opened later, then follow the folders. Raises SetupError saying what to do."""
        if not self._given:
            self.choose_detector()
        if not self._specs:
            raise SettingInvalid("no models were found; check VISION_MODELS and VISION_MODEL_REPOSITORY")
        for spec in self.specs:
            try:
                if spec.opened_at_start:
                    self.get(spec.name)
                elif find_built(spec, self.settings) is None:
                    ensure(spec, self.settings, run_once, self._progress)
            except VisionError as error:
                if not self.may_fail(spec):
                    raise
                self.leave_out(spec.name, error)
        if self._watcher is not None and not self.serving:
            self._watcher.start()
        self.serving = True

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
        super().close()

    def may_fail(self, spec: ModelSpec) -> bool:
        """May the service start without it? So it is with a user's own models, but those that VISION_MODELS names."""
        return not spec.is_published and spec.name not in self.settings.models

    def inspect(self, file: Path, told: "Told") -> "Finding":
        """What a file is, without adding it. Raises ModelRefused, ModelUnclear."""
        from service.intake import inspect

        return in_background(lambda: inspect(file, told, self.settings))

    def add(self, file: Path, told: "Told", *, replace: bool = False, finding: "Finding | None" = None) -> ModelCard:
        """Add the ONNX file at `file`, which is copied, and load it beside or, with `replace`, in place of what is there.

        finding: what inspect() gave for the same file and `told`, where it was asked already. Raises ModelRefused, ModelUnclear,
        ModelExists, ModelFixed, OptionInvalid.
        """
        from service.intake import place

        def placed() -> ModelSpec:
            root = added_models(self.settings)
            root.mkdir(parents=True, exist_ok=True)
            return place(
                file, told, root, self.settings, replace=replace, finding=finding, run_graph=run_once, progress=self._progress
            )

        with self._changing:
            return self._alone(self._take_in(in_background(placed)))

    def change(self, name: str, told: "Told") -> ModelCard:
        """Know more of an added model, or other than before: it is built again and takes its own place.

        Raises what add() raises, and ModelUnknown.
        """
        spec = self._own(name)
        with self._changing:
            return self._alone(self._changed(spec, told))

    def remove(self, name: str) -> None:
        """Delete an added model's folder, or what was built of a public one; requests that run end on it.

        Raises ModelUnknown, ModelFixed.
        """
        from service.intake import remove

        with self._changing:
            spec = self._specs.get(name)
            if spec is not None and is_public(spec.folder):
                remove_pulled(name, self.settings)
            else:
                remove(self._left_out(name) or self._own(name).folder, self.settings)
            self._seen.pop(name, None)
            self.drop(name)

    def refresh(self) -> None:
        """Look at the folders: take in what is new or has changed, drop what has gone. What is wrong is logged and left out."""
        with self._changing:
            refused = self._adopt_dropped()
            found = self._folders()
            for name in [name for name in {*self._seen, *self._failed} - refused if name not in found]:
                logger.info("the model %s is gone from its folder", name)
                self._seen.pop(name, None)
                self.drop(name)
            for name, folder in found.items():
                if name in refused:  # its manifest is that of the file before
                    self._seen[name] = _Seen(folder, signature(folder))
                else:
                    self._follow(name, folder)

    def choose_detector(self) -> None:
        """Settle which detector is the default one; it is fetched, and joins the others, where it was not there before."""
        self.detector = choose_detector(self.settings, self._progress, run_once)
        name = self.detector.name
        if name not in self._specs and name not in self._failed and not self.settings.models:
            self._read_folders()
        self._choose()
        if name in self._specs:
            logger.info(in_words(self.detector, self._specs[name]))

    def _read_folders(self) -> None:
        self._adopt_dropped()
        found = self._folders()
        wanted = selected(self.settings, found)
        self._unwanted = {name: _Seen(folder, signature(folder)) for name, folder in found.items() if wanted and name not in wanted}
        for name in wanted or found:
            self._seen[name] = _Seen(found[name], signature(found[name]))
            try:
                self._specs[name] = load_spec(found[name])
            except SetupError as error:
                if name in wanted or found[name].is_relative_to(own_manifests()):
                    raise
                self.leave_out(name, error)
        self._choose()

    def _folders(self) -> dict[str, Path]:
        """The folders of models by name, but for those that VISION_MODELS left out at the start and that are as they were."""
        left_out = self._unwanted
        return {
            name: folder
            for name, folder in manifests(self.settings).items()
            if name not in left_out or left_out[name] != _Seen(folder, signature(folder))
        }

    def _adopt_dropped(self) -> frozenset[str]:
        """Give folders that were dropped a manifest; the names of those that were refused."""
        if not dropped(self.settings):
            return frozenset()
        from service.intake import adopt_dropped

        refused = in_background(lambda: adopt_dropped(self.settings, run_graph=run_once, progress=self._progress))
        for folder, error in refused:
            self.leave_out(folder.name, error)
        return frozenset(folder.name for folder, _ in refused)

    def _follow(self, name: str, folder: Path) -> None:
        now = _Seen(folder, signature(folder))
        if self._seen.get(name) == now:
            return
        self._seen[name] = now
        try:
            new = name not in self._models
            self._take_in(load_spec(folder))
            logger.info("the model %s was %s", name, "taken in" if new else "replaced by its new version")
        except VisionError as error:
            self.leave_out(name, error)

    def _take_in(self, spec: ModelSpec) -> ModelSpec:
        self.put(spec)
        self._seen[spec.name] = _Seen(spec.folder, signature(spec.folder))
        return spec

    def _changed(self, spec: ModelSpec, told: "Told") -> ModelSpec:
        from service.intake import change

        return self._take_in(in_background(lambda: change(spec, told, self.settings, run_graph=run_once, progress=self._progress)))

    def _alone(self, added: ModelSpec) -> ModelCard:
        """Of the added models for one task, `added` alone says that it is the default where it does so."""
        from service.intake import Told

        others = [spec for spec in self.specs if spec.task == added.task and spec.name != added.name and not spec.is_published]
        for spec in others if added.default else ():
            if spec.default:
                self._changed(spec, Told.model_validate({"default": False}))
        return self.card(self.get(added.name))

    def _own(self, name: str) -> ModelSpec:
        spec = self._specs.get(name)
        if spec is None:
            raise ModelUnknown(name, self.names())
        if spec.folder.is_relative_to(own_manifests()):
            raise ModelFixed(f"{name} comes with the service; add a model of your own under another name")
        return spec

    def _left_out(self, name: str) -> Path | None:
        """The folder of a model that never loaded."""
        if name in self._specs or name not in self._failed:
            return None
        places = (root / name for root in roots(self.settings) if not root.is_relative_to(own_manifests()))
        return next((folder for folder in places if folder.is_dir()), None)


def prepare(settings: Settings, progress: Progress) -> list[BuiltModel]:
    """Fetch and build what a fleet of these settings will load, so that nothing is missing when the port opens.

    A user's own model that cannot be built is said and left out. Raises SetupError.
    """
    fleet = Fleet(settings, progress)
    fleet.choose_detector()
    built = []
    for spec in fleet.specs:
        try:
            built.append(find_built(spec, settings) or ensure(spec, settings, run_once, progress))
        except SetupError as error:
            if not fleet.may_fail(spec):
                raise
            fleet.leave_out(spec.name, error)
    return built
