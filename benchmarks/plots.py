"""Plots as SVG, written by hand: bars in groups, and one line. So few marks need no plotting library."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

COLOURS: Final = ("#0b7285", "#e8590c", "#868e96", "#5f3dc4")
LABELS, WIDTH, BAR = 190, 760, 11  # pixels: room for names, of the whole picture, height of one bar


def bars(title: str, groups: Mapping[str, Mapping[str, float]], unit: str, line: float | None = None) -> str:
    """Horizontal bars: one group a name, one bar a series; `line` marks one value. Missing series leave their place free."""
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    most = max([line or 0.0, *(value for group in groups.values() for value in group.values())]) * 1.1 or 1.0
    scale = (WIDTH - LABELS - 60) / most
    step = BAR * len(series) + 9
    bottom = 56 + step * len(groups)
    marks = [_text(LABELS + 120 * i + 14, 40, name) + _rect(LABELS + 120 * i, 31, 10, 10, i) for i, name in enumerate(series)]
    for row, (name, group) in enumerate(groups.items()):
        top = 56 + row * step
        marks.append(_text(LABELS - 8, top + step / 2 - 1, name, "end"))
        for i, key in enumerate(series):
            if key in group:
                marks.append(_rect(LABELS, top + i * BAR, group[key] * scale, BAR - 1, i))
                marks.append(_text(LABELS + group[key] * scale + 4, top + i * BAR + 9, f"{group[key]:.3g}", size=9))
    if line is not None:
        marks.append(f'<path d="M{LABELS + line * scale:.1f} 50V{bottom}" stroke="#c92a2a" stroke-dasharray="4 3"/>')
    return _picture(f"{title} ({unit})", marks, bottom + 8)


def curve(title: str, points: Sequence[tuple[float, float]], x_unit: str, y_unit: str, line: float | None = None) -> str:
    """One line through `points`, both axes from 0; `line` marks a height."""
    right = max(x for x, _ in points) or 1.0
    most = max([line or 0.0, *(y for _, y in points)]) * 1.1 or 1.0
    left, top, width, height = 70, 50, WIDTH - 100, 260

    def place(x: float, y: float) -> str:
        return f"{left + width * x / right:.1f} {top + height * (1 - y / most):.1f}"

    marks = [f'<path d="M{left} {top}V{top + height}H{left + width}" stroke="#495057" fill="none"/>']
    for i in range(5):
        marks.append(_text(left - 8, top + height * (1 - i / 4) + 4, f"{most * i / 4:.3g}", "end", 10))
        marks.append(_text(left + width * i / 4, top + height + 16, f"{right * i / 4:,.0f}", "middle", 10))
    marks.append(f'<path d="M{"L".join(place(*point) for point in points)}" stroke="{COLOURS[0]}" stroke-width="1.5" fill="none"/>')
    if line is not None:
        marks.append(f'<path d="M{place(0, line)}L{place(right, line)}" stroke="#c92a2a" stroke-dasharray="4 3"/>')
    return _picture(f"{title} ({y_unit}, against {x_unit})", marks, top + height + 30)


def _picture(title: str, marks: Sequence[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif" role="img">'
    paper = f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>'
    return "\n".join([head, paper, _text(12, 20, title, size=14), *marks, "</svg>\n"])


def _rect(x: float, y: float, width: float, height: float, colour: int) -> str:
    fill = COLOURS[colour % len(COLOURS)]
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#212529">{escape(text)}</text>'
