"""From a file and what its owner says of it to all that a model.toml says, with the reasons."""

import re
from dataclasses import dataclass
from pathlib import Path

from service.errors import ModelRefused
from service.export.contract import Contract
from service.intake import entrance as entrances
from service.intake.names import MOST, labels_of
from service.intake.preparing import Arithmetic, prepare
from service.intake.read import OnnxFile, read
from service.intake.roles import find_role
from service.intake.seen import Role, Seen
from service.intake.told import Told
from service.intake.trial import trial
from service.intake.ultralytics import Metadata, parse
from service.intake.words import Notes
from service.repository.public import by_digest
from service.repository.spec import InputContract, Licence, ModelSpec, Precision, Task
from service.settings import Settings

Points = tuple[tuple[float, ...], ...]
RANGES = {"unit": "unit", "bytes": "byte", "signed": "signed"}
UNKNOWN_LICENCE = Licence(spdx="LicenseRef-unknown", url="https://spdx.org/licenses/", commercial_use=False)
MAX_BATCH = 8


@dataclass(frozen=True)
class Finding:
    """What a file is. `contract` is None for a recipe of its own (`recipe`, YuNet's). labels: in class order.

    facts: what was found, and why it is taken so. assumptions: what was taken to be so, and the option that says otherwise.
    """

    name: str
    task: Task
    family: str
    recipe: str
    contract: Contract | None
    input: InputContract
    labels: tuple[str, ...]
    nms: bool
    max_batch: int
    precision: Precision
    licence: Licence
    summary: str
    alignment: Points | None
    face_scale: float
    file: OnnxFile
    facts: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


def name_of(file: Path, told: Told) -> str:
    """Told, or the file's own name in small letters dashes for what no name may have. Raises ModelRefused where none is left."""
    if told.name:
        return told.name
    name = re.sub(r"[^a-z0-9._-]+", "-", file.stem.lower()).strip("-._")[:80]
    if not name:
        raise ModelRefused(f"no name can be made of {file.name!r:.80}; give one with --name")
    return name


def look(path: Path, told: Told, settings: Settings, notes: Notes) -> Finding:
    """What the file at `path` is, not proved yet. Raises ModelRefused, ModelUnclear, OptionInvalid."""
    file = read(path, settings)
    _say_file(file, notes)
    public = by_digest(file.sha256) if not file.external else None
    if public is not None:
        return _as_public(file, public, told, notes)
    meta = parse(file.metadata)
    door = entrances.find(file, told, meta, notes)
    runs = trial(path, entrances.trial_feeds(door), settings, file.size)
    seen = Seen(file, door, meta, told, notes, runs)
    role = find_role(seen)
    if role.classes > MOST:
        raise seen.refuse(f"it answers {role.classes} classes; at most {MOST} are possible")
    arithmetic, wanted = prepare(seen, role)
    alignment, face_scale = _faces(seen, role)
    notes.settle()
    labels = labels_of(seen, role) if role.classes else ()
    licence = _licence(told, meta, notes)
    contract = _contract(seen, role, arithmetic, wanted)
    return Finding(
        name_of(path, told), role.task, _family(role), role.recipe, contract, wanted, labels,
        nms=contract.needs_nms if contract else True, max_batch=MAX_BATCH, precision=file.precision, licence=licence,
        summary=told.summary or _summary(name_of(path, told), role, file), alignment=alignment, face_scale=face_scale, file=file,
    )  # fmt: skip


def _say_file(file: OnnxFile, notes: Notes) -> None:
    notes.fact(f"{file.path.name}: {file.size} bytes, SHA-256 {file.sha256}, made by {file.producer}, opset {file.opset}")
    if file.precision != "float32":
        notes.fact(f"it computes in {file.precision}" + (", being quantised" if file.precision == "int8" else ""))


def _as_public(file: OnnxFile, public: ModelSpec, told: Told, notes: Notes) -> Finding:
    """A file whose bytes are in the catalogue: all is known."""
    known = {"task": public.task} | (public.adapter.model_dump() if public.adapter else {})
    agreed = {option for option, said in told.said().items() if option in known and known[option] == said}
    ignored = sorted(set(told.said()) - agreed - {"name", "summary", "default", "labels", "licence", "commercial_use"})
    notes.fact(f"its SHA-256 is that of {public.name} in the catalogue ({public.summary}): all is known from there")
    if ignored:
        raise ModelRefused(f"the file is {public.name} of the catalogue, of which all is known; leave out {', '.join(ignored)}")
    labels = public.read_labels()
    if told.labels:
        from service.intake.names import labels_told

        labels = labels_told(told, len(labels)) or tuple(f"class {number}" for number in range(len(labels)))
        if len(labels) != len(public.read_labels()):
            raise ModelRefused(f"{len(labels)} labels were given, and the file answers {len(public.read_labels())} classes")
    return Finding(
        name_of(file.path, told), public.task, public.family, public.export.recipe, public.adapter, public.input, labels,
        public.nms, public.batching.max_batch, public.precision, public.licence, told.summary or public.summary,
        public.alignment, public.face_scale, file,
    )  # fmt: skip


