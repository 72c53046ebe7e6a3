from collections.abc import Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.data import DataSplit
from fmnist_tracking.networks.build import build_model
from fmnist_tracking.training.coursework_settings import CourseworkSettings
from fmnist_tracking.training.coursework_step import LEVELS, CourseworkStep, kept

# Strides and sizes that leave out pixels at the edges, and numbers of filters that are not round.
NETWORKS = (
    TrainingConfig.of(filters=5, kernel_size=3, strides=1, hidden_units=7, batch_size=16),
    TrainingConfig.of(filters=6, kernel_size=4, strides=2, hidden_units=8, batch_size=16),
    TrainingConfig.of(filters=4, kernel_size=2, strides=1, hidden_units=9, batch_size=16),
)
SEED, RATE = 3, 0.002


def started(config: TrainingConfig) -> keras.Model:
    keras.utils.set_random_seed(0)
    return build_model(config)


def step_for(
    model: keras.Model, config: TrainingConfig, shards: int = 1, *, compiled: bool = False
) -> CourseworkStep:
    strides, dropout = (dict(config.hyperparameters)[name] for name in ("strides", "dropout"))
    return CourseworkStep(
        [w.value for w in model.trainable_variables],
        CourseworkSettings(strides=int(strides), dropout=float(dropout), learning_rate=RATE),
        config.batch_size,
        seed=SEED,
        shards=shards,
        compiled=compiled,
    )


def run(
    step: CourseworkStep, data: DataSplit, order: NDArray[np.intp], epoch: int = 1
) -> tuple[float, int]:
    images, labels = tf.constant(data.train_images), tf.constant(data.train_labels)
    return step.run_epoch(images, labels, order, epoch=epoch)


def assert_close(
    ours: Sequence[NDArray[np.float32]], others: Sequence[NDArray[np.float32]]
) -> None:
    for some, other in zip(ours, others, strict=True):
        # Adam turns a rounding error of a gradient near 0 into one of the size of its step.
        assert np.mean(np.abs(some - other)) < 1e-5 + 1e-4 * np.mean(np.abs(other))
        np.testing.assert_allclose(some, other, rtol=0.02, atol=2e-4)


