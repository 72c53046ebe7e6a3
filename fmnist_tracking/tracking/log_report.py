"""Logging a report on the run that it is about."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlflow.exceptions import MlflowException

from fmnist_tracking.errors import ConfigError
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.artifacts import files_of_run
from fmnist_tracking.tracking.error_messages import is_refused
from fmnist_tracking.tracking.experiments import adoptable_run
from fmnist_tracking.tracking.log import log_metrics
from fmnist_tracking.tracking.store import Store

_AT_ONCE = 4


def unless_read_only(store: Store, write: Callable[[], None]) -> str | None:
    """Write to a store, unless this user may only read it.

    Returns:
        Why nothing, or not everything, was written, if the user may only read the store; None if
        everything was written.
    """
    why = "its file or its folder is for reading alone"
    if store.can_be_written:
        try:
            write()
            return None
        except (MlflowException, OSError) as error:
            if not is_refused(error):
                raise
            why = "it does not let this user"
            if isinstance(error, OSError):  # the files of runs need not be beside the database
                why = f"{error.strerror}: {error.filename}"
    return f"the store {store.public_uri} cannot be written by this user ({why})"


def log_test_opened(store: Store, run_id: str, trial_id: str) -> None:
    """Record the first time that a trial's model is scored on the test images.

    It is recorded on the trial and on the run that the report is about, which may be a search.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for opened in {run_id, trial_id}:
        if schema.TEST_OPENED not in store.client.get_run(opened).data.tags:
            store.client.set_tag(opened, schema.TEST_OPENED, now)


def log_report(
    store: Store, run_id: str, files: Sequence[Path], metrics: Mapping[str, float]
) -> None:
    """Log a report's files and test metrics on the trial or search that it is about.

    The test metrics are logged once: a repeated report gives the same values, and a second value of
    a metric would look like a second measurement.
    """
    _log_files(store, run_id, files, schema.REPORT_FOLDER)
    known = store.client.get_run(run_id).data
    if any(known.metrics.get(name) != value for name, value in metrics.items()):
        log_metrics(store, run_id, metrics)


def log_validation_figures(store: Store, run_id: str, files: Sequence[Path]) -> None:
    """Log figures of validation images on the run they are about; no test image was used."""
    _log_files(store, run_id, files, schema.VALIDATION_FOLDER)


def _log_files(store: Store, run_id: str, files: Sequence[Path], folder: str) -> None:
    log: Callable[[str, str], None] = files_of_run(store, run_id).log_artifact
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # a server with passwords is slow to answer
        list(pool.map(lambda file: log(str(file), folder), files))


def mark_report_run(store: Store, run_id: str, name: str) -> None:
    """Record which run a report is about, on the run that `mlflow run` created for the report."""
    try:
        adopted = adoptable_run(store, name)
    except ConfigError:  # the run was made for something else: leave it alone
        return
    if adopted is not None:
        store.client.update_run(adopted, name=f"{name} of {run_id[:8]}")
        # No role tag: the run must not be listed as a search or a trial.
        store.client.set_tag(adopted, schema.REPORT_OF, run_id)
