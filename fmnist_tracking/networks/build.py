"""Build a network from its function and its hyperparameters."""

import importlib
import importlib.util
import inspect
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import PurePath
from types import ModuleType
from typing import Any, TypeAlias

import keras
import keras_tuner
import numpy as np
from keras.src.utils import naming
from numpy.typing import NDArray

from fmnist_tracking.config import TrainingConfig, did_you_mean
from fmnist_tracking.errors import ConfigError, first_line
from fmnist_tracking.network import Network, NetworkSize, PackedModel
from fmnist_tracking.networks.logged_code import module_name
from fmnist_tracking.networks.models import as_input, shapes
from fmnist_tracking.networks.own_code import (
    keep_files,
    own_modules,
    own_objects,
    own_places,
    pack,
    require_no_namesake,
)
from fmnist_tracking.networks.source import (
    folder_on_path,
    require_unchanged,
    root_of,
    source_of,
)

Build = Callable[[keras_tuner.HyperParameters], keras.Model]
# What a model is made of, as JSON; or the whole model, if its code is needed to make it.
Packed: TypeAlias = str | PackedModel


def build_model(config: TrainingConfig) -> keras.Model:
    """Build a configuration's network, compiled, with new initial weights.

    Its layers have the same names whatever this process has built before.

    Raises:
        ConfigError: it cannot be built, or is none that can be trained on such images.
    """
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.values = dict(config.hyperparameters)
    naming.reset_uids()
    return checked(load_build(config.network)(hyperparameters), config.network)


def architecture(model: keras.Model) -> str:
    """Return what a model is made of, as JSON, without weights, loss and optimizer."""
    described = keras.saving.serialize_keras_object(model)
    return json.dumps({key: part for key, part in described.items() if key != "compile_config"})


def with_weights(
    described: str, weights: Sequence[NDArray[Any]], own: Mapping[str, Any] | None = None
) -> keras.Model:
    """Make a model of its `architecture` and the weights of a training, uncompiled.

    The function that has built it is not run again: it might build another. `own` are the classes
    and functions that are not Keras's own, by Keras's names.
    """
    # A GPU's memory is for the workers.
    with keras.device("cpu:0"), keras.saving.custom_object_scope(own or {}):
        model = keras.saving.deserialize_keras_object(json.loads(described), safe_mode=True)
        model.set_weights(list(weights))
    return model


@lru_cache(maxsize=8)
def load_build(network: Network) -> Build:
    """Return the function that builds a network, with the shape of the images given to it.

    A function or `HyperModel` that takes `image_shape` and `classes` is given them.

    Raises:
        ConfigError: its module cannot be imported, or has changed, or it is no such function.
    """
    with in_code_of(network):
        module = _load_module(network)
    found = getattr(module, network.function, None)
    if found is None:
        names = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        there = f" It has: {', '.join(names[:9])}." if names else ""
        near = did_you_mean(network.function, names)
        raise ConfigError(f"There is no {network.function} in {network.file}.{near}{there}")
    about = {"image_shape": network.image_shape, "classes": network.classes}
    if isinstance(found, type) and issubclass(found, keras_tuner.HyperModel):
        with in_code_of(network):
            found = found(**_taken(found, about))
    if isinstance(found, keras_tuner.HyperModel):
        if type(found).fit is not keras_tuner.HyperModel.fit:
            raise ConfigError(
                f"{network.name} has a method fit, which is not used here: every network is "
                "trained alike. Remove it; batch_size, epochs, seed and patience are settings of "
                "the training, and can be axes of the grid."
            )
        function = found.build
    elif callable(found):
        function = found
    else:
        raise ConfigError(
            f"Expected {network.name} to be a function build(hp) or a HyperModel, got "
            f"{type(found).__name__}."
        )
    taken = _taken(function, about)

    def build(hp: keras_tuner.HyperParameters) -> keras.Model:
        data_format = keras.config.image_data_format()
        keras.config.set_image_data_format("channels_last")
        try:
            with in_code_of(network):
                return function(hp, **taken)
        finally:
            keras.config.set_image_data_format(data_format)

    return build


