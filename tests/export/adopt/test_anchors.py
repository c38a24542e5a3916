"""Raw anchor heads in each order and opset, against a decoder in plain Python that goes from box to box."""

from collections.abc import Callable, Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import ExportFailed
from service.export.adopt import adopt
from service.export.contract import Contract
from service.runtime.session import run_once

Array = NDArray[Any]
ANCHORS = ((10.0, 14.0, 23.0, 27.0, 37.0, 58.0), (81.0, 82.0, 135.0, 169.0, 344.0, 319.0))
STRIDES = (16, 32)
ORDERS = ("achw", "ahwc", "hwac", "flat hwac")


def contract(classes: int = 4, **more: Any) -> Contract:
    given: dict[str, Any] = {"decoder": "yolov3", "scale": 1 / 255, "classes": classes, "anchors": ANCHORS, "strides": STRIDES}
    return Contract(**{**given, **more})


def export(foreign: Any, path: Path, order: str, classes: int = 4, **options: Any) -> Path:
    """A file with two heads of three anchors in this order."""
    file = foreign(**options)
    height, width = options.get("size", (64, 96))
    columns = 5 + classes
    for stride in STRIDES:
        rows, across = (side // stride if isinstance(side, int) else -1 for side in (height, width))
        grid = [None if side == -1 else side for side in (rows, across)]
        x = file.head(3 * columns, stride)
        shape: list[int | None] = [3 * columns, *grid]
        if order in ("ahwc", "hwac"):
            x = file.reshape(x, 3, columns, rows, across)
            x = file.node("Transpose", x, perm=[0, 1, 3, 4, 2] if order == "ahwc" else [0, 3, 4, 1, 2])
            shape = [3, *grid, columns] if order == "ahwc" else [*grid, 3, columns]
        elif order == "flat hwac":
            x = file.node("Transpose", x, perm=[0, 2, 3, 1])
            shape = [*grid, 3 * columns]
        file.output(x, f"head{stride}", [file.batch, *shape])
    return Path(file.save(path))


def sigmoid(value: float) -> float:
    return 1 / (1 + exp(-value))


def by_hand(head: Array, order: str, anchors: Sequence[float], stride: int, way: str, reach: float) -> tuple[Array, Array]:
    """Boxes and scores of one picture, from cell to cell, anchors innermost. head: without its batch axis."""
    count = len(anchors) // 2
    if order == "achw":
        head = head.reshape(count, -1, *head.shape[1:]).transpose(2, 3, 0, 1)
    elif order == "ahwc":
        head = head.transpose(1, 2, 0, 3)
    head = head.reshape(*head.shape[:2], count, -1).astype(np.float64)
    boxes, scores = [], []
    for row in range(head.shape[0]):
        for column in range(head.shape[1]):
            for index in range(count):
                tx, ty, tw, th, objectness, *classes = head[row, column, index].tolist()
                x = (reach * sigmoid(tx) - (reach - 1) / 2 + column) * stride
                y = (reach * sigmoid(ty) - (reach - 1) / 2 + row) * stride
                size = [(2 * sigmoid(t)) ** 2 if way == "v5" else exp(t) for t in (tw, th)]
                w, h = (one * anchor for one, anchor in zip(size, anchors[2 * index : 2 * index + 2], strict=True))
                boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
                kinds = [exp(c) / sum(map(exp, classes)) for c in classes] if way == "softmax" else [sigmoid(c) for c in classes]
                scores.append([sigmoid(objectness) * kind for kind in kinds])
    return np.array(boxes), np.array(scores)


def wanted(path: Path, feed: Array, order: str, way: str = "v3", reach: Sequence[float] = (1, 1)) -> tuple[Array, Array]:
    heads = list(run_once(path, {"images": feed}).values())
    parts = [by_hand(head[0], order, *rest) for head, *rest in zip(heads, ANCHORS, STRIDES, (way,) * 2, reach, strict=True)]
    boxes, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    return boxes, scores


def nchw(pixels: Array) -> Array:
    return np.ascontiguousarray((pixels / np.float32(255)).transpose(0, 3, 1, 2), np.float32)


def agree(found: dict[str, Array], boxes: Array, scores: Array, index: int = 0, *, half: bool = False) -> None:
    assert found["boxes"].dtype == found["scores"].dtype == np.float32
    np.testing.assert_allclose(found["boxes"][index], boxes, rtol=5e-3 if half else 1e-4, atol=0.5 if half else 2e-3)
    np.testing.assert_allclose(found["scores"][index], scores, rtol=5e-3 if half else 1e-4, atol=1e-3 if half else 1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21])
