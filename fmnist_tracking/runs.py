"""Searches and trials of a store, as objects to work with."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from fmnist_tracking import interrupts, leaderboard, tracking
from fmnist_tracking.config import require_flag
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.inference import fetched_model
from fmnist_tracking.network import Value
from fmnist_tracking.objective import VAL_ACCURACY
from fmnist_tracking.redact import printable
from fmnist_tracking.results import (
    RunSummary,
    SearchResult,
    StoredRun,
    TrialResult,
    located,
)

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Trial:
    """A trial: a point of a grid, or a single configuration, trained with one seed.

    Attributes:
        result: its record, as the store has it.
        tracking_uri: address of the store; it may hold a password.
    """

    result: TrialResult
    tracking_uri: str

    @property
    def run_id(self) -> str:
        """Return the id of its MLflow run."""
        return self.result.run_id

    @property
    def name(self) -> str:
        """Return its name, such as "f48 k3 s1"."""
        return self.result.name

    @property
    def status(self) -> str:
        """Return FINISHED, FAILED, KILLED, RUNNING, or "diverged"."""
        return self.result.outcome

    @property
    def params(self) -> dict[str, Value]:
        """Return every setting of the training by name."""
        return dict(self.result.config.values)

    @property
    def val_accuracy(self) -> float | None:
        """Return the validation accuracy of its best epoch, 0 to 1.

        It is None if the trial did not finish, and for a final training.
        """
        return self.result.val_accuracy

    @property
    def best_epoch(self) -> int | None:
        """Return the best epoch, 1 for the first; None if it did not finish."""
        return self.result.best_epoch

    @property
    def final_of(self) -> str | None:
        """Return the id of the run that it is the final training of, None for all others."""
        return self.result.final_of

    @property
    def failure(self) -> str | None:
        """Return, in a sentence, that the training has diverged; None if it has not."""
        if not self.result.diverged:
            return None
        return (
            f"The training diverged: its loss is no finite number. Its run is {self.run_id}. "
            "Train with a smaller learning_rate."
        )

    def history(self) -> pd.DataFrame:
        """Return its metrics by epoch.

        Returns:
            One row for each epoch, indexed by `epoch` from 1, with the columns `loss`, `accuracy`,
            `val_loss`, `val_accuracy` and `epoch_seconds`; for a final training, without those of
            validation.

        Raises:
            TrackingError: the trial did not finish, or its record cannot be read.
        """
        with tracking.open_store(self.tracking_uri) as store:
            training = tracking.read_history(store, tracking.find_run(store, self.run_id))
        validation = () if training.validation is None else ("val_loss", "val_accuracy")
        columns = ("loss", "accuracy", *validation, "epoch_seconds")
        epochs = pd.Index([epoch.epoch for epoch in training.epochs], name="epoch")
        rows = [[getattr(epoch, name) for name in columns] for epoch in training.epochs]
        return pd.DataFrame(rows, index=epochs, columns=list(columns))

    def load_model(self, *, trust_code: bool = False) -> "keras.Model":
        """Load its network, with the weights of the best epoch.

        Args:
            trust_code: run the code that was logged with the model, if it needs some: code of
                layers of one's own, which whoever can write to the store could have put there.

        Returns:
            A Keras model, uncompiled: raw pixels, uint8 of shape (n, height, width, channels),
            to class probabilities, float32 of shape (n, classes).

        Raises:
            TrackingError: the trial did not finish, or its model cannot be loaded, or needs code
                that is not trusted.
        """
        require_flag("trust_code", trust_code)
        with interrupts.held_back():
            from fmnist_tracking import model_worker  # and with it TensorFlow

        with tracking.open_store(self.tracking_uri) as store:
            trial = tracking.find_run(store, self.run_id)
            with fetched_model(store, trial, trust_code) as model:
                return model_worker.load_model(model)

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        accuracy = self.val_accuracy
        scored = "" if accuracy is None else f", validation accuracy {accuracy:.4f}"
        return f"Trial {printable(self.name)}, run {self.run_id[:8]}: {self.status}{scored}"


@dataclass(frozen=True, eq=False, repr=False)
class Search:
    """A search of a grid, and its trials.

    In a notebook it is shown as its leaderboard and the figure of its grid.

    Attributes:
        result: its record, as the store has it.
        tracking_uri: address of the store; it may hold a password.
    """

    result: SearchResult
    tracking_uri: str

    @property
    def run_id(self) -> str:
        """Return the id of its MLflow run."""
        return self.result.run_id

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Return its trials, in the grid's order."""
        return tuple(Trial(trial, self.tracking_uri) for trial in self.result.trials)

    @property
    def best(self) -> Trial | None:
        """Return the trial with the best score, None if none has finished.

        Of points trained with several seeds, it is the best trial of the point with the best mean.
        `to_dataframe` shows the others.
        """
        best = leaderboard.best(self.result.finished)
        return next((trial for trial in self.trials if trial.result is best), None)

    @property
    def finished(self) -> tuple[Trial, ...]:
        """Return the trials that have finished, and so have a score."""
        return tuple(trial for trial in self.trials if trial.result.is_scored)

    @property
    def failed(self) -> tuple[Trial, ...]:
        """Return the trials that have ended without a result."""
        return tuple(trial for trial in self.trials if trial.result in self.result.failed)

    @property
    def failure(self) -> str | None:
        """Return, in a sentence, that points have failed or all diverged; None if neither."""
        failed = len(self.failed)
        if failed:
            return (
                f"{failed} of {len(self.result.space)} points failed. Their runs hold the "
                "traceback, as the artifact traceback.txt. The same search tries them again."
            )
        if self.finished and self.best is None:
            return (
                "Every trial diverged: each ended with a loss that is no finite number, so there "
                "is no best one. Train with a smaller learning_rate, such as 0.001."
            )
        return None

    def to_dataframe(self) -> pd.DataFrame:
        """Return its leaderboard.

        Returns:
            One row for each trial, the best first: `rank` (missing for a trial without a score; the
            repeats of a point share one), `name`, the settings that vary, `score` (if the objective
            is another than `val_accuracy`), `val_accuracy`, `best_epoch`, `train_seconds`,
            `model_parameters`, `status`, `reused`, `error`, the settings that do not vary, and
            `run_id`.
        """
        rows = leaderboard.leaderboard(self.result.trials)
        varying, other = self.result.space.varying, self.result.objective != VAL_ACCURACY
        table = pd.DataFrame(
            [
                {
                    "rank": row.rank,
                    "name": row.trial.name,
                    **{axis: row.trial.config.values.get(axis) for axis in varying},
                    **({"score": row.trial.score} if other else {}),
                    "val_accuracy": row.trial.val_accuracy,
                    "best_epoch": row.trial.best_epoch,
                    "train_seconds": row.trial.train_seconds,
                    "model_parameters": row.trial.model_parameters,
                    "status": row.trial.outcome,
                    "reused": row.trial.reused,
                    "error": row.trial.error,
                    **row.trial.config.values,
                    "run_id": row.trial.run_id,
                }
                for row in rows
            ]
        )
        whole = {"rank": "Int64", "best_epoch": "Int64", "model_parameters": "Int64"}
        return table.astype(whole) if len(table) else table

    def plot_grid(self) -> "Figure":
        """Draw validation accuracy, or another objective, by each hyperparameter of the grid."""
        with interrupts.held_back():
            from fmnist_tracking import plots
        return plots.displayed(plots.search_grid(self.result))

    def grid_png(self) -> bytes:
        """Return the same figure as a PNG file."""
        with interrupts.held_back():
            from fmnist_tracking import plots
        return plots.png(plots.search_grid(self.result))

    def to_json(self) -> dict[str, Any]:
        """Return what `search --json` prints."""
        best = self.best
        return self.result.to_json(None if best is None else best.result)

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        points = f"{len(self.result.finished)} of {len(self.result.space)} points finished"
        return f"Search {self.run_id[:8]}: {points}"

    def _repr_html_(self) -> str:
        axes = list(self.result.space.varying)
        shown = ["rank", "name", *axes, "status", "val_accuracy", "best_epoch", "train_seconds"]
        table = self.to_dataframe()
        if len(table):
            table = table[shown].rename(columns={"name": "trial", "train_seconds": "seconds"})
        formats: Mapping[str, Any] = {
            "trial": printable,
            "val_accuracy": "{:.4f}".format,
            "seconds": "{:.1f}".format,
        }
        rows = table.to_html(index=False, na_rep="", formatters=formats, border=0)
        picture = base64.b64encode(self.grid_png()).decode("ascii")
        return (
            f"<p>{self}</p>{rows}"
            f'<img alt="validation accuracy" src="data:image/png;base64,{picture}">'
        )


