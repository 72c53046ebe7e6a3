"""MLflow: the one place that opens stores, writes runs and reads them back."""

from fmnist_tracking.tracking.reading import (
    TrackedRun,
    best_trial,
    download_model,
    find_run,
    list_runs,
    read_history,
    read_search,
    read_trial,
)
from fmnist_tracking.tracking.recording import (
    DataFacts,
    choose_experiment,
    close_open_runs,
    fail_trial,
    finish_search,
    finish_trial,
    leaderboard_csv,
    log_epoch,
    log_report,
    mark_report_run,
    start_search,
    start_trial,
)
from fmnist_tracking.tracking.store import Store, is_yet_to_be_made, open_store, tracking_uri

__all__ = [
    "DataFacts",
    "Store",
    "TrackedRun",
    "best_trial",
    "choose_experiment",
    "close_open_runs",
    "download_model",
    "fail_trial",
    "find_run",
    "finish_search",
    "finish_trial",
    "is_yet_to_be_made",
    "leaderboard_csv",
    "list_runs",
    "log_epoch",
    "log_report",
    "mark_report_run",
    "open_store",
    "read_history",
    "read_search",
    "read_trial",
    "start_search",
    "start_trial",
    "tracking_uri",
]
