"""Quality of a face: sharpness and pose on a known scale, and the warnings that follow from them."""

from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from service.tasks.face_quality import BLURRED, TILTED, TURNED, assess, estimate_pose, sharpness

Array = NDArray[Any]
HEAD = np.array([(-31, 0, 0), (31, 0, 0), (0, 36, -26), (-27, 63, -2), (27, 63, -2)])
"""A person's right eye, left eye, nose and mouth corners in millimetres: x to the picture's right, y down, z away."""


def turned(yaw: float = 0, pitch: float = 0, roll: float = 0, scale: float = 2) -> Array:
    """HEAD turned to the picture's right, then up, then clockwise, by degrees; as a distant camera sees it, [5, 2]."""
    y, p, r = np.deg2rad([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return scale * (HEAD @ (about_z @ about_y @ about_x).T)[:, :2] + 200


def face() -> NDArray[np.uint8]:
    return cv2.resize(skimage.data.astronaut()[60:180, 165:285], (112, 112), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"),
    [
        (0, 0, 0),
        (30, 0, 0),
        (-30, 0, 0),
        (60, 0, 0),
        (0, 25, 0),
        (0, -25, 0),
        (0, 0, 40),
        (0, 0, -170),
        (25, -15, 10),
        (-40, 20, -30),
    ],
)
def test_a_turned_heads_pose_is_found(yaw: float, pitch: float, roll: float) -> None:
    pose = estimate_pose(turned(yaw, pitch, roll))
    assert (pose.yaw, pose.pitch) == pytest.approx((yaw, pitch), abs=6)
    assert (pose.roll - roll + 180) % 360 - 180 == pytest.approx(0, abs=6)


def test_pose_does_not_depend_on_place_or_size() -> None:
    assert estimate_pose(turned(20, 10, 5, scale=0.1) + 1000) == estimate_pose(turned(20, 10, 5, scale=3))


def test_a_mirror_image_looks_the_other_way() -> None:
    points = turned(25, 10, 15)
    mirrored = np.column_stack([640 - points[:, 0], points[:, 1]])[[1, 0, 2, 4, 3]]
    seen, other = estimate_pose(points), estimate_pose(mirrored)
    assert (other.yaw, other.pitch, other.roll) == pytest.approx((-seen.yaw, seen.pitch, -seen.roll), abs=0.11)


def test_landmarks_in_one_spot_have_no_pose() -> None:
    assert estimate_pose(np.full((5, 2), 7.0)).model_dump() == {"yaw": 0, "pitch": 0, "roll": 0}


def test_sharpness_falls_with_blur_but_not_with_contrast() -> None:
    sharp = face()
    steps = [sharpness(sharp), *(sharpness(cv2.GaussianBlur(sharp, (0, 0), sigma)) for sigma in (1, 1.5, 2, 3))]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 0.05
    assert steps[2] > BLURRED > steps[3]
    assert sharpness(cv2.convertScaleAbs(sharp, alpha=0.5)) == pytest.approx(steps[0], rel=0.05)
    assert sharpness(np.full((112, 112, 3), 90, np.uint8)) == 0


BOX = (100.0, 100.0, 180.0, 200.0)


@pytest.mark.parametrize(
    ("box", "points", "blur", "warns"),
    [
        pytest.param(BOX, turned(), 0, [], id="nothing"),
        pytest.param((100, 100, 131, 180), turned(), 0, ["the face is small: 31 pixels wide, 32 or more are better"], id="small"),
        pytest.param(BOX, turned(), 3, ["the face is blurred"], id="blurred"),
        pytest.param(BOX, turned(yaw=-50), 0, ["the face is turned to the side by about"], id="turned"),
        pytest.param(BOX, turned(pitch=45), 0, ["the face is turned up by about"], id="up"),
        pytest.param(BOX, turned(pitch=-45), 0, ["the face is turned down by about"], id="down"),
        pytest.param(BOX, turned(roll=80), 0, [], id="tilted only"),
        pytest.param((-20, 100, 60, 200), turned(), 0, ["the face is cut off by the edge of the photo"], id="cut"),
        pytest.param((-5, 100, 75, 200), turned(), 0, [], id="cut a little"),
        pytest.param((250, 100, 330, 200), turned(), 0, ["the face is cut off by the edge of the photo"], id="cut at the right"),
        pytest.param(
            (100, 100, 120, 125), turned(yaw=60), 4, ["the face is small", "the face is blurred", "the face is turned"], id="three"
        ),
    ],
)
def test_warnings_say_what_is_wrong(box: tuple[float, ...], points: Array, blur: float, warns: list[str]) -> None:
    aligned = cv2.GaussianBlur(face(), (0, 0), blur) if blur else face()
    quality = assess(np.float32(box), points.astype(np.float32).ravel(), aligned, 300, 300)
    assert len(quality.warnings) == len(warns)
    for warning, start in zip(quality.warnings, warns, strict=True):
        assert warning.startswith(start)
    assert quality.size == min(box[2] - box[0], box[3] - box[1])


def test_limits_of_pose_are_where_the_warnings_begin() -> None:
    for points, limit, seen in ((turned(yaw=TURNED + 8), TURNED, "yaw"), (turned(pitch=TILTED + 8), TILTED, "pitch")):
        assert getattr(estimate_pose(points), seen) > limit
