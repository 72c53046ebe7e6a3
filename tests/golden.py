"""Compute the figures that hold the versions in `fingerprint`, and print them as JSON.

After a version was raised: `python tests/golden.py > tests/golden.json`
"""

import hashlib
import json
import sys
from typing import Any

import numpy as np

from fmnist_tracking import runtime

runtime.own_process()  # before TensorFlow is imported

import keras  # noqa: E402

from fmnist_tracking import fingerprint  # noqa: E402
from fmnist_tracking.config import TrainingConfig  # noqa: E402
from fmnist_tracking.data import DataSplit, load_dataset, split_dataset  # noqa: E402
from fmnist_tracking.networks.build import build_model  # noqa: E402
from fmnist_tracking.networks.source import find_network  # noqa: E402
from fmnist_tracking.split_config import SplitConfig  # noqa: E402
from fmnist_tracking.training import loop  # noqa: E402

TINY = TrainingConfig.of(
    filters=2, hidden_units=6, batch_size=16, learning_rate=0.01, epochs=1, seed=16
)
# One with batch normalisation, and one without; the batches of both are split.
SHARED: dict[str, Any] = {"batch_size": 16, "epochs": 1, "dropout": 0.2, "learning_rate": 0.01}
OWN: dict[str, Any] = {
    "three_blocks": {"block": "residual", "seed": 16},
    "coursework_plus": {"padding": "same", "hidden_units": 6, "seed": 2},
}
GENERAL = tuple(
    TrainingConfig.of(
        find_network(f"fmnist_tracking.networks.{name}:build"), filters=2, **SHARED, **values
    )
    for name, values in OWN.items()
)
# Of a number to where rounding to two digits turns.
MARGIN = 1e-5
SHAPES = (TrainingConfig.of(), TrainingConfig.of(filters=36, kernel_size=4, hidden_units=7))
SPLITS = (SplitConfig(limit=600), SplitConfig(limit=600, seed=3, protocol="coursework"))


def main() -> None:
    """Print the figures of this code, with these libraries."""
    runtime.prepare_process(1, 0, [])
    dataset = load_dataset()
    real = split_dataset(dataset, SPLITS[0])
    figures = {
        "network": [_layers(config) for config in SHAPES],
        "initial weights": _numbers(build_weights(TINY)),
        "one epoch on noise": _numbers(loop.train(TINY, _noise())[1]),
        "one epoch on real images": _numbers(loop.train(TINY, real)[1]),
        "general step on noise": [_numbers(loop.train(one, _noise())[1]) for one in GENERAL],
        "scores on real images": _numbers(_scores(TINY, real)),
        "split": [
            [part.images_sha256, part.labels_sha256, list(part.class_counts)]
            for split in SPLITS
            for part in split_dataset(dataset, split).parts()
        ],
    }
    versions = [
        fingerprint.NETWORKS,
        fingerprint.TRAINING,
        fingerprint.GENERAL_TRAINING,
        fingerprint.SPLIT,
    ]
    json.dump({"versions": versions, "figures": figures}, sys.stdout, indent=1)


def build_weights(config: TrainingConfig) -> list[Any]:
    keras.utils.set_random_seed(config.seed)
    return list(build_model(config).get_weights())


def _layers(config: TrainingConfig) -> list[Any]:
    return [
        [layer.name, type(layer).__name__, list(layer.output.shape)]
        for layer in build_model(config).layers
    ]


def _noise() -> DataSplit:
    random = np.random.default_rng(0)

    def draw(*shape: int, most: int = 256) -> Any:
        return random.integers(0, most, shape, dtype=np.uint8)

    return DataSplit(
        train_images=draw(200, 28, 28, 1),
        train_labels=draw(200, most=10),
        validation_images=draw(40, 28, 28, 1),
        validation_labels=draw(40, most=10),
        class_names=tuple("0123456789"),
    )


def _scores(config: TrainingConfig, data: DataSplit) -> list[Any]:
    result, _ = loop.train(config.replace(epochs=3), data)
    return [np.array([[e.loss, e.accuracy, e.val_loss, e.val_accuracy] for e in result.epochs])]


def _numbers(arrays: Any) -> str:
    """The SHA-256 of all numbers, rounded: processors add up in another order, and differ by 1e-6.

    `TINY.seed` is one with which no number lies so near to where rounding turns that this matters.
    """
    values = np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])
    hundredths = values * 100
    from_turn = np.abs(hundredths - np.floor(hundredths) - 0.5).min() / 100
    if from_turn < MARGIN:
        return f"choose another seed: a number is {from_turn:.1e} from where rounding turns"
    return hashlib.sha256(np.rint(hundredths).astype("<i8").tobytes()).hexdigest()


if __name__ == "__main__":
    main()
