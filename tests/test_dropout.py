import keras
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tracking.training.dropout import faster_dropout


def model_of(*layers: keras.layers.Layer) -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((1001,)), *layers])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_it_drops_the_share_it_should_and_keeps_the_mean(rate: float) -> None:
    model = model_of(keras.layers.Dropout(rate))
    with faster_dropout(model):
        values = model(tf.ones((1000, 1001)), training=True).numpy()
    error = np.sqrt(rate * (1 - rate) / 1001e3)
    assert abs(np.mean(values == 0) - rate) < 5 * error
    kept = values[values != 0]
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-4)
    for axis in (0, 1):  # none is dropped always
        means = np.mean(values == 0, axis=axis)
        assert np.abs(means - rate).max() < 6 * np.sqrt(rate * (1 - rate) / 1000)


def test_gradients_pass_where_values_do() -> None:
    model = model_of(keras.layers.Dropout(0.3))
    inputs = tf.Variable(tf.ones((7, 1001)))  # an odd number of values
    with tf.GradientTape() as tape, faster_dropout(model):
        outputs = model(inputs, training=True)
    np.testing.assert_array_equal(tape.gradient(outputs, inputs), outputs)


def test_each_call_draws_anew_and_the_state_says_what() -> None:
    model = model_of(keras.layers.Dropout(0.5))
    ones = tf.ones((2, 1001))
    state = model.variables[0]
    start = state.numpy()
    with faster_dropout(model):
        first, second = (model(ones, training=True).numpy() for _ in range(2))
        assert list(state.numpy() - start) == [0, 2]
        state.assign(start)
        np.testing.assert_array_equal(model(ones, training=True), first)
    agree = np.mean((first == 0) == (second == 0))
    assert abs(agree - 0.5) < 0.06


def test_it_ends_with_the_block_and_leaves_other_layers_alone() -> None:
    inner = keras.layers.Dropout(0.3)
    by_rows = keras.layers.Dropout(0.3, noise_shape=(None, 1))
    others = keras.layers.GaussianDropout(0.3), *map(keras.layers.Dropout, (0.0, 1.0))
    twice = keras.Sequential([inner])
    model = model_of(twice, twice, by_rows, *others)
    with faster_dropout(model):
        assert "call" in vars(inner)
        assert not any("call" in vars(layer) for layer in (by_rows, *others))
        np.testing.assert_array_equal(model(tf.ones((2, 1001)), training=False), 1)
    assert "call" not in vars(inner)
    np.testing.assert_array_equal(model(tf.ones((2, 1001)), training=True), 0)  # at a rate of 1
