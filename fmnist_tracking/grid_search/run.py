"""Explore a grid, tracked.

The main path: open what is needed, plan the trials, explore the grid, finish.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fmnist_tracking import machine, tracking
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.console import Echo, echo_line, lines_to
from fmnist_tracking.data import load_named
from fmnist_tracking.errors import SearchError
from fmnist_tracking.grid_search.arguments import (
    Asked,
    Grid,
    asked_for,
    drawn_points,
    require_arguments,
)
from fmnist_tracking.grid_search.bayesian import BayesianTrials, Scores
from fmnist_tracking.grid_search.entry import (
    OnFailure,
    check_options,
    judged,
    load_libraries,
    own_run,
    whole,
)
from fmnist_tracking.grid_search.explore import TimeIsUp, explore
from fmnist_tracking.grid_search.images import network_for, split_of
from fmnist_tracking.grid_search.memory import (
    require_processes,
    require_room,
    require_room_at_once,
    too_large,
    workers_for,
)
from fmnist_tracking.grid_search.plan import PlannedTrial
from fmnist_tracking.grid_search.progress import Progress
from fmnist_tracking.grid_search.proposer import Proposer
from fmnist_tracking.grid_search.recording import Recording
from fmnist_tracking.grid_search.resources import Resources, open_resources
from fmnist_tracking.grid_search.search_plan import SearchPlan, plan_search
from fmnist_tracking.network import Value
from fmnist_tracking.networks.source import NetworkName, find_network
from fmnist_tracking.results import SearchResult, TrialScore
from fmnist_tracking.runs import Search
from fmnist_tracking.search_space import Oracle
from fmnist_tracking.split_config import Protocol
from fmnist_tracking.tracking import Store
from fmnist_tracking.training import checkpoints

# TensorFlow, KerasTuner and matplotlib, which a search with nothing left to train does without, are
# imported inside the functions, once the process that workers are forked from has been started.

# Of trials whose files are gone, so many are named.
_NAMED = 5


def search(
    grid: Grid | None = None,
    *,
    network: NetworkName = None,
    skip_impossible: bool = False,
    oracle: Oracle = "grid",
    repeats: int = 1,
    protocol: Protocol = "canonical",
    limit: int | None = None,
    workers: int | None = None,
    trial_timeout: int | None = None,
    max_trials: int | None = None,
    max_time: int | None = None,
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
) -> Search:
    """Explore a grid: train every point in worker processes, each as a tracked run of its own.

    What has finished before is not trained again, and a search that was cut off goes on where it
    was, each of its trials after its last whole epoch: call it again with the same arguments.

    Args:
        grid: the values to try by setting, such as `{"filters": [24, 48], "dropout": [0.1, 0.3]}`;
            None for the network's own, the coursework's 12 points.
        network: what to train: a function `build(hp)` that returns a compiled Keras model, a
            `keras_tuner.HyperModel` class, or the name of one, "FILE.py:NAME" or
            "package.module:NAME"; None for the coursework's. The grid replaces the values of its
            hyperparameters.
        skip_impossible: leave out the points that cannot be built, rather than refuse them all.
        oracle: how points are chosen: `grid` tries all, in KerasTuner's order; `random` draws
            `max_trials` of them, and `bayesian` asks for as many, each given how others came out,
            as KerasTuner's own random search and Bayesian optimisation do with the `seed`.
        repeats: train each point so many times, with the seeds `seed`, `seed` + 1, …; points are
            ranked by their mean.
        protocol: how the data is split, `canonical` or `coursework`; see `SplitConfig`.
        limit: number of images for training and validation together, None for all.
        workers: trials that run at once; None takes as many as suit this machine.
        trial_timeout: end the worker of a trial that ends no epoch for so many seconds, and have
            the trial go on in a new one; it fails if that is so again. None waits for ever.
        max_trials: try only the first so many points of the grid. With more, or None, the same
            search goes on with the others. How many points to try, with another oracle.
        max_time: end the search so many seconds after its first trial has begun, and keep what it
            has. The same search goes on: of a trial that was cut off, after its last whole epoch.
        keep_checkpoints: keep the checkpoint of each trial that finishes, so that the same search
            with more epochs goes on from there, to the same numbers as if it were trained at once.
        fresh: train all anew, whatever has finished before, or was kept.
        experiment: name of the MLflow experiment, made if it is not there; None for the one that
            the environment names, or `fashion-mnist`.
        tracking_uri: address of the MLflow store, None for the usual one.
        data_dir: folder or `.npz` file with the data, None for Fashion-MNIST in the usual places.
        upgrade_store: bring a store of an older MLflow up to date, rather than refuse it.
        on_failure: when points have failed, or all have diverged, after the others have been
            trained: `raise` a `TrialsFailed`, which has the search, or `warn`.
        echo: called with lines on what begins, which otherwise go to standard error, or to the
            output of a notebook's cell; None shows nothing, and no progress.
        on_start: called when all is loaded, before the first trial begins.
        settings: of the training, such as `epochs=5`, and hyperparameters of the network; they are
            the same for every point. So is `objective`, which epochs and points are compared by,
            such as `val_loss`; see `objective.OBJECTIVES`.

    Raises:
        ConfigError: a value is wrong, or a point of the grid cannot be built, or has no room in the
            memory; or this is called by a script without `if __name__ == "__main__":`.
        DataError: the data cannot be had.
        OutputError: checkpoints cannot be written.
        SearchError: another process is working on the same search, or points have failed.
        TrackingError: the store cannot be reached.
    """
    flags = {"keep_checkpoints": keep_checkpoints, "fresh": fresh, "upgrade_store": upgrade_store}
    check_options(on_failure, echo, on_start, **flags)
    trial_timeout = whole("trial_timeout", trial_timeout)
    max_trials = whole("max_trials", max_trials)
    drawn = drawn_points(oracle, max_trials)
    max_time = whole("max_time", max_time)
    built_by = find_network(network)
    require_arguments(built_by, grid, settings, repeats)
    named = load_named(data_dir)
    asked = asked_for(
        grid,
        settings,
        repeats,
        network=network_for(built_by, named),
        skip_impossible=skip_impossible,
        echo=lines_to(echo),
        oracle=oracle,
        drawn=drawn,
    )
    most = max_trials if drawn is None else None
    points = asked.points
    split = split_of(named, protocol, asked.base.seed, limit)
    if asked.bayesian is not None:  # it may not ask for what is too large
        memory = machine.memory()
        points = tuple(one for one in points if not too_large(one, split, memory)) or points
    tried = points[:most]
    require_room_at_once(tried, split, workers, fresh=fresh, tracking_uri=tracking_uri)
    slots = workers_for(tried, split, workers)
    quiet, echo = echo is None, lines_to(echo)
    for one in asked.impossible:
        echo(f"Left out, as it cannot be built: {one.name}: {one.reason}")
    if slots > machine.cores():
        echo(f"{slots} workers share {machine.cores()} processor cores, and wait for each other.")
    with (
        open_resources(
            "search",
            workers=slots,
            split=split,
            named=named,
            data_dir=data_dir,
            experiment=experiment,
            tracking_uri=tracking_uri,
            upgrade_store=upgrade_store,
            echo=echo,
        ) as resources,
        plan_search(resources, asked, fresh=fresh, keeps=keep_checkpoints, most=most) as plan,
    ):
        if plan.before is not None:
            count = len(tried) if asked.bayesian is None else len(plan.before.space)
            echo(
                f"The search {plan.before.run_id[:8]} has finished all {count} "
                f"point{'' if count == 1 else 's'} before; nothing is left to train."
            )
            return judged(Search(plan.before, resources.store.address), on_failure)
        missing = [trial.config for trial in plan.trials if trial.finished is None]
        if asked.bayesian is not None:
            missing = list(points)
        require_room(missing, split, workers)
        require_processes(slots + (asked.bayesian is not None))
        load_libraries(resources)
        total = None if asked.bayesian is None else asked.count
        known = [trial.config for trial in plan.trials]
        names = [trial.name for trial in plan.trials]
        progress = Progress(known, names, slots, total=total, quiet=quiet)
        with Recording(resources, plan.folder, progress.echo) as recording:
            name = _name(asked, oracle)
            recording.run_id = _start_search(resources, name, asked, plan, fresh=fresh)
            resumed = " goes on" if plan.state.search is not None else ""
            echo(f"Search {recording.run_id} at {resources.store.public_uri}{resumed}")
            if on_start is not None:
                on_start()
            with progress:
                options = {"timeout": trial_timeout, "is_shared": not fresh}
                scores: dict[TrainingConfig, Future[TrialScore]] = {}
                with _trials_of(
                    resources, recording, asked, plan, scores, progress, fresh=fresh
                ) as trials:
                    is_over = not _try_points(
                        resources, recording, plan, trials, scores, progress, max_time, options
                    )
                if isinstance(trials, BayesianTrials):
                    tried = tuple(trials.configs)
                    if not is_over:
                        recording.do_last(trials.log_asked)
                # The store is asked what it has: nobody's memory of it counts.
                wanted = () if is_over else tried
                result = recording.do_last(lambda: _read_complete(recording, wanted))
                _tell_missing_files(resources.store, result, progress.echo)
                found = Search(result, resources.store.address)
                picture = found.grid_png()
                # A Bayesian search may have points of before that it has not asked for again.
                is_part = is_over or len(tried) < len(points) or asked.bayesian is not None
                recording.do_last(
                    lambda: tracking.finish_search(
                        recording.store, result, picture, is_part=is_part
                    )
                )
                left = len(points) - len(result.finished) - len(result.failed)
                if isinstance(trials, BayesianTrials):
                    left = trials.left if is_over else 0
                if is_part and left:
                    why = "its time is over" if is_over else f"only {len(tried)} were to be tried"
                    progress.echo(f"{left} of {asked.count} points are left, as {why}.")
        return judged(found, on_failure)


def _start_search(
    resources: Resources,
    name: str,
    asked: Asked,
    plan: SearchPlan,
    *,
    fresh: bool,
) -> str:
    """Open the search's run, make the trials of those that were cut off its own; return its id."""
    store = resources.store
    info = tracking.SearchInfo(
        name=name,
        space=asked.space,
        base=asked.base,
        points=asked.count,
        ahead=plan.ahead,
        axes=asked.axes,
        split=resources.split,
        data=resources.data_info,
        origin=resources.provenance,
        grid=plan.grid,
        fresh=fresh,
    )
    state = plan.state
    run_id = tracking.start_search(
        store, resources.experiment_id, info, state.search, resources.adopted
    )
    own = [trial.run_id for trial in state.finished.values() if not trial.reused]
    own += [trial.run_id for trial in state.open.values()]
    for other in state.searches:
        if other != run_id:
            tracking.move_trials(store, own, other, run_id)
    tracking.log_reused(store, run_id, _reused(plan))
    for trial in plan.trials:
        if trial.finished is not None:  # cut off between its last step and this
            checkpoints.remove(trial.checkpoint_dir)
    return run_id


