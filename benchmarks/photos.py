"""The benchmarks' photos, the same bytes everywhere: photos of scikit-learn and scikit-image at other sizes."""

from pathlib import Path
from typing import Final

import cv2
import numpy as np
import simplejpeg
import skimage
import sklearn.datasets

PALACE: Final = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"  # 640 x 427
PORTRAIT: Final = Path(skimage.__file__).parent / "data" / "astronaut.png"  # 512 x 512, two faces
SIZES: Final = {"small": (640, 480, 91), "large": (4000, 3000, 98)}  # width, height, JPEG quality: 107 kB and 2.6 MB


def photo(name: str) -> bytes:
    """The 0.3 megapixel photo `small` or the 12 megapixel photo `large`, as a JPEG."""
    return jpeg(*SIZES[name])


def jpeg(width: int, height: int, quality: int, source: Path = PALACE) -> bytes:
    """The middle of the source photo at width x height, chroma at half the resolution (4:2:0) as cameras write it."""
    pixels = np.asarray(cv2.imread(str(source)))[:, :, ::-1]
    rows, columns = pixels.shape[:2]
    side = min(rows / height, columns / width)
    top, left = round((rows - side * height) / 2), round((columns - side * width) / 2)
    middle = pixels[top : rows - top, left : columns - left]
    scaled = cv2.resize(middle, (width, height), interpolation=cv2.INTER_CUBIC)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(scaled), quality, "RGB", "420"))
