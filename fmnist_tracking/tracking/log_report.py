"""Keeping a report with the run it is about."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlflow.exceptions import MlflowException

from fmnist_tracking.errors import ConfigError
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.error_messages import is_refused
from fmnist_tracking.tracking.experiments import adoptable_run
from fmnist_tracking.tracking.log import log_metrics
from fmnist_tracking.tracking.store import Store

_AT_ONCE = 4


def unless_read_only(store: Store, write: Callable[[], None]) -> str | None:
    """Write to a store if this user may.

    Args:
        store: the store.
        write: writes to it.

    Returns:
        Why nothing, or not all, was written, where the user may read the store alone.
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
            if isinstance(error, OSError):  # the files of runs are elsewhere than the database
                why = f"{error.strerror}: {error.filename}"
    return f"the store {store.public_uri} cannot be written by this user ({why})"


def log_test_opened(store: Store, run_id: str, trial_id: str) -> None:
    """Record, the first time, that a model is scored on the test images.

    Args:
        store: the store.
        run_id: the trial or search that is reported on.
        trial_id: the trial whose model is used; `run_id` itself unless that is a search.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for opened in {run_id, trial_id}:
        if schema.TEST_OPENED not in store.client.get_run(opened).data.tags:
            store.client.set_tag(opened, schema.TEST_OPENED, now)


def log_report(
    store: Store, run_id: str, files: Sequence[Path], metrics: Mapping[str, float]
) -> None:
    """Keep a report's files and test metrics with the run it is about.

    The test metrics are logged once: made again, a report gives the same figures, and a
    second value of a metric would only look like a second measurement.

    Args:
        store: the store.
        run_id: the trial or search the report is about.
        files: what to keep.
        metrics: test metrics by name.
    """
    _log_files(store, run_id, files, schema.REPORT_FOLDER)
    known = store.client.get_run(run_id).data
    if any(known.metrics.get(name) != value for name, value in metrics.items()):
        log_metrics(store, run_id, metrics)


def log_validation_figures(store: Store, run_id: str, files: Sequence[Path]) -> None:
    """Keep figures of validation images with the run they are about; no test image was opened."""
    _log_files(store, run_id, files, schema.VALIDATION_FOLDER)


def _log_files(store: Store, run_id: str, files: Sequence[Path], folder: str) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # a server with passwords is slow to answer
        for logged in [
            pool.submit(store.client.log_artifact, run_id, str(file), folder) for file in files
        ]:
            logged.result()


def mark_report_run(store: Store, run_id: str, name: str) -> None:
    """Say, on the run that `mlflow run` made for a report, which run the report is about."""
    try:
        adopted = adoptable_run(store, name)
    except ConfigError:  # another's, which is none of a report's business
        return
    if adopted is not None:
        store.client.update_run(adopted, name=f"{name} of {run_id[:8]}")
        # No role: it is neither a search nor a trial, and is not to be listed as one.
        store.client.set_tag(adopted, schema.REPORT_OF, run_id)
