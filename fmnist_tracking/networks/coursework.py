"""The network: a small CNN built from a `TrainingConfig`, and its first activation maps."""

import math
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from fmnist_tracking import runtime
from fmnist_tracking.config import CLASS_NAMES, IMAGE_SIZE, POOL_SIZE, TrainingConfig
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.files import open_untrusted, require_harmless_zip

INPUT_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 1)
FIRST_CONVOLUTION = "conv1"
# Batch size of `predict`; a larger one only costs memory. Of a wide network, fewer images, so that
# no layer gives more values, of 4 bytes, than this.
_AT_ONCE, _VALUES_AT_ONCE = 1000, 50_000_000
# Of a layer, for one image.
_LARGEST_MAP = 50_000_000
# A network of ten layers takes 6 KB; Keras would build all that a larger one names.
_LARGEST_CONFIG = 1_000_000


def build_model(config: TrainingConfig) -> keras.Model:
    """Build the network, uncompiled, with new initial weights.

    It takes raw pixels, uint8 of shape (n, 28, 28, 1) in 0..255, and scales them itself, so that
    training, serving and prediction cannot disagree. It gives class probabilities, float32 of shape
    (n, 10).
    """
    layers: list[keras.layers.Layer] = [
        keras.Input(INPUT_SHAPE, dtype="uint8", name="pixels"),
        keras.layers.Rescaling(1 / 255, name="scale"),
    ]
    for block in (1, 2):
        layers += [
            keras.layers.Conv2D(
                config.filters,
                config.kernel_size,
                strides=config.strides,
                activation="relu",
                data_format="channels_last",
                name=f"conv{block}",
            ),
            keras.layers.MaxPool2D(
                POOL_SIZE, strides=POOL_SIZE, data_format="channels_last", name=f"pool{block}"
            ),
            keras.layers.Dropout(config.dropout, name=f"dropout{block}"),
        ]
    layers += [
        keras.layers.Flatten(data_format="channels_last", name="flatten"),
        keras.layers.Dense(config.hidden_units, activation="relu", name="hidden"),
        keras.layers.Dense(len(CLASS_NAMES), activation="softmax", name="probabilities"),
    ]
    return keras.Sequential(layers, name="fashion_mnist_cnn")


def require_float32() -> None:
    """Raise `ConfigError` where Keras would build other networks than in the workers."""
    policy = keras.config.dtype_policy().name
    if policy != "float32":
        raise ConfigError(
            f"Expected Keras's dtype policy to be float32, as in the workers, got {policy}. "
            'Set it with keras.config.set_dtype_policy("float32").'
        )


def with_weights(config: TrainingConfig, weights: Sequence[NDArray[np.float32]]) -> keras.Model:
    """Build the network with the weights of a training, uncompiled."""
    with keras.device("cpu:0"):  # a GPU's memory is for the workers
        model = build_model(config)
        model.set_weights(list(weights))
    return model


def load_model(path: Path) -> keras.Model:
    """Load a `.keras` file in Keras's safe mode, which runs no code from the file.

    Raises:
        ValueError: it is not a network of this project: its input shape is another, or it does not
            give ten probabilities. Keras raises this and other exceptions for a file that is not a
            model, is damaged, or contains code.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("It is no .keras file, or was cut short.")
    with open_untrusted(path) as file:
        require_harmless_zip(file)
        with zipfile.ZipFile(file) as archive:
            config = archive.getinfo("config.json").file_size
    if config > _LARGEST_CONFIG:
        raise ValueError(
            f"Its configuration has {config:,} bytes; expected {_LARGEST_CONFIG:,} at most."
        )
    model = keras.models.load_model(path, compile=False, safe_mode=True)
    takes, gives = model.input_shape, model.output_shape
    if takes != (None, *INPUT_SHAPE) or gives != (None, len(CLASS_NAMES)):
        raise ValueError(
            f"It takes {takes} and gives {gives}; expected {(None, *INPUT_SHAPE)} and "
            f"{(None, len(CLASS_NAMES))}."
        )
    largest = _largest_map(model)
    if largest > _LARGEST_MAP:
        raise ValueError(
            f"A layer gives {largest:,} values for an image; expected {_LARGEST_MAP:,} at most."
        )
    return model


def _largest_map(model: keras.Model) -> int:
    """Return how many values the layer with the most gives for one image."""
    return max(int(math.prod(layer.output.shape[1:])) for layer in model.layers)


def predict(model: keras.Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute the class probabilities of raw images.

    Args:
        model: from `build_model` or `load_model`.
        images: uint8, shape (n, 28, 28, 1), 0..255.

    Returns:
        float32, shape (n, 10); each row sums to 1.
    """
    # Keras's own `predict` traces the model first, which takes longer than classifying a few
    # images.
    number = runtime.shards()
    size = max(1, min(_AT_ONCE, _VALUES_AT_ONCE // _largest_map(model)) // number)
    with ThreadPoolExecutor(number) as threads:
        starts = range(0, len(images), size)
        parts = list(threads.map(lambda at: _call(model, images[at : at + size]), starts))
    return np.concatenate(parts)


def first_layer_activations(model: keras.Model, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute the activation maps of the first convolution, after its ReLU, for one raw image.

    Args:
        model: from `build_model` or `load_model`.
        image: uint8, shape (28, 28, 1), 0..255.

    Returns:
        float32, shape (filters, height, width): one activation map for each filter.

    Raises:
        ValueError: the model has no such layer.
    """
    first = keras.Model(model.inputs[0], model.get_layer(FIRST_CONVOLUTION).output)
    return np.moveaxis(_call(first, image[np.newaxis])[0], -1, 0)


def _call(model: keras.Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(model(images, training=False))
