"""mAP of detectors that others exported: our way next to a decoder of its own, which shares no line with the service.

    python benchmarks/decoders.py --coco DIR MODEL [MODEL ...] [--json OUT]

MODEL is an .onnx, which is added to an empty repository as `vision-service models add` does, or a model.toml that stands in its
folder. Our way is the engine, photo in to answer out. The other way is this file: letterbox by Pillow, decoding in numpy, greedy
suppression in plain Python; what the file is, is told by the shapes that it answers. --coco is as in accuracy.py: annotations.json
and the photos that it names. Both answer with confidence from 0.01, NMS at IoU 0.45 and at most 100 boxes a photo. A file
that is no detector of COCO's 80 classes is added too, and its role is said, or why it was refused.
Exits with 1 where the two differ by more than 0.01 of mAP@0.5. Needs the extra `bench` (pycocotools).
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from service.errors import VisionError

Array = NDArray[Any]
Row = tuple[float, float, float, float, float, int]
"""x_min, y_min, x_max, y_max in the photo's pixels, score, class."""
Size = tuple[int, int]
"""Height and width of what the network sees."""
CONFIDENCE, IOU, MOST = 0.01, 0.45, 100
ALLOWED = 0.01
CLASSES = 80
SCREEN = Console(stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float | str]] = {}
    print(f"{'model':<40}{'read as':<12}{'ours':>9}{'its own':>9}{'change':>9}   mAP@0.5, then mAP@0.5:0.95")
    for path in arguments.models:
        try:
            with our_way(path) as answer:
                ours = score(arguments.coco, answer)
        except (NotCoco, VisionError) as error:
            print(f"{weights_of(path).name:<40.39}{error}")
            continue
        own = Independent(weights_of(path))
        theirs = score(arguments.coco, own.answer)
        named = {f"{side} {name}": value for side, row in (("our", ours), ("own", theirs)) for name, value in row.items()}
        figures[str(path)] = {"kind": own.kind, **named}
        cells = [f"{ours[name]:>9.4f}{theirs[name]:>9.4f}{ours[name] - theirs[name]:>+9.4f}" for name in ours]
        print(f"{weights_of(path).name:<40.39}{own.kind:<12}{'  '.join(cells)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(any(abs(float(row["our mAP@0.5"]) - float(row["own mAP@0.5"])) > ALLOWED for row in figures.values()))


class NotCoco(Exception):
    """Nothing that photos of COCO could score."""


def weights_of(path: Path) -> Path:
    """The ONNX file itself, for a model.toml the first that it names."""
    if path.suffix == ".onnx":
        return path
    name = tomllib.loads(path.read_text(encoding="utf-8"))["files"][0]["name"]
    return next(file for file in (path.parent / name, path.parent / "weights" / name) if file.is_file())


@contextlib.contextmanager
def our_way(path: Path) -> Iterator[Callable[[Path], list[Row]]]:
    """Answers of the engine for a photo."""
    from service import Engine
    from service.settings import Settings

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) if path.suffix == ".onnx" else path.absolute().parent.parent
        names = () if path.suffix == ".onnx" else (path.absolute().parent.name,)
        settings = Settings(model_repository=(root,), models=names, precision="float", tune=False, reload_seconds=0)
        with Engine(settings) as engine:
            model = engine.load(_added(engine, path) if path.suffix == ".onnx" else names[0])
            name = model.spec.name
            if model.spec.task != "detect" or len(model.labels) != CLASSES:
                of = f" of {', '.join(model.labels)}" if model.spec.task == "detect" else ""
                raise NotCoco(f"{model.spec.task}{of}: loaded, not scored")

            def answer(photo: Path) -> list[Row]:
                found = engine.detect(photo, model=name, confidence=CONFIDENCE, iou=IOU, max_detections=MOST).predictions
                return [(p.box.x_min, p.box.y_min, p.box.x_max, p.box.y_max, p.confidence, p.class_id) for p in found]

            yield answer


def _added(engine: Any, path: Path) -> str:
    from service.intake import Told

    name: str = engine.fleet.add(path, Told()).name
    return name


