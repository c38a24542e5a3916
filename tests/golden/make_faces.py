"""Writes what OpenCV 4 answers to the original files of YuNet and SFace (OpenCV 5's FaceRecognizerSF fails on the latter).

    pip install "opencv-python-headless==4.14.*" scikit-image
    python tests/golden/make_faces.py face_detection_yunet_2023mar_int8bq.onnx face_recognition_sface_2021dec_int8bq.onnx

Three files come out:
    models/yunet/parity.npz, models/sface/parity.npz   drawn pictures and the networks' answers; guard every export
    tests/golden/faces.npz   the astronaut, "photo", her mirror image, "mirror", and her in red light, "red":
        photo/detections   [m, 15] of FaceDetectorYN: x, y, width, height, five landmarks, score
        photo/crop         the first face as FaceRecognizerSF.alignCrop cuts it, RGB [112, 112, 3]
        photo/feature      FaceRecognizerSF.feature of that crop, [128]
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "models"
CONFIDENCE, IOU, STRIDES = 0.6, 0.3, (8, 16, 32)

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]


def ramp(height: int, width: int) -> Pixels:
    """Different in every channel, row and column, and small when compressed."""
    rows, columns = np.mgrid[0:height, 0:width]
    parts = [columns * 255 // (width - 1), rows * 255 // (height - 1), (rows + columns) * 127 // (height + width)]
    return np.ascontiguousarray(np.stack(parts, axis=-1).astype(np.uint8) // 8 * 8)


def draw_head(picture: Pixels, x: int, y: int, size: int) -> None:
    """A face that YuNet is sure of, seen from the front, `size` pixels wide."""
    unit = size / 100

    def ellipse(dx: float, dy: float, width: float, height: float, color: tuple[int, int, int]) -> None:
        centre, axes = (round(x + dx * unit), round(y + dy * unit)), (round(width * unit), round(height * unit))
        cv2.ellipse(picture, centre, axes, 0, 0, 360, color, -1, cv2.LINE_AA)

    ellipse(0, -14, 56, 72, (60, 40, 30))
    ellipse(0, 0, 48, 62, (224, 172, 140))
    for side in (-1, 1):
        ellipse(side * 20, -12, 10, 5, (250, 250, 250))
        ellipse(side * 20, -12, 5, 5, (50, 60, 90))
        ellipse(side * 20, -24, 13, 3, (70, 45, 35))
        ellipse(side * 4, 14, 4, 3, (150, 90, 75))
    ellipse(0, 4, 5, 12, (236, 186, 154))
    ellipse(0, 34, 18, 6, (180, 70, 80))


def decode(heads: dict[str, Array], height: int, width: int) -> tuple[Array, Array, Array]:
    """YuNet's raw heads to boxes [1, k, 4], scores [1, k] and landmarks [1, k, 10], written from its paper's description."""
    boxes, scores, landmarks = [], [], []
    for stride in STRIDES:
        part = {
            head: heads[f"{head}_{stride}"].reshape(height // stride * (width // stride), -1)
            for head in ("cls", "obj", "bbox", "kps")
        }
        for cell in range(len(part["cls"])):
            row, column = divmod(cell, width // stride)
            dx, dy, w, h = part["bbox"][cell].astype(np.float64)
            cx, cy, w, h = (column + dx) * stride, (row + dy) * stride, np.exp(w) * stride, np.exp(h) * stride
            boxes.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
            scores.append(np.sqrt(float(part["cls"][cell, 0]) * float(part["obj"][cell, 0])))
            points = part["kps"][cell].reshape(5, 2) + np.array([column, row])
            landmarks.append((points * stride).ravel())
    return tuple(np.array(values, np.float32)[None] for values in (boxes, scores, landmarks))  # type: ignore[return-value]


def yunet_parity(weights: str) -> None:
    picture = ramp(160, 256)
    draw_head(picture, 90, 90, 90)
    net = cv2.dnn.readNetFromONNX(weights)
    net.setInput(cv2.dnn.blobFromImage(np.ascontiguousarray(picture[..., ::-1])))
    names = net.getUnconnectedOutLayersNames()
    boxes, scores, landmarks = decode(dict(zip(names, net.forward(names), strict=True)), *picture.shape[:2])
    assert scores.max() > CONFIDENCE, "the drawing no longer looks like a face"
    outputs = {"model/out/boxes": boxes, "model/out/scores": scores, "model/out/landmarks": landmarks}
    np.savez_compressed(MODELS / "yunet" / "parity.npz", **{"model/in/pixels": picture[None]}, **outputs)


def sface_parity(recognizer: cv2.FaceRecognizerSF) -> None:
    faces = np.stack([ramp(112, 112), ramp(112, 112)[::-1]])
    draw_head(faces[1], 56, 62, 80)
    features = np.concatenate([recognizer.feature(np.ascontiguousarray(face[..., ::-1])) for face in faces])
    np.savez_compressed(MODELS / "sface" / "parity.npz", **{"model/in/pixels": faces, "model/out/embedding": features})


def golden(weights: str, recognizer: cv2.FaceRecognizerSF) -> None:
    found = {}
    photo = skimage.data.astronaut()
    red = (photo // np.array([1, 5, 256])).astype(np.uint8)
    for name, pixels in (("photo", photo), ("mirror", photo[:, ::-1]), ("red", red)):
        bgr = np.ascontiguousarray(pixels[..., ::-1])
        detector = cv2.FaceDetectorYN.create(weights, "", bgr.shape[1::-1], CONFIDENCE, IOU)
        _, faces = detector.detect(bgr)
        crop = recognizer.alignCrop(bgr, faces[0])
        found |= {f"{name}/detections": faces, f"{name}/crop": np.ascontiguousarray(crop[..., ::-1])}
        found[f"{name}/feature"] = recognizer.feature(crop)[0].copy()
    np.savez_compressed(HERE / "faces.npz", **found)


if __name__ == "__main__":
    assert cv2.__version__.startswith("4."), "needs OpenCV 4"
    yunet_weights, sface_weights = sys.argv[1:]
    sface = cv2.FaceRecognizerSF.create(sface_weights, "")
    yunet_parity(yunet_weights)
    sface_parity(sface)
    golden(yunet_weights, sface)
