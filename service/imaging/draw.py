"""Boxes, captions and landmarks painted on a photo, readable on any background and at any size.

Lines and letters scale with the photo. Each coloured line lies between two dark ones, so that it shows on bright, dark and busy
grounds alike; captions are dark on plates of their mark's colour, which give way to the plates already placed.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.imaging import Pixels

Color = tuple[int, int, int]
Edges = tuple[int, int, int, int]
"""left, top, right, bottom: first column and row, and those after the last."""

_DARK: Final[Color] = (16, 16, 16)
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
_LONGEST_CAPTION: Final = 80  # characters
_PLATES_SHARE: Final = 0.4  # of the photo
_SHIFT: Final = 4  # bits of a pixel in the centres and radii given to cv2.circle
_OKLAB_TO_LMS: Final = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_LMS_TO_RGB: Final = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@dataclass(frozen=True)
class Mark:
    """One thing to show: `box` (x_min, y_min, x_max, y_max) and `points` in the photo's pixels, all finite.

    Marks of equal `color_index` look alike. Letters that Pillow's built-in font lacks appear without their accents or as "?".
    """

    box: tuple[float, float, float, float]
    caption: str
    color_index: int
    points: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class _Pen:
    """Sizes in pixels for one photo: the coloured line, the dark line on each side of it, the font and the space around it."""

    line: int
    rim: int
    font: ImageFont.FreeTypeFont
    padding: int


def draw(pixels: Pixels, marks: Sequence[Mark]) -> Pixels:
    """A copy of `pixels` with the marks on it, the most important first: they lie on top and choose where their captions go.

    Later captions are left out where they would hide earlier ones or the photo itself: their boxes and points stay.
    """
    painted = pixels.copy()
    pen = _pen(*pixels.shape[:2])
    for mark in reversed(marks):
        _paint_box(painted, _edges(mark.box, *pixels.shape[:2]), color(mark.color_index), pen)
    for mark in reversed(marks):
        _paint_points(painted, mark.points, color(mark.color_index), pen)
    _paint_captions(painted, marks, pen)
    return painted


@lru_cache(maxsize=1024)
def color(index: int) -> Color:
    """The colour (R, G, B) of class `index`: hues a golden angle apart, at three lightnesses on which dark letters can be read.

    In OKLCH (Ottosson, "A perceptual color space for image processing", 2020), where equal steps look equal.
    """
    return oklch((0.75, 0.62, 0.86)[index % 3], 0.17, math.tau * ((index * _GOLDEN + 0.08) % 1))


def oklch(lightness: float, chroma: float, hue: float) -> Color:
    """A colour (R, G, B) of sRGB by its lightness (0 to 1), chroma and hue (radians); what sRGB lacks is clipped."""
    lms = _OKLAB_TO_LMS @ (lightness, chroma * math.cos(hue), chroma * math.sin(hue))
    linear = np.clip(_LMS_TO_RGB @ lms**3, 0, 1)
    red, green, blue = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return round(red * 255), round(green * 255), round(blue * 255)


def _pen(height: int, width: int) -> _Pen:
    size = math.sqrt(height * width)
    line, letters = max(1, round(size / 280)), max(9, round(size / 40))
    return _Pen(line, max(1, round(line / 3)), _font(letters), max(1, round(letters / 5)))


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # with a size it is never the bitmap font


def _edges(box: tuple[float, float, float, float], height: int, width: int) -> Edges:
    """The box as whole pixels inside the picture, at least one in each direction."""
    left, right = _span(box[0], box[2], width)
    top, bottom = _span(box[1], box[3], height)
    return left, top, right, bottom


def _span(a: float, b: float, length: int) -> tuple[int, int]:
    low = int(min(max(min(a, b), 0), length - 1))
    return low, math.ceil(min(max(a, b, low + 1), length))


def _paint_box(pixels: Pixels, edges: Edges, tint: Color, pen: _Pen) -> None:
    left, top, right, bottom = edges
    rim = pen.rim
    _frame(pixels, (left - rim, top - rim, right + rim, bottom + rim), pen.line + 2 * rim, _DARK)
    _frame(pixels, edges, pen.line, tint)


def _frame(pixels: Pixels, edges: Edges, line: int, tint: Color) -> None:
    """Fill the outermost `line` pixels inside `edges`; what lies outside the picture is left out."""
    left, top, right, bottom = edges
    _fill(pixels, (left, top, right, min(top + line, bottom)), tint)
    _fill(pixels, (left, max(bottom - line, top), right, bottom), tint)
    _fill(pixels, (left, top, min(left + line, right), bottom), tint)
    _fill(pixels, (max(right - line, left), top, right, bottom), tint)


def _fill(pixels: Pixels, edges: Edges, tint: Color) -> None:
    left, top, right, bottom = edges
    cv2.rectangle(pixels, (left, top), (right - 1, bottom - 1), tint, cv2.FILLED)


def _paint_points(pixels: Pixels, points: Sequence[tuple[float, float]], tint: Color, pen: _Pen) -> None:
    height, width = pixels.shape[:2]
    radius = 1.5 * pen.line
    for x, y in points:
        if -width < x < 2 * width and -height < y < 2 * height:  # cv2 counts in 32 bits
            center = round((x - 0.5) * 2**_SHIFT), round((y - 0.5) * 2**_SHIFT)
            for reach, ink in ((radius + pen.rim, _DARK), (radius, tint)):
                cv2.circle(pixels, center, round(reach * 2**_SHIFT), ink, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _paint_captions(pixels: Pixels, marks: Sequence[Mark], pen: _Pen) -> None:
    height, width = pixels.shape[:2]
    taken: NDArray[np.int_] = np.empty((0, 4), int)
    plates: list[Pixels] = []
    room = _PLATES_SHARE * height * width
    for mark in marks:
        text = _shorten(_readable(mark.caption), pen.font, width - 2 * pen.padding)
        size = _plate_size(text, pen)
        area = size[0] * size[1]
        if not text or (plates and area > room):
            continue
        place, covered = _place(_edges(mark.box, height, width), size, taken, pen.rim, (height, width))
        if 4 * covered <= area:
            plates.append(_plate(text, size, color(mark.color_index), pen))
            taken = np.vstack([taken, place])
            room -= area
    for (left, top, right, bottom), plate in zip(reversed(taken), reversed(plates), strict=True):
        under = pixels[top:bottom, left:right]
        under[:] = plate[: under.shape[0], : under.shape[1]]


def _plate_size(text: str, pen: _Pen) -> tuple[int, int]:
    """Width and height."""
    return math.ceil(pen.font.getlength(text)) + 2 * pen.padding, sum(pen.font.getmetrics()) + pen.padding


def _plate(text: str, size: tuple[int, int], fill: Color, pen: _Pen) -> Pixels:
    picture = Image.new("RGB", size, fill)
    canvas = ImageDraw.Draw(picture)
    canvas.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=_DARK, width=pen.rim)
    baseline = pen.padding // 2 + pen.font.getmetrics()[0]
    canvas.text((pen.padding, baseline), text, fill=_DARK, font=pen.font, anchor="ls")
    return np.asarray(picture)


def _place(edges: Edges, size: tuple[int, int], taken: NDArray[np.int_], rim: int, shape: tuple[int, int]) -> tuple[Edges, int]:
    """Where a plate of `size` (width, height) goes, and how many pixels of the plates `taken` [n, 4] it hides there.

    The first place by the box `edges`, moved inside the picture, that hides none; failing that the one that hides the least.
    """
    best, least = (0, 0, 0, 0), size[0] * size[1] * len(taken) + 1
    for x, y in _places(edges, size, rim):
        left, top = max(0, min(x, shape[1] - size[0])), max(0, min(y, shape[0] - size[1]))
        right, bottom = left + size[0], top + size[1]
        shared = np.minimum(taken[:, 2:], (right, bottom)) - np.maximum(taken[:, :2], (left, top))
        covered = int(np.maximum(shared, 0).prod(axis=1).sum())
        if covered < least:
            best, least = (left, top, right, bottom), covered
        if covered == 0:
            break
    return best, least


def _places(edges: Edges, size: tuple[int, int], rim: int) -> Iterator[tuple[int, int]]:
    """Corners (x, y) for a plate, best first: on top of the box, down inside its left edge, below it; then along its right edge."""
    left, top, right, bottom = edges
    width, height = size
    for x in (left - rim, right + rim - width):
        yield x, top - height
        yield from ((x, y) for y in range(top - rim, max(top, bottom - height) + 1, height))
        yield x, bottom


def _readable(caption: str) -> str:
    """`caption` in the printable ASCII that the font has: accents dropped, white space to spaces, anything else to "?"."""
    plain = unicodedata.normalize("NFKD", caption[:_LONGEST_CAPTION])
    letters = (" " if letter.isspace() else letter for letter in plain if not unicodedata.combining(letter))
    return "".join(letter if " " <= letter <= "~" else "?" for letter in letters).strip()


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, or as much of its start as fits into `width` pixels with an ellipsis; empty where not even one letter does."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…" if text else ""
