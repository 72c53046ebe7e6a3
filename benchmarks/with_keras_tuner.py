"""The coursework's grid as a user of KerasTuner and MLflow writes it, without this package.

`grid_search` runs it as a program of its own, in an empty folder:

    python -m benchmarks.with_keras_tuner IMAGES.npz EPOCHS [--autolog]

KerasTuner's `GridSearch` trains the 12 points; what Keras, TensorFlow and KerasTuner set by
default stays as it is. With `--autolog`, MLflow tracks them by `mlflow.tensorflow.autolog()`, whose
defaults stay too: of each call of `fit` it logs the parameters, the metrics, the data sets, a
checkpoint of the best epoch, TensorBoard's files and the model.

Autologging alone would make 12 runs that nothing holds together and that do not tell which point
they are of, because it sees the arguments of `fit` and not KerasTuner's hyperparameters. So the
search is done within a run, and `HyperModel.fit`, KerasTuner's own place for such things, opens a
nested run for each trial and logs its hyperparameters: what MLflow's documentation of child runs
does with other libraries.

Writes `result.json`: how many points were trained, and the best validation accuracy.
"""

import argparse
from typing import Any

import keras
import keras_tuner

from benchmarks import network
from benchmarks.grid import GRID, write_result


class Grid(keras_tuner.HyperModel):  # type: ignore[misc]
    """The coursework's network and grid."""

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Build the network of one point, compiled."""
        return network.build(**{axis: hp.Choice(axis, of) for axis, of in GRID.items()})


class TrackedGrid(Grid):
    """The same, each trial in an MLflow run of its own."""

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kw: Any
    ) -> Any:
        """Train one point, in a run under the search's."""
        import mlflow

        with mlflow.start_run(nested=True):
            mlflow.log_params(hp.values)
            return model.fit(*args, **kw)


def main() -> None:
    """Train the 12 points."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("epochs", type=int)
    parser.add_argument("--autolog", action="store_true")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    if arguments.autolog:
        import mlflow

        mlflow.set_experiment("fashion-mnist")
        mlflow.tensorflow.autolog()
        with mlflow.start_run(run_name="grid search"):
            tuner = search(TrackedGrid(), arguments.images, arguments.epochs)
    else:
        tuner = search(Grid(), arguments.images, arguments.epochs)
    trials = [t for t in tuner.oracle.trials.values() if t.status == "COMPLETED"]
    write_result((t.hyperparameters.values for t in trials), max(t.score for t in trials))


def search(grid: Grid, images: str, epochs: int) -> keras_tuner.Tuner:
    """Have KerasTuner train every point of the grid."""
    train, validation = network.images(images)
    tuner = keras_tuner.GridSearch(grid, objective="val_accuracy", directory="keras_tuner")
    tuner.search(*train, validation_data=validation, epochs=epochs, batch_size=network.BATCH_SIZE)
    return tuner


if __name__ == "__main__":
    main()
