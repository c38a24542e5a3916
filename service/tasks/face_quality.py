"""How far a face can be trusted for comparison: its size, sharpness and pose, with warnings in plain words.

The limits were measured on 101 pairs of one person and 790 pairs of two people, one or both photos made worse step by step.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.tasks.task import Pixels

UNUSABLE_SIZE = 12
"""Pixels. Below this more than half of all pairs are missed, and one of thirty or more pairs of two people matches by chance."""
SMALL_SIZE = 32
"""Pixels. From here on, error rates are those of large faces."""
BLURRED = 0.005
"""Sharpness below which error rates rise; that of a Gaussian blur of 1.7 pixels on the aligned face."""
TURNED, TILTED = 35.0, 30.0
"""Degrees of yaw and of pitch beyond which much of the face is hidden."""
CUT = 0.85
"""Share of the face's box that must lie inside the photo."""

# Right eye, left eye, nose, mouth corners of a face seen from the front, in units of the distance between the eyes: x to the
# picture's right, y down, z away from the camera. x and y are medians of YuNet's landmarks on 34 frontal portraits.
_HEAD = np.array([(-0.5, 0, 0), (0.5, 0, 0), (0, 0.571, -0.43), (-0.441, 1.007, -0.03), (0.441, 1.007, -0.03)])
_LUMA = np.array([0.299, 0.587, 0.114])


class Pose(BaseModel):
    """Where the face looks, in degrees, estimated from five landmarks: right within about ten degrees."""

    yaw: float = Field(description="positive: turned to the right of the picture")
    pitch: float = Field(description="positive: turned up")
    roll: float = Field(description="positive: tilted clockwise")


class FaceQuality(BaseModel):
    size: float = Field(description="shorter side of the face's box in pixels")
    sharpness: float = Field(
        description="variance of the Laplacian over variance of brightness, on the aligned face: sharp photos lie above 0.05, "
        f"blurred ones below {BLURRED}"
    )
    pose: Pose
    warnings: list[str] = Field(description="what makes the comparison less reliable, in plain words; empty: nothing")


def assess(box: NDArray[np.float32], landmarks: NDArray[np.float32], aligned: Pixels, height: int, width: int) -> FaceQuality:
    """Quality of one face: box [4] and landmarks [10] in a photo of height x width, and the aligned crop [112, 112, 3]."""
    size, sharp, pose = float(min(box[2:] - box[:2])), sharpness(aligned), estimate_pose(landmarks.reshape(5, 2))
    visible = np.clip(box, 0, (width, height, width, height))
    share = np.prod(visible[2:] - visible[:2]) / max(np.prod(box[2:] - box[:2]), 1e-6)
    doubts = {
        f"the face is small: {size:.0f} pixels wide, {SMALL_SIZE} or more are better": size < SMALL_SIZE,
        "the face is blurred": sharp < BLURRED,
        f"the face is turned to the side by about {abs(pose.yaw):.0f} degrees": abs(pose.yaw) > TURNED,
        f"the face is turned {'up' if pose.pitch > 0 else 'down'} by about {abs(pose.pitch):.0f} degrees": abs(pose.pitch) > TILTED,
        "the face is cut off by the edge of the photo": share < CUT,
    }
    warnings = [text for text, holds in doubts.items() if holds]
    return FaceQuality(size=round(size, 1), sharpness=round(sharp, 4), pose=pose, warnings=warnings)


def sharpness(aligned: Pixels) -> float:
    """Variance of the 4-neighbour Laplacian over the variance of brightness (Rec. 601); 0 for a flat picture.

    The quotient does not change with contrast. Reference: Pech-Pacheco and others, Diatom autofocusing in brightfield
    microscopy, ICPR 2000.
    """
    grey = aligned @ _LUMA
    centre = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * centre
    spread = float(grey.var())
    return float(laplacian.var()) / spread if spread > 0 else 0.0


def estimate_pose(landmarks: NDArray[np.floating]) -> Pose:
    """Pose from landmarks [5, 2]: the rotation of a general head whose parallel projection comes closest.

    Least squares for scale and the first two rows of the rotation, made orthonormal (scaled orthography, the first step of
    DeMenthon and Davis, Model-based object pose in 25 lines of code, 1995). Zeros when all landmarks coincide.
    """
    seen, head = landmarks - landmarks.mean(axis=0), _HEAD - _HEAD.mean(axis=0)
    left, strength, right = np.linalg.svd(seen.T @ np.linalg.pinv(head.T), full_matrices=False)
    if not strength[0] > 0:
        return Pose(yaw=0.0, pitch=0.0, roll=0.0)
    across, down = left @ right
    away = np.cross(across, down)
    roll = np.arctan2(down[0], across[0])
    unrolled = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    x, y = unrolled @ (-across[2], -down[2])  # where the face looks: its own -z, in the picture
    yaw, pitch = np.arctan2(x, away[2]), np.arcsin(np.clip(-y, -1, 1))
    return Pose(**{name: round(float(np.degrees(angle)), 1) for name, angle in (("yaw", yaw), ("pitch", pitch), ("roll", roll))})
