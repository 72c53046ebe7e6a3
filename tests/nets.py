"""Networks of the kind that KerasTuner's documentation shows, written anew for 28x28 images."""

from typing import Any

import keras
import keras_tuner


def compiled(layers: list[Any], optimizer: Any = "adam") -> keras.Model:
    """Return layers as a compiled network of ten classes for raw pixels."""
    first = [keras.Input((28, 28, 1)), keras.layers.Rescaling(1 / 255)]
    last = [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential([*first, *layers, *last])
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def pooled() -> Any:
    """Make the images small, so that a test takes no time."""
    return keras.layers.AveragePooling2D(7)


def choice(hp: Any) -> keras.Model:
    """Vary the units of a layer."""
    return compiled([pooled(), keras.layers.Dense(hp.Choice("units", [8, 16, 32]), "relu")])


def without_steps(hp: Any) -> keras.Model:
    """Vary a number without end, and a whole number by factors."""
    units = hp.Int("units", min_value=4, max_value=64, step=2, sampling="log")
    layers = [pooled(), keras.layers.Dense(units, "relu")]
    return compiled(layers, keras.optimizers.SGD(hp.Float("rate", 1e-3, 1e-1, sampling="log")))


def int_and_boolean(hp: Any) -> keras.Model:
    """Vary a whole number with a step, a text and a boolean; the learning rate by factors."""
    layers = [
        pooled(),
        keras.layers.Dense(
            units=hp.Int("units", min_value=8, max_value=24, step=8),
            activation=hp.Choice("activation", ["relu", "tanh"]),
        ),
    ]
    if hp.Boolean("dropout"):
        layers.append(keras.layers.Dropout(rate=0.25))
    rate = hp.Float("lr", min_value=1e-4, max_value=1e-2, step=10, sampling="log")
    return compiled(layers, keras.optimizers.Adam(rate))


def loop_of_layers(hp: Any) -> keras.Model:
    """Vary the number of layers, each with units of its own."""
    layers = [pooled()]
    for i in range(hp.Int("num_layers", 1, 3)):
        layers.append(keras.layers.Dense(hp.Int(f"units_{i}", 4, 8, step=4), "relu"))
    return compiled(layers)


def conditional(hp: Any) -> keras.Model:
    """Choose between two kinds of network, each with hyperparameters of its own."""
    kind = hp.Choice("model_type", ["mlp", "cnn"])
    layers = [pooled()]
    with hp.conditional_scope("model_type", ["mlp"]):
        if kind == "mlp":
            layers.append(keras.layers.Dense(hp.Int("mlp_units", 4, 8, step=4), "relu"))
    with hp.conditional_scope("model_type", ["cnn"]):
        if kind == "cnn":
            layers.append(keras.layers.Conv2D(hp.Choice("cnn_filters", [2, 3]), 3, padding="same"))
            if hp.Boolean("cnn_norm", default=True):
                layers.append(keras.layers.BatchNormalization())
    optimizer = hp.Choice("optimizer", ["sgd", "adam"], default="adam")
    momentum = hp.Float(
        "momentum", 0.0, 0.8, step=0.4, parent_name="optimizer", parent_values=["sgd"]
    )
    if optimizer == "sgd":
        return compiled(layers, keras.optimizers.SGD(0.1, momentum=momentum))
    return compiled(layers)


def scopes(hp: Any) -> keras.Model:
    """Use scopes of names, fixed values, defaults in the middle, and whole numbers by factors."""
    with hp.name_scope("head"):
        units = hp.Int("units", 2, 16, step=2, sampling="log", default=4)
        activation = hp.Fixed("activation", "relu")
    rate = hp.Choice("rate", [0.1, 0.5, 0.3], default=0.3)
    dense = keras.layers.Dense(int(units), activation)  # KerasTuner gives 2.0
    return compiled([pooled(), dense, keras.layers.Dropout(rate)])


class Model(keras_tuner.HyperModel):  # type: ignore[misc]
    """A HyperModel that is told of the data's classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def build(self, hp: Any) -> keras.Model:
        """Build a network for so many classes."""
        assert self.classes == 10
        return choice(hp)


class Fitting(keras_tuner.HyperModel):  # type: ignore[misc]
    """A HyperModel that would train in a way of its own."""

    def build(self, hp: Any) -> keras.Model:
        """Build a network."""
        return choice(hp)

    def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        """Train."""
        return model.fit(*args, batch_size=hp.Choice("batch", [8, 16]), **kwargs)


def endless(hp: Any) -> keras.Model:
    """Have values without end."""
    return compiled([pooled(), keras.layers.Dropout(hp.Float("rate", 0.1, 0.5))])


def clash(hp: Any) -> keras.Model:
    """Give a hyperparameter the name of a setting of the training."""
    return compiled([pooled(), keras.layers.Dense(hp.Choice("batch_size", [8, 16]))])


def uncompiled(hp: Any) -> keras.Model:
    """Forget to compile."""
    return keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()])


def colour(hp: Any) -> keras.Model:
    """Take other images than there are."""
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
    model.compile("sgd", "mse")
    return model


def twelve(hp: Any) -> keras.Model:
    """Give more classes than there are."""
    inputs = [keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(12, "softmax")]
    model = keras.Sequential(inputs)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def nothing(hp: Any) -> None:
    """Return nothing."""


def broken(hp: Any) -> keras.Model:
    """Fail in a line of its own."""
    raise ZeroDivisionError("the cause")


def sometimes(hp: Any) -> keras.Model:
    """Fail at one of three points."""
    size = hp.Choice("size", [40, 3, 2])
    return compiled([keras.layers.Conv2D(2, size)])


def few(hp: Any) -> keras.Model:
    """Have four points, of which one gives no finite loss."""
    rate = hp.Choice("rate", [0.01, 0.1, 0.3, 1e30])
    return compiled([pooled()], keras.optimizers.SGD(rate))


number = 7
