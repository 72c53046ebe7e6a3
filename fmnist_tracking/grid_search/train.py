"""Train one configuration, tracked as a trial of a search is."""

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from fmnist_tracking import fingerprint, tracking
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.console import Echo, echo_line, lines_to
from fmnist_tracking.data import load_named
from fmnist_tracking.errors import SearchError
from fmnist_tracking.grid_search.arguments import (
    config_of,
)
from fmnist_tracking.grid_search.entry import (
    OnFailure,
    check_options,
    judged,
    load_libraries,
    own_run,
    whole,
)
from fmnist_tracking.grid_search.images import network_for, split_of
from fmnist_tracking.grid_search.lock import checkpoint_folder, keeping_for, locked_folder
from fmnist_tracking.grid_search.memory import (
    require_processes,
    require_room,
    require_room_at_once,
)
from fmnist_tracking.grid_search.plan import plan_trials
from fmnist_tracking.grid_search.progress import Progress
from fmnist_tracking.grid_search.recording import Recording
from fmnist_tracking.grid_search.resources import open_resources
from fmnist_tracking.network import Value
from fmnist_tracking.networks.source import NetworkName, find_network
from fmnist_tracking.redact import printable
from fmnist_tracking.results import TrialResult
from fmnist_tracking.runs import Trial
from fmnist_tracking.search_space import trial_name
from fmnist_tracking.split_config import Protocol, SplitConfig
from fmnist_tracking.tracking import ResumeState

_LONGEST_NAME = 120


def train(
    *,
    network: NetworkName = None,
    hyperparameters: Mapping[str, Value] | None = None,
    protocol: Protocol = "canonical",
    limit: int | None = None,
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
    **settings: Value,
) -> Trial:
    """Train one configuration, tracked as a trial is; go on with it if it was cut off.

    It is given as settings, such as `filters=48`, or those of the network as `hyperparameters`, in
    a dictionary; its others have their defaults. For the other arguments, see `search`;
    `on_failure` is what to do if the training diverges.

    Raises:
        SearchError: the training failed; its run holds the traceback. For others, see `search`.
    """
    flags = {"keep_checkpoints": keep_checkpoints, "fresh": fresh, "upgrade_store": upgrade_store}
    check_options(on_failure, echo, on_start, **flags)
    trial_timeout = whole("trial_timeout", trial_timeout)
    named = load_named(data_dir)
    chosen = {**settings, **(hyperparameters or {})}
    config = config_of(network_for(find_network(network), named), chosen, lines_to(echo))
    split = split_of(named, protocol, config.seed, limit)
    trained = train_config(
        config,
        split,
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


def train_config(
    config: TrainingConfig,
    split: SplitConfig,
    *,
    final_of: TrialResult | None = None,
    trial_timeout: int | None,
    keep_checkpoints: bool,
    fresh: bool,
    echo: Echo | None,
    on_start: Callable[[], None] | None,
    tracking_uri: str | None,
    **places: Any,
) -> Trial:
    """Train one configuration on a split, as `train` does, whose arguments have been checked.

    `final_of` is the trial that it is the final training of. The places are those of
    `open_resources`. The training may have diverged.
    """
    require_room_at_once([config], split, 1, fresh=fresh, tracking_uri=tracking_uri)
    quiet, echo = echo is None, lines_to(echo)
    # No run that `mlflow run` has made, with the settings of `train`, is that of a final training.
    command = "train --final" if final_of else "train"
    with open_resources(
        command, workers=1, split=split, tracking_uri=tracking_uri, echo=echo, **places
    ) as resources:
        store, experiment_id = resources.store, resources.experiment_id
        keys = fingerprint.of_grid([config], split, resources.dataset.digest)
        (point,) = keys.today
        with locked_folder(checkpoint_folder(store, experiment_id, point), fresh=fresh) as held:
            folder, state = held.path, ResumeState()
            if not fresh:
                resources.claims.wait(point, trial_name(config), echo)
                state = tracking.find_training(store, experiment_id, keys, held.before)
            digest = resources.dataset.digest
            keeping = keeping_for(store, experiment_id, digest, fresh=fresh, keeps=keep_checkpoints)
            (trial,) = plan_trials([config], [point], (), split, state, folder, keeping)
            if final_of is not None:
                name = printable(f"final of {final_of.name}", _LONGEST_NAME)
                trial = dataclasses.replace(trial, name=name, final_of=final_of.run_id)
            if trial.finished is not None and resources.adopted is None:
                tracking.log_asked(store, trial.finished.run_id)
                echo(f"The run {trial.finished.run_id[:8]} has trained this before; it is reused.")
                reused = dataclasses.replace(trial.finished, reused=True)
                return Trial(reused, store.address)
            require_room([config], split, 1)
            require_processes(1)
            load_libraries(resources)
            from fmnist_tracking.grid_search.scheduler import TrialScheduler

            progress = Progress([config], [trial.name], quiet=quiet)
            with Recording(resources, folder, progress.echo) as recording:
                if on_start is not None:
                    on_start()
                with (
                    TrialScheduler(
                        resources,
                        recording,
                        show=progress,
                        echo=progress.echo,
                        parent=None,
                        timeout=trial_timeout,
                        is_shared=False,  # its one point is claimed already
                    ) as scheduler,
                    progress,
                ):
                    score = scheduler.submit(dataclasses.replace(trial, finished=None))
                    ends: list[Future[Any]] = [score, recording.writer.failed]
                    wait(ends, return_when=FIRST_COMPLETED)
                    run = recording.do_last(lambda: own_run(store, recording.run_id))
                    error = score.result().error
                if error:
                    raise SearchError(f"The training failed ({error}). Its run is {run.run_id}.")
            return Trial(tracking.read_trial(run), store.address)
