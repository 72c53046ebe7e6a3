"""Networks with layers, activations and other objects of their own."""

from typing import Any

import keras

from layer_parts import Halved, swish_twice


class Scale(keras.layers.Layer):  # type: ignore[misc]
    """Multiply by a weight for each channel, and count in a state how often it was trained."""

    def __init__(self, start: float = 1.0, **others: Any) -> None:
        super().__init__(**others)
        self.start = start

    def build(self, shape: Any) -> None:
        """Make the weight and the state."""
        first = keras.initializers.Constant(self.start)
        self.factor = self.add_weight(shape=(shape[-1],), initializer=first, name="factor")
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Scale."""
        if training:
            self.calls.assign(self.calls + 1.0)
        return inputs * self.factor

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {**super().get_config(), "start": self.start}


@keras.saving.register_keras_serializable(package="Mine")
class Shift(keras.layers.Layer):  # type: ignore[misc]
    """Add a weight."""

    def build(self, shape: Any) -> None:
        """Make the weight."""
        self.by = self.add_weight(shape=(shape[-1],), initializer=Halved(0.5), name="by")

    def call(self, inputs: Any) -> Any:
        """Shift."""
        return inputs + self.by


class Whole(keras.Model):  # type: ignore[misc]
    """A whole network as a class."""

    def __init__(self, units: int, classes: int, **others: Any) -> None:
        super().__init__(**others)
        self.units, self.classes = units, classes
        self.first = keras.layers.Rescaling(1 / 255)
        self.pool = keras.layers.AveragePooling2D(7)
        self.flat = keras.layers.Flatten()
        self.scale = Scale(0.5)
        self.hidden = keras.layers.Dense(units, activation="relu")
        self.last = keras.layers.Dense(classes, activation="softmax")

    def call(self, inputs: Any) -> Any:
        """Classify."""
        return self.last(self.hidden(self.scale(self.flat(self.pool(self.first(inputs))))))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {**super().get_config(), "units": self.units, "classes": self.classes}


class Bare(keras.layers.Layer):  # type: ignore[misc]
    """Forget an argument when it is saved."""

    def __init__(self, by: float = 1.0, **others: Any) -> None:
        super().__init__(**others)
        self.by = by

    def call(self, inputs: Any) -> Any:
        """Multiply."""
        return inputs * self.by

    def get_config(self) -> dict[str, Any]:
        """Return too little."""
        return dict(super().get_config())


class NotSaved(keras.Model):  # type: ignore[misc]
    """Take an argument that Keras cannot save by itself."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.flat = keras.layers.Flatten()
        self.last = keras.layers.Dense(10, activation="softmax")

    def call(self, inputs: Any) -> Any:
        """Classify."""
        return self.last(self.flat(inputs))


def relu(x: Any) -> Any:
    """Be something else than Keras's function of that name."""
    return keras.ops.relu(x) * 3.0


def _compiled(layers: list[Any]) -> keras.Model:
    first = [keras.Input((28, 28, 1)), keras.layers.Rescaling(1 / 255)]
    first += [keras.layers.AveragePooling2D(7)]
    last = [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    return _ready(keras.Sequential([*first, *layers, *last]))


def _ready(model: keras.Model) -> keras.Model:
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def sequential(hp: Any) -> keras.Model:
    """Use layers, an initializer and an activation of one's own, from here and from beside it."""
    start = hp.Choice("start", [1.0, 0.5])
    convolution = keras.layers.Conv2D(2, 3, padding="same", activation=swish_twice, name="conv")
    return _compiled([convolution, Scale(start, name="scale"), Shift()])


def functional(hp: Any) -> keras.Model:
    """Use a layer twice, and a function in a layer."""
    pixels = keras.Input((28, 28, 1))
    x = keras.layers.AveragePooling2D(7)(keras.layers.Rescaling(1 / 255)(pixels))
    scale = Scale(hp.Choice("start", [0.5]))
    x = keras.layers.Add()([scale(x), scale(keras.layers.Activation(swish_twice)(x))])
    return _ready(keras.Model(pixels, keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(x))))


def subclassed(hp: Any) -> keras.Model:
    """Build a class."""
    return _ready(Whole(hp.Choice("units", [8]), 10))


def forgetful(hp: Any) -> keras.Model:
    """Use a layer that is another once it was saved."""
    return _compiled([Bare(hp.Choice("by", [3.0]))])


def unsaved(hp: Any) -> keras.Model:
    """Use a model that cannot be saved."""
    return _ready(NotSaved(object()))


def lambda_layer(hp: Any) -> keras.Model:
    """Use a lambda in a layer."""
    return _compiled([keras.layers.Lambda(lambda x: x * 2)])


def lambda_activation(hp: Any) -> keras.Model:
    """Use a lambda as an activation."""
    return _compiled([keras.layers.Dense(4, activation=lambda x: x * 2)])


def local(hp: Any) -> keras.Model:
    """Use a class that is in a function."""

    class Inner(Shift):
        pass

    return _compiled([Inner()])


def namesake(hp: Any) -> keras.Model:
    """Use an activation that is called as one of Keras's."""
    return _compiled([keras.layers.Dense(4, activation=relu)])


def others(hp: Any) -> keras.Model:
    """Use what is neither Keras's nor beside this file."""
    import keras_tuner

    class Other(keras.layers.Layer):  # type: ignore[misc]
        def call(self, inputs: Any) -> Any:
            return inputs

    Other.__module__ = keras_tuner.__name__
    return _compiled([Other()])
