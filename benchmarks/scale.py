"""How long it takes to look at a search of 1,000 trials: `python -m benchmarks.scale`.

Fills one experiment with a finished search of 1,000 trials of 25 epochs, in a SQLite store and
in PostgreSQL behind the server of `server/start.py`. One trial is real, the best; the rows of the
others are copies of it. Prints how long each command takes, as a process of its own.
"""

import contextlib
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, MetaData, create_engine, select

from fmnist_tracking.config import SearchSpace, SplitConfig, TrainingConfig

EPOCHS = 25
REPEATS = 5
SPACE = SearchSpace(
    axes={
        "filters": tuple(range(4, 14)),
        "hidden_units": tuple(range(8, 18)),
        "dropout": (0.1, 0.2, 0.3, 0.4, 0.5),
        "learning_rate": (0.001, 0.0003),
    }
)
BASE = TrainingConfig(strides=2, epochs=EPOCHS)
SPLIT = SplitConfig(limit=600)
COMMANDS = (
    ("runs",),
    ("runs", "--run-id", "latest"),
    ("best",),
    ("report", "--run-id", "latest"),
)
TABLES = ("runs", "tags", "params", "metrics", "latest_metrics")
_START = Path(__file__).parent.parent / "server" / "start.py"
_AT_ONCE = 20_000


def track(*words: str) -> str:
    """Run `fmnist-track`; give what it printed."""
    command = [sys.executable, "-m", "fmnist_tracking", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def fill(uri: str, database: str) -> None:
    """Make the search.

    Args:
        uri: of the store, which MLFLOW_TRACKING_URI names too.
        database: where that store keeps its tables.
    """
    from fmnist_tracking import environment, fingerprint, plots, tracking
    from fmnist_tracking.data import load_dataset

    points = SPACE.points(BASE)
    first = points[0]
    words = ["search", "--limit", "600", "--epochs", str(EPOCHS), "--kernel-sizes", "3", "--json"]
    words += ["--strides", "2", "--filters", str(first.filters)]
    words += ["--hidden-units", str(first.hidden_units)]
    words += [f"--axis={name}={getattr(first, name)}" for name in ("dropout", "learning_rate")]
    real = json.loads(track(*words))["trials"][0]["run_id"]
    digest = load_dataset().digest
    prints = [fingerprint.of_point(point, SPLIT, digest) for point in points]
    start = time.perf_counter()
    with tracking.open_store(uri) as store:
        experiment_id = store.experiment_id("fashion-mnist")
        facts = tracking.SearchInfo(
            name=f"search of {len(points)} points",
            space=SPACE,
            base=BASE,
            split=SPLIT,
            data=tracking.DatasetInfo(sha256=digest, name="Fashion-MNIST", source="here"),
            origin=tracking.Provenance(code=environment.code(), environment={}),
            grid=fingerprint.of_search(prints),
        )
        run_id = tracking.start_search(store, experiment_id, facts)
        old = store.client.get_run(real).data.tags["mlflow.parentRunId"]
        tracking.move_trials(store, [real], old, run_id)
        with create_engine(database).begin() as connection:
            metrics = _copy(connection, real, list(zip(points, prints, strict=True))[1:])
        search = tracking.read_search(store, tracking.find_run(store, run_id))
        tracking.finish_search(store, search, plots.png(plots.search_grid(search)))
        assert len(search.finished) == len(points)
        assert tracking.find_run(store, "best").run_id == real
    seconds = time.perf_counter() - start
    print(f"{len(points):,} trials, {metrics:,} rows of metrics, filled in {seconds:.0f} s")


def _copy(connection: Connection, like: str, points: list[tuple[TrainingConfig, str]]) -> int:
    """Copy a run for each point, all with a lower accuracy; give the number of metrics' rows."""
    known = MetaData()
    known.reflect(connection, only=TABLES)
    total = 0
    for name in TABLES:
        table = known.tables[name]
        found = connection.execute(select(table).where(table.c.run_uuid == like))
        rows = [dict(row) for row in found.mappings()]
        new: list[dict[str, Any]] = []
        for number, (config, point) in enumerate(points, start=1):
            child = uuid.uuid5(uuid.NAMESPACE_OID, f"{like} {number}").hex
            other = {"fmnist.point": point, **{a: str(getattr(config, a)) for a in SPACE.axes}}
            for row in rows:
                copied = {**row, "run_uuid": child}
                if row.get("key") in other:
                    copied["value"] = other[row["key"]]
                if row.get("key") == "best_val_accuracy":
                    copied["value"] = row["value"] * (1 - number / (2 * len(points)))
                new.append(copied)
        for at in range(0, len(new), _AT_ONCE):
            connection.execute(table.insert(), new[at : at + _AT_ONCE])
        if name == "metrics":
            total = len(new) + len(rows)
    return total


def measure(where: str) -> None:
    """Print how long each command takes."""
    for words in COMMANDS:
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            track(*words)
            seconds.append(time.perf_counter() - start)
        print(
            f"{where}: {' '.join(words):24} median {statistics.median(seconds):.2f} s, "
            f"{min(seconds):.2f} to {max(seconds):.2f} s",
            flush=True,
        )


@contextlib.contextmanager
def server(state: Path) -> Iterator[str]:
    """A server, set as the store to use; the address of its database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(_START), "--state", str(state), "--port", port]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if not any("Ctrl-C" in line for line in process.stdout):
            raise SystemExit("The server did not start.")
        for line in (state / "client.env").read_text().splitlines():
            name, _, value = shlex.split(line)[1].partition("=")
            os.environ[name] = value
        yield (state / "database.uri").read_text().strip()
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure, in new folders with new stores."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # for the user that PostgreSQL runs as, under root
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        os.environ["FMNIST_STATE_DIR"] = str(Path(folder, "state"))
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = uri = f"sqlite:///{folder}/mlflow.db"
        fill(uri, uri)
        measure("SQLite")
        with server(Path(folder, "server")) as database:
            fill(os.environ["MLFLOW_TRACKING_URI"], database)
            measure("server with PostgreSQL")


if __name__ == "__main__":
    main()