@contextlib.contextmanager
def _trials_of(
    resources: Resources,
    recording: Recording,
    asked: Asked,
    plan: SearchPlan,
    scores: Scores,
    progress: Progress,
    *,
    fresh: bool,
) -> Iterator[Iterable[PlannedTrial | None]]:
    """Return the trials of a search; of a Bayesian one, they are asked for as others end."""
    draw = asked.bayesian
    if draw is None or plan.ahead is None:
        yield plan.trials
        return
    if plan.ahead < len(resources.workers):
        progress.echo(
            f"At most {plan.ahead} trials run at once, as when this search began: which points it "
            "asks for depends on it."
        )
    with Proposer(asked.space.network, asked.replaced, draw, plan.ahead) as proposer:
        yield BayesianTrials(
            resources=resources,
            recording=recording,
            asked=asked,
            draw=draw,
            plan=plan,
            proposer=proposer,
            progress=progress,
            scores=scores,
            fresh=fresh,
        )


def _name(asked: Asked, oracle: Oracle) -> str:
    count = f"{asked.count} point{'s' if asked.count > 1 else ''}"
    network = asked.space.network
    whose = "" if network.is_coursework else f" of {network.name}"
    return f"{'' if oracle == 'grid' else f'{oracle} '}search of {count}{whose}"


