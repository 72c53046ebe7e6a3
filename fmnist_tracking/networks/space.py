"""Which points a search tries: those of KerasTuner's own grid search, or random search.

Those that depend on results are in `proposals`.
"""

import contextlib
import itertools
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras_tuner.engine import hyperparameters as hp_types

from fmnist_tracking import clock
from fmnist_tracking.config import MOST_POINTS, OF_THE_TRAINING, TRAINING_SETTINGS, did_you_mean
from fmnist_tracking.errors import ConfigError, first_line, setting, shown
from fmnist_tracking.network import Network, Value
from fmnist_tracking.networks.build import checked, load_build, size_of_model
from fmnist_tracking.search_space import Combination, Draw, Impossible, NetworkGrid, in_order

OBJECTIVE = "val_accuracy"
RequireTrainable = Callable[[Any, Network, bool], None]
# What MLflow takes for the name of a parameter, and what tables of trials call other columns.
_NAME = re.compile(r"(?=.{1,200}$)[\w\-: ][\w\-.: ]*(/[\w\-: ][\w\-.: ]*)*", re.ASCII)
_PREFIXES = ("grid.", "base.", "split.", "model_sha256", "model_code_sha256")
_LONGEST_TEXT = 500
# How often it is told how many points there are so far.
_TELL_SECONDS = 5.0
# After so many models that cannot be trained, and none that can, no more are built.
_UNTRAINABLE = 3
_TAKEN = {
    *("rank", "name", "status", "error", "reused", "run_id", "network", "hyperparameters"),
    *("val_accuracy", "score", "best_epoch", "train_seconds", "model_parameters"),
}


def explore_grid(
    network: Network,
    replaced: Mapping[str, Sequence[Value]],
    report: Callable[[int], None] = lambda _: None,
    require_trainable: RequireTrainable = lambda *_: None,
    draw: Draw | None = None,
) -> NetworkGrid:
    """Return the points of a network's grid, or some that are drawn.

    Each is built once, as KerasTuner does: a function may ask for hyperparameters that depend on
    the values of others.

    Args:
        network: whose function is called.
        replaced: values to try instead of a hyperparameter's own, by its name.
        report: called with the number of points found, now and then.
        require_trainable: raises an error for a model that cannot be trained, given it, the network
            and whether to try; that is done with the first that is built.
        draw: how many points to draw at random; None for the grid. Fewer are found where chance
            gives one again and again that it has given before.

    Raises:
        ConfigError: the network cannot be loaded, no point can be built, there is no hyperparameter
            of such a name, or the values of one are without end.
    """
    wanted = {name: tuple(values) for name, values in replaced.items()}
    kind: type[Enumerator] = _Grid if draw is None else _Random
    tuner = open_tuner(kind, network, wanted, draw, require_trainable)
    if draw is not None:
        tuner.oracle._seed_state = draw.seed  # for a seed of 0, KerasTuner takes any
    tuner.report = report
    with keras_tuner_warnings_ignored():
        try:
            tuner.search(verbose=0)
        except keras_tuner.errors.FatalError as error:  # which `run_trial` raises
            raise ConfigError(str(error)) from None
    tuner.hypermodel.require_sound()
    space = tuner.oracle.get_space().space
    names = list(dict.fromkeys(hp.name for hp in space))
    _require_known(network, wanted, names)
    built = {one.values: one for one in tuner.found if isinstance(one, Combination)}
    failed = {one.values: one for one in tuner.found if isinstance(one, Impossible)}
    if not built:
        reasons = {one.reason for one in failed.values()}
        raise ConfigError(
            next(iter(reasons))
            if len(reasons) == 1
            else f"None of the {len(failed)} points can be built. The first: {min(reasons)}"
        )
    points = [dict(one.values) for one in tuner.found]
    axes = {name: tuple(dict.fromkeys(p[name] for p in points if name in p)) for name in names}
    if draw is not None:
        axes = {name: in_order(values) for name, values in axes.items()}
    return NetworkGrid(
        axes={name: values for name, values in axes.items() if len(values) > 1},
        combinations=tuple(built.values()),
        impossible=tuple(failed.values()),
        open=tuple(dict.fromkeys(hp.name for hp in space if _is_open(hp))),
    )


