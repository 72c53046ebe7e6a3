"""Validation accuracy with this package's training step and with plain Keras, over five seeds.

    python -m benchmarks.accuracy [--seeds 5] [--epochs 5] [--limit N]

The coursework's largest network (48 filters, kernel size 3, strides of 1), all 50,000 images for
training and 10,000 for validation, the last epoch's accuracy. Each training is a program of its
own; the two ways take turns. Order and dropout are drawn otherwise in each, so that they agree in
what they spread around, not in single figures.

Prints a table in Markdown, and how far apart the means are, in standard errors of their difference.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from benchmarks.grid_search import ROOT, machine, write_images

FILTERS, KERNEL_SIZE, STRIDES, HIDDEN_UNITS = 48, 3, 1, 64
KERAS, OURS = "Keras `fit`", "this package"

console = Console(stderr=True)


def with_keras(path: str, epochs: int, seed: int) -> float:
    """Validation accuracy after the last epoch of Keras's `fit`."""
    import keras

    from benchmarks import network

    assert "fmnist_tracking" not in sys.modules
    keras.utils.set_random_seed(seed)
    train, validation = network.images(path)
    model = network.build(FILTERS, STRIDES, KERNEL_SIZE, HIDDEN_UNITS)
    history = model.fit(
        *train,
        validation_data=validation,
        epochs=epochs,
        batch_size=network.BATCH_SIZE,
        verbose=0,
    ).history
    return float(history["val_accuracy"][-1])


def with_this_package(path: str, epochs: int, seed: int) -> float:
    """Validation accuracy after the last epoch of a trial."""
    from fmnist_tracking import machine, runtime

    runtime.load_tensorflow(machine.cores())
    from benchmarks import network
    from fmnist_tracking.config import TrainingConfig
    from fmnist_tracking.data import DataSplit
    from fmnist_tracking.training.loop import train

    part, validation = network.images(path)
    data = DataSplit(
        train_images=part[0],
        train_labels=part[1],
        validation_images=validation[0],
        validation_labels=validation[1],
        class_names=tuple("0123456789"),
    )
    config = TrainingConfig(
        filters=FILTERS,
        kernel_size=KERNEL_SIZE,
        strides=STRIDES,
        hidden_units=HIDDEN_UNITS,
        epochs=epochs,
        seed=seed,
        batch_size=network.BATCH_SIZE,
    )
    return train(config, data)[0].epochs[-1].val_accuracy


def run(way: str, path: Path, epochs: int, seed: int, environment: Mapping[str, str]) -> float:
    """One training in a program of its own."""
    words = ["--one", way, "--epochs", str(epochs), "--seed", str(seed), "--path", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.accuracy", *words],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Train with each seed in both ways, and print the table."""
    parser = argparse.ArgumentParser(description="Accuracy of Keras's step and of ours.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, help="images for training and validation together")
    parser.add_argument("--one", choices=(KERAS, OURS), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        train = with_keras if options.one == KERAS else with_this_package
        print(json.dumps(train(options.path, options.epochs, options.seed)))
        return
    # Before this package is imported, which sets variables that the other way must not have.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found: dict[str, list[float]] = {KERAS: [], OURS: []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "images.npz")
        write_images(path, options.limit)
        for seed in range(options.seeds):
            for way, accuracies in found.items():
                accuracies.append(run(way, path, options.epochs, seed, environment))
                console.print(f"seed {seed}, {way}: {accuracies[-1]:.4f}", markup=False)
    print(machine(), end="\n\n")
    print("| step | validation accuracy by seed | mean | standard deviation |\n|---|---|---:|---:|")
    for way, accuracies in found.items():
        each = ", ".join(f"{accuracy:.4f}" for accuracy in accuracies)
        mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
        print(f"| {way} | {each} | {mean:.4f} | {spread:.4f} |")
    first, second = found.values()
    error = math.sqrt(
        statistics.variance(first) / len(first) + statistics.variance(second) / len(second)
    )
    apart = (statistics.mean(second) - statistics.mean(first)) / error
    print(f"\nThe means are {apart:+.1f} standard errors apart.")


if __name__ == "__main__":
    main()
