"""What the store holds already of a search, and the runs whose process is gone."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mlflow.entities import Run

from fmnist_tracking import fingerprint
from fmnist_tracking.config import SplitConfig
from fmnist_tracking.errors import SearchError
from fmnist_tracking.results import FINISHED, RUNNING, TrialResult
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.tracking.queries import find_children, iterate_runs, liveness
from fmnist_tracking.tracking.records import (
    TrackedRun,
    as_tracked,
    read_grid,
    readable,
    trial_result,
)
from fmnist_tracking.tracking.store import Store

# Up to so many points are looked for one by one; for more, all trials are read at once.
_FEW = 100
# Ten years: what takes longer was not measured.
_LONGEST_SECONDS = 3e8
_OPEN = f"attributes.status = '{RUNNING}' AND tags.`{schema.ROLE}` LIKE '%'"
_AND_FINISHED = f" AND attributes.status = '{FINISHED}'"
EPOCH_METRICS = ("loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds")


@dataclass(frozen=True, kw_only=True)
class UnfinishedTrial:
    """A trial's run that did not come to its end: its id, and whether any epoch was logged."""

    run_id: str
    has_steps: bool


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """How far a search, or a training on its own, has come, by the store.

    Attributes:
        search: the run of this very search to go on with, None if there is none.
        searches: ids of all runs of it that were cut off; more than one under `mlflow run`,
            which makes a new run each time.
        finished: finished trials by their point's fingerprint; `reused` are those that
            belong to another search, or were trained alone.
        open: for points without a finished trial, the run of this search that was cut off.
    """

    search: TrackedRun | None = None
    searches: tuple[str, ...] = ()
    finished: Mapping[str, TrialResult] = field(default_factory=dict)
    open: Mapping[str, UnfinishedTrial] = field(default_factory=dict)


def find_searches(store: Store, experiment_id: str, grids: Iterable[str]) -> list[TrackedRun]:
    """Find the runs of one and the same search in an experiment, the one last asked for first.

    One whose grid cannot be read is left out: its trials count as those of another search.

    Args:
        store: the store.
        experiment_id: of the experiment to look in; what is in another does not count.
        grids: the search's fingerprint, and then those that earlier versions gave it.
    """
    today, *older = dict.fromkeys(grids)
    runs = [
        *iterate_runs(store, [experiment_id], f"tags.`{schema.GRID}` = '{today}'"),
        *_by_older_keys(store, experiment_id, schema.GRID, set(older)),
    ]
    found = readable(store, runs, _as_search)
    return sorted(found, key=_last_asked, reverse=True)


def _last_asked(search: TrackedRun) -> tuple[str, int]:
    """Order searches as `queries.LATEST_ASKED_FIRST` does."""
    return search.raw.data.tags.get(schema.ASKED_AT, ""), search.raw.info.start_time or 0


def _as_search(run: Run) -> TrackedRun:
    tracked = as_tracked(run)
    read_grid(run)
    return tracked


def find_resume_state(
    store: Store,
    experiment_id: str,
    searches: Sequence[TrackedRun],
    points: Mapping[str, str],
    *,
    fresh: bool = False,
    reopen: bool = False,
) -> ResumeState:
    """Find what there is of a search that is to be started or continued.

    Args:
        store: the store.
        experiment_id: of the experiment to look in.
        searches: what `find_searches` found.
        points: the fingerprints of the search's points, each with itself, and then those that
            earlier versions gave them, each with today's.
        fresh: leave all that aside, and train anew.
        reopen: go on in the newest of `searches` though it has ended: some of its trials are gone.
    """
    if fresh:
        return ResumeState()
    unfinished = [
        run
        for run in searches
        if (run.raw.info.status != FINISHED or (reopen and run is searches[0]))
        and schema.CONTINUED_BY not in run.raw.data.tags
    ]
    search = unfinished[0] if unfinished and unfinished[0] is searches[0] else None
    # A search that was told to train all anew counts its own trials alone.
    alone = search is not None and schema.FRESH in search.raw.data.tags
    own = [run.run_id for run in unfinished[: 1 if alone else None]] if search else []
    finished: dict[str, TrialResult] = {}
    open_runs: dict[str, UnfinishedTrial] = {}
    for parent in own:
        for run in find_children(store, experiment_id, parent):
            point = points.get(run.data.tags.get(schema.POINT, ""), "")
            for trial in readable(store, [run], trial_result):
                if trial.status == FINISHED:
                    finished.setdefault(point, trial)
                else:
                    open_runs.setdefault(point, _open_trial(run))
    if not alone and _has_finished(store, experiment_id):
        today = set(points.values())
        for find, keys in ((_finished_runs, today), (_finished_before, points.keys() - today)):
            wanted = {key for key in keys if points[key] not in finished}
            for run in find(store, experiment_id, wanted):
                point = points[run.data.tags[schema.POINT]]
                for trial in readable(store, [run], trial_result):
                    finished.setdefault(point, dataclasses.replace(trial, reused=True))
    todays = dict.fromkeys(points.values())
    return ResumeState(
        search=search,
        searches=tuple(own),
        finished={point: finished[point] for point in todays if point in finished},
        open={point: run for point, run in open_runs.items() if point and point not in finished},
    )


def _open_trial(run: Run) -> UnfinishedTrial:
    has_steps = any(name in run.data.metrics for name in EPOCH_METRICS)
    return UnfinishedTrial(run_id=run.info.run_id, has_steps=has_steps)


