"""The coursework's network in plain Keras, without this package.

What is measured against this package is built of it: nothing here may import `fmnist_tracking`,
which sets variables that TensorFlow reads.
"""

from typing import Any, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

BATCH_SIZE = 32

Part: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def build(filters: int, strides: int, kernel_size: int, hidden_units: int) -> keras.Model:
    """Build the network of one point, compiled as a user of Keras does it."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(filters, kernel_size, strides=strides, activation="relu"),
            keras.layers.MaxPool2D(2, strides=2),
            keras.layers.Dropout(0.3),
            keras.layers.Conv2D(filters, kernel_size, strides=strides, activation="relu"),
            keras.layers.MaxPool2D(2, strides=2),
            keras.layers.Dropout(0.3),
            keras.layers.Flatten(),
            keras.layers.Dense(hidden_units, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def images(path: str) -> tuple[Part, Part]:
    """Training and validation images and labels, from a file of `grid_search.write_images`."""
    with np.load(path) as content:
        train = content["train_images"], content["train_labels"]
        validation = content["validation_images"], content["validation_labels"]
    return train, validation


def fit(model: keras.Model, path: str, epochs: int, callbacks: Any = None) -> float:
    """Train with Keras's `fit`; give the best epoch's validation accuracy."""
    train, validation = images(path)
    history = model.fit(
        *train,
        validation_data=validation,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        callbacks=callbacks,
        verbose=0,
    )
    return float(max(history.history["val_accuracy"]))
