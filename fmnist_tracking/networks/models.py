"""Trained networks: loaded from a file, asked for class probabilities and activation maps."""

import json
import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state
from numpy.typing import NDArray

from fmnist_tracking import runtime
from fmnist_tracking.config import did_you_mean
from fmnist_tracking.errors import ConfigError, setting, shown
from fmnist_tracking.files import open_untrusted, require_harmless_zip
from fmnist_tracking.network import COURSEWORK, Network
from fmnist_tracking.networks import logged_code

_CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.SeparableConv2D,
    keras.layers.DepthwiseConv2D,
)
# Batch size of `predict`; a larger one only costs memory. Of a wide network, fewer images, so that
# no layer gives more values, of 4 bytes, than this.
_AT_ONCE, _VALUES_AT_ONCE = 1000, 50_000_000
# Of a layer, for one image.
_LARGEST_MAP = 50_000_000
# A network of ten layers takes 6 KB; Keras would build all that a larger one names.
_LARGEST_CONFIG = 1_000_000
_BYTES_A_WEIGHT = 4


def require_float32() -> None:
    """Raise `ConfigError` where Keras would build other networks than in the workers."""
    policy = keras.config.dtype_policy().name
    if policy != "float32":
        raise ConfigError(
            f"Expected Keras's dtype policy to be float32, as in the workers, got {policy}. "
            'Set it with keras.config.set_dtype_policy("float32").'
        )


def load_model(path: Path, network: Network = COURSEWORK, code: Path | None = None) -> keras.Model:
    """Load a `.keras` file in Keras's safe mode, which runs no code from the file.

    Args:
        path: of the file.
        network: which it must be.
        code: folder of code that was logged with it, which is run; see `logged_code`.

    Raises:
        ValueError: it is not the network that the run says: it takes other images, or does not
            give a probability for each class. Keras raises this and other exceptions for a file
            that is not a model, is damaged, or contains code.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("It is no .keras file, or was cut short.")
    with open_untrusted(path) as file:
        require_harmless_zip(file)
        with zipfile.ZipFile(file) as archive:
            size = archive.getinfo("config.json").file_size
            if size > _LARGEST_CONFIG:
                raise ValueError(
                    f"Its configuration has {size:,} bytes; expected {_LARGEST_CONFIG:,} at most."
                )
            described = json.loads(archive.read("config.json"))
            stored = archive.getinfo("model.weights.h5").file_size
    if code is None:
        asked = _weights_bytes(described)
        if asked > stored:
            raise ValueError(f"It asks for {asked:,} bytes of weights, of which it has {stored:,}.")
    own = {} if code is None else logged_code.own_objects(code)
    with keras.saving.custom_object_scope(own):
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    takes, gives = shapes(model, network)
    shape = network.image_shape
    if takes not in (shape, shape[: 2 if shape[-1] == 1 else 3]) or gives != (network.classes,):
        raise ValueError(
            f"It takes {(None, *takes)} and gives {(None, *gives)}; expected {(None, *shape)} and "
            f"{(None, network.classes)}."
        )
    largest = _largest_map(model)
    if largest > _LARGEST_MAP:
        raise ValueError(
            f"A layer gives {largest:,} values for an image; expected {_LARGEST_MAP:,} at most."
        )
    return model


def shapes(model: keras.Model, network: Network) -> tuple[Any, Any]:
    """Return the shapes of what a model takes and gives for one image."""
    try:
        return tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
    except (AttributeError, TypeError, ValueError):  # a subclass of Model says neither
        given = np.zeros((1, *network.image_shape), np.uint8)
        return network.image_shape, tuple(model(given, training=False).shape[1:])


def _weights_bytes(described: dict[str, Any]) -> int:
    """Return the bytes of the weights of a model that a `.keras` file describes; makes none."""
    described.pop("compile_config", None)
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object(described, safe_mode=True)
    # Else Keras would make them the next time that it leaves such a scope.
    global_state.set_global_attribute("uninitialized_variables", [])
    weights = getattr(model, "weights", [])
    return _BYTES_A_WEIGHT * sum(int(math.prod(weight.shape)) for weight in weights)


def _largest_map(model: keras.Model) -> int:
    """Return how many values the layer with the most gives for one image."""
    outputs = keras.tree.flatten([_output(layer) for layer in model.layers])
    return max((int(math.prod(side or 1 for side in one.shape[1:])) for one in outputs), default=1)


def _output(layer: keras.Layer) -> Any:
    """Return what a layer gives, as Keras knows it before it is called; [] if it does not."""
    try:
        return layer.output
    except (AttributeError, ValueError):  # in a subclass of Model
        return []


def predict(model: keras.Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute the class probabilities of raw images.

    Args:
        model: from `load_model`.
        images: uint8, shape (n, height, width, channels), 0..255.

    Returns:
        float32, shape (n, classes); each row sums to 1.
    """
    # Keras's own `predict` traces the model first, which takes longer than classifying a few
    # images.
    number = runtime.shards()
    size = max(1, min(_AT_ONCE, _VALUES_AT_ONCE // _largest_map(model)) // number)
    with ThreadPoolExecutor(number) as threads:
        starts = range(0, len(images), size)
        parts = list(threads.map(lambda at: _call(model, images[at : at + size]), starts))
    return np.concatenate(parts)


def convolution(model: keras.Model, name: str | None) -> keras.Layer | None:
    """Return a model's convolution of that name; the first one if None, which need not be there.

    Raises:
        ConfigError: there is no layer of that name which gives maps.
    """
    named = {
        layer.name: layer
        for layer in model.layers
        if len(getattr(_output(layer), "shape", ())) == 4
    }
    if name is None:
        return next((one for one in named.values() if isinstance(one, _CONVOLUTIONS)), None)
    if name not in named:
        raise ConfigError(
            f"Expected {setting('layer')} to be one of {', '.join(named)}, got {shown(name)}."
            f"{did_you_mean(name, named)}"
        )
    return model.get_layer(name)


def activations(
    model: keras.Model, layer: keras.Layer, image: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Compute the activation maps of a layer, after its own activation.

    Args:
        model: from `load_model`.
        layer: of the model.
        image: raw, uint8, shape (height, width, channels), 0..255.

    Returns:
        float32, shape (filters, height, width): one activation map for each filter.
    """
    first = keras.Model(model.inputs[0], layer.output)
    return np.moveaxis(_call(first, image[np.newaxis])[0], -1, 0)


def as_input(model: keras.Model, images: Any) -> Any:
    """Return images, of shape (n, height, width, 1), as a model takes them: maybe as (n, h, w)."""
    shape = getattr(model, "input_shape", None)  # which a subclass of Model lacks
    return images[..., 0] if shape is not None and len(shape) == 3 else images


def _call(model: keras.Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(model(as_input(model, images), training=False))
