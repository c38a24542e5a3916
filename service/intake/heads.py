"""Detectors that answer several tensors: raw anchor heads, NanoDet, YuNet, DETR's, and exports with NMS inside."""

import re

from service.errors import ModelRefused
from service.intake.names import named_classes
from service.intake.seen import UNIT, Role, Seen, activation_of, span
from service.intake.words import Port, ports_text

Anchors = tuple[tuple[float, ...], ...]
YOLOV3: Anchors = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
YOLOV3_TINY: Anchors = ((10, 14, 23, 27, 37, 58), (81, 82, 135, 169, 344, 319))
YOLOV4: Anchors = ((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146), (142, 110, 192, 243, 459, 401))
YOLOV2_COCO: Anchors = ((18.327, 21.676, 59.983, 66.001, 106.830, 175.179, 252.250, 112.889, 312.657, 293.385),)
YOLOV2_VOC: Anchors = ((34.56, 38.08, 109.44, 141.12, 212.16, 364.16, 301.44, 163.52, 531.84, 336.64),)
"""Width, height, ... in pixels of the input, the finest grid first. Source: darknet's cfg files (YOLOv2's times 32)."""
YOLOV4_REACH = {8: 1.2, 16: 1.1, 32: 1.05}
"""By stride, how many cells far the centre of a box may be from where its cell is. Source: darknet's yolov4.cfg, scale_x_y."""
QUERIES = 1000
"""No DETR has more."""


def anchor_heads(seen: Seen) -> Role | None:
    """[n, a * (5 + C), h, w] and the like, one output a stride. Raises ModelRefused for FastestDet and raw heads of YOLOv5."""
    heads = [_head(seen, port) for port in seen.ports]
    if not 1 <= len(heads) <= 4 or any(head is None for head in heads):
        return None
    found = [head for head in heads if head is not None]
    strides = tuple(stride for stride, _, _ in found)
    ranks = {len(port.shape) for port in seen.ports}
    if len(set(strides)) != len(strides) or len(ranks) != 1:
        return None
    told = seen.told.decoder
    anchors = 5 if len(found) == 1 else 3
    if seen.told.anchors:
        anchors = len(seen.told.anchors[0]) // 2
    counts = {columns if given else columns / anchors for _, columns, given in found}
    if len(counts) != 1 or (width := counts.pop()) != int(width) or width < 6:
        raise _no_anchors(seen, strides)
    if len(found) == 1 and strides != (32,) and told is None:
        raise _no_anchors(seen, strides)
    classes = int(width) - 5
    if ranks == {5} and _channels_before(seen.ports[0]) and seen.told.head is None:
        seen.notes.ask(
            "head", "v5, if these raw heads are YOLOv5's or YOLOv7's; v3, if they are YOLOv3's or YOLOv4's: they look the same"
        )
    decoder = told or ("yolov2" if len(found) == 1 else "yolov3")
    shown = "/".join(map(str, strides))
    seen.notes.fact(
        f"raw heads of strides {shown}, {anchors} anchors each, of 5 numbers and {classes} classes: {ports_text(seen.ports)}"
    )
    nested = ranks == {5}
    chosen = _anchors(seen, strides, classes, nested)
    return Role(
        "detect", decoder, classes, tuple(port.name for port in seen.ports), anchors=chosen,
        strides=strides, head=seen.told.head or "v3", convention="ultralytics" if seen.told.head == "v5" else "darknet",
        xy_scale=_xy_scale(seen, strides, chosen), probabilities=nested and _are_probabilities(seen),
    )  # fmt: skip


def _xy_scale(seen: Seen, strides: tuple[int, ...], anchors: Anchors) -> tuple[float, ...]:
    """How far the centres reach out of their cells: YOLOv4's own, where its anchors are taken."""
    if set(anchors) != set(YOLOV4) or seen.told.head == "v5":
        return ()
    seen.notes.assume("centres reach 1.2, 1.1 and 1.05 cells far, as YOLOv4's do", "anchors")
    return tuple(YOLOV4_REACH[stride] for stride in strides)


def _are_probabilities(seen: Seen) -> bool:
    """Are objectness and classes, the last of the axes, behind their sigmoid already?"""
    spans = [span(seen.values(port.name)[..., 4:]) for port in seen.ports]
    inside = all(low >= 0 and high <= 1 for low, high in spans)
    if inside:
        seen.notes.fact("objectness and classes were all within 0..1: they are probabilities already")
    return inside