def _is_open(hyperparameter: Any) -> bool:
    endless = isinstance(hyperparameter, hp_types.Float) and hyperparameter.step is None
    return endless or len(list(itertools.islice(hyperparameter.values, 2))) > 1


def open_tuner(
    kind: "type[Enumerator]",
    network: Network,
    replaced: Mapping[str, tuple[Value, ...]],
    draw: Draw | None,
    require_trainable: RequireTrainable,
) -> Any:
    """Return a search of KerasTuner's, which knows the hyperparameters; see `explore_grid`.

    Raises:
        ConfigError: what the network says of its hyperparameters is wrong, whatever their values.
    """
    builder = _Builder(network, replaced, is_grid=draw is None)
    settings = {} if draw is None else {"max_trials": draw.points, "seed": draw.seed}
    direction = "max" if draw is None else draw.direction
    with tempfile.TemporaryDirectory() as scratch, keras_tuner_warnings_ignored():
        tuner: Any = kind(
            builder,
            **settings,
            objective=keras_tuner.Objective(OBJECTIVE, direction=direction),
            max_consecutive_failed_trials=None,
            directory=scratch,
            overwrite=True,
        )
    builder.require_sound()
    tuner.require_trainable = require_trainable
    return tuner


def defaults(
    network: Network,
    given: Mapping[str, Value],
    require_trainable: RequireTrainable = lambda *_: None,
) -> Combination:
    """Return a network's hyperparameters with their defaults, but for those that are given.

    Raises:
        ConfigError: it cannot be built, or has no hyperparameter of such a name.
    """
    builder = _Builder(network, {name: (value,) for name, value in given.items()}, is_grid=False)
    hyperparameters = keras_tuner.HyperParameters()
    model = builder.build(hyperparameters)
    require_trainable(model, network, True)
    known = {hp.name: hp for hp in hyperparameters.space}
    _require_known(network, given, list(known), ", or asks for it with other values alone")
    for name in given:
        if name not in hyperparameters.values:
            parents = ", ".join(condition.name for condition in known[name].conditions)
            raise ConfigError(
                f"{name} has no meaning with these hyperparameters: it depends on {parents}."
            )
    return Combination(values=_pairs(hyperparameters.values), size=size_of_model(model))


