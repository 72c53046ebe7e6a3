"""The coursework's grid as a user of Optuna and its MLflow callback writes it.

`grid_search` runs it as a program of its own, in an empty folder:

    python -m benchmarks.with_optuna IMAGES.npz EPOCHS

One trial after another, Optuna's default. The callback opens a run for each trial when it has
ended, and logs its parameters and its value; no curves, no model. Writes `result.json`.
"""

import sys

import keras
import optuna
from optuna_integration.mlflow import MLflowCallback

from benchmarks import network
from benchmarks.grid import GRID, write_result


def main() -> None:
    """Train the 12 points."""
    path, epochs = sys.argv[1], int(sys.argv[2])
    keras.utils.set_random_seed(0)

    def objective(trial: optuna.Trial) -> float:
        values = {axis: trial.suggest_categorical(axis, of) for axis, of in GRID.items()}
        return network.fit(network.build(**values), path, epochs)

    study = optuna.create_study(
        study_name="fashion-mnist",
        direction="maximize",
        sampler=optuna.samplers.GridSampler(GRID, seed=0),
    )
    callback = MLflowCallback(tracking_uri="sqlite:///mlflow.db", metric_name="val_accuracy")
    study.optimize(objective, callbacks=[callback])
    trials = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    write_result((t.params for t in trials), study.best_value)


if __name__ == "__main__":
    main()
