import dataclasses
import json
import math

import pytest

from fmnist_tracking.config import TrainingConfig, size_of
from fmnist_tracking.objective import VAL_ACCURACY
from fmnist_tracking.results import (
    SearchResult,
    TrainingResult,
    TrialResult,
    best_epoch,
)
from fmnist_tracking.search_space import SearchSpace
from records import epoch, training, trial


def test_best_epoch_is_the_earliest_of_the_highest() -> None:
    result = training(0.5, 0.8, 0.8, 0.7)
    assert result.best.epoch == 2
    flops = 2 * size_of(result.config).multiply_adds
    assert result.summary() == {
        "best_val_accuracy": 0.8,
        "best_epoch": 2,
        "train_seconds": 8.0,
        "images_per_second": 100.0,
        "model_parameters": 7,
        "flops_per_image": flops,
        "train_flops": 3 * flops * 500 * 4,
    }
    assert 3 * flops == pytest.approx(17.3e6, rel=0.01)


def test_validation_scores_by_the_names_they_have_in_mlflow() -> None:
    scores = training(0.5).validation_scores()
    assert scores["val_macro_f1"] == 0.45
    assert scores["val_f1_ankle_boot"] == 0.9
    assert scores["best_val_accuracy"] == training(0.5).summary()["best_val_accuracy"]
    assert len(scores) == 13


def test_an_epoch_s_metrics_are_its_figures_and_the_machine_s() -> None:
    figures = dataclasses.replace(epoch(1, 0.5), usage={"system/cpu": 50.0}).metrics()
    assert sorted(figures) == [
        "accuracy",
        "epoch_seconds",
        "loss",
        "system/cpu",
        "val_accuracy",
        "val_loss",
    ]


def test_training_result_survives_json() -> None:
    result = training(0.1, 0.30000000000000004)
    assert TrainingResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_trial_result_survives_json() -> None:
    for result in (
        trial("a", 0.7, config=TrainingConfig.of(filters=12, dropout=0.1), train_seconds=1.5),
        trial("b", None, error="it failed", reused=True),
    ):
        assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_epoch_metrics_have_the_contract_s_names() -> None:
    assert list(epoch(1, 0.5).metrics()) == [
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "epoch_seconds",
    ]


def test_search_json_has_the_contract_s_keys() -> None:
    trials = (trial("a", 0.7), trial("b", None), trial("c", 0.9, reused=True))
    result = SearchResult(
        run_id="s",
        experiment_id="1",
        space=SearchSpace(axes={"filters": (1, 2, 3)}),
        trials=trials,
    )
    content = json.loads(json.dumps(result.to_json(trials[2])))
    assert {k: v for k, v in content.items() if k not in ("best", "trials")} == {
        "run_id": "s",
        "experiment_id": "1",
        "grid_points": 3,
        "finished": 2,
        "failed": 1,
        "reused": 1,
        "diverged": 0,
    }
    assert list(content["best"]) == ["run_id", "params", "val_accuracy"]
    assert content["best"]["run_id"] == "c"
    assert set(content["trials"][0]) == {
        "run_id",
        "name",
        "status",
        "params",
        "val_accuracy",
        "best_epoch",
        "train_seconds",
        "model_parameters",
        "error",
        "reused",
        "diverged",
    }
    assert result.to_json(None)["best"] is None


@pytest.mark.parametrize("loss", ["loss", "val_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_epoch_without_a_finite_loss_is_where_a_training_diverged(
    loss: str, value: float
) -> None:
    result = training(0.1, 0.2, 0.9)
    assert result.diverged is None
    first, second, third = result.epochs
    second = dataclasses.replace(second, **{loss: value})  # type: ignore[arg-type]
    assert dataclasses.replace(result, epochs=(first, second)).diverged == 2
    # Chance may give weights that are no numbers a better score than the epochs before.
    third = dataclasses.replace(third, **{loss: value})  # type: ignore[arg-type]
    assert best_epoch((first, second, third), VAL_ACCURACY) == first
    assert best_epoch((third, second), VAL_ACCURACY) == third


def test_what_an_earlier_version_kept_of_a_trial_is_read() -> None:
    content = trial("a", 0.7).to_json()
    del content["diverged"]
    assert TrialResult.from_json(content) == trial("a", 0.7)


def test_a_trial_that_diverged_has_finished_and_says_so() -> None:
    diverged = trial("a", 0.1, diverged=True)
    assert (diverged.status, diverged.outcome) == ("FINISHED", "diverged")
    assert trial("b", None).outcome == "FAILED"
    result = SearchResult(
        run_id="s",
        experiment_id="1",
        space=SearchSpace(axes={"filters": (1, 2)}),
        trials=(diverged, trial("b", 0.2)),
    ).to_json(None)
    assert (result["finished"], result["diverged"]) == (2, 1)
    assert [t["diverged"] for t in result["trials"]] == [True, False]
