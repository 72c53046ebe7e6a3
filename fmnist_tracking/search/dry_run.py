"""`fmnist-track search --dry-run`: what a search would do, and how long it would take."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tracking import fingerprint, machine, runtime
from fmnist_tracking.config import SearchSpace, TrainingConfig
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.search.lock import checkpoint_folder
from fmnist_tracking.search.memory import require_room, too_large, workers_for
from fmnist_tracking.search.resources import Announce, Request
from fmnist_tracking.search.time_estimate import TimeEstimator, disk_bytes, time_left, work
from fmnist_tracking.search.worker import trial_name
from fmnist_tracking.training import checkpoints

if TYPE_CHECKING:
    from fmnist_tracking.data import Dataset

FINISHED, CONTINUES, NEW, REFUSED = "finished", "continues", "new", "refused"
# A measurement trains on so many images, a network of at most so many multiply-adds an image: some
# seconds on a slow processor.
_MEASURED_IMAGES = 3_000
_MEASURED_WORK = 5e6
# Of more points, a person is told that they are looked at.
_MANY = 10_000


@dataclass(frozen=True, kw_only=True)
class PlannedPoint:
    """A point of the grid, and what a search would do with it.

    Attributes:
        name: for people.
        state: `finished`, `continues`, `new` or `refused`.
        run_id: of the finished run.
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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search would do.

    Attributes:
        points: all of the grid, in its order.
        workers: trials that would run at once.
        seconds: how long it would take, about; None where points are refused.
        based_on: what that was estimated from, for people.
        disk_bytes: that it would take, about.
    """

    points: tuple[PlannedPoint, ...]
    workers: int
    seconds: float | None
    based_on: str
    disk_bytes: int

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json` can write."""
        return dataclasses.asdict(self)


def plan(
    space: SearchSpace,
    base: TrainingConfig,
    request: Request,
    announce: Announce = lambda _: None,
) -> Plan:
    """Say what `search` would do with the same arguments, and do none of it.

    Nothing is written to the store. The time is estimated from the finished trials of the
    experiment on as many images, or, without any, from a training of a few seconds, of a network
    that is small whatever the grid, by the arithmetic of each.

    Args:
        space: the grid.
        base: value of each setting that is not an axis of the grid.
        request: the rest of what is asked.
        announce: called with lines for a person to read.

    Raises:
        ConfigError: as many trials at once as are asked for have no room in the memory.
        DataError: the data cannot be had.
        TrackingError: the store cannot be reached.
    """
    from fmnist_tracking.data import load_dataset

    dataset = load_dataset(request.data_dir)
    if len(space) > _MANY:
        announce(f"Looking at {len(space):,} points; this takes a while.")
    configs = _configs(space, base)
    good = [config for config in configs if isinstance(config, TrainingConfig)]
    keys = fingerprint.of_grid(good, request.split, dataset.digest)
    prints = dict(zip(good, keys.today, strict=True))
    known = _known(request, keys)
    memory = machine.memory()
    points: list[PlannedPoint] = []
    to_train: list[tuple[TrainingConfig, int]] = []
    for config in configs:
        if isinstance(config, PlannedPoint):
            points.append(config)
            continue
        name, point = trial_name(config, space.varying), prints[config]
        epochs = config.epochs
        if point in known.finished:
            run_id = known.finished[point]
            points.append(
                PlannedPoint(
                    name=name, state=FINISHED, run_id=run_id, epochs_done=epochs, epochs=epochs
                )
            )
            continue
        reason = too_large(config, request.split, memory)
        if reason is not None:
            points.append(PlannedPoint(name=name, state=REFUSED, reason=reason))
            continue
        done = known.epochs_done(point)
        state = CONTINUES if done else NEW
        points.append(PlannedPoint(name=name, state=state, epochs_done=done, epochs=epochs))
        to_train.append((config, epochs - done))
    require_room([config for config, _ in to_train], request)
    workers = workers_for(good, request)
    seconds, based_on = 0.0, "nothing is left to train"
    if to_train:
        pace, based_on = _pace(request, to_train, dataset, runtime.threads_of(workers))
        waiting = (pace.seconds(config, epochs) for config, epochs in to_train)
        seconds = time_left((), waiting, workers)
    return Plan(
        points=tuple(points),
        workers=workers,
        seconds=None if any(point.state == REFUSED for point in points) else seconds,
        based_on=based_on,
        disk_bytes=sum(disk_bytes(config) for config, _ in to_train),
    )


