"""What happens to a trial -> operations on its run in MLflow, carried out in the background."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from fmnist_tracking import plots, tracking
from fmnist_tracking.console import Echo
from fmnist_tracking.grid_search.messages import Failed, Trained
from fmnist_tracking.grid_search.plan import PlannedTrial
from fmnist_tracking.grid_search.recording import Recording
from fmnist_tracking.networks.build import with_weights
from fmnist_tracking.results import DatasetPart, EpochMetrics
from fmnist_tracking.tracking import TrialInfo
from fmnist_tracking.training import checkpoints


class TrialLogger:
    """Logs one trial. No method waits: the background writer does the work, in order.

    Making it opens the trial's run, or resumes the one that was cut off. The examples that are kept
    with the model are raw images, uint8 (n, height, width, channels).
    """

    def __init__(
        self,
        recording: Recording,
        info: TrialInfo,
        trial: PlannedTrial,
        examples: NDArray[np.uint8],
        echo: Echo,
    ) -> None:
        self._recording = recording
        self._store = recording.store
        self._info = info
        self._trial = trial
        self._examples = examples
        self._echo = echo
        # Touched by the writer's thread only.
        self._existing = trial.run_id
        self._run_id = ""
        self._data: tuple[DatasetPart, ...] = ()
        self._logged: set[int] = set()
        self._is_gone = False  # somebody deleted the run while the trial ran
        self._submit(self._open)

    def log_data(self, data: tuple[DatasetPart, ...]) -> None:
        """Link the run with the images that the trial was given."""

        def operation(_: bool) -> None:
            self._data = data
            tracking.log_inputs(self._store, self._run_id, self._info.data, data)

        self._submit(operation)

    def log_epochs(self, epochs: Iterable[EpochMetrics]) -> None:
        """Log the figures of epochs, those that are not yet logged."""
        figures = tuple(epochs)
        self._submit(lambda _: self._log(figures))

    def log_interruption(self, line: str) -> None:
        """Log, in a line, that the trial was interrupted and goes on."""
        self._submit(lambda _: tracking.note_interruption(self._store, self._run_id, line))

    def finish(self, trained: Trained) -> None:
        """Log the result and the model, close the run, and remove the checkpoint."""

        def operation(retry: bool) -> None:
            result, name = trained.result, self._info.name
            self._log(result.epochs)
            model = trained.model
            if isinstance(model, str):
                model = with_weights(model, trained.weights)
            title = f"Learning curves of {name} (run {self._run_id[:8]})"
            tracking.finish_trial(
                self._store,
                self._recording.experiment_id,
                self._run_id,
                self._info,
                result,
                model,
                self._examples,
                plots.png(plots.learning_curves(result, title)),
                data=self._data,
                retry=retry or self._existing is not None,
            )
            checkpoints.remove(self._trial.checkpoint_dir)

        self._submit(operation)

    def fail(self, failed: Failed) -> None:
        """Log the error that ended the trial, and close the run."""
        self._submit(
            lambda _: tracking.fail_trial(
                self._store,
                self._recording.experiment_id,
                self._run_id,
                self._info,
                failed.line,
                failed.trace,
            )
        )

    def _open(self, retry: bool) -> None:
        store, experiment_id = self._store, self._recording.experiment_id
        if self._trial.run_id is None:
            if retry:  # an earlier try may have made it
                self._existing = tracking.find_trial(store, experiment_id, self._info)
        elif tracking.find_active(store, self._trial.run_id) is None:
            self._existing = None  # deleted meanwhile
        self._run_id = tracking.start_trial(store, experiment_id, self._info, self._existing)
        if self._info.parent is None:
            self._recording.run_id = self._run_id
        if self._existing is not None:
            validates = self._info.split.validates
            self._logged = tracking.logged_steps(store, self._run_id, validates=validates)

    def _log(self, epochs: Iterable[EpochMetrics]) -> None:
        new = [epoch for epoch in epochs if epoch.epoch not in self._logged]
        if new:
            tracking.log_epochs(self._store, self._run_id, new)
            self._logged |= {epoch.epoch for epoch in new}

    def _submit(self, operation: Callable[[bool], None]) -> None:
        """Have an operation on the run carried out, as long as the run is there."""

        def careful(retry: bool) -> None:
            if self._is_gone:
                return
            try:
                operation(retry)
            except Exception:
                if not self._run_id or tracking.find_active(self._store, self._run_id):
                    raise
                self._is_gone = True
                self._echo(
                    f"The run {self._run_id[:8]} of {self._info.name} was deleted while it was "
                    "written: that point is not recorded."
                )

        self._recording.writer.submit(careful)
