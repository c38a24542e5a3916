"""Answers drawn on the photos they are about: the one place where detections and faces become marks."""

from collections.abc import Sequence

from service.imaging.draw import Mark, draw
from service.tasks.detect import Detection
from service.tasks.face_embedding import Face
from service.tasks.task import Box, Pixels


def draw_detections(pixels: Pixels, predictions: Sequence[Detection]) -> Pixels:
    """A copy of the photo with a box, label and confidence (percent) for each detection; one colour a class."""
    return draw(pixels, [Mark(_corners(p.box), f"{p.label} {p.confidence:.0%}", p.class_id) for p in predictions])


def draw_faces(pixels: Pixels, faces: Sequence[Face]) -> Pixels:
    """A copy of the photo with a box, confidence (percent) and the five landmarks for each face."""
    return draw(pixels, [Mark(_corners(face.box), f"{face.confidence:.0%}", 0, _points(face)) for face in faces])


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.x_min, box.y_min, box.x_max, box.y_max


def _points(face: Face) -> tuple[tuple[float, float], ...]:
    marks = face.landmarks
    return tuple((p.x, p.y) for p in (marks.right_eye, marks.left_eye, marks.nose, marks.mouth_right, marks.mouth_left))
