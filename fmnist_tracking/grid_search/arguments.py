"""What a caller asks for -> a grid of points."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fmnist_tracking.config import (
    FIELDS,
    HYPERPARAMETERS,
    MOST_POINTS,
    OBJECTIVE,
    OF_THE_TRAINING,
    TRAINING_SETTINGS,
    TrainingConfig,
    check_value,
    require_choice,
    require_flag,
    require_whole,
)
from fmnist_tracking.console import Echo
from fmnist_tracking.errors import ConfigError, setting, shown
from fmnist_tracking.grid_search.network_grid import (
    ask_defaults,
    ask_grid,
    coursework_grid,
    require_possible,
)
from fmnist_tracking.network import Network, Value
from fmnist_tracking.search_space import (
    ORACLES,
    Combination,
    Draw,
    Impossible,
    Oracle,
    SearchSpace,
)

# Sequences that are no lists of values.
_TEXTS = (str, bytes, bytearray)
Grid: TypeAlias = SearchSpace | Mapping[str, Iterable[Value]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a caller asks a search for.

    Attributes:
        space: the grid.
        base: has the value of each setting that is no axis.
        impossible: points that cannot be built, and are left out of the grid.
        bayesian: how many points to ask for, if they depend on results; else None. Then the grid
            has as many drawn at random, for what is to be known before any result.
        axes: of a Bayesian search, the hyperparameters that are varied.
        replaced: of one, values to try instead of a hyperparameter's own.
    """

    space: SearchSpace
    base: TrainingConfig
    impossible: tuple[Impossible, ...] = ()
    bayesian: Draw | None = None
    axes: tuple[str, ...] = ()
    replaced: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    @property
    def points(self) -> tuple[TrainingConfig, ...]:
        """Return all points of the grid, in its order."""
        return self.space.points(self.base)

    @property
    def count(self) -> int:
        """Return how many points are to be tried."""
        return len(self.space) if self.bayesian is None else self.bayesian.points

    def config_of(self, combination: Combination) -> TrainingConfig:
        """Return the point with these hyperparameters."""
        return dataclasses.replace(
            self.base,
            network=self.space.network,
            hyperparameters=combination.values,
            size=combination.size,
        )


def asked_for(
    grid: Grid | None,
    settings: Mapping[str, Value],
    repeats: int,
    *,
    network: Network,
    skip_impossible: bool,
    echo: Echo,
    oracle: Oracle = "grid",
    drawn: int | None = None,
) -> Asked:
    """Return the grid, and the configuration that has the value of what is no axis of it.

    In its place, so many points can be drawn of it.

    Repeats of each point become an axis of seeds. Points that cannot be built are left out, or are
    refused. For the arguments, see `search`.

    Raises:
        ConfigError: a name or value is wrong, a setting is an axis too, or a point cannot be built.
    """
    require_flag("skip_impossible", skip_impossible)
    if not network.is_coursework or drawn is not None:
        return _asked_of(network, grid, settings, repeats, skip_impossible, echo, oracle, drawn)
    space, base = _of_coursework(network, grid, settings, repeats)
    if not skip_impossible:
        return Asked(space=space, base=base)
    found = coursework_grid(space, base)
    if not found.impossible:
        return Asked(space=space, base=base)
    if not found.combinations:
        raise ConfigError(found.impossible[0].reason)
    space = dataclasses.replace(space, network=network, combinations=found.combinations)
    return Asked(space=space, base=base, impossible=found.impossible)


def _asked_of(
    network: Network,
    grid: Grid | None,
    settings: Mapping[str, Value],
    repeats: int,
    skip_impossible: bool,
    echo: Echo,
    oracle: Oracle,
    drawn: int | None,
) -> Asked:
    axes = dict(grid.axes) if isinstance(grid, SearchSpace) else _axes(grid).get("axes", {})
    for name in settings:
        if name in axes:
            raise ConfigError(f"Expected either {setting(name)} or an axis {name}, got both.")
    fixed = {name: (value,) for name, value in settings.items() if name not in OF_THE_TRAINING}
    own = {name: values for name, values in axes.items() if name not in TRAINING_SETTINGS}
    for name, values in own.items():
        if not values:
            raise ConfigError(f"Expected at least one value for the axis {name}, got none.")
    training = {name: values for name, values in axes.items() if name in TRAINING_SETTINGS}
    values = {name: value for name, value in settings.items() if name in OF_THE_TRAINING}
    base = TrainingConfig.of(network, **checked(values))
    training |= _repeated(repeats, training, base.seed)
    replaced, is_bayesian = {**own, **fixed}, oracle == "bayesian"
    if is_bayesian and training:
        raise ConfigError(
            f"Expected no {setting('repeats')} and no axis {', '.join(training)} with the oracle "
            "bayesian, which varies hyperparameters of the network alone. Take the oracle random "
            "or grid, or make it a hyperparameter of the network."
        )
    direction = base.compared_by.direction
    draw = None if drawn is None else Draw(points=drawn, seed=base.seed, direction=direction)
    found = ask_grid(network, replaced, draw, echo)
    if (
        draw is not None
        and not is_bayesian
        and len(found.combinations) + len(found.impossible) < draw.points
    ):
        echo(
            f"{len(found.combinations)} points are tried rather than {draw.points}: no others were "
            f"found by chance, with the seed {draw.seed}."
        )
    if not skip_impossible and not is_bayesian:
        require_possible(found, network)
    space = SearchSpace(
        axes={**found.axes, **training}, network=network, combinations=found.combinations
    )
    if is_bayesian:
        axes = tuple(name for name in found.open if name not in fixed)
        return Asked(space=space, base=base, bayesian=draw, axes=axes, replaced=replaced)
    return Asked(space=space, base=base, impossible=found.impossible)


