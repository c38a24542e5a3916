"""Detectors that answer one table of rows: YOLOv5 to 12 and 26, YOLOX, YOLOv6 and 7, and what others NMS has been put behind."""

from typing import Literal

import numpy as np

from service.export.contract import Decoder
from service.intake.grids import Grids, find_grids, lies_on
from service.intake.names import named_classes
from service.intake.seen import UNIT, Floats, Role, Scores, Seen, activation_of, span
from service.intake.ultralytics import RT_DETR
from service.intake.words import Port, shape_text

MOST_ROWS = 3000
"""An end-to-end detector answers a few hundred rows; a grid has thousands."""
MOST_QUERIES = 1000
TABLES: frozenset[Decoder] = frozenset({"yolov5", "yolov8", "yolox", "end-to-end", "end-to-end-centres"})
TURNED = 0.2
"""Share of rows whose second corner lies before the first, from which on boxes of 0..1 are no corners; under a tenth they are."""


def one_table(seen: Seen) -> Role | None:
    """[n, rows, columns] or [n, columns, rows], alone; YOLOv5's raw heads beside it are left out. Raises ModelRefused, asks."""
    port = _table(seen)
    if port is None or (seen.told.decoder and seen.told.decoder not in TABLES):
        return None
    _refuse_other_tasks(seen)
    first, last = int(port.shape[1] or 0), int(port.shape[2] or 0)
    rows, columns = find_grids(seen.entrance.size, first), find_grids(seen.entrance.size, last)
    if columns is not None and last > first:
        return _channels_first(seen, port, columns)
    if rows is not None and first > last and not _is_end_to_end(seen, port, rows):
        return _rows_first(seen, port, rows)
    if last == 6 and first <= MOST_ROWS:
        return _six_columns(seen, port)
    if first == 6 and last <= MOST_ROWS:
        raise seen.refuse("it answers [n, 6, rows], which is no layout known here")
    return _queries(seen, port) if rows is None and columns is None else None


def _queries(seen: Seen, port: Port) -> Role | None:
    """[n, k, 4 + C] of a DETR, boxes and scores of 0..1 side by side, as Ultralytics exports RT-DETR."""
    count, width = int(port.shape[1] or 0), int(port.shape[2] or 0)
    low, high = span(seen.values(port.name))
    if count > MOST_QUERIES or width < 5 or low < -UNIT or high > 1 + UNIT or named_classes(seen) not in (0, width - 4):
        return None
    seen.notes.fact(f"{count} queries, each a box of 0..1 and {_classes(width - 4)}: RT-DETR as Ultralytics exports it")
    return Role("detect", "yolov8", width - 4, (port.name,), boxes="unit", convention="rt-detr")


def _table(seen: Seen) -> Port | None:
    tables = [port for port in seen.ports if len(port.shape) == 3 and port.dtype.startswith("float")]
    heads = [port for port in seen.ports if len(port.shape) == 5]
    if len(tables) == 1 and len(seen.ports) == 1:
        return tables[0]
    if len(tables) == 1 and len(seen.ports) == 1 + len(heads):
        seen.notes.fact(f"{tables[0].name} is read; the {len(heads)} raw heads beside it are left out")
        return tables[0]
    return None


def _refuse_other_tasks(seen: Seen) -> None:
    names = {"segment": "a segmentation network", "pose": "a network for key points", "obb": "a detector of rotated boxes"}
    if seen.meta.task in names:
        raise seen.refuse(f'its metadata says "task: {seen.meta.task}": {names[seen.meta.task]}, which is not supported')


def _channels_first(seen: Seen, port: Port, grids: Grids) -> Role:
    """[n, 4 + C, places]: YOLOv8, 9, 11 and 12."""
    classes = int(port.shape[1] or 0) - 4
    if classes < 1:
        raise seen.refuse(f"{port} has too few channels for a box and a class")
    seen.notes.fact(f"{_grid_words(port, grids)}: 4 numbers of a box and {_classes(classes)}, as YOLOv8 and 11 have it")
    table = seen.values(port.name).swapaxes(1, 2)
    return _decoded(seen, "yolov8", port, table, classes)


