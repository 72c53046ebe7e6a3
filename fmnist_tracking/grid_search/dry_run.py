"""A dry run: what a search would do, and how long it would take."""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmnist_tracking import fingerprint, machine, runtime, tracking
from fmnist_tracking.config import (
    TrainingConfig,
    require_flag,
    require_path,
    require_text,
    require_whole,
)
from fmnist_tracking.console import Echo, echo_line, lines_to
from fmnist_tracking.data import Dataset, load_dataset, load_named, require_enough
from fmnist_tracking.errors import ConfigError, FmnistTrackingError, SearchError, first_line
from fmnist_tracking.grid_search.arguments import (
    Grid,
    asked_for,
    drawn_points,
    require_arguments,
)
from fmnist_tracking.grid_search.images import cache_images, network_for, split_of
from fmnist_tracking.grid_search.lock import checkpoint_folder, keeping_for
from fmnist_tracking.grid_search.memory import require_room, too_large, workers_for
from fmnist_tracking.grid_search.plan import Keeping, PlannedTrial, plan_trials
from fmnist_tracking.grid_search.resources import local_workers
from fmnist_tracking.grid_search.time_estimate import (
    TimeEstimator,
    checkpoint_bytes,
    disk_bytes,
    time_left,
    work,
)
from fmnist_tracking.network import Value
from fmnist_tracking.networks.source import NetworkName, find_network
from fmnist_tracking.results import TrialResult
from fmnist_tracking.search_space import Oracle, trial_name
from fmnist_tracking.split_config import Protocol, SplitConfig
from fmnist_tracking.tracking import ResumeState
from fmnist_tracking.warm_up import warm_up
from fmnist_tracking.workers import WorkerDied, WorkerPool

FINISHED, CONTINUES, NEW, REFUSED = "finished", "continues", "new", "refused"
# A measurement trains on so many images, a network of at most so many multiply-adds an image: some
# seconds on a slow processor.
_MEASURED_IMAGES = 3_000
_MEASURED_WORK = 5e6
# In the worker, which imports TensorFlow for it.
_MEASURE = "fmnist_tracking.grid_search.worker:measure"
_NOTHING_KEPT = Keeping(folder=Path(os.devnull), data_digest="", uses=False, keeps=False)
# Of more points, a person is told that they are looked at.
_MANY = 10_000


