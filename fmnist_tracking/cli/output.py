"""Results to standard output, words for a person to standard error."""

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.table import Table

from fmnist_tracking.config import format_value
from fmnist_tracking.console import PlainConsole, is_terminal, stderr_console
from fmnist_tracking.errors import for_command_line
from fmnist_tracking.leaderboard import leaderboard
from fmnist_tracking.network import Value
from fmnist_tracking.objective import VAL_ACCURACY
from fmnist_tracking.redact import printable
from fmnist_tracking.results import RunSummary

if TYPE_CHECKING:
    from fmnist_tracking.grid_search.dry_run import DryRun
    from fmnist_tracking.runs import Search, Trial

# Wide enough that no column is cut where the output goes to a file or another program.
_UNLIMITED = 10_000
_PADDING = 2  # of each column, the last too
# Of a search in the list of all: characters of a line of its grid, and values shown of an axis.
_GRID_WIDTH, _VALUES = 24, 6

_is_terminal = is_terminal(sys.stdout)
out = PlainConsole(
    width=None if _is_terminal else _UNLIMITED,
    force_terminal=_is_terminal,
)
_err = stderr_console()


def echo(line: str) -> None:
    """Print a line for a person, beside the results."""
    with contextlib.suppress(OSError):  # a terminal that is gone
        _err.print(for_command_line(line), soft_wrap=True)


def print_trials(search: "Search", *, as_json: bool) -> None:
    """Print a search's leaderboard, and last its run id."""
    if as_json:
        print_json(search.to_json())
        return
    result = search.result
    places = leaderboard(result.trials)
    trials = [place.trial for place in places]
    axes = {
        axis: [_value(trial.config.values.get(axis)) for trial in trials]
        for axis in result.space.varying
    }
    # What points are ranked by, where that is another figure, or they have several seeds.
    means = {}
    if result.objective != VAL_ACCURACY:
        means[result.objective.name] = [share(trial.score) for trial in trials]
    if any(place.mean not in (None, place.trial.score) for place in places):
        means["point's mean"] = [share(place.mean) for place in places]
    columns = {
        "rank": [str(place.rank or "") for place in places],
        "trial": [printable(trial.name) for trial in trials],
        "run id": [trial.run_id[:8] for trial in trials],
        **axes,
        "status": [trial.outcome for trial in trials],
        **means,
        "val. acc.": [share(trial.val_accuracy) for trial in trials],
        "best epoch": [str(trial.best_epoch or "") for trial in trials],
        "seconds": [
            "" if trial.train_seconds is None else f"{trial.train_seconds:.1f}" for trial in trials
        ],
    }
    # The name of a trial tells its axes too.
    dispensable: list[str | tuple[str, ...]] = [
        tuple(axes),
        "seconds",
        "best epoch",
        "status",
        "run id",
        *(["val. acc."] if result.objective.name in means else []),
        *(["point's mean"] if "point's mean" in means else []),
    ]
    wrapped = ("val. acc.", "point's mean", "best epoch")
    _print_fitting(columns, dispensable, wrapped=wrapped, folded="trial")
    for trial in trials:
        if trial.error:
            out.print(
                f"{trial.status}: {printable(trial.name)}, run {trial.run_id[:8]}: "
                f"{printable(trial.error)}",
                soft_wrap=True,
            )
    out.print(f"search {result.run_id}", soft_wrap=True)


def print_runs(found: Sequence[RunSummary]) -> None:
    """Print searches and single trainings, one in a row."""
    columns = {
        "run id": [run.run_id[:8] for run in found],
        "what": [printable(run.name) for run in found],
        "grid": [_grid(run) for run in found],
        "experiment": [printable(run.experiment) for run in found],
        "status": [run.status for run in found],
        "started": [_time(run.started) for run in found],
        "points": [f"{run.finished}/{run.points}" for run in found],
        "val. acc.": [share(run.val_accuracy) for run in found],
    }
    dispensable = ["experiment", "started", "points", "status", "grid"]
    _print_fitting(
        columns, dispensable, wrapped=("started", "val. acc."), folded="grid", fold_at=_GRID_WIDTH
    )


def _time(milliseconds: Any) -> str:
    """Return a time of the store, in this place's; nothing for what is none that people live in."""
    try:
        return f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M}"
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def _grid(run: RunSummary) -> str:
    """Describe what is not the default: "filters 12,36; dropout 0.1; 5 epochs; limit 600"."""
    axes = {
        axis: ",".join(_value(value) for value in values[:_VALUES])
        + (",…" if len(values) > _VALUES else "")
        for axis, values in run.grid.items()
    }
    parts = [f"{axis} {values}" for axis, values in axes.items()]
    parts += [] if run.epochs is None else [f"{run.epochs} epoch{'s' if run.epochs > 1 else ''}"]
    parts += [] if run.limit is None else [f"limit {run.limit}"]
    return "; ".join(parts)


