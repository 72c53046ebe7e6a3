"""The same 12 points with KerasTuner, with MLflow's autologging, and with this package.

    python -m benchmarks.against_keras_tuner [--repeats 3] [--autolog-repeats 1]

The coursework's grid, one epoch a point, on the same 2,000 images for training and 400 for
validation, batches of 32. Each way is a program started anew in an empty folder with a new SQLite
store, and is timed from its start to its end: imports, the making of the store and the last write
included. The ways take turns, so that whatever else the machine does hits all of them. Before that,
libraries are loaded once, so that nobody pays for reading them from the disk.

`stock.py` is the program of the first two ways. It is given the images in a file; this package
finds, verifies and splits the whole data set each time, from the decoded copy in the user's cache.
Besides the settings of TensorFlow, this package keeps checkpoints, the learning curves and the best
epoch's model of each trial, and KerasTuner the best epoch's weights.

Prints a table in Markdown; what is going on goes to standard error. Memory is the largest sum of
the resident memory of a way's processes, looked at twice a second; what two processes share counts
twice. Needs `pip install '.[benchmarks]'`.
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
LIMIT = 2400
SAMPLE_SECONDS = 0.5
ROOT = Path(__file__).parent.parent
SEARCH = ("fmnist_tracking", "search", "--limit", str(LIMIT), "--epochs", "1", "--json")
SHOWN = ("python", "tensorflow", "keras", "keras-tuner", "mlflow")

console = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of training the grid.

    Attributes:
        name: for the table.
        arguments: of `python -m`; IMAGES stands for the file of images.
        is_tracked: whether it leaves runs and models in MLflow.
    """

    name: str
    arguments: tuple[str, ...]
    is_tracked: bool = True