def _head(seen: Seen, port: Port) -> tuple[int, int, bool] | None:
    """Stride, channels, and whether these are of one anchor already."""
    shape = [int(axis or 0) for axis in port.shape]
    if len(shape) == 4:
        options = [(shape[2:4], shape[1], False), (shape[1:3], shape[3], False)]
    elif len(shape) == 5:
        options = [(shape[2:4], shape[4], True), (shape[1:3], shape[4], True)]
    else:
        return None
    for sides, channels, given in options:
        for stride in (8, 16, 32, 64):
            if [-(-side // stride) for side in seen.entrance.size] == sides:
                return stride, channels, given
    return None


def _channels_before(port: Port) -> bool:
    """[n, a, h, w, 5 + C], as PyTorch's heads are, not [n, h, w, a, 5 + C]."""
    return int(port.shape[1] or 0) <= 5 < int(port.shape[3] or 0)


def _no_anchors(seen: Seen, strides: tuple[int, ...]) -> ModelRefused:
    if len(strides) == 1:
        return seen.refuse(
            f"one raw head of stride {strides[0]} without the anchors of YOLOv2: FastestDet and the like are not supported"
        )
    return seen.refuse(
        "raw heads whose channels are not those of three anchors: a detector that was exported before its boxes are decoded"
    )


def _anchors(seen: Seen, strides: tuple[int, ...], classes: int, nested: bool) -> Anchors:
    if seen.told.anchors:
        return seen.told.anchors
    if len(strides) == 1:
        table, whose = (YOLOV2_VOC, "Tiny YOLOv2's (VOC)") if classes == 20 else (YOLOV2_COCO, "YOLOv2's (COCO)")
    elif len(strides) == 3 and seen.told.head == "v5":
        table, whose = YOLOV3, "YOLOv5's"
    elif len(strides) == 2:
        table, whose = YOLOV3_TINY, "YOLOv3-tiny's"
    elif nested:
        table, whose = YOLOV4, "YOLOv4's"
    else:
        table, whose = YOLOV3, "YOLOv3's"
    if len(table) != len(strides):
        seen.notes.ask("anchors", "width,height,... of each head's anchors in input pixels, heads separated by semicolons")
        return ()
    seen.notes.assume(f"the anchors are taken to be {whose}", "anchors")
    by_stride = dict(zip(sorted(strides), table, strict=True))
    return tuple(by_stride[stride] for stride in strides)


def nanodet(seen: Seen) -> Role | None:
    """Per stride class scores [n, k, C] and distributions [n, k, 4 * bins]."""
    if any(len(port.shape) != 3 for port in seen.ports) or len(seen.ports) not in (4, 6, 8):
        return None
    places = {-(-seen.entrance.size[0] // stride) * -(-seen.entrance.size[1] // stride): stride for stride in (8, 16, 32, 64)}
    by_width: dict[int, dict[int, str]] = {}
    for port in seen.ports:
        count, width = int(port.shape[1] or 0), int(port.shape[2] or 0)
        if count not in places:
            return None
        by_width.setdefault(width, {})[places[count]] = port.name
    if len(by_width) != 2 or len({tuple(sorted(found)) for found in by_width.values()}) != 1:
        return None
    names = named_classes(seen)
    widths = sorted(by_width, key=lambda width: (width != names, width not in (80,), seen.ports[0].shape[2] != width))
    classes, bins = widths
    if bins % 4 or bins < 8:
        return None
    strides = tuple(sorted(by_width[classes]))
    first = seen.values(by_width[classes][strides[0]])
    seen.notes.fact(
        f"per stride {'/'.join(map(str, strides))} scores of {classes} classes and distributions of four distances"
        f" in {bins // 4} bins: NanoDet"
    )
    outputs = [by_width[classes][stride] for stride in strides] + [by_width[bins][stride] for stride in strides]
    return Role(
        "detect", "nanodet", classes, tuple(outputs), activation=activation_of(seen, first, "scores of classes"), strides=strides,
        convention="nanodet",
    )  # fmt: skip


def faces(seen: Seen) -> Role | None:
    """YuNet's twelve heads; or UltraFace's boxes and scores, which have no landmarks: a detector of one class."""
    heads = {f"{head}_{stride}" for head in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)}
    if heads == {port.name for port in seen.ports}:
        seen.notes.fact("twelve heads of class, objectness, box and five landmarks at strides 8/16/32: YuNet, a detector of faces")
        return Role("detect-faces", None, recipe="yunet", convention="yunet")
    shapes = sorted((port.shape[1:] for port in seen.ports), key=str)
    if len(shapes) == 2 and [len(shape) for shape in shapes] == [2, 2] and {shape[1] for shape in shapes} == {2, 4}:
        rows = {int(shape[0] or 0) for shape in shapes}
        boxes, scores = sorted((port for port in seen.ports), key=lambda port: port.shape[2] != 4)
        low, high = span(seen.values(scores.name))
        if len(rows) == 1 and rows.pop() > QUERIES and low >= 0 and high <= 1:
            seen.notes.fact(
                "boxes beside two scores each, background and face: UltraFace. It has no landmarks, which verifying and naming "
                "faces needs, so it is a detector of one class"
            )
            return Role(
                "detect", "corners-scores", 1, (boxes.name, scores.name), first_class=1, boxes="unit", convention="ultraface"
            )
    return None


def queries(seen: Seen) -> Role | None:
    """DETR's: logits [n, k, C] with boxes [n, k, 4] of 0..1; or decoded, with the picture's size as a second input."""
    decoded = _decoded_queries(seen)
    if decoded is not None:
        return decoded
    tables = [port for port in seen.ports if len(port.shape) == 3]
    if len(tables) != 2 or len(seen.ports) != 2 or tables[0].shape[1] != tables[1].shape[1]:
        return None
    count = int(tables[0].shape[1] or 0)
    boxes = [port for port in tables if port.shape[2] == 4 and _unit(seen, port)]
    if count > QUERIES or not boxes:
        raise seen.refuse("boxes beside scores, which are not the queries of a DETR: an SSD-like layout that is not supported")
    box = boxes[-1] if len(boxes) == 1 else next((port for port in boxes if "box" in port.name or "det" in port.name), boxes[-1])
    logits = next(port for port in tables if port is not box)
    columns = int(logits.shape[2] or 0)
    softmax = columns == 92
    activation = seen.told.activation or (
        "softmax" if softmax else activation_of(seen, seen.values(logits.name), "scores of classes")
    )
    seen.notes.fact(f"{count} queries of {columns} classes each, with boxes of 0..1: a DETR")
    if seen.told.activation is None and softmax:
        seen.notes.assume("92 columns are taken as DETR's: a softmax, the last column being no object", "activation")
    names = {port.name for port in seen.ports}
    convention = "rf-detr" if names == {"dets", "labels"} or softmax else "rt-detr" if _known_detr(names, columns) else None
    classes = columns - 1 if softmax else columns
    return Role("detect", "detr", classes, (logits.name, box.name), activation=activation, boxes="unit", convention=convention)


def _known_detr(names: set[str], columns: int) -> bool:
    return columns in (80, 365) or any(re.search("logits", name) for name in names)


def _unit(seen: Seen, port: Port) -> bool:
    low, high = span(seen.values(port.name))
    return low >= -UNIT and high <= 1 + UNIT


def _decoded_queries(seen: Seen) -> Role | None:
    """labels [n, k], boxes [n, k, 4], scores [n, k] and the picture's size."""
    flat = [port for port in seen.ports if len(port.shape) == 2]
    boxes = [port for port in seen.ports if len(port.shape) == 3 and port.shape[2] == 4]
    if len(flat) != 2 or len(boxes) != 1 or len(seen.ports) != 3 or not seen.entrance.others:
        return None
    labels = [port for port in flat if port.dtype.startswith("int")]
    if len(labels) != 1:
        return None
    scores = next(port for port in flat if port is not labels[0])
    seen.notes.fact(
        "labels, boxes and scores of each query, for the picture's size as a second input: RT-DETR's or D-FINE's own export"
    )
    classes = named_classes(seen) or 80
    if not named_classes(seen):
        seen.notes.assume("80 classes, as of COCO: the answer does not tell how many there are", "labels")
    return Role("detect", "detr-decoded", classes, (labels[0].name, boxes[0].name, scores.name), convention="rt-detr")


def chosen(seen: Seen) -> Role | None:
    """Exports with NMS inside."""
    names = {port.name.split(":")[0] for port in seen.ports}
    if "detection_boxes" in names:
        raise seen.refuse("an export of TensorFlow's object detection API (detection_boxes): its layout is not supported")
    for reader in (_nms_rows, _nms_indices, _efficient, _torchvision):
        role = reader(seen)
        if role is not None:
            return role
    return None


def _nms_rows(seen: Seen) -> Role | None:
    if len(seen.ports) != 1 or len(seen.ports[0].shape) != 2 or seen.ports[0].shape[1] != 7:
        return None
    if "NonMaxSuppression" not in seen.file.operators:
        return None
    seen.notes.fact("rows of picture, corners, class and score behind an NMS: YOLOv7's end-to-end export")
    return Role("detect", "nms-rows", _counted(seen), (seen.ports[0].name,), convention="ultralytics")


def _nms_indices(seen: Seen) -> Role | None:
    whole = [port for port in seen.ports if port.dtype.startswith("int") and port.shape[-1:] == (3,)]
    tables = [port for port in seen.ports if len(port.shape) == 3 and port.dtype.startswith("float")]
    if len(whole) != 1 or len(tables) != 2 or len(seen.ports) != 3:
        return None
    boxes = next((port for port in tables if port.shape[2] == 4), None)
    scores = next((port for port in tables if port is not boxes), None)
    if boxes is None or scores is None or scores.shape[2] != boxes.shape[1]:
        return None
    classes = int(scores.shape[1] or 0)
    seen.notes.fact(f"boxes, scores of {classes} classes, and the indices that an NMS left: as the ONNX Zoo's YOLOv3 has it")
    return Role("detect", "nms-indices", classes, (boxes.name, scores.name, whole[0].name), convention="darknet")


def _efficient(seen: Seen) -> Role | None:
    """Counts [n, 1], boxes [n, k, 4], scores [n, k], classes [n, k]."""
    shapes = [len(port.shape) for port in seen.ports]
    counts = [port for port in seen.ports if port.dtype.startswith("int") and port.shape in ((1, 1), (1,))]
    boxes = [port for port in seen.ports if len(port.shape) == 3 and port.shape[2] == 4]
    if len(shapes) != 4 or len(counts) != 1 or len(boxes) != 1:
        return None
    rest = [port for port in seen.ports if port not in (*counts, *boxes)]
    scores = next((port for port in rest if "score" in port.name), None)
    classes = next((port for port in rest if port is not scores), None)
    if scores is None or classes is None:
        return None
    seen.notes.fact("counts, boxes, scores and classes behind an NMS, as TensorRT's EfficientNMS answers")
    outputs = (counts[0].name, boxes[0].name, scores.name, classes.name)
    return Role("detect", "efficient-nms", _counted(seen), outputs, convention="ultralytics")


def _torchvision(seen: Seen) -> Role | None:
    """Boxes [k, 4], labels [k] and scores [k] of one picture."""
    boxes = [port for port in seen.ports if port.shape[-1:] == (4,) and len(port.shape) in (2, 3)]
    flat = [port for port in seen.ports if len(port.shape) == len(seen.ports[0].shape) - 1 or len(port.shape) in (1, 2)]
    labels = [port for port in flat if port.dtype.startswith("int")]
    scores = [port for port in flat if port.dtype.startswith("float") and port not in boxes]
    if seen.entrance.others or len(seen.ports) != 3 or [len(boxes), len(labels), len(scores)] != [1, 1, 1]:
        return None
    seen.notes.fact("boxes, labels and scores of one picture, as torchvision's detectors answer")
    unit = seen.told.boxes == "unit" or (not seen.told.boxes and 0 < span(seen.values(boxes[0].name))[1] <= 1.5)
    return Role(
        "detect", "boxes-labels-scores", _counted(seen), (boxes[0].name, labels[0].name, scores[0].name),
        boxes="unit" if unit else "pixels", convention="torchvision-detector" if len(seen.entrance.port.shape) == 3 else None,
    )  # fmt: skip


def _counted(seen: Seen) -> int:
    """How many classes there are, where the answer is one number a row. Asks."""
    count = named_classes(seen)
    if not count:
        seen.notes.ask(
            "labels", "the names of the classes (coco, voc, or a list), or --classes, how many there are: the answer does not tell"
        )
    return count
