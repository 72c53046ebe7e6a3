"""Runs as anybody may write them into a store that others use too."""

import contextlib
import json
import sqlite3
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from fmnist_tracking.tracking import schema

EDGES = ("abc", 1.5, -(2**63), -1, 0, 1, 2**31, 2**53, 2**63 - 1)
PLACES = ("", "x", "file://[", "/nowhere", "s3://a/b", "mlflow-artifacts:/")
ROLES = (schema.SEARCH, schema.TRIAL, schema.TRAIN, "sweep", "")
HOSTILE = ("", "\x1b[2J", "$\\frac$", "=cmd()", "a\nb", "\u202e", "'; --", "x" * 4000, "\x00")
NUMBERS = ("nan", "inf", "-1", "0", "1e400", "007", "None", "1_0", "9" * 5000, "٣")
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
json_texts = _json.map(json.dumps) | st.sampled_from(["[" * 5000, "{", '{"trials": 3}'])
texts = (
    st.text(max_size=30)
    | st.sampled_from(HOSTILE)
    | st.sampled_from(NUMBERS)
    | json_texts
    | st.text(string.hexdigits.lower(), min_size=64, max_size=64)
)
TAGS = sorted(
    value
    for name, value in vars(schema).items()
    if isinstance(value, str) and value.startswith(("fmnist.", "mlflow.")) and name != "ROLE"
)
PARAMS = (
    *("filters", "kernel_size", "epochs", "seed", "grid.filters", "grid.strides", "grid.nothing"),
    *("base.epochs", "base.filters", "split.seed", "split.limit", "padding"),
    *("split.train_images", "split.classes"),
)
METRICS = (
    *("best_val_accuracy", "best_epoch", "best_val_loss", "train_seconds", "model_parameters"),
    *("finished_points", "loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds"),
)
FILES = (schema.SEARCH_FILE, schema.REUSED_FILE, schema.AXES_FILE, schema.HISTORY_FILE)


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A run, as one draws it; `columns` are those of the table that no client would write so.

    It is `like` one of ours but for what else it has, and for what it `lacks`.
    """

    like: str | None = None
    lacks: frozenset[str] = frozenset()
    tags: Mapping[str, str | None] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    deleted: bool = False


def _some(keys: Any, values: Any) -> Any:
    return st.dictionaries(st.sampled_from(keys), values, max_size=6)


_columns = st.fixed_dictionaries(
    {},
    optional={
        "name": st.none() | st.sampled_from([*HOSTILE, b"\xff\x00"]),
        "user_id": st.none() | st.sampled_from(HOSTILE),
        "start_time": st.none() | st.sampled_from(EDGES),
        "end_time": st.none() | st.sampled_from(EDGES),
        "status": st.none()
        | st.sampled_from(["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]),
        "artifact_uri": st.sampled_from(PLACES),
    },
)
strangers = st.builds(
    Stranger,
    like=st.none() | st.sampled_from(ROLES[:3]),
    lacks=st.frozensets(st.sampled_from([*TAGS, *PARAMS, *METRICS]), max_size=4),
    tags=st.builds(
        lambda role, others: {schema.ROLE: role, **others},
        st.sampled_from(ROLES),
        _some(TAGS, st.none() | texts),
    )
    | _some(TAGS, texts),
    params=_some(PARAMS, texts),
    metrics=_some(METRICS, st.floats() | st.sampled_from([0.0, 0.99, 1.0, 2.0**60])),
    files=_some(FILES, json_texts),
    columns=_columns,
    deleted=st.sampled_from([False, False, False, True]),
)


def write(
    client: MlflowClient,
    database: Path,
    experiment: str,
    stranger: Stranger,
    ours: Mapping[str, Run],
) -> str:
    """Write a run into a SQLite store, and return its id; what the store refuses is left out.

    `ours` has a good run of each role, which it may be like.
    """
    like = ours[stranger.like].data if stranger.like else None
    tags = {**(like.tags if like else {}), **stranger.tags}
    params = {**(like.params if like else {}), **stranger.params}
    metrics = {**(like.metrics if like else {}), **stranger.metrics}
    # Else it were a trial of the good search, one more of which there may be.
    lacks = {*stranger.lacks, *({schema.PARENT} - stranger.tags.keys())}
    run_id = str(client.create_run(experiment).info.run_id)
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as rows, rows:
        rows.executemany(
            "INSERT OR REPLACE INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
            [(name, _storable(text), run_id) for name, text in tags.items() if name not in lacks],
        )
        rows.executemany(
            "INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)",
            [(name, _storable(text), run_id) for name, text in params.items() if name not in lacks],
        )
    for name, number in metrics.items():
        if name not in lacks:
            with contextlib.suppress(MlflowException):
                client.log_batch(run_id, [Metric(name, number, 0, 1)])
    for name, text in stranger.files.items():
        client.log_text(run_id, text, name)
    if stranger.deleted:
        client.delete_run(run_id)
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as rows, rows:
        if stranger.like and "status" not in stranger.columns:
            rows.execute("UPDATE runs SET status = 'FINISHED' WHERE run_uuid = ?", (run_id,))
        for column, value in stranger.columns.items():
            with contextlib.suppress(sqlite3.IntegrityError):
                rows.execute(f"UPDATE runs SET {column} = ? WHERE run_uuid = ?", (value, run_id))
    return run_id


def _storable(text: str | None) -> str | None:
    return None if text is None else text.encode(errors="replace").decode()[:7000]
