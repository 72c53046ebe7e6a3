"""Results to standard output, words for a person to standard error."""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from fmnist_tracking.analysis import best, leaderboard
from fmnist_tracking.progress import stderr_console
from fmnist_tracking.results import SearchResult, TrialResult

if TYPE_CHECKING:
    from fmnist_tracking.workflows.plan import Plan

# Wide enough that no column is cut where the output goes to a file or another program.
_UNLIMITED = 10_000

out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _UNLIMITED)
_err = stderr_console()


def say(line: str) -> None:
    """A line for a person, beside the results."""
    with contextlib.suppress(OSError):  # a terminal that is gone
        _err.print(line, soft_wrap=True, markup=False)


def print_trials(result: SearchResult, *, as_json: bool) -> None:
    """A search's leaderboard, and last its run id."""
    if as_json:
        print_json(result.to_json(best(result.finished)))
        return
    varying = result.space.varying
    scores = ("val. acc.", "best epoch")
    table = new_table("rank", "run id", *varying, "status", *scores, "seconds", wrapped=scores)
    for place in leaderboard(result.trials):
        trial = place.trial
        table.add_row(
            str(place.rank or ""),
            trial.run_id[:8],
            *(f"{getattr(trial.config, axis):.15g}" for axis in varying),
            trial.outcome,
            share(trial.val_accuracy),
            str(trial.best_epoch or ""),
            "" if trial.train_seconds is None else f"{trial.train_seconds:.1f}",
        )
    out.print(table)
    out.print(f"search {result.run_id}", soft_wrap=True)


def print_trial(trial: TrialResult, *, as_json: bool) -> None:
    """One trial: how it came out, and its settings."""
    if as_json:
        print_json(trial.to_json())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("run id", trial.run_id)
    table.add_row("status", trial.outcome)
    table.add_row("validation accuracy", share(trial.val_accuracy))
    table.add_row("best epoch", str(trial.best_epoch or ""))
    for name, value in asdict(trial.config).items():
        table.add_row(name, f"{value:.15g}")
    out.print(table)


def print_plan(plan: "Plan", *, as_json: bool) -> None:
    """What a search would do: its points, then the time and disk it would take."""
    if as_json:
        print_json(plan.to_json())
        return
    table = new_table("point", "trial", "state", "epochs done", "")
    for number, point in enumerate(plan.points, start=1):
        table.add_row(
            str(number),
            point.name,
            point.state,
            f"{point.epochs_done}/{point.epochs}" if point.epochs else "",
            (point.run_id or "")[:8],
        )
    out.print(table)
    for point in plan.points:
        if point.reason:
            out.print(f"refused: {point.name}: {point.reason}", soft_wrap=True)
    counts = Counter(point.state for point in plan.points)
    words = ", ".join(f"{count} {state}" for state, count in counts.items())
    noun = "point" if len(plan.points) == 1 else "points"
    out.print(f"{len(plan.points)} {noun}: {words}; {plan.workers} at once", soft_wrap=True)
    if all(point.state == "finished" for point in plan.points):
        out.print("Nothing left to train.")
    elif plan.seconds is not None:
        duration = timedelta(seconds=round(plan.seconds))
        out.print(
            f"about {duration} (from {plan.based_on}), and {plan.disk_bytes / 1e6:.0f} MB of disk",
            soft_wrap=True,
        )


def new_table(*columns: str, wrapped: Collection[str] = ()) -> Table:
    """An empty table, for `out` to print.

    Args:
        columns: their headings.
        wrapped: those that take several lines where a terminal is narrow.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column not in wrapped)
    return table


def share(value: float | None) -> str:
    """A share, 0 to 1, to four digits; nothing for None."""
    return "" if value is None else f"{value:.4f}"


def print_json(content: Any) -> None:
    """One line of JSON."""
    print(json.dumps(content))
