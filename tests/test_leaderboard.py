import csv
import io
import itertools

import pytest

from fmnist_tracking import tracking
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.leaderboard import best, effects, leaderboard, rank
from fmnist_tracking.results import SearchResult
from fmnist_tracking.search_space import SearchSpace
from records import trial


def config(**values: float) -> TrainingConfig:
    return TrainingConfig.of(**values)


def test_rank_puts_the_best_first() -> None:
    trials = [trial("a", 0.7, config=config(filters=1)), trial("b", 0.9, config=config(filters=2))]
    ranked = rank(trials)
    assert [(r.rank, r.trial.run_id, r.mean, r.spread) for r in ranked] == [
        (1, "b", 0.9, None),
        (2, "a", 0.7, None),
    ]


def test_a_lucky_seed_does_not_win() -> None:
    trials = [
        trial("lucky", 0.95, config=config(filters=1, seed=0)),
        trial("unlucky", 0.75, config=config(filters=1, seed=1)),
        trial("steady", 0.89, config=config(filters=2, seed=0)),
        trial("steadier", 0.91, config=config(filters=2, seed=1)),
    ]
    ranked = rank(trials)
    assert [r.trial.run_id for r in ranked] == ["steadier", "steady", "lucky", "unlucky"]
    assert [r.rank for r in ranked] == [1, 1, 2, 2]
    assert ranked[0].mean == pytest.approx(0.90)
    assert ranked[2].spread == pytest.approx(0.1414, abs=1e-4)
    winner = best(trials)
    assert winner is not None
    assert winner.run_id == "steadier"


def test_no_trials_no_best() -> None:
    assert best([]) is None


def test_equal_points_keep_their_order() -> None:
    trials = [trial(name, 0.5, config=config(filters=n)) for n, name in enumerate("abc", start=1)]
    assert [r.trial.run_id for r in rank(trials)] == ["a", "b", "c"]


def test_effects_of_a_grid_by_hand() -> None:
    space = SearchSpace(axes={"filters": (1, 2), "strides": (1, 2), "hidden_units": (64,)})
    scores = {(1, 1): 0.6, (1, 2): 0.5, (2, 1): 0.8, (2, 2): 0.7}
    trials = [
        trial(f"{f}{s}", scores[f, s], config=config(filters=f, strides=s))
        for f, s in itertools.product((1, 2), (1, 2))
    ]
    filters, strides = effects(space, trials)  # an axis with one value has no effect
    assert (filters.axis, filters.values) == ("filters", (1, 2))
    assert filters.means == pytest.approx((0.55, 0.75))
    assert set(filters.lines) == {(0.6, 0.8), (0.5, 0.7)}
    assert strides.means == pytest.approx((0.7, 0.6))


def test_repeats_are_one_point_in_the_effects() -> None:
    space = SearchSpace(axes={"filters": (1, 2), "seed": (0, 1)})
    trials = [
        trial("lucky", 0.95, config=config(filters=1, seed=0)),
        trial("unlucky", 0.75, config=config(filters=1, seed=1)),
        trial("steady", 0.89, config=config(filters=2, seed=0)),
        trial("steadier", 0.91, config=config(filters=2, seed=1)),
    ]
    (effect,) = effects(space, trials)  # and the seed is no hyperparameter
    assert effect.means == pytest.approx((0.85, 0.90))
    assert effect.lines[0] == pytest.approx((0.85, 0.90))


def test_on_a_tie_every_axis_shows_the_same_point() -> None:
    space = SearchSpace(axes={"filters": (1, 2), "strides": (1, 2)})
    trials = [
        trial("first", 0.5, config=config(filters=2, strides=1)),
        trial("second", 0.5, config=config(filters=1, strides=2)),
    ]
    winner = best(trials)
    assert winner is not None
    for effect in effects(space, trials):
        assert effect.best == (effect.values.index(winner.config[effect.axis]), 0.5)


def test_leaderboard_puts_those_without_a_score_last() -> None:
    trials = [trial("failed", None), trial("a", 0.7, config=config(filters=1))]
    places = leaderboard(trials)
    assert [(p.rank, p.trial.run_id) for p in places] == [(1, "a"), (None, "failed")]


