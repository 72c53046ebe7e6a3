"""Finding runs by a filter, by id or by parent, and telling live runs from dead ones."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils.search_utils import SearchUtils

from fmnist_tracking.errors import first_line
from fmnist_tracking.results import FINISHED, RUNNING
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.error_messages import is_passing, is_unauthorized
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.tracking.store import Store

# MLflow's upper limit for a page of some queries.
PAGE = 1000
_IDS_AT_ONCE = 200
# A place in a list of runs that no store has.
_BEYOND_ALL = 2**53
# Filters and orders in MLflow's syntax.
IS_FINISHED = f"attributes.status = '{FINISHED}'"
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
    view: int = ViewType.ACTIVE_ONLY,
) -> Iterator[Run]:
    """Iterate over all runs of some experiments that match a filter, in pages of `at_once`.

    Runs that MLflow itself cannot read, such as one without a user, are left out.
    """
    ids, token = list(experiments), None
    search = partial(
        store.client.search_runs, ids, filter_string, run_view_type=view, order_by=list(order)
    )
    for start in itertools.count(0, at_once):
        if not ids:
            return
        page, token = _page(store, search, start, at_once, token)
        yield from page
        if not token:
            return


def _page(
    store: Store, search: Callable[..., PagedList[Run]], start: int, count: int, token: Any
) -> tuple[Iterable[Run], Any]:
    """Return a page of runs without those that cannot be read, and the token of the next page."""
    try:
        page = search(max_results=count, page_token=token)
        return page, page.token
    except MlflowException:
        search(max_results=1, page_token=_token(_BEYOND_ALL))  # raises if the query is at fault
        return _halved(store, search, start, count), _token(start + count)


def _halved(
    store: Store, search: Callable[..., PagedList[Run]], start: int, count: int
) -> Iterator[Run]:
    """Iterate over a page of which a run cannot be read, by halves, and leave that run out."""
    try:
        page = search(max_results=count, page_token=_token(start))
    except MlflowException as error:
        if count == 1:
            store.left_out[f"no. {start + 1}"] = f"MLflow cannot read it: {first_line(error)}"
            return
        half = count // 2
        yield from _halved(store, search, start, half)
        yield from _halved(store, search, start + half, count - half)
    else:
        yield from page


def _token(offset: int) -> Any:
    return None if offset == 0 else SearchUtils.create_page_token(offset)  # type: ignore[no-untyped-call]


def runs_by_id(
    store: Store, experiment_id: str, ids: Sequence[str], condition: str
) -> Iterator[Run]:
    """Iterate over those of the given runs that exist and meet a condition.

    A text that cannot be a run's id is skipped.
    """
    known = [run_id for run_id in ids if _RUN_ID.fullmatch(run_id)]
    for filter_string, _ in _by_id(known, condition):
        yield from iterate_runs(store, [experiment_id], filter_string)


def has_all(store: Store, experiment_id: str, ids: Sequence[str], condition: str) -> bool:
    """Return whether all given runs, each named once, exist and meet a condition.

    They are counted, and none is read.
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


def has_any(store: Store, experiment_id: str, filter_string: str) -> bool:
    """Return whether a run matches a filter."""
    return any(True for _ in iterate_runs(store, [experiment_id], filter_string, at_once=1))


def has_exactly(store: Store, experiment_id: str, filter_string: str, count: int) -> bool:
    """Return whether exactly this many runs match a filter, by asking only for the last one."""
    if count == 0:
        return not has_any(store, experiment_id, filter_string)
    search = partial(store.client.search_runs, [experiment_id], filter_string)
    found, _ = _page(store, search, count - 1, 2, _token(count - 1))
    return len(list(found)) == 1


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
    """Return the run with an id, deleted or not; None if the store has none that can be read."""
    try:
        return store.client.get_run(run_id)
    except MlflowException as error:
        if is_absent(error):
            return None
        if is_passing(error) or is_unauthorized(error):
            raise
        store.left_out[run_id] = f"MLflow cannot read it: {first_line(error)}"
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
            is_open = holder is not None and holder.info.status == RUNNING
            held = Lease.read(holder.data.tags) if holder is not None and is_open else None
            live[key] = (
                held is not None
                and (parent, held.machine, held.pid, held.started) == key
                and held.is_live()
            )
        return live[key]

    return is_live
