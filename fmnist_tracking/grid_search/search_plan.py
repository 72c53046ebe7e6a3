"""The plan of a search: what it has done before, and what is left to train."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fmnist_tracking import fingerprint, tracking
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.grid_search.lock import checkpoint_folder, keeping_for, locked_folder
from fmnist_tracking.grid_search.plan import PlannedTrial, plan_trials
from fmnist_tracking.grid_search.resources import Resources
from fmnist_tracking.results import FINISHED, SearchResult
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.tracking import ResumeState, Store, TrackedRun


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search is to do."""

    grid: str  # its fingerprint
    folder: Path  # with the checkpoints, locked for this search
    # The same search, if it has finished all points to be tried; then nothing is planned.
    before: SearchResult | None = None
    state: ResumeState = field(default_factory=ResumeState)
    trials: tuple[PlannedTrial, ...] = ()  # one for each point to be tried, in order


@contextmanager
def plan_search(
    resources: Resources,
    space: SearchSpace,
    points: Sequence[TrainingConfig],
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
    keys = fingerprint.of_grid(points, split, digest)
    grid = keys.grids[0]
    with locked_folder(checkpoint_folder(store, experiment_id, grid), fresh=fresh) as held:
        searches = tracking.find_searches(store, experiment_id, keys.grids)
        if searches:
            tracking.require_not_live(store, searches[0], held.before)
        resumes = resources.adopted is None and not fresh
        tried = points[:most]
        before = _finished_before(store, searches[0], tried) if resumes and searches else None
        if before is not None:
            yield SearchPlan(grid=grid, folder=held.path, before=before)
            return
        state = tracking.find_resume_state(
            store, experiment_id, searches, keys, fresh=fresh, reopen=resumes
        )
        keeping = keeping_for(store, experiment_id, digest, fresh=fresh, keeps=keeps)
        today = keys.today[: len(tried)]
        trials = plan_trials(tried, today, space.varying, split, state, held.path, keeping)
        yield SearchPlan(grid=grid, folder=held.path, state=state, trials=trials)


def _finished_before(
    store: Store, run: TrackedRun, points: Sequence[TrainingConfig]
) -> SearchResult | None:
    """Return a search that has ended and has all these trials still, None if it is none."""
    if run.raw.info.status != FINISHED:
        return None
    result = tracking.read_search(store, run, summary=False)
    if not {trial.config for trial in result.finished} >= set(points):
        return None
    tracking.log_asked(store, run.run_id)
    reused = (dataclasses.replace(trial, reused=True) for trial in result.trials)
    return dataclasses.replace(result, trials=tuple(reused))