AUTOLOG = Way(
    name="KerasTuner, `mlflow.tensorflow.autolog()`",
    arguments=("benchmarks.stock", "IMAGES", "--autolog"),
)
UNTRACKED = Way(
    name="KerasTuner, not tracked", arguments=("benchmarks.stock", "IMAGES"), is_tracked=False
)
OURS = Way(name="`fmnist-track search`", arguments=SEARCH)
OURS_AUTO = Way(
    name="`fmnist-track search --workers auto`", arguments=(*SEARCH, "--workers", "auto")
)
# The slow one last: a fault of the others shows before it has taken minutes.
WAYS = (UNTRACKED, OURS, OURS_AUTO, AUTOLOG)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One timing: wall-clock seconds, memory in MiB, and the best validation accuracy."""

    seconds: float
    memory: float
    accuracy: float


def measure(way: Way, images: Path, environment: Mapping[str, str], status: Status) -> Measured:
    """Run a way in an empty folder, and see that it did what it should.

    Args:
        way: which.
        images: the file for `stock`.
        environment: of the process.
        status: shows the seconds while it runs.

    Raises:
        SystemExit: it failed, or did not train all points.
    """
    arguments = [str(images) if word == "IMAGES" else word for word in way.arguments]
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
                [sys.executable, "-m", *arguments],
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
    """The best validation accuracy, when all points are trained and tracked as they should be."""
    if way.arguments[0] == "benchmarks.stock":
        content = json.loads((folder / "result.json").read_text())
        points, accuracy = content["points"], content["best_val_accuracy"]
        assert content["is_stock"]
    else:
        content = json.loads((folder / "output.txt").read_text())
        points, accuracy = content["finished"], content["best"]["val_accuracy"]
    assert points == POINTS, f"{way.name} trained {points} points"
    if way.is_tracked:
        assert _tracked(folder / "mlflow.db") == (POINTS, POINTS), f"{way.name} lacks runs"
    return float(accuracy)


def _tracked(store: Path) -> tuple[int, int]:
    """How many finished child runs a store has, and how many models."""
    with closing(sqlite3.connect(store)) as database:
        (runs,) = database.execute(
            "SELECT COUNT(*) FROM runs JOIN tags USING (run_uuid) "
            "WHERE key = 'mlflow.parentRunId' AND status = 'FINISHED'"
        ).fetchone()
        (models,) = database.execute("SELECT COUNT(*) FROM logged_models").fetchone()
    return runs, models


def write_images(path: Path) -> None:
    """Keep the split that the search uses, for the programs that do not use this package."""
    from fmnist_tracking.config import SplitConfig
    from fmnist_tracking.data import load_dataset, split_dataset

    split = split_dataset(load_dataset(), SplitConfig(limit=LIMIT))
    import numpy as np

    np.savez(
        path,
        train_images=split.train_images,
        train_labels=split.train_labels,
        validation_images=split.validation_images,
        validation_labels=split.validation_labels,
    )


def table(measured: Mapping[Way, list[Measured]]) -> str:
    """The measurements in Markdown, and how the ways compare."""
    medians = {way: statistics.median(m.seconds for m in of) for way, of in measured.items() if of}
    lines = [
        "| way | seconds, median | range | times measured | times `search` | memory (MiB) "
        "| best validation accuracy |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way in sorted(medians, key=medians.__getitem__, reverse=True):
        of = measured[way]
        seconds = [m.seconds for m in of]
        # A search with two workers trains with other numbers of threads: last digits differ.
        accuracies = sorted({f"{m.accuracy:.4f}" for m in of})
        lines.append(
            f"| {way.name} | {medians[way]:.1f} | {min(seconds):.1f} to {max(seconds):.1f} "
            f"| {len(of)} | {medians[way] / medians[OURS]:.2f} "
            f"| {max(m.memory for m in of):,.0f} | {', '.join(accuracies)} |"
        )
    if AUTOLOG in medians:
        ratio = medians[AUTOLOG] / medians[OURS]
        lines += ["", f"Autologging / `search`: {ratio:.1f}"]
        ratio = medians[AUTOLOG] / medians[OURS_AUTO]
        lines += ["", f"Autologging / `search --workers auto`: {ratio:.1f}"]
    ratio = medians[UNTRACKED] / medians[OURS]
    lines += ["", f"Not tracked / `search`: {ratio:.2f}"]
    ratio = medians[UNTRACKED] / medians[OURS_AUTO]
    lines += ["", f"Not tracked / `search --workers auto`: {ratio:.2f}"]
    return "\n".join(lines)


def machine() -> str:
    """What it was measured on, in a line."""
    versions = [platform.python_version(), *(version(name) for name in SHOWN[1:])]
    named = ", ".join(f"{name} {number}" for name, number in zip(SHOWN, versions, strict=True))
    return f"{psutil.cpu_count()} cores of {_processor()}; {named}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def main() -> None:
    """Measure all ways in turn, and print the table."""
    # Before this package is imported, which sets variables that the others must not have.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    parser = argparse.ArgumentParser(description="KerasTuner, autologging and this package.")
    parser.add_argument("--repeats", type=int, default=3, help="of each way but autologging")
    parser.add_argument(
        "--autolog-repeats", type=int, default=1, help="of autologging, which takes minutes; or 0"
    )
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    repeats = {way: options.autolog_repeats if way is AUTOLOG else options.repeats for way in WAYS}
    measured: dict[Way, list[Measured]] = {way: [] for way in WAYS}
    print(machine(), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory() as folder, console.status("preparing") as status:
        images = Path(folder, "images.npz")
        write_images(images)
        warm = "import keras_tuner, matplotlib.figure, mlflow.tensorflow, sklearn.model_selection"
        subprocess.run(
            [sys.executable, "-c", warm], env=environment, check=True, stderr=subprocess.DEVNULL
        )
        for turn in range(max(repeats.values())):
            for way in WAYS:
                if turn < repeats[way]:
                    last = measure(way, images, environment, status)
                    measured[way].append(last)
                    console.print(
                        f"{turn + 1}/{repeats[way]} {way.name}: {last.seconds:.1f} s", markup=False
                    )
    print(table(measured))


if __name__ == "__main__":
    main()
