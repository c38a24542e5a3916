"""The names of a model's classes: told, in its metadata, or those of a data set that its count is the count of."""

from functools import cache

from service.errors import ModelRefused, OptionInvalid
from service.intake.seen import Role, Seen
from service.intake.told import Told
from service.intake.words import printable
from service.repository.store import own_manifests

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
MISSING = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
"""Numbers of COCO's categories, 1 to 90, that no object has."""
SETS = ("coco", "imagenet", "voc", "numbers")
MOST = 100_000


@cache
def _beside(model: str) -> tuple[str, ...]:
    return tuple((own_manifests() / model / "labels.txt").read_text(encoding="utf-8").splitlines())


def data_set(name: str, count: int | None = None) -> tuple[str, ...]:
    """The classes of "coco" (of 91, with the numbers that its categories have), "imagenet" (of 1001, after a background), "voc"."""
    if name == "voc":
        return VOC
    if name == "imagenet":
        return ("background", *_beside("efficientnet-lite0")) if count == 1001 else _beside("efficientnet-lite0")
    names = _beside("yolov3-tiny")
    if count not in (90, 91):
        return names
    left = iter(names)
    categories = [f"class {number}" if number in MISSING else next(left) for number in range(1, 91)]
    return tuple(categories if count == 90 else ["class 0", *categories])


def labels_told(told: Told, count: int | None = None) -> tuple[str, ...]:
    """The classes that were named, empty where none were or they are to be numbered. Raises OptionInvalid for an empty line."""
    text = (told.labels or "").strip("\n")
    if not text or text == "numbers":
        return ()
    if text in SETS:
        return data_set(text, count)
    parts = text.splitlines() if "\n" in text else text.split(",")
    names = tuple(printable(" ".join(part.split())) for part in parts)
    empty = next((number for number, name in enumerate(names, 1) if not name), None)
    if empty is not None:
        raise OptionInvalid("labels", f"labels: number {empty} is empty; each line is the name of one class")
    if len(names) > MOST:
        raise OptionInvalid("labels", f"labels: {len(names)} names; at most {MOST} are possible")
    return names


def named_classes(seen: Seen) -> int:
    """How many classes were told or are named in the metadata; 0 where neither is so."""
    return seen.told.classes or len(labels_told(seen.told) or seen.meta.names)


def labels_of(seen: Seen, role: Role) -> tuple[str, ...]:
    """A name for each class of `role`. Raises ModelRefused where other many were told."""
    count = role.classes
    if role.task == "face-liveness" and not seen.told.labels:
        return ()
    told = labels_told(seen.told, count)
    if told:
        if len(told) != count:
            raise ModelRefused(f"{len(told)} labels were given, and the file answers {count} classes")
        seen.notes.fact(f"{count} labels as given")
        return told
    if seen.told.labels != "numbers" and seen.meta.names:
        if len(seen.meta.names) == count:
            seen.notes.fact(f"the names of its {count} classes are in its metadata")
            return seen.meta.names
        seen.notes.fact(f"its metadata names {len(seen.meta.names)} classes, but it answers {count}: the metadata is not believed")
    return _guessed(seen, role)


def _guessed(seen: Seen, role: Role) -> tuple[str, ...]:
    sets = {"detect": {80: "coco", 90: "coco", 91: "coco", 20: "voc"}, "classify": {1000: "imagenet", 1001: "imagenet"}}
    if role.convention == "ultraface" and seen.told.labels != "numbers":
        seen.notes.assume("its one class beside the background is taken to be a face", "labels")
        return ("face",)
    name = None if seen.told.labels == "numbers" else sets.get(role.task, {}).get(role.classes)
    if name is not None:
        shown = {"coco": "COCO", "voc": "VOC", "imagenet": "ImageNet"}[name]
        seen.notes.assume(f"{role.classes} classes without names are taken to be those of {shown}", "labels")
        return data_set(name, role.classes)
    if seen.told.labels != "numbers":
        seen.notes.assume(f"its {role.classes} classes have no names: they are numbered, class 0 and so on", "labels")
    return tuple(f"class {number}" for number in range(role.classes))
