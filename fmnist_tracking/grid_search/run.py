"""Explore a grid, or train one point, tracked.

The main path: open what is needed, plan the trials, explore the grid, finish.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from fmnist_tracking import fingerprint, machine, runtime, tracking
from fmnist_tracking.config import SearchSpace, SplitConfig, TrainingConfig, Value
from fmnist_tracking.console import Echo, echo_line, silent
from fmnist_tracking.errors import SearchError, setting
from fmnist_tracking.grid_search.images import cache_split
from fmnist_tracking.grid_search.lock import locked_folder
from fmnist_tracking.grid_search.memory import require_room, require_room_at_once, workers_for
from fmnist_tracking.grid_search.plan import PlannedTrial, plan_trials
from fmnist_tracking.grid_search.progress import Progress
from fmnist_tracking.grid_search.recording import Recording
from fmnist_tracking.grid_search.resources import Resources, open_resources
from fmnist_tracking.results import FINISHED, SearchResult, TrialResult, TrialScore
from fmnist_tracking.tracking import ResumeState, Store, TrackedRun
from fmnist_tracking.training import checkpoints
from fmnist_tracking.workers import end_helpers

# TensorFlow, KerasTuner and matplotlib, which a search with nothing left to train does without, are
# imported inside the functions, once the process that workers are forked from has been started.


def search(
    space: SearchSpace,
    base: TrainingConfig,
    *,
    split: SplitConfig,
    workers: int | None = None,
    fresh: bool = False,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    data_dir: Path | None = None,
    upgrade_store: bool = False,
    echo: Echo | None = echo_line,
    on_start: Callable[[], None] = lambda: None,
) -> tuple[SearchResult, str]:
    """Train every point of a grid in worker processes, each as a child run of one search.

    What has finished before is not trained again, and a search that was cut off goes on where
    it was: in its own run, each of its trials after its last whole epoch.

    Args:
        space: the grid.
        base: value of each setting that is not an axis of the grid.
        split: how the data is split; the same for every point.
        workers: trials that run at once; None takes as many as suit this machine.
        fresh: train all anew, whatever has finished before.
        experiment: name of the MLflow experiment, made if it is not there; None for the one that
            the environment names, or the usual one.
        tracking_uri: of the MLflow store, None for the usual one.
        data_dir: where the data is, None for the usual places.
        upgrade_store: bring a store of an older MLflow up to date, rather than refuse it.
        echo: called with lines for a person to read; None shows nothing, and no progress.
        on_start: called when all is loaded, before the first trial begins.

    Returns:
        The search, and the address of its store.

    Raises:
        ConfigError: a point of the grid cannot be built, or has no room in the memory.
        DataError: the data cannot be had.
        OutputError: checkpoints cannot be written.
        SearchError: another process is working on the same search.
        TrackingError: the store cannot be reached.
    """
    quiet, echo = echo is None, echo or silent
    points = space.points(base)
    require_room_at_once(points, split, workers, fresh=fresh, tracking_uri=tracking_uri)
    slots = workers_for(points, split, workers)
    if slots > machine.cores():
        echo(f"{slots} workers share {machine.cores()} processor cores, and wait for each other.")
    with open_resources(
        "search",
        workers=slots,
        split=split,
        data_dir=data_dir,
        experiment=experiment,
        tracking_uri=tracking_uri,
        upgrade_store=upgrade_store,
        echo=echo,
    ) as resources:
        store, experiment_id = resources.store, resources.experiment_id
        keys = fingerprint.of_grid(points, split, resources.dataset.digest)
        grid = keys.grids[0]
        identity = store.identity(experiment_id)
        with locked_folder(identity, experiment_id, grid, fresh=fresh) as folder:
            searches = tracking.find_searches(store, experiment_id, keys.grids)
            if searches:
                tracking.require_not_live(searches[0])
            resumes = resources.adopted is None and not fresh
            if resumes and searches:
                before = _finished_before(store, searches[0], points)
                if before is not None:
                    end_helpers()
                    echo(
                        f"The search {before.run_id[:8]} has finished all {len(space)} points "
                        f"before; nothing is left to train. {setting('fresh=True')} trains them "
                        "again."
                    )
                    return before, store.uri
            state = tracking.find_resume_state(
                store, experiment_id, searches, keys.points, fresh=fresh, reopen=resumes
            )
            trials = plan_trials(points, keys.today, space.varying, state, folder)
            require_room([t.config for t in trials if t.finished is None], split, workers)
            _load(resources)
            from fmnist_tracking import plots
            from fmnist_tracking.grid_search.scheduler import TrialScheduler

            progress = Progress(points, [trial.name for trial in trials], slots, quiet=quiet)
            with Recording(store, experiment_id, folder, progress.echo) as recording:
                run_id = _start_search(resources, space, base, grid, state, fresh=fresh)
                recording.run_id = run_id
                for trial in trials:
                    if trial.finished is not None:  # cut off between its last step and this
                        checkpoints.remove(trial.checkpoint_dir)
                resumed = " goes on" if state.search is not None else ""
                echo(f"Search {run_id} at {store.public_uri}{resumed}")
                on_start()
                with (
                    TrialScheduler(
                        resources, recording, show=progress, echo=progress.echo, parent=run_id
                    ) as scheduler,
                    progress,
                ):
                    _explore(space, base, trials, scheduler.submit, slots, recording)
                    # The store is asked what it has: nobody's memory of it counts.
                    result = recording.do_last(
                        lambda: tracking.read_search(store, _own_run(store, run_id))
                    )
                    _assert_complete(result)
                    picture = plots.png(plots.search_grid(result))
                    recording.do_last(lambda: tracking.finish_search(store, result, picture))
            return result, store.uri


def train(
    config: TrainingConfig,
    *,
    split: SplitConfig,
    fresh: bool = False,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    data_dir: Path | None = None,
    upgrade_store: bool = False,
    echo: Echo | None = echo_line,
    on_start: Callable[[], None] = lambda: None,
) -> tuple[TrialResult, str]:
    """Train one configuration, tracked as a trial is; go on with it if it was cut off.

    Args:
        config: what to train.
        split: how the data is split.
        fresh: train anew, whatever has finished before.
        experiment: see `search`, as for the arguments after it.
        tracking_uri: of the MLflow store.
        data_dir: where the data is.
        upgrade_store: bring a store of an older MLflow up to date.
        echo: called with lines for a person to read; None shows nothing, and no progress.
        on_start: called when all is loaded, before the training begins.

    Returns:
        The trial, and the address of its store.

    Raises:
        ConfigError: the network has no room in the memory.
        DataError: the data cannot be had.
        OutputError: checkpoints cannot be written.
        SearchError: the training failed; its run holds the traceback. Or another process is
            at it.
        TrackingError: the store cannot be reached.
    """
    quiet, echo = echo is None, echo or silent
    require_room_at_once([config], split, 1, fresh=fresh, tracking_uri=tracking_uri)
    with open_resources(
        "train",
        workers=1,
        split=split,
        data_dir=data_dir,
        experiment=experiment,
        tracking_uri=tracking_uri,
        upgrade_store=upgrade_store,
        echo=echo,
    ) as resources:
        store, experiment_id = resources.store, resources.experiment_id
        keys = fingerprint.of_grid([config], split, resources.dataset.digest)
        (point,) = keys.today
        identity = store.identity(experiment_id)
        with locked_folder(identity, experiment_id, point, fresh=fresh) as folder:
            state = (
                ResumeState()
                if fresh
                else tracking.find_training(store, experiment_id, keys.points)
            )
            (trial,) = plan_trials([config], [point], (), state, folder)
            if trial.finished is not None and resources.adopted is None:
                end_helpers()
                tracking.log_asked(store, trial.finished.run_id)
                echo(
                    f"The run {trial.finished.run_id[:8]} has trained this before; it is reused. "
                    f"{setting('fresh=True')} trains again."
                )
                return dataclasses.replace(trial.finished, reused=True), store.uri
            require_room([config], split, 1)
            _load(resources)
            from fmnist_tracking.grid_search.scheduler import TrialScheduler

            progress = Progress([config], [trial.name], quiet=quiet)
            with Recording(store, experiment_id, folder, progress.echo) as recording:
                on_start()
                with (
                    TrialScheduler(
                        resources, recording, show=progress, echo=progress.echo, parent=None
                    ) as scheduler,
                    progress,
                ):
                    score = scheduler.submit(dataclasses.replace(trial, finished=None))
                    ends: list[Future[Any]] = [score, recording.writer.failed]
                    wait(ends, return_when=FIRST_COMPLETED)
                    run = recording.do_last(lambda: _own_run(store, recording.run_id))
                    error = score.result().error
                if error:
                    raise SearchError(f"The training failed ({error}). Its run is {run.run_id}.")
            return tracking.read_trial(run), store.uri


def _load(resources: Resources) -> None:
    """Load what trials need, the images for the workers first."""
    cache_split(resources.dataset, resources.split)
    runtime.load_tensorflow()


def _finished_before(
    store: Store, run: TrackedRun, points: Sequence[TrainingConfig]
) -> SearchResult | None:
    """Return a search that has ended and has all of its trials still, None if it is none."""
    if run.raw.info.status != FINISHED:
        return None
    result = tracking.read_search(store, run, summary=False)
    if {trial.config for trial in result.finished} != set(points):
        return None
    tracking.log_asked(store, run.run_id)
    reused = (dataclasses.replace(trial, reused=True) for trial in result.trials)
    return dataclasses.replace(result, trials=tuple(reused))


def _start_search(
    resources: Resources,
    space: SearchSpace,
    base: TrainingConfig,
    grid: str,
    state: ResumeState,
    *,
    fresh: bool,
) -> str:
    """Open the search's run, make the trials of those that were cut off its own; return its id."""
    store = resources.store
    info = tracking.SearchInfo(
        name=f"search of {len(space)} point{'s' if len(space) > 1 else ''}",
        space=space,
        base=base,
        split=resources.split,
        data=resources.data_info,
        origin=resources.provenance,
        grid=grid,
        fresh=fresh,
    )
    run_id = tracking.start_search(
        store, resources.experiment_id, info, state.search, resources.adopted
    )
    own = [trial.run_id for trial in state.finished.values() if not trial.reused]
    own += [trial.run_id for trial in state.open.values()]
    for other in state.searches:
        if other != run_id:
            tracking.move_trials(store, own, other, run_id)
    reused = [trial.run_id for trial in state.finished.values() if trial.reused]
    tracking.log_reused(store, run_id, reused)
    return run_id


