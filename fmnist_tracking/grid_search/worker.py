"""What a worker process does with each trial."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from fmnist_tracking import clock
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.errors import DataError
from fmnist_tracking.grid_search.images import Images, load_split
from fmnist_tracking.grid_search.messages import (
    EpochEnded,
    Failed,
    Trained,
    TrialStarted,
    TrialTask,
)
from fmnist_tracking.network import Network, Value
from fmnist_tracking.networks.build import build_model, packed
from fmnist_tracking.networks.proposals import propose
from fmnist_tracking.networks.space import defaults, explore_grid
from fmnist_tracking.results import EpochMetrics
from fmnist_tracking.search_space import Combination, Draw, NetworkGrid, Proposed
from fmnist_tracking.training import loop, prepare
from fmnist_tracking.training.checkpoints import CheckpointPlace


def run_trial(task: TrialTask, report: Callable[[Any], None]) -> Trained | Failed:
    """Train one point, or go on with one that was cut off.

    A worker writes nothing but the checkpoint: what it reports and returns is for the
    process that started it to record. It reports `TrialStarted`, and `EpochEnded` after each epoch.

    Raises:
        DataError: the data is not what the search began with.
    """
    try:
        return _trained(task, report)
    except DataError:  # no trial can be trained
        raise
    except BaseException as error:  # a network may call sys.exit
        return Failed.by(error)


def _trained(task: TrialTask, report: Callable[[Any], None]) -> Trained:
    start, trial = clock.now(), task.trial
    split = load_split(task.images)

    def on_start(epochs: Sequence[EpochMetrics]) -> None:
        report(TrialStarted(number=trial.number, epochs=tuple(epochs)))

    result, weights = loop.train(
        trial.config,
        split,
        lambda metrics: report(EpochEnded(number=trial.number, metrics=metrics)),
        place=CheckpointPlace(folder=trial.checkpoint_dir, fingerprint=trial.fingerprint),
        begin_from=trial.begin_from,
        keep_in=trial.keep_in,
        on_start=on_start,
    )
    keras.utils.set_random_seed(trial.config.seed)  # as before it was built for the training
    model = packed(build_model(trial.config), weights, trial.config.network)
    seconds = clock.now() - start
    return Trained(result=result, weights=weights, model=model, seconds=seconds)


def list_points(
    network: Network,
    replaced: Mapping[str, Sequence[Value]],
    draw: Draw | None,
    report: Callable[[Any], None],
) -> NetworkGrid:
    """Return the points of a network's grid, or drawn ones; see `networks.space.explore_grid`.

    The first of them is trained on some images of noise, to see whether it can be.
    """
    return explore_grid(network, replaced, report, prepare.require_trainable, draw)


def propose_points(
    network: Network,
    replaced: Mapping[str, Sequence[Value]],
    draw: Draw,
    ahead: int,
    scores: Sequence[float | None],
    _: Callable[[Any], None],
) -> Proposed:
    """Return the points that depend on results, as far as these are known; see `proposals`."""
    return propose(network, replaced, draw, ahead, scores, prepare.require_trainable)


def default_point(
    network: Network, given: Mapping[str, Value], _: Callable[[Any], None]
) -> Combination:
    """Return a network's hyperparameters with their defaults; see `networks.space.defaults`."""
    return defaults(network, given, prepare.require_trainable)


def measure(
    config: TrainingConfig,
    images: Images,
    some: int,
    _: Callable[[Any], None],
) -> list[float]:
    """Train on some of the images, and validate on a fifth as many, to see how long it takes.

    Returns:
        Seconds of each epoch.

    Raises:
        DataError: the data is another, or cannot be had.
    """
    whole = load_split(images)
    validation = max(1, some // 5)
    part = dataclasses.replace(
        whole,
        train_images=whole.train_images[:some],
        train_labels=whole.train_labels[:some],
        validation_images=whole.validation_images[:validation],
        validation_labels=whole.validation_labels[:validation],
    )
    result, _weights = loop.train(config, part)
    return [epoch.epoch_seconds for epoch in result.epochs]
