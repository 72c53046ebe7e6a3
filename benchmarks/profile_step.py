"""Where the time of a training step goes, operation by operation: Keras's step and this package's.

    python -m benchmarks.profile_step [--steps 200]

The coursework's largest network (48 filters, kernel size 3, strides of 1), batches of 32 of the
real images, both steps with oneDNN, on one core, so that the operations follow one another and
their times add up. TensorFlow's profiler measures each operation; what is left of the wall-clock
time lies between operations: the executor, the queue of `tf.data`, Python. The profiler itself
slows both down a little.

Prints a table in Markdown.
"""

import argparse
import collections
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks import network
from benchmarks.grid_search import machine
from fmnist_tracking import runtime
from fmnist_tracking.data import load_dataset

FILTERS, KERNEL_SIZE, STRIDES, HIDDEN_UNITS = 48, 3, 1, 64
# By the type of an operation, without oneDNN's prefixes.
KINDS = {
    "convolutions, forward": ("FusedConv2D", "Conv2D"),
    "convolutions, gradient of the kernel": (
        "Conv2DBackpropFilter",
        "Conv2DBackpropFilterWithBias",
    ),
    "convolutions, gradient of the input": ("Conv2DBackpropInput",),
    "max pooling": ("MaxPool",),
    "max pooling, gradient": ("MaxPoolGrad",),
    "random numbers of dropout": (
        "StatelessRandomUniformV2",
        "StatelessRandomUniformFullIntV2",
    ),
    "dense layers": ("MatMul", "FusedMatMul"),
}
Array: TypeAlias = NDArray[np.uint8]

OTHER, BETWEEN = "all other operations", "between operations"


def keras_step(images: Array, labels: Array) -> Callable[[], object]:
    """An epoch of Keras's `fit`."""
    model = network.build(FILTERS, STRIDES, KERNEL_SIZE, HIDDEN_UNITS)
    return lambda: model.fit(images, labels, batch_size=network.BATCH_SIZE, verbose=0)


def our_step(images: Array, labels: Array) -> Callable[[], object]:
    """An epoch of this package's step."""
    import tensorflow as tf

    from fmnist_tracking.config import TrainingConfig
    from fmnist_tracking.networks.coursework import build_model
    from fmnist_tracking.training.coursework_step import TrainingStep

    config = TrainingConfig(
        filters=FILTERS, kernel_size=KERNEL_SIZE, strides=STRIDES, hidden_units=HIDDEN_UNITS
    )
    weights = [weight.value for weight in build_model(config).trainable_variables]
    step, order = TrainingStep(weights, config, 1), np.arange(len(labels))
    tensors = tf.constant(images), tf.constant(labels)
    return lambda: step.run_epoch(*tensors, order, seed=0, epoch=1, learning_rate=0.001)


def profile(epoch: Callable[[], object], steps: int) -> dict[str, float]:
    """Milliseconds a step, by kind of operation."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    epoch()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            start = time.perf_counter()
            epoch()
            seconds = time.perf_counter() - start
        (path,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    kinds = {kind: name for name, of in KINDS.items() for kind in of}
    total: collections.Counter[str] = collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                # An operation's name is its place in the graph, a colon and its type.
                place, colon, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                if colon and "/" in place and not place.startswith("Iterator"):
                    kind = kind.removeprefix("_").removeprefix("Mkl").removeprefix("Native")
                    total[kinds.get(kind.lstrip("_"), OTHER)] += event.duration_ps
    found = {name: total[name] / 1e9 / steps for name in (*KINDS, OTHER)}
    found[BETWEEN] = seconds * 1e3 / steps - sum(found.values())
    return found


def main() -> None:
    """Profile both steps, and print the table."""
    parser = argparse.ArgumentParser(description="Where the time of a training step goes.")
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    runtime.load_tensorflow(1)
    dataset, count = load_dataset(), steps * network.BATCH_SIZE
    images, labels = dataset.train_images[:count, ..., np.newaxis], dataset.train_labels[:count]
    both = [profile(make(images, labels), steps) for make in (keras_step, our_step)]
    whole = [sum(found.values()) for found in both]
    print(machine(), end="\n\n")
    print("| part | Keras: ms a step | share | this package: ms a step | share |")
    print("|---|---:|---:|---:|---:|")
    for name in both[0]:
        cells = [
            f"{found[name]:.2f} | {found[name] / of:.0%}"
            for found, of in zip(both, whole, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"| **step** | {whole[0]:.2f} | | {whole[1]:.2f} | |")


if __name__ == "__main__":
    main()
