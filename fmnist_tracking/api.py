"""Reading what the store has: searches, trials, and what is at work."""

from fmnist_tracking import tracking
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.results import RunSummary, SearchResult, TrialResult


def list_runs(
    *, experiment: str | None = None, tracking_uri: str | None = None
) -> list[RunSummary]:
    """Return every search and single training, the newest first.

    Args:
        experiment: name of the experiment to look in, None for all.
        tracking_uri: of the MLflow store, None for the usual one.

    Raises:
        TrackingError: the store cannot be reached, or holds nothing of this project.
    """
    with tracking.open_store(tracking_uri, files=False) as store:
        return tracking.list_runs(store, experiment)


def repair_runs(
    *, experiment: str | None = None, tracking_uri: str | None = None
) -> list[tuple[str, str]]:
    """Close, as KILLED, the open runs whose process is gone.

    Args:
        experiment: name of the experiment to look in, None for all.
        tracking_uri: of the MLflow store, None for the usual one.

    Returns:
        Id and name of each run that was closed.

    Raises:
        TrackingError: there is no such experiment, or the store cannot be reached.
    """
    with tracking.open_store(tracking_uri, access="write", files=False) as store:
        return tracking.close_orphans(store, tracking.experiment_ids(store, experiment))


def load_search(
    reference: str = "latest", *, experiment: str | None = None, tracking_uri: str | None = None
) -> SearchResult:
    """Return a search with its trials.

    Args:
        reference: a run id, the beginning of one, or `latest`.
        experiment: name of the experiment to look in, None for all.
        tracking_uri: of the MLflow store, None for the usual one.

    Raises:
        ConfigError: the run is no search.
        TrackingError: there is no such run.
    """
    with tracking.open_store(tracking_uri, files=False) as store:
        run = tracking.find_run(store, reference, experiment)
        if run.role != "search":
            kind = "single training" if run.role == "train" else "trial"
            raise ConfigError(
                f"The run {run.run_id[:8]} is a {kind}, not a search, and has no trials. "
                "Expected the id of a search; `fmnist-track runs` lists them."
            )
        return tracking.read_search(store, run)


def load_trial(
    reference: str = "best", *, experiment: str | None = None, tracking_uri: str | None = None
) -> TrialResult:
    """Return a trial; of a search the best one, by validation accuracy.

    Args:
        reference: a run id, the beginning of one, `latest` or `best`.
        experiment: name of the experiment to look in, None for all.
        tracking_uri: of the MLflow store, None for the usual one.

    Raises:
        TrackingError: there is no such run, or a search without a finished trial.
    """
    with tracking.open_store(tracking_uri, files=False) as store:
        run = tracking.find_run(store, reference, experiment)
        return tracking.read_trial(tracking.best_trial(store, run))
