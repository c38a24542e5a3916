"""Top-1/top-5, mAP and face-pair accuracy of the default models through the whole engine, photo in to answer out.

    python benchmarks/accuracy.py --imagenet DIR --coco DIR --faces DIR [--precision int8] [--json OUT]

Without --precision in float32; with it in float32 and in that precision, and how they differ. Each set is optional. What the
folders hold:
    --imagenet  labels.csv with columns file,index (0..999 in the standard order), and the photos it names
    --coco      annotations.json in COCO's format, and the photos its images name
    --faces     pairs.csv with columns file_a,file_b,same (1 or 0), and the photos it names
Needs the extra `bench` (pycocotools).
"""

import argparse
import contextlib
import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from service import Engine
from service.errors import NoFace
from service.settings import Settings

SCREEN = Console(stderr=True)
Figures = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenet", type=Path)
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--precision", choices=["float", "int8", "float16"], default="float")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    tasks = {"classify": (classification, arguments.imagenet), "detect": (detection, arguments.coco)}
    tasks["verify-face"] = (verification, arguments.faces)
    wanted = {task: way for task, way in tasks.items() if way[1] is not None}
    if not wanted:
        sys.exit("nothing to measure: name at least one of --imagenet, --coco, --faces")
    figures: dict[str, Figures] = {}
    for precision in dict.fromkeys(("float", arguments.precision)):
        settings = Settings.from_env().model_copy(update={"precision": precision, "tune": False})
        with Engine(settings) as engine:
            figures[precision] = {task: measure(engine, folder) for task, (measure, folder) in wanted.items()}
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def show(figures: dict[str, Figures]) -> None:
    """A column for each precision; behind two of them what the second gains on the first."""
    print(f"{'':<46}" + "".join(f"{precision:>10}" for precision in figures) + ("    change" if len(figures) > 1 else ""))
    for task, names in next(iter(figures.values())).items():
        print(task)
        for name in names:
            values = [found[task][name] for found in figures.values()]
            change = f"{values[1] - values[0]:>+10.4f}" if len(values) > 1 else ""
            print(f"  {name:<44}" + "".join(f"{value:>10.5g}" for value in values) + change)


def classification(engine: Engine, folder: Path) -> dict[str, float]:
    """Top-1 and top-5: the share of photos whose true class is the first, or among the first five, answered."""
    rows = _rows(folder / "labels.csv")
    first = five = 0
    for row in track(rows, "classify", console=SCREEN, transient=True):
        ids = [p.class_id for p in engine.classify(folder / row["file"], top_k=5).predictions]
        first += ids[0] == int(row["index"])
        five += int(row["index"]) in ids
    return {"photos": len(rows), "top-1": first / len(rows), "top-5": five / len(rows)}


def detection(engine: Engine, folder: Path) -> dict[str, float]:
    """COCO mAP by pycocotools: confidence from 0.01, NMS at IoU 0.45, at most 100 boxes a photo."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations.json"))
        category = {entry["name"]: entry["id"] for entry in truth.dataset["categories"]}
        found = []
        images = truth.dataset["images"]
        for image in track(images, "detect", console=SCREEN, transient=True):
            answer = engine.detect(folder / image["file_name"], confidence=0.01, iou=0.45, max_detections=100)
            for p in answer.predictions:
                box = [p.box.x_min, p.box.y_min, p.box.x_max - p.box.x_min, p.box.y_max - p.box.y_min]
                found.append({"image_id": image["id"], "category_id": category[p.label], "bbox": box, "score": p.confidence})
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"photos": len(images), "mAP@0.5": float(evaluation.stats[1]), "mAP@0.5:0.95": float(evaluation.stats[0])}


def verification(engine: Engine, folder: Path) -> dict[str, float]:
    """Accuracy at the default threshold, AUC, and both error rates; pairs where a photo shows no face are counted apart."""
    rows = _rows(folder / "pairs.csv")
    refused = 0
    scores, same, verified = [], [], []
    for row in track(rows, "verify-face", console=SCREEN, transient=True):
        try:
            answer = engine.verify_face(folder / row["file_a"], folder / row["file_b"])
        except NoFace:
            refused += 1
            continue
        scores.append(answer.similarity)
        verified.append(answer.verified)
        same.append(row["same"] == "1")
    score, truth, said = np.array(scores), np.array(same), np.array(verified)
    return {
        "pairs answered": len(truth),
        "pairs without a face": refused,
        "genuine pairs": int(truth.sum()),
        "accuracy at the default threshold": float((said == truth).mean()),
        "AUC": area_under_roc(score, truth),
        "false matches": float(said[~truth].mean()),
        "false non-matches": float((~said[truth]).mean()),
    }


def area_under_roc(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Probability that a genuine pair scores above an impostor pair, ties counting half (Mann-Whitney U)."""
    genuine, impostor = score[truth][:, None], score[~truth][None, :]
    return float((genuine > impostor).mean() + 0.5 * (genuine == impostor).mean())


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


if __name__ == "__main__":
    main()
