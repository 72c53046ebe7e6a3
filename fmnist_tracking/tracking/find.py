"""Finding the run that a person names, and listing runs."""

import contextlib
import itertools
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from mlflow.entities import Run, ViewType

from fmnist_tracking.config import (
    COURSEWORK_GRID,
    DEFAULT_EXPERIMENT,
    DEFAULT_MODEL_NAME,
    FIELDS,
    OBJECTIVE,
)
from fmnist_tracking.errors import TrackingError, setting, shown
from fmnist_tracking.leaderboard import best
from fmnist_tracking.network import Value
from fmnist_tracking.redact import printable
from fmnist_tracking.results import FINISHED, RUNNING, RunSummary
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.experiments import all_experiments, experiment_in_use
from fmnist_tracking.tracking.queries import (
    IS_FINISHED,
    LATEST_ASKED_FIRST,
    has_all,
    has_exactly,
    iterate_runs,
    liveness,
)
from fmnist_tracking.tracking.records import (
    TrackedRun,
    as_tracked,
    read_trial,
    readable,
)
from fmnist_tracking.tracking.registry import champion_run
from fmnist_tracking.tracking.search_records import (
    as_readable,
    read_base,
    read_search,
    read_space,
    reused_runs,
)
from fmnist_tracking.tracking.store import Store

_log = logging.getLogger(__name__)

BEST_OF_ALL = "best-of-all"
_WORDS = ("latest", "best", BEST_OF_ALL, schema.CHAMPION)
_ROLE_NAMES = {schema.SEARCH: "search", schema.TRIAL: "trial", schema.TRAIN: "training"}
# Page size of a query for the newest run that can be read.
_AT_ONCE = 10
_RUN_ID = re.compile(r"[0-9a-f]{4,32}")
# Axes that vary by default, so that a search with a single value is listed with that value.
_VARIED = {name for name, values in COURSEWORK_GRID.items() if len(values) > 1}


def find_run(
    store: Store,
    reference: str,
    experiment: str | None = None,
    *,
    latest: Sequence[str] = (schema.SEARCH, schema.TRAIN),
) -> TrackedRun:
    """Find the run that a reference stands for.

    The reference is a run id or its beginning; `latest` for the newest search or single training;
    `best` for the best trial of the newest search; `best-of-all` for the best trial of all
    searches on the same images; `champion` or `NAME@champion` for the trial behind the version in
    use of a registered model. Words look in the experiment in use alone, as others may have runs in
    the store; the experiment that they found is logged. An id is looked for in all experiments,
    unless one is named; what several ids begin with means that in the experiment in use. `latest`
    lists the roles that the word may stand for.

    Raises:
        TrackingError: no run or more than one matches, or the run is not of this project.
    """
    if reference in _WORDS or reference.endswith(f"@{schema.CHAMPION}"):
        in_use = experiment_in_use(store, experiment)
        found = _by_word(store, reference, in_use, latest)
        name = store.client.get_experiment(found.experiment_id).name
        _log.info("%s: the %s %s in the experiment %s", reference, _ROLE_NAMES[found.role],
                  found.run_id[:8], printable(name))  # fmt: skip
        return found
    if not _RUN_ID.fullmatch(reference):
        raise TrackingError(
            "Expected a run id, its first 4 or more characters, `latest`, `best`, "
            f"`{BEST_OF_ALL}` or `{schema.CHAMPION}`, got {reference!r}. `fmnist-track runs` lists "
            "the ids."
        )
    return _by_id(store, reference, experiment)


def _by_word(
    store: Store, word: str, in_use: Mapping[str, str], latest: Sequence[str]
) -> TrackedRun:
    if word == schema.CHAMPION or word.endswith(f"@{schema.CHAMPION}"):
        found = champion_run(store, word.rpartition("@")[0] or DEFAULT_MODEL_NAME)
        if word == schema.CHAMPION and found.experiment_id not in in_use:
            raise TrackingError(
                f"The champion of the registered model {DEFAULT_MODEL_NAME!r} is a trial of "
                f"another experiment than {_name(in_use)!r}, which may be another person's. Name "
                f"it `{DEFAULT_MODEL_NAME}@{schema.CHAMPION}`, or by its run id "
                f"{found.run_id[:8]}, if it is meant."
            )
        return found
    if word == BEST_OF_ALL:
        return _best_of_all(store, in_use)
    newest = _newest(store, in_use, [schema.SEARCH] if word == "best" else latest)
    if newest is None:
        raise TrackingError(_nothing_yet(store, in_use))
    return best_trial(store, newest) if word == "best" else newest


