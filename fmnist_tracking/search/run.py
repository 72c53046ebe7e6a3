"""`fmnist-track search` and `train`: explore a grid, or train one point, tracked."""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

from fmnist_tracking import machine, runtime
from fmnist_tracking.config import SearchSpace, TrainingConfig, Value
from fmnist_tracking.errors import SearchError
from fmnist_tracking.results import FINISHED, SearchResult, TrialResult, TrialScore
from fmnist_tracking.search.lock import locked_folder
from fmnist_tracking.search.memory import require_room, require_room_at_once, workers_for
from fmnist_tracking.search.progress import Progress
from fmnist_tracking.search.resources import Announce, Request, open_session
from fmnist_tracking.search.worker import trial_name
from fmnist_tracking.training import checkpoints

__all__ = ["Request", "search", "train"]

if TYPE_CHECKING:
    from fmnist_tracking.tracking import ResumeState, Store, TrackedRun


def search(
    space: SearchSpace,
    base: TrainingConfig,
    request: Request,
    announce: Announce = lambda _: None,
) -> SearchResult:
    """Train every point of a grid in worker processes, each as a child run of one search.

    What has finished before is not trained again, and a search that was cut off goes on where
    it was: in its own run, each of its trials after its last whole epoch.

    Args:
        space: the grid.
        base: value of each setting that is not an axis of the grid.
        request: the rest of what is asked.
        announce: called with lines for a person to read, before the trials start.

    Raises:
        ConfigError: a point of the grid cannot be built, or has no room in the memory.
        DataError: the data cannot be had.
        OutputError: checkpoints cannot be written.
        SearchError: another process is working on the same search.
        TrackingError: the store cannot be reached.
    """
    points = space.points(base)
    names = [trial_name(config, space.varying) for config in points]
    require_room_at_once(points, request)
    workers = workers_for(points, request)
    cores = machine.cores()
    if workers > cores:
        announce(f"{workers} workers share {cores} processor cores, and wait for each other.")
    progress = Progress(points, names, workers)
    with open_session("search", request, progress, workers, announce) as session:
        from fmnist_tracking import tracking

        keys = session.keys(points)
        prints, grid = keys.today, keys.grids[0]
        store, experiment_id = session.store, session.experiment_id
        with locked_folder(
            store.identity(experiment_id), experiment_id, grid, fresh=request.fresh
        ) as folder:
            known = tracking.find_searches(store, experiment_id, keys.grids)
            if known:
                tracking.require_not_live(known[0])
            ended = bool(known) and known[0].raw.info.status == FINISHED
            reopen = ended and session.adopted is None and not request.fresh
            if reopen:
                result = tracking.read_search(store, known[0], summary=False)
                if {trial.config for trial in result.finished} == set(points):
                    session.pool.kill()
                    tracking.log_asked(store, known[0].run_id)
                    announce(
                        f"The search {known[0].run_id[:8]} has finished all {len(space)} points "
                        "before; nothing is left to train. --fresh trains them again."
                    )
                    reused = (dataclasses.replace(t, reused=True) for t in result.trials)
                    return dataclasses.replace(result, trials=tuple(reused))
            standing = tracking.find_resume_state(
                store, experiment_id, known, keys.points, fresh=request.fresh, reopen=reopen
            )
            require_room(
                [c for c, p in zip(points, prints, strict=True) if p not in standing.finished],
                request,
            )
            facts = tracking.SearchInfo(
                name=f"search of {len(space)} point{'s' if len(space) > 1 else ''}",
                space=space,
                base=base,
                split=request.split,
                data=session.data_facts,
                origin=session.origin,
                grid=grid,
                fresh=request.fresh,
            )
            run_id = tracking.start_search(
                store, experiment_id, facts, standing.search, session.adopted
            )
            _take_over(store, standing, run_id)
            for point in standing.finished:  # cut off between its last step and this
                checkpoints.remove(folder / point[:16])
            announce(
                f"Search {run_id} at {store.public_uri}"
                + (" goes on" if standing.search is not None else "")
            )
            numbers = {config: number for number, config in enumerate(points, start=1)}

            def submit(values: Mapping[str, Value]) -> Future[TrialScore]:
                config = dataclasses.replace(base, **values)  # type: ignore[arg-type]
                number = numbers[config]
                point = prints[number - 1]
                if point in standing.finished:
                    return session.trials.reuse(number, standing.finished[point])
                trial = session.trial_facts(names[number - 1], config, point, run_id)
                task = session.task(number, config, point, folder)
                return session.trials.submit(task, trial, standing.open.get(point))

            if len(standing.finished) < len(points):
                runtime.load_tensorflow()  # which KerasTuner imports
                from fmnist_tracking.search.grid import explore
            session.start(run_id, folder)
            with progress:
                if len(standing.finished) == len(points):
                    for number, point in enumerate(prints, start=1):
                        session.trials.reuse(number, standing.finished[point])
                else:
                    explore(space, submit, workers, session.recorder.failed)
                reading = session.recorder.submit(
                    lambda _: tracking.read_search(store, _own_run(store, run_id))
                )
                session.pool.close()  # so that the last report is shown too
                session.write_all()
                result = reading.result()
                _assert_complete(result)
                from fmnist_tracking import plots

                picture = plots.png(plots.search_grid(result))
                session.recorder.submit(lambda _: tracking.finish_search(store, result, picture))
                session.write_all()
            return result


