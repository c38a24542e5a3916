"""Whatever a caller calls an image, turned into pixels once."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import NotAnImage
from service.imaging.codec import Limits, decode, to_rgb
from service.settings import Settings
from service.tasks.task import ImageInfo, Pixels, Timing


@dataclass(frozen=True)
class Photo:
    """Upright pixels, and the clock that saw them decoded."""

    pixels: Pixels
    timing: Timing

    @property
    def info(self) -> ImageInfo:
        return ImageInfo(width=self.pixels.shape[1], height=self.pixels.shape[0])


ImageLike = bytes | bytearray | memoryview | str | os.PathLike[str] | NDArray[np.uint8] | Image.Image | Photo
"""Encoded bytes, a path, an array (uint8, height x width x 3, RGB), a Pillow image, or a Photo."""


def limits(settings: Settings) -> Limits:
    return Limits(settings.max_pixels, settings.max_image_side, settings.min_image_side)


def open_photo(image: ImageLike, settings: Settings) -> Photo:
    """Decode `image` within the settings' limits and start its clock; a Photo is given back as it is.

    Raises ImageMissing, NotAnImage, ImageDamaged, ImageTooSmall, TooManyPixels; OSError when a path cannot be read.
    """
    if isinstance(image, Photo):
        return image
    timing = Timing()
    with timing.measure("decode"):
        return Photo(_pixels(image, limits(settings)), timing)


def _pixels(image: ImageLike, bounds: Limits) -> Pixels:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise NotAnImage(f"an array must be uint8, height x width x 3 in RGB; this one is {image.dtype}, {image.shape}")
        return np.ascontiguousarray(image)
    if isinstance(image, Image.Image):
        return to_rgb(image, bounds)
    if isinstance(image, str | os.PathLike):
        return decode(Path(image).read_bytes(), bounds)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode(image, bounds)
    raise NotAnImage(f"an image is bytes, a path, an array or a Pillow image, not {type(image).__name__}")
