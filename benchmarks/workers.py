"""How long a search takes with one worker, two, and so on up to twice the cores.

    python -m benchmarks.workers [--repeats 3]

The coursework's 12 points, 2 epochs of 20,000 images, each search a process of its own with a new
SQLite store; the numbers of workers take turns. What is fastest here is what `--workers auto` has
to pick: one for each core.

Prints a table in Markdown; what is going on goes to standard error.
"""

import argparse
import os
import statistics
import sys

from rich.console import Console

from benchmarks.grid_search import POINTS, SEARCH, Measured, Size, Way, machine, measure
from fmnist_tracking import runtime
from fmnist_tracking.machine import cores

SIZE = Size(limit=24_000, epochs=2)


def main() -> None:
    """Measure each number of workers in turn, and print the table."""
    parser = argparse.ArgumentParser(description="Searches with several numbers of workers.")
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    console = Console(stderr=True)
    ways = {
        workers: Way(
            name=f"{workers}",
            arguments=(*SEARCH, "--workers", str(workers)),
            runs=POINTS + 1,
            models=POINTS,
        )
        for workers in range(1, 2 * cores() + 1)
    }
    taken: dict[int, list[Measured]] = {workers: [] for workers in ways}
    with console.status("searching") as status:
        for turn in range(repeats):
            for workers, way in ways.items():
                last = measure(way, sys.executable, SIZE, None, environment, status)
                taken[workers].append(last)
                console.print(f"{turn + 1}/{repeats} {workers}: {last.seconds:.1f} s", markup=False)
    print(machine(), end="\n\n")
    print("| workers | threads of each | seconds, median (range) | memory (MiB) |")
    print("|---:|---:|---:|---:|")
    for workers, of in taken.items():
        seconds = sorted(one.seconds for one in of)
        memory = max(one.memory for one in of)
        print(
            f"| {workers} | {runtime.threads_of(workers)} | {statistics.median(seconds):.1f} "
            f"({seconds[0]:.1f} to {seconds[-1]:.1f}) | {memory:,.0f} |"
        )


if __name__ == "__main__":
    main()
