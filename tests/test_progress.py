import dataclasses
import io

from rich.console import Console

from fmnist_tracking.config import SearchSpace, TrainingConfig
from fmnist_tracking.progress import EpochDone, Progress, TrialEnded, TrialStarted
from test_results import epoch, trial

POINTS = SearchSpace(axes={"filters": (12, 12 + 1)}).points(TrainingConfig(epochs=2))


def run_through(progress: Progress) -> None:
    with progress:
        progress(TrialStarted(number=1, name="f12"))
        progress(EpochDone(number=1, metrics=epoch(1, 0.61)))
        progress(EpochDone(number=1, metrics=epoch(2, 0.75)))
        progress(TrialEnded(number=1, result=trial("a", 0.75, name="f12")))
        progress(TrialStarted(number=2, name="f13"))
        progress(EpochDone(number=2, metrics=epoch(1, 0.5)))
        progress(TrialEnded(number=2, result=trial("b", None, name="f13", error="no memory")))


def test_plain_lines_where_there_is_no_terminal() -> None:
    text = io.StringIO()
    run_through(Progress(POINTS, console=Console(file=text)))
    lines = text.getvalue().splitlines()
    assert lines[0] == "[1/2] f12 started"
    assert lines[1].startswith("[1/2] f12  epoch 1/2  loss 1.0000")
    assert "val_accuracy 0.6100  no trial ended yet" in lines[1]
    assert lines[3] == "[1/2] f12 ended: validation accuracy 0.7500, epoch 3"
    assert "best so far 0.7500 (f12)" in lines[5]
    assert lines[6] == "[2/2] f13 ended: FAILED: no memory"
    assert "\x1b" not in text.getvalue()


def test_time_left_follows_the_work() -> None:
    text = io.StringIO()
    alike = (TrainingConfig(epochs=4),) * 3
    progress = Progress(alike, console=Console(file=text))
    progress(TrialStarted(number=1, name="a"))
    progress(EpochDone(number=1, metrics=dataclasses.replace(epoch(1, 0.5), epoch_seconds=10)))
    assert "0:01:50 left" in text.getvalue()  # 11 of 12 epochs, 10 seconds each
    # A trial that stops early takes its remaining epochs with it.
    progress(TrialEnded(number=1, result=trial("a", 0.5)))
    progress(TrialStarted(number=2, name="b"))
    progress(EpochDone(number=2, metrics=dataclasses.replace(epoch(1, 0.5), epoch_seconds=10)))
    assert "0:01:10 left" in text.getvalue()  # 3 + 4 epochs


def test_two_workers_halve_the_time_left() -> None:
    text = io.StringIO()
    progress = Progress((TrainingConfig(epochs=4),) * 2, workers=2, console=Console(file=text))
    progress(TrialStarted(number=1, name="a"))
    progress(EpochDone(number=1, metrics=dataclasses.replace(epoch(1, 0.5), epoch_seconds=10)))
    assert "0:00:35 left" in text.getvalue()


def test_a_live_display_on_a_terminal() -> None:
    text = io.StringIO()
    run_through(Progress(POINTS, console=Console(file=text, force_terminal=True, width=160)))
    assert "\x1b[" in text.getvalue()
    assert "2 of 2 points ended, 1 failed" in text.getvalue()
    assert "best so far 0.7500 (f12)" in text.getvalue()
