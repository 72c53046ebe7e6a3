"""Which experiment to use: an option, the environment or `mlflow run` names it."""

import os

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.utils import get_results_from_paginated_fn

from fmnist_tracking.config import DEFAULT_EXPERIMENT, FIELDS, require_text
from fmnist_tracking.errors import ConfigError, TrackingError, setting
from fmnist_tracking.results import RUNNING
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.artifacts import require_trusted
from fmnist_tracking.tracking.queries import PAGE, find_any, is_absent
from fmnist_tracking.tracking.store import Store, require_active

_NAMES_SHOWN = 10
_RUN, _ID, _NAME = "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"
_OPTION = setting("experiment")
# The entry points under which `mlflow run` starts a command; `main` if none is named.
_ENTRY_POINTS = {"search": ("search", "main")}
# The parameters of MLproject: a run made for one of its entry points has no others.
PROJECT_PARAMETERS = {
    *FIELDS,
    *("kernel_sizes", "axis", "space", "repeats", "workers", "protocol", "limit", "data_dir"),
    *("trial_timeout", "oracle", "objective", "max_trials", "max_time", "network", "set"),
    *("run_id", "output_dir", "layer"),
}


def adoptable_run(store: Store, command: str) -> str | None:
    """Return the run that `mlflow run` created for a command, such as `search`; else None.

    Raises:
        ConfigError: MLFLOW_RUN_ID names a run that was not made for this command; it stays
            unchanged.
    """
    run_id = os.environ.get(_RUN)
    if not run_id:
        return None
    why_not = _why_not_adopted(store, run_id, command)
    if why_not is None:
        return run_id
    raise ConfigError(
        f"{_RUN} names the run {run_id[:8]}, which {why_not}. Expected a run that `mlflow run` has "
        f"just made for this very command. Unset {_RUN}, and give the command again."
    )


def _why_not_adopted(store: Store, run_id: str, command: str) -> str | None:
    run = find_any(store, run_id)
    if run is None:
        return f"is not in the store {store.public_uri}"
    tags, metrics, params = run.data.tags, run.data.metrics, run.data.params
    if run.info.lifecycle_stage != "active":
        return "was deleted"
    if run.info.status != RUNNING:
        return f"is {run.info.status}"
    if schema.ROLE in tags or schema.REPORT_OF in tags or metrics:
        return "is in use already"
    if tags.get(schema.ENTRY_POINT) not in _ENTRY_POINTS.get(command, (command,)):
        return f"was not made for `{command}`"
    foreign = params.keys() - PROJECT_PARAMETERS
    if foreign:
        return f"was made for another project (its parameter {min(foreign)!r} is none here)"
    return None


def choose_experiment(store: Store, name: str | None, adopted: str | None = None) -> str:
    """Return the id of the experiment to put runs in; create it if there is none.

    If `mlflow run` created a run, the `adopted` one, it is that run's experiment.

    Raises:
        ConfigError: two ways to name the experiment contradict each other.
        TrackingError: the experiment was deleted, or its files are on a disk that is not there or
            in a place that a store may not choose.
    """
    found = existing_experiment(store, name, adopted)
    if found is not None:
        location = store.client.get_experiment(found).artifact_location
        store.require_reached(location)
        require_trusted(store, location)
        return found
    return store.experiment_id(name_in_use(store, name))


def name_in_use(store: Store, name: str | None) -> str:
    """Return the name of the experiment to put runs in, whether or not it exists.

    Raises:
        ConfigError: two ways to name the experiment contradict each other.
    """
    return _given(store, name) or DEFAULT_EXPERIMENT


def existing_experiment(store: Store, name: str | None, adopted: str | None = None) -> str | None:
    """Return the id that `choose_experiment` would, None if the experiment does not exist yet.

    Raises:
        ConfigError: two ways to name the experiment contradict each other.
        TrackingError: the experiment was deleted.
    """
    if adopted is not None:
        experiment = store.client.get_experiment(store.client.get_run(adopted).info.experiment_id)
        _require_equal({**_ways(store, name), "the run of `mlflow run`": experiment.name})
        require_active(experiment)
        return str(experiment.experiment_id)
    found = store.client.get_experiment_by_name(name_in_use(store, name))
    if found is None:
        return None
    require_active(found)
    return str(found.experiment_id)


def experiment_in_use(store: Store, name: str | None) -> dict[str, str]:
    """Return the experiment to look in: its name by its id, empty if it does not exist yet.

    It is the named one, else that of MLflow's variables, else the default one. Under `mlflow run`,
    it is the one of the run that it made, unless another is named.

    Raises:
        ConfigError: two ways to name the experiment contradict each other.
        TrackingError: there is no experiment of the name given, or it was deleted.
    """
    given = _given(store, name)
    experiment_id = os.environ.get(_ID)
    if given is None and experiment_id:
        given = _by_id(store, experiment_id).name
    found = store.client.get_experiment_by_name(given or DEFAULT_EXPERIMENT)
    if found is not None:
        require_active(found)
        return {found.experiment_id: found.name}
    if given is None:
        return {}
    known = [e.name for e in store.client.search_experiments(max_results=_NAMES_SHOWN)]
    raise TrackingError(
        f"There is no experiment {given!r} in this store. It has: "
        f"{', '.join(sorted(known))}{', …' if len(known) == _NAMES_SHOWN else '.'}"
    )


def all_experiments(store: Store) -> dict[str, str]:
    """Return all experiments of the store, whoever made them: their names by id."""
    every: list[Experiment] = get_results_from_paginated_fn(  # type: ignore[no-untyped-call]
        lambda count, token: store.client.search_experiments(max_results=count, page_token=token),
        PAGE,
    )
    return {experiment.experiment_id: experiment.name for experiment in every}


def _given(store: Store, name: str | None) -> str | None:
    """Return the name of the experiment, however it was given; None if it was not."""
    ways = _ways(store, name)
    _require_equal(ways)
    return next(iter(ways.values()), None)


def _ways(store: Store, name: str | None) -> dict[str, str]:
    if name is not None:
        require_text("experiment", name)
    ways = {_OPTION: name, _NAME: os.environ.get(_NAME)}
    experiment_id = os.environ.get(_ID)
    # Under `mlflow run` it is the experiment of the new run: a person may name another to look in.
    if experiment_id and not os.environ.get(_RUN):
        ways[_ID] = _by_id(store, experiment_id).name
    return {way: given for way, given in ways.items() if given}


def _by_id(store: Store, experiment_id: str) -> Experiment:
    try:
        return store.client.get_experiment(experiment_id)
    except MlflowException as error:
        if not is_absent(error):
            raise
        raise ConfigError(
            f"{_ID} is {experiment_id!r}, but the store {store.public_uri} has no experiment with "
            "that id. Correct it, or unset it."
        ) from None


def _require_equal(ways: dict[str, str]) -> None:
    if len(set(ways.values())) > 1:
        listed = ", ".join(f"{way} says {name!r}" for way, name in ways.items())
        raise ConfigError(f"The experiment is given in ways that differ: {listed}. Give one.")
