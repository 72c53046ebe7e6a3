"""The same 12 points with this package, KerasTuner, Optuna and Ray Tune, from start to end.

    python -m benchmarks.grid_search [--size short|long] [--repeats 3] [--peers PYTHON]

The coursework's grid, batches of 32: short is one epoch a point on 2,000 images, long is two
epochs on all 50,000; validation on 400 and 10,000. Each way is a program started anew in an empty
folder with a new SQLite store, and is timed from its start to its end: imports, the making of the
store and the last write included. The ways take turns, so that whatever else the machine does hits
all of them. Before that, libraries are loaded once, so that nobody pays for reading them from the
disk.

The programs of the other ways are `with_keras_tuner.py`, `with_optuna.py` and `with_ray.py`. They
are given the images in a file; this package finds and verifies the whole data set each time, from
the copies in the user's cache. Optuna and Ray Tune are run by the Python of another
environment, which has them; without `--peers` they are left out.

What each way keeps differs. This package: the metrics of each epoch and of the machine, learning
curves, scores by class, the best epoch's model, checkpoints. Autologging: metrics, the model, a
checkpoint, TensorBoard's files. KerasTuner by itself: the best epoch's weights, in its own folder.
Optuna's callback: the best accuracy. Ray's: the metrics of each epoch.

Prints a table in Markdown; what is going on goes to standard error. Memory is the largest sum of
the resident memory of a way's processes, looked at twice a second; what processes share counts for
each of them. Needs `pip install '.[benchmarks]'`.
"""

import argparse
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console
from rich.status import Status

POINTS = 12
SAMPLE_SECONDS = 0.5
ROOT = Path(__file__).parent.parent
SEARCH = ("fmnist_tracking", "search", "--epochs", "EPOCHS", "--json")
SHOWN_PEERS = ("optuna", "ray", "torch")
SHOWN = ("python", "tensorflow", "keras", "keras-tuner", "mlflow")

console = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is trained."""

    limit: int | None  # images for training and validation together, None for all
    epochs: int  # of each point


SIZES = {"short": Size(limit=2400, epochs=1), "long": Size(limit=None, epochs=2)}


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of training the grid, and how many finished runs and models it leaves in MLflow."""

    name: str
    # Of `python -m`; IMAGES stands for the file of images, EPOCHS for their number.
    arguments: tuple[str, ...]
    runs: int = POINTS
    models: int = 0
    is_peer: bool = False  # whether it needs the other environment

    @property
    def is_ours(self) -> bool:
        """Return whether it is a search of this package."""
        return self.arguments[0] == "fmnist_tracking"


STOCK = ("benchmarks.with_keras_tuner", "IMAGES", "EPOCHS")
AUTOLOG = Way(
    name="KerasTuner, `mlflow.tensorflow.autolog()`",
    arguments=(*STOCK, "--autolog"),
    runs=POINTS + 1,
    models=POINTS,
)
UNTRACKED = Way(name="KerasTuner, not tracked", arguments=STOCK, runs=0)
OPTUNA = Way(
    name="Optuna, `MLflowCallback`",
    arguments=("benchmarks.with_optuna", "IMAGES", "EPOCHS"),
    is_peer=True,
)
RAY = Way(
    name="Ray Tune, `MLflowLoggerCallback`",
    arguments=("benchmarks.with_ray", "IMAGES", "EPOCHS"),
    is_peer=True,
)
OURS = Way(name="`fmnist-track search`", arguments=SEARCH, runs=POINTS + 1, models=POINTS)
OURS_ONE = Way(
    name="`fmnist-track search --workers 1`",
    arguments=(*SEARCH, "--workers", "1"),
    runs=POINTS + 1,
    models=POINTS,
)
# The slow one last: a fault of the others shows before it has taken minutes.
WAYS = (OURS, OURS_ONE, UNTRACKED, OPTUNA, RAY, AUTOLOG)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One timing: wall-clock seconds, memory in MiB, and the best validation accuracy."""

    seconds: float
    memory: float
    accuracy: float


def measure(
    way: Way,
    python: str,
    size: Size,
    images: Path,
    environment: Mapping[str, str],
    status: Status,
) -> Measured:
    """Run a way in an empty folder, and see that it trained all points."""
    words = {"IMAGES": str(images), "EPOCHS": str(size.epochs)}
    arguments = [words.get(word, word) for word in way.arguments]
    if way.is_ours and size.limit is not None:
        arguments += ["--limit", str(size.limit)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH")))),
            "FMNIST_STATE_DIR": str(folder / "state"),
        }
        with (
            (folder / "output.txt").open("wb") as output,
            (folder / "errors.txt").open("wb") as errors,
        ):
            start = time.perf_counter()
            process = subprocess.Popen(
                [python, "-m", *arguments],
                cwd=folder,
                env={**environment, **places},
                stdout=output,
                stderr=errors,
            )
            with _watched(process, way, status) as most:
                process.wait()
                seconds = time.perf_counter() - start
        if process.returncode:
            said = (folder / "errors.txt").read_text(errors="replace")
            sys.exit(f"{way.name} ended with exit status {process.returncode}:\n{said[-4000:]}")
        return Measured(
            seconds=seconds, memory=most[0] / 2**20, accuracy=_best_accuracy(way, folder)
        )


@contextmanager
def _watched(process: "subprocess.Popen[bytes]", way: Way, status: Status) -> Iterator[list[int]]:
    """Watch the memory of a process and its children; the list holds the most, in bytes."""
    most, ended, start = [0], threading.Event(), time.monotonic()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            most[0] = max(most[0], _resident(process.pid))
            status.update(f"{way.name}: {time.monotonic() - start:.0f} s")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()
        process.kill()


def _resident(pid: int) -> int:
    total = 0
    try:
        first = psutil.Process(pid)
        for process in (first, *first.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:  # it has just ended
        pass
    return total


def _best_accuracy(way: Way, folder: Path) -> float:
    """Return the best validation accuracy, if all points are trained and tracked."""
    if way.is_ours:
        content = json.loads((folder / "output.txt").read_text())
        points, accuracy = content["finished"], content["best"]["val_accuracy"]
    else:
        content = json.loads((folder / "result.json").read_text())
        points, accuracy = content["points"], content["best_val_accuracy"]
        assert content["is_stock"]
    assert points == POINTS, f"{way.name} trained {points} points"
    if way.runs:
        found = _tracked(folder / "mlflow.db")
        assert found == (way.runs, way.models), f"{way.name} left {found} runs and models"
    return float(accuracy)


def _tracked(store: Path) -> tuple[int, int]:
    """Count the finished runs of a store, and its models."""
    with closing(sqlite3.connect(store)) as database:
        (runs,) = database.execute("SELECT COUNT(*) FROM runs WHERE status = 'FINISHED'").fetchone()
        (models,) = database.execute("SELECT COUNT(*) FROM logged_models").fetchone()
    return runs, models


def write_images(path: Path, limit: int | None) -> None:
    """Keep the split that the search uses, for the programs that do not use this package."""
    import numpy as np

    from fmnist_tracking.data import load_dataset, split_dataset
    from fmnist_tracking.split_config import SplitConfig

    np.savez(path, **vars(split_dataset(load_dataset(), SplitConfig(limit=limit))))


def load(python: str, modules: str, environment: Mapping[str, str]) -> None:
    """Import libraries once, so that they are in the file system's cache."""
    subprocess.run(
        [python, "-c", f"import {modules}"], env=environment, check=True, stderr=subprocess.DEVNULL
    )


