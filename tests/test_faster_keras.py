import contextlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tracking.training.faster_keras import faster_keras


def model_of(*layers: keras.layers.Layer) -> keras.Model:
    model = keras.Sequential([keras.Input((1001,)), *layers])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_it_drops_the_share_it_should_and_keeps_the_mean(rate: float) -> None:
    keras.utils.set_random_seed(1)
    model = model_of(keras.layers.Dropout(rate))
    with faster_keras(model):
        values = model(tf.ones((1000, 1001)), training=True).numpy()
    error = np.sqrt(rate * (1 - rate) / 1001e3)
    assert abs(np.mean(values == 0) - rate) < 5 * error
    kept = values[values != 0]
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-4)
    for axis in (0, 1):  # none is dropped always
        means = np.mean(values == 0, axis=axis)
        assert np.abs(means - rate).max() < 6 * np.sqrt(rate * (1 - rate) / 1000)


def test_gradients_pass_where_values_do() -> None:
    keras.utils.set_random_seed(1)
    model = model_of(keras.layers.Dropout(0.3))
    inputs = tf.Variable(tf.ones((7, 1001)))  # an odd number of values
    with tf.GradientTape() as tape, faster_keras(model):
        outputs = model(inputs, training=True)
    np.testing.assert_array_equal(tape.gradient(outputs, inputs), outputs)


def test_each_call_draws_anew_and_the_state_says_what() -> None:
    keras.utils.set_random_seed(1)
    model = model_of(keras.layers.Dropout(0.5))
    ones = tf.ones((2, 1001))
    state = model.variables[0]
    start = state.numpy()
    with faster_keras(model):
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
    with faster_keras(model):
        assert "call" in vars(inner)
        assert not any("call" in vars(layer) for layer in (by_rows, *others))
        np.testing.assert_array_equal(model(tf.ones((2, 1001)), training=False), 1)
    assert "call" not in vars(inner)
    np.testing.assert_array_equal(model(tf.ones((2, 1001)), training=True), 0)  # at a rate of 1


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_convolution_gives_the_same_and_the_same_gradients(use_bias: bool, policy: str) -> None:
    keras.utils.set_random_seed(1)
    settings = {"use_bias": use_bias, "dtype": policy, "bias_initializer": "random_normal"}
    model = keras.Sequential(
        [
            keras.Input((9, 8, 3)),
            keras.layers.Conv2D(4, 3, 2, padding="same", activation="relu", **settings),
            keras.layers.Conv2D(6, 2, dilation_rate=2, groups=2, **settings),
        ]
    )
    model.compile("adam", "mse")
    inputs = tf.random.stateless_normal((5, 9, 8, 3), [1, 2])

    def results() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 2)
        return [outputs, *tape.gradient(loss, model.trainable_variables)]

    by_keras = results()
    with faster_keras(model):
        ours = results()
    assert len(ours) == 1 + (4 if use_bias else 2)
    tolerance = {"float32": 1e-5, "mixed_bfloat16": 0.05}[policy]
    for some, other in zip(ours, by_keras, strict=True):
        assert (some.dtype, some.shape) == (other.dtype, other.shape)
        some, other = (np.asarray(tf.cast(one, tf.float32)) for one in (some, other))
        np.testing.assert_allclose(some, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(0.01, beta_1=0.8, beta_2=0.99, epsilon=1e-3),
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.3),
        lambda: keras.optimizers.Adam(0.01, amsgrad=True),
        lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
        lambda: keras.optimizers.Nadam(0.01),
    ],
)
def test_an_optimizer_takes_the_same_steps(make: Callable[[], keras.Optimizer]) -> None:
    trained = []
    for ours in (False, True):
        keras.utils.set_random_seed(1)
        model = model_of(keras.layers.Dense(3))
        model.compile(make(), "mse")
        weights = model.trainable_variables
        model.optimizer.build(weights)
        with faster_keras(model) if ours else contextlib.nullcontext():
            for step in range(4):
                gradients = [tf.random.stateless_normal(w.shape, [step, 1]) for w in weights]
                model.optimizer.apply(gradients, weights)
        trained.append([v.numpy() for v in (*model.variables, *model.optimizer.variables)])
    assert "update_step" not in vars(model.optimizer)
    for some, other in zip(*trained, strict=True):
        np.testing.assert_allclose(some, other, rtol=1e-5, atol=1e-6)


def test_rows_that_are_looked_up_are_updated_as_by_keras() -> None:
    trained = []
    for ours in (False, True):
        keras.utils.set_random_seed(1)
        model = model_of(keras.layers.Dense(3))
        model.compile("adam", "mse")
        weights = model.trainable_variables[:1]
        model.optimizer.build(weights)
        rows = tf.IndexedSlices(tf.ones((2, 3)), tf.constant([0, 7]), tf.constant([1001, 3]))
        with faster_keras(model) if ours else contextlib.nullcontext():
            model.optimizer.apply([rows], weights)
        trained.append(weights[0].numpy())
    np.testing.assert_array_equal(*trained)
