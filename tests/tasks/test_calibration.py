"""Error rates, thresholds and intervals on similarities made up by hand, whose answers can be counted."""

import math

import numpy as np
import pytest

from service.tasks import calibration
from service.tasks.calibration import Scores


def scores(genuine: list[float], impostor: list[float]) -> Scores:
    """Every pair of people of its own."""
    people = [(n, n) for n in range(len(genuine))] + [(1000 + 2 * n, 1001 + 2 * n) for n in range(len(impostor))]
    same = [True] * len(genuine) + [False] * len(impostor)
    return Scores(np.array([*genuine, *impostor], np.float64), np.array(same), np.array(people, np.intp))


MIXED = scores([0.3, 0.5, 0.7, 0.9], [0.0, 0.1, 0.2, 0.4, 0.5])


def test_a_similarity_at_the_threshold_matches() -> None:
    assert calibration.false_matches(MIXED, 0.5) == 1
    assert calibration.false_non_matches(MIXED, 0.5) == 1
    assert calibration.accuracy_at(MIXED, 0.5) == pytest.approx(7 / 9)


def test_best_threshold_lies_between_the_pairs_that_it_parts() -> None:
    best = calibration.best_threshold(MIXED)
    assert calibration.accuracy_at(MIXED, best) == max(calibration.accuracy_at(MIXED, t) for t in np.linspace(-1, 1, 2001))
    assert best == pytest.approx(0.6)


def test_area_under_roc_counts_ties_half() -> None:
    pairs = [(g > i) + 0.5 * (g == i) for g in MIXED.genuine for i in MIXED.impostor]
    assert calibration.area_under_roc(MIXED) == pytest.approx(np.mean(pairs))


def test_roc_runs_from_nothing_to_everything() -> None:
    thresholds, fmr, fnmr = calibration.roc(MIXED)
    assert (np.diff(thresholds) < 0).all()
    assert (np.diff(fmr) >= 0).all()
    assert (np.diff(fnmr) <= 0).all()
    assert (fmr[0], fnmr[0], fmr[-1], fnmr[-1]) == (0, 1, 1, 0)


@pytest.mark.parametrize(
    ("genuine", "impostor", "rate"),
    [([0.8, 0.9], [0.1, 0.2], 0.0), ([0.1, 0.9], [0.2, 0.05], 0.5), ([0.1, 0.2], [0.8, 0.9], 1.0)],
)
def test_equal_error_rate(genuine: list[float], impostor: list[float], rate: float) -> None:
    assert calibration.equal_error_rate(scores(genuine, impostor)) == pytest.approx(rate)


def test_decidability_is_the_distance_of_the_means_in_spreads() -> None:
    assert calibration.decidability(scores([0.6, 0.8], [0.0, 0.2])) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("events", "trials", "low", "high"),
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (10, 10, 0.72247, 1.0), (1, 790, 0.000224, 0.00713)],
)
def test_wilson_interval(events: int, trials: int, low: float, high: float) -> None:
    assert calibration.wilson(events, trials) == pytest.approx((low, high), abs=1e-5)


def test_interval_over_people_is_wider_where_one_person_makes_all_mistakes() -> None:
    people = np.array([(n, n) for n in range(10) for _ in range(20)] + [(0, 1)], np.intp)
    score = np.array([0.1] * 20 + [0.9] * 180 + [0.0])
    rated = calibration.rate(Scores(score, np.array([True] * 200 + [False]), people), 0.5, genuine=True)
    assert rated.value == 0.1
    assert rated.over_people is not None
    assert rated.over_people[1] - rated.over_people[0] > 2 * (rated.interval[1] - rated.interval[0])


def test_no_interval_over_people_where_nothing_happened() -> None:
    rated = calibration.rate(scores([0.9, 0.8], [0.1]), 0.5, genuine=True)
    assert (rated.events, rated.trials, rated.over_people) == (0, 2, None)
    assert rated.interval[1] > 0.5


def test_resampling_counts_a_pair_as_often_as_both_people_are_drawn() -> None:
    people = np.array([(7, 7), (9, 9), (7, 9)])
    for own, other, both in calibration.resample(people, times=50):
        assert own + other == 2
        assert both == own * other


def test_resampling_is_the_same_every_time() -> None:
    people = np.array([(n, n + 1) for n in range(8)])
    first, second = (np.stack(list(calibration.resample(people, 5))) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("target", "pairs"), [(1e-2, 300), (1e-3, 3000), (1e-4, 30_000)])
def test_a_target_needs_three_over_it_pairs(target: float, pairs: int) -> None:
    assert calibration.needed(target) == pairs
    enough = np.linspace(0, 0.5, pairs).tolist()
    assert calibration.threshold_for(scores([0.9], enough[1:]), target) is None
    found = calibration.threshold_for(scores([0.9], enough), target)
    assert found is not None
    assert calibration.false_matches(scores([0.9], enough), found) <= target * pairs


def test_the_threshold_of_a_target_is_the_lowest_to_four_digits() -> None:
    impostor = [n / 1000 for n in range(1000)]
    found = calibration.threshold_for(scores([1.0], impostor), 0.01)
    assert found == pytest.approx(0.9895)  # lets 0.990 to 0.999 pass, and 0.989 not


@pytest.mark.parametrize("top", [1, 3, 400])
def test_ties_never_exceed_the_target(top: int) -> None:
    impostor = scores([0.9], [0.1] * (400 - top) + [0.5] * top)
    found = calibration.threshold_for(impostor, 0.01)
    assert found is not None
    assert calibration.false_matches(impostor, found) <= 4


def test_rate_table_ascends_and_holds_the_threshold() -> None:
    table = calibration.rate_table(MIXED, 0.363)
    at = [rate.threshold for rate in table]
    assert at == sorted(at)
    assert (at[0], at[-1]) == (-1.0, 1.0)
    rates = {rate.threshold: rate.false_match_rate for rate in table}
    assert (rates[-1.0], rates[0.363], rates[0.45], rates[1.0]) == (1.0, 0.4, 0.2, 0.0)


def test_people_are_those_that_genuine_pairs_link() -> None:
    people = calibration.tell_people(
        [("a1", "a2", True), ("b1", "a1", False), ("a3", "a2", True), ("b1", "b2", True), ("c", "a3", False)]
    )
    assert people["a1"] == people["a2"] == people["a3"]
    assert people["b1"] == people["b2"]
    assert len({people["a1"], people["b1"], people["c"]}) == 3


def test_compared_knows_a_difference_from_none() -> None:
    random = np.random.default_rng(3)
    people = np.array([(n % 20, n % 20) for n in range(100)] + [(n % 20, (n + 7) % 20) for n in range(300)], np.intp)
    same = np.array([True] * 100 + [False] * 300)
    noise = random.normal(0, 0.1, 400)
    plain, better = Scores(noise + 0.3 * same, same, people), Scores(noise + 0.5 * same, same, people)
    change, over = calibration.compared(plain, better, calibration.decidability, times=60)
    assert over is not None
    assert 0 < over[0] < change < over[1]
    assert calibration.compared(plain, plain, calibration.decidability, times=20) == (0.0, (0.0, 0.0))
    assert not math.isnan(change)
