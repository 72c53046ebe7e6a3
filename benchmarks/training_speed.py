"""Images a second in training: this package, plain Keras `fit`, PyTorch, and the limit.

    python -m benchmarks.training_speed [--repeats 3] [--images 12800] [--peers PYTHON]

Four points of the coursework's grid, batches of 32, float32. Each way trains in a program of its
own (`fitting.py`), all cores its own; the ways take turns, and a ratio is one of the same turn.
This package is measured twice: one training on all cores, as `train` and `search --workers 1` do
it, and as many at once as there are cores, each on one, as `search` does it; then their sum counts.

The limit is what the processor would train if all of it were one large product of matrices: the
GFLOP/s of such a product, measured in each turn, the most of the run, by the additions and
multiplications of a training step, three times those of the forward pass
(twice `NetworkSize.multiply_adds`).

Prints tables in Markdown; what is going on goes to standard error.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from benchmarks.grid_search import ROOT, machine, spread, write_images

POINTS = ((12, 3, 1), (36, 3, 1), (48, 3, 1), (48, 4, 2))
KERAS, TORCH, ONE, ALL = "Keras `fit`", "PyTorch", "one training", "one on each core"
# What TensorFlow does by itself on a processor without AVX-512.
KERAS_PLAIN = "Keras `fit`, oneDNN off"
LIMIT = "limit"
PRODUCT = "GFLOP/s"

console = Console(stderr=True)


def rates(
    python: str, words: list[str], environment: Mapping[str, str], count: int = 1
) -> list[list[float]]:
    """Return what `fitting` prints, for as many of its processes as are asked for, all at once."""
    with tempfile.TemporaryDirectory() as folder:
        together = [folder, str(count)] if count > 1 else []
        processes = [
            subprocess.Popen(
                [python, "-m", "benchmarks.fitting", *words, *together],
                env=environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(count)
        ]
        printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"fitting {' '.join(words)} failed")
    return [json.loads(text) for text in printed]


def turn(
    images: Path, point: tuple[int, int, int], peers: str | None, environment: Mapping[str, str]
) -> dict[str, float]:
    """Return the images a second of each way, one after the other."""
    from fmnist_tracking import machine

    path, cores = str(images), machine.cores()
    numbers = [str(number) for number in point]
    usual = {k: v for k, v in environment.items() if k != "TF_ENABLE_ONEDNN_OPTS"}
    off = {**usual, "TF_ENABLE_ONEDNN_OPTS": "0"}
    found = {
        KERAS: rates(sys.executable, ["keras", path, *numbers], usual),
        KERAS_PLAIN: rates(sys.executable, ["keras", path, *numbers], off),
        ONE: rates(sys.executable, ["ours", path, *numbers, str(cores)], usual),
        ALL: rates(sys.executable, ["ours", path, *numbers, "1"], usual, cores),
    }
    if peers is not None:
        found[TORCH] = rates(peers, ["torch", path, *numbers], usual)
    return {
        way: sum(statistics.median(epochs) for epochs in processes)
        for way, processes in found.items()
    }


def table(measured: Mapping[tuple[int, int, int], list[dict[str, float]]]) -> str:
    """Return the median images a second of each way, the limit, and the ratios of the same turn."""
    from fmnist_tracking.config import TrainingConfig, size_of

    taken = next(iter(measured.values()))[0]
    ways = [way for way in (KERAS, KERAS_PLAIN, TORCH, ONE, ALL) if way in taken]
    lines = [
        f"| point | {' | '.join(ways)} | {LIMIT} |",
        f"|---|{'---:|' * (len(ways) + 1)}",
    ]
    ratios = [
        "| point | one training / Keras | one on each core / Keras | one training / PyTorch "
        "| one training, share of the limit | one on each core, share of the limit |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    most = max(one[PRODUCT] for turns in measured.values() for one in turns)
    for point, turns in measured.items():
        filters, kernel_size, strides = point
        config = TrainingConfig.of(filters=filters, kernel_size=kernel_size, strides=strides)
        for one in turns:
            one[LIMIT] = most * 1e9 / (3 * 2 * size_of(config).multiply_adds)
        name = f"f{filters} k{kernel_size} s{strides}"
        columns = [statistics.median(one[way] for one in turns) for way in (*ways, LIMIT)]
        lines.append(f"| {name} | {' | '.join(f'{column:,.0f}' for column in columns)} |")
        pairs = [(ONE, KERAS), (ALL, KERAS), (ONE, TORCH), (ONE, LIMIT), (ALL, LIMIT)]
        cells = []
        for some, other in pairs:
            values = [one[some] / one[other] for one in turns if other in one]
            form = ".0%" if other == LIMIT else ".2f"
            cells.append(spread(values, form) if values else "-")
        ratios.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *ratios])


def main() -> None:
    """Measure all points, and print the tables."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parser = argparse.ArgumentParser(description="Images a second in training.")
    parser.add_argument("--repeats", type=int, default=3, help="of each way")
    parser.add_argument("--images", type=int, default=12_800, help="in an epoch")
    parser.add_argument("--peers", metavar="PYTHON", help="of the environment with PyTorch")
    options = parser.parse_args()
    peers = options.peers and os.path.abspath(options.peers)  # each program has its own folder
    print(machine(peers), end="\n\n", flush=True)
    measured: dict[tuple[int, int, int], list[dict[str, float]]] = {p: [] for p in POINTS}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images.npz")
        write_images(images, round(options.images * 1.2))  # a sixth is for validation
        for number in range(options.repeats):
            for point in POINTS:
                one = turn(images, point, peers, environment)
                one[PRODUCT] = rates(sys.executable, ["matrices", ""], environment)[0][0]
                measured[point].append(one)
                said = ", ".join(f"{way} {rate:,.0f}" for way, rate in one.items())
                console.print(f"{number + 1}/{options.repeats} {point}: {said}", markup=False)
    print(table(measured))


if __name__ == "__main__":
    main()