def _rows_first(seen: Seen, port: Port, grids: Grids) -> Role | None:
    width = int(port.shape[2] or 0)
    table = seen.values(port.name)
    if width < 5:
        return None
    decoded = lies_on(grids, seen.entrance.size, table)
    where = _grid_words(port, grids)
    if not decoded and seen.told.decoder in (None, "yolox"):
        if grids.per_place > 1:
            raise seen.refuse(
                "its boxes are not decoded yet (they do not lie on the grids that they come from); export it with its last layer"
            )
        seen.notes.fact(f"{where}, and the boxes do not lie on them yet: offsets in each place, as YOLOX's raw export has them")
        return _with_objectness(seen, "yolox", port, grids, table)
    seen.notes.fact(f"{where}, and the boxes lie on them")
    decoder = _which(seen, table, grids, width)
    if decoder == "yolov8":
        return _decoded(seen, "yolov8", port, table, width - 4)
    if decoder == "yolov5":
        return _with_objectness(seen, "yolov5", port, grids, table)
    if decoder == "yolox":
        return _with_objectness(seen, "yolox", port, grids, table)
    seen.notes.ask(
        "decoder",
        f"yolov5, if each row is a box, objectness and {width - 5} classes; yolov8, if it is a box and {width - 4} classes. "
        "The names of the classes, by --labels, tell it too",
    )
    return Role("detect", None)


def _which(seen: Seen, table: Floats, grids: Grids, width: int) -> Decoder | None:
    """With or without objectness? By what was told, by the anchors, by the number of names, by an objectness that is always 1."""
    if seen.told.decoder:
        return seen.told.decoder
    if grids.per_place > 1:
        seen.notes.fact("three boxes on each place: anchors, so with an objectness, as YOLOv5 and 7 have it")
        return "yolov5"
    names = named_classes(seen)
    if names in (width - 4, width - 5):
        seen.notes.fact(
            f"{names} names of classes leave {width - names} columns for the box" + (" and its objectness" * (names == width - 5))
        )
        return "yolov5" if names == width - 5 else "yolov8"
    if width - 5 >= 1 and np.allclose(table[..., 4], 1):
        seen.notes.fact("the fifth column is 1 everywhere: an objectness that is not used, as YOLOv6 has it")
        return "yolov5"
    if width in (84, 85):
        decoder: Decoder = "yolov5" if width == 85 else "yolov8"
        seen.notes.assume(
            f"{width} columns are taken as COCO's 80 classes {'with' if width == 85 else 'without'} an objectness", "decoder"
        )
        return decoder
    return None


def _with_objectness(seen: Seen, decoder: Decoder, port: Port, grids: Grids, table: Floats) -> Role | None:
    classes = int(port.shape[2] or 0) - 5
    if classes < 1:
        return None
    activation = activation_of(seen, table[..., 4:], "objectness and classes")
    convention = "yolox" if decoder == "yolox" else "ultralytics"
    if decoder == "yolov5" and grids.per_place == 1 and not seen.meta.is_ultralytics and not np.allclose(table[..., 4], 1):
        convention = "yolox"
    seen.notes.fact(f"each row: 4 numbers of a box, objectness, {_classes(classes)}")
    strides = grids.strides if decoder == "yolox" else ()
    boxes: Literal["pixels", "unit"] = "unit" if decoder == "yolov5" and _is_unit(seen, table) else "pixels"
    return Role(
        "detect", decoder, classes, (port.name,), activation=activation, strides=strides, boxes=boxes, convention=convention
    )  # fmt: skip


def _decoded(seen: Seen, decoder: Decoder, port: Port, table: Floats, classes: int) -> Role:
    """YOLOv8's rows. Raises ModelRefused where there are more channels than boxes and the named classes need."""
    known = len(seen.meta.names)
    if known and classes > known:
        raise seen.refuse(
            f"its metadata names {known} classes, and its channels are {classes - known} more than those need: "
            "masks, key points or rotated boxes, which are not supported"
        )
    scores = table[..., 4:]
    activation = activation_of(seen, scores, "scores of classes") if not _mixed(scores) else _refuse_mixed(seen)
    return Role(
        "detect", decoder, classes, (port.name,), activation=activation,
        boxes="unit" if _is_unit(seen, table) else "pixels", convention="ultralytics",
    )  # fmt: skip


def _mixed(scores: Floats) -> bool:
    """Are some of the columns probabilities, and others not?"""
    columns = scores.reshape(-1, scores.shape[-1])
    inside = (columns.min(axis=0) >= -UNIT) & (columns.max(axis=0) <= 1 + UNIT)
    wide = columns.max(axis=0) - columns.min(axis=0) > 2
    return bool(inside[0] and not inside.all() and (wide.any() or inside.sum() == len(inside) - 1))


def _refuse_mixed(seen: Seen) -> Scores:
    raise seen.refuse(
        "some of its columns are scores of 0..1 and others are not: key points, masks or the angles of rotated boxes: not supported"
    )


def _is_unit(seen: Seen, table: Floats) -> bool:
    if seen.told.boxes:
        return seen.told.boxes == "unit"
    unit = span(table[..., :2])[1] <= 2
    if unit:
        seen.notes.fact("the boxes are shares of the picture, 0..1, not pixels")
    return unit


