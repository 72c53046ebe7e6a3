"""A background thread that writes to the store in order, and retries while the store is down."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

import tenacity

from fmnist_tracking.errors import TrackingError
from fmnist_tracking.tracking.error_messages import is_passing, tracking_error
from fmnist_tracking.tracking.store import Store

T = TypeVar("T")
_LONGEST_PAUSE_SECONDS = 5.0
# A lock that is released after a moment is not worth a message. MLflow itself waits 20 s for a
# SQLite file to be unlocked, in each attempt.
_MOMENT_SECONDS = 5.0

_log = logging.getLogger(__name__)


class _GivenUp(Exception):
    """Ends a retry, because `close` ran out of time."""


class BackgroundWriter:
    """Runs operations on the store one after the other, in a background thread.

    The caller of `submit` does not wait. An operation that fails because the store is unreachable,
    locked or overloaded is retried until it succeeds, and later ones wait in the queue; so every
    operation must be safe to run twice. Any other error stops the background writer: `failed` then
    holds the error, and nothing more is written.

    Args:
        store: the store.
        on_outage: called with the error message when the store stops answering, and with None when
            it answers again.
        beat: the heartbeat, run every `beat_seconds`; it is not retried.
        beat_seconds: see `beat`.
    """

    def __init__(
        self,
        store: Store,
        on_outage: Callable[[str | None], None],
        beat: Callable[[], None],
        beat_seconds: float,
    ) -> None:
        self.failed: Future[None] = Future()
        self._store = store
        self._on_outage = on_outage
        self._beat, self._beat_seconds = beat, beat_seconds
        self._last_beat = time.monotonic()
        self._queue: queue.SimpleQueue[tuple[Callable[[bool], Any], Future[Any]]] = (
            queue.SimpleQueue()
        )
        self._given_up = threading.Event()
        self._outage = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="background-writer")
        self._thread.start()

    def submit(self, operation: Callable[[bool], T]) -> "Future[T]":
        """Queue an operation, which runs after those submitted before it; return its future.

        It is called with True if an earlier attempt failed, so that part of it may have been done
        already; else with False.
        """
        future: Future[T] = Future()
        self._queue.put((operation, future))
        return future

    def flush(self, seconds: float) -> None:
        """Wait until every operation submitted so far is done, however long the store takes.

        Raises:
            TrackingError: the store did not answer for `seconds`, or an operation failed.
        """
        last = self.submit(lambda _: None)
        patience = time.monotonic() + seconds
        while not wait([last, self.failed], 0.02, FIRST_COMPLETED).done:
            if not self._outage:
                patience = time.monotonic() + seconds
            elif time.monotonic() > patience:
                raise TrackingError(
                    f"The MLflow store at {self._store.public_uri} has not answered for "
                    f"{seconds:.0f} seconds."
                )
        if self.failed.done():
            self.failed.result()

    def close(self, seconds: float) -> bool:
        """Stop the thread once everything is written, or after some seconds.

        Returns:
            Whether everything was written; operations still queued are dropped.
        """
        last = self.submit(lambda _: None)
        wait([last, self.failed], seconds, FIRST_COMPLETED)
        self._given_up.set()
        return last.done() and not self.failed.done()

    def _run(self) -> None:
        while not self._given_up.is_set():
            try:
                operation, future = self._queue.get(timeout=min(0.2, self._beat_seconds))
            except queue.Empty:
                self._beat_if_due()
                continue
            try:
                future.set_result(self._until_it_succeeds(operation))
            except (tenacity.RetryError, _GivenUp):
                return
            except Exception as error:
                _log.debug("The background writer ended", exc_info=True)
                self.failed.set_exception(tracking_error(self._store.uri, error))
                return
            self._beat_if_due()

    def _until_it_succeeds(self, operation: Callable[[bool], T]) -> T:
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_passing),
            wait=tenacity.wait_random_exponential(max=_LONGEST_PAUSE_SECONDS, multiplier=0.2),
            stop=tenacity.stop_when_event_set(self._given_up),
            sleep=self._pause,
            before_sleep=self._tell_outage,
        ):
            with attempt:
                result = operation(attempt.retry_state.attempt_number > 1)
        if self._outage:
            self._outage = False
            self._on_outage(None)
        return result

    def _pause(self, seconds: float) -> None:
        # What MLflow was set to while the store was open is undone by the time of another try.
        if self._given_up.wait(seconds):
            raise _GivenUp

    def _tell_outage(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        lasts = state.attempt_number >= 3 or (state.seconds_since_start or 0) > _MOMENT_SECONDS
        if error and lasts and not self._outage:
            self._outage = True
            self._on_outage(str(tracking_error(self._store.uri, error)))

    def _beat_if_due(self) -> None:
        if time.monotonic() - self._last_beat < self._beat_seconds:
            return
        self._last_beat = time.monotonic()
        try:
            self._beat()
        except Exception as error:
            if not is_passing(error):
                _log.debug("No sign of life could be written", exc_info=True)
