import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers, regularizers
from numpy.typing import NDArray

from fmnist_tracking.data import DataSplit
from fmnist_tracking.training.keras_step import KerasStep
from fmnist_tracking.training.sharded_model import outputs_of_shards

BATCH_SIZE = 16
COUNT = 155  # the last batch is smaller
ORDER = np.random.default_rng(1).permutation(COUNT)
Build = Callable[[], keras.Model]


def sequential(*between: keras.layers.Layer) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, strides=2, activation="relu"),
            *between,
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )


def residual() -> keras.Model:
    inputs = keras.Input((28, 28, 1))
    values = layers.Rescaling(1 / 255)(inputs)
    values = layers.Conv2D(4, 3, strides=3)(values)
    side = layers.SeparableConv2D(4, 3, padding="same", activation="relu")(values)
    values = layers.Add()([values, side])
    values = layers.LayerNormalization()(values)
    values = layers.GlobalAveragePooling2D()(values)
    return keras.Model(inputs, layers.Dense(10)(values))


def normalized() -> keras.Model:
    return sequential(layers.BatchNormalization())


def within() -> keras.Model:
    """Normalise in a model within the model, without scale or offset, and beside a branch."""
    inputs = keras.Input((13, 13, 4))
    values = layers.BatchNormalization(center=False, momentum=0.8)(inputs)
    values = layers.Add()([layers.BatchNormalization(scale=False)(values), inputs])
    return sequential(
        keras.Model(inputs, values),
        keras.Sequential([layers.Conv2D(3, 2), layers.BatchNormalization(epsilon=0.01)]),
        layers.Conv2D(4, 3, kernel_regularizer=regularizers.L2(0.01)),
    )


def normalized_rows() -> keras.Model:
    """Normalise rows, not channels."""
    return sequential(layers.BatchNormalization(axis=1))


def regularized() -> keras.Model:
    return sequential(
        layers.Conv2D(
            4,
            3,
            kernel_regularizer=regularizers.L2(0.01),
            kernel_constraint=keras.constraints.MaxNorm(0.5),
            activity_regularizer=regularizers.L1(0.001),
        )
    )


def frozen() -> keras.Model:
    model = normalized()
    model.layers[1].trainable = False  # the convolution
    return model


class Subclassed(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(10, activation="softmax")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:  # without `training`
        return self.dense(self.flatten(tf.cast(inputs, tf.float32) / 255))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 28, 28, 1), np.uint8))
    return model


SPARSE = "sparse_categorical_crossentropy"
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(
    build: Build, optimizer: Any = "adam", loss: Any = SPARSE, seed: int = 0, **settings: Any
) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = build()
    if isinstance(optimizer, keras.Optimizer):
        optimizer = type(optimizer).from_config(optimizer.get_config())  # one for each model
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False, **settings)
    return model


def tensors(split: DataSplit) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.constant(split.train_images[:COUNT]), tf.constant(split.train_labels[:COUNT])


def run(step: KerasStep, split: DataSplit) -> tuple[float, int]:
    return step.run_epoch(*tensors(split), ORDER, epoch=1)


