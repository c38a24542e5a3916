"""Which models there are: those that the tasks can read, which one each task runs, and a card for people about each."""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, Field

from service.errors import OptionInvalid, SpecInvalid
from service.loaded import LoadedModel
from service.repository.maps import WINDOWS
from service.repository.spec import MANIFEST, MAPS, Accuracy, InputContract, Licence, ModelSpec, Precision, Task
from service.runtime.tuning import Tuning
from service.tasks.classify import ClassifyOptions
from service.tasks.stylize import SAMPLE

FAMILIES: dict[Task, tuple[str, ...]] = {
    "classify": ("softmax", "adopted"),
    "detect": ("yolov3", "adopted"),
    "detect-faces": ("yunet",),
    "embed-face": ("sface", "adopted"),
    "face-liveness": ("adopted",),
    "stylize": ("built-in-styles", "arbitrary-style", "one-style", "two-pictures"),
}
"""The families of models whose outputs the tasks can read; "adopted" is what service.export.adopt makes of others' files."""


Chosen = dict[tuple[Task, str | None], ModelSpec]


class ModelCard(BaseModel):
    """One loaded model, as GET /models and `vision-service models list` show it."""

    name: str
    version: str
    task: Task
    family: str
    summary: str
    aliases: list[str] = Field(description="other names that requests may call it by")
    default: bool = Field(description="the one that its task runs when a request names no model")
    chosen: str | None = Field(description="why it is the default detector, where that was chosen")
    licence: Licence
    sources: list[str] = Field(description="package and version, or URL, of each weight file")
    digest: str = Field(description="SHA-256 of the weights, of the first file where there are several")
    input: InputContract
    provider: str = Field(description="the execution provider that really runs it")
    provider_note: str | None = Field(description="why it is not the provider asked for or a faster one, if so")
    precision: Precision = Field(description="the arithmetic that it runs in")
    tuning: Tuning = Field(description="how it runs on this machine, and what else was measured")
    explains: bool = Field(description="a classifier that can say where it looks: explain=true")
    slides: bool = Field(description="one that can look at a whole photo window by window: sliding_window=true")
    classes: int = Field(description="how many labels it has; 0 where labels make no sense")
    accuracy: list[Accuracy]
    ready: bool


def choices(specs: Sequence[ModelSpec], detector: str | None = None, *, pinned: bool = False) -> Chosen:
    """The model that each task runs, by its name or an alias, and under None the default one.

    That is `detector` where it is pinned; else a user's own model that is marked so; else `detector`; else the first marked so;
    else the first, a user's own before those that come with the service.
    """

    def rank(spec: ModelSpec) -> tuple[bool, ...]:
        named = spec.name == detector
        return not (named and pinned), not spec.default or spec.is_published, not named, not spec.default, spec.is_published

    chosen: Chosen = {}
    ranked = sorted(specs, key=rank)
    for spec in ranked:
        chosen.setdefault((spec.task, None), spec)
        chosen[spec.task, spec.name] = spec
    for spec in ranked:
        for alias in spec.aliases:
            chosen.setdefault((spec.task, alias), spec)
    return chosen


def check(spec: ModelSpec) -> None:
    """Raises SpecInvalid where no code reads what the model answers, or a file is missing that its styles need."""
    known = FAMILIES[spec.task]
    if spec.family not in known:
        text = f"{spec.folder / MANIFEST}: family: no code reads {spec.family!r} for {spec.task}; known: {', '.join(known)}"
        raise SpecInvalid(text)
    if spec.styles and all(file.name != SAMPLE for file in spec.files):
        text = f"{spec.folder / MANIFEST}: files: built-in styles need a photo for their thumbnails, a file named {SAMPLE}"
        raise SpecInvalid(text)


def card(model: LoadedModel, *, default: bool, chosen: str | None = None) -> ModelCard:
    """What there is to say of a loaded model. default: does its task run it? chosen: why, where it was chosen."""
    spec, info = model.spec, model.info
    return ModelCard(
        **spec.model_dump(include={"name", "version", "task", "family", "summary"}),
        aliases=list(spec.aliases),
        default=default,
        chosen=chosen,
        licence=spec.licence,
        sources=list(dict.fromkeys(source.label for file in spec.files for source in file.sources)),
        digest=info.digest,
        input=spec.input,
        provider=info.provider,
        provider_note=model.note,
        precision=info.precision,
        tuning=model.tuning,
        explains=model.explains,
        slides=model.slides,
        classes=len(model.labels),
        accuracy=list(spec.accuracy),
        ready=model.warm,
    )


def check_looks(options: ClassifyOptions, model: LoadedModel, others: Iterable[LoadedModel]) -> None:
    """Raises OptionInvalid where a classifier cannot do what `options` ask for, saying why and which of `others` can."""
    if not model.explains:
        why = model.lacks.get(MAPS, "its recipe writes no class maps")
        asked, can = ("explain" if options.explain else "sliding_window"), [m.spec.name for m in others if m.explains]
    elif options.sliding_window and not model.slides:
        why, asked, can = model.lacks[WINDOWS], "sliding_window", [m.spec.name for m in others if m.slides]
    else:
        return
    names = ", ".join(can) or "none that is loaded; efficientnet-lite0 comes with the service"
    raise OptionInvalid(asked, f"{asked}: {model.spec.name} cannot do that: {why}; models that can: {names}")
