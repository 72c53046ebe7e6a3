"""The `fmnist-track` command: options -> one workflow call -> print."""

import functools
import json
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from fmnist_tracking import __version__
from fmnist_tracking.config import (
    COURSEWORK_GRID,
    DEFAULT_EXPERIMENT,
    DEFAULT_SAMPLE_SEED,
    FIELDS,
    SearchSpace,
    SplitConfig,
    TrainingConfig,
    Value,
    check_value,
    flag,
    load_space,
    parse_axis,
    parse_values,
)
from fmnist_tracking.errors import ConfigError, FmnistTrackingError, SearchError, Terminated
from fmnist_tracking.results import SearchResult, TrialResult

P = ParamSpec("P")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


def _command(*, example: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a function as a command whose errors are lines, not tracebacks."""

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except FmnistTrackingError as error:
                _fail(str(error), error.exit_status)
            except Terminated:
                _fail("Stopped by SIGTERM; what was running is closed as KILLED.", 143)
            except KeyboardInterrupt:
                _fail("Interrupted; what was running is closed as KILLED.", 130)

        app.command(epilog=f"Example: {example}")(run)
        return run

    return register


def _fail(message: str, status: int) -> NoReturn:
    _say(f"Error: {message}" if status < 128 else message)
    raise typer.Exit(status)


def _say(line: str) -> None:
    """A line for a person, beside the results."""
    _err.print(line, soft_wrap=True, markup=False)


def _axis_option(name: str, option: str) -> Any:
    """An option that lists the values of one axis of the grid."""
    values = ",".join(f"{value:g}" for value in COURSEWORK_GRID[name])
    return typer.Option(
        None,
        option,
        metavar="N,N,…",
        help=f"Values to try: {FIELDS[name].metadata['about']}. Default: {values}.",
        rich_help_panel="Grid",
    )


def _field_option(name: str) -> Any:
    """An option for one field of `TrainingConfig`, with its default and its words from there."""
    about = FIELDS[name].metadata["about"]
    return typer.Option(
        FIELDS[name].default,
        flag(name),
        metavar="N",
        help=about[0].upper() + about[1:] + ".",
        rich_help_panel="Training",
    )


_PROTOCOL = typer.Option(
    SplitConfig().protocol,
    "--protocol",
    help="canonical: the data set's own 10,000 test images stay sealed. coursework: all 70,000 "
    "are pooled and a fifth is for testing.",
    rich_help_panel="Data",
)
_LIMIT = typer.Option(
    None,
    "--limit",
    metavar="N",
    help="Use N images for training and validation together, and at most N for testing. "
    "For trying things out.",
    rich_help_panel="Data",
)
_DATA_DIR = typer.Option(
    None,
    "--data-dir",
    metavar="DIR",
    help="Folder with the four IDX files. Default: FMNIST_DATA_DIR, else the system's copy, else "
    "the user's cache, filled from the network.",
    rich_help_panel="Data",
)
_EXPERIMENT = typer.Option(
    DEFAULT_EXPERIMENT,
    "--experiment",
    envvar="MLFLOW_EXPERIMENT_NAME",
    help="MLflow experiment to put the runs in.",
    rich_help_panel="Tracking",
)
_IN_EXPERIMENT = typer.Option(
    None,
    "--experiment",
    envvar="MLFLOW_EXPERIMENT_NAME",
    help="MLflow experiment to look in. Default: all of them.",
    rich_help_panel="Tracking",
)
_TRACKING_URI = typer.Option(
    None,
    "--tracking-uri",
    metavar="URI",
    help="MLflow store. Default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this folder.",
    rich_help_panel="Tracking",
)
_RUN_ID_HELP = "A run id, its first characters, `latest`, or `best` (of the latest search)."
_RUN_ID = typer.Option(..., "--run-id", metavar="ID", help=_RUN_ID_HELP)
_OUTPUT_DIR = typer.Option(
    None, "--output-dir", metavar="DIR", help="Where the files go. Default: reports/ID."
)
_SAMPLE_SEED = typer.Option(
    DEFAULT_SAMPLE_SEED, "--seed", help="Chooses the sample images; the same seed, the same ones."
)
_JSON = typer.Option(False, "--json", help="Print one JSON object to standard output.")


@_command(example="fmnist-track search --limit 6000 --epochs 3")
def search(
    filters: str | None = _axis_option("filters", "--filters"),
    strides: str | None = _axis_option("strides", "--strides"),
    kernel_sizes: str | None = _axis_option("kernel_size", "--kernel-sizes"),
    hidden_units: str | None = _axis_option("hidden_units", "--hidden-units"),
    axis: list[str] = typer.Option(
        [],
        "--axis",
        metavar="NAME=N,N,…",
        help="A further axis: any other setting of the training, such as "
        "learning_rate=0.001,0.0003. May be given more than once.",
        rich_help_panel="Grid",
    ),
    space: Path | None = typer.Option(
        None,
        "--space",
        metavar="FILE",
        help="YAML file with the grid, a list of values for each setting; it takes the place of "
        "the default grid, and the options above add to it.",
        rich_help_panel="Grid",
    ),
    repeats: int = typer.Option(
        1,
        "--repeats",
        metavar="N",
        help="Train each point N times, with the seeds SEED, SEED+1, …; points are ranked by "
        "their mean.",
        rich_help_panel="Grid",
    ),
    epochs: int = _field_option("epochs"),
    batch_size: int = _field_option("batch_size"),
    seed: int = _field_option("seed"),
    patience: int = _field_option("patience"),
    workers: int = typer.Option(
        1, "--workers", metavar="N", help="Trials that run at once, each in its own process."
    ),
    protocol: str = _PROTOCOL,
    limit: int | None = _LIMIT,
    data_dir: Path | None = _DATA_DIR,
    experiment: str = _EXPERIMENT,
    tracking_uri: str | None = _TRACKING_URI,
    as_json: bool = _JSON,
) -> None:
    """Explore a grid: train every point, each as a tracked run of its own.

    Without options, the grid of the coursework: 12 points, 25 epochs, all images. Points are
    compared by the validation accuracy of their best epoch; the test images stay sealed.
    """
    from fmnist_tracking.workflows.search import search as run_search

    texts = {
        "filters": filters,
        "strides": strides,
        "kernel_size": kernel_sizes,
        "hidden_units": hidden_units,
    }
    result = run_search(
        _space(space, texts, axis, repeats, seed),
        _config(epochs=epochs, batch_size=batch_size, seed=seed, patience=patience),
        _split(protocol, seed, limit),
        workers=_at_least_one("--workers", workers),
        experiment=experiment,
        tracking_uri=tracking_uri,
        data_dir=data_dir,
        announce=_say,
    )
    _print_trials(result, as_json=as_json)
    failed = len(result.space) - len(result.finished)
    if failed:
        raise SearchError(
            f"{failed} of {len(result.space)} points failed. Their runs hold the traceback, as "
            f"the artifact traceback.txt; `fmnist-track runs --run-id {result.run_id[:8]}` lists "
            "them."
        )
    _say(f"Next: fmnist-track report --run-id {result.run_id[:8]}    or: fmnist-track ui")


@_command(example="fmnist-track train --filters 48 --kernel-size 3 --epochs 5")
def train(
    filters: int = _field_option("filters"),
    kernel_size: int = _field_option("kernel_size"),
    strides: int = _field_option("strides"),
    hidden_units: int = _field_option("hidden_units"),
    dropout: float = _field_option("dropout"),
    learning_rate: float = _field_option("learning_rate"),
    batch_size: int = _field_option("batch_size"),
    epochs: int = _field_option("epochs"),
    seed: int = _field_option("seed"),
    patience: int = _field_option("patience"),
    protocol: str = _PROTOCOL,
    limit: int | None = _LIMIT,
    data_dir: Path | None = _DATA_DIR,
    experiment: str = _EXPERIMENT,
    tracking_uri: str | None = _TRACKING_URI,
    as_json: bool = _JSON,
) -> None:
    """Train one configuration, tracked in the same way as a search's trial."""
    from fmnist_tracking.workflows.search import train as run_train

    result = run_train(
        _config(
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            hidden_units=hidden_units,
            dropout=dropout,
            learning_rate=learning_rate,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            patience=patience,
        ),
        _split(protocol, seed, limit),
        experiment=experiment,
        tracking_uri=tracking_uri,
        data_dir=data_dir,
        announce=_say,
    )
    _print_trial(result, as_json=as_json)
    _say(f"Next: fmnist-track report --run-id {result.run_id[:8]}")


@_command(example="fmnist-track runs --run-id latest")
def runs(
    run_id: str | None = typer.Option(
        None, "--run-id", metavar="ID", help="List the trials of this search instead."
    ),
    experiment: str | None = _IN_EXPERIMENT,
    tracking_uri: str | None = _TRACKING_URI,
    as_json: bool = _JSON,
) -> None:
    """List searches and single trainings; with --run-id, the trials of one search."""
    from fmnist_tracking.workflows import listing

    if run_id is not None:
        result = listing.trials(run_id, experiment=experiment, tracking_uri=tracking_uri)
        _print_trials(result, as_json=as_json)
        return
    found = listing.runs(experiment=experiment, tracking_uri=tracking_uri)
    if as_json:
        _print_json([summary.to_json() for summary in found])
        return
    table = _table("run id", "what", "experiment", "status", "started", "points", "best val. acc.")
    for run in found:
        table.add_row(
            run.run_id,
            run.name,
            run.experiment,
            run.status,
            f"{datetime.fromtimestamp(run.started / 1000):%Y-%m-%d %H:%M}",
            f"{run.finished}/{run.points}",
            _share(run.val_accuracy),
        )
    _out.print(table)


@_command(example="fmnist-track best --json")
def best(
    run_id: str = typer.Option("best", "--run-id", metavar="ID", help=_RUN_ID_HELP),
    experiment: str | None = _IN_EXPERIMENT,
    tracking_uri: str | None = _TRACKING_URI,
    as_json: bool = _JSON,
) -> None:
    """Show the best trial of a search, by validation accuracy; by default of the latest."""
    from fmnist_tracking.workflows import listing

    trial = listing.best(run_id, experiment=experiment, tracking_uri=tracking_uri)
    _print_trial(trial, as_json=as_json)


@_command(example="fmnist-track report --run-id latest")
def report(
    run_id: str = _RUN_ID,
    output_dir: Path | None = _OUTPUT_DIR,
    seed: int = _SAMPLE_SEED,
    data_dir: Path | None = _DATA_DIR,
    experiment: str | None = _IN_EXPERIMENT,
    tracking_uri: str | None = _TRACKING_URI,
    as_json: bool = _JSON,
) -> None:
    """Write every figure and table of a trial, or of a search and its best trial.

    This opens the sealed test images, and records with the run that it did.
    """
    _write("report", run_id, output_dir, seed, data_dir, experiment, tracking_uri, as_json)


@_command(example="fmnist-track activations --run-id best")
def activations(
    run_id: str = _RUN_ID,
    output_dir: Path | None = _OUTPUT_DIR,
    seed: int = _SAMPLE_SEED,
    data_dir: Path | None = _DATA_DIR,
    experiment: str | None = _IN_EXPERIMENT,
    tracking_uri: str | None = _TRACKING_URI,
    as_json: bool = _JSON,
) -> None:
    """Draw a sample image and its first-layer activation maps, one for each filter."""
    _write("activations", run_id, output_dir, seed, data_dir, experiment, tracking_uri, as_json)


@_command(example="fmnist-track predictions --run-id best --seed 7")
def predictions(
    run_id: str = _RUN_ID,
    output_dir: Path | None = _OUTPUT_DIR,
    seed: int = _SAMPLE_SEED,
    data_dir: Path | None = _DATA_DIR,
    experiment: str | None = _IN_EXPERIMENT,
    tracking_uri: str | None = _TRACKING_URI,
    as_json: bool = _JSON,
) -> None:
    """Draw 16 test images with what the model takes them for."""
    _write("predictions", run_id, output_dir, seed, data_dir, experiment, tracking_uri, as_json)


@_command(example="fmnist-track data")
def data(data_dir: Path | None = _DATA_DIR, as_json: bool = _JSON) -> None:
    """Find or fetch the images, verify them, and show where they came from."""
    from fmnist_tracking.workflows import checks

    found = checks.data(data_dir)
    facts = {
        "name": "Fashion-MNIST" if found.is_fashion_mnist else "not Fashion-MNIST",
        "source": found.source,
        "train_images": len(found.train_images),
        "test_images": len(found.test_images),
        "sha256": found.sha256,
        "data_sha256": found.digest,
    }
    if as_json:
        _print_json(facts)
        return
    _out.print(f"{facts['name']}, verified, in {found.source}", soft_wrap=True, markup=False)
    _out.print(f"{facts['train_images']:,} training and {facts['test_images']:,} test images")
    table = _table("file", "SHA-256 of the decompressed bytes")
    for part, digest in found.sha256.items():
        table.add_row(part, digest)
    _out.print(table)


@_command(example="fmnist-track doctor")
def doctor(
    data_dir: Path | None = _DATA_DIR,
    tracking_uri: str | None = _TRACKING_URI,
    as_json: bool = _JSON,
) -> None:
    """Check the installation: packages, TensorFlow, data, store and disk."""
    from fmnist_tracking.workflows import checks

    found = []
    for check in checks.doctor(tracking_uri=tracking_uri, data_dir=data_dir):
        found.append(check)
        if not as_json:
            mark = "✓" if check.ok else "✗"
            _out.print(f"{mark} {check.name}: {check.seen}", soft_wrap=True, markup=False)
    if as_json:
        _print_json([check.to_json() for check in found])
    wrong = [check.name for check in found if not check.ok]
    if wrong:
        raise FmnistTrackingError(f"Something is wrong with: {', '.join(wrong)}.")


@_command(example="fmnist-track ui --port 5001")
def ui(
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on."),
    port: int = typer.Option(5000, "--port", help="Port to listen on."),
    tracking_uri: str | None = _TRACKING_URI,
) -> None:
    """Start MLflow's page on the store that these commands use."""
    from fmnist_tracking.workflows import checks

    raise typer.Exit(checks.ui(host=host, port=port, tracking_uri=tracking_uri, announce=_say))


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    """A grid search on Fashion-MNIST in which every point is a tracked experiment.

    Start with `fmnist-track search --limit 6000 --epochs 3`, then
    `fmnist-track report --run-id latest`.
    """
    if version:
        print(__version__)
        raise typer.Exit


def _space(
    file: Path | None, texts: dict[str, str | None], axes: Sequence[str], repeats: int, seed: int
) -> SearchSpace:
    """The grid that the options of `search` describe."""
    space = SearchSpace() if file is None else load_space(file)
    given: dict[str, tuple[Value, ...]] = {
        name: parse_values(name, text) for name, text in texts.items() if text is not None
    }
    for text in axes:
        name, values = parse_axis(text)
        if name in given:
            raise ConfigError(f"The axis {name} was given twice. Give all its values at once.")
        given[name] = values
    if _at_least_one("--repeats", repeats) > 1:
        if "seed" in given or "seed" in space.axes:
            raise ConfigError("Expected either --repeats or an axis seed, got both.")
        given["seed"] = tuple(range(seed, seed + repeats))
    return space.with_axes(given)


def _config(**values: Value) -> TrainingConfig:
    """The settings typed as options; an error names the option."""
    for name, value in values.items():
        try:
            check_value(name, value)
        except ConfigError as error:
            raise ConfigError(str(error).replace(name, flag(name), 1)) from None
    return TrainingConfig(**values)  # type: ignore[arg-type]


def _split(protocol: str, seed: int, limit: int | None) -> SplitConfig:
    return SplitConfig(protocol=protocol, seed=seed, limit=limit)  # type: ignore[arg-type]


def _at_least_one(option: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"Expected {option} to be a whole number of at least 1, got {value}.")
    return value


def _write(
    what: str,
    run_id: str,
    output_dir: Path | None,
    seed: int,
    data_dir: Path | None,
    experiment: str | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Run one of the commands that write figures, and print where they are."""
    from fmnist_tracking.workflows import report as workflow

    check_value("seed", seed)
    written = getattr(workflow, what)(
        run_id,
        output_dir=output_dir,
        seed=seed,
        data_dir=data_dir,
        experiment=experiment,
        tracking_uri=tracking_uri,
    )
    if as_json:
        scores = written.evaluation and {
            "test_accuracy": written.evaluation.accuracy,
            "test_macro_f1": written.evaluation.macro.f1,
        }
        _print_json(
            {
                "run_id": written.run_id,
                "trial_run_id": written.trial_id,
                "files": [str(path) for path in written.files],
                **(scores or {}),
            }
        )
        return
    if written.evaluation is not None:
        _say(
            f"Test accuracy {written.evaluation.accuracy:.4f}, macro F1 "
            f"{written.evaluation.macro.f1:.4f}, trial {written.trial_id[:8]}"
        )
        _out.print(str(written.files[0]), soft_wrap=True, markup=False)
    else:
        for path in written.files:
            _out.print(str(path), soft_wrap=True, markup=False)


def _print_trials(result: SearchResult, *, as_json: bool) -> None:
    """A search's leaderboard, and last its run id."""
    from fmnist_tracking.workflows import listing

    ordered = listing.ordered(result)
    winner = ordered[0][1] if result.finished else None
    if as_json:
        _print_json(result.to_json(winner))
        return
    varying = [axis for axis, values in result.space.axes.items() if len(values) > 1]
    table = _table("rank", "run id", *varying, "status", "val. acc.", "best epoch", "seconds")
    for rank, trial in ordered:
        table.add_row(
            str(rank or ""),
            trial.run_id[:8],
            *(f"{getattr(trial.config, axis):g}" for axis in varying),
            trial.status,
            _share(trial.val_accuracy),
            str(trial.best_epoch or ""),
            "" if trial.train_seconds is None else f"{trial.train_seconds:.1f}",
        )
    _out.print(table)
    _out.print(f"search {result.run_id}", soft_wrap=True)


def _print_trial(trial: TrialResult, *, as_json: bool) -> None:
    if as_json:
        _print_json(trial.to_json())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("run id", trial.run_id)
    table.add_row("status", trial.status)
    table.add_row("validation accuracy", _share(trial.val_accuracy))
    table.add_row("best epoch", str(trial.best_epoch or ""))
    for name, value in asdict(trial.config).items():
        table.add_row(name, f"{value:g}")
    _out.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _print_json(content: Any) -> None:
    print(json.dumps(content))


def main() -> None:
    """Run the command line; exit with 0, 1 (an error), 2 (wrong usage), 130 or 143 (stopped)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("fmnist_tracking").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = app(standalone_mode=False)
    except typer.exceptions.TyperException as error:
        command = " ".join(["fmnist-track", *sys.argv[1:2]])
        known = [info.callback.__name__ for info in app.registered_commands if info.callback]
        where = command if sys.argv[1:2] and sys.argv[1] in known else "fmnist-track"
        _say(f"Error: {error.format_message()} See `{where} --help`.")
        status = error.exit_code
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _terminate(*_: object) -> None:
    raise Terminated