def table(measured: Mapping[Way, list[Measured]]) -> str:
    """Return the measurements in Markdown, and how the ways compare with ours in the same turn."""
    lines = [
        "| way | seconds, median (range) | times measured | times ours, median (range) "
        "| memory (MiB) | best validation accuracy |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    taken = [(way, of) for way, of in measured.items() if of]
    for way, of in sorted(taken, key=lambda item: -item[1][0].seconds):
        ratios = [one.seconds / ours.seconds for one, ours in zip(of, measured[OURS], strict=False)]
        # Searches with other numbers of threads differ in last digits.
        accuracies = sorted({f"{m.accuracy:.4f}" for m in of})
        seconds = spread([m.seconds for m in of], ".1f")
        lines.append(
            f"| {way.name} | {seconds} | {len(of)} | {spread(ratios, '.2f')} "
            f"| {max(m.memory for m in of):,.0f} | {', '.join(accuracies)} |"
        )
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    """Return the median of some measurements and their range, each in a form such as `.2f`."""
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"


def machine(peers: str | None = None) -> str:
    """Return what it was measured on, in a line; with the versions in the other environment."""
    from fmnist_tracking.environment import processor

    versions = [platform.python_version(), *(version(name) for name in SHOWN[1:])]
    named = ", ".join(f"{name} {number}" for name, number in zip(SHOWN, versions, strict=True))
    others = ""
    if peers is not None:
        code = (
            "import importlib.metadata as m, sys\n"
            "print(*(f', {name} {m.version(name)}' for name in sys.argv[1:]), sep='', end='')"
        )
        command = [peers, "-c", code, *SHOWN_PEERS]
        others = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return f"{psutil.cpu_count()} cores of {processor()}; {named}{others}"


def main() -> None:
    """Measure all ways in turn, and print the table."""
    # Before this package is imported, which sets variables that the others must not have.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    parser = argparse.ArgumentParser(description="The same grid search, done in several ways.")
    parser.add_argument("--size", choices=SIZES, default="short", help="how much is trained")
    parser.add_argument("--repeats", type=int, default=3, help="of each way but autologging")
    parser.add_argument(
        "--autolog-repeats", type=int, default=1, help="of autologging, which takes minutes; or 0"
    )
    parser.add_argument(
        "--peers", metavar="PYTHON", help="of the environment with Optuna and Ray Tune"
    )
    options = parser.parse_args()
    peers = options.peers and os.path.abspath(options.peers)  # each program has its own folder
    size = SIZES[options.size]
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    repeats = {way: options.repeats for way in WAYS}
    repeats[AUTOLOG] = options.autolog_repeats
    if peers is None:
        repeats[OPTUNA] = repeats[RAY] = 0
    measured: dict[Way, list[Measured]] = {way: [] for way in WAYS}
    print(machine(peers), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory() as folder, console.status("preparing") as status:
        images = Path(folder, "images.npz")
        write_images(images, size.limit)
        load(sys.executable, "keras_tuner, matplotlib.figure, mlflow.tensorflow", environment)
        if peers is not None:
            load(peers, "optuna_integration.mlflow, ray.tune, keras", environment)
        for turn in range(max(repeats.values())):
            for way in WAYS:
                if turn < repeats[way]:
                    python = peers if way.is_peer else sys.executable
                    last = measure(way, python, size, images, environment, status)
                    measured[way].append(last)
                    console.print(
                        f"{turn + 1}/{repeats[way]} {way.name}: {last.seconds:.1f} s", markup=False
                    )
    print(table(measured))


if __name__ == "__main__":
    main()
