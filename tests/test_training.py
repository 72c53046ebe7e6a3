import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.data import DataSplit
from fmnist_tracking.networks.models import predict
from fmnist_tracking.results import EpochMetrics, TrainingResult
from fmnist_tracking.training import checkpoints
from fmnist_tracking.training.checkpoints import Checkpoint, CheckpointPlace
from fmnist_tracking.training.loop import Weights, train
from models import with_weights

# At this learning rate the score goes up and down.
JUMPY = SMALL.replace(filters=16, strides=1, learning_rate=0.05)


class CutOff(Exception):
    """What ends a training in the middle."""


def cut_off_after(
    last: int, config: TrainingConfig, data: DataSplit, place: CheckpointPlace
) -> None:
    def on_epoch(metrics: EpochMetrics) -> None:
        if metrics.epoch == last:
            raise CutOff

    with pytest.raises(CutOff):
        train(config, data, on_epoch, place=place)


def timeless(result: TrainingResult) -> list[EpochMetrics]:
    """The epochs, but for the times that differ from one training to the next."""
    return [dataclasses.replace(e, epoch_seconds=0, ended_at=0, usage={}) for e in result.epochs]


def assert_same_weights(first: Weights, second: Weights) -> None:
    for weights, others in zip(first, second, strict=True):
        assert weights.dtype == others.dtype
        np.testing.assert_array_equal(weights, others)


def figures(result: TrainingResult) -> list[tuple[float | None, ...]]:
    return [(e.loss, e.accuracy, e.val_loss, e.val_accuracy) for e in result.epochs]


def test_same_seed_same_numbers_other_seed_others(split: DataSplit) -> None:
    first, weights = train(SMALL, split)
    again, weights_again = train(SMALL, split)
    assert figures(first) == figures(again)
    assert_same_weights(weights, weights_again)
    other, _ = train(SMALL.replace(seed=1), split)
    assert figures(other) != figures(first)


def test_an_epoch_does_not_depend_on_how_many_follow(split: DataSplit) -> None:
    short, _ = train(SMALL, split)
    long, _ = train(SMALL.replace(epochs=3), split)
    assert figures(long)[:2] == figures(short)


def test_the_weights_are_the_best_epoch_s(split: DataSplit) -> None:
    # A seed is wanted whose best epoch is not the last, so that the last epoch's weights would
    # be wrong.
    config = JUMPY.replace(epochs=6)
    for seed in range(8):
        seen: list[EpochMetrics] = []
        result, weights = train(config.replace(seed=seed), split, seen.append)
        assert result.epochs == tuple(seen)
        assert [e.epoch for e in seen] == [1, 2, 3, 4, 5, 6]
        accuracies = [e.val_accuracy or 0 for e in seen]
        if accuracies[-1] < max(accuracies):
            break
    else:
        pytest.fail("the last epoch was the best for every seed")
    model = with_weights(config, weights)
    predicted = predict(model, split.validation_images).argmax(axis=1)
    assert np.mean(predicted == split.validation_labels) == result.best.val_accuracy
    assert result.best.val_accuracy == max(accuracies)


def test_it_learns(split: DataSplit) -> None:
    result, _ = train(TrainingConfig.of(filters=16, epochs=6), split)
    assert (result.best.val_accuracy or 0) > 0.5  # 0.1 by chance
    assert result.epochs[-1].loss < result.epochs[0].loss


def test_patience_stops_after_epochs_without_improvement(split: DataSplit) -> None:
    # So small a learning rate changes nothing: the first epoch stays the best.
    config = SMALL.replace(learning_rate=1e-12, epochs=9, patience=2)
    result, _ = train(config, split)
    assert result.best.epoch == 1
    assert len(result.epochs) == 1 + 2


@pytest.mark.parametrize("before", [0, 2])
def test_a_training_that_diverges_ends_with_that_epoch(
    split: DataSplit, place: CheckpointPlace, before: int
) -> None:
    if before:  # epochs that go well
        cut_off_after(before, SMALL.replace(epochs=before), split, place)
    config = SMALL.replace(learning_rate=1e30, epochs=9)
    result, weights = train(config, split, place=place)
    assert result.diverged == len(result.epochs) == before + 1
    assert not math.isfinite(result.epochs[-1].loss)
    # The weights that are kept are numbers, if any epoch had such.
    assert (result.best.epoch <= before) == (before > 0)
    assert np.isfinite(np.concatenate([w.ravel() for w in weights])).all() == (before > 0)


def test_a_training_that_diverged_is_not_gone_on_with(
    split: DataSplit, place: CheckpointPlace
) -> None:
    config = SMALL.replace(learning_rate=1e30, epochs=4)
    cut_off_after(1, config, split, place)  # killed when its last checkpoint was written
    spared: list[Sequence[EpochMetrics]] = []
    trained: list[EpochMetrics] = []
    result, _ = train(config, split, trained.append, place=place, on_start=spared.append)
    assert [len(epochs) for epochs in spared] == [1]
    assert (trained, result.diverged) == ([], 1)


