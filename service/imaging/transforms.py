"""Geometry: resize, crop, letterbox, align. Scales are those really used after rounding, so that boxes map back exactly.

Two conventions meet here. Boxes and landmarks are measured on the continuous plane where pixel i covers [i, i + 1); resizing
maps that plane onto the new one edge to edge, as cv2.resize and Pillow do. The matrices of `warp` are cv2.warpAffine's:
there pixel i's centre has the coordinate i.
"""

from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.imaging import Grid, Pixels

Interpolation = Literal["bilinear", "bicubic", "area"]
Size = tuple[int, int]  # height, width
Padding = Literal["center", "bottom-right"]

_FLAGS: Final = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_LINEAR}


@dataclass(frozen=True)
class Placement:
    """Where a photo lies inside a model's input: input = photo * scale + offset on each axis, the offsets in pixels."""

    scale_x: float
    scale_y: float
    left: float
    top: float

    def to_photo(self, xy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Coordinates [..., 2k], x and y in turn (boxes [n, 4], landmarks [n, 10]), from the input to the photo, unclipped."""
        points = xy.shape[-1] // 2
        offset, scale = np.tile((self.left, self.top), points), np.tile((self.scale_x, self.scale_y), points)
        return np.asarray((xy - offset) / scale, np.float32)


def use_one_thread() -> None:
    """Stop OpenCV from starting threads of its own, process-wide.

    A service that already runs one request per core gains nothing from them. It is for the program to decide, not for an import.
    """
    cv2.setNumThreads(1)


def resize(pixels: Pixels, height: int, width: int, interpolation: Interpolation = "bilinear") -> Pixels:
    """`pixels` at height x width, edge to edge; the array itself where it has that size already.

    Bilinear and bicubic look at the nearest 2 or 4 pixels only, so an axis that shrinks to half or less is averaged over areas
    instead (of a photo more than four times too large, 2 x 2 means are taken first: closer to Pillow's antialiased filters than
    plain areas, and three times faster). "area" does so from any shrinking on; an axis that grows is interpolated bilinearly.
    """
    while min(pixels.shape[0] / height, pixels.shape[1] / width) >= 4:
        half = (pixels.shape[1] + 1) // 2, (pixels.shape[0] + 1) // 2
        pixels = np.asarray(cv2.resize(pixels, half, interpolation=cv2.INTER_LINEAR), np.uint8)
    shrinks = 1 if interpolation == "area" else 2
    mean_height = height if pixels.shape[0] >= shrinks * height else pixels.shape[0]
    mean_width = width if pixels.shape[1] >= shrinks * width else pixels.shape[1]
    if (mean_height, mean_width) != pixels.shape[:2]:
        pixels = np.asarray(cv2.resize(pixels, (mean_width, mean_height), interpolation=cv2.INTER_AREA), np.uint8)
    if (mean_height, mean_width) != (height, width):
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=_FLAGS[interpolation]), np.uint8)
    return np.ascontiguousarray(pixels)


def center_crop(
    pixels: Pixels, size: int | Size, crop: float, interpolation: Interpolation = "bilinear", grid: Grid | None = None
) -> Pixels:
    """The middle of the photo at `size`, a square's side or height and width: `crop` of the largest part of these proportions.

    0 < crop <= 1. The part is rounded down to whole pixels. The rounding and the odd pixel are those of TensorFlow's EfficientNet
    preprocessing. With `grid` it is the part of the photo that is meant, to the nearest of `pixels`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    top, left, down, across = middle(grid or Grid.of(pixels), size, crop)
    return resize(pixels[top : top + down, left : left + across], height, width, interpolation)


def middle(grid: Grid, size: int | Size, crop: float) -> tuple[int, int, int, int]:
    """Which pixels `center_crop` takes of those that lie as `grid` says: the first row and column, and how many of each."""
    height, width = (size, size) if isinstance(size, int) else size
    rows = max(1, int(crop * min(grid.height, grid.width * height / width)))
    columns = max(1, int(crop * min(grid.width, grid.height * width / height)))
    down, across = round(rows / grid.step), round(columns / grid.step)
    top, left = (grid.height - rows + 1) // 2, (grid.width - columns + 1) // 2
    top = round((top - grid.top + rows / 2) / grid.step - down / 2)  # lengths are rounded first, and then the middle:
    left = round((left - grid.left + columns / 2) / grid.step - across / 2)  # so that is at most half of `pixels` off
    return top, left, down, across


def letterbox(
    pixels: Pixels,
    height: int,
    width: int,
    fill: int = 128,
    grid: Grid | None = None,
    padding: Padding = "center",
    interpolation: Interpolation = "bilinear",
) -> tuple[Pixels, Placement]:
    """`pixels` as large as fits into height x width at their own proportions, the rest being `fill`.

    padding: "center" leaves that rest on both sides, "bottom-right" puts the photo into the top left corner. With `grid` the
    proportions are those of the photo, and the placement is that of its pixels.
    """
    grid = grid or Grid.of(pixels)
    inside = _scaled(grid, min(height / grid.height, width / grid.width))
    corner = ((height - inside[0]) // 2, (width - inside[1]) // 2) if padding == "center" else (0, 0)
    return _place(pixels, grid, inside, corner, (height, width), fill, interpolation)


def stretch(
    pixels: Pixels, height: int, width: int, interpolation: Interpolation = "bilinear", grid: Grid | None = None
) -> tuple[Pixels, Placement]:
    """`pixels` at height x width, whatever their proportions. With `grid` the placement is that of the photo's pixels."""
    return _place(pixels, grid or Grid.of(pixels), (height, width), (0, 0), (height, width), 0, interpolation)


def fit(pixels: Pixels, max_side: int, multiple_of: int = 1, fill: int = 0) -> tuple[Pixels, Placement]:
    """`pixels` shrunk (never grown) until no side exceeds `max_side`, then padded right and bottom with `fill`.

    Padding goes up to the next multiples of `multiple_of`, past `max_side` where that is not one of them.
    """
    grid = Grid.of(pixels)
    inside = _scaled(grid, min(1.0, max_side / max(grid.height, grid.width)))
    padded = -(-inside[0] // multiple_of) * multiple_of, -(-inside[1] // multiple_of) * multiple_of
    return _place(pixels, grid, inside, (0, 0), padded, fill)


def spread(
    pixels: Pixels,
    scale: float,
    *,
    multiple_of: int,
    least: int,
    fill: tuple[int, int, int],
    grid: Grid,
    interpolation: Interpolation = "bilinear",
) -> tuple[Pixels, Placement]:
    """The whole photo at `scale` (canvas over photo) in the top left corner of a canvas of the colour `fill`.

    The canvas's sides are the next multiples of `multiple_of`, and at least `least`.
    """
    inside = _scaled(grid, scale)
    sides = [max(least, -(-side // multiple_of) * multiple_of) for side in inside]
    return _place(pixels, grid, inside, (0, 0), (sides[0], sides[1]), fill, interpolation)


def _scaled(grid: Grid, scale: float) -> Size:
    return max(1, round(grid.height * scale)), max(1, round(grid.width * scale))


def _place(
    pixels: Pixels,
    grid: Grid,
    inside: Size,
    corner: Size,
    shape: Size,
    fill: int | tuple[int, int, int],
    interpolation: Interpolation = "bilinear",
) -> tuple[Pixels, Placement]:
    """All of `pixels` at the size `inside` on a canvas of `shape`, `corner` rows and columns from its top left."""
    (height, width), (top, left) = inside, corner
    scale_x, scale_y = width / (grid.step * pixels.shape[1]), height / (grid.step * pixels.shape[0])
    canvas: Pixels = np.full((*shape, 3), fill, np.uint8)
    canvas[top : top + height, left : left + width] = resize(pixels, height, width, interpolation)
    return canvas, Placement(scale_x, scale_y, left - grid.left * scale_x, top - grid.top * scale_y)


def similarity(source: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """The rotation, uniform scale and shift [2, 3] that take points `source` [n, 2] closest to `target` [n, 2] in least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991: in the plane, with
    points as complex numbers about their means, rotation and scale are one quotient. Never mirrors.
    Raises ValueError when all points of `source` coincide.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    from_mean, to_mean = source.mean(axis=0), target.mean(axis=0)
    start, end = (source - from_mean) @ (1, 1j), (target - to_mean) @ (1, 1j)
    spread = np.vdot(start, start).real
    if not spread > 0:
        raise ValueError("all source points coincide: there is no scale or rotation to find")
    turn = np.vdot(start, end) / spread
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([linear, to_mean - linear @ from_mean])


def warp(pixels: Pixels, matrix: ArrayLike, height: int, width: int) -> Pixels:
    """The photo seen through `matrix` [2, 3] (photo -> output, on pixel centres) at height x width; black outside the photo.

    Bilinear as cv2.warpAffine. Along an axis that the matrix shrinks to half or less the photo is first averaged over areas of
    whole pixels, so that large faces do not alias. Raises numpy.linalg.LinAlgError when `matrix` flattens the plane.
    """
    forward = np.vstack([np.asarray(matrix, np.float64), (0, 0, 1)])
    inverse = np.linalg.inv(forward)
    steps = np.clip(1 / np.hypot(*forward[:2, :2]), 1, pixels.shape[1::-1]).astype(int)  # (x, y): photo pixels per output pixel
    if (steps > 1).any():
        pixels, corner = _seen(pixels, inverse, height, width)
        rows, columns = max(1, pixels.shape[0] // steps[1]), max(1, pixels.shape[1] // steps[0])
        scale = np.array([pixels.shape[1] / columns, pixels.shape[0] / rows])
        pixels = resize(pixels, rows, columns, "area")
        # a centre at i in the small picture lies at (i + 0.5) * scale - 0.5 in the crop, which begins at `corner` of the photo
        forward = forward @ np.array(
            [[scale[0], 0, scale[0] / 2 - 0.5 + corner[0]], [0, scale[1], scale[1] / 2 - 0.5 + corner[1]], [0, 0, 1]]
        )
    return np.asarray(cv2.warpAffine(pixels, forward[:2], (width, height), flags=cv2.INTER_LINEAR), np.uint8)


def _seen(pixels: Pixels, inverse: NDArray[np.float64], height: int, width: int) -> tuple[Pixels, NDArray[np.int_]]:
    """The part of the photo that the output shows, with one output pixel more on each side, and its corner (x, y)."""
    outline = inverse[:2] @ np.array([[-1, width, width, -1], [-1, -1, height, height], [1, 1, 1, 1]])
    bounds = np.array(pixels.shape[1::-1])
    low = np.clip(np.floor(outline.min(axis=1)).astype(int), 0, bounds - 1)
    high = np.clip(np.ceil(outline.max(axis=1)).astype(int), low + 1, bounds)
    return pixels[low[1] : high[1], low[0] : high[0]], low
