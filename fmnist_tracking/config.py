"""What a person asks for: one training configuration; and checks of what is given."""

import contextlib
import dataclasses
import difflib
import math
import numbers
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, cast

from fmnist_tracking.errors import ConfigError, setting, shown
from fmnist_tracking.network import (
    COURSEWORK,
    Network,
    NetworkSize,
    Value,
    coursework_size,
)
from fmnist_tracking.objective import OBJECTIVES, VAL_ACCURACY, Objective

CLASS_NAMES = (
    "Top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Set to 1 to use files wherever a store says that they are.
TRUST_ARTIFACT_LOCATION = "FMNIST_TRUST_ARTIFACT_LOCATION"
DEFAULT_EXPERIMENT = "fashion-mnist"
FASHION_MNIST = "Fashion-MNIST"
DEFAULT_MODEL_NAME = "fashion-mnist"
DEFAULT_SAMPLE_SEED = 0
# Every one is a run of the store.
MOST_POINTS = 100_000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A number that a person can choose: its default, the values it can have, and what it is."""

    default: int | float
    about: str
    minimum: float = -math.inf
    above: float = -math.inf
    below: float = math.inf

    @property
    def is_whole(self) -> bool:
        """Return whether it is a whole number."""
        return isinstance(self.default, int)


# Of the coursework's network.
HYPERPARAMETERS = {
    "filters": Setting(default=48, minimum=1, about="filters of each convolution"),
    "kernel_size": Setting(
        default=3, minimum=1, about="side of the convolution kernels, in pixels"
    ),
    "strides": Setting(default=1, minimum=1, about="step of the convolutions, in pixels"),
    "hidden_units": Setting(default=64, minimum=1, about="units of the dense hidden layer"),
    "dropout": Setting(default=0.3, minimum=0.0, below=1.0, about="share of activations dropped"),
    "learning_rate": Setting(default=0.001, above=0.0, about="Adam's learning rate"),
}
# Of the training, whatever the network.
TRAINING_SETTINGS = {
    "batch_size": Setting(default=32, minimum=1, about="images in a training step"),
    "epochs": Setting(default=25, minimum=1, below=10**6, about="passes over the training images"),
    "seed": Setting(
        default=0, minimum=0, below=2**32, about="seed of the weights, dropout and shuffling"
    ),
    "patience": Setting(
        default=0,
        minimum=0,
        about="epochs without improvement before stopping; 0 never stops early",
    ),
}
FIELDS = {**HYPERPARAMETERS, **TRAINING_SETTINGS}
# Names that no hyperparameter may have: the training's settings, and what points are compared by.
OBJECTIVE = "objective"
OF_THE_TRAINING = (*TRAINING_SETTINGS, OBJECTIVE)
Pairs: TypeAlias = tuple[tuple[str, Value], ...]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One point of a grid with its seed: every setting that changes the trained numbers.

    Attributes:
        network: what is trained.
        objective: the name of what epochs and points are compared by; see `objective.OBJECTIVES`.
        hyperparameters: of the network, by name, in the order in which it asks for them; those that
            are not active are left out.
        size: of the network with these hyperparameters; None if it is not known, for networks other
            than the coursework's.

    Raises:
        ConfigError: a value is out of range, or a feature map of the coursework's network would
            vanish. The message names the field or the layer.
    """

    network: Network = COURSEWORK
    hyperparameters: Pairs = field(
        default=tuple((name, own.default) for name, own in HYPERPARAMETERS.items()), compare=False
    )
    batch_size: int = TRAINING_SETTINGS["batch_size"].default  # type: ignore[assignment]
    epochs: int = TRAINING_SETTINGS["epochs"].default  # type: ignore[assignment]
    seed: int = TRAINING_SETTINGS["seed"].default  # type: ignore[assignment]
    patience: int = TRAINING_SETTINGS["patience"].default  # type: ignore[assignment]
    objective: str = VAL_ACCURACY.name
    size: NetworkSize | None = field(default=None, compare=False, repr=False)
    # Two are equal whatever the order in which a network asks.
    _sorted: tuple[tuple[str, str, Value], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in TRAINING_SETTINGS:
            object.__setattr__(self, name, check_value(name, getattr(self, name)))
        require_choice(OBJECTIVE, self.objective, [*OBJECTIVES])
        if self.network.is_coursework:
            pairs = tuple((name, check_value(name, value)) for name, value in self.hyperparameters)
            size = coursework_size(dict(pairs), self.network)
            object.__setattr__(self, "hyperparameters", pairs)
            object.__setattr__(self, "size", size)
        for name, value in self.hyperparameters:
            require_value(name, value)
        typed = ((name, type(value).__name__, value) for name, value in self.hyperparameters)
        object.__setattr__(self, "_sorted", tuple(sorted(typed, key=lambda one: one[0])))

    @classmethod
    def of(cls, network: Network = COURSEWORK, /, **values: Value) -> "TrainingConfig":
        """Return a configuration with these hyperparameters and settings of the training, by name.

        The coursework's network takes its defaults for what is not given.
        """
        settings: dict[str, Any] = {n: v for n, v in values.items() if n in OF_THE_TRAINING}
        given = {name: value for name, value in values.items() if name not in settings}
        if network.is_coursework:
            for name in given:
                require_setting(name)
            given = {name: given.get(name, own.default) for name, own in HYPERPARAMETERS.items()}
        return cls(network=network, hyperparameters=tuple(given.items()), **settings)

    @cached_property
    def values(self) -> dict[str, Value]:
        """Return all values by name: of the hyperparameters, and of the training's settings.

        The objective is among them where it is not the usual one.
        """
        settings = {name: getattr(self, name) for name in TRAINING_SETTINGS}
        if self.objective != VAL_ACCURACY.name:
            settings[OBJECTIVE] = self.objective
        return {**dict(self.hyperparameters), **settings}

    @property
    def compared_by(self) -> Objective:
        """Return what its epochs, and points, are compared by."""
        return OBJECTIVES[self.objective]

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def replace(self, **values: Value) -> "TrainingConfig":
        """Return a copy with other values; its size stays, unless it is the coursework's."""
        settings: dict[str, Any] = {n: v for n, v in values.items() if n in OF_THE_TRAINING}
        given = {name: value for name, value in values.items() if name not in settings}
        for name in given if self.network.is_coursework else ():
            require_setting(name)
        pairs = tuple({**dict(self.hyperparameters), **given}.items())
        return dataclasses.replace(self, hyperparameters=pairs, **settings)


# The grid of the coursework: 3 filter counts x 2 strides x 2 kernel sizes x 1 hidden layer.
COURSEWORK_GRID: dict[str, tuple[Value, ...]] = {
    "filters": (12, 36, 48),
    "strides": (1, 2),
    "kernel_size": (3, 4),
    "hidden_units": (64,),
}
# Names of settings in other programs and in the coursework.
_OTHER_NAMES = {
    "lr": "learning_rate",
    "filter_size": "filters",
    "stride_size": "strides",
    "neurons_hl": "hidden_units",
    "neuronshl": "hidden_units",
}


def flag(name: str) -> str:
    """Return the command-line option of a field: `batch_size` is `--batch-size`."""
    return "--" + name.replace("_", "-")


SEARCH_FLAGS = {**{name: flag(name) for name in COURSEWORK_GRID}, "kernel_size": "--kernel-sizes"}


def describe_range(name: str) -> str:
    """Describe the values that a setting takes, such as "whole numbers of at least 1"."""
    own = FIELDS[name]
    noun = "whole numbers" if own.is_whole else "numbers"
    parts = []
    if own.minimum > -math.inf:
        parts.append(f"of at least {own.minimum:g}")
    if own.above > -math.inf:
        parts.append(f"above {own.above:g}")
    if own.below < math.inf:
        parts.append(f"below {own.below:.15g}")
    return f"{noun} {' and '.join(parts)}"


def require_value(name: object, value: object) -> None:
    """Raise `ConfigError` for what no hyperparameter can be called, or be."""
    if (
        not isinstance(name, str)
        or not isinstance(value, int | float | str)
        or (isinstance(value, float) and not math.isfinite(value))
        or (isinstance(value, int) and abs(value) >= 2**63)
    ):
        raise ConfigError(f"Expected {shown(name)} to be a number, text or boolean, got {value!r}.")


def require_setting(name: object) -> None:
    """Raise `ConfigError` for what is no name in `FIELDS`, and name the near one."""
    if name not in FIELDS:
        near = did_you_mean(name, FIELDS) if isinstance(name, str) else ""
        raise ConfigError(
            f"There is no setting called {shown(name)}.{near} Expected one of: {', '.join(FIELDS)}."
        )


def check_value(name: str, value: object) -> int | float:
    """Check one value of a setting in `FIELDS`, and convert it to the setting's type.

    Raises:
        ConfigError: `name` is no setting, or `value` is of the wrong type or out of range.
    """
    require_setting(name)
    own = FIELDS[name]
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError, ValueError):  # too large, or no number at all
            exact: int | float = int(cast(int, value)) if own.is_whole else float(value)
            if (
                math.isfinite(exact)
                and not (own.is_whole and exact != value)
                and own.minimum <= exact < own.below
                and exact > own.above
            ):
                return exact + 0  # else -0.0 would be another point than 0.0
    expected = singular(describe_range(name))
    raise ConfigError(f"Expected {name} to be {expected}, got {shown(value)}.")


def require_whole(name: str, value: object, minimum: int = 1) -> int:
    """Return an argument as a whole number; raise `ConfigError` if it is none, or too small."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        whole = int(value)
        if whole >= minimum:
            return whole
    raise ConfigError(
        f"Expected {setting(name)} to be a whole number of at least {minimum}, got {shown(value)}."
    )


def require_flag(name: str, value: object) -> None:
    """Raise `ConfigError` for an argument that is neither True nor False."""
    if not isinstance(value, bool):
        raise ConfigError(f"Expected {setting(name)} to be True or False, got {shown(value)}.")


# Unicode's categories of control characters, halves of pairs, and separators of lines.
_IN_NO_NAME = {"Cc", "Cs", "Zl", "Zp"}


def require_text(name: str, value: object) -> None:
    """Raise `ConfigError` for an argument that cannot be a name or an address."""
    if not isinstance(value, str) or {unicodedata.category(c) for c in value} & _IN_NO_NAME:
        raise ConfigError(
            f"Expected {setting(name)} to be text of printable characters, got {shown(value)}."
        )


def require_path(name: str, value: object) -> Path:
    """Return an argument that names a file or folder; raise `ConfigError` if it cannot."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str) and text and "\0" not in text:
        with contextlib.suppress(UnicodeEncodeError):
            os.fsencode(text)
            return Path(text)
    raise ConfigError(f"Expected {setting(name)} to be a path, got {shown(value)}.")


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise `ConfigError` for an argument that is none of its choices, and name the near one."""
    if not isinstance(value, str) or value not in choices:
        near = did_you_mean(value, choices) if isinstance(value, str) else ""
        *others, last = choices
        listed = f"{', '.join(others)} or {last}"
        raise ConfigError(f"Expected {setting(name)} to be {listed}, got {shown(value)}.{near}")


def singular(words: str) -> str:
    """Change the words of `describe_range` from many numbers to one."""
    return "a " + words.replace("numbers", "number", 1)


def setting_called(name: str) -> str | None:
    """Return the setting with this name, also in other programs; None if there is none."""
    name = name.strip("-").lower().replace("-", "_")
    name = _OTHER_NAMES.get(name, name)
    return name if name in FIELDS else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return a question with the most similar name, if any, such as " Did you mean dropout?"."""
    bare = {name.lstrip("-"): name for name in names}
    called = setting_called(word)
    near = [called] if called in bare else difflib.get_close_matches(word.lstrip("-"), bare, n=1)
    return f" Did you mean {bare[near[0]]}?" if near else ""


def format_value(value: Value) -> str:
    """Return a value as people read it, and as it can be typed: 0.1, adam, True."""
    if isinstance(value, str | bool | int):
        return str(value)
    short = f"{value:.15g}"
    return short if float(short) == value else repr(value)  # two points have two names


def size_of(config: TrainingConfig) -> NetworkSize:
    """Return the size of a configuration's network; of one that is not known, nothing."""
    return config.size or NetworkSize(parameters=0, multiply_adds=0, outputs=0)
