"""What every server under test does with a photo: decode, prepare, run the graph on one thread, answer. No HTTP in here.

From the service come only its pure functions on pixels, so that every server prepares photos and reads outputs in the very same
way; the graphs are the same files too. What a server adds of its own is thus all that is compared.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "numpy==2.4.6",
#     "onnxruntime==1.32.0",
#     "opencv-python-headless==5.0.0.93",
#     "simplejpeg==1.9.0",
# ]
# ///

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import cv2
import numpy as np
import onnxruntime
import simplejpeg
from numpy.typing import NDArray

from service.imaging.boxes import clip, nms
from service.imaging.transforms import Placement, center_crop, letterbox

Answer = dict[str, Any]
Pixels = NDArray[np.uint8]
CONFIDENCE, IOU, BOXES = 0.25, 0.45, 300  # the service's own defaults
CROP_SIDE, CROP, BOX_SIDE = 224, 0.875, 416  # what efficientnet-lite0 and yolov3-tiny take

TASK = os.environ.get("BENCH_TASK", "classify")
PORT = int(os.environ.get("BENCH_PORT", "8000"))
CORES = int(os.environ.get("BENCH_CORES", "2"))


class Work:
    """One task on one graph. Calls from several threads are fine: onnxruntime's sessions are made for it.

    reduced: decode a JPEG at the smallest scale that still has every pixel that the model can use.
    """

    def __init__(self, task: str, graph: Path, labels: Path, *, reduced: bool = False) -> None:
        cv2.setNumThreads(1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._task, self._reduced = task, reduced
        self._labels = labels.read_text(encoding="utf-8").splitlines()

    def __call__(self, photo: bytes) -> Answer:
        pixels, way = self.prepare(photo)
        return self.answer([part[0] for part in self.run(pixels[None])], way)

    def decode(self, photo: bytes) -> Pixels:
        """Upright RGB pixels of a JPEG."""
        if not self._reduced:
            return np.asarray(simplejpeg.decode_jpeg(photo, "RGB"))
        height, width = simplejpeg.decode_jpeg_header(photo)[:2]
        spare = min(height, width) * CROP / CROP_SIDE if self._task == "classify" else max(height, width) / BOX_SIDE
        factor = 8 if spare >= 8 else 4 if spare >= 4 else 2 if spare >= 2 else 1  # other scales are slower than the whole photo
        return np.asarray(simplejpeg.decode_jpeg(photo, "RGB", min_height=-(-height // factor), min_width=-(-width // factor)))

    def prepare(self, photo: bytes) -> tuple[Pixels, tuple[Placement, tuple[int, int]] | None]:
        """The graph's input [size, size, 3], and for detection the way back to a photo of (height, width)."""
        pixels = self.decode(photo)
        if self._task == "classify":
            return center_crop(pixels, CROP_SIDE, CROP, "bicubic"), None
        canvas, placement = letterbox(pixels, BOX_SIDE, BOX_SIDE)
        return canvas, (placement, pixels.shape[:2])

    def run(self, batch: Pixels) -> list[NDArray[np.float32]]:
        """Outputs of the graph for uint8 pixels [n, size, size, 3], each with n as its first dimension."""
        names = ["logits"] if self._task == "classify" else ["boxes", "scores"]
        found: list[NDArray[np.float32]] = self._session.run(names, {"pixels": batch})
        return found

    def answer(self, outputs: list[NDArray[np.float32]], way: tuple[Placement, tuple[int, int]] | None) -> Answer:
        """The answer to one photo from its part of run()'s outputs: the five best classes, or boxes after NMS."""
        if way is None:
            return {"predictions": self._classes(outputs[0])}
        return {"predictions": self._boxes(*outputs, *way)}

    def _classes(self, logits: NDArray[np.float32]) -> list[Answer]:
        exponentials = np.exp(logits - logits.max())
        shares = exponentials / exponentials.sum()
        best = np.argpartition(-shares, 5)[:5]
        return [
            {"class_id": int(i), "label": self._labels[i], "confidence": float(shares[i])} for i in best[np.argsort(-shares[best])]
        ]

    def _boxes(
        self, boxes: NDArray[np.float32], scores: NDArray[np.float32], placement: Placement, size: tuple[int, int]
    ) -> list[Answer]:
        rows, kinds = np.divmod(np.flatnonzero(scores >= CONFIDENCE), scores.shape[1])
        corners, found = clip(placement.to_photo(boxes[rows]), *size), scores[rows, kinds]
        names = ("x_min", "y_min", "x_max", "y_max")
        return [
            {
                "class_id": int(kinds[i]),
                "label": self._labels[kinds[i]],
                "confidence": float(found[i]),
                "box": dict(zip(names, corners[i].tolist(), strict=True)),
            }
            for i in nms(corners, found, IOU, kinds, BOXES)
        ]


def from_env() -> Work:
    """The work that a server under test was started for."""
    return Work(TASK, Path(os.environ["BENCH_GRAPH"]), Path(os.environ["BENCH_LABELS"]))


def only_part(body: bytes) -> bytes:
    """The file in a multipart body of one part, for servers that hand over the body as it came."""
    boundary, rest = body.split(b"\r\n", 1)
    return rest[rest.index(b"\r\n\r\n") + 4 : rest.rindex(b"\r\n" + boundary)]
