"""What it costs to track a trial of 25 epochs, part by part.

    python -m benchmarks.tracking_cost [--tracking-uri URI] [--trials 20]

A real search of the network with 48 filters, kernel size 3 and strides of 1, whose trials wait
instead of training and give drawn weights (`stubs.py`). All that is done in the store is done by
the driver's background writer, one operation after the other, each asked for by a method of
`TrialLogger`; the seconds of each operation are counted for its trial, and given to the parts of
`PARTS` by watching which functions it spends them in. So the table holds whatever the sequence of
calls becomes.

Without a URI the store is a new SQLite file. At a server, the runs stay in an experiment of their
own, whose name is printed.

Prints a table in Markdown: milliseconds a trial. The first trial stands by itself, because some
libraries are loaded on it. While a trial is recorded the next one trains: so these seconds are not
added to a search, but the processor's time among them is time that the training does not get.
"""

import argparse
import contextlib
import functools
import pkgutil
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fmnist_tracking as ft
from benchmarks import stubs
from fmnist_tracking import runtime

EPOCHS = 25
TRIALS = 20
REST = ""

MLFLOW, OURS = "mlflow.MlflowClient.", "fmnist_tracking."
# For each method of `TrialLogger`: part -> the functions whose time it is; REST is what the
# operation does in none of them. The outermost of the named functions counts, except that those of
# `INNER` are counted by themselves wherever they are called.
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "_open": {
        "environment logged": (f"{MLFLOW}log_dict",),
        "run opened, with parameters and tags": (REST,),
    },
    "log_data": {"data sets linked": (REST,)},
    "log_epochs": {f"metrics of {EPOCHS} epochs": (REST,)},
    "finish": {
        "summary metrics and description": (f"{MLFLOW}log_batch",),
        "figures drawn": (f"{OURS}plots.learning_curves", f"{OURS}plots.png"),
        "figures, history and tables logged": (
            f"{MLFLOW}log_dict",
            f"{MLFLOW}log_artifacts",
        ),
        "model built": (
            f"{OURS}networks.coursework.with_weights",
            f"{OURS}networks.coursework.build_model",
        ),
        "model saved": ("mlflow.tensorflow.save_model",),
        "model logged": (
            f"{MLFLOW}create_logged_model",
            f"{MLFLOW}log_outputs",
            f"{MLFLOW}log_model_artifacts",
            f"{MLFLOW}finalize_logged_model",
        ),
        "run closed": (f"{MLFLOW}set_terminated",),
        "checkpoint removed": (f"{OURS}training.checkpoints.remove",),
        "other, at the end": (REST,),
    },
    "log_interruption": {"notes": (REST,)},
    "fail": {"failures": (REST,)},
}
INNER = ("environment logged", "model saved")

Function = Callable[..., Any]


class Meter:
    """Counts the seconds of each trial by part, in whatever thread they are spent."""

    def __init__(self) -> None:
        # By trial and part: of the clock, and of the processor in that thread.
        self.seconds: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.processor: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        # Of the thread that carries out an operation: its `trial` and `method`, and its `open`
        # parts, each with the seconds that parts within it have taken.
        self._thread = threading.local()

    def submitting(self, submit: Function) -> Function:
        """Wrap `TrialLogger._submit`, so that operations are timed when they are carried out."""

        @functools.wraps(submit)
        def wrapper(logger: Any, operation: Any) -> Any:
            # Named such as "TrialLogger.finish.<locals>.operation".
            method = operation.__qualname__.split(".")[1]

            def timed(retry: bool) -> Any:
                self._thread.trial, self._thread.method = logger._trial.number, method
                self._thread.open = []
                with self._part(_parts(method)[REST]):
                    return operation(retry)

            return submit(logger, timed)

        return wrapper

    def watched(self, name: str, function: Function) -> Function:
        """Wrap a function that may be a part of an operation."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            parts = getattr(self._thread, "open", [])
            part = _parts(self._thread.method).get(name) if parts else None
            if part is None or (len(parts) > 1 and part not in INNER):
                return function(*args, **kwargs)
            with self._part(part):
                return function(*args, **kwargs)

        return wrapper

    @contextlib.contextmanager
    def _part(self, part: str) -> Iterator[None]:
        parts, inner = self._thread.open, [0.0, 0.0]
        parts.append(inner)
        start = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            taken = time.perf_counter() - start[0], time.thread_time() - start[1]
            parts.pop()
            for counted, clock in ((self.seconds, 0), (self.processor, 1)):
                counted[self._thread.trial][part] += taken[clock] - inner[clock]
                if parts:
                    parts[-1][clock] += taken[clock]


@functools.cache
def _parts(method: str) -> dict[str, str]:
    """Return the part that each function belongs to in what a method of `TrialLogger` submits."""
    parts = {REST: method}  # of a method that PARTS does not name
    for part, functions in PARTS.get(method, {}).items():
        parts |= dict.fromkeys(functions, part)
    return parts


def install(meter: Meter) -> None:
    """Have the meter watch what `TrialLogger` submits, and all functions of `PARTS`."""
    runtime.load_tensorflow()  # without its notices
    from fmnist_tracking.grid_search.trial_logger import TrialLogger

    names = {name for method in PARTS for name in _parts(method)} - {REST}
    for name in names:
        place, _, attribute = name.rpartition(".")
        owner = pkgutil.resolve_name(place)
        setattr(owner, attribute, meter.watched(name, getattr(owner, attribute)))
    setattr(TrialLogger, "_submit", meter.submitting(TrialLogger._submit))  # noqa: B010


def table(meter: Meter) -> str:
    """Return the parts in Markdown, as `PARTS` has them, the first trial apart from the others."""
    first, *others = sorted(meter.seconds)
    met = {part for trial in meter.seconds.values() for part in trial}
    known = [part for parts in PARTS.values() for part in parts if part in met]
    total = "**total**"
    for counted in (meter.seconds, meter.processor):
        for trial in counted.values():
            trial[total] = sum(trial.values())
    whole = statistics.median(meter.seconds[trial][total] for trial in others)
    lines = [
        f"| part | ms, median of {len(others)} trials | range | share | processor, ms "
        "| first trial, ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for part in (*known, *sorted(met - set(known)), total):
        of = [1000 * meter.seconds[trial][part] for trial in others]
        processor = statistics.median(1000 * meter.processor[trial][part] for trial in others)
        lines.append(
            f"| {part} | {statistics.median(of):.1f} | {min(of):.1f} to {max(of):.1f} "
            f"| {statistics.median(of) / 1000 / whole:.0%} | {processor:.1f} "
            f"| {1000 * meter.seconds[first][part]:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, in a new folder."""
    parser = argparse.ArgumentParser(description="What tracking a trial costs, part by part.")
    parser.add_argument("--tracking-uri", help="by default a new SQLite store")
    parser.add_argument("--trials", type=int, default=TRIALS, help="after the first")
    options = parser.parse_args()
    if options.trials < 1:
        parser.error("--trials must be at least 1")
    experiment = f"tracking-cost-{time.strftime('%Y%m%d-%H%M%S')}"
    meter = Meter()
    with stubs.instead_of_training(stubs.run_short_trial):
        uri = options.tracking_uri or f"sqlite:///{Path('mlflow.db').absolute()}"
        install(meter)
        ft.search(
            {"seed": range(options.trials + 1)},
            epochs=EPOCHS,
            experiment=experiment,
            tracking_uri=uri,
        )
    where = f", experiment {experiment}" if options.tracking_uri else ""
    print(f"Store: {urlsplit(uri).scheme}{where}\n\n{table(meter)}")


if __name__ == "__main__":
    main()
