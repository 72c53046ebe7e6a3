"""The runs that a search or a training writes: in the background, in order, closed at its end."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fmnist_tracking import runtime, tracking
from fmnist_tracking.console import Echo
from fmnist_tracking.grid_search.resources import Resources
from fmnist_tracking.tracking import BackgroundWriter

# Time to close runs in, once a search was told to stop.
_CLOSING_SECONDS = 8.0
T = TypeVar("T")


class Recording:
    """Writes runs to the store in a thread of its own, and renews the lease of one of them.

    Use it as a context manager: left normally, it waits until all is written; left by an exception,
    it closes the runs that this process has open, the search's as KILLED if that is an interrupt,
    else as FAILED.

    Attributes:
        writer: carries out operations on the runs.
        run_id: the run whose lease is renewed, the search's or the training's; "" before it is
            opened.
    """

    def __init__(self, resources: Resources, folder: Path, echo: Echo) -> None:
        self.store = resources.store
        self.experiment_id = resources.experiment_id
        self.run_id = ""
        self._folder = folder
        self._echo = echo
        self.writer = BackgroundWriter(
            self.store, self._on_outage, self._beat, tracking.BEAT_SECONDS
        )

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # In a search that ends well too: a server that hung may have made a run twice.
        status = "KILLED" if kind is None or issubclass(kind, KeyboardInterrupt) else "FAILED"
        if self.writer.failed.done():
            with contextlib.suppress(Exception):
                tracking.close_own(self.store, self.experiment_id, status)
            return
        self.writer.submit(lambda _: tracking.close_own(self.store, self.experiment_id, status))
        if not self.writer.close(_CLOSING_SECONDS):
            self._echo(
                "The store did not answer in time, so that runs stay RUNNING there; the same "
                "command, or `fmnist-track runs --repair` in that experiment, puts that right. "
                f"What it does not have yet is kept in {self._folder}."
            )

    def do_last(self, operation: Callable[[], T]) -> T:
        """Have an operation carried out after all that was submitted, and return what it returns.

        Raises:
            TrackingError: the store does not answer for too long, or has failed for good.
        """
        done = self.writer.submit(lambda _: operation())
        self.writer.flush(runtime.store_patience())
        return done.result()

    def cut_off_trials(self) -> None:
        """Close the trials that this process has open, as KILLED; the search goes on."""
        self.writer.submit(lambda _: tracking.close_own(self.store, self.experiment_id))

    def _beat(self) -> None:
        if self.run_id:
            tracking.renew_lease(self.store, self.run_id)

    def _on_outage(self, error: str | None) -> None:
        if error is None:
            self._echo("The store answers again; what was kept is written to it.")
        else:
            self._echo(
                f"{error}. Training goes on; what comes out is kept in {self._folder} until the "
                "store answers."
            )
