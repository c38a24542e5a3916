"""Minimise a function of very many numbers that lie within bounds, given its gradient: L-BFGS that never climbs, and Adam.

Both are generators of accepted points, endless but where nothing is left to gain, and cost nothing once they are closed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[Any]
"""float32 or float64 [n]."""

MEMORY = 10
"""Pairs of steps and changes of the gradient that L-BFGS keeps: two vectors each."""
SUFFICIENT = 1e-4
"""The share of the decrease that the gradient promises which a step must bring (Armijo)."""
TRIALS = 12
"""Step lengths that are tried before a direction is given up."""
CURVED = 1e-8
"""Pairs whose curvature s.y / (|s| |y|) is below this are not kept: they would spoil the estimate of the second derivative."""


@dataclass(frozen=True, eq=False)
class Point:
    """Where a function was evaluated: `value` there, its `gradient` [n], and whatever `details` the function tells."""

    x: Vector
    value: float
    gradient: Vector
    details: Any = None


Evaluate = Callable[[Vector], Point]
Bounds = tuple[float, float]


def lbfgs(evaluate: Evaluate, start: Vector, bounds: Bounds, first: float, memory: int = MEMORY) -> Iterator[Point]:
    """Points of falling value from `start` on, all within `bounds`; ends where no step along the gradient lowers the value.

    first: root mean square of the changes of the first trial step. Each point usually costs one evaluation.

    Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989: the two-loop recursion; numbers at a
    bound that the gradient pushes against stay there, and a step is cut off at the bounds (Bertsekas 1982).
    """
    point = evaluate(np.clip(start, *bounds))
    pairs: deque[tuple[Vector, Vector, float]] = deque(maxlen=memory)
    while True:
        free = _free(point, bounds)
        slope = point.gradient * free
        size = _norm(slope)
        if not size > 0:
            return
        direction = -_two_loops(slope, pairs) * free
        if not (pairs and np.dot(direction, slope) < 0):
            pairs.clear()
            direction = slope * np.asarray(-first * len(slope) ** 0.5 / size, slope.dtype)
        found = _search(evaluate, point, direction, bounds)
        if found is None:
            if not pairs:
                return
            pairs.clear()
            continue
        step, change = found.x - point.x, found.gradient - point.gradient
        curvature = float(np.dot(step, change))
        if curvature > CURVED * _norm(step) * _norm(change):
            pairs.append((step, change, curvature))
        point = found
        yield point


def adam(
    evaluate: Evaluate, start: Vector, bounds: Bounds, rate: float, decay: tuple[float, float] = (0.9, 0.999)
) -> Iterator[Point]:
    """Points from `start` on, each number moving by about `rate` a step, cut off at the bounds; values may rise at times.

    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
    """
    point = evaluate(np.clip(start, *bounds))
    mean, square = np.zeros_like(point.x), np.zeros_like(point.x)
    forget, forget_square = decay
    count = 0
    while point.gradient.any():
        count += 1
        mean += (1 - forget) * (point.gradient - mean)
        square += (1 - forget_square) * (point.gradient**2 - square)
        deviation = np.sqrt(square / (1 - forget_square**count))
        move = (mean / (1 - forget**count)) / (deviation + np.finfo(deviation.dtype).tiny)
        point = evaluate(np.clip(point.x - np.asarray(rate, move.dtype) * move, *bounds))
        yield point


def _free(point: Point, bounds: Bounds) -> NDArray[np.bool_]:
    """The numbers that may move: all but those at a bound that descending would leave."""
    low, high = bounds
    return ~(((point.x <= low) & (point.gradient > 0)) | ((point.x >= high) & (point.gradient < 0)))


def _two_loops(gradient: Vector, pairs: deque[tuple[Vector, Vector, float]]) -> Vector:
    """The inverse of the estimated second derivative times `gradient`."""
    found = gradient.copy()
    shares = []
    for step, change, curvature in reversed(pairs):
        share = np.dot(step, found) / curvature
        found -= share * change
        shares.append(share)
    if pairs:
        _, change, curvature = pairs[-1]
        found *= curvature / np.dot(change, change)
    for (step, change, curvature), share in zip(pairs, reversed(shares), strict=True):
        found += (share - np.dot(change, found) / curvature) * step
    return found


def _search(evaluate: Evaluate, point: Point, direction: Vector, bounds: Bounds) -> Point | None:
    """The first point along `direction` that is low enough; None after TRIALS that were not.

    A length that fails is followed by the lowest point of the parabola through what is known, within a tenth and a half of it.
    """
    length = 1.0
    for _ in range(TRIALS):
        x = np.clip(point.x + np.asarray(length, point.x.dtype) * direction, *bounds)
        promised = float(np.dot(point.gradient, x - point.x))
        if not promised < 0:
            return None
        trial = evaluate(x)
        if trial.value < point.value and trial.value <= point.value + SUFFICIENT * promised:
            return trial
        bend = trial.value - point.value - promised
        length *= min(0.5, max(0.1, -promised / (2 * bend))) if np.isfinite(bend) and bend > 0 else 0.1
    return None


def _norm(vector: Vector) -> float:
    return float(np.sqrt(np.dot(vector, vector)))