def _by_id(store: Store, reference: str, experiment: str | None) -> TrackedRun:
    everywhere = experiment_in_use(store, experiment) if experiment else all_experiments(store)
    filter_string = f"attributes.run_id LIKE '{reference}%'"
    matches = list(iterate_runs(store, everywhere, filter_string))
    if not matches:
        gone = iterate_runs(store, everywhere, filter_string, at_once=1, view=ViewType.DELETED_ONLY)
        deleted = next(gone, None)
        if deleted is not None:
            run_id = deleted.info.run_id
            raise TrackingError(
                f"The run {run_id[:8]} was deleted. Restore it with `mlflow runs restore --run-id "
                f"{run_id}`, or choose another; `fmnist-track runs` lists the ids."
            )
        where = f"in the experiment {experiment!r}" if experiment else "in this store"
        raise TrackingError(
            f"There is no run {reference} {where}. `fmnist-track runs` lists the "
            f"ids; {setting('tracking_uri')} names another store."
        )
    if len(matches) > 1:
        in_use = experiment_in_use(store, experiment)
        matches = [run for run in matches if run.info.experiment_id in in_use] or matches
    if len(matches) > 1:
        raise TrackingError(
            f"{reference} is the beginning of {len(matches)} run ids: "
            f"{', '.join(sorted(run.info.run_id for run in matches)[:5])}. Give more of it."
        )
    return as_tracked(matches[0])


def _best_of_all(store: Store, in_use: Mapping[str, str]) -> TrackedRun:
    """Return the best trial of all searches that were validated on the same images.

    Of the searches with the most images, the newest decides which images those are: accuracies on
    different images cannot be compared.
    """
    found = iterate_runs(store, in_use, _role_filter([schema.SEARCH]))
    searches = list(readable(store, found, partial(as_readable, store)))
    if not searches:
        raise TrackingError(_nothing_yet(store, in_use))

    def images(search: TrackedRun) -> tuple[str, SplitConfig]:
        return search.data_sha256, search.split

    largest = max(searches, key=lambda search: search.split.limit or math.inf)
    alike = [search for search in searches if images(search) == images(largest)]
    winners = [best(read_search(store, search).finished) for search in alike]
    scored = [winner for winner in winners if winner is not None]
    if not scored:
        raise TrackingError(_no_trial_yet(store, largest))
    winner = max(scored, key=lambda trial: trial.val_accuracy or 0.0)
    return as_tracked(store.client.get_run(winner.run_id))


def latest_search(store: Store, experiment: str | None = None) -> TrackedRun | None:
    """Return the search whose command was given last, None if there is none."""
    return _newest(store, experiment_in_use(store, experiment), [schema.SEARCH])


def _newest(store: Store, experiments: Iterable[str], roles: Sequence[str]) -> TrackedRun | None:
    found = iterate_runs(
        store, experiments, _role_filter(roles), at_once=_AT_ONCE, order=LATEST_ASKED_FIRST
    )
    return next(readable(store, found, partial(as_readable, store)), None)


def best_trial(store: Store, run: TrackedRun) -> TrackedRun:
    """Return the best trial of a search; for a trial, the trial itself.

    Raises:
        TrackingError: the search has no finished trial, or all of them diverged.
    """
    if run.role != schema.SEARCH:
        return run
    finished = read_search(store, run).finished
    winner = best(finished)
    if winner is None and finished:
        raise TrackingError(
            f"Every finished trial of the search {run.run_id[:8]} diverged, so that none of its "
            "models is of use. Choose another search, or train with a smaller learning rate."
        )
    if winner is None:
        raise TrackingError(_no_trial_yet(store, run))
    return as_tracked(store.client.get_run(winner.run_id))


def list_runs(store: Store, experiment: str | None = None) -> list[RunSummary]:
    """List the searches and single trainings of an experiment, that asked for last first.

    Raises:
        TrackingError: there is no such experiment, or it has no runs.
    """
    experiments = experiment_in_use(store, experiment)
    filter_string = _role_filter([schema.SEARCH, schema.TRAIN])
    is_live = liveness(store)

    def read(run: Run) -> RunSummary:
        return _summary(store, run, experiments[run.info.experiment_id], is_live)

    runs = iterate_runs(store, experiments, filter_string, order=LATEST_ASKED_FIRST)
    found = list(readable(store, runs, read))
    if not found and not store.left_out:
        raise TrackingError(_nothing_yet(store, experiments))
    return found