def assert_trains_as_fit(
    split: DataSplit,
    build: Build,
    optimizer: Any = "adam",
    loss: Any = SPARSE,
    *,
    shards: int,
    is_one_hot: bool = False,
    atol: float = 1e-5,
) -> None:
    fitted = compiled(build, optimizer, loss)
    images, labels = split.train_images[ORDER], split.train_labels[ORDER]
    targets = np.eye(10, dtype=np.float32)[labels] if is_one_hot else labels
    history = fitted.fit(images, targets, batch_size=BATCH_SIZE, shuffle=False, verbose=0).history
    model = compiled(build, optimizer, loss)
    before = model.get_weights()
    step = KerasStep(model, BATCH_SIZE, 10)
    assert step.shards == shards
    mean, right = run(step, split)
    assert mean == pytest.approx(history["loss"][0], rel=1e-4)
    assert right == round(COUNT * history["accuracy"][0])
    assert_close(model.get_weights(), fitted.get_weights(), atol)
    assert max(np.abs(a - b).max() for a, b in zip(model.get_weights(), before, strict=True)) > 1e-4
    of_step, of_fit = (
        [variable.numpy() for variable in one.optimizer.variables] for one in (model, fitted)
    )
    assert_close(of_step, of_fit, atol)
    images, targets = images[:101], targets[:101]
    val_loss, outputs = step.evaluate(tf.constant(images), tf.constant(labels[:101]))
    expected = fitted.evaluate(images, targets, batch_size=BATCH_SIZE, verbose=0)[0]
    assert val_loss == pytest.approx(expected, rel=2e-3)
    np.testing.assert_allclose(outputs, model(images, training=False), rtol=1e-4, atol=1e-5)


def assert_close(some: list[NDArray[Any]], others: list[NDArray[Any]], atol: float) -> None:
    for ours, other in zip(some, others, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-3, atol=atol)


@pytest.mark.parametrize(
    ("build", "loss", "shards"),
    [
        (sequential, SPARSE, 2),
        (residual, LOGITS, 2),
        (normalized, SPARSE, 2),
        (regularized, SPARSE, 2),
        (frozen, SPARSE, 2),
        (within, SPARSE, 2),
        (normalized_rows, SPARSE, 1),
        (subclassed, SPARSE, 1),
    ],
)
def test_it_trains_as_fit_does(split: DataSplit, build: Build, loss: Any, shards: int) -> None:
    optimizer = optimizers.SGD(0.05, momentum=0.9)
    assert_trains_as_fit(split, build, optimizer, loss, shards=shards)


