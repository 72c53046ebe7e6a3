"""Train the winner of a search anew, on training and validation images together."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from fmnist_tracking import tracking
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.console import Echo, echo_line, lines_to
from fmnist_tracking.data import FASHION_MNIST_DIGEST, Dataset, load_named
from fmnist_tracking.errors import ConfigError, DataError, setting
from fmnist_tracking.grid_search.arguments import config_of
from fmnist_tracking.grid_search.entry import OnFailure, check_options, judged, whole
from fmnist_tracking.grid_search.images import network_for
from fmnist_tracking.grid_search.train import train_config
from fmnist_tracking.network import Network
from fmnist_tracking.networks.source import find_network
from fmnist_tracking.results import FINISHED, StoredRun, TrialResult, located
from fmnist_tracking.runs import Trial
from fmnist_tracking.tracking import TrackedRun


def train_final(
    run: str | StoredRun,
    *,
    trial_timeout: int | None = None,
    keep_checkpoints: bool = False,
    fresh: bool = False,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    data_dir: str | Path | None = None,
    upgrade_store: bool = False,
    on_failure: OnFailure = "raise",
    echo: Echo | None = echo_line,
    on_start: Callable[[], None] | None = None,
) -> Trial:
    """Train a trial, or a search's best one, anew on training and validation images together.

    It is trained for as many epochs as its best epoch was, with the same seed, settings and
    network, and tracked as a run of its own, which has no validation figures. With more images, an
    epoch has more steps of the optimizer than the trial's had.

    Args:
        run: a search, a trial, or the name of one: a run id, its beginning, `best`, or `latest` for
            the best trial of the latest search.
        trial_timeout: see `search`, as for the arguments below.
        keep_checkpoints: keep its checkpoint, for a final training of more epochs.
        fresh: train it anew, whatever has finished before.
        experiment: name of the experiment to look in, and to put the run in.
        tracking_uri: address of the MLflow store, None for the usual one.
        data_dir: folder or `.npz` file with the data that the trial was trained on.
        upgrade_store: bring a store of an older MLflow up to date, rather than refuse it.
        on_failure: what to do if the training diverges, `raise` or `warn`.
        echo: called with lines on what begins, None shows nothing.
        on_start: called when all is loaded, before the training begins.

    Raises:
        ConfigError: the trial has not finished, diverged, is itself a final training, or its
            network is not there as it was.
        DataError: the data is not what the trial was trained on.
        SearchError: the training failed; its run holds the traceback.
        TrackingError: there is no such run.
    """
    flags = {"keep_checkpoints": keep_checkpoints, "fresh": fresh, "upgrade_store": upgrade_store}
    check_options(on_failure, echo, on_start, **flags)
    trial_timeout = whole("trial_timeout", trial_timeout)
    reference, tracking_uri = located(run, tracking_uri)
    named = load_named(data_dir)
    with tracking.open_store(
        tracking_uri, access="write", files=False, upgrade=upgrade_store
    ) as store:
        found = tracking.find_run(store, reference, experiment, latest=["search"])
        tracked = tracking.best_trial(store, found)
        trial = tracking.read_trial(tracked)
    _require_useful(trial)
    _require_same_data(tracked, named)
    trained = train_config(
        _config(trial, named, echo),
        dataclasses.replace(tracked.split, validates=False),
        final_of=trial,
        trial_timeout=trial_timeout,
        keep_checkpoints=keep_checkpoints,
        fresh=fresh,
        echo=echo,
        on_start=on_start,
        named=named,
        data_dir=data_dir,
        experiment=experiment,
        tracking_uri=tracking_uri,
        upgrade_store=upgrade_store,
    )
    return judged(trained, on_failure)


def _require_useful(trial: TrialResult) -> None:
    this = f"The trial {trial.run_id[:8]}"
    if trial.final_of is not None:
        raise ConfigError(
            f"{this} is itself the final training of {trial.final_of[:8]}. Expected a trial with "
            "validation images, or a search."
        )
    if trial.status != FINISHED:
        raise ConfigError(
            f"{this} is {trial.status}, so that its best epoch is not known. Give its own command "
            "again, or choose a FINISHED one; `fmnist-track runs` shows the status of each."
        )
    if trial.diverged:
        raise ConfigError(
            f"{this} diverged, so that training it again is of no use. Choose another trial."
        )


def _require_same_data(trial: TrackedRun, named: Dataset | None) -> None:
    digest = FASHION_MNIST_DIGEST if named is None else named.digest
    if digest != trial.data_sha256:
        raise DataError(
            f"The trial {trial.run_id[:8]} was trained on other data (SHA-256 "
            f"{trial.data_sha256[:12]}… against {digest[:12]}…). Name the right folder with "
            f"{setting('data_dir')}."
        )


def _config(trial: TrialResult, named: Dataset | None, echo: Echo | None) -> TrainingConfig:
    """Return a trial's configuration, to be trained as far as its best epoch."""
    config = trial.config.replace(epochs=trial.best_epoch or 0, patience=0)
    if config.network.is_coursework:
        return config
    network = _same_network(trial, named)
    return config_of(network, config.values, lines_to(echo))


def _same_network(trial: TrialResult, named: Dataset | None) -> Network:
    """Find the network of a trial again; raise `ConfigError` unless it is there as it was."""
    known = trial.config.network
    try:
        network = network_for(find_network(known.name), named)
    except ConfigError as error:
        why = f"is not found from here ({error})"
    else:
        if network == known:
            return network
        why = "has changed since: its source, or what it imports from beside it, is another"
    raise ConfigError(
        f"The trial {trial.run_id[:8]} was trained with {known.name}, which {why}. Give the "
        "command in the folder that has that file as it was, or search again with the network as "
        "it is."
    )