def _summary(store: Store, run: Run, experiment: str, is_live: Callable[[Run], bool]) -> RunSummary:
    tracked = as_tracked(run)
    if tracked.role == schema.TRAIN:
        trial = read_trial(tracked)
        axes: Mapping[str, tuple[Value, ...]] = {
            name: (value,) for name, value in trial.config.values.items()
        }
        points, finished = 1, int(run.info.status == FINISHED)
        val_accuracy = trial.val_accuracy
    else:
        space = read_space(store, run)
        base = read_base(run).values
        axes = {name: (base[name],) for name in ("epochs", OBJECTIVE) if name in base}
        axes = {**axes, **space.axes}
        points = len(space)
        finished, val_accuracy = _results(store, tracked)
    return RunSummary(
        run_id=run.info.run_id,
        role=tracked.role,
        name=tracked.name,
        experiment=experiment,
        status=_status(run, is_live),
        started=run.info.start_time or 0,
        points=points,
        finished=finished,
        val_accuracy=val_accuracy,
        grid={
            name: values
            for name, values in axes.items()
            if len(values) > 1
            or (
                name != "epochs"
                and (
                    name not in FIELDS
                    or values[0] != FIELDS[name].default
                    or (tracked.role == schema.SEARCH and name in _VARIED)
                )
            )
        },
        epochs=int(epochs[0]) if len(epochs := axes["epochs"]) == 1 else None,
        limit=tracked.split.limit,
    )


def _results(store: Store, search: TrackedRun) -> tuple[int, float | None]:
    """Return how many points of a search have finished, and the best validation accuracy.

    The values logged when the search ended are used if the store still has as many finished trials
    of it, and the best one; otherwise its trials are read.
    """
    metrics, tags = search.raw.data.metrics, search.raw.data.tags
    if {schema.FINISHED_POINTS, schema.BEST_VAL_ACCURACY} <= metrics.keys():
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            finished = int(metrics[schema.FINISHED_POINTS])
            reused = int(tags.get(schema.REUSED, 0))
            children = f"tags.`{schema.PARENT}` = '{search.run_id}' AND {IS_FINISHED}"
            winner = [tags.get(schema.BEST_RUN, "")]
            if (
                finished >= reused
                and 0 <= metrics[schema.BEST_VAL_ACCURACY] <= 1
                and has_exactly(store, search.experiment_id, children, finished - reused)
                and has_all(store, search.experiment_id, winner, IS_FINISHED)
                and (not reused or len(list(reused_runs(store, search))) == reused)
            ):
                return finished, metrics[schema.BEST_VAL_ACCURACY]
    result = read_search(store, search, summary=False)
    first = best(result.finished)
    return len(result.finished), None if first is None else first.val_accuracy


def _no_trial_yet(store: Store, search: TrackedRun) -> str:
    status = _status(search.raw, liveness(store))
    way_out = "Wait for one." if status == RUNNING else "Give its command again: it goes on."
    return (
        f"The search {search.run_id[:8]} ({status}) has no finished trial. {way_out} "
        f"`fmnist-track runs --run-id {search.run_id[:8]}` lists its trials."
    )


def _status(run: Run, is_live: Callable[[Run], bool]) -> str:
    """Return a run's status: KILLED if it is open and its process is gone."""
    status = str(run.info.status)
    return "KILLED" if status == RUNNING and not is_live(run) else status


def _role_filter(roles: Sequence[str]) -> str:
    # MLflow's filters have no OR, and no IN for tags. One or two of the three roles are wanted.
    if len(roles) == 1:
        return f"tags.`{schema.ROLE}` = '{roles[0]}'"
    return f"tags.`{schema.ROLE}` LIKE '%' AND tags.`{schema.ROLE}` != '{schema.TRIAL}'"


def _nothing_yet(store: Store, in_use: Mapping[str, str]) -> str:
    all_ids = all_experiments(store)
    others = {key: name for key, name in all_ids.items() if key not in in_use}
    roles = _role_filter([schema.SEARCH, schema.TRAIN])
    runs = iterate_runs(store, others, roles, at_once=_AT_ONCE)
    some = {all_ids[run.info.experiment_id] for run in itertools.islice(runs, _AT_ONCE)}
    listed = ", ".join(shown(name) for name in sorted(some))
    elsewhere = f" Those of {listed} are shown with {setting('experiment')}." if some else ""
    return (
        f"There is no search in the experiment {_name(in_use)!r} yet. Run `fmnist-track search` "
        f"first.{elsewhere}"
    )


def _name(in_use: Mapping[str, str]) -> str:
    return next(iter(in_use.values()), DEFAULT_EXPERIMENT)