def _reused(plan: SearchPlan) -> list[str]:
    found = list(plan.state.finished.values())
    if plan.ahead is None:  # maybe not all of its points are to be tried
        found = [trial.finished for trial in plan.trials if trial.finished is not None]
    return [trial.run_id for trial in found if trial.reused]


def _read_complete(recording: Recording, points: Sequence[TrainingConfig]) -> SearchResult:
    """Read the search that was written; raise `SearchError` unless all these points have a run."""
    result = tracking.read_search(recording.store, own_run(recording.store, recording.run_id))
    found = len(set(points) & {trial.config for trial in result.trials})
    if found < len(points):
        raise SearchError(
            f"{len(points)} points were tried, but the store has runs for {found} of them. Run the "
            "same search again."
        )
    return result


def _tell_missing_files(store: Store, result: SearchResult, echo: Echo) -> None:
    """Say whose files somebody has removed meanwhile."""
    names = {trial.run_id: trial.name for trial in result.finished}
    gone = tracking.without_files(store, names)
    if gone:
        shown = ", ".join(names[run_id] for run_id in gone[:_NAMED])
        echo(
            f"The files of {len(gone)} finished trials are gone, among them their models: {shown}"
            f"{', …' if len(gone) > _NAMED else ''}. Their figures are in the store. To have the "
            "files again, delete those runs, and give the same command."
        )


def _try_points(
    resources: Resources,
    recording: Recording,
    plan: SearchPlan,
    trials: Iterable[PlannedTrial | None],
    scores: "dict[TrainingConfig, Future[TrialScore]]",
    progress: Progress,
    max_time: int | None,
    options: Mapping[str, Any],
) -> bool:
    """Have every planned trial run; return False if the time was over first, by the clock.

    A trial that was cut off then can be gone on with.
    """
    from fmnist_tracking.grid_search.scheduler import TrialScheduler

    scheduler = TrialScheduler(
        resources,
        recording,
        show=progress,
        echo=progress.echo,
        parent=recording.run_id,
        reused=_reused(plan),
        **options,
    )
    slots = len(resources.workers)

    def submit(trial: PlannedTrial) -> "Future[TrialScore]":
        scores[trial.config] = scheduler.submit(trial)
        return scores[trial.config]

    try:
        with scheduler:
            explore(
                trials,
                submit,
                lambda: slots + scheduler.waiting,
                recording.writer.failed,
                max_time or math.inf,
            )
    except TimeIsUp:
        recording.cut_off_trials()
        return False
    return True
