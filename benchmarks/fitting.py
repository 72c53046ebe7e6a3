"""Trains one network for some epochs and prints how many images a second each took, as JSON.

`training_speed` runs it as a program of its own:

    python -m benchmarks.fitting keras|torch IMAGES.npz NETWORK
    python -m benchmarks.fitting general|special IMAGES.npz NETWORK THREADS [FOLDER COUNT]
    python -m benchmarks.fitting matrices ''

NETWORK is a name of `NETWORKS`. `keras` is Keras's `fit`; `torch` is PyTorch, channels last;
`general` and `special` are this package's training steps, of any network and of the coursework's,
with THREADS threads. The first epoch, in which things are traced and memory is got, does not
count. With FOLDER, as many as COUNT of these processes wait for each other there before the first
epoch that counts, and train on until all have been timed. `matrices` multiplies large matrices
with TensorFlow instead, and prints GFLOP/s.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EPOCHS = 3
BATCH_SIZE = 32
HIDDEN_UNITS = 64
SIDE = 2048
FOLDER = Path(__file__).parents[1] / "fmnist_tracking" / "networks"


def point(filters: int, kernel_size: int, strides: int) -> tuple[str, dict[str, Any]]:
    """Return a point of the coursework's grid, as `NETWORKS` has it."""
    return "coursework", {"filters": filters, "kernel_size": kernel_size, "strides": strides}


# By name, the module of the package that builds a network, and its hyperparameters.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "f12 k3 s1": point(12, 3, 1),
    "f36 k3 s1": point(36, 3, 1),
    "f48 k3 s1": point(48, 3, 1),
    "f48 k4 s2": point(48, 4, 2),
    "coursework_plus": (
        "coursework_plus",
        {"filters": 36, "padding": "same", "batch_normalization": True},
    ),
    "three_blocks": ("three_blocks", {"block": "residual", "filters": 8, "dropout": 0.2}),
}


def main() -> None:
    """Do what the arguments say."""
    way, path, *others_words = sys.argv[1:]
    if way == "matrices":
        print(json.dumps([matrices()]))
        return
    name, *numbers = others_words
    others = Others(Path(numbers[1]), int(numbers[2])) if len(numbers) > 1 else None
    with np.load(path) as content:
        images, labels = content["train_images"], content["train_labels"]
    if way == "keras":
        seconds = keras_fit(images, labels, name)[1:]
        print(json.dumps([len(labels) / one for one in seconds]))
        return
    if way == "torch":
        epoch = torch_loop(images, labels, name)
    else:
        epoch = our_step(images, labels, name, int(numbers[0]), special=way == "special")
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


def built(name: str) -> Any:
    """Build a network, compiled, without the package around it, which sets variables."""
    import keras_tuner

    module, values = NETWORKS[name]
    spec = spec_from_file_location(module, FOLDER / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.values = dict(values)
    return loaded.build(hyperparameters)


def keras_fit(images: NDArray[np.uint8], labels: NDArray[np.uint8], name: str) -> list[float]:
    """Train with Keras, as it is, in one call of `fit`; return the seconds of each epoch."""
    import keras

    seconds = []

    class Stopwatch(keras.callbacks.Callback):  # type: ignore[misc]
        """Times each epoch."""

        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            """Start."""
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            """Stop."""
            seconds.append(time.perf_counter() - self.begin)

    model = built(name)
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
    images: NDArray[np.uint8], labels: NDArray[np.uint8], name: str, threads: int, *, special: bool
) -> Callable[[], object]:
    """Set up a training step of this package, as a worker runs it; return what trains an epoch."""
    from fmnist_tracking import runtime

    runtime.load_tensorflow(threads)
    import tensorflow as tf

    from fmnist_tracking.training.coursework_settings import CourseworkSettings
    from fmnist_tracking.training.coursework_step import CourseworkStep
    from fmnist_tracking.training.keras_step import KerasStep
    from fmnist_tracking.training.step import Step

    model = built(name)
    settings = CourseworkSettings.of(model)
    step: Step
    if special:
        weights = [weight.value for weight in model.trainable_variables]
        assert settings is not None
        step = CourseworkStep(weights, settings, BATCH_SIZE, shards=runtime.shards())
    else:
        step = KerasStep(model, BATCH_SIZE, model.output_shape[-1])
    tensors = tf.constant(images), tf.constant(labels)
    orders = np.random.default_rng(0)

    def epoch() -> None:
        order = orders.permutation(len(labels))
        step.run_epoch(*tensors, order, epoch=1)

    return epoch


def torch_loop(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], name: str
) -> Callable[[], object]:
    """Set up the same network in PyTorch, with its usual loop, images gathered from one tensor."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    module, values = NETWORKS[name]
    makers: dict[str, Callable[..., Any]] = {
        "coursework": torch_coursework,
        "coursework_plus": torch_plus,
        "three_blocks": torch_blocks,
    }
    model = makers[module](**values)
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


def torch_coursework(filters: int, kernel_size: int, strides: int) -> Any:
    """Build the coursework's network in PyTorch."""
    from torch import nn

    def block(channels: int) -> list[Any]:
        convolution = nn.Conv2d(channels, filters, kernel_size, strides)
        return [convolution, nn.ReLU(), nn.MaxPool2d(2, 2), nn.Dropout(0.3)]

    dense = [nn.Flatten(), nn.LazyLinear(HIDDEN_UNITS), nn.ReLU(), nn.Linear(HIDDEN_UNITS, 10)]
    return nn.Sequential(*block(1), *block(filters), *dense)


def torch_plus(filters: int, padding: str, batch_normalization: bool) -> Any:
    """Build that point of `networks.coursework_plus` in PyTorch."""
    from torch import nn

    assert batch_normalization

    def block(channels: int) -> list[Any]:
        convolution = nn.Conv2d(channels, filters, 3, padding=padding)
        norm = nn.BatchNorm2d(filters, eps=1e-3, momentum=0.01)
        return [convolution, norm, nn.ReLU(), nn.MaxPool2d(2, 2), nn.Dropout(0.3)]

    dense = [nn.Flatten(), nn.LazyLinear(HIDDEN_UNITS), nn.ReLU(), nn.Linear(HIDDEN_UNITS, 10)]
    return nn.Sequential(*block(1), *block(filters), *dense)


def torch_blocks(block: str, filters: int, dropout: float) -> Any:
    """Build that point of `networks.three_blocks` in PyTorch."""
    import torch
    from torch import nn

    assert block == "residual"

    class Residual(nn.Module):  # type: ignore[misc]
        """Two convolutions beside a shortcut."""

        def __init__(self, channels: int, width: int) -> None:
            super().__init__()
            self.shortcut = nn.Conv2d(channels, width, 1)
            self.body = nn.Sequential(
                nn.Conv2d(channels, width, 3, padding="same", bias=False),
                nn.BatchNorm2d(width, eps=1e-3, momentum=0.01),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding="same", bias=False),
                nn.BatchNorm2d(width, eps=1e-3, momentum=0.01),
            )

        def forward(self, x: Any) -> Any:
            """Add both ways."""
            return torch.relu(self.body(x) + self.shortcut(x))

    layers: list[Any] = []
    for channels, width in ((1, filters), (filters, 2 * filters), (2 * filters, 4 * filters)):
        layers += [Residual(channels, width), nn.MaxPool2d(2, 2)]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, *last, nn.Linear(4 * filters, 10))


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
