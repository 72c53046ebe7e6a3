"""A grid: the values of each axis, and the points that they make."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from fmnist_tracking.config import (
    COURSEWORK_GRID,
    MOST_POINTS,
    TRAINING_SETTINGS,
    Pairs,
    TrainingConfig,
    check_value,
    format_value,
    require_setting,
    require_value,
)
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.network import COURSEWORK, Network, NetworkSize, Value
from fmnist_tracking.redact import printable


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What a network's hyperparameters can be together, and how large the network is then."""

    values: Pairs
    size: NetworkSize | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Impossible:
    """A point that cannot be built, and why."""

    values: Pairs
    reason: str

    @property
    def name(self) -> str:
        """Return its values for people."""
        return " ".join(f"{name}={format_value(value)}" for name, value in self.values)


_LONGEST_NAME = 120
# How points are chosen.
Oracle: TypeAlias = Literal["grid", "random", "bayesian"]
ORACLES = get_args(Oracle)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """So many points in the place of a grid.

    Attributes:
        points: how many.
        seed: of chance.
        direction: `max` or `min`, what points are compared by; it counts if they depend on results.
    """

    points: int
    seed: int
    direction: str = "max"


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """Points that depend on results, as far as results are known.

    Attributes:
        points: in the order in which they are asked for; one may be there several times.
        is_over: whether there are no others.
    """

    points: tuple[Combination | Impossible, ...]
    is_over: bool


@dataclass(frozen=True, kw_only=True)
class NetworkGrid:
    """The grid of a network, or points drawn of it.

    Attributes:
        axes: the values of each hyperparameter that varies, in the order of its definition, its
            default first; drawn numbers are sorted.
        combinations: the points that can be built, in the order in which KerasTuner tries them.
        impossible: those that cannot.
        open: the hyperparameters that can have more than one value, whether they have or not.
    """

    axes: Mapping[str, tuple[Value, ...]]
    combinations: tuple[Combination, ...]
    impossible: tuple[Impossible, ...] = ()
    open: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A finite grid: for each axis, which is a setting, the values in order.

    Attributes:
        axes: the values by the setting's name; by default those of the coursework.
        network: what is searched.
        combinations: of its hyperparameters, in the order in which they are tried; None for the
            coursework's network, for which every value goes with every other. The training's
            settings among the axes go with each of them.

    Raises:
        ConfigError: there is no axis, an unknown one, one without values, or a repeated value; or
            the grid is larger than what can be explored.
    """

    axes: Mapping[str, tuple[Value, ...]] = field(default_factory=lambda: dict(COURSEWORK_GRID))
    network: Network = COURSEWORK
    combinations: tuple[Combination, ...] | None = None

    def __post_init__(self) -> None:
        if not self.axes and self.combinations is None:
            raise ConfigError("Expected a grid with at least one axis, got none.")
        if self._count() > MOST_POINTS:
            raise ConfigError(f"Expected a grid of at most {MOST_POINTS:,} points, got more.")
        checked = {}
        for name, values in self.axes.items():
            if self.combinations is None:
                require_setting(name)
            if not values:
                raise ConfigError(f"Expected at least one value for the axis {name}, got none.")
            checked[name] = tuple(
                check_value(name, value)
                if self.combinations is None or name in self._settings
                else value
                for value in values
            )
            for value in checked[name]:
                require_value(name, value)
            (value, times), *_ = Counter(checked[name]).most_common(1)
            if times > 1:
                raise ConfigError(
                    f"Expected the values of {name} to differ, got {format_value(value)} more than "
                    "once."
                )
        object.__setattr__(self, "axes", checked)

    def __len__(self) -> int:
        return self._count()

    def _count(self) -> int:
        if self.combinations is None:
            return math.prod(len(values) for values in self.axes.values())
        return len(self.combinations) * math.prod(len(self.axes[name]) for name in self._settings)

    @property
    def _settings(self) -> list[str]:
        """Return the axes that are the training's."""
        return [name for name in self.axes if name in TRAINING_SETTINGS]

    @property
    def varying(self) -> tuple[str, ...]:
        """Return the axes with more than one value."""
        return tuple(axis for axis, values in self.axes.items() if len(values) > 1)

    def points(self, base: TrainingConfig) -> tuple[TrainingConfig, ...]:
        """Return every configuration of the grid, the last axis changing fastest.

        Args:
            base: has the value of each setting that is not an axis.

        Raises:
            ConfigError: a point of the grid cannot be built; the message names the layer.
        """
        if self.combinations is None:
            return tuple(
                base.replace(**dict(zip(self.axes, values, strict=True)))
                for values in itertools.product(*self.axes.values())
            )
        settings = self._settings
        return tuple(
            dataclasses.replace(
                base,
                network=self.network,
                hyperparameters=one.values,
                size=one.size,
                **dict(zip(settings, values, strict=True)),  # type: ignore[arg-type]
            )
            for one in self.combinations
            for values in itertools.product(*(self.axes[name] for name in settings))
        )

    def with_axes(self, axes: Mapping[str, Iterable[Value]]) -> "SearchSpace":
        """Return this grid with axes added or replaced."""
        merged = {**self.axes, **{k: tuple(v) for k, v in axes.items()}}
        return dataclasses.replace(self, axes=merged)


def points_of(
    network: Network, axes: Iterable[str], configs: Iterable[TrainingConfig]
) -> SearchSpace:
    """Return the grid of a network that has only these points, and their values of these axes."""
    chosen = list(dict.fromkeys(configs))
    listed: dict[str, tuple[Value, ...]] = {}
    for axis in axes:
        values = dict.fromkeys(one.values[axis] for one in chosen if axis in one.values)
        if values:
            listed[axis] = in_order(tuple(values))
    combinations = tuple(Combination(values=one.hyperparameters, size=one.size) for one in chosen)
    return SearchSpace(axes=listed, network=network, combinations=combinations)


def in_order(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Return drawn numbers by size, and others as they are."""
    numbers = all(isinstance(value, int | float) for value in values)
    return tuple(sorted(values)) if numbers else values


def trial_name(config: TrainingConfig, axes: tuple[str, ...] = ()) -> str:
    """Return a name for people: "filters=48 optimizer=adam", of the axes that vary.

    For the coursework's network it is "f48 k3 s1", and the other axes by name.
    """
    if not config.network.is_coursework:
        named = [name for name, _ in config.hyperparameters if not axes or name in axes]
        named += [axis for axis in axes if axis in TRAINING_SETTINGS]
        whole = " ".join(f"{name}={format_value(config[name])}" for name in named)
        return printable(whole or config.network.name, _LONGEST_NAME)
    name = f"f{config['filters']} k{config['kernel_size']} s{config['strides']}"
    others = [axis for axis in axes if axis not in ("filters", "kernel_size", "strides")]
    return " ".join([name, *(f"{axis}={format_value(config[axis])}" for axis in others)])
