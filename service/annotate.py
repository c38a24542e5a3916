"""Answers drawn on the photos they are about: the one place where detections, faces and heat maps become marks."""

import unicodedata
from collections.abc import Sequence
from hashlib import blake2b

from service.imaging.draw import Mark, draw
from service.imaging.heat import paint_heat
from service.tasks.activation import Heat
from service.tasks.detect import Detection
from service.tasks.face_embedding import Face
from service.tasks.people import Candidate, IdentifiedFace
from service.tasks.task import Box, Pixels

UNKNOWN = 0
"""The colour of who is not known."""
COLORS = 1000
LONGEST_NAME = 60  # characters


def draw_detections(pixels: Pixels, predictions: Sequence[Detection]) -> Pixels:
    """A copy of the photo with a box, label and confidence (percent) for each detection; one colour a class."""
    return draw(pixels, [Mark(_corners(p.box), f"{p.label} {p.confidence:.0%}", p.class_id) for p in predictions])


def draw_faces(pixels: Pixels, faces: Sequence[Face]) -> Pixels:
    """A copy of the photo with a box, confidence (percent) and the five landmarks for each face."""
    return draw(pixels, [Mark(_corners(face.box), f"{face.confidence:.0%}", 0, _points(face)) for face in faces])


def draw_identified(pixels: Pixels, faces: Sequence[IdentifiedFace]) -> Pixels:
    """A copy of the photo with a box for each face, and who it most likely is, with the similarity, or "unknown".

    One colour a subject, the same on every photo; another for all unknown.
    """
    return draw(pixels, [_who(face) for face in faces])


def draw_heat(pixels: Pixels, heat: Heat) -> Pixels:
    """A copy of the photo with a class's heat map over it, and its strongest region boxed, with label and confidence (percent)."""
    mark = Mark(heat.box, f"{heat.label} {heat.confidence:.0%}", heat.class_id)
    return draw(paint_heat(pixels, heat.grid, heat.view), [mark])


def _who(face: IdentifiedFace) -> Mark:
    if not face.candidates:
        return Mark(_corners(face.box), "unknown", UNKNOWN)
    best = face.candidates[0]
    number = int.from_bytes(blake2b(best.subject.encode(), digest_size=8).digest())
    return Mark(_corners(face.box), f"{_written(best)} {best.similarity:.2f}", 1 + number % COLORS)


def _written(candidate: Candidate) -> str:
    """The subject's name where most of it can be written in the letters that draw() has, else how the id of its face begins."""
    letters = [c for c in unicodedata.normalize("NFKD", candidate.subject) if not (unicodedata.combining(c) or c.isspace())]
    if sum(" " <= letter <= "~" for letter in letters) * 2 <= len(letters):
        return candidate.face_id[:8]
    return candidate.subject if len(candidate.subject) <= LONGEST_NAME else f"{candidate.subject[: LONGEST_NAME - 1]}…"


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.x_min, box.y_min, box.x_max, box.y_max


def _points(face: Face) -> tuple[tuple[float, float], ...]:
    marks = face.landmarks
    return tuple((p.x, p.y) for p in (marks.right_eye, marks.left_eye, marks.nose, marks.mouth_right, marks.mouth_left))
