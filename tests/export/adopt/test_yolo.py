"""YOLOv5 to 12, YOLOX and end-to-end files of random weights, against a decoder in plain Python that goes from row to row."""

from collections.abc import Callable, Iterator, Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from service.errors import ExportFailed
from service.export.adopt import adopt
from service.export.contract import Contract
from service.runtime.session import run_once

Array = NDArray[Any]
STRIDES = (8, 16, 32)
BEFORE = {"yolov5": 5, "yolox": 5, "yolov8": 4}


def contract(decoder: str, classes: int = 4, **more: Any) -> Contract:
    return Contract(**{"decoder": decoder, "scale": 1 / 255, "classes": classes, "strides": STRIDES, **more})


def export(foreign: Any, path: Path, decoder: str, classes: int = 4, *, turned: bool = False, **options: Any) -> Path:
    """A file with one output of rows: [n, k, columns], for YOLOv8 and not `turned` [n, columns, k]."""
    file = foreign(**options)
    columns = BEFORE[decoder] + classes
    x, wide = file.rows(columns, STRIDES), decoder == "yolov8" and not turned
    sides = options.get("size", (64, 96))
    free = any(isinstance(side, str) for side in sides)
    places = "anchors" if free else sum((sides[0] // stride) * (sides[1] // stride) for stride in STRIDES)
    x = x if wide else file.node("Transpose", x, perm=[0, 2, 1])
    file.output(x, "output0", [file.batch, columns, places] if wide else [file.batch, places, columns])
    return Path(file.save(path))


def cells(height: int, width: int) -> Iterator[tuple[int, int, int]]:
    for stride in STRIDES:
        for row in range(height // stride):
            for column in range(width // stride):
                yield column, row, stride


def by_hand(decoder: str, rows: Array, height: int, width: int, unit: bool = False) -> tuple[Array, Array]:
    boxes, scores = [], []
    for row, (column, line, stride) in zip(rows.astype(np.float64).tolist(), cells(height, width), strict=True):
        cx, cy, w, h, *rest = row
        if decoder == "yolox":
            cx, cy, w, h = (cx + column) * stride, (cy + line) * stride, exp(w) * stride, exp(h) * stride
        across, down = (width, height) if unit else (1, 1)
        boxes.append([(cx - w / 2) * across, (cy - h / 2) * down, (cx + w / 2) * across, (cy + h / 2) * down])
        scores.append(rest if decoder == "yolov8" else [rest[0] * one for one in rest[1:]])
    return np.array(boxes), np.array(scores)


def rows_of(path: Path, feed: Array, columns: int) -> Array:
    (rows,) = run_once(path, {"images": np.ascontiguousarray(feed)}).values()
    return np.asarray(rows[0].T if rows.shape[1] == columns else rows[0])


def nchw(pixels: Array, dtype: Any = np.float32) -> Array:
    return (pixels / np.float32(255)).transpose(0, 3, 1, 2).astype(dtype)


def agree(found: dict[str, Array], boxes: Array, scores: Array, index: int = 0, *, half: bool = False) -> None:
    assert found["boxes"].dtype == found["scores"].dtype == np.float32
    for name, wanted in (("boxes", boxes), ("scores", scores)):
        np.testing.assert_allclose(found[name][index], wanted, rtol=2e-2 if half else 1e-4, atol=2e-2 if half else 1e-3)


@pytest.mark.parametrize("decoder", BEFORE)
@pytest.mark.parametrize("opset", [9, 11, 12, 13, 16, 18, 21])
def test_every_opset(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path, decoder: str, opset: int
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", decoder, opset=opset), pictures(2)
    found = house(path, contract(decoder), pixels)
    for index in range(2):
        rows = rows_of(path, nchw(pixels[index : index + 1]), BEFORE[decoder] + 4)
        agree(found, *by_hand(decoder, rows, 64, 96), index)


@pytest.mark.parametrize("decoder", BEFORE)
@pytest.mark.parametrize("classes", [1, 18, 80])
@pytest.mark.parametrize("turned", [False, True])
def test_any_number_of_classes(
    foreign: Any,
    pictures: Callable[..., Array],
    house: Callable[..., Any],
    tmp_path: Path,
    decoder: str,
    classes: int,
    turned: bool,
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", decoder, classes, turned=turned), pictures(1)
    found = house(path, contract(decoder, classes), pixels)
    agree(found, *by_hand(decoder, rows_of(path, nchw(pixels), BEFORE[decoder] + classes), 64, 96))
    assert found["scores"].shape == (1, 8 * 12 + 4 * 6 + 2 * 3, classes)


@pytest.mark.parametrize("decoder", BEFORE)
def test_free_size_and_batch(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path, decoder: str
) -> None:
    path = export(foreign, tmp_path / "their.onnx", decoder, batch="batch", size=("height", "width"))
    for height, width in ((64, 96), (96, 32)):
        pixels = pictures(2, height, width)
        found = house(path, contract(decoder), pixels)
        agree(found, *by_hand(decoder, rows_of(path, nchw(pixels[1:]), BEFORE[decoder] + 4), height, width), 1)


@pytest.mark.parametrize("decoder", BEFORE)
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_half_precision_whole_numbers_and_channels_last(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path, decoder: str, dtype: str, layout: Any
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", decoder, dtype=dtype, layout=layout), pictures(1)
    feed = pixels if dtype == "uint8" else (pixels / np.float32(255)).astype(np.float16)
    rows = rows_of(path, feed if layout == "NHWC" else feed.transpose(0, 3, 1, 2), BEFORE[decoder] + 4)
    found = house(path, contract(decoder, layout=layout, scale=1 if dtype == "uint8" else 1 / 255), pixels)
    agree(found, *by_hand(decoder, rows, 64, 96), half=dtype == "float16")


@pytest.mark.parametrize("decoder", ["yolov5", "yolov8"])
@pytest.mark.parametrize("size", [(64, 96), ("h", "w")])
def test_coordinates_of_one_are_brought_to_pixels(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path, decoder: str, size: Any
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", decoder, size=size), pictures(1)
    found = house(path, contract(decoder, boxes="unit"), pixels)
    agree(found, *by_hand(decoder, rows_of(path, nchw(pixels), BEFORE[decoder] + 4), 64, 96, unit=True))


@pytest.mark.parametrize("decoder", ["yolov5", "yolov8"])
def test_scores_that_still_need_their_sigmoid_and_a_background(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path, decoder: str
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", decoder, 5), pictures(1)
    rows = rows_of(path, nchw(pixels), BEFORE[decoder] + 5).copy()
    rows[:, 4:] = 1 / (1 + np.exp(-rows[:, 4:]))
    boxes, scores = by_hand(decoder, rows, 64, 96)
    agree(house(path, contract(decoder, 4, first_class=1, activation="sigmoid"), pixels), boxes, scores[:, 1:])


def test_strides_of_yolox_are_its_own_and_may_be_others(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path
) -> None:
    path, pixels = export(foreign, tmp_path / "their.onnx", "yolox"), pictures(1)
    named, unnamed = (house(path, contract("yolox", strides=strides), pixels) for strides in (STRIDES, ()))
    np.testing.assert_array_equal(named["boxes"], unnamed["boxes"])
    with pytest.raises(ExportFailed, match=r"30 places in strides \[16, 32\], other than 'output0' \[\?, 126, 9\]"):
        adopt(path, contract("yolox", strides=(16, 32)))


def rows_as_answer(
    foreign: Any, path: Path, table: Sequence[Sequence[float]], dtype: str = "float32", size: Any = (64, 96)
) -> Path:
    """An end-to-end file whose answer for any picture is `table`, the score growing with the picture's mean."""
    file = foreign(dtype=dtype, size=size, batch="n")
    mean = file.node("GlobalAveragePool", file.picture)
    mean = file.node("Conv", mean, file.constant(np.ones((1, 3, 1, 1), file.works_in)))
    by = file.constant(np.array([0, 0, 0, 0, 0.01, 0], file.works_in))
    grown = file.node("Mul", file.reshape(mean, 1, 1), by)
    file.output(file.node("Add", grown, file.constant(np.array([table], file.works_in))), "output0", ["n", len(table), 6])
    return Path(file.save(path))


def test_columns_that_are_not_known_before_it_runs(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    """As YOLOv5's own exports of free size have them; without an objectness they may be on either axis, and are refused."""
    file = foreign(batch="n")
    nothing = file.node("Mul", file.node("ReduceMean", file.picture, keepdims=0), file.constant(np.float32(0)))
    shape = file.node("Add", file.constant(np.array([0, 126, 9], np.float32)), nothing)
    x = file.node("Transpose", file.rows(9, STRIDES), perm=[0, 2, 1])
    file.output(file.node("Reshape", x, file.node("Cast", shape, to=TensorProto.INT64)), "output0", ["n", "k", "columns"])
    path, pixels = file.save(tmp_path / "their.onnx"), pictures(2)
    found = house(path, contract("yolov5", 4), pixels)
    for index in range(2):
        (answer,) = run_once(path, {"images": nchw(pixels[index : index + 1])}).values()
        agree(found, *by_hand("yolov5", answer[0], 64, 96), index)
    with pytest.raises(ExportFailed, match=r"there is no axis of 9 \(4 and 5 classes\) in 'output0' \[\?, \?, \?\]"):
        adopt(path, contract("yolov8", 5))


TABLE = ((1.5, 2.25, 30, 40, 0.875, 2), (8, 9, 10, 11, 0.5, 0), (0, 0, 1, 1, 0.25, 3), (0, 0, 0, 0, 0, -1), (5, 5, 6, 6, 0.125, 9))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_end_to_end_rows_have_their_score_at_their_class(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path, dtype: str
) -> None:
    path, pixels = rows_as_answer(foreign, tmp_path / "their.onnx", TABLE, dtype), pictures(2)
    found = house(path, contract("end-to-end"), pixels)
    for index in range(2):
        grown = 0.01 * (pixels[index] / 255).mean(axis=(0, 1)).sum()
        np.testing.assert_allclose(found["boxes"][index], np.array(TABLE)[:, :4], atol=0)
        wanted = np.zeros((5, 4))
        for row, (*_, score, kind) in enumerate(TABLE):
            if 0 <= kind < 4:
                wanted[row, int(kind)] = score + grown
        np.testing.assert_allclose(found["scores"][index], wanted, atol=1e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("size", [(64, 96), ("h", "w")])
def test_end_to_end_coordinates_of_one_and_a_background(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path, size: Any
) -> None:
    path = rows_as_answer(foreign, tmp_path / "their.onnx", [(0.25, 0.5, 0.5, 1, 0.5, 2), (0, 0, 1, 1, 0.5, 0)], size=size)
    found = house(path, contract("end-to-end", 3, boxes="unit", first_class=1), pictures(1))
    np.testing.assert_allclose(found["boxes"][0], [[24, 32, 48, 64], [0, 0, 96, 64]])
    assert (found["scores"][0] > 0).tolist() == [[False, True, False], [False, False, False]]


def test_end_to_end_rows_of_centre_and_size(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    path = rows_as_answer(foreign, tmp_path / "their.onnx", [(0.5, 0.75, 0.25, 0.5, 0.5, 2), (0.5, 0.5, 1, 1, 0.5, 0)])
    found = house(path, contract("end-to-end-centres", 3, boxes="unit"), pictures(1))
    np.testing.assert_allclose(found["boxes"][0], [[36, 32, 60, 64], [0, 0, 96, 64]])
    assert (found["scores"][0] > 0).tolist() == [[False, False, True], [True, False, False]]


def test_the_best_of_all_places_chosen_inside_the_graph(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    """As YOLOv10 and later do it, for a batch fixed to one: each picture of two gets what it gets alone."""
    file = foreign(opset=17)
    rows = file.node("Transpose", file.rows(4 + 3, STRIDES), perm=[0, 2, 1])
    boxes, scores = (file.node("Slice", rows, *(file.constant(np.array([v])) for v in (a, b, 2))) for a, b in ((0, 4), (4, 7)))
    best = file.node("ReduceMax", scores, axes=[2], keepdims=0)
    most = file.constant(np.array([10]))
    file.nodes.append(helper.make_node("TopK", [best, most], ["v0", "places"], axis=1))
    places = file.node("Unsqueeze", "places", file.constant(np.array([2])))
    boxes, scores = (
        file.node("GatherElements", x, file.node("Tile", places, file.constant(np.array([1, 1, n]))), axis=1)
        for x, n in ((boxes, 4), (scores, 3))
    )
    file.nodes.append(helper.make_node("TopK", [file.reshape(scores, 30), most], ["v1", "flat"], axis=1))
    three = file.constant(np.array(3))
    row = file.node("Unsqueeze", file.node("Div", "flat", three), file.constant(np.array([2])))
    boxes = file.node("GatherElements", boxes, file.node("Tile", row, file.constant(np.array([1, 1, 4]))), axis=1)
    kind = file.node("Cast", file.node("Mod", "flat", three), to=1)
    columns = [file.node("Unsqueeze", x, file.constant(np.array([2]))) for x in ("v1", kind)]
    file.output(file.node("Concat", boxes, *columns, axis=2), "output0", [1, 10, 6])
    path, pixels = file.save(tmp_path / "their.onnx"), pictures(2)
    found = house(path, contract("end-to-end", 3), pixels)
    for index in range(2):
        (answer,) = run_once(path, {"images": nchw(pixels[index : index + 1])}).values()
        scores = np.zeros((10, 3))
        for place, row in enumerate(answer[0]):
            scores[place, int(row[5])] = row[4]
        agree(found, answer[0][:, :4], scores, index)


def test_one_of_two_outputs_is_named(
    foreign: Any, pictures: Callable[..., Array], house: Callable[..., Any], tmp_path: Path
) -> None:
    file = foreign()
    x = file.rows(8, STRIDES)
    file.output(file.node("Sigmoid", x), "masks", [1, 8, 126])
    file.output(x, "boxes", [1, 8, 126])  # a name that the house has too
    path, pixels = file.save(tmp_path / "their.onnx"), pictures(1)
    rows = run_once(path, {"images": nchw(pixels)})["boxes"][0].T
    agree(house(path, contract("yolov8", outputs=("boxes",)), pixels), *by_hand("yolov8", rows, 64, 96))
    with pytest.raises(ExportFailed, match=r"one output with 8 columns; name the right ones of: 'masks' \[\?, 8, 126\], 'boxes'"):
        adopt(path, contract("yolov8"))
    with pytest.raises(ExportFailed, match="there is no output 'output1'; the outputs are: masks, boxes"):
        adopt(path, contract("yolov8", outputs=("output1",)))


@pytest.mark.parametrize("decoder", [*BEFORE, "end-to-end", "end-to-end-centres"])
def test_another_number_of_columns_is_refused(foreign: Any, tmp_path: Path, decoder: str) -> None:
    path = export(foreign, tmp_path / "their.onnx", "yolov8", 13)
    with pytest.raises(ExportFailed, match=r"'output0' \[\?, 17, 126\]"):
        adopt(path, contract(decoder, 4))
