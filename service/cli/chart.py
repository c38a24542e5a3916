"""The chart of a calibration: the similarities of both kinds of pairs, and the ROC beside it, as one SVG or PNG.

The picture is laid out once, as lines, areas and texts in points; two small functions put them down in either format.
"""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from service.tasks.calibration import RULE_OF_THREE, Floats, Scores, roc

WIDTH, HEIGHT = 1000, 440
SCALE: Final = 2
"""Pixels of a PNG per point."""
INK, FAINT, SHADE, GENUINE, IMPOSTOR, THRESHOLD = "#222222", "#d9d9d9", "#f1f1f1", "#1f77b4", "#d95f02", "#555555"
BINS: Final = 60

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]
_PILLOW_ANCHOR: Final = {"start": "ls", "middle": "ms", "end": "rs"}


@dataclass(frozen=True)
class Line:
    points: Sequence[Point]
    colour: str = INK
    width: float = 1.0


@dataclass(frozen=True)
class Area:
    """A filled polygon, `opacity` 0..1."""

    points: Sequence[Point]
    colour: str
    opacity: float = 1.0


@dataclass(frozen=True)
class Text:
    """`at` is the left end, middle or right end of the baseline; `upright` text reads from bottom to top."""

    at: Point
    text: str
    size: float = 12
    anchor: Anchor = "start"
    colour: str = INK
    upright: bool = False


Mark = Line | Area | Text


@dataclass(frozen=True)
class Axes:
    """A plot's place on the picture, and the values at its left, right, bottom and top edges."""

    left: float
    right: float
    values: tuple[float, float]
    heights: tuple[float, float]
    top: float = 60
    bottom: float = 375

    def x(self, value: float) -> float:
        low, high = self.values
        return self.left + (self.right - self.left) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.heights
        return self.bottom - (self.bottom - self.top) * (value - low) / (high - low)

    def frame(self, title: str, across: str, up: str) -> list[Mark]:
        middle = (self.left + self.right) / 2
        return [
            Line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)]),
            Text((self.left, self.top - 34), title, size=15),
            Text((middle, self.bottom + 40), across, anchor="middle"),
            Text((self.left - 46, (self.top + self.bottom) / 2), up, anchor="middle", upright=True),
        ]

    def across(self, ticks: Sequence[tuple[float, str]]) -> Iterator[Mark]:
        for value, text in ticks:
            yield Line([(self.x(value), self.top), (self.x(value), self.bottom)], FAINT, 0.7)
            yield Text((self.x(value), self.bottom + 18), text, size=11, anchor="middle")

    def up(self, ticks: Sequence[tuple[float, str]]) -> Iterator[Mark]:
        for value, text in ticks:
            yield Line([(self.left, self.y(value)), (self.right, self.y(value))], FAINT, 0.7)
            yield Text((self.left - 7, self.y(value) + 4), text, size=11, anchor="end")


def draw_chart(scores: Scores, threshold: float, kind: Literal["svg", "png"]) -> bytes:
    """The chart of pairs of both kinds, `threshold` marked: an SVG of WIDTH x HEIGHT, or a PNG with SCALE times as many pixels."""
    marks = [*_histograms(scores, threshold), *_curve(scores, threshold)]
    return _svg(marks) if kind == "svg" else _png(marks)


def _histograms(scores: Scores, threshold: float) -> Iterator[Mark]:
    low = math.floor(min(scores.score.min(), threshold) * 10) / 10
    high = math.ceil(max(scores.score.max(), threshold) * 10) / 10
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(part, edges)[0] / len(part) for part in (scores.impostor, scores.genuine)]
    tallest = max(float(part.max()) for part in counts)
    axes = Axes(70, 480, (low, high), (0, tallest * 1.05))
    step = 0.2 if high - low > 0.8 else 0.1
    ticks = np.arange(math.ceil(low / step - 1e-9) * step, high + 1e-9, step)
    yield from axes.across([(float(tick), f"{tick + 0:.1f}".replace("-0.0", "0.0")) for tick in ticks])
    yield from axes.up([(t / 100, f"{t:g} %") for t in _round_steps(tallest * 100)])
    for part, colour in zip(counts, (IMPOSTOR, GENUINE), strict=True):
        outline = _steps(axes, edges, part)
        yield Area([(axes.x(low), axes.bottom), *outline, (axes.x(high), axes.bottom)], colour, 0.4)
        yield Line(outline, colour, 1.2)
    yield from axes.frame("Similarities of pairs", "similarity (cosine)", "share of the pairs of its kind")
    yield Line([(axes.x(threshold), axes.top - 6), (axes.x(threshold), axes.bottom)], THRESHOLD, 1.4)
    side: Anchor = "start" if axes.x(threshold) < (axes.left + axes.right) / 2 else "end"
    yield Text(
        (axes.x(threshold) + (5 if side == "start" else -5), axes.top + 4), f"threshold {threshold:.4g}", 11, side, THRESHOLD
    )
    yield from _legend(
        axes.left, [(f"one person ({len(scores.genuine):,})", GENUINE), (f"two people ({len(scores.impostor):,})", IMPOSTOR)]
    )


