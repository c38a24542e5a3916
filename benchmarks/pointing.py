"""Does the classifier look at the object? The pointing game and the boxes of class activation maps, on photos of yours.

python benchmarks/pointing.py --coco DIR [--least 0.2] [--shares 0.2,0.35,0.5] [--imagenet DIR] [--json OUT]

--coco      annotations.json in COCO's format and the photos its images name. Those count whose largest object covers at least
            `--least` of the photo and is of a class that ImageNet has too (COUNTERPARTS). The map of the most probable class,
            right or wrong, points at its strongest place: inside a box of that object's class it is a hit (Zhang et al. 2016,
            arXiv 1608.00507). Beside it the middle of the photo, which needs no network, and the boxes at each share.
--imagenet  labels.csv with columns file,index, and the photos. There are no boxes: measured is how much the most probable
            class loses when a patch there is covered with grey, next to one in the middle and one anywhere.
"""

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from service import Engine
from service.imaging.boxes import iou
from service.imaging.heat import Edges, region, strongest, within
from service.settings import Settings
from service.tasks.activation import SHARE

SCREEN = Console(stderr=True)
PATCH = 2 / 7
"""Side of a covered patch over the side of the view: two cells of a map of seven."""
_DOGS, _CATS = range(151, 269), range(281, 286)
COUNTERPARTS: dict[str, Sequence[int]] = {
    "airplane": (404, 895, 908),
    "backpack": (414,),
    "banana": (954,),
    "bear": (294, 295, 296, 297),
    "bed": (564, 831, 520),
    "bench": (703,),
    "bicycle": (444, 671),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "boat": (472, 484, 554, 576, 625, 814, 871, 914, 780, 724, 628),
    "bottle": (440, 737, 898, 907, 720),
    "bowl": (659, 809, 925),
    "broccoli": (937,),
    "bus": (654, 779, 874),
    "car": (436, 468, 511, 609, 627, 656, 751, 817),
    "cat": _CATS,
    "chair": (423, 559, 765),
    "clock": (409, 530, 892),
    "couch": (831,),
    "cow": (345,),
    "cup": (504, 968, 967),
    "dining table": (532,),
    "dog": _DOGS,
    "elephant": (101, 385, 386),
    "horse": (339,),
    "hot dog": (934,),
    "keyboard": (508, 878),
    "laptop": (620, 681),
    "microwave": (651,),
    "motorcycle": (665, 670),
    "mouse": (673,),
    "orange": (950,),
    "oven": (827,),
    "parking meter": (704,),
    "pizza": (963,),
    "potted plant": (738,),
    "refrigerator": (760,),
    "remote": (761,),
    "sandwich": (933,),
    "sheep": (348,),
    "sink": (896,),
    "skis": (795,),
    "teddy bear": (850,),
    "tie": (906,),
    "toaster": (859,),
    "toilet": (861,),
    "traffic light": (920,),
    "train": (466, 547, 565, 705, 820, 829),
    "truck": (555, 569, 675, 717, 864, 867),
    "tv": (664, 782, 851),
    "umbrella": (879,),
    "vase": (883,),
    "wine glass": (572, 966),
    "zebra": (340,),
}
"""COCO's classes with those of ImageNet that mean the same, by their standard indices."""


@dataclass(frozen=True)
class Look:
    """One photo: the true boxes [n, 4] of its object's class, the largest first, the most probable class's grid and its view."""

    boxes: NDArray[np.float32]
    grid: NDArray[np.float32]
    view: Edges
    width: int
    height: int
    right: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--imagenet", type=Path)
    parser.add_argument("--least", type=float, default=0.2, help="share of the photo that its object covers")
    parser.add_argument("--shares", default="0.1,0.2,0.3,0.35,0.4,0.5,0.6", help="of the strongest, for the boxes")
    parser.add_argument("--model", help="a classifier that explains; none: the default one")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.coco is None and arguments.imagenet is None:
        parser.error("nothing to measure: name --coco, --imagenet or both")
    engine = Engine(Settings.from_env().model_copy(update={"tune": False}))
    figures: dict[str, Any] = {}
    try:
        if arguments.coco is not None:
            looks = look(engine, arguments.coco, arguments.least, arguments.model)
            shares = [float(share) for share in arguments.shares.split(",")]
            figures["coco"] = {
                name: pointing(chosen, shares)
                for name, chosen in (("all", looks), ("best class right", [one for one in looks if one.right]))
            }
        if arguments.imagenet is not None:
            figures["imagenet"] = covering(engine, arguments.imagenet, arguments.model)
    finally:
        engine.close()
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def look(engine: Engine, folder: Path, least: float, model: str | None) -> list[Look]:
    """Explain each photo whose largest object covers at least `least` of it and is of a class in COUNTERPARTS."""
    truth = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    looks = []
    for image in track(truth["images"], "photos", console=SCREEN, transient=True):
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"] and not a.get("iscrowd")]
        mine.sort(key=lambda a: a["bbox"][2] * a["bbox"][3], reverse=True)
        if not mine or mine[0]["bbox"][2] * mine[0]["bbox"][3] < least * image["width"] * image["height"]:
            continue
        counterparts = COUNTERPARTS.get(names[mine[0]["category_id"]])
        if not counterparts:
            continue
        boxes = [a["bbox"] for a in mine if a["category_id"] == mine[0]["category_id"]]
        answer = engine.classify(folder / image["file_name"], explain=True, model=model)
        heat = answer.heat
        assert heat is not None
        corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float32)
        right = heat.class_id in counterparts
        looks.append(Look(corners, heat.grid, heat.view, answer.image.width, answer.image.height, right))
    return looks