@dataclass(frozen=True, kw_only=True)
class DryRunPoint:
    """A point of the grid, and what a search would do with it.

    Attributes:
        name: for people.
        state: `finished`, `continues`, `new` or `refused`.
        run_id: of the finished run, or of the one that is resumed.
        epochs_done: epochs that need not be trained again.
        epochs: epochs in all.
        reason: why it is refused.
    """

    name: str
    state: str
    run_id: str | None = None
    epochs_done: int = 0
    epochs: int = 0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class DryRun:
    """What a search would do.

    Attributes:
        points: all of the grid, in its order.
        workers: trials that would run at once.
        seconds: how long it would take, about; None where points are refused.
        based_on: what that was estimated from, for people.
        disk_bytes: that it would take, about.
        kept_bytes: that the checkpoints which are kept would take beside that, about.
    """

    points: tuple[DryRunPoint, ...]
    workers: int
    seconds: float | None
    based_on: str
    disk_bytes: int
    kept_bytes: int = 0

    def __repr__(self) -> str:
        counts = Counter(point.state for point in self.points)
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        noun = "point" if len(self.points) == 1 else "points"
        return f"{len(self.points)} {noun}: {states}; {self.workers} at once"

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write."""
        return dataclasses.asdict(self)


def dry_run(
    grid: Grid | None = None,
    *,
    network: NetworkName = None,
    skip_impossible: bool = False,
    oracle: Oracle = "grid",
    repeats: int = 1,
    protocol: Protocol = "canonical",
    limit: int | None = None,
    workers: int | None = None,
    max_trials: int | None = None,
    keep_checkpoints: bool = False,
    fresh: bool = False,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    data_dir: str | Path | None = None,
    echo: Echo | None = echo_line,
    **settings: Value,
) -> DryRun:
    """Return what `search` would do with the same arguments, and how long it would take.

    Nothing is written to the store. The time is estimated from the finished trials of the
    experiment on as many images, or, without any, from a training of a few seconds. For the
    arguments, see `search`.

    Raises:
        ConfigError: as many trials at once as are asked for have no room in the memory.
        DataError: the data cannot be had.
        TrackingError: the store cannot be reached.
    """
    echo = lines_to(echo)
    require_flag("fresh", fresh)
    max_trials = None if max_trials is None else require_whole("max_trials", max_trials)
    drawn = drawn_points(oracle, max_trials)
    require_flag("keep_checkpoints", keep_checkpoints)
    built_by = find_network(network)
    require_arguments(built_by, grid, settings, repeats)
    named = load_named(data_dir)
    asked = asked_for(
        grid,
        settings,
        repeats,
        network=network_for(built_by, named),
        skip_impossible=True,  # they are told
        echo=echo,
        oracle=oracle,
        drawn=drawn,
    )
    if asked.bayesian is not None:
        echo(
            "Which points follow the first ones depends on results; here are points drawn at "
            "random in their place."
        )
    most = max_trials if drawn is None else None
    space = asked.space
    split = split_of(named, protocol, asked.base.seed, limit)
    if experiment is not None:
        require_text("experiment", experiment)
    data_dir = None if data_dir is None else require_path("data_dir", data_dir)
    dataset = load_dataset() if named is None else named
    require_enough(dataset, split)
    if len(space) > _MANY:
        echo(f"Looking at {len(space):,} points; this takes a while.")
    require_flag("skip_impossible", skip_impossible)
    keys = fingerprint.of_grid(asked.points, split, dataset.digest)
    good = asked.points[:most]
    slots = workers_for(good, split, workers)
    threads = runtime.threads_of(slots)
    known = _Known()
    if not tracking.is_yet_to_be_made(tracking_uri):
        known = _look(keys, dataset.digest, split, threads, fresh, experiment, tracking_uri)
    keeping = dataclasses.replace(known.keeping, keeps=keep_checkpoints)
    today = keys.today[: len(good)]
    planned = plan_trials(good, today, space.varying, split, known.state, known.folder, keeping)
    memory, trials = machine.memory(), iter(planned)
    points = [_point(next(trials), too_large(config, split, memory)) for config in good]
    if not skip_impossible:
        points += [
            DryRunPoint(name=one.name, state=REFUSED, reason=one.reason) for one in asked.impossible
        ]
    left = [
        trial
        for trial in planned
        if trial.finished is None and too_large(trial.config, split, memory) is None
    ]
    to_train = [(trial.config, trial.config.epochs - _epochs_done(trial)) for trial in left]
    # Points that differ in their epochs alone keep one checkpoint.
    kept = {
        trial.keep_in.folder: checkpoint_bytes(trial.config, split.validation_images)
        for trial in left
        if trial.keep_in is not None
    }
    require_room([config for config, _ in to_train], split, workers)
    seconds, based_on = 0.0, "nothing is left to train"
    if to_train:
        estimator = TimeEstimator()
        for like in known.like:
            _count(estimator, like)
        based_on = (
            f"{len(known.like)} finished trials on as many images"
            if known.like
            else _measure(estimator, to_train, dataset, split, data_dir, threads)
        )
        waiting = (estimator.seconds(config, epochs) for config, epochs in to_train)
        # More workers than cores or GPUs train no faster.
        at_once = min(slots, max(machine.cores(), machine.gpus()))
        seconds = time_left((), waiting, at_once)
    return DryRun(
        points=tuple(points),
        workers=slots,
        seconds=None if any(point.state == REFUSED for point in points) else seconds,
        based_on=based_on,
        disk_bytes=sum(disk_bytes(config) for config, _ in to_train),
        kept_bytes=sum(kept.values()),
    )


def _epochs_done(trial: PlannedTrial) -> int:
    return trial.epochs_done or trial.epochs_kept


def _point(trial: PlannedTrial, too_large: str | None) -> DryRunPoint:
    epochs = trial.config.epochs
    if trial.finished is not None:
        return DryRunPoint(
            name=trial.name,
            state=FINISHED,
            run_id=trial.finished.run_id,
            epochs_done=epochs,
            epochs=epochs,
        )
    if too_large is not None:
        return DryRunPoint(name=trial.name, state=REFUSED, reason=too_large)
    return DryRunPoint(
        name=trial.name,
        state=CONTINUES if _epochs_done(trial) else NEW,
        run_id=trial.run_id,
        epochs_done=_epochs_done(trial),
        epochs=epochs,
    )


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the store has already."""

    state: ResumeState = field(default_factory=ResumeState)
    folder: Path = Path(os.devnull)  # with the search's checkpoints; by default of none
    like: Sequence[TrialResult] = ()  # finished trials, by whose time that of others is estimated
    keeping: Keeping = _NOTHING_KEPT


