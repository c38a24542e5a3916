"""How well similarities tell people apart, and which threshold gives which error rate. Pure statistics, no photos.

A pair matches when its similarity is at least the threshold. FMR, the false-match rate, is the share of impostor pairs (two people)
that match; FNMR, the false-non-match rate, that of genuine pairs (one person) that do not. Terms as in ISO/IEC 19795-1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.repository.spec import Rate

Floats = NDArray[np.float64]
Interval = tuple[float, float]

TARGETS: Final = (1e-2, 1e-3, 1e-4)
"""False-match rates that thresholds are given for."""
RULE_OF_THREE: Final = 3
"""Impostor pairs times rate below which not one false match would be surprising: with n pairs and none false, the upper end of the
95 % interval is 3 / n."""
RESAMPLES: Final = 1000
_Z: Final = 1.959964
_GRID: Final = tuple(round(0.05 * step, 2) for step in range(17))
"""Thresholds at which a stored table gives rates, besides -1, 1 and the one in use."""


@dataclass(frozen=True)
class Scores:
    """Similarities [n] of pairs, which of them are of one person [n], and the number of the person on each photo [n, 2]."""

    score: Floats
    same: NDArray[np.bool_]
    people: NDArray[np.intp]

    @cached_property
    def genuine(self) -> Floats:
        return np.sort(self.score[self.same])

    @cached_property
    def impostor(self) -> Floats:
        return np.sort(self.score[~self.same])

    @property
    def measurable(self) -> bool:
        """Are there pairs of both kinds?"""
        return bool(len(self.genuine) and len(self.impostor))


@dataclass(frozen=True)
class Rated:
    """A rate that was counted: `events` of `trials`, with the 95 % interval for independent pairs and, where enough people are
    there, the one over people, which allows for pairs that share a person."""

    events: int
    trials: int
    interval: Interval
    over_people: Interval | None = None

    @property
    def value(self) -> float:
        return self.events / self.trials


def tell_people(pairs: Sequence[tuple[str, str, bool]]) -> dict[str, int]:
    """A number for the person on each photo: photos that genuine pairs link, directly or by others, are of one person."""
    parent = {photo: photo for a, b, _ in pairs for photo in (a, b)}

    def root(photo: str) -> str:
        while parent[photo] != photo:
            parent[photo] = photo = parent[parent[photo]]
        return photo

    for a, b, same in pairs:
        if same:
            parent[root(a)] = root(b)
    numbers: dict[str, int] = {}
    return {photo: numbers.setdefault(root(photo), len(numbers)) for photo in parent}


def false_matches(scores: Scores, threshold: float) -> int:
    return len(scores.impostor) - int(np.searchsorted(scores.impostor, threshold))


def false_non_matches(scores: Scores, threshold: float) -> int:
    return int(np.searchsorted(scores.genuine, threshold))


def accuracy_at(scores: Scores, threshold: float) -> float:
    """Share of all pairs that are told rightly."""
    return 1 - (false_matches(scores, threshold) + false_non_matches(scores, threshold)) / len(scores.score)


def best_threshold(scores: Scores) -> float:
    """The threshold of the highest accuracy, halfway to the next lower similarity; of several, the highest."""
    values = np.unique(scores.score)
    edges = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
    wrong = np.searchsorted(scores.genuine, edges) + len(scores.impostor) - np.searchsorted(scores.impostor, edges)
    return float(edges[len(edges) - 1 - int(wrong[::-1].argmin())])


def roc(scores: Scores) -> tuple[Floats, Floats, Floats]:
    """Thresholds [m], descending, with FMR [m] and FNMR [m]: from nothing matches to all matches."""
    values = np.unique(scores.score)[::-1]
    thresholds = np.concatenate([[np.nextafter(values[0], np.inf)], values])
    fmr = 1 - np.searchsorted(scores.impostor, thresholds) / len(scores.impostor)
    return thresholds, fmr, np.searchsorted(scores.genuine, thresholds) / len(scores.genuine)


def area_under_roc(scores: Scores) -> float:
    """Probability that a genuine pair is more similar than an impostor pair, ties counting half (Mann-Whitney U)."""
    below = np.searchsorted(scores.impostor, scores.genuine) + np.searchsorted(scores.impostor, scores.genuine, side="right")
    return float(below.mean() / 2 / len(scores.impostor))


def equal_error_rate(scores: Scores) -> float:
    """Where FMR and FNMR cross, interpolated along the ROC."""
    _, fmr, fnmr = roc(scores)
    gap = fnmr - fmr  # falls from 1 to -1
    after = int((gap <= 0).argmax())
    before = after - 1
    share = gap[before] / (gap[before] - gap[after])
    return float(fmr[before] + share * (fmr[after] - fmr[before]))


def decidability(scores: Scores) -> float:
    """d': distance of the two means in units of the root mean variance. Reference: Daugman, High confidence visual recognition of
    persons by a test of statistical independence, IEEE PAMI 1993."""
    spread = math.sqrt((float(scores.genuine.var()) + float(scores.impostor.var())) / 2)
    return float(scores.genuine.mean() - scores.impostor.mean()) / max(spread, 1e-12)


def wilson(events: int, trials: int) -> Interval:
    """95 % interval of a proportion of independent trials. Reference: Wilson, Probable inference, JASA 1927."""
    share, z2 = events / trials, _Z**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return (0.0 if events == 0 else max(0.0, middle - half)), (1.0 if events == trials else min(1.0, middle + half))


def rate(scores: Scores, threshold: float, genuine: bool) -> Rated:
    """FNMR at `threshold` (genuine) or FMR, with its intervals."""
    kind = scores.same if genuine else ~scores.same
    wrong = (scores.score[kind] < threshold) if genuine else (scores.score[kind] >= threshold)
    events, trials = int(wrong.sum()), int(kind.sum())
    over = None
    if 0 < events < trials:  # where nothing happened, resampling shows nothing either
        people = scores.people[kind]
        over = interval(float(weights[wrong].sum() / weights.sum()) for weights in resample(people) if weights.any())
    return Rated(events, trials, wilson(events, trials), over)


def resample(people: NDArray[np.intp], times: int = RESAMPLES, seed: int = 0) -> Iterator[Floats]:
    """How often each pair [n] counts when as many people are drawn again, with replacement; people [n, 2] as in Scores.

    A pair of two people counts as often as both are drawn together, one of a single person as often as that one is.
    """
    draw, (numbers, rows) = np.random.default_rng(seed), np.unique(people, return_inverse=True)
    first, second = rows.reshape(people.shape).T
    alone = first == second
    for _ in range(times):
        drawn = np.bincount(draw.integers(0, len(numbers), len(numbers)), minlength=len(numbers)).astype(np.float64)
        yield np.where(alone, drawn[first], drawn[first] * drawn[second])


def interval(samples: Iterator[float]) -> Interval | None:
    """The middle 95 % of `samples`; None of none."""
    values = np.fromiter(samples, np.float64)
    return tuple(np.quantile(values, (0.025, 0.975)).tolist()) if len(values) else None


def needed(target: float) -> int:
    """Impostor pairs without which a false-match rate of `target` cannot be told from none."""
    return math.ceil(RULE_OF_THREE / target)


def threshold_for(scores: Scores, target: float) -> float | None:
    """The lowest threshold, to four digits, at which no more than `target` of the impostor pairs match; None when they are too few
    to tell (see needed()). It lies halfway between the two impostor pairs that it parts."""
    impostor = scores.impostor
    if len(impostor) < needed(target):
        return None
    allowed = math.floor(target * len(impostor) + 1e-9)
    barred = float(impostor[len(impostor) - allowed - 1])
    above = impostor[np.searchsorted(impostor, barred, side="right") :]
    halfway = (barred + float(above[0])) / 2 if len(above) else barred
    threshold = math.ceil(halfway * 1e4) / 1e4
    return threshold if threshold > barred else threshold + 1e-4


def rate_table(scores: Scores, threshold: float) -> tuple[Rate, ...]:
    """False-match rates at -1, 1, `threshold` and steps of 0.05 from 0 on, ascending, to be stored beside a threshold."""
    steps = sorted({-1.0, *_GRID, threshold, 1.0})
    total = len(scores.impostor)
    return tuple(Rate(threshold=step, false_match_rate=round(false_matches(scores, step) / total, 6)) for step in steps)


def compared(
    first: Scores, second: Scores, statistic: Callable[[Scores], float], times: int = 200
) -> tuple[float, Interval | None]:
    """statistic(second) - statistic(first) on the same pairs, with its 95 % interval over people: whole pairs are repeated."""

    def again(scores: Scores, chosen: NDArray[np.intp]) -> float:
        return statistic(Scores(scores.score[chosen], scores.same[chosen], scores.people[chosen]))

    def differences() -> Iterator[float]:
        for weights in resample(first.people, times):
            chosen = np.repeat(np.arange(len(weights)), weights.astype(int))
            if first.same[chosen].any() and not first.same[chosen].all():
                yield again(second, chosen) - again(first, chosen)

    return statistic(second) - statistic(first), interval(differences())