class _Replacing(keras_tuner.HyperParameters):  # type: ignore[misc]
    """Hyperparameters some of which have other values than the network's function says."""

    replaced: Mapping[str, tuple[Value, ...]]
    wrong: list[ConfigError]
    is_grid: bool

    def _register(self, hyperparameter: Any, overwrite: bool = False) -> Any:
        name = hyperparameter.name
        if name in self.replaced:
            values = [self._as_type_of(hyperparameter, value) for value in self.replaced[name]]
            if len(set(values)) < len(values):
                self._refuse(f"Expected the values of {name} to differ, got {shown(values)}.")
            hyperparameter = _replacement(name, values, hyperparameter.conditions)
        elif (
            self.is_grid
            and isinstance(hyperparameter, hp_types.Int)
            and hyperparameter.sampling != "linear"
        ):
            # KerasTuner gives these values as floats, which no layer takes for a number of units.
            hyperparameter = hp_types.Choice(
                name,
                [int(value) for value in hyperparameter.values],
                default=hyperparameter.default,
                conditions=hyperparameter.conditions,
            )
        elif (
            self.is_grid
            and isinstance(hyperparameter, hp_types.Float)
            and hyperparameter.step is None
        ):
            low, high = hyperparameter.min_value, hyperparameter.max_value
            self._refuse(
                f"The values of {name} are without end: it is a Float without a step. Give it a "
                f"step in the network, or list its values in the grid, such as {name}={low:g},"
                f"{high:g}, or draw points at random with {setting('oracle')}."
            )
        if name in OF_THE_TRAINING:
            self._refuse(
                f"The network has a hyperparameter {name}, which is also a setting of the "
                "training. Give it another name, or leave it out."
            )
        if not _NAME.fullmatch(name) or name in _TAKEN or name.startswith(_PREFIXES):
            self._refuse(
                f"Expected the names of hyperparameters to be of letters, digits, spaces and any "
                f"of _-./: and none of {', '.join(sorted(_TAKEN))}, nor to begin as "
                f"{', '.join(_PREFIXES)}, got {shown(name)}. Give it another name."
            )
        texts = [value for value in hyperparameter.values if isinstance(value, str)]
        if any(len(text) > _LONGEST_TEXT for text in texts):
            self._refuse(f"Expected the values of {name} to be of {_LONGEST_TEXT} letters at most.")
        return super()._register(hyperparameter, overwrite)

    def _as_type_of(self, hyperparameter: Any, value: Value) -> Value:
        """Convert a value to the type of a hyperparameter's own; a text is read as that."""
        expected = type(hyperparameter.default)
        with contextlib.suppress(ValueError):
            if isinstance(value, str) and expected is not str:
                value = _READ[expected](value)
        if expected is float and type(value) is int:
            value = float(value)
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(f"Expected {hyperparameter.name} to list finite numbers, got {value}.")
        if type(value) is not expected:
            self._refuse(
                f"Expected {hyperparameter.name} to list {_WORDS[expected]}, as the network does, "
                f"got {shown(value)}."
            )
        return value

    def _refuse(self, message: str) -> None:
        """Keep an error, which is no point's own, and end the building with it."""
        error = ConfigError(message)
        self.wrong.append(error)
        raise error


def _replacement(name: str, values: list[Value], conditions: Any) -> Any:
    """Return a hyperparameter of KerasTuner's that has these values, the first by default."""
    if len(values) == 1:
        return hp_types.Fixed(name, values[0], conditions=conditions)
    if isinstance(values[0], bool):  # which a Choice makes numbers of
        return hp_types.Boolean(name, default=values[0], conditions=conditions)
    return hp_types.Choice(name, values, default=values[0], conditions=conditions)


def _read_flag(text: str) -> bool:
    """Read true or false; raise `ValueError` if it is neither."""
    return ["false", "true"].index(text.lower()) == 1


