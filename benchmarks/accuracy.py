"""Validation accuracy after some epochs: the general step beside Keras's `fit`, for several seeds.

    python -m benchmarks.accuracy [--seeds 5] [--images 12000] [--epochs 5] [--networks NAME …]

Both ways train the same networks on the same images, in batches of 32; they differ in the order of
the images and in what dropout drops. Each training is a program of its own. Prints a table in
Markdown: mean and range over the seeds, and the difference of the means with the standard error of
that difference. Networks are those of `fitting.NETWORKS`.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.fitting import BATCH_SIZE, NETWORKS, built
from benchmarks.grid_search import ROOT, machine, write_images

KERAS, GENERAL = "Keras `fit`", "general step"
USUAL = ("f12 k3 s1", "coursework_plus", "three_blocks")

console = Console(stderr=True)


def train(way: str, path: str, name: str, epochs: int, seed: int) -> float:
    """Train a network, and return its validation accuracy after the last epoch."""
    import keras
    import tensorflow as tf

    with np.load(path) as content:
        images, labels = content["train_images"], content["train_labels"]
        unseen = content["validation_images"], content["validation_labels"]
    keras.utils.set_random_seed(seed)
    model = built(name)
    if way == KERAS:
        model.fit(images, labels, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    else:
        from fmnist_tracking.training.keras_step import KerasStep

        step = KerasStep(model, BATCH_SIZE, model.output_shape[-1])
        tensors = tf.constant(images), tf.constant(labels)
        for epoch in range(1, epochs + 1):
            order = np.random.default_rng([seed, epoch]).permutation(len(labels))
            step.run_epoch(*tensors, order, epoch=epoch)
    predicted = model.predict(unseen[0], batch_size=1000, verbose=0).argmax(axis=1)
    return float(np.mean(predicted == unseen[1]))


def accuracies(way: str, images: Path, name: str, epochs: int, seeds: int) -> list[float]:
    """Return the accuracy for each seed."""
    found = []
    for seed in range(seeds):
        words = [way, str(images), name, str(epochs), str(seed)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.accuracy", "--one", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
        console.print(f"{name}, {way}, seed {seed}: {found[-1]:.4f}", markup=False)
    return found


def main() -> None:
    """Train all networks both ways, and print the table."""
    parser = argparse.ArgumentParser(description="Accuracy of the general step and of fit.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=12_000, help="for training and validation")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=USUAL)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, path, name, epochs, seed = options.one
        print(json.dumps(train(way, path, name, int(epochs), int(seed))))
        return
    print(machine(), end="\n\n", flush=True)
    lines = [f"| network | {KERAS} | {GENERAL} | difference |", "|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images.npz")
        write_images(images, options.images)
        for name in options.networks:
            pairs = [
                accuracies(way, images, name, options.epochs, options.seeds)
                for way in (KERAS, GENERAL)
            ]
            means = [statistics.fmean(values) for values in pairs]
            error = math.sqrt(sum(statistics.variance(v) / len(v) for v in pairs))
            cells = [
                f"{mean:.4f} ({min(values):.4f} to {max(values):.4f})"
                for mean, values in zip(means, pairs, strict=True)
            ]
            difference = f"{means[1] - means[0]:+.4f} ± {error:.4f}"
            lines.append(f"| {name} | {' | '.join(cells)} | {difference} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