def test_effects_with_a_point_missing() -> None:
    space = SearchSpace(axes={"filters": (1, 2)})
    (effect,) = effects(space, [trial("a", 0.6, config=config(filters=2))])
    assert effect.means == (None, 0.6)
    assert effect.best == (1, 0.6)
    assert effect.lines == ((None, 0.6),)
    (nothing,) = effects(space, [])
    assert nothing.means == (None, None)


def test_a_trial_that_diverged_comes_after_all_others() -> None:
    trials = [
        trial("lost", 0.99, config=config(filters=1), diverged=True),
        trial("poor", 0.05, config=config(filters=2)),
        trial("failed", None, config=config(filters=3)),
    ]
    assert [r.trial.run_id for r in rank(trials[:2])] == ["poor", "lost"]
    assert [p.trial.run_id for p in leaderboard(trials)] == ["poor", "lost", "failed"]
    winner = best(trials[:2])
    assert winner is not None
    assert winner.run_id == "poor"
    assert best(trials[:1]) is None


def test_a_point_with_a_seed_that_diverged_comes_after_those_with_none() -> None:
    trials = [
        trial("half", 0.95, config=config(filters=1, seed=0)),
        trial("half lost", 0.99, config=config(filters=1, seed=1), diverged=True),
        trial("all lost", 0.98, config=config(filters=2, seed=0), diverged=True),
        trial("all lost too", 0.97, config=config(filters=2, seed=1), diverged=True),
        trial("whole", 0.1, config=config(filters=3, seed=0)),
        trial("whole too", 0.2, config=config(filters=3, seed=1)),
    ]
    ranked = rank(trials)
    assert [r.trial.run_id for r in ranked] == [
        *("whole too", "whole", "half", "half lost", "all lost", "all lost too")
    ]
    assert [r.rank for r in ranked] == [1, 1, 2, 2, 3, 3]
    # What is averaged is what was reached.
    assert [r.mean for r in ranked[2:4]] == [0.95, 0.95]
    assert ranked[2].spread is None
    winner = best(trials[:4])  # where no point is without, its other seeds count
    assert winner is not None
    assert winner.run_id == "half"


def test_effects_leave_out_what_diverged_and_count_it() -> None:
    space = SearchSpace(axes={"filters": (1, 2), "strides": (1, 2)})
    lost = {(1, 2), (2, 2)}
    scores = {(1, 1): 0.4, (1, 2): 0.99, (2, 1): 0.2, (2, 2): 0.98}
    trials = [
        trial(f"{f}{s}", score, config=config(filters=f, strides=s), diverged=(f, s) in lost)
        for (f, s), score in scores.items()
    ]
    filters, strides = effects(space, trials)
    assert filters.means == (0.4, 0.2)
    assert filters.diverged == (1, 1)
    assert strides.means[0] == pytest.approx(0.3)
    assert strides.means[1] is None
    assert strides.diverged == (0, 2)
    assert set(strides.lines) == {(0.4, None), (0.2, None)}
    assert (filters.best, strides.best) == ((0, 0.4), (0, 0.4))
    alone = effects(space, [t for t in trials if t.diverged])
    assert [e.best for e in alone] == [None, None]
    assert [e.means for e in alone] == [(None, None), (None, None)]


def test_a_spreadsheet_runs_no_cell() -> None:
    names = ["=1+1", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "a=1", "-0.5", "x\ny"]
    trials = tuple(trial(f"{n:032x}", -0.5, name=name) for n, name in enumerate(names))
    space = SearchSpace(axes={"filters": (12,)})
    result = SearchResult(run_id="a" * 32, experiment_id="1", space=space, trials=trials)
    rows = list(csv.DictReader(io.StringIO(tracking.leaderboard_csv(result))))
    safe = ["'=1+1", "'+1+cmd", "'-2+3", "'@SUM(A1)", r"\t=1", r"\r=1", "a=1", "-0.5", r"x\ny"]
    assert [row["name"] for row in rows] == safe
    assert {row["val_accuracy"] for row in rows} == {"-0.5"}
