"""What trains a network for an epoch: `keras_step` any, `coursework_step` one of them faster."""

from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


class Step(Protocol):
    """The state of a training, and the function that trains one epoch."""

    @property
    def variables(self) -> tuple[tf.Variable, ...]:
        """Return all variables that training changes, always in the same order."""

    @property
    def shards(self) -> int:
        """Return into how many parts a batch is split."""

    @property
    def compiled(self) -> bool:
        """Return whether XLA compiles the step."""

    def run_epoch(
        self, images: tf.Tensor, labels: tf.Tensor, order: NDArray[np.integer[Any]], *, epoch: int
    ) -> tuple[float, int]:
        """Train one epoch.

        Args:
            images: uint8, shape (n, height, width, channels), 0..255.
            labels: uint8, shape (n,).
            order: indices of images; each batch takes the next of them.
            epoch: its number, 1 for the first.

        Returns:
            The mean loss of the images, and how many were classified correctly; both measured
            during training.
        """
