"""What a caller asks for -> a grid of points."""

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from fmnist_tracking.config import (
    FIELDS,
    MOST_POINTS,
    TrainingConfig,
    Value,
    check_value,
    require_whole,
)
from fmnist_tracking.errors import ConfigError, setting, shown
from fmnist_tracking.search_space import SearchSpace

# Sequences that are no lists of values.
_TEXTS = (str, bytes, bytearray)
Grid: TypeAlias = SearchSpace | Mapping[str, Iterable[Value]]


def grid_and_base(
    grid: Grid | None, settings: Mapping[str, Value], repeats: int
) -> tuple[SearchSpace, TrainingConfig]:
    """Return the grid, and the configuration that has the value of what is no axis of it.

    Repeats of each point become an axis of seeds. For the arguments, see `search`.

    Raises:
        ConfigError: a name or value is wrong, or a setting is an axis too.
    """
    space = grid if isinstance(grid, SearchSpace) else SearchSpace(**_axes(grid))
    settings = checked(settings)
    if require_whole("repeats", repeats) > 1:
        if "seed" in space.axes:
            raise ConfigError(f"Expected either {setting('repeats')} or an axis seed, got both.")
        seed = int(settings.get("seed", FIELDS["seed"].default))
        seeds = range(seed, seed + min(repeats, MOST_POINTS + 1))
        space = space.with_axes({"seed": seeds})
    for name in settings:
        if name in space.axes and not (name == "seed" and repeats > 1):
            raise ConfigError(f"Expected either {setting(name)} or an axis {name}, got both.")
    return space, TrainingConfig.of(**settings)


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


def checked(settings: Mapping[str, Value]) -> dict[str, Any]:
    """Return the settings, converted to the types of their fields; raise `ConfigError`."""
    for name, value in settings.items():
        if name in FIELDS and isinstance(value, Sequence) and not isinstance(value, _TEXTS):
            raise ConfigError(
                f"Expected one value for {name}, got {shown(value)}. Values to try are given in "
                f'the grid of a search: {{"{name}": {shown(value)}}}'
            )
    return {name: check_value(name, value) for name, value in settings.items()}
