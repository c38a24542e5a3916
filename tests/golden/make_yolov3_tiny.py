"""Writes what an independent reader of the darknet files answers: OpenCV 4's dnn module (OpenCV 5 reads them no longer).

    pip install "opencv-python-headless==4.14.*" scikit-image scikit-learn
    python tests/golden/make_yolov3_tiny.py yolov3-tiny.cfg yolov3-tiny.weights

Two files come out:
    models/yolov3-tiny/parity.npz   a drawn picture and the network's answer; guards every export
    tests/golden/yolov3-tiny.npz    per photo NAME:
        NAME/rows, NAME/boxes, NAME/scores   a part of the network's answer for the photo cut to multiples of 32, top left
        NAME/detections                      [m, 6] x_min, y_min, x_max, y_max, score, class after letterbox and NMS
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "models" / "yolov3-tiny"
SIDE, GREY, CONFIDENCE, IOU = 416, 128, 0.05, 0.45

Pixels = NDArray[np.uint8]


def photos() -> dict[str, Pixels]:
    """Photos that ship inside the wheels of scikit-image and scikit-learn, RGB."""
    found = {name: getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    return found | {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}


def drawing(height: int = 256, width: int = 352) -> Pixels:
    """Two road signs before a coloured ramp: the network is sure of both, and no flip, shift or swapped channel leaves it be."""
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = [columns * 255 // (width - 1), rows * 255 // (height - 1), (rows + columns) * 127 // (height + width)]
    picture = np.ascontiguousarray(np.stack(ramp, axis=-1).astype(np.uint8) // 8 * 8)
    angles = np.deg2rad(22.5 + 45 * np.arange(8))
    octagon = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    cv2.rectangle(picture, (96, 90), (104, 250), (120, 120, 120), -1)
    cv2.fillPoly(picture, [np.int32((100, 90) + 60 * octagon)], (250, 250, 250))
    cv2.fillPoly(picture, [np.int32((100, 90) + 56 * octagon)], (190, 20, 30))
    cv2.putText(picture, "STOP", (55, 105), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (250, 250, 250), 6)
    cv2.rectangle(picture, (230, 40), (270, 144), (30, 30, 30), -1)
    for row, color in ((60, (255, 40, 30)), (92, (90, 80, 10)), (124, (20, 90, 30))):
        cv2.circle(picture, (250, row), 13, color, -1)
    return picture


class Network:
    """[yolo] thresh=0, since OpenCV sets scores at or below the threshold to zero."""

    def __init__(self, cfg: Path, weights: Path) -> None:
        text = cfg.read_text().replace("[yolo]", "[yolo]\nthresh=0").encode()
        self.net = cv2.dnn.readNetFromDarknet(np.frombuffer(text, np.uint8), np.fromfile(weights, np.uint8))

    def __call__(self, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Boxes [k, 4] as corners in pixels and scores [k, 80] of one picture [h, w, 3]."""
        height, width = pixels.shape[:2]
        self.net.setInput(cv2.dnn.blobFromImage(pixels, 1 / 255))
        rows = np.concatenate(self.net.forward(sorted(self.net.getUnconnectedOutLayersNames())))
        centre, half = rows[:, :2], rows[:, 2:4] / 2
        corners = np.concatenate([centre - half, centre + half], axis=1) * np.float32([width, height, width, height])
        return corners.astype(np.float32), rows[:, 5:]

    def detect(self, photo: Pixels) -> NDArray[np.float32]:
        """The whole way: letterbox on grey, network, NMS inside each class, boxes back in the photo and clipped to it."""
        height, width = photo.shape[:2]
        scale = SIDE / max(height, width)
        inner = (round(width * scale), round(height * scale))
        left, top = (SIDE - inner[0]) // 2, (SIDE - inner[1]) // 2
        canvas = np.full((SIDE, SIDE, 3), GREY, np.uint8)
        canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(photo, inner, interpolation=cv2.INTER_LINEAR)
        boxes, scores = self(canvas)
        row, kind = np.nonzero(scores > CONFIDENCE)
        stretch = np.float32([width / inner[0], height / inner[1]] * 2)
        boxes = (boxes[row] - np.float32([left, top, left, top])) * stretch
        sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        kept = np.ravel(cv2.dnn.NMSBoxesBatched(sizes.tolist(), scores[row, kind].tolist(), kind.tolist(), CONFIDENCE, IOU))
        found = np.concatenate([boxes, scores[row, kind][:, None], kind[:, None]], axis=1)[kept.astype(int)]
        found[:, :4] = np.clip(found[:, :4], 0, [width, height, width, height])
        return found[np.argsort(-found[:, 4])].astype(np.float32)


def main(cfg: str, weights: str) -> None:
    if not cv2.__version__.startswith("4."):
        sys.exit(f"needs OpenCV 4 (4.14 was used), this is {cv2.__version__}")
    network = Network(Path(cfg), Path(weights))
    picture = drawing()
    boxes, scores = network(picture)
    at = np.flatnonzero((scores.ravel() > 1e-3) | (np.arange(scores.size) % 61 == 0)).astype(np.int32)
    answer = {"model/out/boxes": boxes[None], "model/at/scores": at, "model/values/scores": scores.ravel()[at]}
    np.savez_compressed(MODEL / "parity.npz", **{"model/in/pixels": picture[None]}, **answer)
    stored = {}
    for name, photo in photos().items():
        height, width = (side // 32 * 32 for side in photo.shape[:2])
        boxes, scores = network(np.ascontiguousarray(photo[:height, :width]))
        rows = np.flatnonzero((scores.max(axis=1) > 0.05) | (np.arange(len(scores)) % 97 == 0)).astype(np.int32)
        stored |= {f"{name}/rows": rows, f"{name}/boxes": boxes[rows], f"{name}/scores": scores[rows]}
        stored[f"{name}/detections"] = network.detect(photo)
    np.savez_compressed(HERE / "yolov3-tiny.npz", **stored)


if __name__ == "__main__":
    main(*sys.argv[1:])