def drawn_points(oracle: object, max_trials: int | None) -> int | None:
    """Return how many points are to be tried in the place of a grid; None for a grid.

    Raises:
        ConfigError: it is neither, or the number is missing.
    """
    require_choice("oracle", oracle, ORACLES)
    if oracle == "grid":
        return None
    if max_trials is None:
        raise ConfigError(
            f"Expected {setting('max_trials')} with the oracle {oracle}: it tries so many points."
        )
    return max_trials


def _repeated(repeats: int, axes: Iterable[str], seed: int) -> dict[str, Any]:
    """Return the axis of seeds that stands for repeats of each point, if there are any."""
    if require_whole("repeats", repeats) == 1:
        return {}
    if "seed" in axes:
        raise ConfigError(f"Expected either {setting('repeats')} or an axis seed, got both.")
    return {"seed": tuple(range(seed, seed + min(repeats, MOST_POINTS + 1)))}


def require_arguments(network: Network, grid: Grid | None, settings: Any, repeats: int) -> None:
    """Raise `ConfigError` for what is wrong whatever the data, before it is looked for."""
    if network.is_coursework:
        _space_and_settings(grid, settings, repeats)


def _space_and_settings(
    grid: Grid | None, settings: Mapping[str, Value], repeats: int
) -> tuple[SearchSpace, dict[str, Any]]:
    space = grid if isinstance(grid, SearchSpace) else SearchSpace(**_axes(grid))
    settings = checked(settings)
    seed = int(settings.get("seed", FIELDS["seed"].default))
    space = space.with_axes(_repeated(repeats, space.axes, seed))
    for name in settings:
        if name in space.axes and not (name == "seed" and repeats > 1):
            raise ConfigError(f"Expected either {setting(name)} or an axis {name}, got both.")
    return space, settings


def _of_coursework(
    network: Network, grid: Grid | None, settings: Mapping[str, Value], repeats: int
) -> tuple[SearchSpace, TrainingConfig]:
    space, settings = _space_and_settings(grid, settings, repeats)
    try:
        return space, TrainingConfig.of(network, **settings)
    except ConfigError:  # small images, which the usual values do not fit
        own = {name: values for name, values in space.axes.items() if name in HYPERPARAMETERS}
        for values in itertools.product(*own.values()):
            with contextlib.suppress(ConfigError):
                chosen = dict(zip(own, values, strict=True))
                return space, TrainingConfig.of(network, **{**settings, **chosen})
        raise


def _axes(grid: Mapping[str, Iterable[Value]] | None) -> dict[str, Any]:
    if grid is None:
        return {}
    if not isinstance(grid, Mapping):
        raise ConfigError(
            f"Expected the grid as a dictionary, got {shown(grid)}. "
            'Example: {"filters": [24, 48], "dropout": [0.1, 0.3]}'
        )
    return {"axes": {name: _listed(name, values) for name, values in grid.items()}}


def _listed(name: str, values: object) -> tuple[Value, ...]:
    if isinstance(values, Iterable) and not isinstance(values, _TEXTS):
        with contextlib.suppress(TypeError):  # an array of no dimension says that it is iterable
            return tuple(itertools.islice(values, MOST_POINTS + 1))
    raise ConfigError(
        f"Expected the values of {shown(name)} as a list, got {shown(values)}. "
        'Example: {"filters": [24, 48]}'
    )


def config_of(network: Network, settings: Mapping[str, Value], echo: Echo) -> TrainingConfig:
    """Return the one configuration that settings describe; raise `ConfigError` if it cannot be."""
    if network.is_coursework:
        return TrainingConfig.of(network, **checked(settings))
    training = {name: value for name, value in settings.items() if name in OF_THE_TRAINING}
    given = {name: value for name, value in settings.items() if name not in training}
    config = TrainingConfig.of(network, **checked(training))
    found = ask_defaults(network, given, echo)
    return dataclasses.replace(config, hyperparameters=found.values, size=found.size)


def checked(settings: Mapping[str, Value]) -> dict[str, Any]:
    """Return the settings, converted to the types of their fields; raise `ConfigError`."""
    for name, value in settings.items():
        if name in FIELDS and isinstance(value, Sequence) and not isinstance(value, _TEXTS):
            raise ConfigError(
                f"Expected one value for {name}, got {shown(value)}. Values to try are given in "
                f'the grid of a search: {{"{name}": {shown(value)}}}'
            )
    return {
        name: value if name == OBJECTIVE else check_value(name, value)
        for name, value in settings.items()
    }