def find_training(store: Store, experiment_id: str, points: Mapping[str, str]) -> ResumeState:
    """Find what there is of a training on its own.

    It is the newest of either: a finished run of that point, be it a search's trial, or a training
    of its own that was cut off.

    Args:
        store: the store.
        experiment_id: of the experiment to look in.
        points: fingerprint of what is trained, and then those that earlier versions gave it, each
            with today's.
    """
    for key, point in points.items():
        runs = list(iterate_runs(store, [experiment_id], f"tags.`{schema.POINT}` = '{key}'"))
        for run in runs:  # the newest first: what was begun anew since the last one that finished
            for trial in readable(store, [run], trial_result):
                if trial.status == FINISHED:
                    return ResumeState(finished={point: trial})
                if schema.PARENT not in run.data.tags:
                    return ResumeState(open={point: _open_trial(run)})
    return ResumeState()


def _has_finished(store: Store, experiment_id: str) -> bool:
    filter_string = f"tags.`{schema.POINT}` LIKE '%'{_AND_FINISHED}"
    return bool(store.client.search_runs([experiment_id], filter_string, max_results=1))


def _finished_runs(store: Store, experiment_id: str, points: set[str]) -> Iterator[Run]:
    filters = [f"tags.`{schema.POINT}` = '{point}'" for point in sorted(points)]
    if len(points) > _FEW:
        filters = [f"tags.`{schema.POINT}` LIKE '%'"]
    for filter_string in filters:
        for run in iterate_runs(store, [experiment_id], filter_string + _AND_FINISHED):
            if run.data.tags[schema.POINT] in points:
                yield run


def _finished_before(store: Store, experiment_id: str, points: set[str]) -> Iterator[Run]:
    """Finished runs by the fingerprints that earlier versions gave their points."""
    return _by_older_keys(store, experiment_id, schema.POINT, points, _AND_FINISHED)


def _by_older_keys(
    store: Store, experiment_id: str, tag: str, keys: set[str], condition: str = ""
) -> Iterator[Run]:
    # There are several for each point, and seldom a run: those of other code are read at once.
    other_code = f"tags.`{schema.CODE_SHA256}` != '{fingerprint.of_program()}'"
    if keys:
        filter_string = f"tags.`{tag}` LIKE '%' AND {other_code}{condition}"
        for run in iterate_runs(store, [experiment_id], filter_string):
            if run.data.tags[tag] in keys:
                yield run


def like_trials(
    store: Store, experiment_id: str, split: SplitConfig, threads: int
) -> list[TrialResult]:
    """Find some finished trials of this code on as many images and threads, the newest first.

    Those that diverged are left out: they ended before their last epoch. So are those whose time is
    none.
    """
    filter_string = (
        f"attributes.status = '{FINISHED}' AND tags.`{schema.THREADS}` = '{threads}' "
        f"AND tags.`{schema.CODE_SHA256}` = '{fingerprint.of_program()}' "
        f"AND tags.`{schema.PROTOCOL}` = '{split.protocol}' "
        f"AND params.`{schema.SPLIT_PREFIX}limit` = '{split.limit}'"
    )
    found = store.client.search_runs([experiment_id], filter_string, max_results=_FEW)
    return [
        trial
        for trial in readable(store, found, trial_result)
        if not trial.diverged and 0 < (trial.train_seconds or 0) < _LONGEST_SECONDS
    ]


def logged_steps(store: Store, run_id: str) -> set[int]:
    """Return the epochs whose figures a run has, all of them."""
    steps = [
        {metric.step for metric in store.client.get_metric_history(run_id, name)}
        for name in EPOCH_METRICS
    ]
    return set.intersection(*steps)


def require_not_live(run: TrackedRun) -> None:
    """Refuse a search that another process is working on.

    Raises:
        SearchError: there is such a process; the message says where.
    """
    lease = Lease.read(run.raw.data.tags)
    if run.raw.info.status == RUNNING and lease and lease.is_live() and not lease.is_mine():
        raise SearchError(
            f"The search {run.run_id[:8]} is running already: {lease} holds it. Wait for it "
            "to end, or stop that process and give this command again."
        )


def close_orphans(store: Store, experiments: Iterable[str]) -> list[tuple[str, str]]:
    """Close, as KILLED, the open runs of this project whose process is gone.

    Args:
        store: the store.
        experiments: ids of the experiments to look in.

    Returns:
        Id and name of each run that was closed.
    """
    orphans = []
    is_live = liveness(store)
    for run in list(iterate_runs(store, experiments, _OPEN)):
        if not is_live(run):
            store.client.set_terminated(run.info.run_id, "KILLED")
            orphans.append((run.info.run_id, schema.unmarked(run.info.run_name or "")))
    return orphans


def live_runs(store: Store, experiments: Iterable[str]) -> list[str]:
    """Return the ids of the open runs of this project whose process is there."""
    is_live = liveness(store)
    return [run.info.run_id for run in iterate_runs(store, experiments, _OPEN) if is_live(run)]


def close_own(store: Store, experiment_id: str, status: str) -> None:
    """Close the open runs of this very process.

    Args:
        store: the store.
        experiment_id: of the experiment they are in.
        status: KILLED or FAILED, for the search; trials were KILLED either way.
    """
    for run in list(iterate_runs(store, [experiment_id], _OPEN)):
        lease = Lease.read(run.data.tags)
        if lease is not None and lease.is_mine():
            is_search = run.data.tags[schema.ROLE] == schema.SEARCH
            store.client.set_terminated(run.info.run_id, status if is_search else "KILLED")
