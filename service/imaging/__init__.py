"""Pure functions on pictures as arrays: uint8, height x width x 3, RGB, unless a docstring says otherwise."""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # height x width x 3, RGB
