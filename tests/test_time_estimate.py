import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.grid_search.time_estimate import TimeEstimator, memory_bytes, time_left, work

SMALL, LARGE = TrainingConfig.of(filters=4), TrainingConfig.of(filters=64)
seconds = st.floats(0, 1000)


def test_work_grows_with_the_network_and_not_with_the_rest() -> None:
    assert work(LARGE) > work(SMALL)
    assert work(TrainingConfig.of(strides=2)) < work(TrainingConfig.of(strides=1))
    assert work(SMALL.replace(seed=3, epochs=7, dropout=0.1)) == work(SMALL)


def test_nothing_is_known_at_first() -> None:
    pace = TimeEstimator()
    assert not pace.is_known
    assert pace.seconds(SMALL, 10) == 0
    pace.epoch(SMALL, 1, 2.0)
    assert pace.is_known


@pytest.mark.parametrize("number", [1, 2])
def test_an_epoch_tells_how_long_others_take(number: int) -> None:
    pace = TimeEstimator()
    pace.epoch(SMALL, number, 2.0)
    assert pace.seconds(SMALL, 5) == pytest.approx(10)
    assert pace.seconds(LARGE, 5) == pytest.approx(10 * work(LARGE) / work(SMALL))


def test_the_first_epoch_s_surplus_is_paid_once() -> None:
    pace = TimeEstimator()
    pace.epoch(SMALL, 1, 7.0)
    for number in (2, 3):
        pace.epoch(SMALL, number, 2.0)
    assert pace.seconds(SMALL, 5) == pytest.approx(5 + 5 * 2)
    assert pace.seconds(SMALL, 5, begun=True) == pytest.approx(5 * 2)
    assert pace.seconds(SMALL, 0) == 0
    # The surplus is a trial's, whatever its work.
    assert pace.seconds(LARGE, 5) == pytest.approx(5 + 10 * work(LARGE) / work(SMALL))


def test_a_whole_trial_tells_what_its_epochs_do_not() -> None:
    pace = TimeEstimator()
    pace.epoch(SMALL, 1, 7.0)
    pace.epoch(SMALL, 2, 2.0)
    pace.trial(SMALL, 2, 12.0)  # 3 seconds before its first epoch and after its last
    assert pace.seconds(SMALL, 2) == pytest.approx(12)
    assert pace.seconds(SMALL, 4) == pytest.approx(16)


def test_whole_trials_alone_are_enough() -> None:
    pace = TimeEstimator()
    pace.trial(SMALL, 4, 20.0)
    assert pace.is_known
    assert pace.seconds(SMALL, 2) == pytest.approx(10)


def test_a_trial_never_takes_less_than_its_epochs() -> None:
    pace = TimeEstimator()
    pace.epoch(SMALL, 1, 1.0)  # quicker than the next, as on a machine that others use too
    pace.epoch(SMALL, 2, 3.0)
    assert pace.seconds(SMALL, 2) == pytest.approx(6)


def test_one_worker_takes_the_sum_and_enough_workers_the_longest() -> None:
    assert time_left([3], [5, 7], 1) == 15
    assert time_left([3], [5, 7], 3) == 7
    assert time_left([3, 4], [], 2) == 4
    assert time_left([], [], 4) == 0


def test_the_next_trial_goes_to_the_first_free_worker() -> None:
    # Workers are free after 4 and 1; the trials of 5, 2 and 2 end at 6, 6 and 8.
    assert time_left([4, 1], [5, 2, 2], 2) == 8


@given(
    running=st.lists(seconds, max_size=5),
    waiting=st.lists(seconds, max_size=20),
    spare=st.integers(0, 3),
)
def test_time_left_is_no_less_than_an_even_share(
    running: list[float], waiting: list[float], spare: int
) -> None:
    workers = max(1, len(running) + spare)
    left = time_left(running, waiting, workers)
    longest = max([*running, *waiting], default=0.0)
    share = (sum(running) + sum(waiting)) / workers
    assert left >= max(longest, share * (1 - 1e-9))
    assert left <= share + longest + 1e-6
    assert time_left(running, waiting, workers + 1) <= left + max(waiting, default=0.0) + 1e-6


def test_memory_is_that_of_weights_and_a_batch() -> None:
    config = TrainingConfig.of(filters=2, kernel_size=1, strides=1, hidden_units=3, batch_size=5)
    # 28, 14, 14 and 7 pixels a side; 4 + 6 + 3 * 99 + 10 * 4 weights.
    outputs = 2 * (28**2 + 14**2 + 14**2 + 7**2) + 3
    assert memory_bytes(config, 1000) == 4 * (4 * 347 + 5 * outputs)
    assert memory_bytes(config, 2) == 4 * (4 * 347 + 2 * outputs)
