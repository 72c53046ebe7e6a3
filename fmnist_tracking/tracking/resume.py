"""What the store has of an interrupted search, and the runs whose process is gone."""

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from mlflow.entities import Run

from fmnist_tracking import fingerprint
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.errors import SearchError, TrackingError
from fmnist_tracking.fingerprint import GridKeys
from fmnist_tracking.redact import printable
from fmnist_tracking.results import FINISHED, RUNNING, TrialResult
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import leases, schema
from fmnist_tracking.tracking.artifacts import require_trusted
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.tracking.queries import (
    IS_FINISHED,
    find_active,
    find_children,
    has_any,
    iterate_runs,
    liveness,
)
from fmnist_tracking.tracking.records import (
    TrackedRun,
    UnreadableRun,
    as_tracked,
    readable,
    trial_result,
)
from fmnist_tracking.tracking.search_records import (
    as_readable,
)
from fmnist_tracking.tracking.store import Store

_log = logging.getLogger(__name__)

# How often another machine's heartbeat is looked at.
_LOOK_SECONDS = 5.0
# Up to this many points are queried one by one; for more, all trials are read at once.
_FEW = 100
# Ten years: a longer time cannot be a measurement.
_LONGEST_SECONDS = 3e8
_OPEN = f"attributes.status = '{RUNNING}' AND tags.`{schema.ROLE}` LIKE '%'"
_AND_FINISHED = f" AND {IS_FINISHED}"
_ANY_FINISHED = f"tags.`{schema.POINT}` LIKE '%'{_AND_FINISHED}"
EPOCH_METRICS = ("loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds")
_VALIDATION_METRICS = ("val_loss", "val_accuracy")


@dataclass(frozen=True, kw_only=True)
class UnfinishedTrial:
    """An unfinished trial: the id of its run, and whether any epoch was logged."""

    run_id: str
    has_steps: bool


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """What the store has of a search, or a single training, that is to be started or resumed.

    Attributes:
        search: the run to resume, None if there is none.
        searches: ids of all its interrupted runs; more than one under `mlflow run`, which creates a
            new run each time.
        finished: finished trials by their point's fingerprint; those that are `reused` belong to
            another search, or are single trainings.
        open: for points without a finished trial, the interrupted run of this search.
    """

    search: TrackedRun | None = None
    searches: tuple[str, ...] = ()
    finished: Mapping[str, TrialResult] = field(default_factory=dict)
    open: Mapping[str, UnfinishedTrial] = field(default_factory=dict)

    @property
    def is_fresh(self) -> bool:
        """Return whether the search was started to train every point anew."""
        return self.search is not None and schema.FRESH in self.search.raw.data.tags


def find_searches(store: Store, experiment_id: str, grids: Iterable[str]) -> list[TrackedRun]:
    """Find the runs of one search in an experiment, the one whose command was given last first.

    A run whose grid cannot be read is skipped: its trials count as those of another search. So is
    one that has not finished, and whose files may not be written where they are.
    `grids` has the search's fingerprint, then those that earlier versions gave it.
    """
    today, *older = dict.fromkeys(grids)
    runs = [
        *iterate_runs(store, [experiment_id], f"tags.`{schema.GRID}` = '{today}'"),
        *_by_older_keys(store, experiment_id, schema.GRID, set(older)),
    ]
    found = readable(store, runs, partial(_as_resumable, store))
    return sorted(found, key=_last_asked, reverse=True)


def _as_resumable(store: Store, run: Run) -> TrackedRun:
    if run.info.status != FINISHED:
        _require_writable(store, run)
    return as_readable(store, run)


def _require_writable(store: Store, run: Run) -> None:
    """Raise `UnreadableRun` for a run whose files lie where a store may not send them."""
    try:
        require_trusted(store, str(run.info.artifact_uri))
    except TrackingError:
        place = printable(str(run.info.artifact_uri))
        raise UnreadableRun(
            run, f"it is not resumed, as its files lie in {place}; see --trust-artifact-location"
        ) from None


def _last_asked(search: TrackedRun) -> tuple[str, int]:
    """Return the sort key for the order of `queries.LATEST_ASKED_FIRST`."""
    return search.raw.data.tags.get(schema.ASKED_AT, ""), search.raw.info.start_time or 0


