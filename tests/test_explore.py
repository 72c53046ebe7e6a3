import math
import random
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.errors import TrackingError
from fmnist_tracking.grid_search import explore as module
from fmnist_tracking.grid_search.explore import TimeIsUp, explore
from fmnist_tracking.grid_search.plan import PlannedTrial
from fmnist_tracking.results import TrialScore
from fmnist_tracking.search_space import SearchSpace

SPACE = SearchSpace(axes={"filters": (12, 36, 48), "strides": (1, 2), "kernel_size": (3, 4)})
FAILED = TrialScore(error="it failed")

grids = st.fixed_dictionaries(
    {"filters": st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True)},
    optional={
        "dropout": st.lists(st.floats(0, 0.9), min_size=1, max_size=3, unique=True),
        "seed": st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    },
)


def endless() -> "Future[None]":
    """A store that never fails."""
    return Future()


def trials_of(space: SearchSpace) -> list[PlannedTrial]:
    return [
        PlannedTrial(number=number, name="", config=config, fingerprint="", checkpoint_dir=Path())
        for number, config in enumerate(space.points(TrainingConfig()), start=1)
    ]


def ended(outcome: TrialScore) -> "Future[TrialScore]":
    future: Future[TrialScore] = Future()
    future.set_result(outcome)
    return future


class World:
    """Trials that end while the search waits: some at a time, in any order, well or not."""

    def __init__(self, chance: random.Random, failing: float, finished: float) -> None:
        self.chance, self.failing, self.finished = chance, failing, finished
        self.points: list[PlannedTrial] = []
        self.open: list[Future[TrialScore]] = []
        self.open_at_waits: list[tuple[int, int]] = []

    def outcome(self) -> TrialScore:
        if self.chance.random() < self.failing:
            return FAILED
        return TrialScore(value=self.chance.random(), best_epoch=1)

    def run(self, trial: PlannedTrial) -> "Future[TrialScore]":
        self.points.append(trial)
        if self.chance.random() < self.finished:
            return ended(self.outcome())
        self.open.append(Future())
        return self.open[-1]

    def wait(self, futures: Collection["Future[Any]"], *, timeout: None, return_when: str) -> Any:
        """In place of `concurrent.futures.wait`, so that the order is not left to threads."""
        self.open_at_waits.append((len(self.open), len(self.points)))
        assert {*self.open} <= {*futures}
        done = self.chance.sample(self.open, self.chance.randint(1, len(self.open)))
        for future in done:
            future.set_result(self.outcome())
        self.open = [future for future in self.open if not future.done()]
        return set(done), {*futures} - {*done}


@settings(max_examples=200, deadline=None)
@given(
    axes=grids,
    slots=st.integers(1, 6),
    seed=st.integers(0, 2**16),
    failing=st.floats(0, 1),
    finished=st.one_of(st.just(0.0), st.floats(0, 1)),
)
def test_every_point_once_in_any_order_of_finishing(
    axes: dict[str, list[float]], slots: int, seed: int, failing: float, finished: float
) -> None:
    space = SearchSpace(axes={name: tuple(values) for name, values in axes.items()})
    world = World(random.Random(seed), failing, finished)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "wait", world.wait)
        explore(trials_of(space), world.run, lambda: slots, endless())
    assert [trial.number for trial in world.points] == [*range(1, len(space) + 1)]
    assert len(space) == math.prod(map(len, axes.values()))
    assert world.open == []
    # It waits only when no slot is free or no point is left, and never has more than its slots.
    for open_then, handed_out_then in world.open_at_waits:
        assert open_then == slots or (open_then < slots and handed_out_then == len(space))


def test_four_workers_are_kept_busy() -> None:
    space = SearchSpace(axes={"filters": tuple(range(1, 41))})
    four_at_once = threading.Barrier(4)
    running, most = 0, 0

    def work() -> TrialScore:
        nonlocal running, most
        running += 1
        most = max(most, running)
        four_at_once.wait(timeout=20)
        running -= 1
        return TrialScore(value=0.5, best_epoch=1)

    with ThreadPoolExecutor(8) as threads:
        explore(trials_of(space), lambda _: threads.submit(work), lambda: 4, endless())
    assert not four_at_once.broken
    assert most == 4


def test_when_its_time_is_over_a_search_begins_nothing_and_waits_for_nothing() -> None:
    trials = trials_of(SPACE)
    begun: list[int] = []

    def run(trial: PlannedTrial) -> "Future[TrialScore]":
        begun.append(trial.number)
        return Future()  # that never ends

    with pytest.raises(TimeIsUp):
        explore(trials, run, lambda: 2, endless(), 0.2)
    assert begun == [1, 2]
    with pytest.raises(TimeIsUp):
        explore(trials, run, lambda: 2, endless(), 0.0)
    assert begun == [1, 2, 1]  # it counts from the first that begins


def test_what_depends_on_results_is_asked_for_when_others_have_ended() -> None:
    one, two, three, *_ = trials_of(SPACE)
    begun: list[int] = []
    futures: list[Future[TrialScore]] = []

    def run(trial: PlannedTrial) -> "Future[TrialScore]":
        begun.append(trial.number)
        futures.append(Future())
        return futures[-1]

    def asked() -> Iterator[PlannedTrial | None]:
        yield from (one, two)
        futures[0].set_result(TrialScore(value=0.5))
        yield None
        assert not futures[1].done()
        yield three
        for future in futures[1:]:
            future.set_result(TrialScore(value=0.5))

    explore(asked(), run, lambda: 3, endless())
    assert begun == [one.number, two.number, three.number]


def test_an_error_of_the_driver_in_a_trial_ends_the_search() -> None:
    def run(trial: PlannedTrial) -> "Future[TrialScore]":
        future: Future[TrialScore] = Future()
        threading.Timer(0.1, future.set_exception, [ConnectionError("no driver")]).start()
        return future

    with pytest.raises(ConnectionError, match="no driver"):
        explore(trials_of(SPACE), run, lambda: 1, endless())


@pytest.mark.parametrize("before", [True, False], ids=["failed before", "fails while it waits"])
def test_a_store_that_fails_for_good_ends_the_search(before: bool) -> None:
    stop = endless()
    error = TrackingError("the store is gone")
    started: list[PlannedTrial] = []
    timers: list[threading.Timer] = []

    def after(seconds: float, act: Callable[..., None], value: object) -> None:
        timers.append(threading.Timer(seconds, act, [value]))
        timers[-1].start()

    def run(trial: PlannedTrial) -> "Future[TrialScore]":
        started.append(trial)
        future: Future[TrialScore] = Future()
        after(20, future.set_result, FAILED)  # far too late
        if len(started) == 2 and not before:
            after(0.1, stop.set_exception, error)
        return future

    if before:
        stop.set_exception(error)
    try:
        with pytest.raises(TrackingError, match="the store is gone"):
            explore(trials_of(SPACE), run, lambda: 2, stop)
    finally:
        for timer in timers:
            timer.cancel()
    assert len(started) == 2
