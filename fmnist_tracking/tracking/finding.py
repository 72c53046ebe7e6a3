"""Finding the run that a person means, and listing what there is."""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fmnist_tracking.analysis import best
from fmnist_tracking.errors import TrackingError
from fmnist_tracking.results import (
    FINISHED,
    RunSummary,
)
from fmnist_tracking.tracking import names
from fmnist_tracking.tracking.reading import (
    NEWEST_FIRST,
    TrackedRun,
    as_tracked,
    iterate_runs,
    read_search,
    read_space,
)
from fmnist_tracking.tracking.store import Store

_PAGE = 1000
_NAMES_SHOWN = 10
_RUN_ID = re.compile(r"[0-9a-f]{4,32}")


def find_run(store: Store, reference: str, experiment: str | None = None) -> TrackedRun:
    """The run that a person means.

    Args:
        store: the store.
        reference: a run id, the beginning of one, `latest` for the newest search or single
            training, or `best` for the best trial of the newest search.
        experiment: the name of the experiment to look in; None looks in all of them.

    Raises:
        TrackingError: there is no such run, more than one, or it is not of this project.
    """
    experiments = experiment_ids(store, experiment)
    if reference in ("latest", "best"):
        roles = [names.SEARCH, names.TRAIN] if reference == "latest" else [names.SEARCH]
        found = _newest(store, experiments, roles)
        if found is None:
            raise TrackingError(_nothing_yet(experiment))
        return best_trial(store, found) if reference == "best" else found
    if not _RUN_ID.fullmatch(reference):
        raise TrackingError(
            f"Expected --run-id to be a run id, its first 4 or more characters, `latest` or "
            f"`best`, got {reference!r}. `fmnist-track runs` lists the ids."
        )
    matches = list(iterate_runs(store, experiments, f"attributes.run_id LIKE '{reference}%'"))
    if not matches:
        raise TrackingError(
            f"There is no run {reference} {_where(experiment)}. `fmnist-track runs` lists the "
            "ids; --tracking-uri names another store."
        )
    if len(matches) > 1:
        raise TrackingError(
            f"{reference} is the beginning of {len(matches)} run ids: "
            f"{', '.join(sorted(run.info.run_id for run in matches)[:5])}. Give more of it."
        )
    return as_tracked(matches[0])


def latest_search(store: Store) -> TrackedRun | None:
    """The newest search of all, None if there is none yet."""
    return _newest(store, experiment_ids(store, None), [names.SEARCH])


def _newest(store: Store, experiments: Iterable[str], roles: Sequence[str]) -> TrackedRun | None:
    ids, filter_string = list(experiments), _role_filter(roles)
    if not ids:
        return None
    found = store.client.search_runs(ids, filter_string, max_results=1, order_by=NEWEST_FIRST)
    return as_tracked(found[0]) if found else None


def best_trial(store: Store, run: TrackedRun) -> TrackedRun:
    """The best trial of a search; a trial is its own.

    Raises:
        TrackingError: the search has no finished trial.
    """
    if run.role != names.SEARCH:
        return run
    if run.raw.info.status == FINISHED and names.BEST_RUN in run.raw.data.tags:
        with contextlib.suppress(MlflowException):  # it was deleted
            found = store.client.get_run(run.raw.data.tags[names.BEST_RUN])
            if found.info.lifecycle_stage == "active":
                return as_tracked(found)
    finished = read_search(store, run).finished
    winner = best(finished)
    if winner is None and finished:
        raise TrackingError(
            f"Every finished trial of the search {run.run_id[:8]} diverged, so that none of its "
            "models is of use. Choose another search, or train with a smaller learning rate."
        )
    if winner is None:
        raise TrackingError(
            f"The search {run.run_id[:8]} ({run.raw.info.status}) has no finished trial yet. Wait "
            "for one, or, if nothing runs, give the command of the search again: it goes on. "
            f"`fmnist-track runs --run-id {run.run_id[:8]}` lists its trials."
        )
    return as_tracked(store.client.get_run(winner.run_id))


def list_runs(store: Store, experiment: str | None = None) -> list[RunSummary]:
    """Every search and every single training, the newest first.

    Raises:
        TrackingError: there is no such experiment, or nothing in it.
    """
    experiments = experiment_ids(store, experiment)
    filter_string = _role_filter([names.SEARCH, names.TRAIN])
    found = [
        _summary(store, r, experiments) for r in iterate_runs(store, experiments, filter_string)
    ]
    if not found:
        raise TrackingError(_nothing_yet(experiment))
    return found


def _summary(store: Store, run: Run, experiments: Mapping[str, str]) -> RunSummary:
    tracked = as_tracked(run)
    metrics = run.data.metrics
    val_accuracy = metrics.get(names.BEST_VAL_ACCURACY)
    if tracked.role == names.TRAIN:
        points, finished = 1, int(run.info.status == FINISHED)
    elif names.FINISHED_POINTS in metrics:
        points, finished = len(read_space(run)), int(metrics[names.FINISHED_POINTS])
    else:  # still running, or cut off: its trials know
        search = read_search(store, tracked)
        points, finished = len(search.space), len(search.finished)
        winner = best(search.finished)
        val_accuracy = None if winner is None else winner.val_accuracy
    return RunSummary(
        run_id=run.info.run_id,
        role=tracked.role,
        name=run.info.run_name,
        experiment=experiments[run.info.experiment_id],
        status=run.info.status,
        started=run.info.start_time,
        points=points,
        finished=finished,
        val_accuracy=val_accuracy,
    )


def experiment_ids(store: Store, name: str | None) -> dict[str, str]:
    """Experiments to look in, all or the one of a name: their names by id.

    Raises:
        TrackingError: there is none of that name.
    """
    if name is not None:
        found = store.client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            known = [e.name for e in store.client.search_experiments(max_results=_NAMES_SHOWN)]
            raise TrackingError(
                f"There is no experiment {name!r} in this store. It has: "
                f"{', '.join(sorted(known))}{', …' if len(known) == _NAMES_SHOWN else '.'}"
            )
        return {found.experiment_id: found.name}
    experiments: dict[str, str] = {}
    token = None
    while True:
        page = store.client.search_experiments(max_results=_PAGE, page_token=token)
        experiments |= {e.experiment_id: e.name for e in page}
        token = page.token
        if not token:
            return experiments


def _role_filter(roles: Sequence[str]) -> str:
    # MLflow's filters know no OR, and no IN for tags; of the three roles, one or two are wanted.
    if len(roles) == 1:
        return f"tags.`{names.ROLE}` = '{roles[0]}'"
    return f"tags.`{names.ROLE}` LIKE '%' AND tags.`{names.ROLE}` != '{names.TRIAL}'"


def _where(experiment: str | None) -> str:
    return "in this store" if experiment is None else f"in the experiment {experiment!r}"


def _nothing_yet(experiment: str | None) -> str:
    return f"There is no search {_where(experiment)} yet. Run `fmnist-track search` first."
