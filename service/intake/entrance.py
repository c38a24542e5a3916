"""The picture input of a file: which one, its axes, its size; and pictures for the trial run in the form that it takes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import ModelRefused
from service.intake.read import OnnxFile
from service.intake.told import Told
from service.intake.ultralytics import Metadata
from service.intake.words import Axis, Notes, Port, ports_text

CHANNELS = (1, 3)
DTYPES = ("float32", "float16", "uint8")
MOST_NUMBERS = 64 * 2**20
"""Of all pictures of one run: 8192 x 2048 pixels and more."""
FREE = {2: 224, 4: 256}
"""Side of the trial picture where the file leaves it free, by the axes of the only output; else 640, as detectors have."""


@dataclass(frozen=True)
class Entrance:
    """size: height and width that the trial is run with; `free` where the file leaves it open. batch: 0 where free.

    styles: a second picture input. others: inputs that are no pictures.
    """

    port: Port
    layout: Literal["NCHW", "NHWC"]
    channels: int
    size: tuple[int, int]
    free: bool
    batch: int
    styles: tuple["Entrance", ...]
    others: tuple[Port, ...]


def find(file: OnnxFile, told: Told, meta: Metadata, notes: Notes) -> Entrance:
    """Raises ModelRefused where there is no picture input, or one that cannot be fed."""
    pictures = [port for port in file.inputs if _layout(port.shape, None) is not None]
    if told.input is not None:
        named = [port for port in file.inputs if port.name == told.input]
        if not named:
            raise ModelRefused(f"there is no input {told.input!r}; the inputs are: {ports_text(file.inputs)}")
        pictures = [*named, *(port for port in pictures if len(pictures) == 2 and _paints(file) and port not in named)]
    if not pictures:
        raise ModelRefused(
            f"none of its inputs takes a picture, [n, c, height, width] or [n, height, width, c] with 1 or 3 channels c; "
            f"the inputs are: {ports_text(file.inputs)}"
        )
    if len(pictures) > 2 or (len(pictures) == 2 and not _paints(file)):
        raise ModelRefused(
            f"it has {len(pictures)} picture inputs, and only a style network may have two, of photo and style: "
            f"{ports_text(pictures)}"
        )
    main = pictures if told.input is not None else _ordered(pictures, notes)
    others = tuple(port for port in file.inputs if port not in pictures)
    styles = tuple(_entrance(port, (), (), file, told, meta, notes) for port in main[1:])
    return _entrance(main[0], styles, others, file, told, meta, notes)


def _ordered(pictures: list[Port], notes: Notes) -> list[Port]:
    """The photo before the style, by their names where these tell."""
    if len(pictures) == 2 and len({"style" in port.name.lower() for port in pictures}) == 1:
        notes.assume(f"the first of two picture inputs is the photo's, {pictures[0].name}, the other the style's", "input")
    return sorted(pictures, key=lambda port: "style" in port.name.lower())


def _paints(file: OnnxFile) -> bool:
    return len(file.outputs) == 1 and _layout(file.outputs[0].shape, None) is not None


def _entrance(
    port: Port, styles: tuple[Entrance, ...], others: tuple[Port, ...], file: OnnxFile, told: Told, meta: Metadata, notes: Notes
) -> Entrance:
    layout = told.layout or _layout(port.shape, notes)
    if layout is None or len(port.shape) not in (3, 4):
        raise ModelRefused(f"the input {port} is no picture of 1 or 3 channels with four axes")
    if port.dtype not in DTYPES:
        raise ModelRefused(f"the picture input {port} takes {port.dtype}; known are {', '.join(DTYPES)}")
    shape = port.shape if len(port.shape) == 4 else (1, *port.shape)
    axes = shape[1:3] if layout == "NHWC" else shape[2:4]
    channels = shape[3] if layout == "NHWC" else shape[1]
    count = channels if isinstance(channels, int) else 1 if told.color == "GRAY" else 3
    fixed = [axis for axis in axes if isinstance(axis, int)]
    size = (fixed[0], fixed[1]) if len(fixed) == 2 else _free_size(file, told, meta, notes)
    if len(fixed) == 2 and told.size not in (None, size):
        raise ModelRefused(f"the size of its input is fixed at {size[0]}x{size[1]}, height by width; it cannot be {told.size}")
    notes.fact(
        f"the input {port} takes pictures: {layout}, {count} channel{'s' if count > 1 else ''}, "
        + (f"{size[0]}x{size[1]} pixels" if len(fixed) == 2 else "of free size")
    )
    batch = shape[0] if isinstance(shape[0], int) else 0
    return Entrance(port, layout, count, size, len(fixed) < 2, batch, styles, others)


def _layout(shape: tuple[Axis, ...], notes: Notes | None) -> Literal["NCHW", "NHWC"] | None:
    """By which axis is that of the channels."""
    if len(shape) == 3 and shape[0] in CHANNELS:
        return "NCHW"  # one picture without a batch axis, as torchvision's detectors take it
    if len(shape) != 4:
        return None
    if shape[1] in CHANNELS:
        return "NCHW"
    if shape[3] in CHANNELS:
        return "NHWC"
    if not isinstance(shape[1], int) and not isinstance(shape[3], int):
        if notes is not None:
            notes.assume("no axis of the picture input is fixed as that of the channels: taken as NCHW", "layout")
        return "NCHW"
    return None


def _free_size(file: OnnxFile, told: Told, meta: Metadata, notes: Notes) -> tuple[int, int]:
    if told.size:
        return told.size
    if meta.size:
        notes.fact(f"its metadata says that it was exported for {meta.size[0]}x{meta.size[1]} pixels")
        return meta.size
    side = FREE.get(len(file.outputs[0].shape), 640) if len(file.outputs) == 1 else 640
    if side != FREE[4] and len(file.outputs) < 10:  # YuNet's twelve heads take any size
        notes.assume(f"the file leaves the size free: {side}x{side} pixels, as is usual", "size")
    return side, side


def trial_feeds(entrance: Entrance) -> list[dict[str, NDArray[np.generic]]]:
    """Noise of 0..1, a smooth picture of 0..1, and the same of 0..255, as the file takes them.

    Raises ModelRefused where the file asks for pictures that would fill the memory.
    """
    numbers = sum(max(one.batch, 1) * one.size[0] * one.size[1] * one.channels for one in (entrance, *entrance.styles))
    if numbers > MOST_NUMBERS:
        raise ModelRefused(
            f"it takes {numbers} numbers at once, which is more than the {MOST_NUMBERS} of any model here: {entrance.port}; "
            "export it for a smaller batch or size"
        )
    return [_feed(entrance, kind) for kind in ("noise", "smooth", "bytes")]


def _feed(entrance: Entrance, kind: str) -> dict[str, NDArray[np.generic]]:
    feeds: dict[str, NDArray[np.generic]] = {}
    for one in (entrance, *entrance.styles):
        height, width = one.size
        if kind == "noise":
            picture = np.random.default_rng(1).random((height, width, one.channels))
        else:
            down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
            waves = (np.sin(9 * across + 3 * down), np.cos(7 * down), np.sin(5 * across * down + 2))
            picture = np.stack(waves[: one.channels], axis=2) / 2 + 0.5
        if kind == "bytes" or one.port.dtype == "uint8":
            picture = picture * 255
        tensor = picture if one.layout == "NHWC" else picture.transpose(2, 0, 1)
        whole = tensor if len(one.port.shape) == 3 else np.repeat(tensor[None], max(one.batch, 1), axis=0)
        feeds[one.port.name] = whole.astype(one.port.dtype)
    batch = max(entrance.batch, 1)
    for port in entrance.others:
        shape = [axis if isinstance(axis, int) else batch if place == 0 else 2 for place, axis in enumerate(port.shape)]
        if shape not in ([batch, 2], [2]) or not port.dtype.startswith(("int", "float")):
            raise ModelRefused(f"it has an input that is no picture, nor the picture's height and width: {port}")
        feeds[port.name] = np.broadcast_to(np.asarray(entrance.size), shape).astype(port.dtype)
    return feeds
