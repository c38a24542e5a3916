"""What serve.py measured as tables, bars and plots: medians over the rounds, ratios always within one round."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from plots import bars

DEFAULT, FLOAT = "vision-service", "vision-service, float"
OURS: Final = (DEFAULT, FLOAT)


@dataclass(frozen=True)
class Turn:
    """One server on one task, photo and number of connections in one round. Times in ms; rates in requests a second.

    `limit` is the in-process rate of the float graph measured just before, `limit_int8` that of the int8 graph (ours only), and
    `alone_ms` what decoding and the float graph take one caller.
    """

    round: int
    server: str
    task: str
    photo: str
    connections: int
    rate: float
    p50: float
    p90: float
    p99: float
    errors: int
    limit: float
    limit_int8: float | None
    alone_ms: float


@dataclass(frozen=True)
class Bar:
    """A figure that was promised: `value` is None where it was not measured."""

    what: str
    value: float | None
    bar: float
    at_most: bool = False

    @property
    def held(self) -> str:
        if self.value is None:
            return "not measured"
        return "yes" if (self.value <= self.bar if self.at_most else self.value >= self.bar) else "no"

    def row(self) -> str:
        value = "" if self.value is None else f"{self.value:.3g}"
        return f"| {self.what} | {value} | {'at most' if self.at_most else 'at least'} {self.bar:g} | {self.held} |"


def median(values: Iterable[float | None]) -> float | None:
    """The median of those that are not None; None when there is none."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def promised(turns: Sequence[Turn]) -> list[Bar]:
    """The bars, each from the rounds in which all that it needs was measured."""

    def over(server: str, task: str, photo: str, connections: int, value: Callable[[Turn], float | None]) -> float | None:
        where = (server, task, photo, connections)
        return median(value(t) for t in turns if (t.server, t.task, t.photo, t.connections) == where)

    def of_limit(turn: Turn) -> float:
        return turn.rate / turn.limit

    def of_int8_limit(turn: Turn) -> float | None:
        return turn.rate / turn.limit_int8 if turn.limit_int8 else None

    def of_best_peer(turn: Turn) -> float | None:
        same = (turn.round, turn.task, turn.photo, turn.connections)
        peers = [t.rate for t in turns if t.server not in OURS and (t.round, t.task, t.photo, t.connections) == same]
        return turn.rate / max(peers) if peers else None

    def spread(turn: Turn) -> float:
        return turn.p99 / turn.p50

    small = ("classify", "small")
    return [
        Bar("/classify float, 8 connections, of the in-process limit", over(FLOAT, *small, 8, of_limit), 0.97),
        Bar("/classify float, 32 connections, of the in-process limit", over(FLOAT, *small, 32, of_limit), 0.95),
        Bar("/classify float, 8 connections, of the best peer", over(FLOAT, *small, 8, of_best_peer), 1.05),
        Bar("/classify float, 32 connections, of the best peer", over(FLOAT, *small, 32, of_best_peer), 1.05),
        Bar("/classify defaults, 8 connections, of the int8 limit", over(DEFAULT, *small, 8, of_int8_limit), 0.95),
        Bar("/classify defaults, 8 connections, of the best peer", over(DEFAULT, *small, 8, of_best_peer), 1.5),
        Bar("/detect defaults, 8 connections, of the best peer", over(DEFAULT, "detect", "small", 8, of_best_peer), 1.5),
        Bar("/classify defaults, 12 MP, 8 connections, of the best peer", over(DEFAULT, "classify", "large", 8, of_best_peer), 3),
        Bar("/classify defaults, p99 / p50 at 8 connections", over(DEFAULT, *small, 8, spread), 1.5, at_most=True),
        Bar("/classify defaults, p99 / p50 at 32 connections", over(DEFAULT, *small, 32, spread), 1.6, at_most=True),
        Bar("/classify float, p99 / p50 at 8 connections", over(FLOAT, *small, 8, spread), 1.5, at_most=True),
        Bar("/classify float, p99 / p50 at 32 connections", over(FLOAT, *small, 32, spread), 1.6, at_most=True),
        Bar(
            "/classify float, one request alone: ms over decode + model",
            over(FLOAT, *small, 1, lambda t: t.p50 - t.alone_ms),
            1.5,
            True,
        ),
    ]


def as_markdown(turns: Sequence[Turn], about: dict[str, Any]) -> str:
    lines = [f"{about['machine']}; medians of {about['rounds']} rounds, {about['seconds']:g} s or more a measurement.", ""]
    for task, photo in sorted({(t.task, t.photo) for t in turns}):
        lines += _table(task, photo, [t for t in turns if (t.task, t.photo) == (task, photo)])
    lines += [f"Left out: {name}: {reason}" for name, reason in about["absent"].items()]
    lines += ["", "| what | measured | bar | held |", "| --- | --- | --- | --- |", *(bar.row() for bar in promised(turns)), ""]
    return "\n".join(lines)


def as_plots(turns: Sequence[Turn]) -> dict[str, str]:
    """An SVG by `task-photo`: each server's share of the in-process limit at each number of connections."""
    plots = {}
    for task, photo in sorted({(t.task, t.photo) for t in turns}):
        here = [t for t in turns if (t.task, t.photo) == (task, photo)]
        groups: dict[str, dict[str, float]] = {t.server: {} for t in here}
        for (server, connections), same in _grouped(here):
            groups[server][f"{connections} connections"] = statistics.median(t.rate / t.limit for t in same)
        title = f"/{task}, {'0.3' if photo == 'small' else '12'} megapixel photo: requests a second"
        plots[f"{task}-{photo}"] = bars(title, groups, "share of the float in-process limit", line=1.0)
    return plots


def _table(task: str, photo: str, turns: Sequence[Turn]) -> list[str]:
    limits = [statistics.median(t.limit for t in turns), median(t.limit_int8 for t in turns)]
    said = f"{limits[0]:.1f}/s float" + (f", {limits[1]:.1f}/s int8 with reduced decoding" if limits[1] else "")
    head = "| connections | server | requests/s | of the float limit | p50 ms | p90 ms | p99 ms | errors |"
    lines = [f"### /{task}, {photo} photo (in-process limit {said})", "", head, "| --- " * 8 + "|"]
    ranked = sorted(_grouped(turns), key=lambda entry: (entry[0][1], -statistics.median(t.rate for t in entry[1])))
    for (server, connections), same in ranked:
        figures = [
            statistics.median(values)
            for values in zip(*((t.rate, t.rate / t.limit, t.p50, t.p90, t.p99) for t in same), strict=True)
        ]
        rate, share, *times = figures
        columns = [f"{rate:.1f}", f"{share:.2f}", *(f"{value:.1f}" for value in times), str(sum(t.errors for t in same))]
        lines.append(f"| {connections} | {server} | {' | '.join(columns)} |")
    return [*lines, ""]


def _grouped(turns: Sequence[Turn]) -> list[tuple[tuple[str, int], list[Turn]]]:
    groups: dict[tuple[str, int], list[Turn]] = {}
    for turn in turns:
        groups.setdefault((turn.server, turn.connections), []).append(turn)
    return list(groups.items())
