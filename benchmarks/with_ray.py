"""The coursework's grid as a user of Ray Tune and its MLflow callback writes it.

`grid_search` runs it as a program of its own, in an empty folder:

    python -m benchmarks.with_ray IMAGES.npz EPOCHS

Ray Tune gives each trial a core and a process of its own, its default, so that as many are trained
at once as there are cores. The callback opens a run for each trial, and logs its parameters and
what is reported after each epoch; no model. Writes `result.json`.
"""

import os
import sys
from typing import Any

from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback

from benchmarks.grid import GRID, write_result


def train(values: dict[str, Any], path: str, epochs: int) -> None:
    """Train one point, in a process of Ray's."""
    import keras

    from benchmarks import network

    class Reporting(keras.callbacks.Callback):  # type: ignore[misc]
        """Reports each epoch to Ray."""

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            """Report one epoch."""
            tune.report({name: float(value) for name, value in (logs or {}).items()})

    keras.utils.set_random_seed(0)
    network.fit(network.build(**values), path, epochs, [Reporting()])


def main() -> None:
    """Train the 12 points."""
    path, epochs = sys.argv[1], int(sys.argv[2])
    callback = MLflowLoggerCallback(
        tracking_uri=f"sqlite:///{os.getcwd()}/mlflow.db", experiment_name="fashion-mnist"
    )
    tuner = tune.Tuner(
        tune.with_parameters(train, path=path, epochs=epochs),
        param_space={axis: tune.grid_search(values) for axis, values in GRID.items()},
        tune_config=tune.TuneConfig(metric="val_accuracy", mode="max"),
        run_config=tune.RunConfig(storage_path=f"{os.getcwd()}/ray", callbacks=[callback]),
    )
    found = tuner.fit()
    ended = [r for r in found if r.error is None and r.metrics is not None]
    write_result(
        (r.config for r in ended if r.config),
        max(r.metrics_dataframe["val_accuracy"].max() for r in ended),
    )


if __name__ == "__main__":
    main()
