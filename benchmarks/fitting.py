"""Trains one network for some epochs and prints how many images a second each took, as JSON.

`training_speed` runs it as a program of its own:

    python -m benchmarks.fitting keras|torch IMAGES.npz FILTERS KERNEL STRIDES
    python -m benchmarks.fitting ours IMAGES.npz FILTERS KERNEL STRIDES THREADS [FOLDER COUNT]
    python -m benchmarks.fitting matrices ''

`keras` is Keras's `fit`; `torch` is PyTorch, channels last; `ours` is this package's training step,
with THREADS threads. The first epoch, in which things are traced and memory is got, does not count.
With FOLDER, as many as COUNT of these processes wait for each other there before the first epoch
that counts, and train on until all have been timed.
`matrices` multiplies large matrices with TensorFlow instead, and prints GFLOP/s.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

EPOCHS = 3
BATCH_SIZE = 32
HIDDEN_UNITS = 64
SIDE = 2048


def main() -> None:
    """Do what the arguments say."""
    way, path, *numbers = sys.argv[1:]
    others = Others(Path(numbers[4]), int(numbers[5])) if len(numbers) > 4 else None
    if way == "matrices":
        print(json.dumps([matrices()]))
        return
    with np.load(path) as content:
        images, labels = content["train_images"], content["train_labels"]
    filters, kernel_size, strides, *threads = map(int, numbers[:4])
    if way == "keras":
        seconds = keras_fit(images, labels, filters, kernel_size, strides)[1:]
        print(json.dumps([len(labels) / one for one in seconds]))
        return
    ways: dict[str, Callable[..., Callable[[], object]]] = {"torch": torch_loop, "ours": our_step}
    epoch = ways[way](images, labels, filters, kernel_size, strides, *threads)
    epoch()
    if others is not None:
        others.say("ready")
        while not others.have_all_said("ready"):
            time.sleep(0.001)
    rates = []
    for _ in range(EPOCHS):
        begin = time.perf_counter()
        epoch()
        rates.append(len(labels) / (time.perf_counter() - begin))
    if others is not None:
        others.say("timed")
        while not others.have_all_said("timed"):
            epoch()
    print(json.dumps(rates))


class Others:
    """So many processes that train at the same time; each says a word by a file in a folder."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count

    def say(self, word: str) -> None:
        """Tell the others."""
        (self.folder / f"{word}-{os.getpid()}").touch()

    def have_all_said(self, word: str) -> bool:
        """Return whether all processes have told this."""
        return len(list(self.folder.glob(f"{word}-*"))) == self.count


def keras_fit(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], filters: int, kernel: int, strides: int
) -> list[float]:
    """Train with Keras, as it is, in one call of `fit`; return the seconds of each epoch."""
    import keras

    from benchmarks import network

    seconds = []

    class Stopwatch(keras.callbacks.Callback):  # type: ignore[misc]
        """Times each epoch."""

        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            """Start."""
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            """Stop."""
            seconds.append(time.perf_counter() - self.begin)

    model = network.build(filters, strides, kernel, HIDDEN_UNITS)
    model.fit(
        images,
        labels,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS + 1,
        callbacks=[Stopwatch()],
        verbose=0,
    )
    assert "fmnist_tracking" not in sys.modules
    return seconds


def our_step(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    filters: int,
    kernel: int,
    strides: int,
    threads: int,
) -> Callable[[], object]:
    """Set up this package's training step, as a worker runs it; return what trains an epoch."""
    from fmnist_tracking import runtime

    runtime.load_tensorflow(threads)
    import tensorflow as tf

    from fmnist_tracking.config import TrainingConfig
    from fmnist_tracking.networks.build import build_model
    from fmnist_tracking.training.coursework_step import CourseworkSettings, CourseworkStep

    config = TrainingConfig.of(
        filters=filters,
        kernel_size=kernel,
        strides=strides,
        hidden_units=HIDDEN_UNITS,
        batch_size=BATCH_SIZE,
    )
    model = build_model(config)
    weights = [weight.value for weight in model.trainable_variables]
    settings = CourseworkSettings.of(model)
    assert settings is not None
    step = CourseworkStep(weights, settings, BATCH_SIZE, shards=runtime.shards())
    tensors = tf.constant(images), tf.constant(labels)
    orders = np.random.default_rng(0)

    def epoch() -> None:
        order = orders.permutation(len(labels))
        step.run_epoch(*tensors, order, epoch=1)

    return epoch


def torch_loop(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], filters: int, kernel: int, strides: int
) -> Callable[[], object]:
    """Set up the same network in PyTorch, with its usual loop, images gathered from one tensor."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, filters, kernel, strides),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Dropout(0.3),
        nn.Conv2d(filters, filters, kernel, strides),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.LazyLinear(HIDDEN_UNITS),
        nn.ReLU(),
        nn.Linear(HIDDEN_UNITS, 10),
    )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels).long()
    model(pixels[:1] / 255)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-7)
    loss = nn.CrossEntropyLoss()

    def epoch() -> None:
        model.train()
        right, total = torch.zeros((), dtype=torch.long), torch.zeros(())
        for chosen in torch.randperm(len(targets)).split(BATCH_SIZE):
            batch = (pixels[chosen] / 255).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            scores = model(batch)
            mean = loss(scores, targets[chosen])
            mean.backward()
            optimizer.step()
            total += mean.detach() * len(chosen)
            right += (scores.argmax(1) == targets[chosen]).sum()
        total.item(), right.item()

    return epoch


def matrices() -> float:
    """Measure TensorFlow with oneDNN: the most GFLOP/s of ten products of large matrices."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    import tensorflow as tf

    a, b = (tf.random.normal((SIDE, SIDE)) for _ in range(2))
    (a @ b).numpy()
    best = 0.0
    for _ in range(10):
        begin = time.perf_counter()
        (a @ b).numpy()
        best = max(best, 2 * SIDE**3 / (time.perf_counter() - begin) / 1e9)
    return best


if __name__ == "__main__":
    main()