def find_resume_state(
    store: Store,
    experiment_id: str,
    searches: Sequence[TrackedRun],
    keys: GridKeys,
    *,
    fresh: bool = False,
    reopen: bool = False,
) -> ResumeState:
    """Find the trials of a search that is to be started or resumed.

    Args:
        store: the store.
        experiment_id: of the experiment to search.
        searches: what `find_searches` found.
        keys: fingerprints of the grid.
        fresh: ignore all runs, and train every point again.
        reopen: resume the newest of `searches` although it has ended, because trials of it are
            gone.
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
    points, read = keys.points, _reader(store, keys)
    # A search that was started with --fresh counts only its own trials.
    only_own = search is not None and schema.FRESH in search.raw.data.tags
    own = [run.run_id for run in unfinished[: 1 if only_own else None]] if search else []
    finished: dict[str, TrialResult] = {}
    open_runs: dict[str, UnfinishedTrial] = {}
    for parent in own:
        children = find_children(store, experiment_id, parent)
        for run, trial in readable(store, children, read):
            point = points.get(run.data.tags.get(schema.POINT, ""), "")
            if trial.status == FINISHED:
                finished.setdefault(point, trial)
            else:
                open_runs.setdefault(point, _open_trial(run))
    if not only_own and has_any(store, experiment_id, _ANY_FINISHED):
        today = set(points.values())
        for find, known in ((_finished_runs, today), (_finished_before, points.keys() - today)):
            wanted = {key for key in known if points[key] not in finished}
            runs = find(store, experiment_id, wanted)
            for run, trial in readable(store, runs, read):
                point = points[run.data.tags[schema.POINT]]
                finished.setdefault(point, dataclasses.replace(trial, reused=True))
    todays = dict.fromkeys(points.values())
    return ResumeState(
        search=search,
        searches=tuple(own),
        finished={point: finished[point] for point in todays if point in finished},
        open={point: run for point, run in open_runs.items() if point and point not in finished},
    )


def _reader(store: Store, keys: GridKeys) -> Callable[[Run], tuple[Run, TrialResult]]:
    """Return a function that reads a trial to be reused or resumed, and refuses others.

    Its fingerprint must be that of its configuration.
    """

    def read(run: Run) -> tuple[Run, TrialResult]:
        trial = trial_result(run)
        point = keys.points.get(run.data.tags.get(schema.POINT, ""), "")
        if trial.config != keys.configs.get(point, trial.config):
            raise UnreadableRun(run, f"its tag {schema.POINT} is that of another configuration")
        if trial.status != FINISHED:
            _require_writable(store, run)
        return run, trial

    return read


def _open_trial(run: Run) -> UnfinishedTrial:
    has_steps = any(name in run.data.metrics for name in EPOCH_METRICS)
    return UnfinishedTrial(run_id=run.info.run_id, has_steps=has_steps)


def find_training(
    store: Store,
    experiment_id: str,
    keys: GridKeys,
    before: Lease | None = None,
) -> ResumeState:
    """Find an earlier run of a single training.

    It is a finished run of that point (a search's trial or a single training) or an interrupted
    single training, whichever is newer. `keys` are those of a grid of that point alone;
    another process held its folder `before`.
    """
    for key, point in keys.points.items():
        runs = iterate_runs(store, [experiment_id], f"tags.`{schema.POINT}` = '{key}'")
        # The newest first: a run begun after the last finished one is resumed.
        for run, trial in readable(store, runs, _reader(store, keys)):
            if trial.status == FINISHED:
                return ResumeState(finished={point: trial})
            if schema.PARENT not in run.data.tags:
                require_not_live(store, as_tracked(run), before)
                return ResumeState(open={point: _open_trial(run)})
    return ResumeState()


def find_finished(
    store: Store, experiment_id: str, fingerprint: str, config: TrainingConfig
) -> TrialResult | None:
    """Find the newest finished trial of a point, None if there is none."""
    runs = _finished_runs(store, experiment_id, {fingerprint})
    found = readable(store, runs, trial_result)
    return next((trial for trial in found if trial.config == config), None)


def _finished_runs(store: Store, experiment_id: str, points: set[str]) -> Iterator[Run]:
    filters = [f"tags.`{schema.POINT}` = '{point}'" for point in sorted(points)]
    if len(points) > _FEW:
        filters = [f"tags.`{schema.POINT}` LIKE '%'"]
    for filter_string in filters:
        for run in iterate_runs(store, [experiment_id], filter_string + _AND_FINISHED):
            if run.data.tags[schema.POINT] in points:
                yield run


def _finished_before(store: Store, experiment_id: str, points: set[str]) -> Iterator[Run]:
    """Find finished runs by the fingerprints that earlier versions gave their points."""
    return _by_older_keys(store, experiment_id, schema.POINT, points, _AND_FINISHED)


def _by_older_keys(
    store: Store, experiment_id: str, tag: str, keys: set[str], condition: str = ""
) -> Iterator[Run]:
    # A point has several older fingerprints, few of them with a run: read all runs of other code.
    other_code = f"tags.`{schema.CODE_SHA256}` != '{fingerprint.of_program()}'"
    if keys:
        filter_string = f"tags.`{tag}` LIKE '%' AND {other_code}{condition}"
        for run in iterate_runs(store, [experiment_id], filter_string):
            if run.data.tags[tag] in keys:
                yield run


def like_trials(
    store: Store, experiment_id: str, split: SplitConfig, threads: int
) -> list[TrialResult]:
    """Find finished trials of this code with as many images and threads, the newest first.

    Diverged trials are left out, because they ended early; so are those without a valid time.
    """
    filter_string = (
        f"{IS_FINISHED} AND tags.`{schema.THREADS}` = '{threads}' "
        f"AND tags.`{schema.CODE_SHA256}` = '{fingerprint.of_program()}' "
        f"AND tags.`{schema.PROTOCOL}` = '{split.protocol}' "
        f"AND params.`{schema.SPLIT_PREFIX}limit` = '{split.limit}'"
    )
    found = iterate_runs(store, [experiment_id], filter_string, at_once=_FEW)
    alike = (
        one
        for one in readable(store, found, as_tracked)
        if (one.split.data, one.split.validates) == (split.data, split.validates)
    )
    runs = (one.raw for one in itertools.islice(alike, _FEW))
    return [
        trial
        for trial in readable(store, runs, trial_result)
        if not trial.diverged and 0 < (trial.train_seconds or 0) < _LONGEST_SECONDS
    ]


def logged_steps(store: Store, run_id: str, *, validates: bool = True) -> set[int]:
    """Return the epochs whose metrics have all been logged; see `SplitConfig.validates`."""
    steps = [
        {metric.step for metric in store.client.get_metric_history(run_id, name)}
        for name in EPOCH_METRICS
        if validates or name not in _VALIDATION_METRICS
    ]
    return set.intersection(*steps)


def require_not_live(store: Store, run: TrackedRun, before: Lease | None = None) -> None:
    """Raise `SearchError` for a run that another process is working on; say which, and where.

    If that process is on another machine, its run is watched for a while first, unless it is the
    one that held the search's folder `before`, which is this process's now.
    """
    lease = _holder(run.raw)
    if lease is None or lease.is_mine() or lease.let_go(before):
        return
    if not lease.is_here():
        _watch(store, {run.experiment_id}, {run.run_id}, f"The run {run.run_id[:8]} is open, held")
        found = find_active(store, run.run_id)
        lease = None if found is None else _holder(found)
    if lease is not None and lease.is_live():
        kind = "training" if run.role == schema.TRAIN else "search"
        raise SearchError(
            f"The {kind} {run.run_id[:8]} is running already: {lease} holds it. "
            "Wait for it to end, or stop that process and give this command again."
        )


def close_orphans(
    store: Store, experiments: Iterable[str], *, watch: bool = False
) -> list[tuple[str, str]]:
    """Close, as KILLED, the open runs whose process is gone; return the id and name of each.

    What another machine's process holds is closed only after it has been watched in vain: with
    `watch` it is watched now, else it counts from when this process has seen it first.
    """
    experiments, orphans = list(experiments), []
    if watch:
        _watch(store, experiments, None, "Runs are open, held")
    is_live = liveness(store)
    for run in list(iterate_runs(store, experiments, _OPEN)):
        if not is_live(run):
            store.client.set_terminated(run.info.run_id, "KILLED")
            orphans.append((run.info.run_id, schema.unmarked(run.info.run_name or "")))
    return orphans


def _holder(run: Run) -> Lease | None:
    """Return who holds a run, if it is open."""
    return Lease.read(run.data.tags) if run.info.status == RUNNING else None


def _watch(store: Store, experiments: Iterable[str], only: set[str] | None, what: str) -> None:
    """Watch the heartbeats of other machines' open runs until each has beaten, or long enough."""
    experiments = list(experiments)

    def beats() -> dict[tuple[object, ...], float]:
        """Return the newest heartbeat of each holder: a search's counts for its trials too."""
        found: dict[tuple[object, ...], float] = {}
        for run in iterate_runs(store, experiments, _OPEN):
            lease = _holder(run)
            if lease is not None and not lease.is_here() and (not only or run.info.run_id in only):
                lease.is_live()  # notes when it was seen
                found[lease.holder] = max(lease.beat, found.get(lease.holder, lease.beat))
        return found

    first, end = beats(), time.monotonic() + leases.SILENCE_SECONDS
    if first:
        _log.info(
            "%s by another machine; watching for up to %d s whether it is still at work.",
            what,
            leases.SILENCE_SECONDS,
        )
    while first and time.monotonic() < end:
        time.sleep(min(_LOOK_SECONDS, max(0.0, end - time.monotonic())))
        seen = beats()
        if all(seen.get(holder) != beat for holder, beat in first.items()):
            return


def live_runs(store: Store, experiments: Iterable[str]) -> list[str]:
    """Return the ids of the open runs of this project whose process is still running."""
    is_live = liveness(store)
    return [run.info.run_id for run in iterate_runs(store, experiments, _OPEN) if is_live(run)]


def close_own(store: Store, experiment_id: str, status: str | None = None) -> None:
    """Close the open runs of this process: a search with the status, if any; trials as KILLED."""
    for run in list(iterate_runs(store, [experiment_id], _OPEN)):
        lease = Lease.read(run.data.tags)
        if lease is not None and lease.is_mine():
            ends = status if run.data.tags[schema.ROLE] == schema.SEARCH else "KILLED"
            if ends is not None:
                store.client.set_terminated(run.info.run_id, ends)
