"""KerasTuner: which point of the grid comes next."""

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from fmnist_tracking.config import SearchSpace, Value
from fmnist_tracking.errors import SearchError
from fmnist_tracking.results import FINISHED, TrialResult

OBJECTIVE = "val_accuracy"

RunTrial = Callable[[int, Mapping[str, Value]], "Future[TrialResult]"]


class GridOracle(keras_tuner.oracles.GridSearchOracle):  # type: ignore[misc]
    """KerasTuner's grid search over a finite space, able to keep several workers busy.

    KerasTuner queues a point's successor only when the point has ended, so that one worker
    is busy however many ask. Here it is queued as soon as the point is handed out, which is
    safe because no trial can add a hyperparameter of its own. Nothing is written to disk:
    MLflow is the only store, and KerasTuner's own files cannot resume a grid search.
    """

    def __init__(self, space: SearchSpace) -> None:
        hyperparameters = keras_tuner.HyperParameters()
        for axis, values in space.axes.items():
            hyperparameters.Choice(axis, list(values), default=values[0])
        super().__init__(
            objective=keras_tuner.Objective(OBJECTIVE, direction="max"),
            hyperparameters=hyperparameters,
            allow_new_entries=False,
            tune_new_entries=False,
            # A failed point must not stop the others, however many fail in a row.
            max_consecutive_failed_trials=None,
        )
        self.verbose = 0

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Values for a new trial; see the base class."""
        first = not self.start_order
        response: dict[str, Any] = super().populate_space(trial_id)
        if response["status"] == TrialStatus.RUNNING and not first:
            self._populate_next.append(trial_id)
        return response

    def save(self) -> None:
        """Write nothing."""

    def _save_trial(self, trial: Trial) -> None:
        """Write nothing."""


def explore(space: SearchSpace, run_trial: RunTrial, slots: int) -> tuple[TrialResult, ...]:
    """Ask for every point of a grid, have each run, and tell how it came out.

    Args:
        space: the grid.
        run_trial: starts the trial of a point, given the point's number, 1 for the first,
            and its values by axis; the future ends with the trial's result.
        slots: how many trials may run at once.

    Returns:
        One result for each point, in the order in which the points were handed out.

    Raises:
        SearchError: the oracle ended with a point missing or handed out twice.
    """
    oracle = GridOracle(space)
    results: dict[str, TrialResult] = {}
    running: dict[Future[TrialResult], Trial] = {}
    try:
        while True:
            while len(running) < slots:
                number = len(oracle.trials) + 1
                trial = oracle.create_trial(f"slot-{number}")
                if trial.status != TrialStatus.RUNNING:
                    break
                running[run_trial(number, trial.hyperparameters.values)] = trial
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                trial = running.pop(future)
                results[trial.trial_id] = future.result()
                _tell(oracle, trial, results[trial.trial_id])
    except BaseException:
        for future in running:
            future.cancel()
        raise
    _assert_complete(space, oracle)
    return tuple(results[trial_id] for trial_id in oracle.start_order)


def _tell(oracle: GridOracle, trial: Trial, result: TrialResult) -> None:
    if result.status == FINISHED:
        oracle.update_trial(
            trial.trial_id, {OBJECTIVE: result.val_accuracy}, step=result.best_epoch
        )
        trial.status = TrialStatus.COMPLETED
    else:
        trial.status = TrialStatus.FAILED
        trial.message = result.error
    oracle.end_trial(trial)


def _assert_complete(space: SearchSpace, oracle: GridOracle) -> None:
    points = [
        tuple(t.hyperparameters.values[a] for a in space.axes) for t in oracle.trials.values()
    ]
    if len(points) != len(space) or len(set(points)) != len(space):
        raise SearchError(
            f"The grid has {len(space)} points, but {len(points)} were tried, "
            f"{len(set(points))} of them different. Run the same search again."
        )
