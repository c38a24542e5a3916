"""The models by name: which are known, which one each task uses, which are loaded, and how one takes another's place.

Requests that hold a model which is replaced or dropped end on it: its lane closes when the last of them has let go of it.
"""

import logging
import threading
import weakref
from collections.abc import Mapping
from typing import Literal

from service.catalogue import Chosen, ModelCard, card, check, choices
from service.errors import ModelUnknown, NotReady
from service.loaded import LoadedModel, load, load_known
from service.repository.preference import Choice
from service.repository.progress import Progress
from service.repository.spec import ModelSpec, Task
from service.repository.store import ensure, find_built
from service.runtime.machine import give_back_memory, in_background
from service.runtime.providers import Choice as Device
from service.runtime.providers import choose
from service.runtime.session import run_once
from service.settings import Settings

State = Literal["ready", "loading", "unloaded", "failed"]

logger = logging.getLogger(__name__)


class Shelf:
    """Models by name, each fetched, built and loaded at its first use. Safe to use from several threads."""

    def __init__(self, settings: Settings, progress: Progress, models: Mapping[str, LoadedModel]) -> None:
        self.settings = settings
        self.serving = False
        self._progress = progress
        self._models: dict[str, LoadedModel] = dict(models)
        self._specs: dict[str, ModelSpec] = {name: model.spec for name, model in models.items()}
        self._failed: dict[str, str] = {}
        self._unloaded: set[str] = set()
        self._chosen: Chosen = {}
        self._choice: Device | None = None
        self._lock = threading.RLock()
        self._closed = False
        self.detector: Choice | None = None
        self._choose()

    def names(self) -> list[str]:
        """All models that are known, loaded or not."""
        return list(dict.fromkeys([*self._specs, *self._failed]))

    @property
    def specs(self) -> list[ModelSpec]:
        """Manifests of the models that requests can have."""
        return [spec for name, spec in list(self._specs.items()) if name not in self._unloaded]

    @property
    def known(self) -> list[ModelSpec]:
        """Manifests of those that were unloaded too."""
        return list(self._specs.values())

    @property
    def loaded(self) -> list[LoadedModel]:
        return list(self._models.values())

    @property
    def pending(self) -> list[str]:
        """Names of models that are to be there and have not answered a warm-up run."""
        return [spec.name for spec in self.specs if spec.opened_at_start and not self._is_warm(spec.name)]

    def _is_warm(self, name: str) -> bool:
        model = self._models.get(name)
        return model is not None and model.warm

    def state(self, name: str) -> State:
        """Raises ModelUnknown."""
        if name in self._unloaded:
            return "unloaded"
        if name in self._specs:
            return "ready" if self._is_warm(name) or not self._specs[name].opened_at_start else "loading"
        if name in self._failed:
            return "failed"
        raise ModelUnknown(name, self.names())

    def reason(self, name: str) -> str | None:
        """Why a model did not load, or why its newest version did not take the place of the one that runs; else None."""
        return self._failed.get(name)

    def describe(self) -> list[ModelCard]:
        """A card for every model that is loaded."""
        return [self.card(model) for model in self.loaded]

    def card(self, model: LoadedModel) -> ModelCard:
        """What there is to say of a loaded model, and of its place among the others."""
        default = self._chosen.get((model.spec.task, None))
        named = self.detector is not None and self.detector.name == model.spec.name
        why = self.detector.why if self.detector is not None and named else None
        return card(model, default=default is not None and default.name == model.spec.name, chosen=why)

    def spec(self, task: Task, name: str | None) -> ModelSpec:
        """The manifest of the model for `task` of that name or alias, or of the default one.

        Raises ModelUnknown, and NotReady where it, or every model for the task, was unloaded.
        """
        spec = self._chosen.get((task, name))
        if spec is None:
            away = [self._specs[other] for other in sorted(self._unloaded) if other in self._specs]
            if any(spec.task == task and name in {None, spec.name, *spec.aliases} for spec in away):
                who = f"the model {name!r}" if name else f"the model for {task}"
                raise NotReady(f"{who} was unloaded; its operator can load it again")
            raise ModelUnknown(name or "(default)", [spec.name for spec in self.specs if spec.task == task])
        return spec

    def has(self, task: Task) -> bool:
        """Is there a model for `task`?"""
        return (task, None) in self._chosen

    def get(self, name: str) -> LoadedModel:
        """The model called `name`, fetched, built, loaded and warmed up if it is not yet.

        Raises ModelUnknown, SetupError, and NotReady for one that was unloaded, and after close().
        """
        model = self._models.get(name)
        if model is not None and model.warm:
            return model
        with self._lock:
            if self._closed:
                raise NotReady("the engine is closed")
            if name in self._unloaded:
                raise NotReady(f"the model {name!r} was unloaded; its operator can load it again")
            if name not in self._specs:
                raise ModelUnknown(name, [spec.name for spec in self.specs])
            model = self._models.get(name) or self._open(self._specs[name])
            model.warm_up()
            self._models[name] = model
            give_back_memory()
            return model

    def load(self, name: str) -> LoadedModel:
        """Have a model loaded that was unloaded; nothing where it is. It counts as unloaded until it is ready. Raises as get()."""
        spec = self._specs.get(name)
        if name in self._unloaded and spec is not None:
            self.put(spec, again=True)
        return self.get(name)

    def unload(self, name: str) -> None:
        """Take a model out of service until load() or the next start; requests that run end on it. Raises ModelUnknown."""
        with self._lock:
            if name not in self._specs:
                raise ModelUnknown(name, self.names())
            self._unloaded.add(name)
            self._models.pop(name, None)
            self._choose()
        give_back_memory()

    def put(self, spec: ModelSpec, *, again: bool = False) -> None:
        """Load `spec` and let it have its name's place. Raises what loading raises; then everything is as it was.

        again: it had the place before, and gets it only where no other version came, and nobody removed it, in the meantime. What
        is wrong with a newer version stays said.
        """
        check(spec)
        model = self._open(spec)
        model.warm_up()
        with self._lock:
            if self._closed:
                model.close()
                raise NotReady("the engine is closed")
            if again and self._specs.get(spec.name) is not spec:
                model.close()
                return
            self._models[spec.name], self._specs[spec.name] = model, spec
            if not again:
                self._failed.pop(spec.name, None)
            self._unloaded.discard(spec.name)
            self._choose()
        give_back_memory()

    def drop(self, name: str) -> None:
        """Know a model no more; requests that run end on it."""
        with self._lock:
            self._specs.pop(name, None)
            self._models.pop(name, None)
            self._failed.pop(name, None)
            self._unloaded.discard(name)
            self._choose()
        give_back_memory()

    def leave_out(self, name: str, error: Exception) -> None:
        """Say, once, why a model or its newest version is not there. One that runs goes on running, one that was unloaded can be
        loaded."""
        if self._failed.get(name) != str(error):
            logger.error("the model %s is left out: %s", name, error)
        with self._lock:
            self._failed[name] = str(error)
            if name not in self._models and name not in self._unloaded:
                self._specs.pop(name, None)
                self._choose()

    def close(self) -> None:
        """Stop taking work, finish what runs, free the models. It does not open again."""
        with self._lock:
            self._closed = True
            models, self._models = self._models, {}
        for model in models.values():
            model.close()

    def _choose(self) -> None:
        name = None if self.detector is None else self.detector.name
        self._chosen = choices(self.specs, name, pinned=self.settings.detector != "auto")

    def _open(self, spec: ModelSpec) -> LoadedModel:
        self._choice = self._choice or choose(self.settings.device)
        choice, settings = self._choice, self.settings
        if self.serving:  # measuring beside requests would slow them, and find what is not so
            settings = settings.model_copy(update={"tune": False})
            in_background(lambda: load(ensure(spec, settings, run_once, self._progress), choice, settings).close())
        built = find_built(spec, settings)
        known = None if built is None else load_known(built, choice, settings)
        model = known or load(ensure(spec, settings, run_once, self._progress), choice, settings)
        weakref.finalize(model, model.lane.close).atexit = False
        return model
