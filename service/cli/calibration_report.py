"""What `vision-service calibrate` found, as JSON and in plain words."""

from typing import Self

from pydantic import BaseModel

from service.tasks.calibration import (
    TARGETS,
    Interval,
    Rated,
    Scores,
    accuracy_at,
    area_under_roc,
    best_threshold,
    decidability,
    equal_error_rate,
    false_matches,
    false_non_matches,
    needed,
    rate,
    threshold_for,
)


class Rate(BaseModel):
    """events / trials, with its 95 % intervals: for pairs that have nothing to do with each other, and over people."""

    value: float
    events: int
    trials: int
    interval: Interval
    interval_over_people: Interval | None

    @classmethod
    def of(cls, rated: Rated) -> Self:
        return cls(
            value=rated.value,
            events=rated.events,
            trials=rated.trials,
            interval=rated.interval,
            interval_over_people=rated.over_people,
        )

    def __str__(self) -> str:
        text = f"{self.value:8.3%}  ({self.events} of {self.trials}; 95 %: {_span(self.interval)}"
        return text + ("" if self.interval_over_people is None else f"; over people {_span(self.interval_over_people)}") + ")"


class Failure(BaseModel):
    """A photo of which no face could be used, and the pairs that it cost."""

    file: str
    pairs: int
    code: str
    detail: str


class Acquired(BaseModel):
    """Pairs listed, those with a usable face on both photos, and why the others have none."""

    photos: int
    people: int
    listed_genuine: int
    listed_impostor: int
    genuine: int
    impostor: int
    failures: list[Failure]


class InUse(BaseModel):
    """`source`: where the threshold comes from."""

    value: float
    source: str
    accuracy: float
    false_match_rate: Rate
    false_non_match_rate: Rate


class Best(BaseModel):
    value: float
    accuracy: float


class ForTarget(BaseModel):
    """The threshold for a false-match rate; null where there are fewer pairs of two people than it needs."""

    target: float
    needed: int
    threshold: float | None
    false_match_rate: float | None
    false_non_match_rate: float | None


class Report(BaseModel):
    model: str
    version: str
    digest: str
    method: str
    precision: str
    pairs: Acquired
    in_use: InUse
    best: Best
    auc: float
    equal_error_rate: float
    decidability: float
    targets: list[ForTarget]
    notes: list[str]

    def lines(self) -> list[str]:
        pairs, used = self.pairs, self.in_use
        lost = pairs.listed_genuine + pairs.listed_impostor - pairs.genuine - pairs.impostor
        lines = [
            f"{self.model} {self.version} in {self.precision}, faces embedded as {self.method}",
            f"{pairs.genuine} pairs of one person, {pairs.impostor} of two; {pairs.photos} photos of {pairs.people} people",
            f"failures to acquire: {len(pairs.failures)} photos without a usable face, {lost} pairs"
            + (" that are in no figure below" if lost else ""),
            *(f"  {failed.file}: {failed.detail}" for failed in pairs.failures),
            "",
            f"at the threshold {used.value:.4g} ({used.source})",
            f"  accuracy                  {used.accuracy:8.3%}",
            f"  false-match rate          {used.false_match_rate}",
            f"  false-non-match rate      {used.false_non_match_rate}",
            f"best accuracy               {self.best.accuracy:8.3%}  at {self.best.value:.4f} (chosen on these very pairs)",
            f"AUC {self.auc:.5f}, equal error rate {self.equal_error_rate:.3%}, d' {self.decidability:.2f}",
            "",
            "false-match rate   threshold   pairs of one person missed",
            *(_target_line(target, pairs.impostor) for target in self.targets),
            "",
            "Pairs that share a photo or a person are not independent: the first interval is too narrow then. The one over people,",
            "for which people are drawn anew a thousand times, allows for it.",
        ]
        return [*lines, *(f"note: {note}" for note in self.notes)]


def rates_in_use(scores: Scores, threshold: float, source: str) -> InUse:
    return InUse(
        value=threshold,
        source=source,
        accuracy=accuracy_at(scores, threshold),
        false_match_rate=Rate.of(rate(scores, threshold, genuine=False)),
        false_non_match_rate=Rate.of(rate(scores, threshold, genuine=True)),
    )


def for_target(scores: Scores, target: float) -> ForTarget:
    threshold = threshold_for(scores, target)
    if threshold is None:
        return ForTarget(target=target, needed=needed(target), threshold=None, false_match_rate=None, false_non_match_rate=None)
    return ForTarget(
        target=target,
        needed=needed(target),
        threshold=threshold,
        false_match_rate=false_matches(scores, threshold) / len(scores.impostor),
        false_non_match_rate=false_non_matches(scores, threshold) / len(scores.genuine),
    )


def report(scores: Scores, acquired: Acquired, made_by: dict[str, str], in_use: InUse, target: float, notes: list[str]) -> Report:
    """Everything about `scores`, which has pairs of both kinds; `made_by`: model, version, digest, method and precision."""
    best = best_threshold(scores)
    return Report(
        **made_by,
        pairs=acquired,
        in_use=in_use,
        best=Best(value=best, accuracy=accuracy_at(scores, best)),
        auc=area_under_roc(scores),
        equal_error_rate=equal_error_rate(scores),
        decidability=decidability(scores),
        targets=[for_target(scores, value) for value in sorted({*TARGETS, target}, reverse=True)],
        notes=notes,
    )


def _span(interval: Interval) -> str:
    return f"{interval[0]:.3%} to {interval[1]:.3%}"


def _target_line(target: ForTarget, impostor: int) -> str:
    if target.threshold is None:
        return f"{target.target:16g}   not resolved: needs {target.needed:,} pairs of two people or more, there are {impostor:,}"
    return f"{target.target:16g}   {target.threshold:9.4f}   {target.false_non_match_rate:.3%}"
