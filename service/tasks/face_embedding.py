"""What all work with faces shares: which face counts, how it is aligned, its embedding, and how alike two are.

pixels and landmarks -> aligned onto TEMPLATE, or the model's own -> "pixels" uint8 [n, 112, 112, 3] -> "embedding" [n, d] -> cosine
"""

from hashlib import sha256
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.errors import ImageTooSmall, NoFace, OptionInvalid, SeveralFaces, SpecInvalid
from service.imaging.boxes import clip
from service.imaging.transforms import similarity, warp
from service.repository.spec import ModelSpec, Threshold
from service.tasks.face_detector import Found
from service.tasks.face_quality import SMALL_SIZE, UNUSABLE_SIZE
from service.tasks.task import Box, Model, Pixels, Point, Timing, in_pixels, run_all

TEMPLATE: Final = np.array([(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)])
"""Where the landmarks of an aligned face lie in 112 x 112 pixels. Reference: Deng and others, ArcFace, CVPR 2019."""
ALIGNED_SIDE: Final = 112
METHOD: Final = "aligned-1"
"""Names what align() and embed() do. Embeddings made in another way cannot be compared with these: change it with them.
See method_of()."""

Pick = Literal["prominent", "largest", "only"]
CONFIDENCE: Final = "least confidence that a face is one; lower finds more, and more that are none"
THRESHOLD_SOURCE: Final = (
    'where the usual threshold and the rates come from: "model" (its manifest), "calibrated" and the day on which that '
    'was done, or "none" where it has neither'
)


class Landmarks(BaseModel):
    """Right and left are the person's own."""

    right_eye: Point
    left_eye: Point
    nose: Point
    mouth_right: Point
    mouth_left: Point


class Face(BaseModel):
    box: Box
    confidence: float = Field(description="0 to 1")
    landmarks: Landmarks


def align(pixels: Pixels, landmarks: NDArray[np.floating]) -> Pixels:
    """The face whose landmarks [10] are given, [112, 112, 3], its landmarks as close to TEMPLATE as a similarity can bring them."""
    return warp(pixels, similarity(landmarks.reshape(5, 2), TEMPLATE), ALIGNED_SIDE, ALIGNED_SIDE)


def align_for(spec: ModelSpec, pixels: Pixels, landmarks: NDArray[np.floating], aligned: Pixels) -> Pixels:
    """The same face as an embedding model wants it, [height, width, 3]; `aligned`, as align() gives it, where it wants that.

    Its landmarks go where the model's manifest says, or else onto TEMPLATE scaled into the model's size. Raises SpecInvalid.
    """
    template, (height, width) = _template(spec)
    if template is TEMPLATE:
        return aligned
    return warp(pixels, similarity(landmarks.reshape(5, 2), template), height, width)


def method_of(spec: ModelSpec) -> str:
    """METHOD, with a mark of the template and the size where they are not the usual ones."""
    template, size = _template(spec)
    if template is TEMPLATE:
        return METHOD
    return f"{METHOD}-{sha256(repr((template.tolist(), size)).encode()).hexdigest()[:8]}"


def _template(spec: ModelSpec) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Where the five landmarks go, [5, 2], and the size of the input; TEMPLATE itself where it is that."""
    size = spec.input.size
    if spec.input.resize != "align" or size is None or (spec.alignment is not None and np.shape(spec.alignment) != (5, 2)):
        raise SpecInvalid(
            f'{spec.name}: an embedding model needs [input] resize = "align" and a size, and where it has an alignment, five points'
        )
    if spec.alignment is not None:
        return np.array(spec.alignment, np.float64), size
    if size == (ALIGNED_SIDE, ALIGNED_SIDE):
        return TEMPLATE, size
    side = min(size)
    return TEMPLATE * side / ALIGNED_SIDE + ((size[1] - side) / 2, (size[0] - side) / 2), size


def prominence(boxes: NDArray[np.float32], height: int, width: int) -> NDArray[np.floating]:
    """Area minus twice the squared distance from the photo's centre, for boxes [k, 4]: [k], in square pixels."""
    across, down = (boxes[:, 0] + boxes[:, 2] - width) / 2, (boxes[:, 1] + boxes[:, 3] - height) / 2
    return areas(boxes) - 2 * (across**2 + down**2)


def areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Areas [k] of boxes [k, 4], in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def embed(crops: NDArray[np.uint8], model: Model, timing: Timing) -> NDArray[np.float32]:
    """Embeddings [n, d] of length 1 of faces [n, h, w, 3] as align_for() gives them. Raises what `model.run` raises."""
    raw = run_all(crops, model, timing, "embedding").astype(np.float64)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (raw / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def cosine(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Cosine of the angle between two embeddings [d], -1..1."""
    first, second = a.astype(np.float64), b.astype(np.float64)
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.clip(first @ second / max(lengths, 1e-12), -1, 1))


def threshold_of(model: Model) -> Threshold:
    """The measured threshold of an embedding model. Raises OptionInvalid where it has none."""
    if model.spec.threshold is None:
        text = f"{model.spec.name} has no measured threshold: give one, or write a [threshold] into its model.toml"
        raise OptionInvalid("threshold", text)
    return model.spec.threshold


def usual_or(given: float | None, model: Model) -> float:
    """The threshold that was given, else the model's own. Raises as threshold_of() does."""
    return threshold_of(model).value if given is None else given


def false_match_rate(measured: Threshold | None, threshold: float) -> float | None:
    """The false-match rate that `threshold` stands for: interpolated between measured ones, None outside of them."""
    if measured is None:
        return None
    if threshold == measured.value:
        return measured.false_match_rate
    rates = sorted(measured.rates, key=lambda rate: rate.threshold)
    if not rates or not rates[0].threshold <= threshold <= rates[-1].threshold:
        return None
    return float(np.interp(threshold, [rate.threshold for rate in rates], [rate.false_match_rate for rate in rates]))


def choose(name: str, found: Found, pixels: Pixels, pick: Pick, confidence: float) -> int:
    """Row of the face of the photo `name` that counts. Raises NoFace, SeveralFaces or ImageTooSmall."""
    height, width = pixels.shape[:2]
    if not len(found):
        raise NoFace(
            name,
            f"no face was found in {name} ({width} x {height} pixels) with a confidence of {confidence:g} or more; "
            f"send a photo that shows the face from the front, upright, in focus and at least {SMALL_SIZE} pixels wide",
        )
    if pick == "only" and len(found) > 1:
        raise SeveralFaces(name, len(found))
    boxes = clip(found.boxes, height, width)
    ranks = prominence(boxes, height, width) if pick == "prominent" else areas(boxes)
    row = int(ranks.argmax())
    size = float(min(found.boxes[row, 2:] - found.boxes[row, :2]))
    if size < UNUSABLE_SIZE:
        error = ImageTooSmall(
            f"the face in {name} is {size:.1f} pixels wide, too small to compare; "
            f"{UNUSABLE_SIZE} are the least, {SMALL_SIZE} or more are better"
        )
        error.photo = name
        raise error
    return row


def describe(found: Found, row: int, pixels: Pixels) -> Face:
    """The face in that row as an answer shows it."""
    x_min, y_min, x_max, y_max = in_pixels(clip(found.boxes[row], *pixels.shape[:2]))
    points = [Point(x=x, y=y) for x, y in map(in_pixels, found.landmarks[row].reshape(5, 2))]
    return Face(
        box=Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max),
        confidence=float(found.scores[row]),
        landmarks=Landmarks(**dict(zip(Landmarks.model_fields, points, strict=True))),
    )
