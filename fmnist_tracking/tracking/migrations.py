"""Which version of MLflow a database belongs to, read without changing it.

When MLflow itself opens a database, it upgrades an older one, and creates its tables in one that
belongs to another program.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow.store.db.utils import _upgrade_db
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from fmnist_tracking.errors import TrackingError, setting
from fmnist_tracking.redact import without_user
from fmnist_tracking.results import RUNNING
from fmnist_tracking.tracking import schema, sqlite_store
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.tracking.locations import sqlite_file, sqlite_uri

_SECONDS = 5
_OPEN_RUNS = (
    "SELECT runs.run_uuid, tags.value FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid "
    f"WHERE runs.status = '{RUNNING}' AND tags.key = '{schema.LEASE}'"
)
# The MLflow releases with each revision of the tables; only releases that may still be in use.
_RELEASES = {
    "0584bdc529eb": "2.22",
    "6953534de441": "3.0 or 3.1",
    "bda7b8c39065": "3.1",
    "770bee3ae1dd": "3.2",
    "1a0cddfcaa16": "3.3",
    "71994744cf8e": "3.4",
    "bf29a5ff90ea": "3.5 to 3.7",
    "1bd49d398cd23": "3.8",
    "d3e4f5a6b7c8": "3.9",
    "1b5f0d9ad7c1": "3.10",
    "c3d6457b6d8a": "3.11",
    "7d34483879f0": "3.12",
    "da6fb0208061": "3.13",
    "b7e4c1a90f23": "3.14",
    "6f8d9c3b2a1e": "3.15",
    "b7e2c1a4d9f3": "3.16",
    "dc11669786a5": "3.17",
}


def require_current(uri: str, *, upgrade: bool = False) -> bool:
    """Refuse a database that the installed MLflow would change, or cannot read.

    With `upgrade`, an older one is upgraded instead.

    Returns:
        Whether MLflow's tables exist; an empty database has none.

    Raises:
        TrackingError: the database is of an older or newer MLflow, or of another program.
        SQLAlchemyError: the database cannot be reached.
    """
    path = sqlite_file(uri)
    if path is not None and sqlite_store.is_yet_to_be_made(path):
        return False
    tables, revision = _look(uri)
    if not tables:
        return False
    name = str(path or without_user(uri))
    if "experiments" not in tables or revision is None:
        if path is None:  # a server's database may hold other tables beside MLflow's
            return False
        raise TrackingError(
            f"{name} is a SQLite database, but not of MLflow: it has the tables "
            f"{', '.join(sorted(tables)[:3])}{', …' if len(tables) > 3 else ''}. Name another "
            f"file with {setting('tracking_uri')}."
        )
    script = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    head = script.get_current_head()
    if head is None or revision == head:
        return True
    installed = f"the installed one is {mlflow.__version__}"
    try:
        script.get_revision(revision)
    except CommandError:
        raise TrackingError(
            f"The MLflow store {name} is of a newer MLflow (its tables' revision is {revision}); "
            f"{installed} and cannot read it. Install a newer one: pip install --upgrade mlflow. "
            f"Or name another store with {setting('tracking_uri')}."
        ) from None
    if not upgrade:
        raise TrackingError(
            f"The MLflow store {name} is of {_release(script, revision)}, {installed}. To use it "
            "here it must be upgraded, and then the older MLflow cannot open it any more: "
            "`fmnist-track doctor --upgrade-store` does it and keeps a copy. Or name another store "
            f"with {setting('tracking_uri')}."
        )
    _upgrade(uri, path, head)
    return True


def _release(script: ScriptDirectory, revision: str) -> str:
    """Return the MLflow release that a known revision belongs to, or that it follows."""
    if revision in _RELEASES:
        return f"MLflow {_RELEASES[revision]}"
    for older in script.iterate_revisions(revision, "base"):
        if older.revision in _RELEASES:
            return f"a release of MLflow after {_RELEASES[older.revision]}"
    return "a release of MLflow before 2.22"


def _look(uri: str) -> tuple[set[str], str | None]:
    """Return the names of the tables, and the revision of MLflow's tables."""
    path = sqlite_file(uri)
    if path is not None:
        return sqlite_store.look(path)
    with _engine(uri).connect() as opened:
        tables = set(inspect(opened).get_table_names())
        return tables, MigrationContext.configure(opened).get_current_revision()


def _engine(uri: str) -> Engine:
    arguments = {"connect_timeout": _SECONDS} if uri.startswith(("postgresql", "mysql")) else {}
    return create_engine(uri, poolclass=NullPool, connect_args=arguments)


def _upgrade(uri: str, path: Path | None, head: str) -> None:
    """Do what `mlflow db upgrade` does.

    A SQLite file is replaced in one step, so that an interruption does no harm.
    """
    if path is None:
        engine = _engine(uri)
        with engine.connect() as opened:
            _require_no_live_run(opened.execute(text(_OPEN_RUNS)))
        _upgrade_db(engine)  # type: ignore[no-untyped-call]
        return
    with sqlite_store.held(path) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if revision == head:  # another process was faster
            return
        _require_no_live_run(connection.execute(_OPEN_RUNS))
        sqlite_store.copy(connection, path.with_name(f"{path.name}.{revision}.bak"))
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
            new = Path(folder).resolve() / path.name
            sqlite_store.copy(connection, new)
            engine = create_engine(sqlite_uri(new), poolclass=NullPool)
            _upgrade_db(engine)  # type: ignore[no-untyped-call]
            sqlite_store.fill(connection, new)


def _require_no_live_run(rows: Iterable[Any]) -> None:
    for run_id, text_of_lease in rows:
        lease = Lease.read({schema.LEASE: text_of_lease})
        if lease is not None and lease.is_live():
            raise TrackingError(run_in_progress(run_id))


def run_in_progress(run_id: str) -> str:
    """Return a line that says that a store cannot change while one of its runs is in progress."""
    return (
        f"The run {run_id[:8]} of this store is in progress. Wait for it to end, or stop it, "
        "and give this command again."
    )
