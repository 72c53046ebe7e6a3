"""Images a second in training: this package's two steps, plain Keras `fit`, PyTorch, and the limit.

    python -m benchmarks.training_speed [--repeats 3] [--images 12800] [--peers PYTHON] [--steps]

Four points of the coursework's grid and the two networks that are shipped as examples, batches of
32, float32. Each way trains in a program of its own (`fitting.py`), all cores its own; the ways
take turns, and a ratio is one of the same turn. This package's steps, the general one of any
network and the special one of the coursework's, are measured twice: one training on all cores, as
`train` and `search --workers 1` do it, and as many at once as there are cores, each on one, as
`search` does it; then their sum counts.

The limit is what the processor would train if all of it were one large product of matrices: the
GFLOP/s of such a product, measured in each turn, the most of the run, by the additions and
multiplications of a training step, three times those of the forward pass.

`--steps` measures this package's two steps alone, on the coursework's points, to compare them.

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

from benchmarks.fitting import NETWORKS, built
from benchmarks.grid_search import ROOT, machine, spread, write_images

KERAS, TORCH = "Keras `fit`", "PyTorch"
GENERAL, GENERAL_ALL = "general step", "general, one on each core"
SPECIAL, SPECIAL_ALL = "special step", "special, one on each core"
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
    images: Path, name: str, peers: str | None, environment: Mapping[str, str], *, steps: bool
) -> dict[str, float]:
    """Return the images a second of each way, one after the other."""
    from fmnist_tracking import machine

    path, cores = str(images), machine.cores()
    usual = {k: v for k, v in environment.items() if k != "TF_ENABLE_ONEDNN_OPTS"}
    off = {**usual, "TF_ENABLE_ONEDNN_OPTS": "0"}
    found = {}
    if not steps:
        found = {
            KERAS: rates(sys.executable, ["keras", path, name], usual),
            KERAS_PLAIN: rates(sys.executable, ["keras", path, name], off),
        }
    found |= {
        GENERAL: rates(sys.executable, ["general", path, name, str(cores)], usual),
        GENERAL_ALL: rates(sys.executable, ["general", path, name, "1"], usual, cores),
    }
    if NETWORKS[name][0] == "coursework":
        found[SPECIAL] = rates(sys.executable, ["special", path, name, str(cores)], usual)
        found[SPECIAL_ALL] = rates(sys.executable, ["special", path, name, "1"], usual, cores)
    if peers is not None:
        found[TORCH] = rates(peers, ["torch", path, name], usual)
    return {
        way: sum(statistics.median(epochs) for epochs in processes)
        for way, processes in found.items()
    }


def table(measured: Mapping[str, list[dict[str, float]]]) -> str:
    """Return the median images a second of each way, the limit, and the ratios of the same turn."""
    from fmnist_tracking.networks.build import size_of_model

    ways = (KERAS, KERAS_PLAIN, TORCH, GENERAL, GENERAL_ALL, SPECIAL, SPECIAL_ALL, LIMIT)
    pairs = [
        *((GENERAL, KERAS), (GENERAL_ALL, KERAS), (SPECIAL, GENERAL), (SPECIAL_ALL, GENERAL_ALL)),
        *((GENERAL, TORCH), (GENERAL, LIMIT), (SPECIAL_ALL, LIMIT)),
    ]
    lines = [f"| network | {' | '.join(ways)} |", f"|---|{'---:|' * len(ways)}"]
    heads = [f"{some} / {other}" for some, other in pairs]
    ratios = [f"| network | {' | '.join(heads)} |", f"|---|{'---:|' * len(pairs)}"]
    most = max(one[PRODUCT] for turns in measured.values() for one in turns)
    for name, turns in measured.items():
        for one in turns:
            one[LIMIT] = most * 1e9 / (3 * 2 * size_of_model(built(name)).multiply_adds)
        columns = [
            f"{statistics.median(one[way] for one in turns):,.0f}" if way in turns[0] else "-"
            for way in ways
        ]
        lines.append(f"| {name} | {' | '.join(columns)} |")
        cells = []
        for some, other in pairs:
            values = [one[some] / one[other] for one in turns if {some, other} <= one.keys()]
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
    parser.add_argument("--steps", action="store_true", help="only this package's two")
    parser.add_argument("--peers", metavar="PYTHON", help="of the environment with PyTorch")
    options = parser.parse_args()
    peers = options.peers and os.path.abspath(options.peers)  # each program has its own folder
    print(machine(peers), end="\n\n", flush=True)
    names = [name for name in NETWORKS if not options.steps or NETWORKS[name][0] == "coursework"]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images.npz")
        write_images(images, round(options.images * 1.2))  # a sixth is for validation
        for number in range(options.repeats):
            for name in names:
                one = turn(images, name, peers, environment, steps=options.steps)
                one[PRODUCT] = rates(sys.executable, ["matrices", ""], environment)[0][0]
                measured[name].append(one)
                said = ", ".join(f"{way} {rate:,.0f}" for way, rate in one.items())
                console.print(f"{number + 1}/{options.repeats} {name}: {said}", markup=False)
    print(table(measured))


if __name__ == "__main__":
    main()
