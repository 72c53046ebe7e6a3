"""Points that depend on results: those of KerasTuner's own Bayesian optimisation."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras_tuner
import numpy as np
from keras_tuner.engine.trial import TrialStatus
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from fmnist_tracking.errors import ConfigError
from fmnist_tracking.network import Network, Value
from fmnist_tracking.networks.space import (
    OBJECTIVE,
    Enumerator,
    RequireTrainable,
    keras_tuner_warnings_ignored,
    open_tuner,
)
from fmnist_tracking.search_space import Draw, Proposed

# How a point came out, by what points are compared by; None if it has no result.
Score: TypeAlias = float | None
Replaced: TypeAlias = tuple[tuple[str, tuple[Value, ...]], ...]


class _Bayesian(Enumerator, keras_tuner.BayesianOptimization):  # type: ignore[misc]
    pass


class Proposals:
    """The points that KerasTuner's Bayesian optimisation asks for, given how others came out.

    Results are told in the order in which the points were asked for, and each point is asked for
    when all but the last few before it are told: so the same results give the same points, in
    whatever order the trials end. With `ahead` 1, the points are those of
    `keras_tuner.BayesianOptimization`.

    Args:
        network: whose function is called.
        replaced: values to try instead of a hyperparameter's own.
        draw: how many points to ask for, the seed, and whether more is better or less.
        ahead: how many points may be without a result when another is asked for, and that one.
        require_trainable: raises an error for a model that cannot be trained.
    """

    def __init__(
        self,
        network: Network,
        replaced: Replaced,
        draw: Draw,
        ahead: int,
        require_trainable: RequireTrainable,
    ) -> None:
        self.scores: list[Score] = []
        self._trials: list[Any] = []
        self._is_over = False
        self._draw, self._ahead = draw, ahead
        self._tuner = open_tuner(_Bayesian, network, dict(replaced), draw, require_trainable)
        oracle = self._tuner.oracle
        oracle.verbose = 0
        # For a seed of 0, KerasTuner takes any.
        oracle.seed = oracle._seed_state = draw.seed
        oracle._random_state = np.random.RandomState(draw.seed)
        oracle.gpr = oracle._make_gpr()

    def ask(self, scores: Sequence[Score]) -> Proposed:
        """Return all points that can be asked for, given the scores of the first of them."""
        while not self._is_over and len(self._trials) < self._draw.points:
            untold = len(self._trials) - len(self.scores)
            if untold >= self._ahead:
                if len(self.scores) == len(scores):
                    break
                self._tell(scores[len(self.scores)])
            else:
                self._ask_one()
        return Proposed(points=tuple(self._tuner.found), is_over=self._is_over)

    def _ask_one(self) -> None:
        trial = self._tuner.oracle.create_trial(f"tuner {len(self._trials)}")
        if trial.status == TrialStatus.STOPPED:  # there are no others
            self._is_over = True
            return
        self._tuner.found.append(self._tuner.built(trial))
        self._tuner.hypermodel.require_sound()
        self._trials.append(trial)

    def _tell(self, score: Score) -> None:
        oracle, trial = self._tuner.oracle, self._trials[len(self.scores)]
        if score is None:
            trial.status = TrialStatus.INVALID
        else:
            oracle.update_trial(trial.trial_id, {OBJECTIVE: score})
            trial.status = TrialStatus.COMPLETED
        oracle.end_trial(trial)
        self.scores.append(score)


# What this process was last asked about, so that it need not be worked out from its beginning.
_latest: dict[tuple[Any, ...], Proposals] = {}


def propose(
    network: Network,
    replaced: Mapping[str, Sequence[Value]],
    draw: Draw,
    ahead: int,
    scores: Sequence[Score],
    require_trainable: RequireTrainable,
) -> Proposed:
    """Return the points that `Proposals` asks for; the arguments alone determine them.

    Raises:
        ConfigError: the network cannot be loaded, or none of its points be trained.
    """
    values: Replaced = tuple((name, tuple(values)) for name, values in replaced.items())
    key = network, repr(values), draw, ahead
    known = _latest.pop(key, None)
    # One thread: sums in another order would give other points. Trials want the other cores.
    with keras_tuner_warnings_ignored(), threadpool_limits(1):
        # Of few results, or equal ones, a Gaussian process can say little.
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        if known is None or [*scores[: len(known.scores)]] != known.scores:
            known = Proposals(network, values, draw, ahead, require_trainable)
        try:
            proposed = known.ask(scores)
        except keras_tuner.errors.FatalError as error:
            raise ConfigError(str(error)) from None
    _latest.clear()
    _latest[key] = known
    return proposed
