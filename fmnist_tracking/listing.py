"""`fmnist-track runs` and `best`: what is in the store. Neither loads TensorFlow."""

from fmnist_tracking.errors import ConfigError
from fmnist_tracking.results import RunSummary, SearchResult, TrialResult


def runs(*, experiment: str | None = None, tracking_uri: str | None = None) -> list[RunSummary]:
    """Every search and single training, the newest first.

    Raises:
        TrackingError: the store cannot be reached, or holds nothing of this project.
    """
    from fmnist_tracking import tracking

    with tracking.open_store(tracking_uri, files=False) as store:
        return tracking.list_runs(store, experiment)


def repair(
    *, experiment: str | None = None, tracking_uri: str | None = None
) -> list[tuple[str, str]]:
    """Close, as KILLED, the open runs whose process is gone.

    Returns:
        Id and name of each run that was closed.

    Raises:
        TrackingError: there is no such experiment, or the store cannot be reached.
    """
    from fmnist_tracking import tracking

    with tracking.open_store(tracking_uri, write=True, files=False) as store:
        return tracking.close_orphans(store, tracking.experiment_ids(store, experiment))


def trials(
    reference: str, *, experiment: str | None = None, tracking_uri: str | None = None
) -> SearchResult:
    """A search with its trials.

    Raises:
        ConfigError: the run is no search.
        TrackingError: there is no such run.
    """
    from fmnist_tracking import tracking

    with tracking.open_store(tracking_uri, files=False) as store:
        run = tracking.find_run(store, reference, experiment)
        if run.role != "search":
            kind = "single training" if run.role == "train" else "trial"
            raise ConfigError(
                f"The run {run.run_id[:8]} is a {kind}, not a search, and has no trials. "
                "Expected the id of a search; `fmnist-track runs` lists them."
            )
        return tracking.read_search(store, run)


def best(
    reference: str = "best", *, experiment: str | None = None, tracking_uri: str | None = None
) -> TrialResult:
    """The best trial of a search, by validation accuracy; by default of the newest search.

    Raises:
        TrackingError: there is no such search, or it has no finished trial.
    """
    from fmnist_tracking import tracking

    with tracking.open_store(tracking_uri, files=False) as store:
        run = tracking.find_run(store, reference, experiment)
        return tracking.read_trial(tracking.best_trial(store, run))
