"""Paint a photo of any size with the graphs of service.export.painter: whole while it is small, else in tiles without seams.

Instance norm ties every pixel to the whole picture through each channel's mean and variance, so tiles painted on their own differ.
Here the statistics are measured once, on reduced copies, and all tiles are painted with them at full resolution. Each tile
sees HALO more pixels on every side that is not the picture's own edge, as far as one painted pixel can look, so tiles meet
exactly. Memory is bounded by the tile: about 0.6 GB above what the process holds anyway, for 1 megapixel as for 12.

Other people's networks (paint_whole) have no such graphs: they paint a photo in one go, at a reduced size where it is large.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import log2
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from service.imaging.transforms import resize
from service.tasks.task import Model, Pixels, Tensors, Timing

Vector = NDArray[np.float32]
Span = tuple[int, int]

MULTIPLE: Final = 4
"""The networks halve the picture twice, so sides are padded to multiples of this many pixels."""

MIN_SIDE: Final = 16
"""Shortest side in pixels: reflection at a quarter of the size needs more than one pixel."""

HALO: Final = 64
"""Pixels; the receptive field of a painted pixel reaches 63 (six residual blocks) or 55 (five) to each side."""

TILE: Final = 1024
"""Longest side of a tile without its halo, in pixels. Pictures of no more than TILE * TILE pixels are painted whole."""


def paint(pixels: Pixels, style: Vector, model: Model, timing: Timing) -> Pixels:
    """The picture [h, w, 3] painted, of the same size. style: [1, s]; sides of at least MIN_SIDE pixels.

    Raises what `model.run` raises.
    """
    height, width = pixels.shape[:2]
    with timing.measure("preprocess"):
        padded = np.pad(pixels, ((0, -height % MULTIPLE), (0, -width % MULTIPLE), (0, 0)), mode="reflect")
    if height * width <= TILE * TILE:
        painted = model.run({"pixels": padded[None], "style": style}, timing)["painted"][0]
    else:
        painted = paint_tiles(padded, style, measure(pixels, style, model, timing), model, timing)
    return np.asarray(painted[:height, :width], np.uint8)


def paint_whole(pixels: Pixels, feeds: Tensors, model: Model, timing: Timing) -> Pixels:
    """The picture [h, w, 3] painted in one run by a network without tiles, of the same size. feeds: its further inputs.

    Where the network's size is free, a picture of up to TILE * TILE pixels is painted as it is; of a larger one that many pixels
    are painted, and scaled up bicubically: fine strokes get wider. Where it is fixed, the picture is scaled into it at its own
    proportions, what it leaves free is its own reflection, and its part of the painting is scaled back.
    Raises what `model.run` raises.
    """
    height, width = pixels.shape[:2]
    wanted = model.spec.input
    if wanted.size is None:
        scale = min(1.0, (TILE * TILE / (height * width)) ** 0.5)
    else:
        scale = min(wanted.size[0] / height, wanted.size[1] / width)
    with timing.measure("preprocess"):
        small = resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)), "area")
        rows, columns = small.shape[:2]
        sides = wanted.size or (rows + -rows % wanted.multiple_of, columns + -columns % wanted.multiple_of)
        canvas = np.pad(small, ((0, sides[0] - rows), (0, sides[1] - columns), (0, 0)), mode="reflect")
    painted = np.asarray(model.run({"pixels": canvas[None], **feeds}, timing)["painted"][0], np.uint8)
    with timing.measure("postprocess"):
        painted = resize(painted, *canvas.shape[:2])  # networks round sides to what their strides give
        return resize(painted[:rows, :columns], height, width, "bicubic")


def paint_tiles(pixels: Pixels, style: Vector, statistics: Vector, model: Model, timing: Timing, tile: int = TILE) -> Pixels:
    """The picture painted tile by tile with given statistics [1, 2, c]. Sides and `tile` are multiples of MULTIPLE."""
    height, width = pixels.shape[:2]
    painted = np.empty_like(pixels)
    for top, bottom in spans(height, tile):
        for left, right in spans(width, tile):
            (first_row, last_row), (first_column, last_column) = _widened(top, bottom, height), _widened(left, right, width)
            part = np.ascontiguousarray(pixels[None, first_row:last_row, first_column:last_column])
            outcome = model.run({"pixels": part, "style": style, "statistics": statistics}, timing, "tile")["painted"][0]
            core = outcome[top - first_row : bottom - first_row, left - first_column : right - first_column]
            painted[top:bottom, left:right] = core
    return painted


def measure(pixels: Pixels, style: Vector, model: Model, timing: Timing) -> Vector:
    """Statistics [1, 2, c] of a picture too large to be painted whole, estimated from two reduced copies.

    Means, and the logarithms of variances, drift steadily with resolution. Half of the step between the two copies is carried
    on for each doubling of pixels, for two doublings at most: on photos of 2 to 4 MP this brings the mean difference from the
    picture painted whole from 9.8 to 6.3 of 255 levels; the whole step, or more doublings, made large pictures worse.
    """
    near, far = (_statistics(pixels, style, model, timing, TILE * TILE // part) for part in (1, 2))
    steps = min(log2(pixels.shape[0] * pixels.shape[1] / TILE**2), 2) / 2
    mean = near[:, 0] + steps * (near[:, 0] - far[:, 0])
    variance = near[:, 1] * ((near[:, 1] + 1e-5) / (far[:, 1] + 1e-5)) ** steps
    return np.stack([mean, variance], axis=1)


def spans(length: int, most: int) -> Iterator[Span]:
    """Cut 0..length into parts of nearly the same size, none longer than `most`, ends multiples of MULTIPLE."""
    parts = -(-length // most)
    ends = [round(length * part / parts / MULTIPLE) * MULTIPLE for part in range(parts + 1)]
    return pairwise(ends)


def shrink(pixels: Pixels, max_side: int) -> Pixels:
    """The picture with no side longer than `max_side`, at its own proportions; never enlarged."""
    height, width = pixels.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    return resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)), "area")


def keep_color(painted: Pixels, photo: Pixels) -> Pixels:
    """The painting's lightness with the photo's colour: Y of one, Cb and Cr of the other (BT.601)."""
    mixed = cv2.cvtColor(photo, cv2.COLOR_RGB2YCrCb)
    mixed[..., 0] = cv2.cvtColor(painted, cv2.COLOR_RGB2YCrCb)[..., 0]
    return np.asarray(cv2.cvtColor(mixed, cv2.COLOR_YCrCb2RGB), np.uint8)


def fade(photo: Pixels, painted: Pixels, opacity: float) -> Pixels:
    """The painting laid over the photo; opacity 0 gives the photo, 1 the painting."""
    return painted if opacity >= 1 else np.asarray(cv2.addWeighted(painted, opacity, photo, 1 - opacity, 0), np.uint8)


def _widened(start: int, end: int, length: int) -> Span:
    return max(0, start - HALO), min(length, end + HALO)


def _statistics(pixels: Pixels, style: Vector, model: Model, timing: Timing, area: int) -> Vector:
    """What the graph "model" measures on a copy of at most about `area` pixels."""
    height, width = pixels.shape[:2]
    scale = (area / (height * width)) ** 0.5
    with timing.measure("preprocess"):
        rows, columns = (max(MIN_SIDE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))
        small = resize(pixels, rows, columns, "area")
    return np.asarray(model.run({"pixels": small[None], "style": style}, timing)["statistics"], np.float32)
