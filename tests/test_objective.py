"""What epochs and points are compared by: another figure than the validation accuracy."""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from conftest import Call
from fmnist_tracking import fingerprint, plots
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.leaderboard import best, effects, rank
from fmnist_tracking.objective import OBJECTIVES, VAL_ACCURACY
from fmnist_tracking.results import EpochMetrics, TrialResult, best_epoch
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import find_run, open_store, read_history

VAL_LOSS, MACRO_F1 = OBJECTIVES["val_loss"], OBJECTIVES["val_macro_f1"]


def epochs_of(*figures: tuple[float, float, float | None]) -> list[EpochMetrics]:
    return [
        EpochMetrics(
            epoch=number,
            loss=1.0,
            accuracy=0.5,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            objective=objective,
            epoch_seconds=1.0,
        )
        for number, (val_accuracy, val_loss, objective) in enumerate(figures, start=1)
    ]


def trial(filters: int, score: float, objective: str, seed: int = 0) -> TrialResult:
    config = TrainingConfig.of(filters=filters, seed=seed, objective=objective)
    name = f"f{filters}"
    result = TrialResult(run_id=name, name=name, status="FINISHED", config=config, best_epoch=1)
    return dataclasses.replace(result, val_accuracy=0.5, best_objective=score)


def test_the_best_epoch_by_each_objective() -> None:
    epochs = epochs_of((0.7, 0.9, 0.6), (0.9, 0.8, 0.5), (0.8, 0.6, 0.4), (0.8, 0.6, 0.6))
    assert best_epoch(epochs, VAL_ACCURACY).epoch == 2
    assert best_epoch(epochs, VAL_LOSS).epoch == 3  # the first of two that are equal
    assert best_epoch(epochs, MACRO_F1).epoch == 1
    epochs += epochs_of((0.99, math.nan, 0.99))
    assert best_epoch(epochs, VAL_LOSS).epoch == 3


def test_points_are_ranked_in_the_direction_of_their_objective() -> None:
    losses = [trial(12, 0.5, "val_loss"), trial(24, 0.3, "val_loss"), trial(48, 0.4, "val_loss")]
    assert [row.trial.name for row in rank(losses)] == ["f24", "f48", "f12"]
    shares = [dataclasses.replace(one, config=one.config.replace(objective="val_macro_f1"))
              for one in losses]  # fmt: skip
    assert [row.trial.name for row in rank(shares)] == ["f12", "f48", "f24"]
    # A lucky seed does not win, whatever the direction; one that diverged is nobody's best.
    seeds = [trial(12, 0.1, "val_loss"), trial(12, 0.9, "val_loss", seed=1), *losses[1:]]
    winner = best(seeds)
    assert winner is not None and winner.name == "f24"
    gone = dataclasses.replace(losses[1], best_objective=math.nan, diverged=True)
    assert [row.trial.name for row in rank([gone, losses[0]])] == ["f12", "f24"]


def test_the_figure_of_the_grid_says_what_it_draws() -> None:
    losses = [trial(12, 1.5, "val_loss"), trial(24, 0.25, "val_loss")]
    found = effects(SearchSpace(axes={"filters": (12, 24)}), losses)
    assert found[0].best == (1, 0.25)
    (axes,) = plots.grid(found, "A grid", VAL_LOSS).axes
    assert axes.get_ylabel() == "validation loss, best epoch"
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["1.500", "0.250"]
    assert "best point, 0.2500" in axes.get_legend_handles_labels()[1]


def test_the_usual_objective_changes_no_fingerprint_and_another_does() -> None:
    def of(**values: Any) -> str:
        return fingerprint.of_point(TrainingConfig.of(**values), SplitConfig(), "data")

    assert of() == of(objective="val_accuracy")
    assert len({of(objective=name) for name in OBJECTIVES}) == len(OBJECTIVES)
    assert "objective" not in TrainingConfig.of().values


def test_what_is_no_objective_is_refused(call: Call) -> None:
    with pytest.raises(ConfigError, match="Did you mean val_macro_f1"):
        TrainingConfig.of(objective="macro_f1")
    status, _, err = call("search", "--objective", "val_acc")
    assert status == 2
    assert "Expected --objective to be val_accuracy, val_loss, " in err
    status, _, err = call("search", "--axis", "objective=val_loss,val_accuracy")
    assert status == 2


@pytest.mark.parametrize("name", ["val_loss", "val_weighted_f1"])
def test_a_search_by_another_objective(name: str, call: Call) -> None:
    objective = OBJECTIVES[name]
    size = ("--limit", "600", "--epochs", "4", "--filters", "4", "--strides", "2")
    words = (*size, "--kernel-sizes", "2,3", "--hidden-units", "8", "--axis", "learning_rate=0.01")
    status, out, err = call("search", *words, "--objective", name, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert f"ended: {objective.label} " in err
    scores = [trial["best_objective"] for trial in found["trials"]]
    winner = max(found["trials"], key=lambda one: objective.goodness(one["best_objective"]))
    assert found["best"]["run_id"] == winner["run_id"]
    assert found["best"]["params"]["objective"] == name
    with open_store() as store:
        for trial in found["trials"]:
            training = read_history(store, find_run(store, trial["run_id"]))
            values = [epoch.value(objective) or 0.0 for epoch in training.epochs]
            first_best = max(range(4), key=lambda at: (objective.goodness(values[at]), -at))
            assert (trial["best_epoch"], trial["best_objective"]) == (
                first_best + 1,
                pytest.approx(values[first_best]),
            )
            # The scores, and so the weights, are those of that epoch.
            scored = training.validation
            assert scored is not None
            own = scored.loss if objective.is_loss else scored.value(objective)
            assert own == values[first_best]
        file = store.client.download_artifacts(found["run_id"], "leaderboard.csv", ".")
    rows = list(csv.DictReader(io.StringIO(Path(file).read_text())))
    ordered = sorted(scores, key=objective.goodness, reverse=True)
    assert [float(row["score"]) for row in rows] == ordered
    status, out, _ = call("runs")
    assert f"objective {name}" in out
    # It is another search, and its trials are others, than by accuracy.
    status, out, _ = call("search", *words, "--dry-run", "--json")
    assert {point["state"] for point in json.loads(out)["points"]} == {"new"}
    status, out, _ = call("search", *words, "--objective", name, "--dry-run", "--json")
    assert {point["state"] for point in json.loads(out)["points"]} == {"finished"}
    status, out, _ = call("report", "--run-id", "latest", "--json")
    page = Path("reports", found["run_id"][:8], "index.html").read_text()
    assert f"{objective.label}, by which it was chosen" in page
    assert f"Ranked by {objective.label} of the best epoch" in page
