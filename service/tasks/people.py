"""Who it is: faces to be known again, and faces known again.

enroll:   photos -> the one face that counts of each -> quality good enough? -> embeddings -> stored under a subject, all or none
identify: photo -> every face -> embeddings -> the subjects most like each, from the threshold on; below it: unknown
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, Field

from service.errors import EnrollmentRefused, FaceBlurred, FaceTooSmall, ImageTooSmall, InputError
from service.gallery.gallery import Gallery, Match, NewFace, StoredFace
from service.gallery.names import DEFAULT, MAX_NAME, check_name
from service.tasks.face_detector import Found, find_faces
from service.tasks.face_embedding import (
    CONFIDENCE,
    THRESHOLD_SOURCE,
    Face,
    Pick,
    align,
    align_for,
    choose,
    describe,
    embed,
    false_match_rate,
    usual_or,
)
from service.tasks.face_quality import UNUSABLE_SIZE, FaceQuality, assess
from service.tasks.task import Answer, Box, Model, ModelInfo, Pixels, Strict, Timing, TimingMs

MAX_BATCH = 16
"""Faces embedded in one run of the model: bounds memory on a photo of a crowd."""


def _checked(text: str) -> str:
    try:
        return check_name("gallery", text)
    except InputError as error:
        raise ValueError(str(error)) from None


CollectionName = Annotated[str, AfterValidator(_checked)]
_COLLECTION = f"name of a separate collection of faces, up to {MAX_NAME} characters"


class EnrollOptions(Strict):
    gallery: CollectionName = Field(DEFAULT, description=_COLLECTION)
    face: Pick = Field(
        "only", description="which face of a photo counts: the only one, the prominent (large and central), the largest"
    )
    partial: bool = Field(False, description="enroll the photos that can be, where others are refused; else all or none")
    confidence: float = Field(0.6, ge=0, le=1, description=CONFIDENCE)


class IdentifyOptions(Strict):
    top_k: int = Field(1, ge=1, le=100, description="most candidates for each face")
    threshold: float | None = Field(
        None, ge=-1, le=1, description="similarity from which on a subject is a candidate; empty: the model's own"
    )
    gallery: CollectionName = Field(DEFAULT, description=_COLLECTION)
    confidence: float = Field(0.6, ge=0, le=1, description=CONFIDENCE)


class Candidate(BaseModel):
    subject: str
    similarity: float = Field(description="cosine of the face's embedding and the subject's most similar one, -1 to 1")
    face_id: str = Field(description="the subject's face that is most similar")


class EnrolledFace(BaseModel):
    face_id: str = Field(description="32 hexadecimal digits")
    photo: str = Field(description='the photo that it came from: "image", or of several "image[1]", "image[2]", ...')
    box: Box
    quality: FaceQuality
    known: bool = Field(description="this subject had just this face from the same photo already; nothing was added")
    also: list[Candidate] = Field(description="other subjects under which this face seems to stand already, most similar first")


class Refusal(BaseModel):
    """Why one photo was not enrolled."""

    photo: str
    code: str = Field(description="the code of the problem that the photo alone would have met")
    detail: str
    measured: float | None = Field(None, description="the quality that is too low, where it is one")
    limit: float | None = Field(None, description="the least that is taken")


class EnrollAnswer(BaseModel):
    model: ModelInfo
    detector: ModelInfo
    timing_ms: TimingMs
    gallery: str
    subject: str
    faces: list[EnrolledFace] = Field(description="one for each photo that was enrolled, in the order of the photos")
    refused: list[Refusal] = Field(description="photos that were not; only with partial=true")
    warnings: list[str] = Field(description="what should be looked at, in plain words: the same face under another name above all")


class IdentifiedFace(Face):
    quality: FaceQuality
    unknown: bool = Field(description="no subject is similar enough, or the face is too small to be compared")
    candidates: list[Candidate] = Field(description="subjects similar enough, most similar first; empty where unknown")


class IdentifyAnswer(Answer):
    detector: ModelInfo
    gallery: str
    threshold: float
    false_match_rate: float | None = Field(
        description="share of pairs of different people that this threshold took for one person, as measured; null: not measured"
    )
    false_match_pairs: int | None = Field(description="how many pairs of different people that was measured on")
    threshold_source: str = Field(description=THRESHOLD_SOURCE)
    false_identification_rate: float | None = Field(
        description="share of strangers that would be taken for a subject of this gallery, if its faces were independent of each "
        "other: 1 - (1 - false_match_rate) ** faces; null: not measured"
    )
    subjects: int = Field(description="how many subjects each face was compared with")
    enrolled_faces: int = Field(description="how many faces those have")
    faces: list[IdentifiedFace] = Field(description="every face of the photo, the most confident first")


@dataclass(frozen=True)
class Limits:
    """What a face needs to be enrolled: `size` in pixels of the shorter side, `sharpness` as in service.tasks.face_quality."""

    size: float
    sharpness: float


@dataclass(frozen=True)
class Prepared:
    """A face that can be enrolled, of the photo of that name: box in pixels of the photo, embedding float32 [d] of length 1."""

    photo: str
    box: Box
    quality: FaceQuality
    embedding: NDArray[np.float32]

    @property
    def new(self) -> NewFace:
        """It as a gallery takes it."""
        return NewFace(self.embedding, _corners(self.box), self.quality.model_dump())


@dataclass(frozen=True)
class SeenFace:
    """A face of a photo. `embedding`: float32 [d] of length 1; None where the face is too small to be compared."""

    face: Face
    quality: FaceQuality
    embedding: NDArray[np.float32] | None


@dataclass(frozen=True)
class _Seen:
    """A face that is good enough, aligned."""

    photo: str
    face: Face
    quality: FaceQuality
    crop: Pixels


def enroll(
    photos: Mapping[str, Pixels | InputError],
    subject: str,
    options: EnrollOptions,
    limits: Limits,
    models: tuple[Model, Model],
    gallery: Gallery,
    timing: Timing,
) -> dict[str, Any]:
    """Enroll one face of each photo, which are named; `models` are detector and embedder. Gives the fields of EnrollAnswer that
    are known here.

    A photo may also be the error that it could not be decoded with. Raises OptionInvalid for the subject's name, the refusal itself
    where the only photo is refused, EnrollmentRefused where one of several is (with options.partial: where all are), and what the
    gallery and `run` of the models raise.
    """
    subject = check_name("subject", subject)
    prepared, refused = prepare(photos, options, limits, models, timing)
    if refused and (not options.partial or not prepared):
        if len(photos) == 1:
            raise refused[0]
        raise EnrollmentRefused([refusal(error).model_dump(exclude_none=True) for error in refused], len(photos))
    faces = store(prepared, subject, options, models[1], gallery, timing)
    return {
        "gallery": options.gallery,
        "subject": subject,
        "faces": faces,
        "refused": [refusal(error) for error in refused],
        "warnings": warn(faces, subject),
    }


def prepare(
    photos: Mapping[str, Pixels | InputError], options: EnrollOptions, limits: Limits, models: tuple[Model, Model], timing: Timing
) -> tuple[list[Prepared], list[InputError]]:
    """The face of each photo that can be enrolled, and why the others cannot, both in the order of the photos; nothing is stored.

    Raises what `run` of the models, detector and embedder, raises.
    """
    embedder = models[1]
    seen, refused = list[_Seen](), list[InputError]()
    for name, photo in photos.items():
        try:
            seen.append(_look(name, photo, options, limits, models, timing))
        except InputError as error:
            error.photo = name
            error.__traceback__ = error.__context__ = None  # whose frames would keep the pixels of every photo refused
            refused.append(error)
    embeddings = _embed([one.crop for one in seen], embedder, timing)
    ready = [Prepared(one.photo, one.face.box, one.quality, row) for one, row in zip(seen, embeddings, strict=True)]
    return ready, refused


def store(
    prepared: Sequence[Prepared], subject: str, options: EnrollOptions, embedder: Model, gallery: Gallery, timing: Timing
) -> list[EnrolledFace]:
    """Store all of `prepared` (at least one) under a subject, or none; each with the other subjects that it seems to belong to.

    `subject` as check_name gives it. Raises what the gallery raises.
    """
    threshold = 1.0 if embedder.spec.threshold is None else embedder.spec.threshold.value
    with timing.measure("postprocess"):
        alike = list[Sequence[Match]]()
        for start in range(0, len(prepared), MAX_BATCH):
            embeddings = np.stack([one.embedding for one in prepared[start : start + MAX_BATCH]])
            alike += gallery.search(options.gallery, embeddings, top_k=4, threshold=threshold).matches
        stored = gallery.enroll(options.gallery, subject, [one.new for one in prepared])
    return [_enrolled(*of, subject) for of in zip(prepared, stored, alike, strict=True)]


def identify(
    pixels: Pixels,
    options: IdentifyOptions,
    max_faces: int,
    models: tuple[Model, Model],
    gallery: Gallery,
    timing: Timing,
) -> dict[str, Any]:
    """Every face of a photo, at most `max_faces`, with who it may be; `models` are detector and embedder. Gives the fields of
    IdentifyAnswer that are known here. Raises what the gallery and `run` of the models raise."""
    measured, threshold = models[1].spec.threshold, usual_or(options.threshold, models[1])
    seen = see(pixels, options.confidence, max_faces, models, timing)
    usable = [row for row, one in enumerate(seen) if one.embedding is not None]
    with timing.measure("postprocess"):
        search = gallery.search(options.gallery, stacked(seen), options.top_k, threshold)
        matches = dict(zip(usable, search.matches, strict=True))
        faces = [_identified(one.face, one.quality, matches.get(row, ())) for row, one in enumerate(seen)]
    rate = false_match_rate(measured, threshold)
    return {
        "gallery": options.gallery,
        "threshold": threshold,
        "false_match_rate": rate,
        "false_match_pairs": None if rate is None or measured is None else measured.impostor_pairs,
        "threshold_source": "none" if measured is None else measured.origin,
        "false_identification_rate": None if rate is None else 1 - (1 - rate) ** search.faces,
        "subjects": search.subjects,
        "enrolled_faces": search.faces,
        "faces": faces,
    }


def see(pixels: Pixels, confidence: float, max_faces: int, models: tuple[Model, Model], timing: Timing) -> list[SeenFace]:
    """Every face of a photo with its embedding, the most confident first, at most `max_faces`; `models` are detector and embedder.

    Raises what `run` of the models raises.
    """
    detector, embedder = models
    found = find_faces(pixels, confidence, detector, timing)
    found = found.take(np.arange(min(len(found), max_faces)))
    with timing.measure("preprocess"):
        aligned = [align(pixels, landmarks) for landmarks in found.landmarks]
        qualities = [_quality(found, row, pixels, crop) for row, crop in enumerate(aligned)]
        crops = [align_for(embedder.spec, pixels, found.landmarks[row], crop) for row, crop in enumerate(aligned)]
    usable = [row for row, quality in enumerate(qualities) if quality.size >= UNUSABLE_SIZE]
    embeddings = dict(zip(usable, _embed([crops[row] for row in usable], embedder, timing), strict=True))
    with timing.measure("postprocess"):
        return [SeenFace(describe(found, row, pixels), qualities[row], embeddings.get(row)) for row in range(len(found))]


def stacked(seen: Sequence[SeenFace]) -> NDArray[np.float32]:
    """The embeddings float32 [n, d] of those that have one."""
    rows = [one.embedding for one in seen if one.embedding is not None]
    return np.stack(rows) if rows else np.empty((0, 0), np.float32)


def _look(
    name: str,
    photo: Pixels | InputError,
    options: EnrollOptions,
    limits: Limits,
    models: tuple[Model, Model],
    timing: Timing,
) -> _Seen:
    """The face of a photo that counts. Raises NoFace, SeveralFaces, FaceTooSmall, FaceBlurred, or what `photo` is."""
    if isinstance(photo, InputError):
        raise photo
    detector, embedder = models
    found = find_faces(photo, options.confidence, detector, timing)
    try:
        row = choose(name, found, photo, options.face, options.confidence)
    except ImageTooSmall:
        sizes = (found.boxes[:, 2:] - found.boxes[:, :2]).min(axis=1)
        raise FaceTooSmall(name, float(sizes.max()), limits.size) from None
    with timing.measure("preprocess"):
        aligned = align(photo, found.landmarks[row])
        quality = _quality(found, row, photo, aligned)
        crop = align_for(embedder.spec, photo, found.landmarks[row], aligned)
    if quality.size < limits.size:
        raise FaceTooSmall(name, quality.size, limits.size)
    if quality.sharpness < limits.sharpness:
        raise FaceBlurred(name, quality.sharpness, limits.sharpness)
    return _Seen(name, describe(found, row, photo), quality, crop)


def _embed(crops: Sequence[Pixels], embedder: Model, timing: Timing) -> Any:
    batches = [np.stack(crops[start : start + MAX_BATCH]) for start in range(0, len(crops), MAX_BATCH)]
    embeddings = [embed(batch, embedder, timing) for batch in batches]
    return np.concatenate(embeddings) if embeddings else np.empty((0, 0), np.float32)


def _quality(found: Found, row: int, pixels: Pixels, crop: Pixels) -> FaceQuality:
    return assess(found.boxes[row], found.landmarks[row], crop, *pixels.shape[:2])


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.x_min, box.y_min, box.x_max, box.y_max


def _candidate(match: Match) -> Candidate:
    return Candidate(subject=match.subject, similarity=match.similarity, face_id=match.face_id)


def _identified(face: Face, quality: FaceQuality, matches: Sequence[Match]) -> IdentifiedFace:
    candidates = [_candidate(match) for match in matches]
    return IdentifiedFace(**dict(face), quality=quality, unknown=not candidates, candidates=candidates)


def _enrolled(of: Prepared, stored: StoredFace, alike: Sequence[Match], subject: str) -> EnrolledFace:
    others = [_candidate(match) for match in alike if match.subject != subject]
    return EnrolledFace(face_id=stored.face_id, photo=of.photo, box=of.box, quality=of.quality, known=stored.known, also=others)


def warn(faces: Sequence[EnrolledFace], subject: str) -> list[str]:
    """A sentence for each other subject that faces just enrolled as `subject` seem to belong to."""
    best: dict[str, float] = {}
    for other in (candidate for face in faces for candidate in face.also):
        best[other.subject] = max(best.get(other.subject, -1.0), other.similarity)
    return [
        f"the same face seems to stand under {name!r} already (similarity {likeness:.3f}); if {name!r} and {subject!r} are one "
        "person, delete one of them, or rename"
        for name, likeness in sorted(best.items(), key=lambda item: -item[1])
    ]


def refusal(error: InputError) -> Refusal:
    """Why the photo error.photo is not enrolled."""
    measured, limit = getattr(error, "measured", None), getattr(error, "limit", None)
    return Refusal(photo=error.photo or "", code=error.code, detail=str(error), measured=measured, limit=limit)
