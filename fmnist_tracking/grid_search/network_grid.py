"""The grid of a network, as the network itself says in a worker process."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fmnist_tracking import runtime
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.console import Echo
from fmnist_tracking.errors import ConfigError, SearchError, setting
from fmnist_tracking.network import Network, Value
from fmnist_tracking.search_space import (
    Combination,
    Draw,
    Impossible,
    NetworkGrid,
    SearchSpace,
)
from fmnist_tracking.warm_up import warm_up
from fmnist_tracking.workers import LocalWorker, WorkerDied, WorkerPool

# In the worker, which imports TensorFlow for it.
_WORKER = "fmnist_tracking.grid_search.worker"


def ask_grid(
    network: Network, replaced: Mapping[str, Sequence[Value]], draw: Draw | None, echo: Echo
) -> NetworkGrid:
    """Have a network built for every point that is to be tried; see `networks.space`."""
    values = {name: tuple(values) for name, values in replaced.items()}
    found: NetworkGrid = _ask(network, "list_points", (values, draw), echo)
    return found


def ask_defaults(network: Network, given: Mapping[str, Value], echo: Echo) -> Combination:
    """Have a network built with its defaults, but for the values given."""
    found: Combination = _ask(network, "default_point", (dict(given),), echo)
    return found


def _ask(network: Network, function: str, arguments: tuple[Any, ...], echo: Echo) -> Any:
    def on_report(_: int, points: int) -> None:
        echo(f"{points:,} points of {network.name} so far.")

    warm_up()
    prepare = partial(runtime.prepare_process, runtime.threads_of(1), 0, [_WORKER])
    try:
        with WorkerPool([LocalWorker(prepare)], on_report) as pool:
            return pool.submit(f"{_WORKER}:{function}", network, *arguments).result()
    except WorkerDied as death:
        raise SearchError(
            f"The grid of {network.name} cannot be found: the process that built it {death.what} "
            f"({death})."
        ) from None


def coursework_grid(space: SearchSpace, base: TrainingConfig) -> NetworkGrid:
    """Return the points of a coursework's grid, and those that cannot be built."""
    names = [name for name in space.axes if name in dict(base.hyperparameters)]
    built: list[Combination] = []
    impossible: list[Impossible] = []
    for values in itertools.product(*(space.axes[name] for name in names)):
        chosen = dict(zip(names, values, strict=True))
        try:
            config = base.replace(**chosen)
        except ConfigError as error:
            impossible.append(Impossible(values=tuple(chosen.items()), reason=str(error)))
        else:
            built.append(Combination(values=config.hyperparameters, size=config.size))
    axes = {name: space.axes[name] for name in names}
    return NetworkGrid(axes=axes, combinations=tuple(built), impossible=tuple(impossible))


def require_possible(grid: NetworkGrid, network: Network) -> None:
    """Raise `ConfigError` if points of a grid cannot be built."""
    if grid.impossible:
        first = grid.impossible[0]
        raise ConfigError(
            f"{len(grid.impossible)} of {len(grid.impossible) + len(grid.combinations)} points of "
            f"{network.name} cannot be built. The first: {first.name}: {first.reason} "
            f"Leave such points out with {setting('skip_impossible')}."
        )
