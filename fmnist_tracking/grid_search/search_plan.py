"""The plan of a search: what it has done before, and what is left to train."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fmnist_tracking import fingerprint, tracking
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.grid_search.arguments import Asked
from fmnist_tracking.grid_search.lock import checkpoint_folder, keeping_for, locked_folder
from fmnist_tracking.grid_search.plan import Keeping, PlannedTrial, plan_trials
from fmnist_tracking.grid_search.resources import Resources
from fmnist_tracking.results import FINISHED, SearchResult
from fmnist_tracking.tracking import ResumeState, Store, TrackedRun, schema


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search is to do."""

    grid: str  # its fingerprint
    folder: Path  # with the checkpoints, locked for this search
    # The same search, if it has finished all points to be tried; then nothing is planned.
    before: SearchResult | None = None
    state: ResumeState = field(default_factory=ResumeState)
    trials: tuple[PlannedTrial, ...] = ()  # one for each point to be tried, in order
    # Of a search whose points depend on results; its trials are planned one by one.
    ahead: int | None = None  # how many points may be without a result when another is asked for
    keeping: Keeping | None = None


@contextmanager
def plan_search(
    resources: Resources,
    asked: Asked,
    *,
    fresh: bool,
    keeps: bool,
    most: int | None = None,
) -> Iterator[SearchPlan]:
    """Plan the trials of a search, all of them anew if it is fresh, and hold its folder's lock.

    Only the first points of the grid are tried, where there are `most` of them. If it `keeps` them,
    the checkpoints of its finished trials stay.

    Raises:
        SearchError: another process is working on the same search.
    """
    store, experiment_id = resources.store, resources.experiment_id
    split, digest = resources.split, resources.dataset.digest
    points, bayesian = asked.points, asked.bayesian
    if bayesian is None:
        keys = fingerprint.of_grid(points, split, digest)
        grids = keys.grids
    else:
        grids = (fingerprint.of_bayesian(asked.base, asked.replaced, bayesian.seed, split, digest),)
    grid = grids[0]
    with locked_folder(checkpoint_folder(store, experiment_id, grid), fresh=fresh) as held:
        searches = tracking.find_searches(store, experiment_id, grids)
        if searches:
            tracking.require_not_live(store, searches[0], held.before)
        resumes = resources.adopted is None and not fresh
        tried = points[:most]
        before = None
        if resumes and searches and bayesian is None:
            before = _finished_before(store, searches[0], tried)
        elif resumes and searches and _has_asked(searches[0], asked):
            before = _finished_before(store, searches[0], None)
        if before is not None:
            yield SearchPlan(grid=grid, folder=held.path, before=before)
            return
        if bayesian is not None:
            earlier = [] if fresh else searches
            found = (tracking.read_search(store, run, summary=False) for run in earlier)
            known = {trial.config: None for result in found for trial in result.trials}
            keys = fingerprint.of_grid(known, split, digest)
        state = tracking.find_resume_state(
            store, experiment_id, searches, keys, fresh=fresh, reopen=resumes
        )
        keeping = keeping_for(store, experiment_id, digest, fresh=fresh, keeps=keeps)
        plan = SearchPlan(grid=grid, folder=held.path, state=state, keeping=keeping)
        if bayesian is None:
            today, axes = keys.today[: len(tried)], asked.space.varying
            trials = plan_trials(tried, today, axes, split, state, held.path, keeping)
            yield dataclasses.replace(plan, trials=trials)
        else:
            ahead = _ahead_of(searches[0]) if searches and not fresh else None
            ahead = ahead or len(resources.workers)
            yield dataclasses.replace(plan, ahead=ahead)


def plan_next(
    resources: Resources,
    plan: SearchPlan,
    config: TrainingConfig,
    axes: tuple[str, ...],
    number: int,
    *,
    fresh: bool,
) -> PlannedTrial:
    """Plan the trial of a point that was not known when the search was planned."""
    split, state, keeping = resources.split, plan.state, plan.keeping
    assert keeping is not None
    point = fingerprint.of_point(config, split, resources.dataset.digest)
    if not (fresh or state.is_fresh or point in state.finished or point in state.open):
        found = tracking.find_finished(resources.store, resources.experiment_id, point, config)
        if found is not None:
            state = ResumeState(finished={point: dataclasses.replace(found, reused=True)})
    (trial,) = plan_trials(
        [config], [point], axes, split, state, plan.folder, keeping, first=number
    )
    return trial


def _has_asked(run: TrackedRun, asked: Asked) -> bool:
    """Return whether a search has asked for as many points before as it is to, or more."""
    before = run.raw.data.tags.get(schema.ASKED_POINTS, "")
    wanted = 0 if asked.bayesian is None else asked.bayesian.points
    trials = run.raw.data.tags.get(schema.ASKED_TRIALS, "")
    return before.isdecimal() and trials.isdecimal() and int(before) >= wanted


def _ahead_of(run: TrackedRun) -> int | None:
    ahead = run.raw.data.tags.get(schema.AHEAD, "")
    return int(ahead) if ahead.isdecimal() and int(ahead) > 0 else None


def _finished_before(
    store: Store, run: TrackedRun, points: Sequence[TrainingConfig] | None
) -> SearchResult | None:
    """Return a search that has ended and has all these trials still, None if it is none.

    None for the points stands for those that it has asked for.
    """
    if run.raw.info.status != FINISHED:
        return None
    result = tracking.read_search(store, run, summary=False)
    if points is None:
        if result.failed or len(result.finished) < int(run.raw.data.tags[schema.ASKED_TRIALS]):
            return None
    elif not {trial.config for trial in result.finished} >= set(points):
        return None
    tracking.log_asked(store, run.run_id)
    reused = (dataclasses.replace(trial, reused=True) for trial in result.trials)
    return dataclasses.replace(result, trials=tuple(reused))
