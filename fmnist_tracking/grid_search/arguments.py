"""What a caller asks for -> a grid of points."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from fmnist_tracking.config import (
    FIELDS,
    SearchSpace,
    TrainingConfig,
    Value,
    check_value,
    require_whole,
)
from fmnist_tracking.errors import ConfigError, setting

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
        space = space.with_axes({"seed": range(seed, seed + repeats)})
    for name in settings:
        if name in space.axes and not (name == "seed" and repeats > 1):
            raise ConfigError(f"Expected either {setting(name)} or an axis {name}, got both.")
    return space, TrainingConfig(**settings)


def _axes(grid: Mapping[str, Iterable[Value]] | None) -> dict[str, Any]:
    if grid is None:
        return {}
    if not isinstance(grid, Mapping):
        raise ConfigError(
            f"Expected the grid as a dictionary, got {grid!r}. "
            'Example: {"filters": [24, 48], "dropout": [0.1, 0.3]}'
        )
    axes = {}
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ConfigError(
                f"Expected the values of {name} as a list, got {values!r}. "
                'Example: {"filters": [24, 48]}'
            )
        axes[name] = tuple(values)
    return {"axes": axes}


def checked(settings: Mapping[str, Value]) -> dict[str, Any]:
    """Return the settings, converted to the types of their fields."""
    return {name: check_value(name, value) for name, value in settings.items()}
