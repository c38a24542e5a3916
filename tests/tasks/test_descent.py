"""L-BFGS and Adam on functions whose minima are known."""

from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.tasks.descent import Evaluate, Point, adam, lbfgs

Array = NDArray[Any]
EVERYWHERE = (-np.inf, np.inf)


def rosenbrock(x: Array) -> Point:
    """The banana valley in n dimensions; its minimum 0 lies at (1, ..., 1)."""
    a, b = x[:-1], x[1:]
    gradient = np.zeros_like(x)
    gradient[:-1] += -400 * a * (b - a**2) - 2 * (1 - a)
    gradient[1:] += 200 * (b - a**2)
    return Point(x, float((100 * (b - a**2) ** 2 + (1 - a) ** 2).sum()), gradient)


def quadratic(matrix: Array, target: Array) -> Evaluate:
    def evaluate(x: Array) -> Point:
        away = x - target
        return Point(x, float(away @ matrix @ away / 2), matrix @ away)

    return evaluate


def hill(size: int, condition: float, seed: int = 0) -> Array:
    """A symmetric matrix of that condition number."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    return turn @ np.diag(np.geomspace(1, condition, size)) @ turn.T


@pytest.mark.parametrize("size", [2, 10, 100])
def test_lbfgs_finds_the_end_of_the_banana_valley(size: int) -> None:
    start = np.tile([-1.2, 1.0], size // 2)
    points = list(islice(lbfgs(rosenbrock, start, EVERYWHERE, 0.1), 800))
    assert np.abs(points[-1].x - 1).max() < 1e-5
    assert all(later.value < earlier.value for earlier, later in pairwise(points))


def test_lbfgs_solves_a_quadratic_far_faster_than_the_gradient_alone() -> None:
    target = np.arange(30.0)
    evaluate = quadratic(hill(30, 1e3), target)
    found, plain = (list(islice(lbfgs(evaluate, np.zeros(30), EVERYWHERE, 1.0, memory=memory), 200))[-1] for memory in (10, 1))
    assert np.abs(found.x - target).max() < 1e-3
    assert found.value < plain.value / 10


def test_a_step_is_never_uphill_even_where_the_first_would_be() -> None:
    steep = quadratic(np.diag([1e6, 1.0]), np.zeros(2))
    points = list(islice(lbfgs(steep, np.array([1.0, 1.0]), EVERYWHERE, 1e4), 60))
    assert points[0].value < steep(np.array([1.0, 1.0])).value
    assert all(later.value < earlier.value for earlier, later in pairwise(points))


def test_lbfgs_stops_at_the_minimum_within_bounds() -> None:
    target = np.array([-50.0, 300.0, 100.0, 255.0])
    points = list(islice(lbfgs(quadratic(hill(4, 20), target), np.full(4, 128.0), (0, 255), 1.0), 200))
    assert all(((point.x >= 0) & (point.x <= 255)).all() for point in points)
    last = points[-1]
    free = (last.x > 0) & (last.x < 255)
    assert len(points) < 200, "it ends where nothing is left to gain"
    assert np.abs(last.gradient[free]).max(initial=0) < 1e-4
    assert (last.gradient[last.x <= 0] >= -1e-9).all()
    assert (last.gradient[last.x >= 255] <= 1e-9).all()


def test_a_start_beyond_the_bounds_is_brought_within() -> None:
    first = next(lbfgs(quadratic(np.eye(2), np.array([10.0, 20.0])), np.array([-40.0, 900.0]), (0, 255), 1.0))
    assert ((first.x >= 0) & (first.x <= 255)).all()


def test_at_the_minimum_there_is_no_point_to_come() -> None:
    at = np.array([3.0, 4.0])
    assert list(lbfgs(quadratic(np.eye(2), at), at, EVERYWHERE, 1.0)) == []
    assert list(adam(quadratic(np.eye(2), at), at, EVERYWHERE, 1.0)) == []


def test_values_that_are_not_finite_are_stepped_back_from() -> None:
    def walled(x: Array) -> Point:
        return Point(x, float("nan") if x[0] > 2 else float(np.log(3 - x[0])), np.array([-1 / (3 - x[0])]))

    points = list(islice(lbfgs(walled, np.array([0.0]), EVERYWHERE, 50.0), 5))
    assert points
    assert all(point.x[0] <= 2 for point in points)


def test_lbfgs_is_asked_for_one_evaluation_a_step_mostly() -> None:
    calls = []

    def counted(x: Array) -> Point:
        calls.append(1)
        return rosenbrock(x)

    points = list(islice(lbfgs(counted, np.tile([-1.2, 1.0], 50), EVERYWHERE, 0.1), 100))
    assert len(points) == 100
    assert len(calls) < 140


def test_adam_comes_near_the_minimum_and_moves_by_its_rate() -> None:
    evaluate = quadratic(hill(10, 50), np.full(10, 40.0))
    points = list(islice(adam(evaluate, np.zeros(10), (0, 255), 1.0), 400))
    assert np.allclose(points[0].x[points[0].x > 0], 1.0)
    assert points[-1].value < evaluate(np.zeros(10)).value / 1e4
    assert all(((point.x >= 0) & (point.x <= 255)).all() for point in points)


def test_float32_stays_float32() -> None:
    evaluate = quadratic(np.eye(3, dtype=np.float32), np.ones(3, np.float32))
    for way in (lbfgs(evaluate, np.zeros(3, np.float32), (0, 255), 0.5), adam(evaluate, np.zeros(3, np.float32), (0, 255), 0.5)):
        assert next(way).x.dtype == np.float32
