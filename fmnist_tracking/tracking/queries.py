"""Finding runs by a filter, by id or by parent, and telling live runs from dead ones."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.store.entities import PagedList
from mlflow.utils.search_utils import SearchUtils

from fmnist_tracking.results import RUNNING
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.tracking.store import Store

# MLflow's upper limit for a page of some queries.
PAGE = 1000
_IDS_AT_ONCE = 200
T = TypeVar("T")
NEWEST_FIRST = ("attributes.start_time DESC",)
# Runs of earlier releases, which lack that tag, come last.
LATEST_ASKED_FIRST = (f"tags.`{schema.ASKED_AT}` DESC", *NEWEST_FIRST)
# What MLflow accepts as a run id.
_RUN_ID = re.compile(r"[a-zA-Z0-9][\w-]{0,255}", re.ASCII)
ABSENT = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
# MLflow answers this, too, for a text that cannot be an id.
_INVALID = ErrorCode.Name(INVALID_PARAMETER_VALUE)


def iterate_runs(
    store: Store,
    experiments: Iterable[str],
    filter_string: str,
    at_once: int = PAGE,
    order: Sequence[str] = NEWEST_FIRST,
) -> Iterator[Run]:
    """Iterate over all runs that match a filter, the newest first by default.

    Args:
        store: the store.
        experiments: ids of the experiments to look in.
        filter_string: a filter in MLflow's syntax.
        at_once: page size of the query.
        order: MLflow's `order_by`.
    """
    ids = list(experiments)

    def ask(token: str | None) -> PagedList[Run]:
        return store.client.search_runs(
            ids, filter_string, max_results=at_once, order_by=list(order), page_token=token
        )

    return iterate_pages(ask) if ids else iter(())


def iterate_pages(ask: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """Iterate over the results of a paged MLflow query.

    Args:
        ask: returns the page of a token; None stands for the first page.
    """
    token = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return


def runs_by_id(
    store: Store, experiment_id: str, ids: Sequence[str], condition: str
) -> Iterator[Run]:
    """Iterate over those of the given runs that exist and meet a condition.

    Args:
        store: the store.
        experiment_id: of the experiment they are in.
        ids: run ids; a text that cannot be one is skipped.
        condition: a filter in MLflow's syntax.
    """
    known = [run_id for run_id in ids if _RUN_ID.fullmatch(run_id)]
    for filter_string, _ in _by_id(known, condition):
        yield from iterate_runs(store, [experiment_id], filter_string)


def has_all(store: Store, experiment_id: str, ids: Sequence[str], condition: str) -> bool:
    """Return whether all given runs exist and meet a condition, without reading them all.

    Args:
        store: the store.
        experiment_id: of the experiment they are in.
        ids: run ids, each once.
        condition: a filter in MLflow's syntax.
    """
    return all(map(_RUN_ID.fullmatch, ids)) and all(
        has_exactly(store, experiment_id, filter_string, count)
        for filter_string, count in _by_id(ids, condition)
    )


def _by_id(ids: Sequence[str], condition: str) -> Iterator[tuple[str, int]]:
    """Yield filters for runs by their ids, each with the number of its ids."""
    for start in range(0, len(ids), _IDS_AT_ONCE):
        some = ids[start : start + _IDS_AT_ONCE]
        listed = ", ".join(f"'{run_id}'" for run_id in some)
        yield f"attributes.run_id IN ({listed}) AND {condition}", len(some)


def has_exactly(store: Store, experiment_id: str, filter_string: str, count: int) -> bool:
    """Return whether exactly this many runs match a filter, by asking only for the last one."""
    if count == 0:
        return not store.client.search_runs([experiment_id], filter_string, max_results=1)
    before_last = SearchUtils.create_page_token(count - 1)  # type: ignore[no-untyped-call]
    found = store.client.search_runs(
        [experiment_id],
        filter_string,
        max_results=2,
        page_token=before_last if count > 1 else None,
    )
    return len(found) == 1


def find_children(store: Store, experiment_id: str, parent: str) -> Iterator[Run]:
    """Iterate over the runs of a search's trials, the newest first."""
    for run in iterate_runs(store, [experiment_id], f"tags.`{schema.PARENT}` = '{parent}'"):
        if is_ours(run):
            yield run


def is_ours(run: Run) -> bool:
    """Return whether a run belongs to this project, by any of the tags that say so."""
    return not {schema.ROLE, schema.POINT, schema.GRID}.isdisjoint(run.data.tags)


def is_absent(error: MlflowException) -> bool:
    """Return whether MLflow says that nothing has this id, or that it cannot be an id."""
    return error.error_code in (ABSENT, _INVALID)


def find_any(store: Store, run_id: str) -> Run | None:
    """Return the run with an id, deleted or not; None if the store has none."""
    try:
        return store.client.get_run(run_id)
    except MlflowException as error:
        if not is_absent(error):
            raise
        return None


def find_active(store: Store, run_id: str) -> Run | None:
    """Return the run with an id, None if it was deleted or does not exist."""
    run = find_any(store, run_id)
    return run if run is not None and run.info.lifecycle_stage == "active" else None


def liveness(store: Store) -> Callable[[Run], bool]:
    """Return a function that says whether an open run's process is still running.

    A search's heartbeat counts for its trials too; each search is read once.
    """
    live: dict[tuple[str | float, ...], bool] = {}

    def is_live(run: Run) -> bool:
        parent = run.data.tags.get(schema.PARENT)
        lease = Lease.read(run.data.tags)
        if lease is None:
            return False
        if parent is None or lease.is_live():
            return lease.is_live()
        key = (parent, lease.machine, lease.pid, lease.started)
        if key not in live:
            holder = find_active(store, parent)
            held = None if holder is None else Lease.read(holder.data.tags)
            live[key] = (
                holder is not None
                and holder.info.status == RUNNING
                and held is not None
                and (held.machine, held.pid, held.started)
                == (lease.machine, lease.pid, lease.started)
                and held.is_live()
            )
        return live[key]

    return is_live
