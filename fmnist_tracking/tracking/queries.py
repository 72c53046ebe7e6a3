"""Finding runs by a filter, by id or by parent, and telling live runs from dead ones."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils.search_utils import SearchUtils
from mlflow.utils.uri import get_uri_scheme
from sqlalchemy import bindparam, create_engine, text
from sqlalchemy.pool import NullPool

from fmnist_tracking.errors import first_line
from fmnist_tracking.results import FINISHED, RUNNING
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.error_messages import is_refused
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.tracking.store import Store

# MLflow's upper limit for a page of some queries.
PAGE = 1000
_IDS_AT_ONCE = 200
# What MLflow says of a run without a user, a start time or a status, and which runs have all.
_UNREADABLE = "cannot be None"
_NEEDED = {"user_id": "user", "start_time": "start time", "status": "status"}
_IS_READABLE = (
    f"attributes.user_id LIKE '%' AND attributes.start_time >= {-(2**63)} "
    "AND attributes.status LIKE '%'"
)
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
    ids = list(experiments)
    search = partial(
        store.client.search_runs, ids, run_view_type=view, max_results=at_once, order_by=list(order)
    )
    seen: set[str] = set()
    try:
        for run in _pages(search, filter_string) if ids else ():
            seen.add(run.info.run_id)
            yield run
    except MlflowException as error:
        if _UNREADABLE not in str(error):
            raise
        store.left_out.update(_unreadable(store, ids))
        readable = _pages(search, f"{filter_string} AND {_IS_READABLE}")
        yield from (run for run in readable if run.info.run_id not in seen)


def _pages(search: Callable[..., PagedList[Run]], filter_string: str) -> Iterator[Run]:
    page = search(filter_string)
    yield from page
    while page.token:
        page = search(filter_string, page_token=page.token)
        yield from page


def _unreadable(store: Store, experiments: Sequence[str]) -> dict[str, str]:
    """Return the runs that MLflow cannot read, each with the reason; a server does not tell them.

    The other columns that MLflow needs are never empty.
    """
    if get_uri_scheme(store.uri) not in DATABASE_ENGINES:  # type: ignore[no-untyped-call]
        return {"unknown": f"MLflow cannot read it: {_UNREADABLE}"}
    rows = text(
        f"SELECT run_uuid, {', '.join(_NEEDED)} FROM runs WHERE experiment_id IN :experiments "
        f"AND ({' OR '.join(f'{column} IS NULL' for column in _NEEDED)})"
    ).bindparams(bindparam("experiments", list(map(int, experiments)), expanding=True))
    engine, columns = create_engine(store.uri, poolclass=NullPool), list(_NEEDED)
    with engine.connect() as connection:
        return {
            run_id: f"it has no {_NEEDED[columns[values.index(None)]]}"
            for run_id, *values in connection.execute(rows)
        }


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
    before_last = SearchUtils.create_page_token(count - 1)  # type: ignore[no-untyped-call]
    try:
        found = store.client.search_runs(
            [experiment_id],
            filter_string,
            max_results=2,
            page_token=before_last if count > 1 else None,
        )
    except MlflowException as error:
        if _UNREADABLE not in str(error):
            raise
        return len(list(iterate_runs(store, [experiment_id], filter_string))) == count
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
    """Return the run with an id, deleted or not; None if the store has none that can be read."""
    try:
        return store.client.get_run(run_id)
    except MlflowException as error:
        if _UNREADABLE in str(error):
            store.left_out[run_id] = f"MLflow cannot read it: {first_line(error)}"
        elif not is_absent(error):
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
    live: dict[tuple[object, ...], bool] = {}

    def is_live(run: Run) -> bool:
        parent = run.data.tags.get(schema.PARENT)
        lease = Lease.read(run.data.tags)
        if lease is None:
            return False
        if parent is None or lease.is_live():
            return lease.is_live()
        key = (parent, lease.holder)
        if key not in live:
            try:
                holder = find_active(store, parent)
            except MlflowException as error:  # it may be in an experiment that others keep closed
                if not is_refused(error):
                    raise
                holder = None
            is_open = holder is not None and holder.info.status == RUNNING
            held = Lease.read(holder.data.tags) if holder is not None and is_open else None
            live[key] = held is not None and held.holder == lease.holder and held.is_live()
        return live[key]

    return is_live