def _is_end_to_end(seen: Seen, port: Port, grids: Grids) -> bool:
    """Six columns of so many rows as a grid has, and yet the answer of an NMS: by the whole numbers of its last column."""
    if seen.told.decoder:
        return seen.told.decoder in ("end-to-end", "end-to-end-centres")
    if (seen.meta.end_to_end or seen.meta.head == RT_DETR) and port.shape[2] == 6:
        return True
    if port.shape[2] != 6 or int(port.shape[1] or 0) > MOST_ROWS:
        return False
    table = seen.values(port.name)
    whole = np.allclose(table[..., 5], np.round(table[..., 5]), atol=1e-4)
    return bool(whole) and not lies_on(grids, seen.entrance.size, table)


def _six_columns(seen: Seen, port: Port) -> Role | None:
    """[n, k, 6]: box, score and class; or, of a DETR of two classes, a box of 0..1 and two scores."""
    told = seen.told.decoder
    scores = span(seen.values(port.name)[..., 4:])
    if told == "yolov8" or (told is None and not _are_whole(seen, port) and scores[0] >= -UNIT and scores[1] <= 1 + UNIT):
        role = _queries(seen, port)
        if role is not None:
            return role
    return _end_to_end(seen, port)


def _are_whole(seen: Seen, port: Port) -> bool:
    labels = seen.values(port.name)[..., 5]
    return bool(np.allclose(labels, np.round(labels), atol=0.01))


def _end_to_end(seen: Seen, port: Port) -> Role:
    """[n, k, 6]: corners or centre and size, score, class. Asks, raises ModelRefused."""
    table = seen.values(port.name)
    scores, labels = span(table[..., 4]), table[..., 5]
    if scores[0] < -UNIT or scores[1] > 1 + UNIT:
        raise seen.refuse(
            f"its rows have six columns, but the fifth is no score of 0..1 (it went from {scores[0]:.3g} to {scores[1]:.3g})"
        )
    if not _are_whole(seen, port) or labels.min() < -1:
        raise seen.refuse("its rows have six columns, but the last is not the number of a class")
    unit = seen.told.boxes == "unit" or (not seen.told.boxes and 0 < span(table[..., :4])[1] <= 1.5)
    decoder = _corners_or_centres(seen, table, unit)
    rows = f"{port.name} {shape_text(port.shape)}: at most {port.shape[1]} rows of"
    if decoder == "end-to-end":
        seen.notes.fact(f"{rows} corners, score and class, so NMS is done (YOLOv10, YOLO26 and others)")
    elif decoder == "end-to-end-centres":
        seen.notes.fact(f"{rows} centre, size, score and class, for the boxes make no corners: RT-DETR as Ultralytics exports it")
    classes = named_classes(seen)
    if not classes:
        seen.notes.ask(
            "labels", "the names of the classes (coco, imagenet, voc, or a list), or --classes, how many there are: rows of "
            "box, score and class do not tell"
        )  # fmt: skip
    elif labels.max() >= classes:
        raise seen.refuse(f"a class {int(labels.max())} came out, and only {classes} are named")
    convention = "rt-detr" if decoder == "end-to-end-centres" else "ultralytics"
    return Role("detect", decoder, classes, (port.name,), boxes="unit" if unit else "pixels", convention=convention)


def _corners_or_centres(seen: Seen, table: Floats, unit: bool) -> Decoder | None:
    """By what was told, the metadata, second corners that lie before the first. Asks, and gives None, where that is unclear."""
    told: Decoder | None = seen.told.decoder
    if told in ("end-to-end", "end-to-end-centres"):
        return told
    if seen.meta.head == RT_DETR:
        return "end-to-end-centres"
    if seen.meta.end_to_end:
        return "end-to-end"
    rows = table[..., :4].reshape(-1, 4)
    rows = rows[rows.any(axis=1)]
    turned = float((rows[:, 2:] < rows[:, :2]).any(axis=1).mean()) if len(rows) else 0.0
    if turned <= (TURNED / 10 if unit else 0.5):  # in pixels, where no centres are known, an untrained network turns some round
        return "end-to-end"
    if unit and turned >= TURNED:
        return "end-to-end-centres"
    seen.notes.ask(
        "decoder",
        f"end-to-end, if each row is two corners, score and class; end-to-end-centres, if it is centre, size, score and class: "
        f"of {turned:.0%} of its rows the second corner would lie before the first",
    )
    return None


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count} classes"


def _grid_words(port: Port, grids: Grids) -> str:
    strides = "/".join(map(str, grids.strides))
    each = "" if grids.per_place == 1 else f" with {grids.per_place} boxes each"
    return f"{port.name} {shape_text(port.shape)}: {grids.count} rows are the places of grids of strides {strides}{each}"
