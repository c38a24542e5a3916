"""The catalogue: models that others have published, each with its manifest in models/catalogue, to be had by name.

None of them is here until it is pulled; then it counts among the service's own. `labels` in that folder holds the label files that
several of them share.
"""

import shutil
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from service.errors import LicenceNotAccepted, ModelUnknown, SettingInvalid
from service.repository.build import RECORD
from service.repository.places import own_manifests
from service.repository.spec import MANIFEST, ModelSpec, load_spec
from service.settings import Settings

CATALOGUE = "catalogue"


def public_models(catalogue: Path | None = None) -> Mapping[str, ModelSpec]:
    """Every manifest of the catalogue by name, read at the first call: 40 ms for a hundred. Raises SpecInvalid."""
    return _read(catalogue or _catalogue())


def find_public(name: str, catalogue: Path | None = None) -> ModelSpec:
    """The public model of that name or alias. Raises ModelUnknown, naming those that are called alike."""
    place = catalogue or _catalogue()
    if name in _names(place):  # which needs no other manifest
        return load_spec(place / name)
    models = public_models(place)
    found = _aliases(place).get(name)
    if found is None:
        raise ModelUnknown(name, alike(name, [*models, *_aliases(place)]) or list(models))
    return models[found]


def by_digest(sha256: str, catalogue: Path | None = None) -> ModelSpec | None:
    """The public model whose only file has that SHA-256; of several, one that has an alias, then the shortest name."""
    found = [spec for spec in public_models(catalogue).values() if [file.sha256 for file in spec.files] == [sha256]]
    return min(found, key=lambda spec: (not spec.aliases, len(spec.name)), default=None)


def is_public(folder: Path) -> bool:
    """Is it the folder of a model of the catalogue?"""
    return folder.parent == _catalogue()


def alike(name: str, known: Collection[str]) -> list[str]:
    """The few of `known` names that look most like `name`, the most alike first; none where none does."""
    return get_close_matches(name.lower(), dict.fromkeys(known), n=6)


def wanted(settings: Settings, known: Collection[str] = (), catalogue: Path | None = None) -> dict[str, Path]:
    """Folders of the public models that count among the models: those that were pulled, and those that settings name.

    known: names of other models, which are not looked for here. Reads no manifest but for an alias; names in settings that no
    public model has are left out.
    """
    place = catalogue or _catalogue()
    names = [name for name in _names(place) if _places(place / name, settings, RECORD)]
    for name in {*settings.models, settings.detector} - {*known, "auto"}:
        real = name if name in _names(place) else _aliases(place).get(name)
        names += [] if real is None else [real]
    return {name: place / name for name in names}


def check_licence(spec: ModelSpec, accepted: Collection[str] = ()) -> None:
    """Raises LicenceNotAccepted where the licence forbids commercial use, unless its name or the model's is `accepted`."""
    if not spec.licence.commercial_use and not {spec.name, spec.licence.spdx, *spec.aliases} & set(accepted):
        raise LicenceNotAccepted(
            f"{spec.name} is under {spec.licence.spdx}, which forbids commercial use ({spec.licence.url}); if that suits you, "
            f"pull it yourself: vision-service models pull {spec.name} --accept-licence {spec.name}"
        )


def remove_pulled(name: str, settings: Settings) -> ModelSpec:
    """Delete all that was fetched and built of a public model, by name or alias; its manifest stays, so it can be pulled again.

    Raises ModelUnknown where it is no public model, or was not pulled; SettingInvalid where it cannot be deleted.
    """
    spec = find_public(name)
    there = _places(spec.folder, settings, RECORD, "weights")
    if not there:
        raise ModelUnknown(name, sorted(wanted(settings.model_copy(update={"models": (), "detector": "auto"}))))
    for folder in there:
        try:
            _empty(folder)
        except OSError as error:
            raise SettingInvalid(f"{spec.name} cannot be removed from {folder}: {error.strerror or error}") from None
    return spec


def _empty(folder: Path) -> None:
    """Delete what is in `folder` but the manifest; the record first, so that half of it is never taken for a model."""
    (folder / RECORD).unlink(missing_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != MANIFEST:
            path.unlink()
    if not (folder / MANIFEST).exists():
        folder.rmdir()


def _places(folder: Path, settings: Settings, *signs: str) -> list[Path]:
    """Where the public model of `folder` may be built, if any of `signs` lies there."""
    return [
        place for place in (folder, settings.data_folder / "models" / folder.name) if any((place / sign).exists() for sign in signs)
    ]


def _catalogue() -> Path:
    return own_manifests() / CATALOGUE


@lru_cache
def _names(place: Path) -> tuple[str, ...]:
    return tuple(sorted(path.parent.name for path in place.glob(f"*/{MANIFEST}")))


@lru_cache
def _read(place: Path) -> Mapping[str, ModelSpec]:
    return MappingProxyType({name: load_spec(place / name) for name in _names(place)})


@lru_cache
def _aliases(place: Path) -> Mapping[str, str]:
    return MappingProxyType({alias: name for name, spec in _read(place).items() for alias in spec.aliases})
