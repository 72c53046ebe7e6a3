"""The trials of a search whose points depend on results: asked for while others run."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from fmnist_tracking import machine, tracking
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.grid_search.arguments import Asked
from fmnist_tracking.grid_search.claims import LOOK_SECONDS
from fmnist_tracking.grid_search.memory import too_large
from fmnist_tracking.grid_search.plan import PlannedTrial
from fmnist_tracking.grid_search.progress import Progress
from fmnist_tracking.grid_search.proposer import Proposer
from fmnist_tracking.grid_search.recording import Recording
from fmnist_tracking.grid_search.resources import Resources
from fmnist_tracking.grid_search.search_plan import SearchPlan, plan_next
from fmnist_tracking.results import TrialScore
from fmnist_tracking.search_space import Combination, Draw, Impossible

Scores = Mapping[TrainingConfig, "Future[TrialScore]"]


@dataclass(kw_only=True)
class BayesianTrials:
    """Iterates over the trials of a Bayesian search, for `explore.explore`.

    It gives None where no trial can be asked for before another has ended. A point that is asked
    for again is not trained again: it came out as before.

    Attributes:
        asked: what the search is for.
        scores: how each trial that was submitted comes out; the caller adds them.
        fresh: whether each point is trained anew.
        configs: the points so far, each once.
    """

    resources: Resources
    recording: Recording
    asked: Asked
    draw: Draw
    plan: SearchPlan
    proposer: Proposer
    progress: Progress
    scores: Scores
    fresh: bool
    configs: list[TrainingConfig] = field(default_factory=list)
    _order: list[TrainingConfig | None] = field(default_factory=list)  # as they were asked for
    _told: list[float | None] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Return how many points have not been asked for, or have not ended."""
        ended = sum(one is None or self.scores[one].done() for one in self._order)
        return self.draw.points - ended

    def log_asked(self) -> None:
        """Record that all points have been asked for, and have ended."""
        store, run_id = self.recording.store, self.recording.run_id
        tracking.log_asked_points(store, run_id, self.draw.points, len(self.configs))

    def __iter__(self) -> Iterator[PlannedTrial | None]:
        is_over = False
        while not is_over and len(self._order) < self.draw.points:
            self._tell()
            proposed = self.proposer.points(self._told)
            is_over, new = proposed.is_over, proposed.points[len(self._order) :]
            if not new and not is_over:
                yield None
            for point in new:
                yield from self._trials(point)
        for _ in range(self.draw.points - len(self._order)):
            self.progress.expect_fewer()

    def _tell(self) -> None:
        """Take in how points came out, in the order in which they were asked for."""
        for config in self._order[len(self._told) :]:
            if config is None:
                self._told.append(None)
                continue
            if not self.scores[config].done():
                break
            score = self.scores[config].result()
            self._told.append(None if score.diverged else score.value)

    def _trials(self, point: Combination | Impossible) -> Iterator[PlannedTrial]:
        """Give the trial of a point, unless it has one already, or cannot be trained."""
        config = None
        if isinstance(point, Combination):
            config = self.asked.config_of(point)
            reason = too_large(config, self.resources.split, machine.memory())
        else:
            reason = point.reason
        if reason is not None:
            name = Impossible(values=point.values, reason=reason).name
            self.progress.echo(f"Left out, as it cannot be trained: {name}: {reason}")
            config = None
        if config is None or config in self.scores:
            self.progress.expect_fewer()
        else:
            self.configs.append(config)
            yield self._planned(config)
        self._order.append(config)

    def _planned(self, config: TrainingConfig) -> PlannedTrial:
        """Plan a trial, when the store answers whether the point was trained before."""
        while True:
            number, failed = len(self.configs), self.recording.writer.failed
            try:
                trial = plan_next(
                    self.resources, self.plan, config, self.asked.axes, number, fresh=self.fresh
                )
            except Exception as error:
                if not tracking.is_passing(error):
                    raise
                wait([failed], timeout=LOOK_SECONDS)
                if failed.done():
                    failed.result()
            else:
                self.progress.expect(config, trial.name)
                return trial