def _faces(seen: Seen, role: Role) -> tuple[Points | None, float]:
    """Where the landmarks go, for embedders, and how much of a face's surroundings is seen, for liveness. Asks."""
    told = seen.told
    if role.task == "face-liveness":
        if role.classes not in (2, 3):
            raise seen.refuse(
                f"face-liveness needs two or three classes, the second being that of living faces; it has {role.classes}"
            )
        if told.face_scale is None:
            seen.notes.ask(
                "face_scale",
                "side of what is cut out around a face over the face's longer side, as the network was trained: 2.7, 4.0",
            )
        seen.notes.assume("its second class, number 1, is that of living faces", "task")
        return None, told.face_scale or 1.0
    if role.task != "embed-face":
        return None, 1.0
    if told.template is None:
        seen.notes.ask(
            "template", "where the five landmarks lie in an aligned face: arcface (InsightFace, SFace and most others), or "
            "ten numbers x,y of right eye, left eye, nose, right and left mouth corner in input pixels"
        )  # fmt: skip
    if told.template is None or told.template == "arcface":
        return None, 1.0
    if len(told.template) != 10:
        raise ModelRefused(f"template: ten numbers are needed, x and y of five landmarks; {len(told.template)} were given")
    points = tuple(zip(told.template[::2], told.template[1::2], strict=True))
    return points, 1.0


def _licence(told: Told, meta: Metadata, notes: Notes) -> Licence:
    agpl = "AGPL-3.0" in meta.licence
    if told.licence:
        return Licence(spdx=told.licence, url=UNKNOWN_LICENCE.url, commercial_use=bool(told.commercial_use))
    if agpl:
        notes.fact("its metadata says that it is under AGPL-3.0, as Ultralytics' models are")
        use = True if told.commercial_use is None else told.commercial_use
        return Licence(spdx="AGPL-3.0-only", url="https://ultralytics.com/license", commercial_use=use)
    notes.assume("the licence is not known, so commercial use is not taken to be allowed", "licence")
    return UNKNOWN_LICENCE.model_copy(update={"commercial_use": bool(told.commercial_use)})


def _contract(seen: Seen, role: Role, arithmetic: Arithmetic, wanted: InputContract) -> Contract | None:
    if role.recipe != "adopt" or role.decoder is None:
        return None
    door = seen.entrance
    return Contract.model_validate(
        {
            "decoder": role.decoder,
            "input": door.port.name,
            "layout": door.layout,
            "color": arithmetic.color,
            "scale": arithmetic.scale,
            "mean": arithmetic.mean,
            "std": arithmetic.std,
            "size": wanted.size,
            "style_size": next((one.size for one in door.styles if not one.free and one.size != wanted.size), None),
            "outputs": role.outputs,
            "classes": role.classes,
            "first_class": role.first_class,
            "activation": role.activation,
            "boxes": role.boxes,
            "anchors": role.anchors,
            "strides": role.strides,
            "head": role.head,
            "xy_scale": role.xy_scale,
            "probabilities": role.probabilities,
            "picture_range": RANGES.get(seen.told.range or "", "input") if role.task == "stylize" else "input",
            "free_batch": len(door.port.shape) == 4,
        }
    )


def _family(role: Role) -> str:
    if role.recipe != "adopt":
        return role.recipe
    return {"picture": "one-style", "picture-and-style": "two-pictures"}.get(str(role.decoder), "adopted")


def _summary(name: str, role: Role, file: OnnxFile) -> str:
    """One line for the card. In its own folder a file tells nothing by its name."""
    kinds = {
        "detect": f"a detector of {role.classes} class{'es' * (role.classes != 1)}",
        "classify": f"a classifier of {role.classes} classes",
        "embed-face": "a face embedder",
        "face-liveness": "a network that tells live faces",
        "stylize": "a style network",
        "detect-faces": "a detector of faces with landmarks",
    }
    origin = "" if file.path.name == "model.onnx" else f", added from {file.path.name}"
    return f"{name}: {kinds[role.task]}{origin}"