def _own_run(store: "Store", run_id: str) -> "TrackedRun":
    """Return the run that this process has written.

    Raises:
        SearchError: somebody has deleted it meanwhile.
    """
    from fmnist_tracking import tracking

    run = tracking.find_active(store, run_id)
    if run is None:
        raise SearchError(
            f"The run {run_id[:8]} was deleted while it was written. Restore it with `mlflow runs "
            f"restore --run-id {run_id}`, or leave it: either way, the same command goes on with "
            "what is missing."
        )
    return tracking.as_tracked(run)


def _take_over(store: "Store", standing: "ResumeState", run_id: str) -> None:
    from fmnist_tracking import tracking

    others = [search for search in standing.searches if search != run_id]
    own = [t.run_id for t in standing.finished.values() if not t.reused]
    own += [t.run_id for t in standing.open.values()]
    for other in others:
        tracking.move_trials(store, own, other, run_id)
    reused = [t.run_id for t in standing.finished.values() if t.reused]
    tracking.log_reused(store, run_id, reused)


def _assert_complete(result: SearchResult) -> None:
    """Every point has one run that ended, and one only.

    Raises:
        SearchError: a point is missing in the store.
    """
    if len(result.trials) != len(result.space):
        raise SearchError(
            f"The grid has {len(result.space)} points, but the store has runs for "
            f"{len(result.trials)} of them. Run the same search again."
        )


def train(
    config: TrainingConfig, request: Request, announce: Announce = lambda _: None
) -> TrialResult:
    """Train one configuration, tracked as a trial is; go on with it if it was cut off.

    Args:
        config: what to train.
        request: the rest of what is asked; one worker is used.
        announce: called with lines for a person to read, before the training starts.

    Raises:
        ConfigError: the network has no room in the memory.
        DataError: the data cannot be had.
        OutputError: checkpoints cannot be written.
        SearchError: the training failed; its run holds the traceback. Or another process is
            at it.
        TrackingError: the store cannot be reached.
    """
    name = trial_name(config)
    require_room_at_once([config], request)
    progress = Progress([config], [name])
    with open_session("train", request, progress, 1, announce) as session:
        from fmnist_tracking import tracking

        keys = session.keys([config])
        (point,) = keys.today
        store, experiment_id = session.store, session.experiment_id
        with locked_folder(
            store.identity(experiment_id), experiment_id, point, fresh=request.fresh
        ) as folder:
            finished, open_trial = (
                (None, None)
                if request.fresh
                else tracking.find_training(store, experiment_id, keys.points)
            )
            if finished is not None and session.adopted is None:
                session.pool.kill()
                tracking.log_asked(store, finished.run_id)
                announce(
                    f"The run {finished.run_id[:8]} has trained this before; it is reused. "
                    "--fresh trains again."
                )
                return dataclasses.replace(finished, reused=True)
            require_room([config], request)
            facts = session.trial_facts(name, config, point, None, session.adopted)
            session.start(None, folder)
            with progress:
                task = session.task(1, config, point, folder)
                outcome = session.trials.submit(task, facts, open_trial)
                session.wait_for(outcome)
                session.pool.close()
                session.write_all()
            run_id = session.keeper.run_id(1)
            if outcome.result().error:
                raise SearchError(
                    f"The training failed ({outcome.result().error}). Its run is {run_id}."
                )
            return tracking.read_trial(_own_run(store, run_id))
