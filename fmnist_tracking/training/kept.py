"""Checkpoints of finished trainings that are kept, so that longer ones go on from their ends.

They are known by `fingerprint.of_epochs`: an epoch's numbers do not depend on how many follow.
"""

import dataclasses
import logging
import time

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.files import private_folder
from fmnist_tracking.results import EpochMetrics, best_epoch
from fmnist_tracking.training import checkpoints
from fmnist_tracking.training.checkpoints import Checkpoint, CheckpointPlace

_MOST_EPOCHS = 10**6 - 1
# An unfinished file that is older was left by a process that was killed.
_LEFT_SECONDS = 3600.0

_log = logging.getLogger(__name__)


def is_done(config: TrainingConfig, epoch: EpochMetrics, best: int) -> bool:
    """Return whether a training ends with an epoch, if the best one so far has this number."""
    if not epoch.is_finite:  # weights that diverged do not recover
        return True
    waited = epoch.epoch - best
    return epoch.epoch >= config.epochs or bool(config.patience and waited >= config.patience)


def find(
    place: CheckpointPlace, config: TrainingConfig, validation_images: int
) -> Checkpoint | None:
    """Return the kept checkpoint that this training comes to, too; None if there is none.

    One of fewer epochs, or of less patience, may end before.
    """
    saved = _load(place, config, validation_images)
    if saved is None:
        return None
    best = saved.epochs[0]
    for epoch in saved.epochs[:-1]:
        best = best_epoch((best, epoch), config.compared_by)
        if is_done(config, epoch, best.epoch):
            return None
    return saved


def keep(
    checkpoint: Checkpoint,
    place: CheckpointPlace,
    config: TrainingConfig,
    validation_images: int,
) -> None:
    """Keep the checkpoint of a training that has ended, unless one of more epochs is kept."""
    there = _load(place, config, validation_images)
    if there is not None and len(there.epochs) > len(checkpoint.epochs):
        return
    try:
        private_folder(place.folder.parent)
        for unfinished in place.folder.glob(".*"):
            # Of a process that was killed, not of one that keeps a point of other epochs now.
            if time.time() - unfinished.stat().st_mtime > _LEFT_SECONDS:
                unfinished.unlink(missing_ok=True)
        checkpoints.save(
            dataclasses.replace(checkpoint, fingerprint=place.fingerprint), place.folder
        )
    except OSError as error:  # a full disk must not cost the training
        _log.warning(
            "The checkpoint to be kept in %s was not written (%s). The training has its result; "
            "one of more epochs will begin anew.",
            place.folder,
            error.strerror,
        )


def _load(
    place: CheckpointPlace, config: TrainingConfig, validation_images: int
) -> Checkpoint | None:
    longest = config.replace(epochs=_MOST_EPOCHS)
    return checkpoints.load(place.folder, place.fingerprint, longest, validation_images)
