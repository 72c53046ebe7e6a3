"""Options that several commands share. Defaults and words come from `config`."""

import inspect
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import typer

from fmnist_tracking.cli.completion import axis_names, objectives, oracles, protocols, run_ids
from fmnist_tracking.cli.parse import parse_seconds, parse_value, parse_whole
from fmnist_tracking.cli.typed import AXIS, LIST_METAVAR
from fmnist_tracking.config import (
    COURSEWORK_GRID,
    DEFAULT_EXPERIMENT,
    DEFAULT_SAMPLE_SEED,
    FIELDS,
    SEARCH_FLAGS,
    flag,
)
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.network import Value
from fmnist_tracking.objective import OBJECTIVES, VAL_ACCURACY
from fmnist_tracking.search_space import ORACLES
from fmnist_tracking.split_config import SplitConfig

# Asked now: MLflow removes the variable when it has ended a run.
UNDER_MLFLOW_RUN = "MLFLOW_RUN_ID" in os.environ


def as_typed(text: object) -> str:
    """Return what a person typed; programs that start `mlflow run` write 25 as 25.0."""
    if not UNDER_MLFLOW_RUN:
        return str(text)
    return re.sub(r"(?<![\w.+-])([0-9]+)\.0+(?=\s*(?:[,;]|$))", r"\1", str(text))


def axis_option(name: str) -> Any:
    """Return an option that lists the values of one axis of the grid."""
    values = ",".join(f"{value:g}" for value in COURSEWORK_GRID[name])
    return typer.Option(
        None,
        SEARCH_FLAGS[name],
        metavar=LIST_METAVAR,
        help=f"Values to try: {FIELDS[name].about}. Default: {values}.",
        rich_help_panel="Grid",
    )


NETWORK = typer.Option(
    "",
    "--network",
    metavar="FILE.py:NAME",
    help="Network of your own: a function build(hp) that returns a compiled Keras model, or a "
    "HyperModel, in a file or as package.module:NAME. Default: the coursework's.",
    rich_help_panel="Network",
)
AXES = typer.Option(
    [],
    AXIS,
    metavar="NAME=V,V,…",
    help="Values to try of a hyperparameter of the network, or of a setting of the training, such "
    "as learning_rate=0.001,0.0003. For several, give it again, or separate them by a semicolon.",
    autocompletion=axis_names,
    rich_help_panel="Grid",
)


SET = typer.Option(
    [],
    "--set",
    metavar="NAME=VALUE",
    help="A hyperparameter of the network, such as optimizer=sgd; its others have their defaults. "
    "For several, give it again, or separate them by a semicolon.",
    rich_help_panel="Network",
)


def field_option(name: str, *, may_be_empty: bool = False) -> Any:
    """Return an option for a field of `TrainingConfig`, with its default and words from there.

    If it may be empty, an empty text, as `mlflow run` may give it, leaves the default.
    """
    about, default = FIELDS[name].about, FIELDS[name].default

    def parse(text: object) -> Value:
        if text == "" and may_be_empty:
            return cast(Value, default)
        return parse_value(name, as_typed(text), flag(name))

    return typer.Option(
        default,
        flag(name),
        metavar="N",
        parser=parse,
        help=about[0].upper() + about[1:] + ".",
        rich_help_panel="Training",
    )


