"""Every layout is told from every other, and what is found proves itself."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import ModelRefused, ModelUnclear
from service.intake import Finding, inspect, read_told
from service.settings import Settings

COCO_NAMES = {"names": str({i: f"thing {i}" for i in range(18)}), "stride": "32"}
ULTRALYTICS = {"author": "Ultralytics", "license": "AGPL-3.0 License (https://ultralytics.com/license)", "task": "detect"}


@dataclass(frozen=True)
class Case:
    """`outputs` makes them of the tables; `want`: fields of the finding's contract."""

    outputs: Callable[[Any], dict[str, Any]]
    want: dict[str, Any]
    shape: tuple[Any, ...] = (1, 3, 64, 64)
    told: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    task: str = "detect"
    assumed: str = ""


def heads(t: Any, channels: int, *sides: int) -> dict[str, Any]:
    return {f"head{side}": t.noise(1, channels, side, side) for side in sides}


NAMES = {"metadata": {**ULTRALYTICS, **COCO_NAMES}}
ONE = {"metadata": {**ULTRALYTICS, "names": "{0: 'cat'}"}}
CASES: dict[str, Case] = {
    "yolov5 one class": Case(lambda t: {"o": t.decoded(2, 3)}, {"decoder": "yolov5", "classes": 1, "color": "RGB"}),
    "yolov5 18 named": Case(
        lambda t: {"o": t.decoded(19, 3)}, {"decoder": "yolov5", "classes": 18, "activation": "none"}, more=NAMES
    ),
    "yolov5 with heads": Case(
        lambda t: {"o": t.decoded(8, 3), "a": t.noise(1, 3, 8, 8, 12)}, {"decoder": "yolov5", "outputs": ("o",), "classes": 7}
    ),
    "yolov8 one class": Case(lambda t: {"o": t.decoded(1).swapaxes(1, 2)}, {"decoder": "yolov8", "classes": 1}, more=ONE),
    "yolov8 18 named": Case(lambda t: {"o": t.decoded(18).swapaxes(1, 2)}, {"decoder": "yolov8", "classes": 18}, more=NAMES),
    "yolov8 coco": Case(
        lambda t: {"o": t.decoded(80, size=96).swapaxes(1, 2)},
        {"decoder": "yolov8", "classes": 80, "std": (1.0,)},
        shape=(1, 3, 96, 96),
        assumed="COCO",
    ),
    "yolov8 voc": Case(lambda t: {"o": t.decoded(20).swapaxes(1, 2)}, {"decoder": "yolov8", "classes": 20}, assumed="VOC"),
    "yolov8 logits": Case(
        lambda t: {"o": np.concatenate([t.decoded(0), t.noise(1, 84, 3)], 2).swapaxes(1, 2)},
        {"decoder": "yolov8", "activation": "sigmoid"},
    ),
    "yolov8 transposed, by names": Case(lambda t: {"o": t.decoded(18)}, {"decoder": "yolov8", "classes": 18}, more=NAMES),
    "yolov8 transposed, told": Case(lambda t: {"o": t.decoded(7)}, {"decoder": "yolov8", "classes": 7}, told={"decoder": "yolov8"}),
    "yolov8 of shares": Case(
        lambda t: {"o": (t.decoded(3) / np.array([64, 64, 64, 64, 1, 1, 1])).astype(np.float32).swapaxes(1, 2)},
        {"decoder": "yolov8", "boxes": "unit"},
    ),
    "yolov6": Case(
        lambda t: {"o": np.concatenate([t.decoded(0), np.ones((1, 84, 1), np.float32), t.decoded(3)[..., 4:]], 2)},
        {"decoder": "yolov5", "classes": 3, "color": "RGB"},
    ),
    "yolox raw": Case(
        lambda t: {"o": t.raw(6)}, {"decoder": "yolox", "classes": 5, "color": "BGR", "scale": 1.0, "strides": (8, 16, 32)}
    ),
    "yolox raw one class": Case(lambda t: {"o": t.raw(2)}, {"decoder": "yolox", "classes": 1}),
    "yolox decoded": Case(
        lambda t: {"o": t.decoded(81, size=96)},
        {"decoder": "yolov5", "classes": 80, "color": "BGR"},
        shape=(1, 3, 96, 96),
        assumed="objectness",
    ),
    "end-to-end": Case(lambda t: {"o": t.rows()}, {"decoder": "end-to-end", "classes": 18}, more=NAMES),
    "end-to-end, classes told": Case(lambda t: {"o": t.rows()}, {"decoder": "end-to-end", "classes": 3}, told={"classes": "3"}),
    "end-to-end of as many rows as places": Case(lambda t: {"o": t.rows(84)}, {"decoder": "end-to-end"}, told={"labels": "a,b,c"}),
    "end-to-end of one class, as many rows as 320 pixels have anchors": Case(
        lambda t: {"o": t.rows(300, 1)},
        {"decoder": "end-to-end", "classes": 1},
        shape=(1, 3, 320, 320),
        more=ONE,
    ),
    "rt-detr in one table": Case(
        lambda t: {"o": t.noise(1, 50, 12, low=0.1, high=0.9)}, {"decoder": "yolov8", "classes": 8, "boxes": "unit"}
    ),
    "UltraFace": Case(
        lambda t: {"scores": t.noise(1, 4420, 2, low=0, high=1), "boxes": t.noise(1, 4420, 4)},
        {"decoder": "corners-scores", "outputs": ("boxes", "scores"), "classes": 1, "first_class": 1, "boxes": "unit"},
        assumed="a face",
    ),
    "yolov2": Case(lambda t: heads(t, 125, 2), {"decoder": "yolov2", "classes": 20, "strides": (32,)}, assumed="anchors"),
    "yolov3": Case(
        lambda t: heads(t, 255, 2, 4, 8),
        {
            "decoder": "yolov3",
            "classes": 80,
            "strides": (32, 16, 8),
            "anchors": ((116, 90, 156, 198, 373, 326), (30, 61, 62, 45, 59, 119), (10, 13, 16, 30, 33, 23)),
        },
        assumed="YOLOv3's",
    ),
    "yolov3-tiny": Case(lambda t: heads(t, 24, 2, 4), {"decoder": "yolov3", "classes": 3, "strides": (32, 16)}),
    "yolov4": Case(
        lambda t: {f"h{s}": t.noise(1, s, s, 3, 85) for s in (8, 4, 2)},
        {"decoder": "yolov3", "layout": "NHWC", "head": "v3", "xy_scale": (1.2, 1.1, 1.05), "probabilities": False},
        shape=(1, 64, 64, 3),
        assumed="YOLOv4's",
    ),
    "yolov4 of probabilities": Case(
        lambda t: {f"h{s}": t.noise(1, s, s, 3, 85, low=0.1, high=0.9) for s in (8, 4, 2)},
        {"decoder": "yolov3", "probabilities": True},
        shape=(1, 64, 64, 3),
        assumed="YOLOv4's",
    ),
    "yolov5 raw heads, told": Case(
        lambda t: {f"h{s}": t.noise(1, 3, s, s, 9) for s in (8, 4, 2)},
        {"decoder": "yolov3", "head": "v5", "classes": 4},
        told={"head": "v5"},
    ),
    "detr": Case(
        lambda t: {"logits": t.noise(1, 50, 80), "pred_boxes": t.noise(1, 50, 4, low=0.2, high=0.6)},
        {"decoder": "detr", "activation": "sigmoid", "outputs": ("logits", "pred_boxes"), "scale": 1 / 255},
    ),
    "rf-detr": Case(
        lambda t: {"dets": t.noise(1, 50, 4, low=0.2, high=0.6), "labels": t.noise(1, 50, 91)},
        {"decoder": "detr", "outputs": ("labels", "dets"), "classes": 91, "std": (0.229, 0.224, 0.225)},
    ),
    "nanodet": Case(
        lambda t: {
            **{f"c{s}": t.noise(1, s * s, 7, low=0, high=1) for s in (8, 4, 2)},
            **{f"d{s}": t.noise(1, s * s, 32) for s in (8, 4, 2)},
        },
        {"decoder": "nanodet", "classes": 7, "color": "BGR", "strides": (8, 16, 32)},
        told={"classes": 7},
    ),
    "nms rows": Case(
        lambda t: {"o": np.tile(np.array([[0, 1, 2, 30, 40, 2, 0.5]], np.float32), (1, 1))},
        {"decoder": "nms-rows", "classes": 3, "boxes": "pixels"},
        told={"labels": "a,b,c"},
        more={"extra_operator": "NonMaxSuppression"},
    ),
    "nms indices": Case(
        lambda t: {
            "boxes": t.noise(1, 20, 4, low=0, high=60),
            "scores": t.noise(1, 5, 20, low=0, high=1),
            "indices": np.array([[0, 1, 2], [0, 3, 4]]),
        },
        {"decoder": "nms-indices", "classes": 5, "outputs": ("boxes", "scores", "indices")},
        more={"per_picture": False},
    ),
    "efficient nms": Case(
        lambda t: {
            "num_dets": np.array([[2]]),
            "det_boxes": t.noise(1, 9, 4, low=5, high=60),
            "det_scores": t.noise(1, 9, low=0, high=1),
            "det_classes": np.arange(9)[None] % 3,
        },
        {"decoder": "efficient-nms", "classes": 3, "outputs": ("num_dets", "det_boxes", "det_scores", "det_classes")},
        told={"classes": 3},
    ),
    "torchvision's": Case(
        lambda t: {"boxes": t.noise(6, 4, low=5, high=60), "labels": np.arange(6) % 3, "scores": t.noise(6, low=0, high=1)},
        {"decoder": "boxes-labels-scores", "classes": 3, "free_batch": False},
        shape=(3, 64, 64),
        told={"classes": 3},
        more={"per_picture": False},
    ),
    "d-fine, decoded": Case(
        lambda t: {
            "labels": np.arange(9)[None] % 3,
            "boxes": t.noise(1, 9, 4, low=5, high=60),
            "scores": t.noise(1, 9, low=0, high=1),
        },
        {"decoder": "detr-decoded", "classes": 80},
        more={"more_inputs": {"orig_target_sizes": ("int64", (1, 2))}},
        assumed="80 classes",
    ),
    "nhwc": Case(lambda t: {"o": t.decoded(3).swapaxes(1, 2)}, {"layout": "NHWC"}, shape=(1, 64, 64, 3)),
    "free batch": Case(lambda t: {"o": t.decoded(3).swapaxes(1, 2)}, {"free_batch": True}, shape=("n", 3, 64, 64)),
    "size from metadata": Case(
        lambda t: {"o": t.decoded(3).swapaxes(1, 2)},
        {"size": (64, 64)},
        shape=("n", 3, "h", "w"),
        more={"metadata": {**ULTRALYTICS, "imgsz": "[64, 64]"}},
    ),
    "float16": Case(
        lambda t: {"o": t.decoded(3).swapaxes(1, 2).astype(np.float16)}, {"decoder": "yolov8"}, more={"dtype": "float16"}
    ),
    "uint8": Case(lambda t: {"o": t.decoded(3).swapaxes(1, 2)}, {"scale": 1.0, "mean": (0.0,)}, more={"dtype": "uint8"}),
    "logits": Case(
        lambda t: {"o": t.noise(1, 1000)},
        {"decoder": "logits", "classes": 1000, "mean": (0.485, 0.456, 0.406)},
        told={"preprocess": "torchvision"},
        task="classify",
        assumed="ImageNet",
    ),
    "probabilities": Case(
        lambda t: {"o": np.full((1, 4, 1, 1), 0.25, np.float32)},
        {"decoder": "probabilities", "classes": 4},
        told={"preprocess": "tensorflow"},
        task="classify",
        assumed="numbered",
    ),
    "grey": Case(
        lambda t: {"o": t.noise(1, 10)},
        {"color": "GRAY", "scale": 1 / 255},
        shape=(1, 1, 28, 28),
        told={"preprocess": "unit"},
        task="classify",
    ),
    "embedder": Case(
        lambda t: {"o": t.noise(1, 128)},
        {"decoder": "embedding"},
        shape=(1, 3, 112, 112),
        task="embed-face",
        told={"task": "embed-face", "preprocess": "tensorflow", "template": "arcface"},
    ),
    "liveness": Case(
        lambda t: {"o": t.noise(1, 3)},
        {"decoder": "logits", "classes": 3},
        task="face-liveness",
        told={"task": "face-liveness", "preprocess": "raw", "color": "BGR", "face_scale": "2.7"},
    ),
    "photo and style of two sizes": Case(
        lambda t: {"o": t.noise(1, 3, 64, 64, low=0, high=255)},
        {"decoder": "picture-and-style", "size": (64, 64), "style_size": (48, 40)},
        more={"more_inputs": {"style": ("float32", (1, 3, 48, 40))}},
        told={"range": "bytes"},
        task="stylize",
    ),
    "style": Case(
        lambda t: {"o": t.noise(1, 3, 64, 64, low=0, high=255)},
        {"decoder": "picture", "picture_range": "byte"},
        told={"range": "bytes"},
        task="stylize",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layouts(name: str, graph: Callable[..., Path], tables: Any, settings: Settings) -> None:
    case = CASES[name]
    finding = inspect(graph(case.outputs(tables), case.shape, **case.more), read_told(case.told), settings)
    found = finding.contract
    assert finding.task == case.task
    assert found is not None
    assert {key: getattr(found, key) for key in case.want} == case.want
    assert case.assumed in " ".join(finding.assumptions)
    assert any(fact.startswith("tried") for fact in finding.facts)
    assert len(finding.labels) == (found.classes if case.task in {"detect", "classify"} else 0)


def test_which_of_two_pictures_is_the_style(graph: Callable[..., Path], tables: Any, settings: Settings) -> None:
    for other, told, photo, assumed in (
        ("style", {}, "images", False),
        ("second", {}, "images", True),
        ("second", {"input": "second"}, "second", False),
    ):
        path = graph({"o": tables.noise(1, 3, 64, 64, low=0, high=255)}, more_inputs={other: ("float32", (1, 3, 64, 64))})
        finding = inspect(path, read_told({"range": "bytes", **told}), settings)
        assert finding.contract is not None
        assert (finding.contract.decoder, finding.contract.input) == ("picture-and-style", photo)
        assert any("the other the style's" in one for one in finding.assumptions) == assumed


def unclear(graph: Path, settings: Settings, **told: Any) -> ModelUnclear:
    with pytest.raises(ModelUnclear) as caught:
        inspect(graph, read_told(told), settings)
    return caught.value


def test_what_cannot_be_told_is_asked_by_name(graph: Callable[..., Path], tables: Any, settings: Settings) -> None:
    error = unclear(graph({"o": tables.noise(1, 12)}), settings)
    assert error.missing == ("preprocess",)
    assert "caffe" in str(error)
    faces = graph({"o": tables.noise(1, 512)}, (1, 3, 112, 112))
    assert set(unclear(faces, settings).missing) == {"task", "preprocess"}
    assert set(unclear(faces, settings, task="embed-face").missing) == {"preprocess", "template"}
    assert unclear(graph({"o": tables.noise(1, 3, 64, 64)}), settings).missing == ("range",)
    assert unclear(graph({"o": tables.rows()}), settings).missing == ("labels",)
    assert unclear(graph({"o": tables.decoded(7)}), settings).missing[0] == "decoder"
    raw = {f"h{s}": tables.noise(1, 3, s, s, 9) for s in (8, 4, 2)}
    assert "head" in unclear(graph(raw), settings).missing


REFUSED: dict[str, tuple[Callable[[Any], dict[str, Any]], dict[str, Any], str]] = {
    "segmentation by shape": (lambda t: {"o": t.decoded(35).swapaxes(1, 2), "p": t.noise(1, 32, 16, 16)}, {}, "masks"),
    "segmentation by metadata": (lambda t: {"o": t.decoded(35)}, {"metadata": {"task": "segment"}}, "segment"),
    "pose by names": (
        lambda t: {"o": t.decoded(52).swapaxes(1, 2)},
        {"metadata": {**ULTRALYTICS, "names": "{0: 'person'}"}},
        "51 more",
    ),
    "pose by values": (
        lambda t: {"o": np.concatenate([t.decoded(1), t.noise(1, 84, 51, low=0, high=64)], 2).swapaxes(1, 2)},
        {},
        "key points",
    ),
    "obb by values": (
        lambda t: {"o": np.concatenate([t.decoded(3), t.noise(1, 84, 1, low=-0.7, high=2.3)], 2).swapaxes(1, 2)},
        {},
        "rotated",
    ),
    "FastestDet": (lambda t: {"o": t.noise(1, 85, 4, 4)}, {}, "FastestDet"),
    "SSD": (lambda t: {"scores": t.noise(1, 4420, 21), "boxes": t.noise(1, 4420, 4)}, {}, "SSD"),
    "depth": (lambda t: {"o": t.noise(1, 1, 64, 64)}, {}, "depth"),
    "semantic": (lambda t: {"o": t.noise(1, 21, 64, 64)}, {}, "segmentation"),
    "larger picture": (lambda t: {"o": t.noise(1, 3, 256, 256)}, {}, "keep the size"),
    "undecoded anchors": (lambda t: {"o": t.noise(1, 252, 9)}, {}, "not decoded"),
    "nothing known": (lambda t: {"o": t.noise(1, 7, 9, 2, 2, 2)}, {}, "cannot be read"),
    "countless classes": (lambda t: {"o": t.noise(1, 100_001)}, {}, "100001 classes"),
    "tensorflow": (lambda t: {"detection_boxes": t.noise(1, 9, 4), "b": t.noise(1, 9), "c": t.noise(1, 9)}, {}, "TensorFlow"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_are_refused(name: str, graph: Callable[..., Path], tables: Any, settings: Settings) -> None:
    outputs, more, words = REFUSED[name]
    with pytest.raises(ModelRefused, match=words) as caught:
        inspect(graph(outputs(tables), **more), read_told({}), settings)
    assert "[1, " in str(caught.value)


def test_metadata_is_believed_only_where_it_fits(graph: Callable[..., Path], tables: Any, settings: Settings) -> None:
    path = graph({"o": tables.decoded(5).swapaxes(1, 2)}, metadata={**ULTRALYTICS, "names": str(["a"] * 9)})
    found: Finding = inspect(path, read_told({}), settings)
    assert found.labels == tuple(f"class {number}" for number in range(5))
    assert any("not believed" in fact for fact in found.facts)
    assert found.licence.spdx == "AGPL-3.0-only"


def test_labels_that_are_told_must_be_as_many(graph: Callable[..., Path], tables: Any, settings: Settings) -> None:
    path = graph({"o": tables.decoded(3).swapaxes(1, 2)})
    with pytest.raises(ModelRefused, match="2 labels were given, and the file answers 3"):
        inspect(path, read_told({"labels": "a,b"}), settings)
    assert inspect(path, read_told({"labels": "a,b,c"}), settings).labels == ("a", "b", "c")


def test_what_computes_across_the_batch_takes_one_picture(graph: Callable[..., Path], tables: Any, settings: Settings) -> None:
    from onnx import helper, load, save

    path = graph({"o": tables.noise(1, 5)}, ("n", 3, 8, 8))
    model = load(path)
    model.graph.node.append(helper.make_node("ReduceSum", ["whole"], ["all"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["o", "all"], ["crossed"]))
    model.graph.output[0].name = "crossed"
    save(model, path)
    found = inspect(path, read_told({"preprocess": "unit"}), settings)
    assert found.max_batch == 1
    assert found.contract is not None
    assert not found.contract.free_batch


def of_centres(t: Any, share: float = 1) -> Any:
    """[1, 50, 6]: the first `share` of the rows as centre and size of 0..1, the others as corners; score; class."""
    table = t.noise(1, 50, 6, low=0.1, high=0.3)
    table[0, : int(50 * share), :2] += 0.5
    table[0, int(50 * share) :, 2:4] += 0.5
    table[0, :, 5] = np.arange(50) % 3
    return table


@pytest.mark.parametrize(
    ("metadata", "share", "decoder"),
    [
        ({}, 1, "end-to-end-centres"),
        ({}, 0, "end-to-end"),
        ({"head": "RTDETRDecoder"}, 0, "end-to-end-centres"),
        ({"end2end": "True"}, 1, "end-to-end"),
    ],
)
def test_rows_of_centre_and_size_are_told_from_rows_of_corners(
    graph: Callable[..., Path], settings: Settings, tables: Any, metadata: dict[str, str], share: float, decoder: str
) -> None:
    found = inspect(graph({"o": of_centres(tables, share)}, metadata=metadata), read_told({"classes": "3"}), settings).contract
    assert found is not None
    assert (found.decoder, found.boxes) == (decoder, "unit")


def test_rows_that_may_be_either_are_asked_for_and_taken_as_told(
    graph: Callable[..., Path], settings: Settings, tables: Any
) -> None:
    file = graph({"o": of_centres(tables, 0.1)})
    with pytest.raises(ModelUnclear, match=r"end-to-end-centres, if it is centre.* of 10% of its rows") as asked:
        inspect(file, read_told({"classes": "3"}), settings)
    assert asked.value.missing == ("decoder",)
    for decoder in ("end-to-end", "end-to-end-centres"):
        found = inspect(file, read_told({"classes": "3", "decoder": decoder}), settings)
        assert found.contract is not None
        assert found.contract.decoder == decoder
        assert found.input.resize == ("stretch" if decoder == "end-to-end-centres" else "letterbox")


def test_a_detr_of_two_classes_has_six_columns_too(graph: Callable[..., Path], settings: Settings, tables: Any) -> None:
    found = inspect(graph({"o": tables.noise(1, 50, 6, low=0.1, high=0.9)}), read_told({}), settings).contract
    assert found is not None
    assert (found.decoder, found.classes, found.boxes) == ("yolov8", 2, "unit")
