"""What happens to trials -> operations on their runs in MLflow, carried out in order."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmnist_tracking.results import DatasetPart, EpochMetrics
from fmnist_tracking.search.worker import Failed, Trained
from fmnist_tracking.training import checkpoints

if TYPE_CHECKING:
    from fmnist_tracking.tracking import BackgroundWriter, Store, TrialInfo


@dataclass
class _Entry:
    """A trial and its run, known once the recorder has opened it; touched by its thread only."""

    facts: "TrialInfo"
    folder: Path
    existing: str | None
    run_id: str = ""
    data: tuple[DatasetPart, ...] = ()
    logged: set[int] = field(default_factory=set)
    is_gone: bool = False  # somebody deleted the run while the trial ran


class TrialLogger:
    """Keeps the runs of trials. It never waits: the recorder does the work in its own thread.

    Args:
        store: the store.
        recorder: of that store.
        experiment_id: where the runs are.
        examples: raw images, uint8 (n, 28, 28, 1), kept with each model.
        say: called with lines for a person to read.
    """

    def __init__(
        self,
        store: "Store",
        recorder: "BackgroundWriter",
        experiment_id: str,
        examples: NDArray[np.uint8],
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._experiment_id = experiment_id
        self._examples = examples
        self._say = say
        self._entries: dict[int, _Entry] = {}

    def begin(self, number: int, facts: "TrialInfo", folder: Path, existing: str | None) -> None:
        """Open the run of a trial, or go on in the one that was cut off."""
        from fmnist_tracking import tracking

        entry = self._entries[number] = _Entry(facts, folder, existing)

        def operation(again: bool) -> None:
            if again and existing is None:
                entry.existing = tracking.find_trial(self._store, self._experiment_id, facts)
            elif existing is not None and tracking.find_active(self._store, existing) is None:
                entry.existing = None  # deleted meanwhile
            entry.run_id = tracking.start_trial(
                self._store, self._experiment_id, facts, entry.existing
            )
            if entry.existing is not None:
                entry.logged = tracking.logged_steps(self._store, entry.run_id)

        self._submit(entry, operation)

    def _submit(self, entry: _Entry, operation: Callable[[bool], None]) -> "Future[None]":
        """Have an operation on a trial's run carried out, as long as the run is there."""
        from fmnist_tracking import tracking

        def careful(again: bool) -> None:
            if entry.is_gone:
                return
            try:
                operation(again)
            except Exception:
                if not entry.run_id or tracking.find_active(self._store, entry.run_id):
                    raise
                entry.is_gone = True
                self._say(
                    f"The run {entry.run_id[:8]} of {entry.facts.name} was deleted while it was "
                    "written: that point is not recorded."
                )

        return self._recorder.submit(careful)

    def link_data(self, number: int, data: tuple[DatasetPart, ...]) -> None:
        """Link the run of a trial with the images that it was given."""
        from fmnist_tracking import tracking

        entry = self._entries[number]

        def operation(_: bool) -> None:
            entry.data = data
            tracking.log_inputs(self._store, entry.run_id, entry.facts.data, data)

        self._submit(entry, operation)

    def log(self, number: int, epochs: Iterable[EpochMetrics]) -> None:
        """Log the figures of epochs, those that are not yet logged."""
        entry, figures = self._entries[number], tuple(epochs)
        self._submit(entry, lambda _: self._log(entry, figures))

    def _log(self, entry: _Entry, epochs: Iterable[EpochMetrics]) -> None:
        from fmnist_tracking import tracking

        new = [epoch for epoch in epochs if epoch.epoch not in entry.logged]
        if new:
            tracking.log_epochs(self._store, entry.run_id, new)
            entry.logged |= {epoch.epoch for epoch in new}

    def note(self, number: int, line: str) -> None:
        """Write down, with a trial's run, something that happened to it."""
        from fmnist_tracking import tracking

        entry = self._entries[number]
        self._submit(entry, lambda _: tracking.note_interruption(self._store, entry.run_id, line))

    def finish(self, number: int, trained: Trained) -> "Future[None]":
        """Log what a trial came to, close its run, and remove its checkpoint."""
        from fmnist_tracking import plots, tracking
        from fmnist_tracking.networks import coursework

        entry = self._entries[number]

        def operation(again: bool) -> None:
            result, name = trained.result, entry.facts.name
            self._log(entry, result.epochs)
            title = f"Learning curves of {name} (run {entry.run_id[:8]})"
            tracking.finish_trial(
                self._store,
                self._experiment_id,
                entry.run_id,
                entry.facts,
                result,
                coursework.with_weights(result.config, trained.weights),
                self._examples,
                plots.png(plots.learning_curves(result, title)),
                data=entry.data,
                again=again or entry.existing is not None,
            )
            checkpoints.remove(entry.folder)

        return self._submit(entry, operation)

    def fail(self, number: int, failed: Failed) -> "Future[None]":
        """Record what ended a trial, and close its run."""
        from fmnist_tracking import tracking

        entry = self._entries[number]
        return self._submit(
            entry,
            lambda _: tracking.fail_trial(
                self._store,
                self._experiment_id,
                entry.run_id,
                entry.facts,
                failed.line,
                failed.trace,
            ),
        )

    def run_id(self, number: int) -> str:
        """A trial's run, once its operations were carried out."""
        return self._entries[number].run_id


def outage_lines(announce: Callable[[str], None], folder: Path) -> Callable[[str | None], None]:
    """What to tell a person when the store begins to fail, and when it answers again."""

    def tell(error: str | None) -> None:
        if error is None:
            announce("The store answers again; what was kept is written to it.")
        else:
            announce(
                f"{error}. Training goes on; what comes out is kept in {folder} until the store "
                "answers."
            )

    return tell
