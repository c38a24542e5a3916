"""Faces: where they are, and whether two photos show the same person.

detect-faces: pixels -> faces with boxes and landmarks (see service.tasks.face_detector)
verify-face: two photos -> the face of each -> landmarks brought onto a template, "pixels" uint8 [2, 112, 112, 3]
    -> "embedding" [2, d] -> cosine -> the same person from the threshold on
"""

from typing import Final, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.errors import ImageTooSmall, NoFace, SeveralFaces, SpecInvalid
from service.imaging.boxes import clip
from service.imaging.transforms import similarity, warp
from service.repository.spec import Threshold
from service.tasks.face_detector import Found, find_faces
from service.tasks.face_quality import SMALL_SIZE, UNUSABLE_SIZE, FaceQuality, assess
from service.tasks.task import Answer, Box, ImageInfo, Model, ModelInfo, Pixels, Point, Strict, Timing, TimingMs, in_pixels

TEMPLATE: Final = np.array([(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)])
"""Where the landmarks of an aligned face lie in 112 x 112 pixels. Reference: Deng and others, ArcFace, CVPR 2019."""
ALIGNED_SIDE: Final = 112

Pick = Literal["prominent", "largest", "only"]
_CONFIDENCE = "least confidence that a face is one; lower finds more, and more that are none"


class DetectFacesOptions(Strict):
    confidence: float = Field(0.6, ge=0, le=1, description=_CONFIDENCE)
    model: str | None = Field(None, description="name of the model; empty: the default one")


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


class DetectFacesAnswer(Answer):
    faces: list[Face] = Field(description="the most confident first")


class VerifyFaceOptions(Strict):
    threshold: float | None = Field(
        None, ge=-1, le=1, description="similarity from which on two faces count as one person; empty: the model's own"
    )
    face: Pick = Field(
        "prominent", description="which face counts: the prominent (large and central), the largest, or the only one"
    )
    confidence: float = Field(0.6, ge=0, le=1, description=_CONFIDENCE)
    model: str | None = Field(None, description="name of the embedding model; empty: the default one")


class VerifiedPhoto(BaseModel):
    image: ImageInfo
    faces: int = Field(description="how many faces the photo shows")
    face: Face = Field(description="the face that was used")
    quality: FaceQuality


class Verification(TypedDict):
    """What `verify` gives: the fields of VerifyFaceAnswer that it can know."""

    verified: bool
    similarity: float
    threshold: float
    false_match_rate: float | None
    false_match_pairs: int | None
    image1: VerifiedPhoto
    image2: VerifiedPhoto


class VerifyFaceAnswer(BaseModel):
    model: ModelInfo
    detector: ModelInfo
    timing_ms: TimingMs
    verified: bool = Field(description="similarity is at least the threshold")
    similarity: float = Field(description="cosine of the two embeddings, -1 to 1")
    threshold: float
    false_match_rate: float | None = Field(
        description="share of pairs of different people that this threshold took for one person, as measured and noted in the "
        "model's manifest; null where it was not measured"
    )
    false_match_pairs: int | None = Field(description="how many pairs of different people that was measured on")
    image1: VerifiedPhoto
    image2: VerifiedPhoto


def detect_faces(pixels: Pixels, options: DetectFacesOptions, model: Model, timing: Timing, max_faces: int) -> list[Face]:
    """The faces of a photo, the most confident first, at most `max_faces`. Boxes are clipped to the photo, landmarks are not.

    Raises what `model.run` raises.
    """
    found = find_faces(pixels, options.confidence, model, timing)
    with timing.measure("postprocess"):
        return [_face(found, row, pixels) for row in range(min(len(found), max_faces))]