@pytest.mark.parametrize("shards", [1, 2, 3, 4])
@pytest.mark.parametrize("network", NETWORKS)
def test_without_dropout_it_is_what_keras_does(
    split: DataSplit, network: TrainingConfig, shards: int
) -> None:
    config = network.replace(dropout=0.0)
    order = np.random.default_rng(1).permutation(499)  # the last batch is smaller
    keras_model = started(config)
    keras_model.compile(
        keras.optimizers.Adam(0.002), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    images, labels = split.train_images[order], split.train_labels[order]
    history = keras_model.fit(images, labels, batch_size=16, shuffle=False, verbose=0).history
    model = started(config)
    before = model.get_weights()
    loss, right = run(step_for(model, config, shards), split, order)
    assert_close(model.get_weights(), keras_model.get_weights())
    assert loss == pytest.approx(history["loss"][0], rel=1e-4)
    assert right == round(499 * history["accuracy"][0])
    changes = [np.abs(a - b).max() for a, b in zip(model.get_weights(), before, strict=True)]
    assert min(changes) > 0.001


def classified(
    model: keras.Model, images: NDArray[np.uint8], keep: Sequence[tf.Tensor], rate: float
) -> tf.Tensor:
    """Class probabilities with dropout as Keras computes it, with masks that are given."""
    masks = iter(keep)
    values = tf.constant(images)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            mask = tf.cast(tf.reshape(next(masks), tf.shape(values)), tf.float32)
            values = values * mask / (1 - rate)
        else:
            values = layer(values)
    return values


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_with_dropout_it_is_what_keras_does_with_the_same_masks(
    split: DataSplit, network: TrainingConfig, shards: int
) -> None:
    config = network.replace(dropout=0.3)
    order = np.random.default_rng(2).permutation(500)[:122]
    model, reference = started(config), started(config)
    dropped = round(0.3 * LEVELS)
    optimizer = keras.optimizers.Adam(0.002)
    names = ("pool1", "pool2")
    sizes = [int(np.prod(reference.get_layer(name).output.shape[1:])) for name in names]
    key = tf.constant(np.random.SeedSequence(SEED).generate_state(1, np.uint64))
    losses = []
    for first in range(0, len(order), config.batch_size):
        chosen = order[first : first + config.batch_size]
        keep = kept(dropped, len(chosen), sizes, first, key, tf.constant(1, tf.uint64))
        with tf.GradientTape() as tape:
            probabilities = classified(
                reference, split.train_images[chosen], keep, dropped / LEVELS
            )
            loss = keras.losses.sparse_categorical_crossentropy(
                split.train_labels[chosen], probabilities
            )
            mean = tf.reduce_mean(loss)
        losses += loss.numpy().tolist()
        variables = reference.trainable_variables
        optimizer.apply(tape.gradient(mean, [v.value for v in variables]), variables)
    loss, _ = run(step_for(model, config, shards), split, order)
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert_close(model.get_weights(), reference.get_weights())


def test_dropout_drops_the_share_it_should() -> None:
    key = tf.constant([7], tf.uint64)
    for share in (0.1, 0.3, 0.9):
        dropped = round(share * LEVELS)
        (keep,) = kept(dropped, 1000, [1001], 0, key, tf.constant(1, tf.uint64))
        error = np.sqrt(share * (1 - share) / 1001e3)
        assert abs(1 - np.mean(keep.numpy()) - share) < 5 * error
        by_place, by_image = np.mean(keep.numpy(), axis=0), np.mean(keep.numpy(), axis=1)
        for means in (by_place, by_image):  # none is dropped always
            assert np.abs(1 - means - share).max() < 6 * np.sqrt(share * (1 - share) / 1000)


def test_what_is_dropped_depends_on_seed_epoch_and_place_alone() -> None:
    def masks(count: int, first: int, seed: int = 1, epoch: int = 1) -> list[NDArray[np.bool_]]:
        key = tf.constant([seed], tf.uint64)
        drawn = kept(20_000, count, [30, 11], first, key, tf.constant(epoch, tf.uint64))
        return [mask.numpy() for mask in drawn]

    whole = masks(50, 0)
    assert [mask.shape for mask in whole] == [(50, 30), (50, 11)]
    parts = [masks(20, 0), masks(1, 20), masks(29, 21)]
    for layer in range(2):
        np.testing.assert_array_equal(whole[layer], np.concatenate([p[layer] for p in parts]))
    for other in (masks(50, 0, seed=2), masks(50, 0, epoch=2), masks(50, 50)):
        agree = np.mean(np.concatenate([a == b for a, b in zip(whole, other, strict=True)], axis=1))
        share = 20_000 / LEVELS
        assert abs(agree - (share**2 + (1 - share) ** 2)) < 0.06  # what chance gives


@pytest.mark.parametrize("count", [33, 1])
def test_a_last_batch_with_fewer_images_than_shards(split: DataSplit, count: int) -> None:
    config = NETWORKS[0]
    trained = []
    for shards in (1, 4):
        model = started(config)
        run(step_for(model, config, shards), split, np.arange(count))
        trained.append(model.get_weights())
    assert_close(trained[1], trained[0])


def test_a_training_begun_anew_is_like_a_first_one(split: DataSplit) -> None:
    config, order = NETWORKS[0], np.arange(100)
    model = started(config)
    initial = model.get_weights()
    step = step_for(model, config)
    first = run(step, split, order), model.get_weights()
    assert step.steps.numpy() == 7
    step.restart(initial, seed=SEED, learning_rate=RATE)
    again = run(step, split, order), model.get_weights()
    assert again[0] == first[0]
    for some, other in zip(again[1], first[1], strict=True):
        np.testing.assert_array_equal(some, other)


def test_compiled_by_xla_it_computes_the_same(split: DataSplit) -> None:
    config, trained = NETWORKS[1], []
    for compiled in (False, True):
        model = started(config)
        run(step_for(model, config, compiled=compiled), split, np.arange(40))
        trained.append(model.get_weights())
    assert_close(trained[1], trained[0])