def print_trial(shown: "Trial", *, as_json: bool) -> None:
    """Print a trial: its result and its settings."""
    trial = shown.result
    if as_json:
        print_json(trial.to_json())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("run id", trial.run_id)
    table.add_row("trial", printable(trial.name))
    table.add_row("status", trial.outcome)
    if trial.error:
        table.add_row("error", printable(trial.error))
    if trial.final_of is not None:
        table.add_row("final of", trial.final_of)
    else:
        table.add_row("validation accuracy", share(trial.val_accuracy))
        if trial.config.compared_by != VAL_ACCURACY:
            table.add_row(trial.config.compared_by.label, share(trial.score))
        table.add_row("best epoch", str(trial.best_epoch or ""))
    for name, value in trial.config.values.items():
        table.add_row(name, _value(value))
    out.print(table)


def print_plan(plan: "DryRun", *, as_json: bool) -> None:
    """Print what a search would do: its points, then the time and disk it would take."""
    if as_json:
        print_json(plan.to_json())
        return
    columns = {
        "point": [str(number) for number in range(1, len(plan.points) + 1)],
        "trial": [point.name for point in plan.points],
        "state": [point.state for point in plan.points],
        "epochs done": [
            f"{point.epochs_done}/{point.epochs}" if point.epochs else "" for point in plan.points
        ],
        "run id": [(point.run_id or "")[:8] for point in plan.points],
    }
    _print_fitting(
        columns, ["run id", "epochs done", "point"], wrapped=("epochs done",), folded="trial"
    )
    for point in plan.points:
        if point.reason:
            out.print(f"refused: {point.name}: {point.reason}", soft_wrap=True)
    out.print(str(plan), soft_wrap=True)
    if all(point.state == "finished" for point in plan.points):
        out.print("Nothing left to train.")
    elif plan.seconds is not None:
        duration = timedelta(seconds=round(plan.seconds))
        kept = f", and {plan.kept_bytes / 1e6:.1f} MB for kept checkpoints"
        out.print(
            f"about {duration} (from {plan.based_on}), and {plan.disk_bytes / 1e6:.0f} MB of disk"
            f"{kept if plan.kept_bytes else ''}",
            soft_wrap=True,
        )


def new_table(*columns: str, wrapped: Collection[str] = ()) -> Table:
    """Return an empty table; the wrapped columns take several lines where a terminal is narrow."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column not in wrapped)
    return table


def _print_fitting(
    columns: dict[str, list[str]],
    dispensable: Sequence[str | tuple[str, ...]],
    *,
    wrapped: Collection[str],
    folded: str,
    fold_at: int = _UNLIMITED,
) -> None:
    """Print a table, without what a narrow terminal has no room for.

    Args:
        columns: cells by heading.
        dispensable: headings, those to leave out first; several of a tuple go together.
        wrapped: headings that may take several lines.
        folded: the column that takes several lines when all that is dispensable is left out.
        fold_at: its width from which on it takes several lines before anything is left out.
    """
    columns = dict(columns)
    widths = {
        heading: max(
            cell_len(text)
            for text in [*(heading.split() if heading in wrapped else [heading]), *cells, ""]
        )
        for heading, cells in columns.items()
    }
    widths[folded] = min(widths[folded], fold_at)
    for headings in dispensable:
        if sum(widths[kept] + _PADDING for kept in columns) <= out.width:
            break
        for heading in (headings,) if isinstance(headings, str) else headings:
            del columns[heading]
    table = new_table()
    for heading in columns:
        table.add_column(
            heading,
            no_wrap=heading not in (*wrapped, folded),
            overflow="fold",
            min_width=None if heading == folded else widths[heading],
        )
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    out.print(table)


def _value(value: Value | None) -> str:
    """Format a hyperparameter's value; one that is not active gives an empty text."""
    return "" if value is None else printable(format_value(value))


def share(value: float | None) -> str:
    """Format a share, 0 to 1, to four digits; None gives an empty text."""
    return "" if value is None else f"{value:.4f}"


def print_json(content: Any) -> None:
    """Print one line of JSON."""
    print(json.dumps(content))


def shell_line(*words: str) -> str:
    """Return a command of this program as it can be pasted into the shell that started it."""
    program, started_as = "fmnist-track", sys.argv[0]
    if Path(started_as).name == program and shutil.which(program) != os.path.abspath(started_as):
        program = started_as  # its environment is not activated
    return shlex.join([program, *words])
