"""The ranking of a grid's trials, and the effect of each hyperparameter."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.network import Value
from fmnist_tracking.objective import VAL_ACCURACY
from fmnist_tracking.results import TrialResult
from fmnist_tracking.search_space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class RankedTrial:
    """A finished trial and its rank.

    Attributes:
        rank: 1 for the best; repeats of one point share a rank.
        trial: the trial.
        mean: what points are compared by, averaged over the point's repeats; if some of them
            diverged, over the others.
        spread: sample standard deviation over the same repeats, None for a single repeat.
    """

    rank: int
    trial: TrialResult
    mean: float
    spread: float | None


def rank(trials: Iterable[TrialResult]) -> tuple[RankedTrial, ...]:
    """Rank finished trials, the best first.

    Trials that differ only in `seed` are repeats of one point. Points are ordered by their mean
    score, so that a lucky seed does not win, and the repeats of a point by their own.
    Equal points keep their order. Points with a repeat that diverged come after all others, ordered
    by the share of their repeats that diverged; a repeat that diverged comes after the others of
    its point.

    Raises:
        ValueError: a trial has no score.
    """
    groups: dict[TrainingConfig, list[TrialResult]] = defaultdict(list)
    for trial in trials:
        groups[trial.config.replace(seed=0)].append(trial)
    objective = next((config.compared_by for config in groups), VAL_ACCURACY)

    def key(point: tuple[list[float], list[TrialResult]]) -> tuple[float, float]:
        scores, group = point
        return _share_diverged(group), -objective.goodness(statistics.fmean(scores))

    points = sorted(((_scores(group), group) for group in groups.values()), key=key)
    return tuple(
        RankedTrial(
            rank=place,
            trial=trial,
            mean=statistics.fmean(scores),
            spread=statistics.stdev(scores) if len(scores) > 1 else None,
        )
        for place, (scores, group) in enumerate(points, start=1)
        for trial in sorted(group, key=lambda t: (t.diverged, -objective.goodness(_score(t))))
    )


def best(trials: Iterable[TrialResult]) -> TrialResult | None:
    """Return the best trial of the best point, None if no trial finished without diverging."""
    ranked = rank(trials)
    return ranked[0].trial if ranked and not ranked[0].trial.diverged else None


def _scores(group: Sequence[TrialResult]) -> list[float]:
    """Return the scores of a point's repeats, without those that diverged if there are others."""
    return [_score(t) for t in group if not t.diverged] or [_score(t) for t in group]


def _share_diverged(group: Sequence[TrialResult]) -> float:
    return sum(t.diverged for t in group) / len(group)


def _score(trial: TrialResult) -> float:
    if trial.score is None:
        raise ValueError(f"trial {trial.run_id} has no score: rank only finished trials")
    # Of one that diverged, which ranks below all others, the loss is no number.
    return trial.score if math.isfinite(trial.score) else 0.0


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """A row of a leaderboard; it has no rank if the trial has no score."""

    rank: int | None
    mean: float | None
    trial: TrialResult


def leaderboard(trials: Sequence[TrialResult]) -> tuple[LeaderboardRow, ...]:
    """Return all trials of a search, the best first, and those without a score last."""
    finished = [trial for trial in trials if trial.is_scored]
    others = [trial for trial in trials if not trial.is_scored]
    return (
        *(LeaderboardRow(rank=r.rank, mean=r.mean, trial=r.trial) for r in rank(finished)),
        *(LeaderboardRow(rank=None, mean=None, trial=t) for t in others),
    )


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The effect of one axis of a grid on the score of its points.

    Attributes:
        axis: the field's name.
        values: the values tried, in the grid's order.
        means: mean score of the points with each value, None if none of them has a score.
        diverged: how many points with each value diverged; they do not count in the mean.
        lines: sets of points that differ only in this axis; each holds, for every value, the
            point's score, None if it did not finish or diverged.
        best: index in `values` and score of the best point, None if there is none.
    """

    axis: str
    values: tuple[Value, ...]
    best: tuple[int, float] | None
    means: tuple[float | None, ...]
    diverged: tuple[int, ...]
    lines: tuple[tuple[float | None, ...], ...]


def effects(space: SearchSpace, trials: Sequence[TrialResult]) -> tuple[Effect, ...]:
    """Compute the main effect of each axis with more than one value, in the grid's order.

    A point's score is the mean score of its repeats, so `seed` is not an axis here. A
    point with a repeat that diverged has no score. The trials are the finished ones of that grid.
    """
    ranked = rank(trials)
    scores: dict[TrainingConfig, float | None] = {
        r.trial.config.replace(seed=0): r.mean for r in ranked
    }
    diverged = {r.trial.config.replace(seed=0) for r in ranked if r.trial.diverged}
    scores.update(dict.fromkeys(diverged))
    first = ranked[0] if ranked and not ranked[0].trial.diverged else None
    found = []
    for axis in space.varying:
        if axis == "seed":
            continue
        values = space.axes[axis]
        lines: dict[TrainingConfig, list[float | None]] = {}
        for config, score in scores.items():
            if axis not in config.values:  # of a condition that does not hold
                continue
            others = config.replace(**{axis: values[0]})
            line = lines.setdefault(others, [None] * len(values))
            line[values.index(config[axis])] = score
        columns = list(zip(*lines.values(), strict=True)) or [()] * len(values)
        found.append(
            Effect(
                axis=axis,
                values=values,
                best=(values.index(first.trial.config[axis]), first.mean)
                if first and axis in first.trial.config.values
                else None,
                means=tuple(_mean(column) for column in columns),
                diverged=tuple(
                    sum(config.values.get(axis) == value for config in diverged) for value in values
                ),
                lines=tuple(map(tuple, lines.values())),
            )
        )
    return tuple(found)


def _mean(scores: Iterable[float | None]) -> float | None:
    present = [s for s in scores if s is not None]
    return statistics.fmean(present) if present else None
