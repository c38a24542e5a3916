"""Pure functions on pictures as arrays: uint8, height x width x 3, RGB, unless a docstring says otherwise."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # height x width x 3, RGB


@dataclass(frozen=True)
class Grid:
    """Where decoded pixels lie on their photo of height x width, both upright.

    Pixel (column, row) covers step x step of the photo's pixels, from (left + step * column, top + step * row) on. At a step
    above 1 the pixels end up to half a step before or behind the photo's edges.
    """

    height: int
    width: int
    step: int = 1
    left: int = 0
    top: int = 0

    @classmethod
    def of(cls, pixels: Pixels) -> Self:
        """That of a photo with all its pixels."""
        return cls(*pixels.shape[:2])