def load_search(
    reference: str | StoredRun = "latest",
    *,
    experiment: str | None = None,
    tracking_uri: str | None = None,
) -> Search:
    """Read a search and its trials from the store.

    Args:
        reference: the run id of a search, the beginning of one, or `latest` for the search whose
            command was given last. Or a search, to read it again.
        experiment: name of the experiment to look in, None for the one in use.
        tracking_uri: address of the MLflow store, None for the usual one.

    Raises:
        ConfigError: the reference is no run, or the run is no search.
        TrackingError: there is no such run.
    """
    reference, tracking_uri = located(reference, tracking_uri)
    with tracking.open_store(tracking_uri, files=False) as store:
        run = tracking.find_run(store, reference, experiment, latest=["search"])
        if run.role != "search":
            kind = "single training" if run.role == "train" else "trial"
            raise ConfigError(
                f"The run {run.run_id[:8]} is a {kind}, not a search, and has no trials. "
                "Expected the id of a search; `fmnist-track runs` lists them."
            )
        return Search(tracking.read_search(store, run), store.address)


def load_trial(
    reference: str | StoredRun = "best",
    *,
    experiment: str | None = None,
    tracking_uri: str | None = None,
) -> Trial:
    """Read a trial from the store; of a search the best one, by validation accuracy.

    Args:
        reference: a run id, the beginning of one, `latest`, `best` (of the latest search),
            `best-of-all` (of all searches on the same images) or `champion`. Or a search or trial.
        experiment: name of the experiment to look in, None for the one in use.
        tracking_uri: address of the MLflow store, None for the usual one.

    Raises:
        ConfigError: the reference is no run.
        TrackingError: there is no such run, or it is a search without a finished trial.
    """
    reference, tracking_uri = located(reference, tracking_uri)
    with tracking.open_store(tracking_uri, files=False) as store:
        run = tracking.find_run(store, reference, experiment)
        return Trial(tracking.read_trial(tracking.best_trial(store, run)), store.address)


def list_runs(
    *, experiment: str | None = None, tracking_uri: str | None = None
) -> list[RunSummary]:
    """Return the searches and single trainings, that whose command was given last first.

    Args:
        experiment: name of the experiment to look in, None for the one in use.
        tracking_uri: address of the MLflow store, None for the usual one.

    Raises:
        TrackingError: the store cannot be reached, or holds nothing of this project.
    """
    with tracking.open_store(tracking_uri, files=False) as store:
        return tracking.list_runs(store, experiment)


def repair_runs(
    *, experiment: str | None = None, tracking_uri: str | None = None
) -> list[tuple[str, str]]:
    """Close, as KILLED, the open runs whose process is gone.

    Runs of another machine are watched for up to two minutes, as nothing else shows whether it is
    still at work.

    Args:
        experiment: name of the experiment to look in, None for the one in use.
        tracking_uri: address of the MLflow store, None for the usual one.

    Returns:
        Id and name of each run that was closed.

    Raises:
        TrackingError: there is no such experiment, or the store cannot be reached.
    """
    with tracking.open_store(tracking_uri, access="write", files=False) as store:
        in_use = tracking.experiment_in_use(store, experiment)
        return tracking.close_orphans(store, in_use, watch=True)
