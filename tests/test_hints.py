"""What a person is told of mistakes in a network of his own that Keras tells in many words."""

import re
from pathlib import Path

import pytest

from conftest import Call
from fmnist_tracking.errors import ConfigError, first_line
from fmnist_tracking.networks.source import find_network
from fmnist_tracking.networks.space import defaults, explore_grid
from fmnist_tracking.training.prepare import require_trainable

HEAD = """
import keras

def build(hp):
    inputs = keras.Input((28, 28, 1))
    outputs = keras.layers.Flatten()(inputs)
"""
TAIL = """
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model
"""


def written(folder: Path, middle: str, before: str = "") -> str:
    (folder / "mine.py").write_text(before + HEAD + middle + TAIL)
    return f"{folder}/mine.py:build"


def test_a_layer_that_cannot_be_called_is_told_with_the_reason(tmp_path: Path) -> None:
    middle = """
    small = keras.layers.MaxPool2D(hp.Choice("pool", [2, 40]), name="last")(inputs)
    outputs = keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(small))
"""
    (impossible,) = explore_grid(find_network(written(tmp_path, middle)), {}).impossible
    assert "mine.py, line " in impossible.reason
    assert "MaxPooling2D.call()" in impossible.reason
    assert "negative" in impossible.reason.lower()
    assert "\x1b" not in first_line(ValueError("\x1b[1mbold\x1b[0m"))


@pytest.mark.parametrize("config", ["{**super().get_config()}", "{**super().get_config(), 'n': 1}"])
def test_a_get_config_that_does_not_say_all_is_told_by_name(config: str, tmp_path: Path) -> None:
    layer = f"""
import keras

class Scaled(keras.layers.Layer):
    def __init__(self, n, **options):
        super().__init__(**options)
        self.n = n

    def build(self, shape):
        self.weight = self.add_weight(shape=(self.n,))

    def call(self, inputs):
        return inputs * self.weight[0]

    def get_config(self):
        return {config}
"""
    middle = '\n    outputs = keras.layers.Dense(10, "softmax")(Scaled(3)(outputs))\n'
    named = written(tmp_path, middle, layer)
    with pytest.raises(ConfigError, match="Have get_config of Scaled return every argument"):
        explore_grid(find_network(named), {})


def test_what_no_point_can_be_trained_with_is_told_after_a_few(tmp_path: Path) -> None:
    middle = '\n    outputs = keras.layers.Dense(10)(outputs[..., : hp.Int("units", 1, 90)])\n'
    built: list[int] = []
    with pytest.raises(ConfigError, match="None of the first 3 points can be trained"):
        explore_grid(find_network(written(tmp_path, middle)), {}, built.append, require_trainable)


def test_a_wrong_function_gets_the_near_one_and_no_module(call: Call, tmp_path: Path) -> None:
    name = written(tmp_path, '\n    outputs = keras.layers.Dense(10, "softmax")(outputs)\n')
    status, _, err = call("search", "--network", name.replace(":build", ":buidl"), "--dry-run")
    assert status == 2
    assert "Did you mean build? It has: build." in err


def test_a_hyperparameter_of_another_branch_is_not_called_unknown(tmp_path: Path) -> None:
    middle = """
    if hp.Boolean("dense"):
        outputs = keras.layers.Dense(hp.Choice("units", [3, 4]))(outputs)
    outputs = keras.layers.Dense(10, "softmax")(outputs)
"""
    network = find_network(written(tmp_path, middle))
    with pytest.raises(ConfigError, match=re.escape("'units', or asks for it with other values")):
        defaults(network, {"units": 4})
    assert dict(defaults(network, {"dense": True, "units": 4}).values)["units"] == 4