def verify(
    photo1: Pixels, photo2: Pixels, options: VerifyFaceOptions, detector: Model, embedder: Model, timing: Timing
) -> Verification:
    """Compare the faces of two photos.

    Raises NoFace, SeveralFaces or ImageTooSmall naming the photo ("image1", "image2"), SpecInvalid when the embedding model
    has no threshold, and what `run` of the models raises.
    """
    measured = embedder.spec.threshold
    if measured is None:
        raise SpecInvalid(f"{embedder.spec.name}: an embedding model needs a [threshold]")
    photos, crops = [], []
    for name, pixels in (("image1", photo1), ("image2", photo2)):
        found = find_faces(pixels, options.confidence, detector, timing)
        row = _choose(name, found, pixels, options)
        with timing.measure("preprocess"):
            crops.append(align(pixels, found.landmarks[row]))
            photos.append(_verified(found, row, pixels, crops[-1]))
    embeddings = embedder.run({"pixels": np.stack(crops)}, timing)["embedding"]
    with timing.measure("postprocess"):
        likeness = cosine(embeddings[0], embeddings[1])
        threshold = measured.value if options.threshold is None else options.threshold
        rate = false_match_rate(measured, threshold)
        return Verification(
            verified=likeness >= threshold,
            similarity=likeness,
            threshold=threshold,
            false_match_rate=rate,
            false_match_pairs=None if rate is None else measured.impostor_pairs,
            image1=photos[0],
            image2=photos[1],
        )


def align(pixels: Pixels, landmarks: NDArray[np.floating]) -> Pixels:
    """The face whose landmarks [10] are given, [112, 112, 3], its landmarks as close to TEMPLATE as a similarity can bring them."""
    return warp(pixels, similarity(landmarks.reshape(5, 2), TEMPLATE), ALIGNED_SIDE, ALIGNED_SIDE)


def prominence(boxes: NDArray[np.float32], height: int, width: int) -> NDArray[np.floating]:
    """Area minus twice the squared distance from the photo's centre, for boxes [k, 4]: [k], in square pixels."""
    across, down = (boxes[:, 0] + boxes[:, 2] - width) / 2, (boxes[:, 1] + boxes[:, 3] - height) / 2
    return areas(boxes) - 2 * (across**2 + down**2)


def areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Areas [k] of boxes [k, 4], in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def cosine(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Cosine of the angle between two embeddings [d], -1..1."""
    first, second = a.astype(np.float64), b.astype(np.float64)
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.clip(first @ second / max(lengths, 1e-12), -1, 1))


def false_match_rate(measured: Threshold, threshold: float) -> float | None:
    """The false-match rate that `threshold` stands for: interpolated between measured ones, None outside of them."""
    if threshold == measured.value:
        return measured.false_match_rate
    rates = sorted(measured.rates, key=lambda rate: rate.threshold)
    if not rates or not rates[0].threshold <= threshold <= rates[-1].threshold:
        return None
    return float(np.interp(threshold, [rate.threshold for rate in rates], [rate.false_match_rate for rate in rates]))


def _choose(name: str, found: Found, pixels: Pixels, options: VerifyFaceOptions) -> int:
    """Row of the face that counts. Raises NoFace, SeveralFaces or ImageTooSmall."""
    height, width = pixels.shape[:2]
    if not len(found):
        raise NoFace(
            name,
            f"no face was found in {name} ({width} x {height} pixels) with a confidence of {options.confidence:g} or more; "
            f"send a photo that shows the face from the front, upright, in focus and at least {SMALL_SIZE} pixels wide",
        )
    if options.face == "only" and len(found) > 1:
        raise SeveralFaces(name, len(found))
    boxes = clip(found.boxes, height, width)
    ranks = prominence(boxes, height, width) if options.face == "prominent" else areas(boxes)
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


def _verified(found: Found, row: int, pixels: Pixels, aligned: Pixels) -> VerifiedPhoto:
    height, width = pixels.shape[:2]
    return VerifiedPhoto(
        image=ImageInfo(width=width, height=height),
        faces=len(found),
        face=_face(found, row, pixels),
        quality=assess(found.boxes[row], found.landmarks[row], aligned, height, width),
    )


def _face(found: Found, row: int, pixels: Pixels) -> Face:
    x_min, y_min, x_max, y_max = in_pixels(clip(found.boxes[row], *pixels.shape[:2]))
    points = [Point(x=x, y=y) for x, y in map(in_pixels, found.landmarks[row].reshape(5, 2))]
    return Face(
        box=Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max),
        confidence=float(found.scores[row]),
        landmarks=Landmarks(**dict(zip(Landmarks.model_fields, points, strict=True))),
    )
