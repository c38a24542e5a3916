"""The places of a detector's grids: how many there are for an input size, and whether boxes lie on them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from service.intake.seen import Floats

STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32))
ANCHORS = (1, 3)
FITS = 0.9  # correlation of decoded centres with the places that they come from


@dataclass(frozen=True)
class Grids:
    """`per_place` boxes on each place of the grids of `strides`, and `count` of them altogether."""

    strides: tuple[int, ...]
    per_place: int
    count: int


def find_grids(size: tuple[int, int], count: int) -> Grids | None:
    """The grids that give so many boxes for an input of this size; the usual strides first."""
    return next((grids for grids in _all(size) if grids.count == count), None)


def _all(size: tuple[int, int]) -> Iterator[Grids]:
    for strides in STRIDES:
        places = sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides)
        for per_place in ANCHORS:
            yield Grids(strides, per_place, places * per_place)


def lies_on(grids: Grids, size: tuple[int, int], boxes: Floats) -> bool:
    """Are the centres of `boxes` [n, count, 2 or more] those of the places that they belong to? Raw offsets are not."""
    orders = (grids.strides, grids.strides[::-1])
    layouts = (True, False) if grids.per_place > 1 else (True,)
    places = [_places(size, order, grids.per_place, anchors_first) for order in orders for anchors_first in layouts]
    return any(_alike(boxes[..., 0], place[:, 0]) and _alike(boxes[..., 1], place[:, 1]) for place in places)


def _places(size: tuple[int, int], strides: tuple[int, ...], per_place: int, anchors_first: bool) -> Floats:
    """Centres [count, 2] as x, y in pixels."""
    levels = []
    for stride in strides:
        down, across = np.mgrid[0 : -(-size[0] // stride), 0 : -(-size[1] // stride)]
        level = (np.stack([across, down], axis=-1).reshape(-1, 2) + 0.5) * stride
        levels.append(np.tile(level, (per_place, 1)) if anchors_first else np.repeat(level, per_place, axis=0))
    return np.concatenate(levels).astype(np.float32)


def _alike(values: Floats, wanted: Floats) -> bool:
    mean = values.mean(axis=0)
    if not mean.std() or not wanted.std():
        return False
    return bool(np.corrcoef(mean, wanted)[0, 1] > FITS)
