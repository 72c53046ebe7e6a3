"""KerasTuner: which point of the grid comes next."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from fmnist_tracking.config import Value
from fmnist_tracking.errors import SearchError
from fmnist_tracking.results import DIVERGED, TrialScore
from fmnist_tracking.search_space import SearchSpace

OBJECTIVE = "val_accuracy"


RunTrial = Callable[[Mapping[str, Value]], "Future[TrialScore]"]


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
        """Return the values for a new trial; see the base class."""
        first = not self.start_order
        response: dict[str, Any] = super().populate_space(trial_id)
        if response["status"] == TrialStatus.RUNNING and not first:
            self._populate_next.append(trial_id)
        return response

    def save(self) -> None:
        """Write nothing."""

    def _save_trial(self, trial: Trial) -> None:
        """Write nothing."""


@contextlib.contextmanager
def _keras_tuner_warnings_ignored() -> Iterator[None]:
    """Ignore that KerasTuner uses deprecated names, where the program makes warnings errors.

    Elsewhere the filters are left alone, as all threads of the process share them.
    """
    if all(action != "error" for action, *_ in warnings.filters):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="keras_tuner")
        yield


def explore(
    space: SearchSpace, run_trial: RunTrial, slots: Callable[[], int], stop: "Future[None]"
) -> None:
    """Ask for every point of a grid, have each run, and tell how it came out.

    Args:
        space: the grid.
        run_trial: starts the trial of a point, given its values by axis; the future ends
            with how the trial came out.
        slots: returns how many trials may run at once.
        stop: ends the search when it ends with an exception, whatever is running.

    Raises:
        SearchError: the oracle ended with a point missing or handed out twice.
    """
    oracle = GridOracle(space)
    running: dict[Future[TrialScore], Trial] = {}
    while True:
        while len(running) < slots():
            with _keras_tuner_warnings_ignored():
                trial = oracle.create_trial(f"slot-{len(oracle.trials) + 1}")
            if trial.status != TrialStatus.RUNNING:
                break
            future = run_trial(trial.hyperparameters.values)
            if future.done():  # trained already: told at once, so that it holds no slot
                _tell(oracle, trial, future.result())
            else:
                running[future] = trial
        if not running:
            break
        watched: list[Future[Any]] = [*running, stop]
        done, _ = wait(watched, return_when=FIRST_COMPLETED)
        if stop in done:
            stop.result()
        for future in running.keys() & done:
            _tell(oracle, running.pop(future), future.result())
    _assert_complete(space, oracle)


@_keras_tuner_warnings_ignored()
def _tell(oracle: GridOracle, trial: Trial, outcome: TrialScore) -> None:
    if outcome.val_accuracy is not None and not outcome.diverged:
        oracle.update_trial(
            trial.trial_id, {OBJECTIVE: outcome.val_accuracy}, step=outcome.best_epoch or 0
        )
        trial.status = TrialStatus.COMPLETED
    else:
        trial.status = TrialStatus.FAILED
        trial.message = DIVERGED if outcome.diverged else outcome.error
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
