"""Train one configuration: seeds, epochs, checkpoints, the best weights."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tracking import clock, runtime
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.data import DataSplit
from fmnist_tracking.metrics import accuracy, predicted_labels, score
from fmnist_tracking.networks.build import size_of_model
from fmnist_tracking.objective import Objective
from fmnist_tracking.results import EpochMetrics, TrainingResult, best_epoch
from fmnist_tracking.training import checkpoints, kept
from fmnist_tracking.training.checkpoints import Checkpoint, CheckpointPlace
from fmnist_tracking.training.prepare import Prepared, as_tensor, prepare, require_probabilities
from fmnist_tracking.training.system_metrics import SystemMeter

OnEpoch = Callable[[EpochMetrics], None]
OnStart = Callable[[Sequence[EpochMetrics]], None]
Weights = tuple[NDArray[np.float32], ...]

_log = logging.getLogger(__name__)


def train(
    config: TrainingConfig,
    data: DataSplit,
    on_epoch: OnEpoch = lambda _: None,
    *,
    place: CheckpointPlace | None = None,
    begin_from: CheckpointPlace | None = None,
    keep_in: CheckpointPlace | None = None,
    on_start: OnStart = lambda _: None,
) -> tuple[TrainingResult, Weights]:
    """Train one configuration, deterministically for its seed, processor and threads.

    The order of images and the dropout of an epoch depend only on the seed and the epoch's number,
    and a checkpoint holds the state of the optimizer: so a training that was interrupted and
    resumed gives the same numbers, to the last bit, as one that was not.

    A training whose loss on training or validation images is no longer finite has diverged, and
    ends with that epoch.

    Args:
        config: what to train.
        data: training and validation images; without any for validation, the best epoch is the
            last.
        on_epoch: called after each epoch with its metrics, once its checkpoint is written, in a
            background thread; an exception in it ends the training, after one more epoch at most.
        place: of the checkpoint, which is written after each epoch, and from which the training is
            resumed if it exists; None saves none. The caller removes it.
        begin_from: of the checkpoint of a shorter training to go on from, if there is none in
            `place`.
        keep_in: with a `place`, where the last checkpoint is kept for a longer training.
        on_start: called before the first step with the metrics of the epochs that the checkpoint
            holds; usually none.

    Returns:
        The result, and the weights of the best epoch; see `results.best_epoch`.
    """
    images, labels = as_tensor(data.train_images), as_tensor(data.train_labels)
    source, saved, count = place, None, len(data.validation_labels)
    if place is not None:
        saved = checkpoints.load(place.folder, place.fingerprint, config, count)
    if saved is None and begin_from is not None:
        source, saved = begin_from, kept.find(begin_from, config, count)
    prepared = prepare(config, images, labels, saved.compiled if saved else None)
    step, model = prepared.step, prepared.model
    if saved is not None and source is not None and not saved.fits(step.variables, model):
        _log.warning("The checkpoint in %s is not used: it is another network's.", source.folder)
        saved = None
    meter = SystemMeter()

    objective = config.compared_by
    epochs: list[EpochMetrics] = []
    best_weights: Weights = ()
    best_predicted = np.empty(0, np.uint8)
    best = 0
    fit_seconds = 0.0
    if saved is not None:
        for variable, value in zip(step.variables, saved.variables, strict=True):
            variable.assign(value)
        epochs, fit_seconds = list(saved.epochs), saved.fit_seconds
        best, best_weights = best_epoch(epochs, objective).epoch, saved.best_weights
        best_predicted = saved.best_predicted
        # Else it could not go on if it is cut off now.
        if place is not None and source is not place:
            _save(dataclasses.replace(saved, fingerprint=place.fingerprint), place.folder)
    last = saved
    on_start(tuple(epochs))

    def report(figures: EpochMetrics, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None and place is not None:
            _save(checkpoint, place.folder)
        on_epoch(figures)

    # The next epoch is trained while a checkpoint is written.
    with ThreadPoolExecutor(1) as background:
        reported: Future[None] | None = None
        while not (epochs and kept.is_done(config, epochs[-1], best)):
            epoch = len(epochs) + 1
            start = clock.now()
            order = np.random.default_rng([config.seed, epoch]).permutation(len(labels))
            loss, right = step.run_epoch(images, labels, order, epoch=epoch)
            fit_seconds += clock.now() - start
            scores, predicted = _validate(prepared, data, objective)
            figures = EpochMetrics(
                epoch=epoch,
                loss=loss,
                accuracy=right / len(order),
                **scores,
                epoch_seconds=clock.now() - start,
                ended_at=int(time.time() * 1000),
                usage=meter.read(),
            )
            epochs.append(figures)
            if best_epoch(epochs, objective) is figures:
                best, best_weights = epoch, tuple(model.get_weights())
                best_predicted = predicted
            if place is not None:
                last = Checkpoint(
                    fingerprint=place.fingerprint,
                    epochs=tuple(epochs),
                    fit_seconds=fit_seconds,
                    variables=tuple(v.numpy() for v in step.variables),
                    best_weights=best_weights,
                    best_predicted=best_predicted,
                    compiled=step.compiled,
                )
            if reported is not None:
                reported.result()
            reported = background.submit(report, figures, last)
        if reported is not None:
            reported.result()
    if last is not None and keep_in is not None:
        kept.keep(last, keep_in, config, count)

    if config.size is None:
        config = dataclasses.replace(config, size=size_of_model(model))
    val_loss = epochs[best - 1].val_loss
    result = TrainingResult(
        config=config,
        epochs=tuple(epochs),
        model_parameters=model.count_params(),
        train_seconds=sum(e.epoch_seconds for e in epochs),
        images_per_second=len(epochs) * len(data.train_labels) / fit_seconds,
        train_images=len(data.train_labels),
        validation=None
        if val_loss is None
        else score(data.validation_labels, best_predicted, val_loss, data.class_names),
        settings={
            **{name: os.environ.get(name) for name in runtime.DEFAULTS},
            "threads": runtime.threads(),
            "shards": step.shards,
            "jit_compile": step.compiled,
        },
        class_names=data.class_names,
    )
    return result, best_weights


def _validate(
    prepared: Prepared, data: DataSplit, objective: Objective
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Return an epoch's figures of the validation images, and what they are taken for."""
    labels = data.validation_labels
    if not len(labels):
        return {"val_loss": None, "val_accuracy": None}, np.empty(0, np.uint8)
    loss, probabilities = prepared.evaluate(as_tensor(data.validation_images), as_tensor(labels))
    require_probabilities(probabilities)
    predicted = predicted_labels(probabilities)
    scores = {"val_loss": loss, "val_accuracy": accuracy(labels, predicted)}
    if objective.average:
        scores["objective"] = score(labels, predicted, loss, data.class_names).value(objective)
    return scores, predicted


def _save(checkpoint: Checkpoint, folder: Path) -> None:
    try:
        checkpoints.save(checkpoint, folder)
    except OSError as error:  # a full disk must not stop the training
        _log.warning(
            "The checkpoint in %s was not written (%s). Training goes on; if it is cut off "
            "now, it repeats from the last one that was.",
            folder,
            error.strerror,
        )
