"""What the shell offers at the Tab key. It makes no store, upgrades none, and fails in silence."""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote

import typer

import fmnist_tracking as ft
from fmnist_tracking.config import FIELDS, SEARCH_FLAGS
from fmnist_tracking.objective import OBJECTIVES
from fmnist_tracking.redact import printable
from fmnist_tracking.search_space import ORACLES
from fmnist_tracking.split_config import PROTOCOLS

_SQLITE = "sqlite:///"
_DEFAULT_STORE = "sqlite:///mlflow.db"
# As many runs are offered, each with so many characters of its name.
_MOST_RUNS, _LONGEST = 50, 100
_LOCK_SECONDS = 0.2
# MLflow takes seconds to be loaded; what a database in a file holds can be read without it.
_RUNS = """
    SELECT runs.run_uuid, runs.name, runs.status FROM runs
    JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = 'fmnist.role'
    WHERE runs.lifecycle_stage = 'active' AND runs.run_uuid GLOB ?
    ORDER BY runs.start_time DESC LIMIT ?
"""


def protocols() -> list[str]:
    """Return the names of the protocols."""
    return list(PROTOCOLS)


def objectives() -> list[str]:
    """Return what points can be compared by."""
    return list(OBJECTIVES)


def oracles() -> list[str]:
    """Return the ways to choose points."""
    return list(ORACLES)


def axis_names() -> list[str]:
    """Return the settings without an option of their own in `search`, each ready for its values."""
    return [f"{name}=" for name in FIELDS if name not in SEARCH_FLAGS]


def run_ids(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return `latest`, `best` and the newest runs of the store in use, each with its name."""
    words = [
        ("latest", "the newest search or training"),
        ("best", "the latest search's best"),
        ("best-of-all", "the best of all searches on the same images"),
        ("champion", "what `promote` chose"),
    ]
    logging.disable()  # a line would come between what is being typed; this process ends with it
    with contextlib.suppress(Exception):
        named = context.params.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
        words += _runs(named or _DEFAULT_STORE, incomplete)
    return words


def _runs(uri: str, incomplete: str) -> list[tuple[str, str]]:
    if uri.startswith(("http://", "https://")):
        runs = [run for run in ft.list_runs(tracking_uri=uri) if run.run_id.startswith(incomplete)]
        found = [(run.run_id, run.name, run.status) for run in runs[:_MOST_RUNS]]
        return _candidates(found)
    path = Path(unquote(uri.removeprefix(_SQLITE)))
    if not uri.startswith(_SQLITE) or (not incomplete.isalnum() and incomplete):
        return []
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, _LOCK_SECONDS, uri=True)) as rows:
        found = rows.execute(_RUNS, (f"{incomplete}*", _MOST_RUNS)).fetchall()
    return _candidates(found)


def _candidates(runs: Iterable[tuple[str, str, str]]) -> list[tuple[str, str]]:
    return [(run_id, printable(f"{name} {status}", _LONGEST)) for run_id, name, status in runs]
