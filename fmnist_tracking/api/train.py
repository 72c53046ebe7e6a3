"""Exploring a grid, and training a single configuration."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fmnist_tracking.api.runs import Search, Trial
from fmnist_tracking.config import (
    FIELDS,
    Protocol,
    SearchSpace,
    SplitConfig,
    TrainingConfig,
    Value,
    check_value,
)
from fmnist_tracking.console import Echo, echo_line
from fmnist_tracking.errors import ConfigError, TrialsFailed, setting
from fmnist_tracking.grid_search import dry_run as planning
from fmnist_tracking.grid_search import run
from fmnist_tracking.grid_search.dry_run import DryRun
from fmnist_tracking.leaderboard import best

Grid: TypeAlias = SearchSpace | Mapping[str, Iterable[Value]]
OnFailure: TypeAlias = Literal["raise", "warn"]


def search(
    grid: Grid | None = None,
    *,
    repeats: int = 1,
    protocol: Protocol = "canonical",
    limit: int | None = None,
    workers: int | None = None,
    fresh: bool = False,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    data_dir: str | Path | None = None,
    upgrade_store: bool = False,
    on_failure: OnFailure = "raise",
    echo: Echo | None = echo_line,
    on_start: Callable[[], None] = lambda: None,
    **settings: Value,
) -> Search:
    """Explore a grid: train every point in worker processes, each as a tracked run of its own.

    What has finished before is not trained again, and a search that was cut off goes on where it
    was, each of its trials after its last whole epoch: call it again with the same arguments.

    Args:
        grid: the values to try by setting, such as `{"filters": [24, 48], "dropout": [0.1, 0.3]}`;
            None for the coursework's 12 points.
        repeats: train each point so many times, with the seeds `seed`, `seed` + 1, …; points are
            ranked by their mean.
        protocol: how the data is split, `canonical` or `coursework`; see `SplitConfig`.
        limit: number of images for training and validation together, None for all.
        workers: trials that run at once; None takes as many as suit this machine.
        fresh: train all anew, whatever has finished before.
        experiment: name of the MLflow experiment, made if it is not there; None for the one that
            the environment names, or `fashion-mnist`.
        tracking_uri: address of the MLflow store, None for the usual one.
        data_dir: folder with the data, None for the usual places.
        upgrade_store: bring a store of an older MLflow up to date, rather than refuse it.
        on_failure: when points have failed, or all have diverged, after the others have been
            trained: `raise` a `TrialsFailed`, which has the search, or `warn`.
        echo: called with lines for a person to read, which otherwise go to standard error; None
            shows nothing, and no progress.
        on_start: called when all is loaded, before the first trial begins.
        settings: of the training, by their names in `TrainingConfig`, such as `epochs=5`; they are
            the same for every point.

    Raises:
        ConfigError: a value is wrong, or a point of the grid cannot be built, or has no room in the
            memory; or this is called by a script without `if __name__ == "__main__":`.
        DataError: the data cannot be had.
        OutputError: checkpoints cannot be written.
        SearchError: another process is working on the same search, or points have failed.
        TrackingError: the store cannot be reached.
    """
    space, base = _points(grid, settings, repeats)
    result, uri = run.search(
        space,
        base,
        split=SplitConfig(protocol=protocol, seed=base.seed, limit=limit),
        workers=workers,
        fresh=fresh,
        experiment=experiment,
        tracking_uri=tracking_uri,
        data_dir=_path(data_dir),
        upgrade_store=upgrade_store,
        echo=echo,
        on_start=on_start,
    )
    found = Search(result, uri)
    failed = len(result.space) - len(result.finished)
    if failed:
        _fail(
            f"{failed} of {len(result.space)} points failed. Their runs hold the traceback, as "
            "the artifact traceback.txt. The same search tries them again.",
            found,
            on_failure,
        )
    elif best(result.finished) is None:
        _fail(
            "Every trial diverged: each ended with a loss that is no finite number, so there is no "
            "best one. Train with a smaller learning_rate, such as 0.001.",
            found,
            on_failure,
        )
    return found


def train(
    *,
    protocol: Protocol = "canonical",
    limit: int | None = None,
    fresh: bool = False,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    data_dir: str | Path | None = None,
    upgrade_store: bool = False,
    on_failure: OnFailure = "raise",
    echo: Echo | None = echo_line,
    on_start: Callable[[], None] = lambda: None,
    **settings: Value,
) -> Trial:
    """Train one configuration, tracked as a trial is; go on with it if it was cut off.

    Args:
        protocol: see `search`, as for the other arguments.
        limit: number of images.
        fresh: train anew, whatever has finished before.
        experiment: name of the experiment.
        tracking_uri: address of the MLflow store.
        data_dir: folder with the data.
        upgrade_store: bring a store of an older MLflow up to date.
        on_failure: if the training diverges: `raise` a `TrialsFailed`, which has the trial, or
            `warn`.
        echo: called with lines for a person to read.
        on_start: called when all is loaded.
        settings: of the training, such as `filters=48`.

    Raises:
        SearchError: the training failed; its run holds the traceback. For others, see `search`.
    """
    config = TrainingConfig(**_checked(settings))
    result, uri = run.train(
        config,
        split=SplitConfig(protocol=protocol, seed=config.seed, limit=limit),
        fresh=fresh,
        experiment=experiment,
        tracking_uri=tracking_uri,
        data_dir=_path(data_dir),
        upgrade_store=upgrade_store,
        echo=echo,
        on_start=on_start,
    )
    found = Trial(result, uri)
    if result.diverged:
        _fail(
            f"The training diverged: its loss is no finite number. Its run is {result.run_id}. "
            "Train with a smaller learning_rate.",
            found,
            on_failure,
        )
    return found


def dry_run(
    grid: Grid | None = None,
    *,
    repeats: int = 1,
    protocol: Protocol = "canonical",
    limit: int | None = None,
    workers: int | None = None,
    fresh: bool = False,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    data_dir: str | Path | None = None,
    echo: Echo | None = echo_line,
    **settings: Value,
) -> DryRun:
    """Return what `search` would do with the same arguments, and how long it would take.

    Nothing is written to the store. The time is estimated from the finished trials of the
    experiment on as many images, or, without any, from a training of a few seconds.

    Args:
        grid: see `search`, as for the other arguments.
        repeats: trainings of each point.
        protocol: how the data is split.
        limit: number of images.
        workers: trials that run at once.
        fresh: train all anew.
        experiment: name of the experiment.
        tracking_uri: address of the MLflow store.
        data_dir: folder with the data.
        echo: called with lines for a person to read.
        settings: of the training.

    Raises:
        ConfigError: as many trials at once as are asked for have no room in the memory.
        DataError: the data cannot be had.
        TrackingError: the store cannot be reached.
    """
    space, base = _points(grid, settings, repeats)
    return planning.dry_run(
        space,
        base,
        split=SplitConfig(protocol=protocol, seed=base.seed, limit=limit),
        workers=workers,
        fresh=fresh,
        experiment=experiment,
        tracking_uri=tracking_uri,
        data_dir=_path(data_dir),
        echo=echo or (lambda _: None),
    )


def _points(
    grid: Grid | None, settings: Mapping[str, Value], repeats: int
) -> tuple[SearchSpace, TrainingConfig]:
    """Return the grid, and the configuration that has the value of what is no axis."""
    space = grid if isinstance(grid, SearchSpace) else SearchSpace(**_axes(grid))
    settings = _checked(settings)
    if repeats < 1:
        raise ConfigError(f"Expected {setting('repeats')} to be at least 1, got {repeats}.")
    if repeats > 1:
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
    axes = {}
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ConfigError(
                f"Expected the values of {name} as a list, got {values!r}. "
                'Example: {"filters": [24, 48]}'
            )
        axes[name] = tuple(values)
    return {"axes": axes}


def _checked(settings: Mapping[str, Value]) -> dict[str, Any]:
    """Return the settings, converted to the types of their fields."""
    return {name: check_value(name, value) for name, value in settings.items()}


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)


def _fail(message: str, found: Search | Trial, on_failure: OnFailure) -> None:
    if on_failure == "raise":
        raise TrialsFailed(message, found)
    warnings.warn(message, stacklevel=3)
