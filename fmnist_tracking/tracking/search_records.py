"""Reading searches: their grids, and the trials of each."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.errors import ConfigError, FmnistTrackingError, TrackingError, first_line
from fmnist_tracking.network import NetworkSize
from fmnist_tracking.results import FINISHED, RUNNING, SearchResult, TrialResult
from fmnist_tracking.search_space import Combination, SearchSpace, points_of, trial_name
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.queries import (
    IS_FINISHED,
    find_children,
    has_all,
    has_exactly,
    liveness,
    runs_by_id,
)
from fmnist_tracking.tracking.records import (
    NO_JSON,
    TrackedRun,
    UnreadableRun,
    as_config,
    as_tracked,
    read_json,
    read_network,
    read_pairs,
    read_trial,
    readable,
    trial_result,
)
from fmnist_tracking.tracking.store import Store

_log = logging.getLogger(__name__)


def read_space(store: Store, run: Run) -> SearchSpace:
    """Read the grid of a search's run; of one whose points depend on results, those of its trials.

    Raises:
        UnreadableRun: the run has no grid, or one that this version cannot build.
    """
    axes = {
        key.removeprefix(schema.AXIS_PREFIX): value
        for key, value in run.data.params.items()
        if key.startswith(schema.AXIS_PREFIX)
    }
    try:
        if schema.AHEAD in run.data.tags:
            return points_of(read_network(run), axes, _configs_of_trials(store, run))
        if f"see {schema.AXES_FILE}" in axes.values():
            values = read_json(store, run, schema.AXES_FILE)
        else:
            values = {axis: tuple(json.loads(value)) for axis, value in axes.items()}
        network, combinations = read_network(run), None
        if schema.COMBINATIONS in run.data.tags:
            points = read_json(store, run, schema.POINTS_FILE)
            combinations = tuple(map(_read_combination, points))
        return SearchSpace(axes=values, network=network, combinations=combinations)
    except (
        *(*NO_JSON, LookupError, AttributeError, OverflowError),
        *(ConfigError, TrackingError, MlflowException, OSError),
    ) as error:
        raise UnreadableRun(
            run, f"its grid is not one of this version ({first_line(error)})"
        ) from None


def _configs_of_trials(store: Store, run: Run) -> list[TrainingConfig]:
    """Return the points that a search has begun or reused, in the order of their runs."""
    own = [*find_children(store, run.info.experiment_id, run.info.run_id)]
    runs = [*reversed(own), *reused_runs(store, as_tracked(run))]
    return [trial.config for trial in readable(store, runs, trial_result)]


def _read_combination(content: Any) -> Combination:
    return Combination(
        values=read_pairs(content["values"]),
        size=NetworkSize(**content["size"]) if content["size"] else None,
    )


def read_search(store: Store, run: TrackedRun, *, summary: bool = True) -> SearchResult:
    """Read a search and its trials, in the grid's order.

    For a finished search, this is the summary that was written when it ended, one file for any
    number of trials, as long as the store still has all of those trials. Without `summary`, each
    trial is read.

    Raises:
        UnreadableRun: its grid is missing, or this version cannot build it.
    """
    if summary and run.raw.info.status == FINISHED:
        unreadable = (*NO_JSON, LookupError, AttributeError, FmnistTrackingError)
        with contextlib.suppress(MlflowException, OSError, *unreadable):
            content = read_json(store, run.raw, schema.SEARCH_FILE)
            outcome = SearchResult(
                run_id=run.run_id,
                experiment_id=run.experiment_id,
                space=read_space(store, run.raw),
                trials=tuple(map(TrialResult.from_json, content["trials"])),
            )
            if _is_intact(store, outcome):
                return outcome
    space, points = read_grid(store, run.raw)
    is_live = liveness(store)

    def read(child: Run) -> TrialResult:
        trial = trial_result(child)
        if trial.config not in points:
            raise UnreadableRun(child, "it is no point of its search's grid")
        if trial.status == RUNNING and not is_live(child):
            return dataclasses.replace(trial, status="KILLED")
        return trial

    found = [*readable(store, find_children(store, run.experiment_id, run.run_id), read)]
    found += [
        # Another search's name of it tells that search's axes.
        dataclasses.replace(trial, reused=True, name=trial_name(trial.config, space.varying))
        for trial in readable(store, reused_runs(store, run), read)
    ]
    # One trial for each point: a finished one before an interrupted one, else the newest.
    trials: dict[TrainingConfig, TrialResult] = {}
    for trial in found:
        known = trials.get(trial.config)
        if known is None or (known.status != FINISHED and trial.status == FINISHED):
            trials[trial.config] = trial
    ordered = sorted(
        trials.values(),
        key=lambda trial: points[trial.config],
    )
    return SearchResult(
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        space=space,
        trials=tuple(ordered),
    )


def read_grid(store: Store, run: Run) -> tuple[SearchSpace, dict[TrainingConfig, int]]:
    """Read the grid of a search's run, and the place of each of its points.

    Raises:
        UnreadableRun: the run has no grid, or one that this version cannot build.
    """
    space = read_space(store, run)
    try:
        points = space.points(read_base(run))
        return space, {config: place for place, config in enumerate(points)}
    except (ConfigError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise UnreadableRun(run, f"a point of its grid cannot be built here ({error})") from None


def read_base(run: Run) -> TrainingConfig:
    """Read the settings of a search that are not axes.

    Raises:
        UnreadableRun: they are not a valid configuration in this version.
    """
    prefix = schema.BASE_PREFIX
    given = {
        key.removeprefix(prefix): value
        for key, value in run.data.params.items()
        if key.startswith(prefix)
    }
    return as_config(run, given)


def _is_intact(store: Store, outcome: SearchResult) -> bool:
    """Return whether a search still has exactly the finished runs that it ended with."""
    own = [trial.run_id for trial in outcome.finished if not trial.reused]
    reused = [trial.run_id for trial in outcome.finished if trial.reused]
    children = f"tags.`{schema.PARENT}` = '{outcome.run_id}' AND {IS_FINISHED}"
    experiment_id = outcome.experiment_id
    return (
        # None was added and none is gone: equal counts alone would not show that.
        has_exactly(store, experiment_id, children, len(own))
        and has_all(store, experiment_id, own, children)
        and has_all(store, experiment_id, reused, IS_FINISHED)
    )


def reused_runs(store: Store, run: TrackedRun) -> Iterator[Run]:
    """Iterate over the finished trials that a search reused and that the store still has."""
    if schema.REUSED not in run.raw.data.tags:
        return
    try:
        ids = [str(one) for one in read_json(store, run.raw, schema.REUSED_FILE)]
    except (*NO_JSON, TrackingError, MlflowException, OSError) as error:
        if not store.moved_from:  # else that was told, with what to do
            _log.warning(
                "The trials that the search %s has reused are not counted: its file %s cannot be "
                "read (%s).",
                run.run_id[:8],
                schema.REUSED_FILE,
                first_line(error),
            )
        return
    yield from runs_by_id(store, run.experiment_id, ids, IS_FINISHED)


def as_readable(store: Store, run: Run) -> TrackedRun:
    """Return a run of this project; raise `UnreadableRun` unless all of it can be read."""
    tracked = as_tracked(run)
    if tracked.role == schema.SEARCH:
        read_grid(store, run)
    else:
        read_trial(tracked)
    return tracked
