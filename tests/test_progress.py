import dataclasses
import io
import math
import re
import sys

import pytest

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.console import PlainConsole
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.grid_search.messages import (
    EpochEnded,
    TrialEnded,
    TrialReused,
    TrialStarted,
    WorkerLost,
    WorkerSilent,
)
from fmnist_tracking.grid_search.progress import INTERVAL_VARIABLE, Progress
from fmnist_tracking.results import EpochMetrics, TrialScore
from fmnist_tracking.search_space import SearchSpace
from processes import wait_for
from records import epoch

POINTS = SearchSpace(axes={"filters": (12, 12 + 1)}).points(TrainingConfig.of(epochs=2))
NAMES = ("f12", "f13")


def slow_epoch(number: int, val_accuracy: float = 0.5) -> EpochMetrics:
    return dataclasses.replace(epoch(number, val_accuracy), epoch_seconds=10)


class Shown:
    """A display of some alike points, on a clock that a test sets."""

    def __init__(self, points: int, epochs: int, workers: int = 1, live: bool = False) -> None:
        self.now = 0.0
        self.file = io.StringIO()
        console = PlainConsole(file=self.file, force_terminal=live, width=160)
        self.progress = Progress(
            (TrainingConfig.of(epochs=epochs),) * points,
            "abcdef"[:points],
            workers,
            console,
            lambda: self.now,
        )

    @property
    def text(self) -> str:
        return self.file.getvalue()

    @property
    def drawn(self) -> list[str]:
        """Return the lines of a live display, one drawing of it after the other."""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text)
        return [line.rstrip() for line in text.splitlines()]

    @property
    def last_line(self) -> str:
        return self.text.splitlines()[-1]


def run_through(progress: Progress) -> None:
    with progress:
        progress(TrialStarted(number=1))
        progress(EpochEnded(number=1, metrics=epoch(1, 0.61)))
        progress(EpochEnded(number=1, metrics=epoch(2, 0.75)))
        progress(TrialEnded(number=1, score=TrialScore(value=0.75, best_epoch=2)))
        progress(TrialStarted(number=2))
        progress(EpochEnded(number=2, metrics=epoch(1, 0.5)))
        progress(TrialEnded(number=2, score=TrialScore(error="no memory")))


def test_plain_lines_where_there_is_no_terminal() -> None:
    text = io.StringIO()
    run_through(Progress(POINTS, NAMES, console=PlainConsole(file=text)))
    lines = text.getvalue().splitlines()
    assert lines[0] == "[1/2] f12 started"
    assert lines[1].startswith("[1/2] f12  epoch 1/2  loss 1.0000")
    assert "val_accuracy 0.6100  no trial ended yet" in lines[1]
    assert lines[3] == "[1/2] f12 ended: validation accuracy 0.7500, epoch 2"
    assert "best so far 0.7500 (f12)" in lines[5]
    assert lines[6] == "[2/2] f13 ended: FAILED: no memory"
    assert "\x1b" not in text.getvalue()


def test_without_a_terminal_a_line_a_second_beside_the_ends_of_trials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(INTERVAL_VARIABLE)
    shown = Shown(points=6, epochs=50, workers=2)
    for number in range(1, 7):
        shown.progress(TrialStarted(number=number))
        for done in range(1, 51):
            shown.now += 0.0625
            shown.progress(EpochEnded(number=number, metrics=slow_epoch(done)))
        shown.progress(TrialEnded(number=number, score=TrialScore(value=0.5, best_epoch=1)))
    lines = shown.text.splitlines()
    ends = [line for line in lines if " ended: " in line]
    assert len(ends) == 6
    assert len(lines) - len(ends) == 1 + int(shown.now)  # 18 seconds
    assert lines[0] == "[1/6] a started"
    assert "a  epoch 16/50" in lines[1]
    assert "a  epoch 32/50" in lines[2]


def test_slow_trials_have_a_line_for_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INTERVAL_VARIABLE)
    shown = Shown(points=1, epochs=3)
    shown.progress(TrialStarted(number=1))
    for done in (1, 2, 3):
        shown.now += 1
        shown.progress(EpochEnded(number=1, metrics=slow_epoch(done)))
    assert len(shown.text.splitlines()) == 4


