"""Where a classifier looks: class activation maps of what it saw, and its windows over a whole photo in one pass.

"maps" [classes, rows, columns] hold what each position of the last feature map says for each class; a class's mean is its logit
(Zhou et al. 2016). Over a larger picture the mean over each k x k positions, k being those of a picture of the usual size, is the
logit of that window (Sermanet et al. 2013).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.imaging import Grid
from service.imaging.heat import Edges, region, within
from service.imaging.transforms import Placement, spread
from service.repository.spec import InputContract
from service.tasks.task import Pixels

Maps = NDArray[np.float32]
SHARE = 0.2
"""Of the strongest, from which on a place belongs to the region that is boxed: benchmarks/pointing.py --shares measures it."""
WINDOWS_PIXELS = 2**20
"""Network pixels that windows slide over, with what a narrow photo is padded by: larger photos are scaled down to that."""


@dataclass(frozen=True)
class Heat:
    """One class over a part of a photo: its grid [rows, columns], the part, and the box of the strongest region in it."""

    class_id: int
    label: str
    confidence: float
    grid: Maps
    view: Edges
    box: Edges


@dataclass(frozen=True)
class Seen:
    """The class of each window [rows, columns]: `classes` and `confidences`; `scale`: network pixels a photo pixel; `view`: what
    the windows lie in."""

    classes: NDArray[np.intp]
    confidences: NDArray[np.float64]
    scale: float
    view: Edges


def heat(class_id: int, label: str, confidence: float, grid: Maps, view: Edges, photo: Grid) -> Heat:
    """With the box of the strongest region, clipped to the photo."""
    box = within(view, region(grid, SHARE))
    x_min, x_max = (min(max(x, 0.0), float(photo.width)) for x in (box[0], box[2]))
    y_min, y_max = (min(max(y, 0.0), float(photo.height)) for y in (box[1], box[3]))
    return Heat(class_id, label, confidence, grid, view, (x_min, y_min, x_max, y_max))


def window_scale(height: int, width: int, size: int) -> float:
    """Network pixels for each pixel of a photo of height x width: 1, more where it is smaller than a window, less where it, or a
    strip of its length and a window's breadth, is larger than WINDOWS_PIXELS, which comes first for a photo that is both."""
    most = min(math.sqrt(WINDOWS_PIXELS / (height * width)), WINDOWS_PIXELS / (size * max(height, width)))
    return min(max(1.0, size / min(height, width)), most)


def canvas(pixels: Pixels, grid: Grid, wanted: InputContract, size: int, stride: int) -> tuple[Pixels, Placement]:
    """The whole photo for windows of `size`, its sides padded right and below to multiples of `stride`.

    The padding has the mean colour, which is 0 behind the graph's entrance: what the network's own padding is.
    """
    red, green, blue = (min(max(round(value), 0), 255) for value in wanted.mean)
    scale = window_scale(grid.height, grid.width, size)
    return spread(
        pixels,
        scale,
        multiple_of=stride,
        least=size,
        fill=(red, green, blue),
        grid=grid,
        interpolation=wanted.interpolation,
    )


def view_of(placement: Placement, height: int, width: int) -> Edges:
    """What a canvas of height x width covers, in the photo's pixels; it may reach beyond the photo by its padding."""
    x_min, y_min, x_max, y_max = placement.to_photo(np.array([0, 0, width, height], np.float32)).tolist()
    return x_min, y_min, x_max, y_max


def window_logits(maps: Maps, cells: int) -> NDArray[np.float64]:
    """Means over each cells x cells positions of `maps` [classes, rows, columns]: [classes, rows - cells + 1, columns - cells + 1].

    By sums from the corner on, so that the time does not grow with `cells`.
    """
    sums = np.zeros((maps.shape[0], maps.shape[1] + 1, maps.shape[2] + 1))
    sums[:, 1:, 1:] = maps.astype(np.float64).cumsum(axis=1).cumsum(axis=2)
    whole = sums[:, cells:, cells:] - sums[:, :-cells, cells:] - sums[:, cells:, :-cells] + sums[:, :-cells, :-cells]
    return np.asarray(whole / cells**2)


def windows(maps: Maps, cells: int, placement: Placement, view: Edges) -> Seen:
    """The most probable class of each window, and its confidence."""
    logits = window_logits(maps, cells)
    classes = logits.argmax(axis=0)
    highest = logits.max(axis=0)
    confidences = 1 / np.exp(logits - highest).sum(axis=0)
    scale = placement.scale_x if maps.shape[2] >= maps.shape[1] else placement.scale_y  # rounded sides weigh less on the longer one
    return Seen(classes, confidences, scale, view)