def pointing(looks: Sequence[Look], shares: Sequence[float]) -> dict[str, Any]:
    """The share of hits, of the map and of the photo's middle, and for each share the boxes' IoU with the largest true box."""
    hits = [_inside(_point(one), one.boxes) for one in looks]
    middle = [_inside((one.width / 2, one.height / 2), one.boxes) for one in looks]
    boxes = {f"box at {share:g}": [_iou(within(one.view, region(one.grid, share)), one) for one in looks] for share in shares}
    boxes["all of the view"] = [_iou(one.view, one) for one in looks]
    return {
        "photos": len(looks),
        "strongest point inside": float(np.mean(hits)),
        "middle of the photo inside": float(np.mean(middle)),
        "IoU": {
            name: {"mean": float(np.mean(found)), "at least 0.5": float(np.mean(np.array(found) >= 0.5))}
            for name, found in boxes.items()
        },
    }


def covering(engine: Engine, folder: Path, model: str | None) -> dict[str, Any]:
    """How much of the most probable class's confidence is left, on average, when one patch of the view is grey."""
    random = np.random.default_rng(0)
    places: dict[str, Callable[[Any], tuple[float, float]]] = {
        "at the strongest point": lambda heat: strongest(heat.grid),
        "in the middle": lambda _: (0.5, 0.5),
        "anywhere": lambda _: tuple(random.uniform(PATCH / 2, 1 - PATCH / 2, 2)),  # type: ignore[return-value]
    }
    left: dict[str, list[float]] = {name: [] for name in places}
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    for row in track(rows, "photos", console=SCREEN, transient=True):
        photo = engine.decode(folder / row["file"])
        heat = engine.classify(photo, explain=True, model=model).heat
        assert heat is not None
        for name, place in places.items():
            x, y = (min(max(at, PATCH / 2), 1 - PATCH / 2) for at in place(heat))
            left_, top, right, bottom = (
                round(edge) for edge in within(heat.view, (x - PATCH / 2, y - PATCH / 2, x + PATCH / 2, y + PATCH / 2))
            )
            covered = photo.pixels.copy()
            covered[top:bottom, left_:right] = 127
            answer = engine.classify(covered, explain=True, top_k=1000, model=model)
            left[name].append(next(p.confidence for p in answer.predictions if p.class_id == heat.class_id) / heat.confidence)
    return {"photos": len(rows), "confidence left": {name: float(np.mean(values)) for name, values in left.items()}}


def show(figures: dict[str, Any]) -> None:
    for name, found in figures.get("coco", {}).items():
        print(f"{name}: {found['photos']} photos")
        print(f"  strongest point inside      {found['strongest point inside']:.3f}")
        print(f"  middle of the photo inside  {found['middle of the photo inside']:.3f}")
        for box, overlap in found["IoU"].items():
            note = "  <- in use" if box == f"box at {SHARE:g}" else ""
            print(f"  {box:<20} IoU mean {overlap['mean']:.3f}, at least 0.5: {overlap['at least 0.5']:.3f}{note}")
    if "imagenet" in figures:
        found = figures["imagenet"]
        print(f"a patch of {PATCH:.2f} of the view's sides covered, {found['photos']} photos: share of the confidence that is left")
        for name, value in found["confidence left"].items():
            print(f"  {name:<24}{value:.3f}")


def _point(one: Look) -> tuple[float, float]:
    x, y = strongest(one.grid)
    edges = within(one.view, (x, y, x, y))
    return edges[0], edges[1]


def _inside(point: tuple[float, float], boxes: NDArray[np.float32]) -> bool:
    x, y = point
    return bool(((boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])).any())


def _iou(box: Edges, one: Look) -> float:
    return float(iou(np.array([box], np.float32), one.boxes[:1])[0, 0])


if __name__ == "__main__":
    main()
