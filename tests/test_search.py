import math
import random
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tracking.config import SearchSpace, TrainingConfig, Value
from fmnist_tracking.results import TrialResult
from fmnist_tracking.search import GridOracle, explore
from test_results import trial

SPACE = SearchSpace(axes={"filters": (12, 36, 48), "strides": (1, 2), "kernel_size": (3, 4)})

grids = st.fixed_dictionaries(
    {"filters": st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True)},
    optional={
        "dropout": st.lists(st.floats(0, 0.9), min_size=1, max_size=3, unique=True),
        "seed": st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    },
)


class Slow:
    """Trials that end when told to, in any order."""

    def __init__(self) -> None:
        self.points: list[dict[str, Value]] = []
        self.open: list[tuple[int, Future[TrialResult]]] = []
        self.most_open = 0

    def run(self, number: int, values: Mapping[str, Value]) -> "Future[TrialResult]":
        assert number == len(self.points) + 1
        self.points.append(dict(values))
        future: Future[TrialResult] = Future()
        self.open.append((number, future))
        self.most_open = max(self.most_open, len(self.open))
        return future


@settings(max_examples=60, deadline=None)
@given(axes=grids, slots=st.integers(1, 6), seed=st.integers(0, 2**16), failing=st.floats(0, 1))
def test_every_point_once_in_any_order_of_finishing(
    axes: dict[str, list[float]], slots: int, seed: int, failing: float
) -> None:
    space = SearchSpace(axes={name: tuple(values) for name, values in axes.items()})
    chance = random.Random(seed)
    slow = Slow()

    def run(number: int, values: Mapping[str, Value]) -> "Future[TrialResult]":
        future = slow.run(number, values)
        # Once all slots are taken, one trial at random ends, well or not.
        if len(slow.open) >= slots or number == len(space):
            while slow.open and (len(slow.open) >= slots or number == len(space)):
                which, ended = slow.open.pop(chance.randrange(len(slow.open)))
                score = None if chance.random() < failing else chance.random()
                ended.set_result(trial(str(which), score))
        return future

    results = explore(space, run, slots)
    assert len(results) == len(space)
    handed_out = {tuple(point[axis] for axis in space.axes) for point in slow.points}
    assert len(handed_out) == len(slow.points) == math.prod(map(len, axes.values()))
    assert [r.run_id for r in results] == [str(n) for n in range(1, len(space) + 1)]
    assert slow.most_open == min(slots, len(space))


def test_points_come_in_the_grid_s_order() -> None:
    slow = Slow()

    def run(number: int, values: Mapping[str, Value]) -> "Future[TrialResult]":
        future = slow.run(number, values)
        future.set_result(trial("x", 0.5))
        return future

    explore(SPACE, run, slots=1)
    expected = [
        {"filters": p.filters, "strides": p.strides, "kernel_size": p.kernel_size}
        for p in SPACE.points(TrainingConfig())
    ]
    assert slow.points == expected


def test_four_workers_are_kept_busy() -> None:
    space = SearchSpace(axes={"filters": tuple(range(1, 41))})
    running, samples = 0, []

    def work(number: int) -> TrialResult:
        nonlocal running
        running += 1
        samples.append(running)
        time.sleep(0.02)
        running -= 1
        return trial(str(number), 0.5)

    with ThreadPoolExecutor(8) as threads:
        explore(space, lambda number, _: threads.submit(work, number), slots=4)
    # Counted when a trial starts: once the first four have, each finds three others at work.
    assert sum(s >= 3 for s in samples) >= 32
    assert max(samples) <= 4


def test_an_error_in_the_store_ends_the_search() -> None:
    def run(number: int, values: Mapping[str, Value]) -> "Future[TrialResult]":
        future: Future[TrialResult] = Future()
        future.set_exception(ConnectionError("the store is gone"))
        return future

    with pytest.raises(ConnectionError, match="the store is gone"):
        explore(SPACE, run, slots=1)


def test_many_failures_in_a_row_do_not_stop_the_search() -> None:
    def run(number: int, values: Mapping[str, Value]) -> "Future[TrialResult]":
        future: Future[TrialResult] = Future()
        future.set_result(trial(str(number), None, error="it failed"))
        return future

    assert {r.status for r in explore(SPACE, run, slots=1)} == {"FAILED"}


def test_the_oracle_writes_nothing(tmp_path: object) -> None:
    oracle = GridOracle(SPACE)
    oracle.create_trial("slot")
    assert list(tmp_path.iterdir()) == []  # type: ignore[attr-defined]  # the working folder