def _taken(function: Callable[..., Any], about: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a function has a parameter for."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in about.items() if name in parameters}


def _load_module(network: Network) -> ModuleType:
    if network.is_coursework:
        return importlib.import_module(str(network.module))
    if network.file is None:
        raise ConfigError(f"The network {network.name} is known by its name alone, without a file.")
    keep_files(network)
    require_unchanged(network)
    if network.module is not None:
        return importlib.import_module(network.module)
    name = module_name(PurePath(network.file.name))
    spec = importlib.util.spec_from_file_location(name, network.file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{network.file} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as if it had been imported from its folder
    spec.loader.exec_module(module)
    return module


@contextmanager
def in_code_of(network: Network) -> Iterator[None]:
    """Run a network's code: what is beside its file can be imported, an error has file and line.

    Raises:
        ConfigError: its code raised an exception, or ended the program.
    """
    if network.file is None:
        yield
        return
    try:
        with folder_on_path(root_of(network)), own_modules(network):
            yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        own, where = set(map(str, source_of(network))), network.name
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename in own:
                where = f"{frame.filename}, line {frame.lineno}"
        if isinstance(error, SyntaxError):
            where = f"{error.filename}, line {error.lineno}"
        raise ConfigError(f"{where}: {type(error).__name__}: {first_line(error)}") from error


def checked(model: Any, network: Network) -> keras.Model:
    """Return what a network's function has built, if it can be trained on such images.

    Raises:
        ConfigError: it is no compiled Keras model, or takes or gives something else.
    """
    if not isinstance(model, keras.Model):
        raise ConfigError(
            f"Expected {network.name} to return a compiled Keras model, got {type(model).__name__}."
        )
    if not model.compiled or model.optimizer is None:
        raise ConfigError(
            f"Expected {network.name} to return a compiled model: end it with "
            'model.compile(optimizer=…, loss="sparse_categorical_crossentropy").'
        )
    with in_code_of(network):
        if isinstance(model, keras.Sequential) and not model.built:
            model.build((None, *network.image_shape))
        elif not model.built:  # a class of its own, whose layers are built when it is called
            model(np.zeros((1, *network.image_shape), np.uint8), training=False)
        inputs, outputs = (len(keras.tree.flatten(side or [0])) for side in _sides(model))
        takes, gives = shapes(model, network)
        _require_saveable(model, network)
    if inputs > 1 or outputs > 1:
        raise ConfigError(
            f"{network.name} has {inputs} inputs and {outputs} outputs; expected one of each."
        )
    first = next(iter(_sides(model)[0] or ()), None)
    if first is not None and first.shape[0] is not None:
        raise ConfigError(
            f"{network.name} takes batches of {first.shape[0]} images alone; expected "
            "any number. Use keras.Input(shape) without a batch size."
        )
    shape = network.image_shape
    fitting = {shape, shape[:2]} if shape[2] == 1 else {shape}
    if takes not in fitting:
        raise ConfigError(
            f"{network.name} takes images of shape {takes}; the data has {shape}. Give its build "
            "a parameter image_shape, and use it in keras.Input(image_shape)."
        )
    if gives != (network.classes,):
        raise ConfigError(
            f"{network.name} gives {gives} for an image; expected {network.classes} "
            "probabilities, one for each class. Give its build a parameter classes, and use it in "
            "the last layer."
        )
    return model


def _sides(model: keras.Model) -> tuple[Any, Any]:
    return getattr(model, "inputs", None), getattr(model, "outputs", None)


def _require_saveable(model: keras.Model, network: Network) -> None:
    """Raise `ConfigError` for a model that would not be the same where it is loaded."""
    require_no_namesake(model, network)
    try:
        described = architecture(model)
    except NotImplementedError as error:
        raise ConfigError(
            f"{network.name} has a class that cannot be saved ({first_line(error)} …). Give it a "
            "method get_config that returns every argument of its __init__."
        ) from None
    places = own_places(json.loads(described), network)
    if not places:
        return
    weights = model.get_weights()
    try:
        again = with_weights(described, weights, own_objects(places, network))
    except Exception as error:
        own = " or ".join(sorted({name for _, name in places.values()}))
        raise ConfigError(
            f"{network.name}: its model cannot be made again from what its classes say of "
            f"themselves. Have get_config of {own} return every argument of __init__, with its "
            f"value. Keras says: {first_line(error)}"
        ) from None
    images = np.random.default_rng(0).integers(0, 256, (2, *network.image_shape), np.uint8)
    first, second, other = (
        np.asarray(one(as_input(one, images), training=False)) for one in (model, model, again)
    )
    model.set_weights(weights)  # which some layers change when they are called
    is_random = not np.array_equal(first, second, equal_nan=True)
    if not is_random and not np.allclose(first, other, atol=1e-5, equal_nan=True):
        raise ConfigError(
            f"{network.name} builds a model that gives other probabilities once it was saved and "
            f"loaded. Expected get_config of {', '.join(places)} to return every argument of "
            "__init__."
        )


def packed(model: keras.Model, weights: Sequence[NDArray[Any]], network: Network) -> Packed:
    """Return a model's `architecture`; or the model with its code, if it needs some of its own.

    Args:
        model: from `build_model`.
        weights: of the training.
        network: that has built it.
    """
    with in_code_of(network):
        described = architecture(model)
        places = own_places(json.loads(described), network)
        if not places:
            return described
        trained = with_weights(described, weights, own_objects(places, network))
    return pack(trained, places, network)


def size_of_model(model: keras.Model) -> NetworkSize:
    """Count a model's weights, its multiply-adds an image, and the values that its layers give."""
    adds = outputs = 0
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if isinstance(layer, keras.Model | keras.layers.InputLayer):
            continue
        try:
            shape = [side or 1 for side in layer.output.shape[1:]]
        except (AttributeError, ValueError):  # it has no one output
            continue
        outputs += math.prod(shape)
        # Each weight of a kernel is used once for every place that the kernel is applied to.
        kernels = [weight.shape for weight in layer.weights if len(weight.shape) > 1]
        adds += math.prod(shape[:-1]) * sum(map(math.prod, kernels))
    return NetworkSize(
        parameters=int(model.count_params()), multiply_adds=int(adds), outputs=int(outputs)
    )
