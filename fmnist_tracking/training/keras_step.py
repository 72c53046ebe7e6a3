"""The training step of any compiled Keras model."""

from typing import Any

import keras


class KerasStep:
    """Stands for what is not there yet."""

    variables: tuple[Any, ...] = ()
    shards = 1
    compiled = False

    def __init__(self, model: keras.Model, batch_size: int) -> None:
        raise NotImplementedError

    def run_epoch(self, images: Any, labels: Any, order: Any, *, epoch: int) -> tuple[float, int]:
        """Train."""
        raise NotImplementedError

    def loss(self, labels: Any, probabilities: Any) -> float:
        """Compute."""
        raise NotImplementedError
