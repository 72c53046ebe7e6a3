"""How long each command takes to answer, and a search to begin to train.

    python -m benchmarks.start_up [--repeats 5]

Each command is a process of its own, timed from its start to its end; the commands take turns. The
store is an SQLite file with one finished search of four points. The time to a search's first
training step is that until it says that its first epoch, of 500 images, has ended, which is more;
it is measured in a new, empty folder too, because there MLflow makes its tables first. Of `ui`, it
is the time until MLflow's page answers. Libraries and data are in the file system's cache, as they
are from the second time on.

Prints a table in Markdown.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from rich.console import Console

from benchmarks.grid_search import ROOT, machine, spread

GRID = ("--filters", "4,8", "--kernel-sizes", "3", "--hidden-units", "8")
SEARCH = ("search", *GRID, "--limit", "600", "--epochs", "1")
TRAIN = ("train", "--filters", "4", "--hidden-units", "8", "--limit", "600", "--epochs", "1")
COMMANDS = {
    "`--help`": ("--help",),
    "`search --help`": ("search", "--help"),
    "`runs`": ("runs",),
    "`best`": ("best",),
    "`search`, nothing left to train": SEARCH,
    "`search --dry-run`": (*SEARCH, "--dry-run"),
    "`train`, one epoch of 500 images": (*TRAIN, "--fresh"),
    "`data`": ("data",),
    "`doctor`": ("doctor",),
    "`promote`": ("promote", "--run-id", "best", "--force"),
    "`activations`": ("activations", "--run-id", "best"),
    "`predictions`": ("predictions", "--run-id", "best"),
    "`predict`": ("predict", "--run-id", "best", "picture.png"),
    "`report`": ("report", "--run-id", "latest"),
}
UI = "`ui`, until MLflow's page answers"
FIRST_STEP = "`search`, until a first epoch of 500 images has ended"
FIRST_STEP_NEW = "the same, in an empty folder"

console = Console(stderr=True)


def answered(words: tuple[str, ...], folder: Path) -> float:
    """Return the seconds that a command takes."""
    start = time.perf_counter()
    with started(words, folder) as process:
        _, said = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{said}")
    return time.perf_counter() - start


def begun(folder: Path) -> float:
    """Return the seconds until a search, done anew, says that a first epoch has ended."""
    start = time.perf_counter()
    with started((*SEARCH, "--fresh"), folder) as process:
        assert process.stderr is not None
        seconds = None
        for line in process.stderr:
            if seconds is None and "  loss " in line:
                seconds = time.perf_counter() - start
    if process.returncode or seconds is None:
        sys.exit("the search failed")
    return seconds


def served(folder: Path) -> float:
    """Return the seconds until MLflow's page answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    with started(("ui", "--port", str(port)), folder) as process:
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/"):
                    seconds = time.perf_counter() - start
                    process.terminate()
                    process.communicate()
                    return seconds
            except OSError:
                time.sleep(0.02)
    sys.exit("no page was served")


def started(words: tuple[str, ...], folder: Path) -> "subprocess.Popen[str]":
    """Begin a command."""
    return subprocess.Popen(
        [sys.executable, "-m", "fmnist_tracking", *words],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(folder: Path) -> dict[str, str]:
    """Return that of a command: the usual store, checkpoints in the folder."""
    usual = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return {**usual, "PYTHONPATH": str(ROOT), "FMNIST_STATE_DIR": str(folder / "state")}


def write_picture(path: Path) -> None:
    """Save a test image as a person's picture."""
    from PIL import Image

    from fmnist_tracking.data import load_dataset

    Image.fromarray(load_dataset().test_images[0]).save(path)


def main() -> None:
    """Measure all commands in turn, and print the table."""
    parser = argparse.ArgumentParser(description="How long commands take to answer.")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    taken: dict[str, list[float]] = {
        name: [] for name in (*COMMANDS, UI, FIRST_STEP, FIRST_STEP_NEW)
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "store")
        folder.mkdir()
        answered(SEARCH, folder)
        write_picture(folder / "picture.png")
        for turn in range(repeats):
            for command, words in COMMANDS.items():
                taken[command].append(answered(words, folder))
            taken[UI].append(served(folder))
            taken[FIRST_STEP].append(begun(folder))
            new = Path(name, f"new{turn}")
            new.mkdir()
            taken[FIRST_STEP_NEW].append(begun(new))
            console.print(f"{turn + 1}/{repeats}", markup=False)
    print(machine(), end="\n\n")
    print(f"| command | seconds, median of {repeats} (range) |\n|---|---:|")
    for command, seconds in taken.items():
        print(f"| {command} | {spread(seconds, '.2f')} |")


if __name__ == "__main__":
    main()