def with_settings(
    *names: str, after: str, may_be_empty: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each of these fields of `TrainingConfig`; see `field_option`.

    The command takes them as keyword arguments, `**settings`. They are listed after one of its own
    parameters.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[:-1]  # but not **settings
        fields = [
            own[0].replace(
                name=name,
                default=field_option(name, may_be_empty=may_be_empty),
                annotation=int if FIELDS[name].is_whole else float,
            )
            for name in names
        ]
        place = 1 + [parameter.name for parameter in own].index(after)
        function.__annotations__ |= {field.name: field.annotation for field in fields}
        signature = inspect.Signature([*own[:place], *fields, *own[place:]])
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


def whole_option(
    default: int | None,
    option: str,
    minimum: int,
    maximum: float = math.inf,
    *,
    word: str | None = None,
    **settings: Any,
) -> Any:
    """Return an option that takes a whole number in a range; an empty text leaves it out.

    So does the word, if there is one, which stands for the default.
    """
    limits = f"of at least {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
    limits += f", or {word}" if word else ""

    def parse(text: object) -> int | None:
        if text in ("", word):
            return default
        try:
            number = parse_whole(as_typed(text))
        except ValueError:
            number = None
        if number is None or not minimum <= number <= maximum:
            raise ConfigError(f"Expected {option} to be a whole number {limits}, got {text!r}.")
        return number

    metavar = f"N|{word}" if word else "N"
    return typer.Option(word or default, option, metavar=metavar, parser=parse, **settings)


OBJECTIVE = typer.Option(
    VAL_ACCURACY.name,
    "--objective",
    metavar="NAME",
    help="What the epochs of a trial, and the points, are compared by: "
    f"{', '.join(OBJECTIVES)}. Of a loss, the lowest is best.",
    autocompletion=objectives,
    rich_help_panel="Training",
)
WORKERS = whole_option(
    None,
    "--workers",
    1,
    word="auto",
    help="Trials that run at once, each in its own process; auto takes as many as suit this "
    "machine: one for each processor core, or fewer where memory is short.",
)
TRIAL_TIMEOUT = whole_option(
    None,
    "--trial-timeout",
    1,
    help="End the process of a trial that ends no epoch for N seconds, and have the trial go on "
    "in a new one; it fails if that is so again. Default: wait, and tell of it.",
)
ORACLE = typer.Option(
    ORACLES[0],
    "--oracle",
    metavar="NAME",
    help="grid tries every point; random draws --max-trials of them; bayesian asks for as many, "
    "each given how others came out: KerasTuner's own, with the --seed.",
    autocompletion=oracles,
    rich_help_panel="Grid",
)
MAX_TRIALS = whole_option(
    None,
    "--max-trials",
    1,
    help="Try only the first N points of the grid; the same command with more, or without it, goes "
    "on with the others. With another --oracle, which needs it: how many points.",
    rich_help_panel="Grid",
)


def _duration(text: object) -> int | None:
    if text == "":
        return None
    try:
        return parse_seconds(as_typed(text))
    except ValueError:
        raise ConfigError(
            f"Expected --max-time to be hours, minutes or seconds, such as 2h, 90m or 1h30m, got "
            f"{text!r}."
        ) from None


MAX_TIME = typer.Option(
    None,
    "--max-time",
    metavar="TIME",
    parser=_duration,
    help="End the search when trials have run for such a time, as 2h, 90m or 1h30m, and keep what "
    "it has. The same command goes on: of a trial that was cut off, after its last whole epoch.",
)
FRESH = typer.Option(
    False, "--fresh", help="Train all anew, even what finished before or was cut off."
)
FINAL = typer.Option(
    False,
    "--final",
    help="Train the trial that --run-id names anew, on training and validation images together, "
    "for as many epochs as its best epoch was. Its settings are that trial's.",
    rich_help_panel="Final training",
)
KEEP_CHECKPOINTS = typer.Option(
    False,
    "--keep-checkpoints",
    help="Keep the checkpoint of each trial that finishes, so that the same command with more "
    "epochs goes on from there: --epochs 8 --keep-checkpoints, and later --epochs 12. They are in "
    "the folders kept_* of FMNIST_STATE_DIR, which may be deleted.",
)


def path_option(option: str, metavar: str, about: str, panel: str | None = None) -> Any:
    """Return an option that takes a path; an empty text, as of `mlflow run`, leaves it out."""
    return typer.Option(
        None,
        option,
        metavar=metavar,
        parser=lambda text: Path(text) if str(text) else None,
        help=about,
        rich_help_panel=panel,
    )


PROTOCOL = typer.Option(
    SplitConfig().protocol,
    "--protocol",
    help="canonical: the data set's own test images stay sealed. coursework: all images are "
    "pooled and a fifth is for testing.",
    autocompletion=protocols,
    rich_help_panel="Data",
)
LIMIT = whole_option(
    None,
    "--limit",
    1,
    help="Use N images for training and validation together, and at most N for testing. "
    "For trying things out.",
    rich_help_panel="Data",
)
DATA_DIR = path_option(
    "--data-dir",
    "DIR",
    "Folder or .npz file with any image classification set. Default: FMNIST_DATA_DIR, else "
    "Fashion-MNIST: the system's copy, or the user's cache, filled from the network.",
    "Data",
)
EXPERIMENT = typer.Option(
    None,
    "--experiment",
    metavar="NAME",
    help="MLflow experiment to put the runs in. Default: MLFLOW_EXPERIMENT_NAME or "
    f"MLFLOW_EXPERIMENT_ID, else {DEFAULT_EXPERIMENT}.",
    rich_help_panel="Tracking",
)
IN_EXPERIMENT = typer.Option(
    None,
    "--experiment",
    metavar="NAME",
    help="MLflow experiment to look in. Default: MLFLOW_EXPERIMENT_NAME or "
    f"MLFLOW_EXPERIMENT_ID, else {DEFAULT_EXPERIMENT}. A run id is found in any.",
    rich_help_panel="Tracking",
)
TRACKING_URI = typer.Option(
    None,
    "--tracking-uri",
    metavar="URI",
    help="MLflow store. Default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this folder.",
    rich_help_panel="Tracking",
)
TRUST_OPTION = typer.Option(
    False,
    "--trust-artifact-location",
    help="Read and write files of runs wherever the store says that they are, also outside its "
    "folder. Also: FMNIST_TRUST_ARTIFACT_LOCATION=1.",
    rich_help_panel="Tracking",
)
UPGRADE_STORE = typer.Option(
    False,
    "--upgrade-store",
    help="Bring a store of an older MLflow up to date, after which that MLflow cannot open it any "
    "more. A copy of a SQLite file is kept beside it.",
    rich_help_panel="Tracking",
)


_A_RUN = (
    "A run id, its first characters, `latest`, `best` (of the latest search), `best-of-all` (of "
    "all searches on the same images), or `champion` (what `promote` chose)."
)


def run_id_option(default: Any = ..., about: str = _A_RUN, panel: str | None = None) -> Any:
    """Return an option that names a run; without a default it must be given."""
    return typer.Option(
        default,
        "--run-id",
        metavar="ID",
        help=about,
        autocompletion=run_ids,
        rich_help_panel=panel,
    )


RUN_ID = run_id_option()
# Of commands without other arguments.
ONLY_RUN_ID = run_id_option(about=f"{_A_RUN} It may also be given alone, without `--run-id`.")
FINAL_RUN_ID = run_id_option(
    "",
    "With --final: a trial, or a search, of which it is the best one: a run id, its first "
    "characters, `best` or `latest` (of the latest search), `best-of-all` or `champion`.",
    "Final training",
)
OUTPUT_DIR = path_option(
    "--output-dir", "DIR", "Where the files go. Default: reports/ and the run's first characters."
)
SAMPLE_SEED = whole_option(
    DEFAULT_SAMPLE_SEED,
    "--seed",
    0,
    help="Chooses the sample images; the same seed, the same ones.",
)
TRUST_CODE = typer.Option(
    False,
    "--trust-code",
    help="Run the code that was logged with the model, if it needs some: that of layers of one's "
    "own. Whoever can write to the store could have put it there.",
)
JSON = typer.Option(False, "--json", help="Print one JSON object to standard output.")
