"""Which objects are on a photo, and where: letterbox, one run, candidates above the confidence, NMS inside each class.

pixels [h, w, 3] -> letterbox, or stretched -> "pixels" uint8 [1, height, width, 3]
    -> "boxes" [1, k, 4] as corners in these pixels and "scores" [1, k, classes] -> detections in the photo's pixels
A box is a candidate for every class that is confident enough, not for its best class only: YOLOv3's classes are independent
of each other, and measured on COCO this gains 0.7 points of mAP@0.5. `class_agnostic` leaves one label to each object.
Models that answer one box an object by themselves (nms = false in model.toml) get no NMS, unless `class_agnostic` asks for it.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field

from service.errors import OptionInvalid, SpecInvalid
from service.imaging import Grid
from service.imaging.boxes import clip, nms
from service.imaging.codec import Scale
from service.imaging.transforms import Placement, letterbox, stretch
from service.repository.spec import InputContract, ModelSpec
from service.tasks.task import Answer, Box, Model, Pixels, Strict, Timing, in_pixels

MAX_CANDIDATES = 4096
"""Candidates that NMS looks at, the most confident first: bounds the time of confidence=0."""


def _split(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


Classes = Annotated[tuple[int | str, ...], BeforeValidator(_split), Field(min_length=1)]


class DetectOptions(Strict):
    confidence: float = Field(0.25, ge=0, le=1, description="least confidence of an answer")
    iou: float = Field(0.45, ge=0, le=1, description="overlap (IoU) above which the less confident of two boxes is dropped")
    max_detections: int = Field(300, ge=1, le=1000, description="most answers, the most confident first")
    classes: Classes | None = Field(None, description="only these classes, names or ids separated by commas; empty: all")
    class_agnostic: bool = Field(False, description="let boxes of different classes drop each other: one label for each object")
    model: str | None = Field(None, description="name of the model; empty: the default one")


class Detection(BaseModel):
    class_id: int = Field(description="index of the class, from 0")
    label: str = Field(description="the class in plain words")
    confidence: float = Field(description="0 to 1")
    box: Box


class DetectAnswer(Answer):
    predictions: list[Detection] = Field(description="the most confident first")


def detect(pixels: Pixels, options: DetectOptions, model: Model, timing: Timing, grid: Grid | None = None) -> list[Detection]:
    """Objects on a photo, the most confident first, boxes in the photo's pixels and clipped to it.

    `grid`: where `pixels` lie on the photo; None where they are all that it has.
    Raises OptionInvalid when a class is not one of the model's, and what `model.run` raises.
    """
    wanted = None if options.classes is None else class_ids(options.classes, model.labels)
    grid = grid or Grid.of(pixels)
    with timing.measure("preprocess"):
        canvas, placement = prepare(pixels, model.spec, grid)
    outputs = model.run({"pixels": canvas[None]}, timing)
    with timing.measure("postprocess"):
        rows, kinds, scores = candidates(outputs["scores"][0], options.confidence, wanted)
        boxes = placement.to_photo(outputs["boxes"][0][rows].astype(np.float32))
        inside = clip(boxes, grid.height, grid.width)
        seen = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])  # not wholly in the grey border
        boxes, inside, kinds, scores = boxes[seen], inside[seen], kinds[seen], scores[seen]
        if model.spec.nms or options.class_agnostic:
            kept = nms(boxes, scores, options.iou, None if options.class_agnostic else kinds, options.max_detections)
        else:
            kept = np.argsort(-scores, kind="stable")[: options.max_detections]
        return [_detection(int(kinds[i]), float(scores[i]), inside[i], model.labels) for i in kept]


def prepare(pixels: Pixels, spec: ModelSpec, grid: Grid | None = None) -> tuple[Pixels, Placement]:
    """The photo at the model's size, and the way back. Raises SpecInvalid for a rule other than letterbox and stretch."""
    wanted, (height, width) = _input(spec)
    if wanted.resize == "stretch":
        return stretch(pixels, height, width, wanted.interpolation, grid)
    return letterbox(pixels, height, width, wanted.fill, grid, wanted.padding, wanted.interpolation)


def letterbox_scale(spec: ModelSpec) -> Scale:
    """How much of a photo the model sees: of the side that it sees more of. Raises SpecInvalid as `prepare` does."""
    wanted, (rows, columns) = _input(spec)
    more = max if wanted.resize == "stretch" else min
    return lambda height, width: more(rows / height, columns / width)


def _input(spec: ModelSpec) -> tuple[InputContract, tuple[int, int]]:
    wanted = spec.input
    if wanted.resize not in {"letterbox", "stretch"} or wanted.size is None:
        raise SpecInvalid(f'{spec.name}: a detector needs [input] resize = "letterbox" or "stretch", and a size')
    return wanted, wanted.size


def candidates(
    scores: NDArray[np.generic], confidence: float, wanted: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Pairs of box and class at or above `confidence`: rows [m], classes [m] and scores [m] of scores [k, classes].

    wanted: sorted class ids to look at, None for all. More than MAX_CANDIDATES keep the most confident.
    """
    looked_at = scores if wanted is None else scores[:, wanted]
    flat = np.flatnonzero(looked_at >= np.float32(confidence))  # several times faster than np.nonzero in two dimensions
    rows, columns = np.divmod(flat, looked_at.shape[1])
    kinds = columns if wanted is None else wanted[columns]
    found = scores[rows, kinds].astype(np.float32)
    if len(found) > MAX_CANDIDATES:
        best = np.argpartition(-found, MAX_CANDIDATES)[:MAX_CANDIDATES]
        rows, kinds, found = rows[best], kinds[best], found[best]
    return rows, kinds, found


def class_ids(classes: Sequence[int | str], labels: Sequence[str]) -> NDArray[np.int64]:
    """Sorted ids of classes given by name (in any case) or id. Raises OptionInvalid saying which one is not known."""
    by_name = {label.casefold(): index for index, label in enumerate(labels)}
    by_name |= {str(index): index for index in range(len(labels))}
    found = set()
    for name in classes:
        index = by_name.get(str(name).casefold())
        if index is None:
            raise OptionInvalid("classes", _unknown_class(str(name), labels))
        found.add(index)
    return np.array(sorted(found), np.int64)


def _unknown_class(name: str, labels: Sequence[str]) -> str:
    close = get_close_matches(name[:80], labels, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ";"
    return f"there is no class {name!r:.80}{hint} the classes are ids 0 to {len(labels) - 1} or: {', '.join(labels)}"


def _detection(kind: int, score: float, corners: NDArray[np.float32], labels: Sequence[str]) -> Detection:
    x_min, y_min, x_max, y_max = in_pixels(corners)
    return Detection(
        class_id=kind, label=labels[kind], confidence=score, box=Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)
    )
