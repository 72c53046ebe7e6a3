"""The trials of a search: what is done of each already, and what is left to train."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_tracking import fingerprint as fingerprints
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.results import TrialResult
from fmnist_tracking.search_space import trial_name
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.training import checkpoints, kept
from fmnist_tracking.training.checkpoints import CheckpointPlace

if TYPE_CHECKING:
    from fmnist_tracking.tracking import ResumeState

# Of a fingerprint, so many characters name the folder of a trial's checkpoint.
_FOLDER_CHARACTERS = 16


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """The checkpoints of finished trials that are kept, for those of more epochs to go on from."""

    folder: Path
    data_digest: str  # of the data that they are trained on
    uses: bool  # trials go on from those that are there
    keeps: bool  # trials add theirs

    def place(self, config: TrainingConfig, split: SplitConfig) -> CheckpointPlace | None:
        """Return where the checkpoint of a configuration is, whatever its number of epochs.

        None where nothing is used or kept.
        """
        if not (self.uses or self.keeps):
            return None
        key = fingerprints.of_epochs(config, split, self.data_digest)
        return CheckpointPlace(folder=self.folder / key[:_FOLDER_CHARACTERS], fingerprint=key)


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """A point of the grid with its seed, and how far it has come.

    It is sent to a worker as it is.
    """

    number: int  # its place in the grid, 1 for the first
    name: str  # for people
    config: TrainingConfig
    fingerprint: str  # of all that determines its numbers
    checkpoint_dir: Path
    epochs_done: int = 0  # that the checkpoint has
    epochs_kept: int = 0  # that the one in `begin_from` has
    begin_from: CheckpointPlace | None = None  # of a shorter training, if it has none of its own
    keep_in: CheckpointPlace | None = None  # where its checkpoint stays when it has finished
    run_id: str | None = None  # of the run that was cut off and is gone on with
    finished: TrialResult | None = None  # the trial that has finished already
    final_of: str | None = None  # the run that it is the final training of


def plan_trials(
    points: Sequence[TrainingConfig],
    fingerprints: Sequence[str],
    axes: tuple[str, ...],
    split: SplitConfig,
    state: "ResumeState",
    folder: Path,
    keeping: Keeping,
    first: int = 1,
) -> tuple[PlannedTrial, ...]:
    """Return a trial for each point of a grid, in its order, named by the axes that vary.

    They are numbered from the `first`.
    """
    trials: list[PlannedTrial] = []
    for config, fingerprint in zip(points, fingerprints, strict=True):
        checkpoint_dir = folder / fingerprint[:_FOLDER_CHARACTERS]
        finished = state.finished.get(fingerprint)
        place = keeping.place(config, split)
        saved = shorter = None
        if finished is None:
            images = split.validation_images
            saved = checkpoints.load(checkpoint_dir, fingerprint, config, images)
            if place is not None and keeping.uses and saved is None and not state.is_fresh:
                shorter = kept.find(place, config, images)
        unfinished = state.open.get(fingerprint)
        # A run whose epochs would have to be trained again stays as it is: in it, they would be
        # logged twice.
        resumes = unfinished is not None and (saved is not None or not unfinished.has_steps)
        trials.append(
            PlannedTrial(
                number=len(trials) + first,
                name=trial_name(config, axes),
                config=config,
                fingerprint=fingerprint,
                checkpoint_dir=checkpoint_dir,
                epochs_done=len(saved.epochs) if saved else 0,
                epochs_kept=len(shorter.epochs) if shorter else 0,
                begin_from=place if shorter else None,
                keep_in=place if keeping.keeps else None,
                run_id=unfinished.run_id if unfinished and resumes else None,
                finished=finished,
            )
        )
    return tuple(trials)