def _curve(scores: Scores, threshold: float) -> Iterator[Mark]:
    _, fmr, fnmr = roc(scores)
    decades = max(2, math.ceil(math.log10(len(scores.impostor))))
    floor = 10.0**-decades
    matched = 1 - fnmr
    bottom = _nice_floor(float(matched[fmr >= min(1e-3, 1 / len(scores.impostor))].min(initial=1.0)))
    bottom = min(bottom, _nice_floor(float(np.mean(scores.genuine >= threshold))))
    axes = Axes(570, 975, (-decades, 0), (bottom, 1))
    unresolved = max(floor, min(1.0, RULE_OF_THREE / len(scores.impostor)))
    right = axes.x(math.log10(unresolved))
    yield Area([(axes.left, axes.top), (right, axes.top), (right, axes.bottom), (axes.left, axes.bottom)], SHADE)
    yield from axes.across([(-power, f"1e-{power}" if power else "1") for power in range(decades, -1, -1)])
    yield from axes.up([(tick, f"{100 * tick:.4g} %") for tick in np.linspace(bottom, 1, 6)])
    logs = np.log10(np.maximum(fmr, floor))
    points = [(axes.x(x), axes.y(max(y, bottom))) for x, y in zip(logs.tolist(), matched.tolist(), strict=True)]
    yield Line(_thinned(points), GENUINE, 2)
    here = max(float(np.mean(scores.impostor >= threshold)), floor), float(np.mean(scores.genuine >= threshold))
    x, y = axes.x(math.log10(here[0])), axes.y(here[1])
    yield Area([(x + 4.5 * math.cos(turn), y + 4.5 * math.sin(turn)) for turn in np.linspace(0, 2 * math.pi, 24)], THRESHOLD)
    above = y > axes.bottom - 40
    yield Text((min(x + 8, axes.right - 95), y - 10 if above else y + 18), f"threshold {threshold:.4g}", 11, colour=THRESHOLD)
    yield from axes.frame("ROC", "false-match rate (log scale)", "pairs of one person that match")
    if right > axes.left:
        yield Text(
            (axes.left, axes.top - 14), f"grey: too few pairs of two people to tell ({RULE_OF_THREE} / pairs)", 11, colour=THRESHOLD
        )


def _legend(left: float, entries: Sequence[tuple[str, str]]) -> Iterator[Mark]:
    for place, (text, colour) in enumerate(entries):
        x = left + 190 * place
        yield Area([(x, 37), (x + 12, 37), (x + 12, 47), (x, 47)], colour, 0.6)
        yield Text((x + 17, 46), text, 11)


def _steps(axes: Axes, edges: Floats, heights: Floats) -> list[Point]:
    tops = [axes.y(float(height)) for height in heights]
    return [(axes.x(float(edge)), top) for a, b, top in zip(edges, edges[1:], tops, strict=False) for edge in (a, b)]


def _round_steps(most: float) -> list[float]:
    """About five round values from 0 to `most`."""
    rough = most / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * place for place in range(int(most / step) + 1)]


def _nice_floor(lowest: float) -> float:
    return next(floor for floor in (0.99, 0.95, 0.9, 0.8, 0.5, 0.0) if floor <= max(0.0, lowest))


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Points at least half a point apart: a ROC may have a million."""
    kept = [points[0]]
    for point in points[1:-1]:
        if abs(point[0] - kept[-1][0]) + abs(point[1] - kept[-1][1]) >= 0.5:
            kept += [(point[0], kept[-1][1]), point]
    return [*kept, (points[-1][0], kept[-1][1]), points[-1]]


def _svg(marks: Sequence[Mark]) -> bytes:
    body = "\n".join(_element(mark) for mark in marks)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'{head} font-family="sans-serif">\n<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'.encode()


def _element(mark: Mark) -> str:
    if isinstance(mark, Text):
        x, y = mark.at
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if mark.upright else ""
        place = f'x="{x:.1f}" y="{y:.1f}" font-size="{mark.size:g}" text-anchor="{mark.anchor}"'
        return f'<text {place} fill="{mark.colour}"{turn}>{escape(mark.text)}</text>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
    if isinstance(mark, Area):
        return f'<polygon points="{points}" fill="{mark.colour}" fill-opacity="{mark.opacity:g}"/>'
    return f'<polyline points="{points}" fill="none" stroke="{mark.colour}" stroke-width="{mark.width:g}"/>'


def _png(marks: Sequence[Mark]) -> bytes:
    picture = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "#ffffff")
    for mark in marks:
        if isinstance(mark, Text):
            _write(picture, mark)
        else:
            points = [(x * SCALE, y * SCALE) for x, y in mark.points]
            if isinstance(mark, Area):
                layer = Image.new("L", picture.size, 0)
                ImageDraw.Draw(layer).polygon(points, fill=round(255 * mark.opacity))
                picture.paste(mark.colour, (0, 0), layer)
            else:
                ImageDraw.Draw(picture).line(points, mark.colour, max(1, round(mark.width * SCALE)), joint="curve")
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return data.getvalue()


def _write(picture: Image.Image, mark: Text) -> None:
    font = cast(ImageFont.FreeTypeFont, ImageFont.load_default(mark.size * SCALE))
    x, y = (round(part * SCALE) for part in mark.at)
    if not mark.upright:
        ImageDraw.Draw(picture).text((x, y), mark.text, mark.colour, font, _PILLOW_ANCHOR[mark.anchor])
        return
    length, height = math.ceil(font.getlength(mark.text)), math.ceil(mark.size * SCALE * 1.5)
    layer = Image.new("L", (length, height), 0)
    ImageDraw.Draw(layer).text((0, height * 2 // 3), mark.text, 255, font, "ls")
    turned = layer.transpose(Image.Transpose.ROTATE_90)
    picture.paste(mark.colour, (x - height * 2 // 3, y - length // 2), turned)
