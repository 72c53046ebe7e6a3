import itertools
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import tenacity
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INVALID_PARAMETER_VALUE,
    TEMPORARILY_UNAVAILABLE,
)
from sqlalchemy.exc import OperationalError

from fmnist_tracking.errors import TrackingError
from fmnist_tracking.tracking import BackgroundWriter, Store

QUEUE_POOL = (
    "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00 "
    "(Background on this error at: https://sqlalche.me/e/20/3o7r)"
)
PASSING: tuple[Exception, ...] = (
    ConnectionError("refused"),
    TimeoutError("too slow"),
    OSError(28, "No space left on device"),
    OperationalError("INSERT", None, sqlite3.OperationalError("database is locked")),
    MlflowException("overloaded", TEMPORARILY_UNAVAILABLE),
    MlflowException(
        "API request to endpoint /api/2.0/mlflow/runs/log-batch failed with error code 502 != 200"
    ),
    # Of a server, and of a database, none of whose connections is free.
    RestException({"error_code": "BAD_REQUEST", "message": QUEUE_POOL}),  # type: ignore[no-untyped-call]
    MlflowException(QUEUE_POOL, BAD_REQUEST),
)
LASTING: tuple[Exception, ...] = (
    ValueError("what was written is wrong"),
    PermissionError(13, "Permission denied"),
    MlflowException("no such thing", INVALID_PARAMETER_VALUE),
    MlflowException("a setting of this process"),
    OperationalError(
        "INSERT", None, sqlite3.OperationalError("attempt to write a readonly database")
    ),
    RestException(  # type: ignore[no-untyped-call]
        {"error_code": "INTERNAL_ERROR", "message": "No module named 'boto3'"}
    ),
)