def _read_whole(text: str) -> int:
    """Read a whole number as it is typed, not 08 or 1_0; raise `ValueError` if it is none."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _read_number(text: str) -> float:
    """Read a number as it is typed, not 1_0; raise `ValueError` if it is none."""
    if "_" in text:
        raise ValueError(text)
    return float(text)


_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
_READ: dict[type, Callable[[str], Value]] = {
    int: _read_whole,
    float: _read_number,
    bool: _read_flag,
}
_WORDS = {int: "whole numbers", float: "numbers", str: "texts", bool: "true or false"}


class _Builder(keras_tuner.HyperModel):  # type: ignore[misc]
    """Builds a network for KerasTuner; an error is kept for the point that it belongs to."""

    def __init__(
        self,
        network: Network,
        replaced: Mapping[str, tuple[Value, ...]],
        *,
        is_grid: bool = True,
    ) -> None:
        super().__init__()
        self.is_grid = is_grid
        self.network = network
        self.replaced = replaced
        self.wrong: list[ConfigError] = []
        self.is_tolerant = False
        self._function = load_build(network)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model | None:
        """Build the network of a point; None where an error is told with the point later."""
        hp.__class__ = _Replacing
        hp.replaced, hp.wrong, hp.is_grid = self.replaced, self.wrong, self.is_grid
        keras.backend.clear_session()
        try:
            return checked(self._function(hp), self.network)
        except Exception:
            if self.is_tolerant:
                return None
            raise

    def require_sound(self) -> None:
        """Raise what is wrong with the hyperparameters, whatever their values."""
        if self.wrong:
            raise self.wrong[0]


class Enumerator(keras_tuner.Tuner):  # type: ignore[misc]
    """A search of KerasTuner's with building in the place of training; it writes nothing."""

    report: Callable[[int], None]
    require_trainable: RequireTrainable

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.found: list[Combination | Impossible] = []
        self._untrainable = 0
        self._told_at = clock.now()
        super().__init__(*args, **settings)
        self.oracle.save = lambda: None
        self.oracle._save_trial = lambda trial: None
        self.oracle._check_consecutive_failures = lambda: None  # which takes ever longer

    def save(self) -> None:
        """Write nothing."""

    def on_trial_end(self, trial: Any) -> None:
        """Write nothing."""
        self.oracle.end_trial(trial)

    def _activate_all_conditions(self) -> None:
        self.hypermodel.is_tolerant = True
        super()._activate_all_conditions()
        self.hypermodel.is_tolerant = False

    def run_trial(self, trial: Any, *_: Any, **__: Any) -> float:
        """Build a point."""
        if len(self.found) >= MOST_POINTS:
            raise keras_tuner.errors.FatalError(
                f"Expected a grid of at most {MOST_POINTS:,} points, got more."
            )
        self.found.append(self.built(trial))
        if clock.now() - self._told_at >= _TELL_SECONDS:
            self.report(len(self.found))
            self._told_at = clock.now()
        return 0.0

    def built(self, trial: Any) -> Combination | Impossible:
        """Build a point, and return it, or why it cannot be.

        Raises:
            FatalError: no other is likely to be trainable.
        """
        try:
            model = self.hypermodel.build(trial.hyperparameters)
            is_first = not any(isinstance(one, Combination) for one in self.found)
            self._require_trainable(model, is_first)
            values = _pairs(trial.hyperparameters.values)
            return Combination(values=values, size=size_of_model(model))
        except keras_tuner.errors.FatalError:
            raise
        except Exception as error:
            values = _pairs(trial.hyperparameters.values)
            return Impossible(values=values, reason=first_line(error))

    def _require_trainable(self, model: keras.Model, is_first: bool) -> None:
        """Raise an error for a model that cannot be trained; end the search if several cannot be.

        What they give is wrong with all points then, most likely: others need not be built.
        """
        try:
            self.require_trainable(model, self.hypermodel.network, is_first)
        except Exception as error:
            self._untrainable += is_first
            if self._untrainable < _UNTRAINABLE:
                raise
            raise keras_tuner.errors.FatalError(
                f"None of the first {len(self.found) + 1} points can be trained. The last: "
                f"{first_line(error)}"
            ) from None


class _Grid(Enumerator, keras_tuner.GridSearch):  # type: ignore[misc]
    pass


class _Random(Enumerator, keras_tuner.RandomSearch):  # type: ignore[misc]
    pass


def _pairs(values: Mapping[str, Any]) -> tuple[tuple[str, Value], ...]:
    """Return hyperparameters as Python's own numbers, texts and booleans."""
    return tuple(
        (name, value.item() if isinstance(value, np.generic) else value)
        for name, value in values.items()
    )


def _require_known(
    network: Network, given: Mapping[str, Any], names: Sequence[str], where: str = ""
) -> None:
    for name in given:
        if name not in names:
            near = did_you_mean(name, names)
            raise ConfigError(
                f"{network.name} has no hyperparameter {shown(name)}{where}.{near} It has: "
                f"{', '.join(names) or 'none'}. Settings of the training: "
                f"{', '.join(TRAINING_SETTINGS)}."
            )


@contextlib.contextmanager
def keras_tuner_warnings_ignored() -> Iterator[None]:
    """Ignore that KerasTuner uses deprecated names, where the program makes warnings errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="keras_tuner")
        yield
