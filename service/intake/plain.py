"""Files that answer one row or one picture: classifiers, face embedders, liveness, style networks; and what is none of these."""

import numpy as np

from service.export.contract import Decoder
from service.intake.seen import UNIT, Floats, Role, Seen, span
from service.intake.words import Port, shape_text
from service.repository.spec import Task

EMBEDDINGS = (128, 256, 512, 1024)
ALIGNED = ((112, 112), (112, 96), (160, 160), (96, 96), (128, 128))
"""Sizes that face embedders take."""
CROOKED = 16
"""Pixels by which a style network's picture may differ in size from the photo."""


def row(seen: Seen) -> Role | None:
    """[n, C], with or without further axes of 1."""
    port = seen.ports[0]
    width = _width(seen, port)
    if len(seen.ports) != 1 or width is None or not port.dtype.startswith("float"):
        return None
    values = seen.values(port.name).reshape(-1, width)
    task = seen.told.task or _row_task(seen, width, values)
    if task == "embed-face":
        length = np.linalg.norm(values, axis=1)
        normal = "of length 1" if np.allclose(length, 1, atol=1e-2) else "of any length"
        seen.notes.fact(f"{port.name} {shape_text(port.shape)}: an embedding of {width} numbers, {normal}")
        return Role("embed-face", "embedding", outputs=(port.name,))
    if task not in ("classify", "face-liveness"):
        raise seen.refuse(f"one row of {width} numbers a picture is not what {task} needs")
    if width < 2:
        raise seen.refuse("one number a picture: a classifier has two classes or more")
    decoder = _row_decoder(seen, values, width)
    known = seen.meta.is_ultralytics and seen.meta.task == "classify"
    return Role(task, decoder, width, (port.name,), convention="ultralytics-classify" if known else None)


def _width(seen: Seen, port: Port) -> int | None:
    shape = [int(axis or 0) for axis in port.shape]
    if len(shape) < 2 or any(axis != 1 for axis in shape[2:]):
        wide = [axis for axis in shape[1:] if axis != 1]
        if len(shape) in (3, 4) and len(wide) == 1 and _layout_is_last(seen, shape):
            return wide[0]
        return None
    return shape[1]


def _layout_is_last(seen: Seen, shape: list[int]) -> bool:
    return seen.entrance.layout == "NHWC" and shape[-1] != 1


def _row_task(seen: Seen, width: int, values: Floats) -> Task:
    is_face = width in EMBEDDINGS and seen.entrance.size in ALIGNED and not seen.meta.names
    unit = np.allclose(np.linalg.norm(values, axis=1), 1, atol=1e-2) and values.min() < 0
    if is_face or unit:
        why = (
            "its rows have the length 1" if unit else f"{width} numbers for {seen.entrance.size[0]}x{seen.entrance.size[1]} pixels"
        )
        seen.notes.ask(
            "task", f"embed-face, if it makes embeddings of aligned faces ({why}); classify, if these are {width} classes; "
            "face-liveness, "
            "if it tells live faces from pictures of them"
        )  # fmt: skip
    return "classify"


def _row_decoder(seen: Seen, values: Floats, width: int) -> Decoder:
    if seen.told.decoder in ("logits", "probabilities"):
        return seen.told.decoder
    low, high = span(values)
    sums = values.sum(axis=1)
    if low >= -UNIT and high <= 1 + UNIT and np.allclose(sums, 1, atol=2e-2):
        seen.notes.fact(f"{width} classes; each row is 0 or more and sums to 1, so they are probabilities")
        return "probabilities"
    seen.notes.fact(f"{width} classes; the values went from {low:.3g} to {high:.3g} in the trial run, so they are logits")
    return "logits"


def picture(seen: Seen) -> Role | None:
    """A picture of the photo's size. Raises ModelRefused for masks, depth maps and larger pictures."""
    port = seen.ports[0]
    if len(seen.ports) != 1 or len(port.shape) not in (3, 4):
        return None
    shape = [int(axis or 0) for axis in port.shape[-3:]]
    height, width = seen.entrance.size
    if _fits(shape[:2], height, width) and shape[2] in (1, 3):
        channels = shape[2]
    elif shape[0] in (1, 3) and shape[1] >= height // 8 and _is_picture(seen, shape):
        channels, shape = shape[0], [*shape[1:], shape[0]]
    else:
        return None
    if not _fits(shape[:2], height, width):
        raise seen.refuse(
            f"its picture has {shape[0]}x{shape[1]} pixels for one of {height}x{width}: only style networks, "
                          "which keep the size, are supported")  # fmt: skip
    if channels == 1:
        raise seen.refuse("it gives one number for each pixel, as masks and depth maps are: not supported")
    decoder: Decoder = "picture-and-style" if seen.entrance.styles else "picture"
    _say_range(seen, port)
    kind = "a photo and a style in, one picture out" if seen.entrance.styles else "a picture in, a picture out"
    seen.notes.fact(f"{kind}, {port.name} {shape_text(port.shape)}: a style network")
    return Role("stylize", decoder, outputs=(port.name,))


def _is_picture(seen: Seen, shape: list[int]) -> bool:
    """Not three feature maps of a coarse grid: of the photo's shape at least."""
    height, width = seen.entrance.size
    return abs(shape[1] / shape[2] - height / width) < 0.1


def _fits(sides: list[int], height: int, width: int) -> bool:
    return abs(sides[0] - height) <= CROOKED and abs(sides[1] - width) <= CROOKED


def _say_range(seen: Seen, port: Port) -> None:
    spans = [span(array) for array in seen.arrays(port.name)]
    shown = ", ".join(f"{low:.3g} to {high:.3g}" for low, high in spans)
    seen.notes.fact(f"in the trial run its picture went from and to (pixels of 0..1, 0..1, 0..255): {shown}")


def masks(seen: Seen) -> Role | None:
    """What is refused by its shapes alone. Raises ModelRefused."""
    deep = [port for port in seen.ports if len(port.shape) == 4]
    tables = [port for port in seen.ports if len(port.shape) == 3]
    if len(seen.ports) == 2 and len(deep) == 1 and len(tables) == 1:
        raise seen.refuse("a table and maps beside it, the prototypes of masks: segmentation is not supported")
    if len(seen.ports) == 1 and deep and _fits([int(a or 0) for a in deep[0].shape[2:]], *seen.entrance.size):
        raise seen.refuse(f"{deep[0].shape[1]} numbers for each pixel: semantic segmentation is not supported")
    return None