def test_every_order_and_opset(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path, order: str, opset: int
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", order, opset=opset), pictures(1)
    agree(house(path, contract(), pixels), *wanted(path, nchw(pixels), order))


@pytest.mark.parametrize("classes", [1, 18, 80])
@pytest.mark.parametrize("order", ORDERS)
def test_any_number_of_classes(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path, order: str, classes: int
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", order, classes), pictures(1)
    found = house(path, contract(classes), pixels)
    agree(found, *wanted(path, nchw(pixels), order))
    assert found["scores"].shape == (1, 3 * (4 * 6 + 2 * 3), classes)


@pytest.mark.parametrize("order", ORDERS)
def test_a_batch_fixed_to_one_is_freed_and_pictures_do_not_mix(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path, order: str
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", order), pictures(2)
    both = house(path, contract(), pixels)
    for index in range(2):
        agree(both, *wanted(path, nchw(pixels[index : index + 1]), order), index)


def test_a_batch_that_stays_fixed(foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path) -> None:
    path = export(foreign, tmp_path / "their.onnx", "ahwc")
    (pixels,) = adopt(path, contract(free_batch=False)).graph.input
    assert [dim.dim_value for dim in pixels.type.tensor_type.shape.dim] == [1, 64, 96, 3]
    agree(house(path, contract(free_batch=False), pictures(1)), *wanted(path, nchw(pictures(1)), "ahwc"))


@pytest.mark.parametrize("order", ["achw", "flat hwac"])
@pytest.mark.parametrize("opset", [9, 13])
def test_a_free_size_stays_free(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path, order: str, opset: int
) -> None:
    path = export(foreign, tmp_path / "their.onnx", order, opset=opset, batch="b", size=("h", "w"))
    for height, width in ((64, 96), (96, 32)):
        pixels = pictures(1, height, width)
        agree(house(path, contract(), pixels), *wanted(path, nchw(pixels), order))


def test_a_free_size_is_fixed_by_the_contract(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    path = export(foreign, tmp_path / "their.onnx", "achw", opset=7, batch="b", size=("h", "w"))
    with pytest.raises(ExportFailed, match="opset 7 cannot be decoded for any size"):
        adopt(path, contract())
    pixels = pictures(2, 64, 32)
    found = house(path, contract(size=(64, 32)), pixels)
    agree(found, *wanted(path, nchw(pixels[1:]), "achw"), 1)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        house(path, contract(size=(64, 32)), pictures(1, 64, 96))


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_half_precision_whole_numbers_and_channels_last(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path, dtype: str, layout: Any
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", "hwac", dtype=dtype, layout=layout), pictures(1)
    feed = pixels if layout == "NHWC" else pixels.transpose(0, 3, 1, 2)
    feed = np.ascontiguousarray(feed if dtype == "uint8" else (feed / np.float32(255)).astype(np.float16))
    scale = 1 if dtype == "uint8" else 1 / 255
    found = house(path, contract(layout=layout, scale=scale), pixels)
    agree(found, *wanted(path, feed, "hwac"), half=dtype == "float16")


def test_heads_of_yolov5_and_yolov7(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", "ahwc"), pictures(1)
    agree(house(path, contract(head="v5"), pixels), *wanted(path, nchw(pixels), "ahwc", "v5", (2, 2)))


def test_yolov4_reaches_over_the_cell_and_has_probabilities(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", "hwac"), pictures(1)
    found = house(path, contract(xy_scale=(1.1, 1.05), probabilities=True), pixels)
    boxes, _ = wanted(path, nchw(pixels), "hwac", reach=(1.1, 1.05))
    heads = [head.reshape(-1, 9) for head in run_once(path, {"images": nchw(pixels)}).values()]
    agree(found, boxes, np.concatenate([rows[:, 4:5] * rows[:, 5:] for rows in heads]))


@pytest.mark.parametrize("order", ["achw", "ahwc"])
def test_classes_of_yolov2_are_a_softmax(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path, order: str
) -> None:
    for opset in (7, 13):
        path, pixels = export(foreign, tmp_path / "their.onnx", order, opset=opset), pictures(1)
        agree(house(path, contract(decoder="yolov2"), pixels), *wanted(path, nchw(pixels), order, "softmax"))


def test_a_grid_as_long_as_its_anchors_is_read_as_its_layout_has_it(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    anchors, strides = ANCHORS[1:], (32,)
    for layout, order in (("NCHW", "ahwc"), ("NHWC", "hwac")):
        file = foreign(size=(96, 96), layout=layout)
        x = file.reshape(file.head(27, 32), 3, 9, 3, 3)
        x = file.node("Transpose", x, perm=[0, 1, 3, 4, 2] if order == "ahwc" else [0, 3, 4, 1, 2])
        file.output(x, "head", [1, 3, 3, 3, 9])
        path, pixels = file.save(tmp_path / "their.onnx"), pictures(1, 96, 96)
        found = house(path, contract(anchors=anchors, strides=strides, layout=layout), pixels)
        feed = nchw(pixels) if layout == "NCHW" else (pixels / np.float32(255))
        (head,) = run_once(path, {"images": feed}).values()
        agree(found, *by_hand(head[0], order, anchors[0], 32, "v3", 1))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"classes": 5}, r"the head 'head16' \[\?, 27, 4, 6\] does not hold 3 anchors of 10 numbers \(5 classes\)"),
        ({"strides": (8, 32)}, "in cells of 8 pixels"),
        ({"anchors": ANCHORS[:1]}, "there are 2 heads, and anchors for 1"),
        ({"strides": ()}, "there are 2 heads, and strides for 0"),
        ({"xy_scale": (1.2,)}, "there are 2 heads, and xy_scale for 1"),
        ({"size": (64, 64)}, "the input 'images' is 96 pixels wide, fixed by its file, and cannot be 64"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(foreign: Any, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportFailed, match=said):
        adopt(export(foreign, tmp_path / "their.onnx", "achw"), contract(**changed))