def _configs(space: SearchSpace, base: TrainingConfig) -> list[TrainingConfig | PlannedPoint]:
    """The points of a grid; those that cannot be built say why."""
    configs: list[TrainingConfig | PlannedPoint] = []
    for values in itertools.product(*space.axes.values()):
        chosen = dict(zip(space.axes, values, strict=True))
        try:
            configs.append(dataclasses.replace(base, **chosen))  # type: ignore[arg-type]
        except ConfigError as error:
            name = " ".join(f"{axis}={value:g}" for axis, value in chosen.items())
            configs.append(PlannedPoint(name=name, state=REFUSED, reason=str(error)))
    return configs


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What there is already: run ids of finished points, and the folder of checkpoints."""

    finished: dict[str, str]
    folder: Path | None

    def epochs_done(self, point: str) -> int:
        """Epochs of a point that a checkpoint spares."""
        saved = self.folder and checkpoints.load(self.folder / point[:16], point)
        return len(saved.epochs) if saved else 0


def _known(request: Request, keys: fingerprint.GridKeys) -> _Known:
    from fmnist_tracking import tracking

    if request.fresh or tracking.is_yet_to_be_made(request.tracking_uri):
        return _Known(finished={}, folder=None)
    with tracking.open_store(request.tracking_uri) as store:
        adopted = tracking.adoptable_run(store, "search")
        experiment_id = tracking.existing_experiment(store, request.experiment, adopted)
        if experiment_id is None:
            return _Known(finished={}, folder=None)
        searches = tracking.find_searches(store, experiment_id, keys.grids)
        standing = tracking.find_resume_state(
            store, experiment_id, searches, keys.points, reopen=adopted is None
        )
        return _Known(
            finished={point: trial.run_id for point, trial in standing.finished.items()},
            folder=checkpoint_folder(store.identity(experiment_id), experiment_id, keys.grids[0]),
        )


def _pace(
    request: Request,
    to_train: list[tuple[TrainingConfig, int]],
    dataset: "Dataset",
    threads: int,
) -> tuple[TimeEstimator, str]:
    """How fast trials are here, and what says so."""
    from fmnist_tracking import tracking

    pace = TimeEstimator()
    if not tracking.is_yet_to_be_made(request.tracking_uri):
        with tracking.open_store(request.tracking_uri) as store:
            experiment_id = tracking.existing_experiment(store, request.experiment)
            trials = (
                []
                if experiment_id is None
                else tracking.like_trials(store, experiment_id, request.split, threads)
            )
        for trial in trials:
            config = trial.config
            stopped = (trial.best_epoch or 0) + config.patience
            epochs = min(config.epochs, stopped) if config.patience else config.epochs
            pace.trial(config, epochs, trial.train_seconds or 0.0)
        if trials:
            return pace, f"{len(trials)} finished trials on as many images"
    return pace, _measure(pace, to_train, dataset, request, threads)


def _measure(
    pace: TimeEstimator,
    to_train: list[tuple[TrainingConfig, int]],
    dataset: "Dataset",
    request: Request,
    threads: int,
) -> str:
    """Train a point that is small enough for two epochs on some of the images; say what was done.

    It is the point in the middle of the work, or else the coursework's network.
    """
    runtime.load_tensorflow(threads)
    from fmnist_tracking.data import split_dataset
    from fmnist_tracking.training import loop

    configs = sorted((config for config, _ in to_train), key=work)
    middle = configs[len(configs) // 2]
    fitting = middle if work(middle) <= _MEASURED_WORK else TrainingConfig()
    config = dataclasses.replace(fitting, epochs=2, patience=0)
    split = split_dataset(dataset, request.split)
    images = len(split.train_labels)
    some = min(images, _MEASURED_IMAGES)
    part = dataclasses.replace(
        split,
        train_images=split.train_images[:some],
        train_labels=split.train_labels[:some],
        validation_images=split.validation_images[: max(1, some // 5)],
        validation_labels=split.validation_labels[: max(1, some // 5)],
    )
    first, second = loop.train(config, part)[0].epochs
    # Building the graph costs the same for few images and for many.
    extra = first.epoch_seconds - second.epoch_seconds
    whole = second.epoch_seconds * images / some
    pace.epoch(config, 1, whole + max(0.0, extra))
    pace.epoch(config, 2, whole)
    return f"two epochs of {trial_name(config)} on {some:,} images, by the FLOPs of each point"
