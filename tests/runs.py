"""Searches and trials in a store, begun and ended without a training."""

import dataclasses
from collections.abc import Mapping

from conftest import SMALL, SMALL_SPLIT
from fmnist_tracking import tracking
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.environment import Code
from fmnist_tracking.fingerprint import GridKeys
from fmnist_tracking.results import SearchResult
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.tracking import DatasetInfo, Provenance, SearchInfo, Store, TrialInfo
from records import training

FACTS = DatasetInfo(sha256="d" * 64, name="Fashion-MNIST", source="somewhere")
CODE = Code(version="1.2", sha256="c" * 64, commit="a" * 40, branch="main", dirty=True)
ORIGIN = Provenance(code=CODE, environment={"python": "CPython 3"})
SPACE = SearchSpace(axes={"filters": (12, 36), "learning_rate": (0.01, 0.001)})
SEARCH = SearchInfo(
    name="a search",
    space=SPACE,
    base=SMALL,
    split=SMALL_SPLIT,
    data=FACTS,
    origin=ORIGIN,
    grid="9" * 64,
    points=len(SPACE),
)
TRIAL = TrialInfo(
    name="a trial",
    config=SMALL,
    split=SMALL_SPLIT,
    data=FACTS,
    origin=ORIGIN,
    fingerprint="f" * 64,
    threads=2,
    parent=None,
)


def keys(configs: Mapping[str, TrainingConfig]) -> GridKeys:
    """The keys of a grid whose points have these fingerprints."""
    same = {point: point for point in configs}
    return GridKeys(today=tuple(configs), points=same, configs=configs, grids=())


def start_search(store: Store, **changes: object) -> str:
    experiment = tracking.choose_experiment(store, None)
    return tracking.start_search(store, experiment, dataclasses.replace(SEARCH, **changes))  # type: ignore[arg-type]


def start_trial(
    store: Store, config: TrainingConfig, parent: str | None, resume: str | None = None
) -> str:
    experiment = tracking.choose_experiment(store, None)
    facts = dataclasses.replace(TRIAL, config=config, parent=parent)
    return tracking.start_trial(store, experiment, facts, resume)


def finish_quickly(store: Store, run_id: str, score: float) -> None:
    """A trial's end without the cost of a model."""
    result = training(score)
    for name, value in result.summary().items():
        store.client.log_metric(run_id, name, value)
    store.client.set_terminated(run_id, "FINISHED")


def search_result(store: Store, run_id: str) -> SearchResult:
    return tracking.read_search(store, tracking.find_run(store, run_id))
