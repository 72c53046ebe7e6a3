"""`fmnist-track search` and `train`: explore a grid, or train one point, tracked."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from fmnist_tracking import runtime
from fmnist_tracking.analysis import effects
from fmnist_tracking.config import SearchSpace, SplitConfig, TrainingConfig, Value
from fmnist_tracking.errors import SearchError
from fmnist_tracking.executors import WorkerPool
from fmnist_tracking.progress import Progress
from fmnist_tracking.results import SearchResult, TrialResult
from fmnist_tracking.workflows.trial import (
    TrialTask,
    data_facts,
    prepare_worker,
    run_trial,
    trial_name,
)


def search(
    space: SearchSpace,
    base: TrainingConfig,
    split: SplitConfig,
    *,
    experiment: str,
    workers: int = 1,
    tracking_uri: str | None = None,
    data_dir: Path | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> SearchResult:
    """Train every point of a grid in worker processes, each as a child run of one search.

    Args:
        space: the grid.
        base: value of each setting that is not an axis of the grid.
        split: how the data is split; the same for every point.
        experiment: name of the MLflow experiment, made if it is not there.
        workers: trials that run at once; no more processes are started than there are points.
        tracking_uri: of the MLflow store, None for the usual one.
        data_dir: where the data is, None for the usual places.
        announce: called with lines for a person to read, before the trials start.

    Raises:
        ConfigError: a point of the grid cannot be built.
        DataError: the data cannot be had.
        SearchError: a worker process died.
        TrackingError: the store cannot be reached.
    """
    points = space.points(base)
    workers = min(workers, len(points))
    cores = os.cpu_count() or 1
    if workers > cores:
        announce(f"{workers} workers share {cores} processor cores, and wait for each other.")
    progress = Progress(points, workers)
    with WorkerPool(workers, progress, prepare_worker) as pool:
        from fmnist_tracking import tracking
        from fmnist_tracking.data import load_dataset

        dataset = load_dataset(data_dir)
        facts = data_facts(dataset)
        announce(f"Data: {facts.description}, protocol {split.protocol}")
        with tracking.open_store(tracking_uri, create=True) as store:
            experiment_id = tracking.choose_experiment(store, experiment)
            name = f"search of {len(space)} points"
            run_id = None
            try:
                run_id = tracking.start_search(
                    store, experiment_id, name, space, base, split, facts
                )
                announce(f"Search {run_id} at {store.public_uri}")
                task_of = partial(
                    TrialTask,
                    split=split,
                    data_dir=data_dir,
                    data_sha256=dataset.digest,
                    tracking_uri=store.uri,
                    experiment_id=experiment_id,
                    parent=run_id,
                )

                def submit(number: int, values: Mapping[str, Value]) -> "Future[TrialResult]":
                    config = dataclasses.replace(base, **values)  # type: ignore[arg-type]
                    name = trial_name(config, space.varying)
                    return pool.submit(run_trial, task_of(number=number, name=name, config=config))

                runtime.load_tensorflow()  # which KerasTuner imports
                from fmnist_tracking.search import explore

                with progress:
                    trials = explore(space, submit, workers)
                    pool.close()  # so that the last report is shown too
                result = SearchResult(
                    run_id=run_id, experiment_id=experiment_id, space=space, trials=trials
                )
                tracking.finish_search(store, result, grid_picture(result))
            except BaseException as error:
                pool.kill()
                if run_id is not None:
                    status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
                    tracking.close_open_runs(store, run_id, status)
                if isinstance(error, BrokenProcessPool):
                    raise SearchError(
                        "A worker process was killed, perhaps for want of memory. The search is "
                        "closed as FAILED; the trials that had finished are kept."
                    ) from None
                raise
            return result


def grid_picture(result: SearchResult) -> bytes:
    """The picture of a search's grid, as a PNG file."""
    from fmnist_tracking import plots

    title = f"Grid of {len(result.space)} points (search {result.run_id[:8]})"
    return plots.png(plots.grid(effects(result.space, result.finished), title))


def train(
    config: TrainingConfig,
    split: SplitConfig,
    *,
    experiment: str,
    tracking_uri: str | None = None,
    data_dir: Path | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> TrialResult:
    """Train one configuration in this process, tracked as a trial is.

    Raises:
        DataError: the data cannot be had.
        SearchError: the training failed; its run holds the traceback.
        TrackingError: the store cannot be reached.
    """
    runtime.load_tensorflow()
    from fmnist_tracking import tracking
    from fmnist_tracking.data import load_dataset

    dataset = load_dataset(data_dir)
    announce(f"Data: {data_facts(dataset).description}, protocol {split.protocol}")
    with tracking.open_store(tracking_uri, create=True) as store:
        uri = store.uri
        experiment_id = tracking.choose_experiment(store, experiment)
    task = TrialTask(
        number=1,
        name=trial_name(config),
        config=config,
        split=split,
        data_dir=data_dir,
        data_sha256=dataset.digest,
        tracking_uri=uri,
        experiment_id=experiment_id,
        parent=None,
    )
    with Progress([config]) as progress:
        result = run_trial(task, progress)
    if result.error:
        raise SearchError(f"The training failed ({result.error}). Its run is {result.run_id}.")
    return result
