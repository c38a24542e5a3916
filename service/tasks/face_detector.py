"""Where the faces of a photo are: YuNet at two scales, at the photo's own proportions.

pixels [h, w, 3] -> at most max_side -> shrunk or grown to COARSE_SIDE for large faces, and as it is for small ones
    -> "pixels" uint8 [1, height, width, 3] -> "boxes" [1, k, 4], "scores" [1, k], "landmarks" [1, k, 10] -> merged

One scale does not do. At 1280 pixels YuNet finds the small faces of a crowd, but misses half of the faces that fill the photo
and takes eyes and mouths for faces; at 320 it is the other way round, and tiny photos need growing for exact landmarks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import SpecInvalid
from service.imaging.boxes import clip, nms
from service.imaging.transforms import Placement, fit, resize
from service.tasks.task import Model, Pixels, Timing

COARSE_SIDE = 320
"""Longest side of the first look, in pixels."""
LARGE, SMALL = 0.2, 0.3
"""The first look counts for faces from LARGE of the photo's longest side on, the second for faces up to SMALL of it."""
NMS_IOU = 0.3
BORDER, BORDER_GREY = 0.5, 128
"""Width over the photo's longest side, and brightness, of the border around a photo in which nothing was found."""
MAX_CANDIDATES = 4096
"""Candidates that NMS looks at, the most confident first: bounds the time of confidence=0."""


@dataclass(frozen=True)
class Found:
    """Faces, the most confident first: boxes [k, 4] as corners, scores [k] in 0..1, landmarks [k, 10] as x and y of right eye,
    left eye, nose, right and left mouth corner (the person's right). In pixels, unclipped; all float32."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: NDArray[np.generic]) -> "Found":
        return Found(self.boxes[rows], self.scores[rows], self.landmarks[rows])


def find_faces(pixels: Pixels, confidence: float, model: Model, timing: Timing) -> Found:
    """All faces of a photo of at least this confidence, in the photo's pixels.

    Where nothing is found, a last look is taken with a grey border around the photo: faces cut on all sides need one.
    Raises SpecInvalid when the model's [input] is not resize = "fit" with a max_side, and what `model.run` raises.
    """
    wanted = model.spec.input
    if wanted.resize != "fit" or wanted.max_side is None:
        raise SpecInvalid(f'{model.spec.name}: a face detector needs [input] resize = "fit" and a max_side')
    with timing.measure("preprocess"):
        seen, placement = fit(pixels, wanted.max_side)
    longest = max(seen.shape[:2])
    found = look(seen, COARSE_SIDE, confidence, model, timing)
    if longest > COARSE_SIDE:
        found = merge(found, look(seen, longest, confidence, model, timing), longest)
    if not len(found):
        found = _look_with_border(seen, confidence, model, timing)
    inside = clip(found.boxes, *seen.shape[:2])
    found = found.take(np.flatnonzero((inside[:, 2:] > inside[:, :2]).all(axis=1)))  # not wholly in a border
    return Found(placement.to_photo(found.boxes), found.scores, placement.to_photo(found.landmarks))


def merge(coarse: Found, fine: Found, longest: int) -> Found:
    """Large faces from one look, small ones from the other. What lies inside a larger and more confident face is part of it."""
    coarse = coarse.take(_sides(coarse.boxes) >= LARGE * longest)
    fine = fine.take(_sides(fine.boxes) <= SMALL * longest)
    both = Found(
        np.concatenate([coarse.boxes, fine.boxes]),
        np.concatenate([coarse.scores, fine.scores]),
        np.concatenate([coarse.landmarks, fine.landmarks]),
    )
    both = both.take(nms(both.boxes, both.scores, NMS_IOU))
    if not len(coarse):
        return both
    large = both.take(_sides(both.boxes) >= LARGE * longest)
    centres = (both.boxes[:, None, :2] + both.boxes[:, None, 2:]) / 2
    inside = ((centres > large.boxes[:, :2]) & (centres < large.boxes[:, 2:])).all(axis=2)
    better = (large.scores > both.scores[:, None]) & (_sides(large.boxes) > _sides(both.boxes)[:, None])
    return both.take(np.flatnonzero(~(inside & better).any(axis=1)))


def look(pixels: Pixels, side: int, confidence: float, model: Model, timing: Timing) -> Found:
    """Faces on `pixels`, its longest side brought to `side` for the look."""
    height, width = pixels.shape[:2]
    growth = max(1.0, side / max(height, width))
    with timing.measure("preprocess"):
        grown = resize(pixels, round(height * growth) or 1, round(width * growth) or 1)
        enlarged = Placement(grown.shape[1] / width, grown.shape[0] / height, 0, 0)
        canvas, placement = fit(grown, side, model.spec.input.multiple_of)
    outputs = model.run({"pixels": canvas[None]}, timing)
    with timing.measure("postprocess"):
        boxes, scores, landmarks = (outputs[name][0].astype(np.float32) for name in ("boxes", "scores", "landmarks"))
        rows = np.flatnonzero(scores >= confidence)
        rows = rows[np.argsort(-scores[rows], kind="stable")][:MAX_CANDIDATES]
        rows = rows[nms(boxes[rows], scores[rows], NMS_IOU)]
        boxes, landmarks = (enlarged.to_photo(placement.to_photo(part[rows])) for part in (boxes, landmarks))
        return Found(boxes, scores[rows], landmarks)


def _look_with_border(pixels: Pixels, confidence: float, model: Model, timing: Timing) -> Found:
    with timing.measure("preprocess"):
        border = round(BORDER * max(pixels.shape[:2]))
        framed = np.pad(pixels, ((border, border), (border, border), (0, 0)), constant_values=BORDER_GREY)
    found = look(framed, COARSE_SIDE, confidence, model, timing)
    return Found(np.subtract(found.boxes, border), found.scores, np.subtract(found.landmarks, border))


def _sides(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """The longer side of each box [k, 4]: [k]."""
    sides: NDArray[np.float32] = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    return sides
