"""Tell whether a compiled Keras model is the coursework's network, whoever has built it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.network import COURSEWORK
from fmnist_tracking.networks.build import build_model

# The kinds of its layers.
_BLOCK = ["Conv2D", "MaxPooling2D", "Dropout"]
_LAYERS = ["Rescaling", *_BLOCK, *_BLOCK, "Flatten", "Dense", "Dense"]


@dataclass(frozen=True, kw_only=True)
class CourseworkSettings:
    """What the step must know of the coursework's network beside its weights.

    Attributes:
        strides: of both convolutions.
        dropout: the share of activations dropped, 0 to 1.
        learning_rate: Adam's.
    """

    strides: int
    dropout: float
    learning_rate: float

    @classmethod
    def of(cls, model: keras.Model) -> "CourseworkSettings | None":
        """Return the settings of a compiled model that is the coursework's network, else None.

        The names of its layers do not count.
        """
        layers = model.layers if type(model) is keras.Sequential else []
        kinds = [type(layer).__name__ for layer in layers]
        rate = getattr(model.optimizer, "_learning_rate", None)
        if kinds != _LAYERS or not isinstance(rate, keras.Variable):
            return None
        values: dict[str, Any] = {
            "filters": layers[1].filters,
            "kernel_size": layers[1].kernel_size[0],
            "strides": layers[1].strides[0],
            "dropout": layers[3].rate,
            "hidden_units": layers[8].units,
            "learning_rate": float(np.float32(rate.numpy())),
        }
        shape, classes = model.input_shape[1:], model.output_shape[-1]
        network = dataclasses.replace(COURSEWORK, image_shape=shape, classes=classes)
        try:
            reference = build_model(TrainingConfig.of(network, **values))
        except ConfigError:  # with padding, it can be built where that network cannot
            return None
        if _described(model) != _described(reference):
            return None
        return cls(
            strides=layers[1].strides[0],
            dropout=layers[3].rate,
            learning_rate=values["learning_rate"],
        )


def _described(model: keras.Model) -> object:
    """Return what a model computes, without names and seeds, in terms that can be compared."""
    loss = keras.losses.get(model.loss)
    compiled = model.get_compile_config() or {}
    return _anonymous(
        [
            *(layer.get_config() for layer in model.layers),
            [layer.trainable for layer in model.layers],
            model.inputs[0].dtype,
            {**model.optimizer.get_config(), "learning_rate": None},
            getattr(loss, "__name__", loss.__class__.__name__),
            loss.get_config() if isinstance(loss, keras.Loss) else None,
            compiled.get("loss_weights"),
        ]
    )


def _anonymous(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _anonymous(v) for k, v in content.items() if k not in ("name", "seed")}
    return [_anonymous(one) for one in content] if isinstance(content, list) else content
