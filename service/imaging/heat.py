"""Coarse grids of numbers over a photo: where they are strongest, and how they look as a heat map.

A grid [rows, columns] divides a part of the photo, its view, into equal cells; between the cells' centres it is interpolated
bilinearly, beyond the outermost ones it stays as it is there.
"""

import math
from functools import cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from service.imaging import Pixels
from service.imaging.draw import oklch

Floats = NDArray[np.float32]
Edges = tuple[float, float, float, float]
"""x_min, y_min, x_max, y_max in the photo's pixels."""

FINE: Final = 16
"""Points a cell and axis at which a region's outline is looked for."""
_LEVELS: Final = 256
_OPAQUE: Final = 0.7  # of the strongest
_STRIP: Final = 2**20  # numbers that are worked on at a time


def strengths(grid: NDArray[np.floating]) -> Floats:
    """0 to 1: `grid` from 0, where evidence begins, to its largest number; from its least where none is above 0."""
    values = np.asarray(grid, np.float32)
    base = 0.0 if values.max() > 0 else values.min()
    return np.asarray(np.clip((values - base) / max(values.max() - base, 1e-12), 0, 1), np.float32)


def strongest(grid: NDArray[np.floating]) -> tuple[float, float]:
    """The middle of the strongest cell as x and y, each 0 to 1 of the view; the first of equal ones."""
    row, column = np.unravel_index(int(np.argmax(grid)), grid.shape)
    return (float(column) + 0.5) / grid.shape[1], (float(row) + 0.5) / grid.shape[0]


def region(grid: NDArray[np.floating], share: float) -> Edges:
    """The box around the connected region that holds the strongest point and is at least `share` (0 to 1) as strong everywhere.

    x_min, y_min, x_max, y_max, each 0 to 1 of the view. Reference: Zhou et al. 2016, section 3.2.
    """
    rows, columns = (FINE * side for side in grid.shape)
    fine = _interpolated(strengths(grid), *(_positions(side, side * FINE) for side in grid.shape))
    _, parts = cv2.connectedComponents((fine >= share * fine.max()).astype(np.uint8), connectivity=4)
    inside = parts == parts.flat[int(fine.argmax())]
    down, across = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return across[0] / columns, down[0] / rows, (across[-1] + 1) / columns, (down[-1] + 1) / rows


def within(view: Edges, part: Edges) -> Edges:
    """`part`, 0 to 1 of `view`, in the photo's pixels."""
    left, top, width, height = view[0], view[1], view[2] - view[0], view[3] - view[1]
    return left + part[0] * width, top + part[1] * height, left + part[2] * width, top + part[3] * height


def paint_heat(pixels: Pixels, grid: NDArray[np.floating], view: Edges) -> Pixels:
    """A copy of the photo with `grid` over its part `view`: the stronger, the warmer and the less of the photo shows through."""
    painted = pixels.copy()
    height, width = pixels.shape[:2]
    left, right = (min(max(round(x), 0), width) for x in (view[0], view[2]))
    top, bottom = (min(max(round(y), 0), height) for y in (view[1], view[3]))
    if right <= left or bottom <= top:
        return painted
    values, colors, alpha = strengths(grid), *palette()
    across = _cells(np.arange(left, right) + 0.5, view[0], view[2], grid.shape[1])
    step = max(1, _STRIP // (right - left))
    for start in range(top, bottom, step):
        stop = min(start + step, bottom)
        down = _cells(np.arange(start, stop) + 0.5, view[1], view[3], grid.shape[0])
        level = np.rint(_interpolated(values, down, across) * (_LEVELS - 1)).astype(np.intp)
        part = painted[start:stop, left:right]
        part[:] = np.rint(part + (colors[level] - part) * alpha[level][..., None]).astype(np.uint8)
    return painted


@cache
def palette() -> tuple[Floats, Floats]:
    """Colours [256, 3] and how much they cover [256], 0 to 1, from the weakest to the strongest.

    From a dark violet over red to a light yellow along OKLCH (Ottosson 2020), where equal steps look equal: lightness only ever
    rises, so that it reads the same in grey and to people who see few colours.
    """
    t = np.linspace(0, 1, _LEVELS)
    hues = np.radians(290 + 175 * t)
    chroma = 0.12 + 0.09 * np.sin(math.pi * t)
    colors = [oklch(light, c, hue) for light, c, hue in zip(0.3 + 0.62 * t, chroma, hues, strict=True)]
    return np.array(colors, np.float32), (_OPAQUE * np.sqrt(t)).astype(np.float32)


def _positions(cells: int, points: int) -> NDArray[np.float64]:
    """Middles of `points` equal steps in units of cells, 0 being the middle of the first cell."""
    return (np.arange(points) + 0.5) * cells / points - 0.5


def _cells(at: NDArray[np.float64], low: float, high: float, cells: int) -> NDArray[np.float64]:
    """The same for coordinates `at` of a view from `low` to `high`."""
    return (at - low) / (high - low) * cells - 0.5


def _interpolated(grid: Floats, down: NDArray[np.float64], across: NDArray[np.float64]) -> Floats:
    """`grid` at rows `down` [m] and columns `across` [n], bilinearly: [m, n]."""
    first, second = (_weights(at, side) for at, side in ((down, grid.shape[0]), (across, grid.shape[1])))
    return np.asarray(first @ grid @ second.T, np.float32)


def _weights(at: NDArray[np.float64], cells: int) -> Floats:
    """How much each point takes of each cell: [points, cells], rows sum to 1."""
    low = np.clip(np.floor(at), 0, cells - 1).astype(np.intp)
    high = np.minimum(low + 1, cells - 1)
    part = np.clip(at - low, 0, 1).astype(np.float32)
    weights = np.zeros((len(at), cells), np.float32)
    points = np.arange(len(at))
    weights[points, low] += 1 - part
    weights[points, high] += part
    return weights