def _look(
    keys: fingerprint.GridKeys,
    data_digest: str,
    split: SplitConfig,
    threads: int,
    fresh: bool,
    experiment: str | None,
    tracking_uri: str | None,
) -> _Known:
    with tracking.open_store(tracking_uri) as store:
        adopted = tracking.adoptable_run(store, "search")
        experiment_id = tracking.existing_experiment(store, experiment, adopted)
        if experiment_id is None:
            return _Known()
        like = tracking.like_trials(store, experiment_id, split, threads)
        if fresh:
            return _Known(like=like)
        searches = tracking.find_searches(store, experiment_id, keys.grids)
        return _Known(
            state=tracking.find_resume_state(
                store, experiment_id, searches, keys, reopen=adopted is None
            ),
            folder=checkpoint_folder(store, experiment_id, keys.grids[0]),
            like=like,
            keeping=keeping_for(store, experiment_id, data_digest, fresh=False, keeps=False),
        )


def _count(estimator: TimeEstimator, trial: TrialResult) -> None:
    config = trial.config
    stopped = (trial.best_epoch or 0) + config.patience
    epochs = min(config.epochs, stopped) if config.patience else config.epochs
    estimator.trial(config, epochs, trial.train_seconds or 0.0)


def _measure(
    estimator: TimeEstimator,
    to_train: Sequence[tuple[TrainingConfig, int]],
    dataset: Dataset,
    split: SplitConfig,
    data_dir: Path | None,
    threads: int,
) -> str:
    """Train a point that is small enough for two epochs on some of the images; say what was done.

    It is the point in the middle of the work, or else the coursework's network as it is by default;
    of another network, the point with the least.
    """
    configs = sorted((config for config, _ in to_train), key=work)
    middle = configs[len(configs) // 2]
    fitting = middle
    if work(middle) > _MEASURED_WORK:
        fitting = configs[0]
        if middle.network.is_coursework:
            with contextlib.suppress(ConfigError):  # small images leave nothing for it
                fitting = TrainingConfig.of(middle.network)
    config = dataclasses.replace(fitting, epochs=2, patience=0)
    some = min(split.training_images, _MEASURED_IMAGES)
    warm_up()
    try:
        with WorkerPool(local_workers(1, threads), lambda *_: None) as pool:
            task = _MEASURE, config, cache_images(dataset, split, data_dir), some
            first, second = pool.submit(*task).result()
    except WorkerDied as death:
        raise SearchError(f"The time cannot be measured: {death.what} ({death}).") from None
    except FmnistTrackingError:
        raise
    except Exception as error:  # of the network
        raise SearchError(f"{trial_name(config)} cannot be trained: {first_line(error)}") from None
    # Building the graph costs the same for few images and for many.
    whole = second * split.training_images / some
    estimator.epoch(config, 1, whole + max(0.0, first - second))
    estimator.epoch(config, 2, whole)
    return f"two epochs of {trial_name(config)} on {some:,} images, by the FLOPs of each point"