def _explore(
    space: SearchSpace,
    base: TrainingConfig,
    trials: Iterable[PlannedTrial],
    submit: "Callable[[PlannedTrial], Future[TrialScore]]",
    slots: int,
    recording: Recording,
) -> None:
    """Have every point tried, in the order in which KerasTuner's oracle asks for them."""
    planned = {trial.config: trial for trial in trials}
    if all(trial.finished is not None for trial in planned.values()):
        for trial in planned.values():
            submit(trial)
        return
    from fmnist_tracking.grid_search.grid import explore

    def run(values: Mapping[str, Value]) -> "Future[TrialScore]":
        return submit(planned[dataclasses.replace(base, **values)])  # type: ignore[arg-type]

    explore(space, run, slots, recording.writer.failed)


def _own_run(store: Store, run_id: str) -> TrackedRun:
    """Return the run that this process has written.

    Raises:
        SearchError: somebody has deleted it meanwhile.
    """
    run = tracking.find_active(store, run_id)
    if run is None:
        raise SearchError(
            f"The run {run_id[:8]} was deleted while it was written. Restore it with `mlflow runs "
            f"restore --run-id {run_id}`, or leave it: either way, the same command goes on with "
            "what is missing."
        )
    return tracking.as_tracked(run)


def _assert_complete(result: SearchResult) -> None:
    """Assert that every point has one run that ended, and one only.

    Raises:
        SearchError: a point is missing in the store.
    """
    if len(result.trials) != len(result.space):
        raise SearchError(
            f"The grid has {len(result.space)} points, but the store has runs for "
            f"{len(result.trials)} of them. Run the same search again."
        )
