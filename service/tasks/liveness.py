"""Is a face that of a living person before the camera, or a print or a screen that shows one?

pixels and boxes -> each face with its surroundings -> "pixels" uint8 [n, height, width, 3] -> "logits" [n, classes] -> softmax

What surrounds a face tells as much as the face: the edge of a print, a frame. One photo cannot prove life, only raise doubts.
Reference for the way of cutting out: Silent-Face-Anti-Spoofing, Minivision, 2020.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.errors import SpecInvalid
from service.repository.spec import ModelSpec
from service.tasks.task import Model, Pixels, Timing, run_all

LIVE = 1
"""The class of living faces; the others are kinds of pictures of faces."""

MAX_BATCH = 16
"""Faces judged in one run of the model: bounds memory on a photo of a crowd."""


class Liveness(BaseModel):
    live: bool = Field(description="a living face is the most probable")
    score: float = Field(description="probability of a living face, 0 to 1")


def judge(pixels: Pixels, boxes: NDArray[np.float32], model: Model, timing: Timing) -> list[Liveness]:
    """How living each face looks whose box, corners [k, 4] within the photo, is given.

    Raises SpecInvalid when the model's [input] is not resize = "face-crop" with a size, and what `model.run` raises.
    """
    height, width = _size(model.spec)
    if not len(boxes):
        return []
    with timing.measure("preprocess"):
        crops = np.stack([cut_out(pixels, box, model.spec.face_scale, height, width) for box in boxes])
    parts = (crops[start : start + MAX_BATCH] for start in range(0, len(crops), MAX_BATCH))
    logits = np.concatenate([run_all(part, model, timing, "logits") for part in parts])
    with timing.measure("postprocess"):
        shares = np.exp(np.subtract(logits, logits.max(axis=1, keepdims=True), dtype=np.float64))
        shares /= shares.sum(axis=1, keepdims=True)
        return [Liveness(live=int(row.argmax()) == LIVE, score=float(row[LIVE])) for row in shares]


def cut_out(pixels: Pixels, box: NDArray[np.floating], scale: float, height: int, width: int) -> Pixels:
    """The part of the photo that is `scale` times as wide and as high as `box` [4] around its centre, at height x width.

    It is moved inside the photo where it sticks out, and as much smaller as it has to be. Bilinear without averaging, as the
    networks were trained: smoothing would take away the traces of print and screen that they look for.
    """
    room = np.array(pixels.shape[1::-1]) - 1.0
    low, high = box[:2].astype(np.float64), box[2:].astype(np.float64)
    sides = np.maximum(high - low, 1)
    sides *= min(scale, *(room / sides))
    corner = np.clip((low + high - sides) / 2, 0, room - sides)
    (left, top), (right, bottom) = corner.astype(int), (corner + sides).astype(int) + 1
    return np.asarray(cv2.resize(pixels[top:bottom, left:right], (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _size(spec: ModelSpec) -> tuple[int, int]:
    if spec.input.resize != "face-crop" or spec.input.size is None:
        raise SpecInvalid(f'{spec.name}: a liveness model needs [input] resize = "face-crop" and a size')
    return spec.input.size
