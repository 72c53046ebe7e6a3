"""Models as they are logged: built, given the weights of a training, and not compiled."""

from collections.abc import Sequence
from typing import Any

import keras

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.networks import build


def with_weights(config: TrainingConfig, weights: Sequence[Any]) -> keras.Model:
    described = build.architecture(build.build_model(config))
    return build.with_weights(described, weights)
