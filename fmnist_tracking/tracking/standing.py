"""What the store holds already of a search, and the runs whose process is gone."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlflow.entities import Run

from fmnist_tracking import fingerprint
from fmnist_tracking.config import SplitConfig
from fmnist_tracking.errors import SearchError
from fmnist_tracking.results import FINISHED, RUNNING, TrialResult
from fmnist_tracking.tracking import names
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.tracking.reading import (
    TrackedRun,
    as_tracked,
    find_children,
    iterate_runs,
    trial_result,
)
from fmnist_tracking.tracking.store import Store

# Up to so many points are looked for one by one; for more, all trials are read at once.
_FEW = 100
EPOCH_METRICS = ("loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds")


@dataclass(frozen=True, kw_only=True)
class OpenTrial:
    """A trial's run that did not come to its end: its id, and whether any epoch was logged."""

    run_id: str
    has_steps: bool


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a search has come, by the store.

    Attributes:
        search: the run of this very search to go on with, None if there is none.
        searches: ids of all runs of it that were cut off; more than one under `mlflow run`,
            which makes a new run each time.
        finished: finished trials by their point's fingerprint; `reused` are those that
            belong to another search, or were trained alone.
        open: for points without a finished trial, the run of this search that was cut off.
    """

    search: TrackedRun | None
    searches: tuple[str, ...]
    finished: Mapping[str, TrialResult]
    open: Mapping[str, OpenTrial]


def find_searches(store: Store, experiment_id: str, grid: str) -> list[TrackedRun]:
    """The runs of one and the same search in an experiment, the newest first.

    Args:
        store: the store.
        experiment_id: of the experiment to look in; what is in another does not count.
        grid: the search's fingerprint.
    """
    found = iterate_runs(store, [experiment_id], f"tags.`{names.GRID}` = '{grid}'")
    return [as_tracked(run) for run in found]


def find_standing(
    store: Store,
    experiment_id: str,
    searches: Sequence[TrackedRun],
    points: Sequence[str],
    *,
    fresh: bool = False,
) -> Standing:
    """Find what there is of a search that is to be started or continued.

    Args:
        store: the store.
        experiment_id: of the experiment to look in.
        searches: what `find_searches` found.
        points: the fingerprints of the search's points.
        fresh: leave all that aside, and train anew.
    """
    if fresh:
        return Standing(search=None, searches=(), finished={}, open={})
    unfinished = [
        run
        for run in searches
        if run.raw.info.status != FINISHED and names.CONTINUED_BY not in run.raw.data.tags
    ]
    search = unfinished[0] if unfinished and unfinished[0] is searches[0] else None
    # A search that was told to train all anew counts its own trials alone.
    alone = search is not None and names.FRESH in search.raw.data.tags
    own = [run.run_id for run in unfinished[: 1 if alone else None]] if search else []
    finished: dict[str, TrialResult] = {}
    open_runs: dict[str, OpenTrial] = {}
    for parent in own:
        for run in find_children(store, experiment_id, parent):
            point = run.data.tags.get(names.POINT, "")
            if run.info.status == FINISHED:
                finished.setdefault(point, trial_result(run))
            else:
                open_runs.setdefault(point, _open_trial(run))
    if not alone:
        wanted = set(points) - finished.keys()
        for run in _finished_runs(store, experiment_id, wanted):
            point = run.data.tags[names.POINT]
            if point not in finished:
                finished[point] = dataclasses.replace(trial_result(run), reused=True)
    return Standing(
        search=search,
        searches=tuple(own),
        finished={point: finished[point] for point in points if point in finished},
        open={point: run for point, run in open_runs.items() if point not in finished},
    )


def _open_trial(run: Run) -> OpenTrial:
    has_steps = any(name in run.data.metrics for name in EPOCH_METRICS)
    return OpenTrial(run_id=run.info.run_id, has_steps=has_steps)


def find_training(
    store: Store, experiment_id: str, point: str
) -> tuple[TrialResult | None, OpenTrial | None]:
    """Find what there is of a training on its own.

    Args:
        store: the store.
        experiment_id: of the experiment to look in.
        point: fingerprint of what is trained.

    Returns:
        The newest of either: a finished run of that point, be it a search's trial, or a
        training of its own that was cut off; None for the other, or for both.
    """
    runs = list(iterate_runs(store, [experiment_id], f"tags.`{names.POINT}` = '{point}'"))
    for run in runs:  # the newest first: what was begun anew since the last one that finished
        if run.info.status == FINISHED:
            return trial_result(run), None
        if names.PARENT not in run.data.tags:
            return None, _open_trial(run)
    return None, None


def _finished_runs(store: Store, experiment_id: str, points: set[str]) -> Iterator[Run]:
    filters = [f"tags.`{names.POINT}` = '{point}'" for point in sorted(points)]
    if len(points) > _FEW:
        filters = [f"tags.`{names.POINT}` LIKE '%'"]
    for filter_string in filters:
        filter_string += f" AND attributes.status = '{FINISHED}'"
        for run in iterate_runs(store, [experiment_id], filter_string):
            if run.data.tags[names.POINT] in points:
                yield run


def like_trials(
    store: Store, experiment_id: str, split: SplitConfig, threads: int
) -> list[TrialResult]:
    """Some finished trials of this code on as many images and threads, the newest first."""
    filter_string = (
        f"attributes.status = '{FINISHED}' AND tags.`{names.THREADS}` = '{threads}' "
        f"AND tags.`{names.CODE_SHA256}` = '{fingerprint.of_code()}' "
        f"AND tags.`{names.PROTOCOL}` = '{split.protocol}' "
        f"AND params.`{names.SPLIT_PREFIX}limit` = '{split.limit}'"
    )
    found = store.client.search_runs([experiment_id], filter_string, max_results=_FEW)
    return [trial_result(run) for run in found]


def logged_steps(store: Store, run_id: str) -> set[int]:
    """The epochs whose figures a run has, all of them."""
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


def close_orphans(store: Store, experiments: Iterable[str]) -> list[TrackedRun]:
    """Close, as KILLED, the open runs of this project whose process is gone.

    Args:
        store: the store.
        experiments: ids of the experiments to look in.

    Returns:
        The runs that were closed, as they were.
    """
    orphans = []
    live: dict[tuple[str | float, ...], bool] = {}
    filter_string = f"attributes.status = '{RUNNING}' AND tags.`{names.ROLE}` LIKE '%'"
    for run in list(iterate_runs(store, experiments, filter_string)):
        if not _is_live(store, run, live):
            store.client.set_terminated(run.info.run_id, "KILLED")
            orphans.append(as_tracked(run))
    return orphans


def _is_live(store: Store, run: Run, live: dict[tuple[str | float, ...], bool]) -> bool:
    """Whether a run's process is there; a search gives signs of life for its trials too."""
    parent = run.data.tags.get(names.PARENT)
    lease = Lease.read(run.data.tags)
    if lease is None:
        return False
    if parent is None or lease.is_live():
        return lease.is_live()
    key = (parent, lease.machine, lease.pid, lease.started)
    if key not in live:
        holder = store.client.get_run(parent)
        held = Lease.read(holder.data.tags)
        live[key] = (
            holder.info.status == RUNNING
            and held is not None
            and (held.machine, held.pid, held.started) == (lease.machine, lease.pid, lease.started)
            and held.is_live()
        )
    return live[key]


def close_held(store: Store, experiment_id: str, status: str) -> None:
    """Close the open runs of this very process.

    Args:
        store: the store.
        experiment_id: of the experiment they are in.
        status: KILLED or FAILED, for the search; trials were KILLED either way.
    """
    filter_string = f"attributes.status = '{RUNNING}' AND tags.`{names.ROLE}` LIKE '%'"
    for run in list(iterate_runs(store, [experiment_id], filter_string)):
        lease = Lease.read(run.data.tags)
        if lease is not None and lease.is_mine():
            is_search = run.data.tags[names.ROLE] == names.SEARCH
            store.client.set_terminated(run.info.run_id, status if is_search else "KILLED")