OPTIMIZERS = {
    "Adam": optimizers.Adam(0.002),
    "amsgrad": optimizers.Adam(0.002, amsgrad=True, clipnorm=0.5),
    "AdamW": optimizers.AdamW(0.002, weight_decay=0.1, global_clipnorm=0.5),
    "Nadam": optimizers.Nadam(0.002),
    "Adamax": optimizers.Adamax(0.002),
    "Adafactor": optimizers.Adafactor(0.01),
    "Adadelta": optimizers.Adadelta(1.0),
    "Adagrad": optimizers.Adagrad(0.01),
    "Ftrl": optimizers.Ftrl(0.01),
    "Lamb": optimizers.Lamb(0.002),
    "Lion": optimizers.Lion(0.0005),
    "Muon": optimizers.Muon(0.002),
    "RMSprop": optimizers.RMSprop(0.001, momentum=0.5, centered=True),
    "SGD": optimizers.SGD(0.05, momentum=0.9, nesterov=True, clipvalue=0.1),
    "accumulated": optimizers.SGD(0.05, gradient_accumulation_steps=3),
    "scaled": optimizers.SGD(0.05, loss_scale_factor=8.0),
    "schedule": optimizers.SGD(optimizers.schedules.CosineDecay(0.1, 8)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_trains_as_in_fit(split: DataSplit, name: str) -> None:
    # Those that divide by the gradient's size turn a rounding error into one of their step.
    atol = 1e-5 if name in ("SGD", "accumulated", "scaled", "schedule") else 3e-4
    assert_trains_as_fit(split, sequential, OPTIMIZERS[name], shards=2, atol=atol)


@pytest.mark.parametrize(
    ("loss", "shards"),
    [
        ("categorical_crossentropy", 2),
        (keras.losses.CategoricalCrossentropy(label_smoothing=0.1), 2),
        (keras.losses.CategoricalFocalCrossentropy(), 2),
        ("kl_divergence", 2),
        ("mse", 2),
        (keras.losses.BinaryCrossentropy(), 2),
        (keras.losses.CategoricalCrossentropy(reduction="sum"), 1),
        (keras.losses.Dice(), 1),  # of all images of a batch together
    ],
)
def test_a_loss_of_one_hot_labels(split: DataSplit, loss: Any, shards: int) -> None:
    optimizer = optimizers.SGD(0.01)
    assert_trains_as_fit(split, sequential, optimizer, loss, shards=shards, is_one_hot=True)


def test_a_function_of_integer_labels(split: DataSplit) -> None:
    def loss(truth: tf.Tensor, given: tf.Tensor) -> tf.Tensor:
        return 2 * keras.losses.sparse_categorical_crossentropy(truth, given)

    assert_trains_as_fit(split, sequential, optimizers.SGD(0.1), loss, shards=1)


def dropping() -> keras.Model:
    return sequential(layers.Dropout(0.3), layers.SpatialDropout2D(0.2), layers.GaussianNoise(0.1))


def augmenting() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.RandomFlip("horizontal"),
            layers.RandomTranslation(0.1, 0.1),
            layers.RandomZoom(0.1),
            layers.Flatten(),
            layers.BatchNormalization(),
            layers.Dense(8, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


RESUMED = {
    "dropout": (dropping, optimizers.Adam(optimizers.schedules.CosineDecay(0.01, 30))),
    "batch norm": (normalized, optimizers.SGD(0.01, momentum=0.9)),
    "augmentation": (augmenting, optimizers.AdamW(0.001)),
    "decay": (
        dropping,
        optimizers.RMSprop(optimizers.schedules.ExponentialDecay(0.01, 5, 0.5)),
    ),
    "accumulated": (residual, optimizers.Adam(gradient_accumulation_steps=4)),
}


def trained(split: DataSplit, name: str, first: int, state: Any = None) -> tuple[Any, ...]:
    """The epochs from `first` to the third; the state after each."""
    build, optimizer = RESUMED[name]
    loss = LOGITS if build is residual else SPARSE
    model = compiled(build, optimizer, loss, seed=5 if state is None else 99)
    step = KerasStep(model, BATCH_SIZE, 10)
    for variable, value in zip(step.variables, state or (), strict=state is not None):
        variable.assign(value)
    figures, states = [], []
    for epoch in range(first, 4):
        order = np.random.default_rng(epoch).permutation(COUNT)
        figures.append(step.run_epoch(*tensors(split), order, epoch=1))
        states.append([variable.numpy() for variable in step.variables])
    return figures, states


def assert_same(some: list[NDArray[Any]], others: list[NDArray[Any]]) -> None:
    for ours, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(ours, other)
        assert ours.dtype == other.dtype


@pytest.mark.parametrize("name", RESUMED)
def test_the_same_numbers_again_and_after_a_pause(split: DataSplit, name: str) -> None:
    figures, states = trained(split, name, 1)
    again, states_again = trained(split, name, 1)
    assert again == figures
    assert_same(states_again[-1], states[-1])
    resumed, states_resumed = trained(split, name, 2, states[0])
    assert resumed == figures[1:]
    assert_same(states_resumed[-1], states[-1])


def test_the_same_numbers_after_a_pause_in_another_process(
    split: DataSplit, tmp_path: Path
) -> None:
    figures, states = trained(split, "dropout", 1)
    (tmp_path / "given").write_bytes(pickle.dumps((split, states[0])))
    program = (
        "import pickle, test_keras_step as tests\n"
        "split, state = pickle.load(open('given', 'rb'))\n"
        "pickle.dump(tests.trained(split, 'dropout', 2, state), open('made', 'wb'))"
    )
    tests = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, check=True)
    resumed, states_resumed = pickle.loads((tmp_path / "made").read_bytes())
    assert resumed == figures[1:]
    assert_same(states_resumed[-1], states[-1])


def test_what_training_changes_is_there_once(split: DataSplit) -> None:
    model = compiled(augmenting)
    step = KerasStep(model, BATCH_SIZE, 10)
    run(step, split)
    names = [variable.name for variable in step.variables]
    assert len({id(variable) for variable in step.variables}) == len(names)
    moments = 2 * len(model.trainable_variables)
    # A generator for each layer that draws; the optimizer's step count and learning rate.
    assert len(names) == len(model.weights) + 4 + moments + 2
    assert not any("accuracy" in name for name in names)


@pytest.mark.parametrize("count", [1, 7, 9, 16])
def test_batches_of_any_size(split: DataSplit, count: int) -> None:
    images, labels = tensors(split)
    trained = []
    for batch_size in (count, 16):
        model = compiled(residual, optimizers.SGD(0.1), LOGITS)
        step = KerasStep(model, batch_size, 10)
        step.run_epoch(images, labels, ORDER[:count], epoch=1)
        trained.append(model.get_weights())
        loss, outputs = step.evaluate(images[:count], labels[:count])
        assert outputs.shape == (count, 10)
        assert np.isfinite(loss)
    assert_close(trained[0], trained[1], 1e-6)


class OfOwn(keras.layers.Layer):  # type: ignore[misc]
    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs - tf.reduce_mean(inputs, axis=0)


class OwnRegularizer(regularizers.Regularizer):  # type: ignore[misc]
    def __call__(self, values: tf.Tensor) -> tf.Tensor:
        return tf.math.reduce_variance(values)


def with_operations() -> keras.Model:
    inputs = keras.Input((28, 28, 1))
    values = layers.Flatten()(inputs)
    values = values - keras.ops.mean(values, axis=0)
    return keras.Model(inputs, layers.Dense(10)(values))


def in_rows() -> keras.Model:
    inputs = keras.Input((28, 28, 1))
    both = layers.Concatenate(axis=0)([inputs, inputs])
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(both)))