def score(folder: Path, answer: Callable[[Path], list[Row]]) -> dict[str, float]:
    """mAP by pycocotools. Classes count through the categories by rising id, as all models of 80 classes have them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations.json"))
        category = sorted(truth.getCatIds())
        found = []
        for image in track(truth.dataset["images"], console=SCREEN, transient=True):
            for x_min, y_min, x_max, y_max, confidence, kind in answer(folder / image["file_name"]):
                box = [x_min, y_min, x_max - x_min, y_max - y_min]
                found.append({"image_id": image["id"], "category_id": category[kind], "bbox": box, "score": confidence})
        if not found:
            return {"mAP@0.5": 0.0, "mAP@0.5:0.95": 0.0}
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"mAP@0.5": float(evaluation.stats[1]), "mAP@0.5:0.95": float(evaluation.stats[0])}


@dataclass(frozen=True)
class Way:
    """What a family of files wants of a picture, and how its answers are read."""

    decode: Callable[[Sequence[Array], Size], tuple[Array, Array]]
    bgr: bool = False
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0, 0, 0)
    std: tuple[float, float, float] = (1, 1, 1)
    centred: bool = True
    suppressed: bool = False


class Independent:
    """One file by onnxruntime alone."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0]
        self.channels_last = self.input.shape[-1] in (1, 3)
        sides = self.input.shape[1:3] if self.channels_last else self.input.shape[2:4]
        self.height, self.width = (side if isinstance(side, int) else 640 for side in sides)
        self.kind = self._kind()
        self.way = WAYS[self.kind]

    def answer(self, photo: Path) -> list[Row]:
        with Image.open(photo) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        shrink = min(self.width / image.width, self.height / image.height)
        inside = two_by_two(image, round(image.width * shrink), round(image.height * shrink))
        left, top = ((self.width - inside.width) // 2, (self.height - inside.height) // 2) if self.way.centred else (0, 0)
        canvas = Image.new("RGB", (self.width, self.height), (114, 114, 114))
        canvas.paste(inside, (left, top))
        boxes, scores = self.way.decode(self._run(np.asarray(canvas, np.float32)), (self.height, self.width))
        boxes = (boxes - [left, top, left, top]) / shrink
        boxes = np.clip(boxes, 0, [image.width, image.height, image.width, image.height])
        rows: list[Row] = []
        for place, kind in zip(*np.nonzero(scores >= CONFIDENCE), strict=True):
            x_min, y_min, x_max, y_max = boxes[place].tolist()
            if x_max > x_min and y_max > y_min:
                rows.append((x_min, y_min, x_max, y_max, float(scores[place, kind]), int(kind)))
        rows.sort(key=lambda row: -row[4])
        return rows[:MOST] if self.way.suppressed else suppressed(rows)

    def _run(self, canvas: Array) -> list[Array]:
        x = (canvas[..., ::-1] if self.way.bgr else canvas) * self.way.scale
        x = ((x - np.float32(self.way.mean)) / np.float32(self.way.std))[None]
        return self._answers(x)

    def _answers(self, x: Array) -> list[Array]:
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
        x = x if self.channels_last else x.transpose(0, 3, 1, 2)
        feed = np.ascontiguousarray(x.astype(kinds[self.input.type]))
        return [np.asarray(one, np.float64)[0] for one in self.session.run(None, {self.input.name: feed})]

    def _kind(self) -> str:
        """By the shapes of a run on grey; a decoded size is never negative, its logarithm is."""
        outputs = self._answers(np.full((1, self.height, self.width, 3), 0.5, np.float32))
        if len(outputs) == 6:
            return "nanodet"
        rows = outputs[0]
        if rows.shape[1] == 6:
            return "end-to-end"
        if rows.shape[0] == 84 or rows.shape[1] == 84:
            return "yolov8"
        return "yolox" if (rows[:, 2:4] < 0).any() else "yolov5"


def two_by_two(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bilinear from the nearest four pixels, as these networks were trained with: Image.resize would blur what it shrinks."""
    steps = (image.width / width, 0, 0, 0, image.height / height, 0)
    return image.transform((width, height), Image.Transform.AFFINE, steps, Image.Resampling.BILINEAR)


def suppressed(rows: Sequence[Row]) -> list[Row]:
    """What greedy suppression inside each class leaves of `rows`, which are sorted by falling score."""
    kept: list[Row] = []
    by_class: dict[int, list[Row]] = {}
    for row in rows:
        same = by_class.setdefault(row[5], [])
        if all(overlap(row, other) <= IOU for other in same):
            same.append(row)
            kept.append(row)
            if len(kept) == MOST:
                break
    return kept


def overlap(one: Row, other: Row) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(row[2] - row[0]) * (row[3] - row[1]) for row in (one, other)]
    return width * height / (sum(areas) - width * height)


def corners(cx: Array, cy: Array, w: Array, h: Array) -> Array:
    return np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)


def yolov5(outputs: Sequence[Array], size: Size) -> tuple[Array, Array]:
    boxes, objectness, classes = np.split(outputs[0], [4, 5], axis=1)
    return corners(*in_pixels(boxes, size).T), classes * objectness


def yolov8(outputs: Sequence[Array], size: Size) -> tuple[Array, Array]:
    boxes, classes = np.split(outputs[0].T if outputs[0].shape[0] == 84 else outputs[0], [4], axis=1)
    return corners(*in_pixels(boxes, size).T), classes


def in_pixels(boxes: Array, size: Size) -> Array:
    """cx, cy, w, h of a file that says them in 0..1 or in pixels."""
    return boxes * [size[1], size[0], size[1], size[0]] if boxes.max() <= 2 else boxes


def end_to_end(outputs: Sequence[Array], _size: Size) -> tuple[Array, Array]:
    scores = np.zeros((len(outputs[0]), 80))
    for place, row in enumerate(outputs[0]):
        if 0 <= row[5] < 80:
            scores[place, int(row[5])] = row[4]
    return outputs[0][:, :4], scores


def yolox(outputs: Sequence[Array], size: Size) -> tuple[Array, Array]:
    boxes, place = np.empty((len(outputs[0]), 4)), 0
    for stride in (8, 16, 32):
        for row in range(size[0] // stride):
            for column in range(size[1] // stride):
                tx, ty, tw, th = outputs[0][place, :4]
                x, y, w, h = (tx + column) * stride, (ty + row) * stride, np.exp(tw) * stride, np.exp(th) * stride
                boxes[place] = x - w / 2, y - h / 2, x + w / 2, y + h / 2
                place += 1
    return boxes, outputs[0][:, 5:] * outputs[0][:, 4:5]


def nanodet(outputs: Sequence[Array], size: Size) -> tuple[Array, Array]:
    """Centres at (i + 1/2) * stride - 1/2, each distance the mean of a softmax over its bins."""
    heads = sorted((one for one in outputs if one.shape[1] == 80), key=len, reverse=True)
    reaches = sorted((one for one in outputs if one.shape[1] != 80), key=len, reverse=True)
    boxes = []
    for stride, reach in zip((8, 16, 32), reaches, strict=True):
        shares = np.exp(reach.reshape(len(reach), 4, -1))
        bins = shares.shape[2]
        left, top, right, bottom = ((shares / shares.sum(axis=2, keepdims=True)) * range(bins)).sum(axis=2).T * stride
        columns = -(-size[1] // stride)
        cx = np.arange(len(reach)) % columns * stride + (stride - 1) / 2
        cy = np.arange(len(reach)) // columns * stride + (stride - 1) / 2
        boxes.append(np.stack([cx - left, cy - top, cx + right, cy + bottom], axis=1))
    return np.concatenate(boxes), np.concatenate(heads)


WAYS = {
    "yolov5": Way(yolov5),
    "yolov8": Way(yolov8),
    "end-to-end": Way(end_to_end, suppressed=True),
    "yolox": Way(yolox, bgr=True, scale=1, centred=False),
    "nanodet": Way(nanodet, bgr=True, scale=1, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)),
}

if __name__ == "__main__":
    main()
