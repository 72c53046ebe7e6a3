"""The commands that train: `search` and `train`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import fmnist_tracking as ft
from fmnist_tracking.cli import options
from fmnist_tracking.cli.app import collect_garbage_again, command
from fmnist_tracking.cli.output import echo, print_plan, print_trial, print_trials, shell_line
from fmnist_tracking.cli.parse import (
    load_space,
    parse_axis,
    parse_setting,
    parse_texts,
    parse_value,
    parse_values,
)
from fmnist_tracking.cli.typed import is_given
from fmnist_tracking.config import FIELDS, OF_THE_TRAINING, SEARCH_FLAGS, TRAINING_SETTINGS, flag
from fmnist_tracking.errors import ConfigError, TrialsFailed
from fmnist_tracking.network import COURSEWORK_NAME, Value
from fmnist_tracking.redact import to_be_typed
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.warm_up import warm_up
from fmnist_tracking.workers import end_fork_server

if TYPE_CHECKING:
    from fmnist_tracking.runs import Trial

# Beside the settings, options of `train` that a final training takes from its trial.
_OF_NO_FINAL = ("network", "set", "objective", "protocol", "limit")


@command(example="fmnist-track search --limit 12000 --epochs 5", resumable=True)
@options.with_settings(
    "epochs", "batch_size", "seed", "patience", after="repeats", may_be_empty=True
)
def search(
    context: typer.Context,
    network: str = options.NETWORK,
    filters: str | None = options.axis_option("filters"),
    strides: str | None = options.axis_option("strides"),
    kernel_sizes: str | None = options.axis_option("kernel_size"),
    hidden_units: str | None = options.axis_option("hidden_units"),
    axis: list[str] = options.AXES,
    space: Path | None = options.path_option(
        "--space",
        "FILE",
        "YAML file with the grid, a list of values for each setting; it takes the place of "
        "the default grid, and the options above add to it.",
        "Grid",
    ),
    skip_impossible: bool = typer.Option(
        False,
        "--skip-impossible",
        help="Leave out the points that cannot be built, instead of refusing the whole grid.",
        rich_help_panel="Grid",
    ),
    oracle: str = options.ORACLE,
    repeats: int = options.whole_option(
        1,
        "--repeats",
        1,
        help="Train each point N times, with the seeds SEED, SEED+1, …; points are ranked by "
        "their mean.",
        rich_help_panel="Grid",
    ),
    objective: str = options.OBJECTIVE,
    workers: int | None = options.WORKERS,
    trial_timeout: int | None = options.TRIAL_TIMEOUT,
    max_trials: int | None = options.MAX_TRIALS,
    max_time: int | None = options.MAX_TIME,
    dry_run: bool = typer.Option(
        False,
        "--dry-run",
        help="Train nothing; list the points, what is finished already, and the time and disk "
        "that the rest will take.",
    ),
    keep_checkpoints: bool = options.KEEP_CHECKPOINTS,
    fresh: bool = options.FRESH,
    protocol: str = options.PROTOCOL,
    limit: int | None = options.LIMIT,
    data_dir: Path | None = options.DATA_DIR,
    experiment: str | None = options.EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    upgrade_store: bool = options.UPGRADE_STORE,
    as_json: bool = options.JSON,
    **settings: Value,
) -> None:
    """Explore a grid: train every point, each as a tracked run of its own.

    Without options, the grid of the coursework: 12 points, 25 epochs, all images. Points are
    compared by the validation accuracy of their best epoch, or by another objective; the test
    images stay sealed.

    Stopped in whatever way, the same command goes on where it was: what has finished is not
    trained again, what was cut off goes on after its last whole epoch.
    """
    texts = {
        "filters": filters,
        "strides": strides,
        "kernel_size": kernel_sizes,
        "hidden_units": hidden_units,
    }
    asked: dict[str, Any] = {
        "network": network or None,
        "skip_impossible": skip_impossible,
        "oracle": oracle,
        "repeats": repeats,
        "max_trials": max_trials,
        "protocol": protocol,
        "limit": limit,
        "workers": workers,
        "keep_checkpoints": keep_checkpoints,
        "fresh": fresh,
        "experiment": experiment,
        "tracking_uri": tracking_uri,
        "data_dir": data_dir,
        "echo": echo,
        "objective": objective,
        **_asked_for(context, settings),
    }
    grid = _grid(space, texts, axis, is_coursework=network in ("", COURSEWORK_NAME))
    if dry_run:
        print_plan(ft.dry_run(grid, **asked), as_json=as_json)
        return
    warm_up()
    try:
        result = ft.search(
            grid,
            **asked,
            trial_timeout=trial_timeout,
            max_time=max_time,
            upgrade_store=upgrade_store,
            on_start=collect_garbage_again,
        )
    except TrialsFailed as error:
        print_trials(error.result, as_json=as_json)
        raise
    end_fork_server()  # which may still import, if there was nothing to train
    if result.trials and all(trial.result.reused for trial in result.trials):
        echo(f"{flag('fresh')} trains all anew.")
    print_trials(result, as_json=as_json)
    if result.finished:
        _say_next(context, result.run_id)


@command(example="fmnist-track train --filters 48 --kernel-size 3 --epochs 5", resumable=True)
@options.with_settings(*FIELDS, after="set")
def train(
    context: typer.Context,
    network: str = options.NETWORK,
    set: list[str] = options.SET,
    objective: str = options.OBJECTIVE,
    final: bool = options.FINAL,
    run_id: str = options.FINAL_RUN_ID,
    trial_timeout: int | None = options.TRIAL_TIMEOUT,
    keep_checkpoints: bool = options.KEEP_CHECKPOINTS,
    fresh: bool = options.FRESH,
    protocol: str = options.PROTOCOL,
    limit: int | None = options.LIMIT,
    data_dir: Path | None = options.DATA_DIR,
    experiment: str | None = options.EXPERIMENT,
    tracking_uri: str | None = options.TRACKING_URI,
    upgrade_store: bool = options.UPGRADE_STORE,
    as_json: bool = options.JSON,
    **settings: Any,
) -> None:
    """Train one configuration, tracked in the same way as a search's trial.

    `fmnist-track train --final --run-id best` trains the winner of a search anew, on training and
    validation images together, so that it has no validation figures; `report` scores it on the
    test images, as any other.
    """
    shared: dict[str, Any] = {
        "trial_timeout": trial_timeout,
        "keep_checkpoints": keep_checkpoints,
        "fresh": fresh,
        "experiment": experiment,
        "tracking_uri": tracking_uri,
        "data_dir": data_dir,
        "upgrade_store": upgrade_store,
        "echo": echo,
        "on_start": collect_garbage_again,
    }
    if final or run_id:
        _require_final_alone(context, [*settings, *_OF_NO_FINAL])
        _train(context, lambda: ft.train_final(run_id, **shared), as_json=as_json)
        return
    chosen = settings
    if network not in ("", COURSEWORK_NAME):  # its own hyperparameters have its own defaults
        chosen = {
            **{name: settings[name] for name in TRAINING_SETTINGS},
            **_asked_for(context, settings),
        }
    own: dict[str, Value] = {}
    for text in [part for option in set if option for part in option.split(";")]:
        name, value = parse_setting(text)
        if name in own or name in OF_THE_TRAINING or is_given(context, name):
            raise ConfigError(f"{name} was given twice, or has an option of its own: {flag(name)}.")
        is_typed = name in FIELDS and network in ("", COURSEWORK_NAME)
        own[name] = parse_value(name, value, f"--set {name}") if is_typed else value
    chosen = {name: value for name, value in chosen.items() if name not in own}
    asked = {**chosen, "objective": objective, "protocol": protocol, "limit": limit, **shared}
    _train(
        context,
        lambda: ft.train(network=network or None, hyperparameters=own, **asked),
        as_json=as_json,
    )


def _train(context: typer.Context, train: "Callable[[], Trial]", *, as_json: bool) -> None:
    warm_up()
    try:
        result = train()
    except TrialsFailed as error:
        print_trial(error.result, as_json=as_json)
        raise
    end_fork_server()
    if result.result.reused:
        echo(f"{flag('fresh')} trains it anew.")
    print_trial(result, as_json=as_json)
    _say_next(context, result.run_id)


def _require_final_alone(context: typer.Context, others: Sequence[str]) -> None:
    """Refuse options that count for nothing, or contradict the trial that is trained anew."""
    given = context.params
    if not given["final"]:
        raise ConfigError(
            "Expected --run-id together with --final, which trains the winner of a search anew. "
            "Example: fmnist-track train --final --run-id best"
        )
    if not given["run_id"]:
        raise ConfigError("Expected --run-id after --final. Example: --final --run-id best")
    typed = [flag(name) for name in others if is_given(context, name)]
    if typed:
        raise ConfigError(
            f"Expected --final without {', '.join(typed)}: it trains with the network, settings "
            "and images of the trial that --run-id names."
        )


def _say_next(context: typer.Context, run_id: str) -> None:
    """Tell which commands show a run, with the options that lead to the same store and data."""
    uri, data_dir = context.params["tracking_uri"], context.params["data_dir"]
    address, condition = to_be_typed(uri) if uri else (None, "")
    store = ["--tracking-uri", address] if address else []
    report = ["report", run_id[:8], *store]
    if is_given(context, "experiment"):
        report += ["--experiment", context.params["experiment"]]
    if data_dir is not None:
        report += ["--data-dir", str(data_dir)]
    first = f"Next{condition.rstrip(',')}"
    echo(f"{first}: {shell_line(*report)}    or: {shell_line('ui', *store)}")


def _asked_for(context: typer.Context, settings: Mapping[str, Value]) -> dict[str, Value]:
    """Return the settings that a person gave.

    `mlflow run` gives every option; one with its default was not asked for.
    """
    return {
        name: value
        for name, value in settings.items()
        if is_given(context, name)
        and (value != FIELDS[name].default or not options.UNDER_MLFLOW_RUN)
    }


def _grid(
    file: Path | None,
    texts: Mapping[str, str | None],
    axes: Sequence[str],
    *,
    is_coursework: bool,
) -> SearchSpace | dict[str, tuple[Value, ...]]:
    """Return the grid that the options of `search` describe."""
    space = {} if file is None else load_space(file, is_coursework=is_coursework)
    given: dict[str, tuple[Value, ...]] = {}
    for name, text in texts.items():
        if text and is_coursework:
            given[name] = parse_values(name, options.as_typed(text))
        elif text:
            given[name] = parse_texts(options.as_typed(text), SEARCH_FLAGS[name])
    for text in [part for option in axes if option for part in option.split(";")]:
        name, values = parse_axis(options.as_typed(text), is_coursework=is_coursework)
        if name in given:
            raise ConfigError(f"The axis {name} was given twice. Give all its values at once.")
        given[name] = values
    for name in given:
        if name in space:
            option = SEARCH_FLAGS.get(name, "--axis")
            raise ConfigError(
                f"The axis {name} was given twice, by {option} and in the grid file {file}. "
                "Expected it in one of them."
            )
    if not is_coursework:
        return {**space, **given}
    return (SearchSpace(axes=space) if file is not None else SearchSpace()).with_axes(given)