WHOLE: dict[str, Build] = {
    "normalized rows": normalized_rows,
    "own normalization": lambda: sequential(type("Own", (layers.BatchNormalization,), {})()),
    "a normalization beside what Keras collects": lambda: sequential(
        layers.BatchNormalization(), layers.ActivityRegularization(l2=0.1)
    ),
    "a frozen normalization": lambda: sequential(layers.BatchNormalization(trainable=False)),
    "own layer": lambda: sequential(OfOwn()),
    "lambda": lambda: sequential(layers.Lambda(lambda x: x)),
    "own activation": lambda: sequential(layers.Activation(lambda x: x - tf.reduce_mean(x, 0))),
    "own regularizer": lambda: sequential(
        layers.ActivityRegularization(), layers.Conv2D(1, 1, activity_regularizer=OwnRegularizer())
    ),
    "operations": with_operations,
    "images one behind the other": in_rows,
    "softmax across images": lambda: sequential(layers.Softmax(axis=0)),
    "dropout of all images": lambda: sequential(layers.Dropout(0.1, noise_shape=(1, 13, 13, 4))),
    "subclassed": subclassed,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_batch_stays_whole_where_images_may_depend_on_each_other(name: str) -> None:
    assert KerasStep(compiled(WHOLE[name]), 32, 10).shards == 1


def test_shards_are_normalized_together(split: DataSplit) -> None:
    model, whole = compiled(normalized), compiled(normalized)
    images = tf.cast(split.train_images[:16], tf.float32)
    before = [variable.numpy() for variable in model.non_trainable_variables]
    with tf.GradientTape() as tape:
        outputs = outputs_of_shards(model, tf.split(images, [5, 11]))
        loss = tf.reduce_sum(tf.concat(outputs, 0) ** 2)
    with tf.GradientTape() as of_whole:
        expected = whole(images, training=True)
        loss_of_whole = tf.reduce_sum(expected**2)
    assert [len(one) for one in outputs] == [5, 11]
    np.testing.assert_allclose(tf.concat(outputs, 0), expected, rtol=1e-4, atol=1e-6)
    assert_close(
        [one.numpy() for one in tape.gradient(loss, model.trainable_variables)],
        [one.numpy() for one in of_whole.gradient(loss_of_whole, whole.trainable_variables)],
        1e-5,
    )
    moved = [variable.numpy() for variable in model.non_trainable_variables]
    assert_close(moved, [variable.numpy() for variable in whole.non_trainable_variables], 1e-6)
    assert all(np.any(a != b) for a, b in zip(moved, before, strict=True))


def test_a_batch_is_split_where_they_do_not() -> None:
    def model() -> keras.Model:
        return sequential(
            keras.Sequential([layers.Conv2D(2, 1), layers.PReLU()]),
            layers.ActivityRegularization(l2=0.1),
            layers.GroupNormalization(2),
            layers.Softmax(),
            layers.Dropout(0.1, noise_shape=(None, 1, 1, 2)),
        )

    assert [KerasStep(compiled(model), size, 10).shards for size in (7, 8, 32)] == [1, 2, 2]


def test_each_shard_draws_its_own_dropout(split: DataSplit) -> None:
    model = compiled(dropping)
    before = [v.numpy() for v in model.variables if "seed_generator" in v.path]
    run(KerasStep(model, BATCH_SIZE, 10), split)
    after = [v.numpy() for v in model.variables if "seed_generator" in v.path]
    batches = 10  # of which the last has 11 images, still enough for two shards
    assert [tuple(b - a) for a, b in zip(before, after, strict=True)] == [(0, 2 * batches)] * 3


class Forgetful(keras.layers.Layer):  # type: ignore[misc]
    def __init__(self, draw: Callable[..., tf.Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs + self.draw(tf.shape(inputs))


@pytest.mark.parametrize("draw", [keras.random.normal, tf.random.normal])
def test_a_state_that_cannot_be_saved_is_refused(
    split: DataSplit, draw: Callable[..., tf.Tensor]
) -> None:
    step = KerasStep(compiled(lambda: sequential(Forgetful(draw))), BATCH_SIZE, 10)
    with pytest.raises(ValueError, match=r"keep all their state in variables of the model"):
        run(step, split)


def test_a_variable_that_keras_does_not_know_is_refused(split: DataSplit) -> None:
    hidden = tf.Variable(1.0, trainable=False, name="hidden")
    model = compiled(lambda: sequential(layers.Lambda(lambda x: x * hidden.read_value())))
    with pytest.raises(ValueError, match="hidden"):
        run(KerasStep(model, BATCH_SIZE, 10), split)


class OwnStep(Subclassed):
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


def own_step() -> keras.Model:
    model = OwnStep()
    model(np.zeros((1, 28, 28, 1), np.uint8))
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (sequential, "compiled and built"),
        (lambda: compiled(own_step), "Keras's train_step"),
        (lambda: compiled(sequential, optimizers.SGD(use_ema=True)), "use_ema"),
        (
            lambda: compiled(sequential, optimizers.LossScaleOptimizer(optimizers.SGD())),
            "LossScaleOptimizer",
        ),
        (lambda: compiled(sequential, loss=None), "one loss"),
        (lambda: compiled(sequential, loss="crossentropy"), "named in full"),
        (lambda: compiled(sequential, loss=keras.losses.CTC()), "loss of labels"),
        (
            lambda: compiled(
                sequential, loss=keras.losses.SparseCategoricalCrossentropy(reduction="none")
            ),
            "one number for a batch",
        ),
    ],
)
def test_what_fit_would_train_otherwise_is_refused(make: Build, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        KerasStep(make(), BATCH_SIZE, 10)


def test_outputs_of_another_shape_are_refused(split: DataSplit) -> None:
    def model() -> keras.Model:
        return keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(9)])

    with pytest.raises(ValueError, match=r"shape \(n, 10\)"):
        run(KerasStep(compiled(model), BATCH_SIZE, 10), split)
