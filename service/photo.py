"""Whatever a caller calls an image, turned into pixels once."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import NotAnImage
from service.imaging import Grid
from service.imaging.codec import Limits, Scale, decode_enough, enough, to_rgb
from service.settings import Settings
from service.tasks.task import ImageInfo, Pixels, Timing


@dataclass(frozen=True)
class Photo:
    """Upright pixels, where they lie on the photo (all of its pixels, or means of some), and the clock that saw them decoded."""

    pixels: Pixels
    grid: Grid
    timing: Timing

    @property
    def info(self) -> ImageInfo:
        return ImageInfo(width=self.grid.width, height=self.grid.height)


ImageLike = bytes | bytearray | memoryview | str | os.PathLike[str] | NDArray[np.uint8] | Image.Image | Photo
"""Encoded bytes, a path, an array (uint8, height x width x 3, RGB), a Pillow image, or a Photo."""


def limits(settings: Settings) -> Limits:
    return Limits(settings.max_pixels, settings.max_image_side, settings.min_image_side)


def open_photo(image: ImageLike, settings: Settings, scale: Scale | None = None) -> Photo:
    """Decode `image` within the settings' limits and start its clock; a Photo is given back as it is.

    `scale` says how much a model sees of it; without it every pixel is decoded.
    Raises ImageMissing, NotAnImage, ImageDamaged, ImageTooSmall, TooManyPixels; OSError when a path cannot be read; ValueError
    when a Photo was decoded for a task that sees less.
    """
    if isinstance(image, Photo):
        if image.grid.step > enough(scale, image.grid.height, image.grid.width):
            raise ValueError("the photo was decoded for a task that needs fewer pixels; decode it without enough_for")
        return image
    timing = Timing()
    with timing.measure("decode"):
        pixels, grid = _pixels(image, limits(settings), scale)
    return Photo(pixels, grid, timing)


def _pixels(image: ImageLike, bounds: Limits, scale: Scale | None) -> tuple[Pixels, Grid]:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise NotAnImage(f"an array must be uint8, height x width x 3 in RGB; this one is {image.dtype}, {image.shape}")
        return np.ascontiguousarray(image), Grid.of(image)
    if isinstance(image, Image.Image):
        pixels = to_rgb(image, bounds)
        return pixels, Grid.of(pixels)
    if isinstance(image, str | os.PathLike):
        image = Path(image).read_bytes()
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_enough(image, scale, bounds)
    raise NotAnImage(f"an image is bytes, a path, an array or a Pillow image, not {type(image).__name__}")