def test_speed_counts_training_images_alone(split: DataSplit) -> None:
    result, _ = train(SMALL, split)
    assert result.train_seconds == pytest.approx(sum(e.epoch_seconds for e in result.epochs))
    # Validation takes part of each epoch's seconds, so training alone is faster than this.
    assert result.images_per_second > 2 * 500 / result.train_seconds


@pytest.fixture
def place(tmp_path: Path) -> CheckpointPlace:
    return CheckpointPlace(folder=tmp_path / "new" / "folder", fingerprint="f" * 64)


@pytest.mark.parametrize("last", [1, 2, 4])
def test_a_training_that_was_cut_off_goes_on_to_the_same_numbers(
    split: DataSplit, place: CheckpointPlace, last: int
) -> None:
    config = SMALL.replace(epochs=4)
    assert dict(config.hyperparameters)["dropout"] == 0.3
    whole, weights = train(config, split)
    cut_off_after(last, config, split, place)
    spared: list[Sequence[EpochMetrics]] = []
    trained: list[EpochMetrics] = []
    result, weights_of_both = train(
        config, split, trained.append, place=place, on_start=spared.append
    )
    assert timeless(result) == timeless(whole)
    assert_same_weights(weights_of_both, weights)
    assert (result.model_parameters, result.config) == (whole.model_parameters, config)
    # What was trained before counts with the seconds and the time it had then.
    assert spared == [result.epochs[:last]]
    assert tuple(trained) == result.epochs[last:]
    assert result.train_seconds == sum(e.epoch_seconds for e in result.epochs)
    assert result.images_per_second > 4 * 500 / result.train_seconds


def test_the_best_epoch_may_lie_before_the_cut(split: DataSplit, place: CheckpointPlace) -> None:
    for seed in range(20):
        config = JUMPY.replace(epochs=4, seed=seed)
        whole, weights = train(config, split)
        if whole.best.epoch == 1:
            break
    else:
        pytest.fail("the first epoch was the best for no seed")
    cut_off_after(2, config, split, place)
    result, weights_of_both = train(config, split, place=place)
    assert timeless(result) == timeless(whole)
    assert_same_weights(weights_of_both, weights)


def test_patience_counts_the_epochs_before_the_cut(
    split: DataSplit, place: CheckpointPlace
) -> None:
    config = SMALL.replace(learning_rate=1e-12, epochs=9, patience=3)
    cut_off_after(2, config, split, place)
    result, _ = train(config, split, place=place)
    assert len(result.epochs) == 1 + 3


def loaded(place: CheckpointPlace, split: DataSplit, config: TrainingConfig) -> Checkpoint | None:
    images = len(split.validation_labels)
    return checkpoints.load(place.folder, place.fingerprint, config, images)


def test_a_checkpoint_of_another_training_is_ignored(
    split: DataSplit, place: CheckpointPlace
) -> None:
    cut_off_after(1, SMALL, split, place)
    other = dataclasses.replace(place, fingerprint="0" * 64)
    spared: list[Sequence[EpochMetrics]] = []
    trained: list[EpochMetrics] = []
    result, _ = train(SMALL, split, trained.append, place=other, on_start=spared.append)
    assert spared == [()]
    assert tuple(trained) == result.epochs
    assert loaded(place, split, SMALL) is None  # replaced by the other's


def test_an_epoch_is_told_when_its_checkpoint_is_written(
    split: DataSplit, place: CheckpointPlace
) -> None:
    saved: list[int] = []

    def on_epoch(metrics: EpochMetrics) -> None:
        checkpoint = loaded(place, split, SMALL)
        assert checkpoint is not None
        assert checkpoint.epochs[-1] == metrics
        saved.append(len(checkpoint.epochs))

    train(SMALL, split, on_epoch, place=place)
    assert saved == [1, 2]


def test_without_a_place_nothing_is_written(split: DataSplit, tmp_path: Path) -> None:
    train(SMALL.replace(epochs=1), split)
    assert list(tmp_path.rglob("*")) == []


def test_a_checkpoint_that_cannot_be_written_costs_no_training(
    split: DataSplit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    place = CheckpointPlace(folder=tmp_path / "file", fingerprint="f" * 64)
    with caplog.at_level(logging.WARNING, "fmnist_tracking"):
        result, _ = train(SMALL, split, place=place)
    assert len(result.epochs) == SMALL.epochs
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("fmnist_tracking")]
    assert len(warnings) == SMALL.epochs
    assert str(place.folder) in warnings[0]
    assert "was not written (File exists)" in warnings[0]