Make = Callable[..., BackgroundWriter]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes recorders of a store that no operation in these tests asks for anything."""
    recorders: list[BackgroundWriter] = []
    store = Store(uri="http://me:secret@nowhere", client=MlflowClient("http://nowhere"))

    def recorder(
        on_outage: Callable[[str | None], None] = lambda _: None,
        beat: Callable[[], None] = lambda: None,
        beat_seconds: float = 1000,
    ) -> BackgroundWriter:
        recorders.append(BackgroundWriter(store, on_outage, beat, beat_seconds))
        return recorders[-1]

    yield recorder
    for made in recorders:
        made.close(0)


class Failing:
    """An operation that fails some times, each time with the same error, and then succeeds."""

    def __init__(self, error: Exception, times: float) -> None:
        self.error, self.times = error, times
        self.calls: list[bool] = []

    def __call__(self, again: bool) -> str:
        self.calls.append(again)
        if len(self.calls) <= self.times:
            raise self.error
        return "done"


def test_operations_are_carried_out_in_order_and_one_at_a_time(make: Make) -> None:
    recorder = make()
    carried_out: list[int] = []
    threads: set[threading.Thread] = set()
    busy = threading.Lock()

    def operation(number: int) -> int:
        assert busy.acquire(blocking=False)
        carried_out.append(number)
        threads.add(threading.current_thread())
        time.sleep(0.001 * (number % 3))
        busy.release()
        return number

    def submitting(number: int) -> Callable[[bool], int]:
        return lambda _: operation(number)

    futures = [recorder.submit(submitting(number)) for number in range(50)]
    assert [future.result(timeout=10) for future in futures] == list(range(50))
    assert carried_out == list(range(50))
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_whoever_submits_does_not_wait(make: Make) -> None:
    recorder, go = make(), threading.Event()
    future = recorder.submit(lambda _: go.wait(10))
    assert not future.done()
    go.set()
    assert future.result(timeout=10)


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_passing_error_is_tried_again(make: Make, error: Exception) -> None:
    recorder, operation = make(), Failing(error, 2)
    after = recorder.submit(lambda _: len(operation.calls))
    first = recorder.submit(operation)
    last = recorder.submit(lambda _: len(operation.calls))
    assert first.result(timeout=20) == "done"
    assert operation.calls == [False, True, True]
    assert (after.result(), last.result(timeout=10)) == (0, 3)  # it waited behind
    assert not recorder.failed.done()


def test_an_outage_is_told_once_and_so_is_its_end(make: Make) -> None:
    told: list[str | None] = []
    recorder = make(told.append)
    recorder.submit(Failing(ConnectionError("refused\nby the network"), 2)).result(timeout=20)
    assert told == []  # too short to be worth a word
    recorder.submit(Failing(ConnectionError("refused\nby the network"), 5)).result(timeout=60)
    recorder.flush(60)
    assert told == ["MLflow failed at http://***@nowhere: refused", None]


def test_an_attempt_that_waits_long_for_a_lock_is_told_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmnist_tracking.tracking.background_writer._MOMENT_SECONDS", 0.05)
    told: list[str | None] = []
    error = OperationalError("SELECT", None, sqlite3.OperationalError("database is locked"))
    locked = Failing(error, 1)

    def waiting(again: bool) -> str:
        time.sleep(0 if again else 0.1)
        return locked(again)

    assert make(told.append).submit(waiting).result(timeout=20) == "done"
    assert [text and "is locked by another process" in text for text in told] == [True, None]


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_a_lasting_error_ends_the_recorder(make: Make, error: Exception) -> None:
    recorder, operation = make(), Failing(error, 1)
    recorder.submit(operation)
    later = recorder.submit(lambda _: None)
    failure = recorder.failed.exception(timeout=10)
    assert isinstance(failure, TrackingError)
    ours = isinstance(error, ValueError)
    assert ("A defect of fmnist-track" in str(failure)) == ours
    assert "http://***@nowhere: " in str(failure)
    assert "secret" not in str(failure)
    with pytest.raises(TrackingError, match=re.escape(str(failure))):
        recorder.flush(10)
    assert not recorder.close(10)
    assert operation.calls == [False]
    assert not later.done()


def test_flush_waits_for_a_store_that_answers_however_slowly(make: Make) -> None:
    recorder = make()
    futures = [recorder.submit(lambda _: time.sleep(0.1)) for _ in range(5)]
    recorder.flush(0.01)
    assert all(future.done() for future in futures)


def test_flush_has_patience_with_a_store_that_does_not_answer(make: Make) -> None:
    out = threading.Event()
    recorder = make(lambda _: out.set())
    recorder.submit(Failing(ConnectionError("refused"), float("inf")))
    assert out.wait(30)
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"store at http://\*\*\*@nowhere has not answered"):
        recorder.flush(0.5)
    assert 0.4 < time.monotonic() - start < 20


def test_close_tells_whether_all_was_written(make: Make) -> None:
    recorder = make()
    future = recorder.submit(lambda _: time.sleep(0.2))
    assert recorder.close(20)
    assert future.done()

    recorder, operation = make(), Failing(ConnectionError("refused"), float("inf"))
    recorder.submit(operation)
    start = time.monotonic()
    assert not recorder.close(0.5)
    assert 0.4 < time.monotonic() - start < 20


def test_nothing_is_tried_again_once_it_is_closed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenacity, "wait_random_exponential", lambda **_: tenacity.wait_fixed(60))
    recorder, operation = make(), Failing(ConnectionError("refused"), float("inf"))
    recorder.submit(operation)
    assert not recorder.close(0.5)
    time.sleep(0.5)
    assert operation.calls == [False]


def test_it_gives_signs_of_life_between_operations(make: Make) -> None:
    beats: list[float] = []

    def beat() -> None:
        beats.append(time.monotonic())
        if len(beats) == 1:
            raise ConnectionError("refused")
        if len(beats) == 2:
            raise ValueError("wrong")

    recorder = make(beat=beat, beat_seconds=0.05)
    deadline = time.monotonic() + 20
    while len(beats) < 4:
        assert time.monotonic() < deadline
        recorder.submit(lambda _: time.sleep(0.01)).result(timeout=10)
    assert all(later - earlier >= 0.049 for earlier, later in itertools.pairwise(beats))
    deadline = time.monotonic() + 20
    while len(beats) < 6:  # and while there is nothing to do
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not recorder.failed.done()
