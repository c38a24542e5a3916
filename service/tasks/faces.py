"""Faces: where they are, and whether two photos show the same person.

detect-faces: pixels -> faces with boxes and landmarks (see service.tasks.face_detector)
verify-face: two photos -> the face of each -> landmarks brought onto a template, "pixels" uint8 [2, 112, 112, 3]
    -> "embedding" [2, d] -> cosine -> the same person from the threshold on
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from pydantic import BaseModel, Field

from service.imaging.boxes import clip
from service.tasks.face_detector import Found, find_faces
from service.tasks.face_embedding import (
    CONFIDENCE,
    THRESHOLD_SOURCE,
    Face,
    Pick,
    align,
    align_for,
    choose,
    cosine,
    describe,
    embed,
    false_match_rate,
    usual_or,
)
from service.tasks.face_quality import FaceQuality, assess
from service.tasks.liveness import Liveness, judge
from service.tasks.task import Answer, ImageInfo, Model, ModelInfo, Pixels, Strict, Timing, TimingMs


class DetectFacesOptions(Strict):
    confidence: float = Field(0.6, ge=0, le=1, description=CONFIDENCE)
    liveness: bool = Field(False, description="also tell living faces from pictures of faces; needs a liveness model")
    model: str | None = Field(None, description="name of the model; empty: the default one")


class DetectedFace(Face):
    liveness: Liveness | None = Field(None, description="does it look alive? null unless that was asked for")


class DetectFacesAnswer(Answer):
    faces: list[DetectedFace] = Field(description="the most confident first")


class VerifyFaceOptions(Strict):
    threshold: float | None = Field(
        None, ge=-1, le=1, description="similarity from which on two faces count as one person; empty: the model's own"
    )
    face: Pick = Field(
        "prominent", description="which face counts: the prominent (large and central), the largest, or the only one"
    )
    confidence: float = Field(0.6, ge=0, le=1, description=CONFIDENCE)
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
    threshold_source: str
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
        description="share of pairs of different people that this threshold took for one person, as measured; null where it was not"
    )
    false_match_pairs: int | None = Field(description="how many pairs of different people that was measured on")
    threshold_source: str = Field(description=THRESHOLD_SOURCE)
    image1: VerifiedPhoto
    image2: VerifiedPhoto


def detect_faces(
    pixels: Pixels, options: DetectFacesOptions, model: Model, timing: Timing, max_faces: int, liveness: Model | None = None
) -> list[DetectedFace]:
    """The faces of a photo, the most confident first, at most `max_faces`. Boxes are clipped to the photo, landmarks are not.

    `liveness`: the model that says how living each looks; None: nothing is said. Raises what `run` of the models raises.
    """
    found = find_faces(pixels, options.confidence, model, timing)
    found = found.take(np.arange(min(len(found), max_faces)))
    alive: Sequence[Liveness | None] = [None] * len(found)
    if liveness is not None:
        alive = judge(pixels, clip(found.boxes, *pixels.shape[:2]), liveness, timing)
    with timing.measure("postprocess"):
        faces = (describe(found, row, pixels) for row in range(len(found)))
        return [DetectedFace(**dict(face), liveness=one) for face, one in zip(faces, alive, strict=True)]


def verify(
    photo1: Pixels, photo2: Pixels, options: VerifyFaceOptions, detector: Model, embedder: Model, timing: Timing
) -> Verification:
    """Compare the faces of two photos.

    Raises NoFace, SeveralFaces or ImageTooSmall naming the photo ("image1", "image2"), OptionInvalid when the embedding model
    has no threshold and none is given, and what `run` of the models raises.
    """
    measured, threshold = embedder.spec.threshold, usual_or(options.threshold, embedder)
    photos, crops = [], []
    for name, pixels in (("image1", photo1), ("image2", photo2)):
        found = find_faces(pixels, options.confidence, detector, timing)
        row = choose(name, found, pixels, options.face, options.confidence)
        with timing.measure("preprocess"):
            aligned = align(pixels, found.landmarks[row])
            crops.append(align_for(embedder.spec, pixels, found.landmarks[row], aligned))
            photos.append(_verified(found, row, pixels, aligned))
    embeddings = embed(np.stack(crops), embedder, timing)
    with timing.measure("postprocess"):
        likeness = cosine(embeddings[0], embeddings[1])
        rate = false_match_rate(measured, threshold)
        return Verification(
            verified=likeness >= threshold,
            similarity=likeness,
            threshold=threshold,
            false_match_rate=rate,
            false_match_pairs=None if rate is None or measured is None else measured.impostor_pairs,
            threshold_source="none" if measured is None else measured.origin,
            image1=photos[0],
            image2=photos[1],
        )


def _verified(found: Found, row: int, pixels: Pixels, aligned: Pixels) -> VerifiedPhoto:
    height, width = pixels.shape[:2]
    return VerifiedPhoto(
        image=ImageInfo(width=width, height=height),
        faces=len(found),
        face=describe(found, row, pixels),
        quality=assess(found.boxes[row], found.landmarks[row], aligned, height, width),
    )
