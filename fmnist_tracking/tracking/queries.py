"""Runs as the store has them: found by a filter, by id or by parent; are they live, or gone."""

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

# The most that MLflow gives at once of some things.
PAGE = 1000
_IDS_AT_ONCE = 200
T = TypeVar("T")
NEWEST_FIRST = ("attributes.start_time DESC",)
# Those without that tag, of earlier releases, come last.
LATEST_ASKED_FIRST = (f"tags.`{schema.ASKED_AT}` DESC", *NEWEST_FIRST)
# What MLflow takes for the id of a run.
_RUN_ID = re.compile(r"[a-zA-Z0-9][\w-]{0,255}", re.ASCII)
ABSENT = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
# Also what MLflow says of what can be no id.
_INVALID = ErrorCode.Name(INVALID_PARAMETER_VALUE)


def iterate_runs(
    store: Store,
    experiments: Iterable[str],
    filter_string: str,
    at_once: int = PAGE,
    order: Sequence[str] = NEWEST_FIRST,
) -> Iterator[Run]:
    """Iterate over the runs that match a filter, the newest first, however many there are.

    Args:
        store: the store.
        experiments: ids of the experiments to look in.
        filter_string: as MLflow has it.
        at_once: how many the store is asked for at once.
        order: in which they come, as MLflow has it.
    """
    ids = list(experiments)

    def ask(token: str | None) -> PagedList[Run]:
        return store.client.search_runs(
            ids, filter_string, max_results=at_once, order_by=list(order), page_token=token
        )

    return iterate_pages(ask) if ids else iter(())


def iterate_pages(ask: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """Iterate over what MLflow gives page by page.

    Args:
        ask: gives the page that a token leads to; None stands for the first.
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
    """Iterate over the runs with these ids that meet a condition; those that are gone are left out.

    Args:
        store: the store.
        experiment_id: of the experiment they are in.
        ids: of the runs; what can be none is left out too.
        condition: a filter, as MLflow has it.
    """
    known = [run_id for run_id in ids if _RUN_ID.fullmatch(run_id)]
    for filter_string, _ in _by_id(known, condition):
        yield from iterate_runs(store, [experiment_id], filter_string)


def has_all(store: Store, experiment_id: str, ids: Sequence[str], condition: str) -> bool:
    """Tell whether each of some runs is there and meets a condition, without reading them all.

    Args:
        store: the store.
        experiment_id: of the experiment they are in.
        ids: of the runs, each once.
        condition: a filter, as MLflow has it.
    """
    return all(map(_RUN_ID.fullmatch, ids)) and all(
        has_exactly(store, experiment_id, filter_string, count)
        for filter_string, count in _by_id(ids, condition)
    )


def _by_id(ids: Sequence[str], condition: str) -> Iterator[tuple[str, int]]:
    """Give filters for runs by their ids, each with how many it is for."""
    for start in range(0, len(ids), _IDS_AT_ONCE):
        some = ids[start : start + _IDS_AT_ONCE]
        listed = ", ".join(f"'{run_id}'" for run_id in some)
        yield f"attributes.run_id IN ({listed}) AND {condition}", len(some)


def has_exactly(store: Store, experiment_id: str, filter_string: str, count: int) -> bool:
    """Tell whether so many runs match a filter, without reading them: the last is asked for."""
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
    """Tell whether a run is of this project, by any of the tags that say what it is."""
    return not {schema.ROLE, schema.POINT, schema.GRID}.isdisjoint(run.data.tags)


def is_absent(error: MlflowException) -> bool:
    """Tell whether MLflow says that nothing has the id it was asked for, or that nothing can."""
    return error.error_code in (ABSENT, _INVALID)


def find_any(store: Store, run_id: str) -> Run | None:
    """Return the run with an id, be it deleted; None if the store has none."""
    try:
        return store.client.get_run(run_id)
    except MlflowException as error:
        if not is_absent(error):
            raise
        return None


def find_active(store: Store, run_id: str) -> Run | None:
    """Return the run with an id; None if it was deleted, or the store has none."""
    run = find_any(store, run_id)
    return run if run is not None and run.info.lifecycle_stage == "active" else None


def liveness(store: Store) -> Callable[[Run], bool]:
    """Give what tells whether an open run's process is there.

    A search gives signs of life for its trials too; each is asked for once.
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