@pytest.mark.parametrize("text", ["often", "-1", "nan", "inf"])
def test_an_interval_that_is_no_number_of_seconds(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, text)
    with pytest.raises(ConfigError, match=f"FMNIST_PROGRESS_SECONDS .*, got '{text}'"):
        Progress(POINTS, NAMES)


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_no_variable_makes_a_live_display_of_a_file(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    text = io.StringIO()
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(sys, "stderr", text)
    run_through(Progress(POINTS, NAMES))
    assert "\x1b" not in text.getvalue()
    assert "[1/2] f12 started" in text.getvalue()


def test_a_dumb_terminal_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = io.StringIO()
    run_through(Progress(POINTS, NAMES, console=PlainConsole(file=text, force_terminal=True)))
    assert "[1/2] f12 started" in text.getvalue()
    assert "\x1b" not in text.getvalue()


def test_time_left_follows_the_work() -> None:
    shown = Shown(points=3, epochs=4)
    progress = shown.progress
    assert progress.seconds_left is None
    progress(TrialStarted(number=1))
    shown.now = 10
    progress(EpochEnded(number=1, metrics=slow_epoch(1)))
    assert "0:01:50 left" in shown.last_line  # 11 of 12 epochs, 10 seconds each
    assert progress.seconds_left == 110
    shown.now = 15
    assert progress.seconds_left == 105
    # A trial that stops early takes its remaining epochs with it.
    progress(TrialEnded(number=1, score=TrialScore(value=0.5, best_epoch=1)))
    progress(TrialStarted(number=2))
    shown.now = 30
    progress(EpochEnded(number=2, metrics=slow_epoch(1)))
    # The first trial took 5 seconds beside its epoch, and so will the third.
    assert "0:01:15 left" in shown.last_line  # 3 + 4 epochs and 5 seconds


def test_two_workers_halve_the_time_left() -> None:
    shown = Shown(points=2, epochs=4, workers=2)
    shown.progress(TrialStarted(number=1), 0)
    shown.progress(TrialStarted(number=2), 1)
    shown.now = 10
    shown.progress(EpochEnded(number=1, metrics=slow_epoch(1)), 0)
    shown.progress(EpochEnded(number=2, metrics=slow_epoch(1)), 1)
    assert "0:00:30 left" in shown.last_line


def test_points_that_are_trained_already_take_no_time() -> None:
    shown = Shown(points=3, epochs=4)
    shown.progress(TrialReused(number=1, run_id="0123456789abcdef", score=TrialScore(value=0.9)))
    assert shown.last_line == "[1/3] a is trained already: validation accuracy 0.9000, run 01234567"
    shown.progress(TrialReused(number=2, run_id="fedcba9876543210", score=TrialScore()))
    shown.progress(TrialStarted(number=3))
    shown.now = 10
    shown.progress(EpochEnded(number=3, metrics=slow_epoch(1)))
    assert "best so far 0.9000 (a), 0:00:30 left" in shown.last_line


def test_a_trial_that_goes_on_has_less_left() -> None:
    shown = Shown(points=1, epochs=4)
    shown.progress(TrialStarted(number=1, epochs=(epoch(1, 0.5), epoch(2, 0.5))))
    assert shown.last_line == "[1/1] a goes on after epoch 2"
    all_done = tuple(epoch(number, 0.5) for number in range(1, 5))
    shown.progress(TrialStarted(number=1, epochs=all_done))
    assert shown.last_line == "[1/1] a was trained to epoch 4 before; its result is recorded now"
    shown.progress(TrialStarted(number=1, epochs=all_done[:2]))
    shown.now = 10
    shown.progress(EpochEnded(number=1, metrics=slow_epoch(3)))
    assert "epoch 3/4" in shown.last_line
    assert "0:00:10 left" in shown.last_line


def test_a_lost_worker_is_told_and_its_trial_goes_on() -> None:
    shown = Shown(points=1, epochs=2)
    shown.progress(TrialStarted(number=1))
    shown.progress(EpochEnded(number=1, metrics=slow_epoch(1)))
    shown.progress(WorkerLost(number=1, how="the worker process died (killed by SIGKILL)"))
    assert shown.last_line == (
        "[1/1] a: the worker process died (killed by SIGKILL); it goes on in a new one"
    )
    shown.progress(TrialStarted(number=1, epochs=(slow_epoch(1),)))
    shown.progress(EpochEnded(number=1, metrics=slow_epoch(2)))
    shown.progress(TrialEnded(number=1, score=TrialScore(value=0.5, best_epoch=1)))
    assert shown.last_line == "[1/1] a ended: validation accuracy 0.5000, epoch 1"
    assert shown.progress.seconds_left == 0


def test_a_worker_that_takes_far_too_long_is_told_of_and_again_after_twice_as_long() -> None:
    shown = Shown(points=1, epochs=3)
    shown.progress(TrialStarted(number=1))
    shown.progress(EpochEnded(number=1, metrics=slow_epoch(1)))
    before = shown.text
    told = []
    for seconds in range(1, 210):
        shown.progress(
            WorkerSilent(number=1, seconds=seconds, process=4321, is_stopped=seconds > 60)
        )
        if shown.text != before:
            told.append(seconds)
            before = shown.text
    assert told == [50, 100, 200]
    first, second = shown.text.splitlines()[-3:-1]
    assert first == (
        "[1/1] a has ended no epoch for 0:00:50, where 0:00:10 is usual: its worker is the process "
        "4321. `kill -9 4321` has the trial go on in a new one, as a trial timeout does by itself."
    )
    assert "is the stopped (SIGSTOP) process 4321. `kill -CONT 4321` lets it go on; " in second
    shown.progress(EpochEnded(number=1, metrics=slow_epoch(2)))
    shown.progress(WorkerSilent(number=1, seconds=49, process=4321, is_stopped=False))
    assert "epoch 2/3" in shown.last_line
    shown.progress(WorkerSilent(number=1, seconds=50, process=4321, is_stopped=False))
    assert "for 0:00:50" in shown.last_line


def test_where_no_epoch_was_measured_a_worker_is_given_more_time() -> None:
    shown = Shown(points=1, epochs=3)
    for seconds in (599, 600):
        shown.progress(WorkerSilent(number=1, seconds=seconds, process=1, is_stopped=False))
    assert shown.text.count("has ended no epoch for 0:10:00: its worker is the process 1.") == 1


def test_a_live_display_on_a_terminal() -> None:
    text = io.StringIO()
    run_through(
        Progress(POINTS, NAMES, console=PlainConsole(file=text, force_terminal=True, width=160))
    )
    assert "\x1b[" in text.getvalue()
    assert "2 of 2 points ended, 1 failed" in text.getvalue()
    assert "best so far 0.7500 (f12)" in text.getvalue()


def test_the_live_display_has_a_row_for_each_worker() -> None:
    shown = Shown(points=4, epochs=4, workers=3, live=True)
    with shown.progress as progress:
        progress(TrialReused(number=1, run_id="0123456789abcdef", score=TrialScore(value=0.9)))
        progress(TrialStarted(number=2), 2)
        progress(TrialStarted(number=3), 0)
        shown.now = 10
        progress(EpochEnded(number=3, metrics=slow_epoch(1, 0.61)), 0)
        wait_for(lambda: "0.6100" in shown.text and "(a)" in shown.drawn[-1], seconds=10)
        *rows, clock, summary = shown.drawn[-5:]
    first, second, third = (row.split() for row in rows)
    assert first[:4] == ["1", "[3/4]", "c", "1/4"]
    assert first[-3:] == ["0.9000", "0.6100", "0:00:30"]
    assert second == ["2", "waiting"]
    assert third == ["3", "[2/4]", "b", "0/4"]
    assert "1 of 4 points ended, 1 reused" in summary
    assert "best so far 0.9000 (a)" in summary
    assert clock.endswith("0:00:10 gone, 0:00:40 left")  # the fourth point has yet to begin
    assert not any("waiting" in line for line in shown.drawn[-4:])  # the last two drawings
    clock, summary = shown.drawn[-2:]
    assert clock.endswith("0:00:10 gone")
    assert "1 of 4 points ended, 1 reused" in summary


def test_a_trial_that_diverged_is_told_and_never_the_best() -> None:
    shown = Shown(points=3, epochs=4)
    shown.progress(
        TrialReused(number=1, run_id="0123456789abcdef", score=TrialScore(value=0.9, diverged=True))
    )
    assert shown.last_line == "[1/3] a is trained already: it diverged, run 01234567"
    shown.progress(TrialStarted(number=2))
    shown.progress(EpochEnded(number=2, metrics=dataclasses.replace(slow_epoch(1), loss=math.nan)))
    assert "loss nan" in shown.last_line
    assert "no trial ended yet" in shown.last_line
    shown.progress(
        TrialEnded(
            number=2, score=TrialScore(value=0.8, best_epoch=1, diverged=True), diverged_in=1
        )
    )
    assert shown.last_line == "[2/3] b ended: diverged: the loss of epoch 1 is not finite"
    live = Shown(points=1, epochs=4, live=True)
    with live.progress as progress:
        progress(TrialStarted(number=1))
        progress(
            TrialEnded(
                number=1,
                score=TrialScore(value=0.8, best_epoch=1, diverged=True),
                diverged_in=1,
            )
        )
    assert "1 of 1 points ended, 1 diverged  ·  no trial ended yet" in live.text


def test_seconds_in_which_a_worker_was_stopped_are_not_expected_of_other_trials() -> None:
    shown = Shown(points=2, epochs=1)
    shown.progress(TrialStarted(number=1))
    shown.now = 3600  # stopped for most of it
    shown.progress(EpochEnded(number=1, metrics=slow_epoch(1)))
    shown.progress(TrialEnded(number=1, score=TrialScore(value=0.5, best_epoch=1), seconds=15))
    assert shown.progress.seconds_left == 15
