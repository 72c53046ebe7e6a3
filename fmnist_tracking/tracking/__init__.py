"""MLflow: the only package that opens stores, writes runs and reads them."""

from fmnist_tracking.tracking.artifact_location import relocate, try_artifacts
from fmnist_tracking.tracking.artifacts import without_files
from fmnist_tracking.tracking.background_writer import BackgroundWriter
from fmnist_tracking.tracking.error_messages import is_passing
from fmnist_tracking.tracking.experiments import (
    adoptable_run,
    choose_experiment,
    existing_experiment,
    experiment_in_use,
)
from fmnist_tracking.tracking.find import best_trial, find_run, latest_search, list_runs
from fmnist_tracking.tracking.leases import BEAT_SECONDS, Lease
from fmnist_tracking.tracking.log import (
    fail_trial,
    finish_search,
    finish_trial,
    leaderboard_csv,
    log_epochs,
    note_interruption,
    renew_lease,
)
from fmnist_tracking.tracking.log_datasets import log_inputs
from fmnist_tracking.tracking.log_report import (
    log_report,
    log_test_opened,
    log_validation_figures,
    mark_report_run,
    unless_read_only,
)
from fmnist_tracking.tracking.logged_model import code_beside, download_model, names_in
from fmnist_tracking.tracking.queries import find_active
from fmnist_tracking.tracking.records import (
    TrackedRun,
    as_tracked,
    read_history,
    read_trial,
)
from fmnist_tracking.tracking.resume import (
    ResumeState,
    close_orphans,
    close_own,
    find_finished,
    find_resume_state,
    find_searches,
    find_training,
    like_trials,
    logged_steps,
    require_not_live,
)
from fmnist_tracking.tracking.search_records import (
    read_search,
)
from fmnist_tracking.tracking.start import (
    DatasetInfo,
    Provenance,
    SearchInfo,
    TrialInfo,
    find_trial,
    log_asked,
    log_asked_points,
    log_reused,
    move_trials,
    start_search,
    start_trial,
)
from fmnist_tracking.tracking.store import (
    Store,
    is_yet_to_be_made,
    open_store,
    require_can_be_made,
    tracking_uri,
)
from fmnist_tracking.tracking.ui_links import run_address, table_address

__all__ = [
    "BEAT_SECONDS",
    "BackgroundWriter",
    "DatasetInfo",
    "Lease",
    "Provenance",
    "ResumeState",
    "SearchInfo",
    "Store",
    "TrackedRun",
    "TrialInfo",
    "adoptable_run",
    "as_tracked",
    "best_trial",
    "choose_experiment",
    "close_orphans",
    "close_own",
    "code_beside",
    "download_model",
    "existing_experiment",
    "experiment_in_use",
    "fail_trial",
    "find_active",
    "find_finished",
    "find_resume_state",
    "find_run",
    "find_searches",
    "find_training",
    "find_trial",
    "finish_search",
    "finish_trial",
    "is_passing",
    "is_yet_to_be_made",
    "latest_search",
    "leaderboard_csv",
    "like_trials",
    "list_runs",
    "log_asked",
    "log_asked_points",
    "log_epochs",
    "log_inputs",
    "log_report",
    "log_reused",
    "log_test_opened",
    "log_validation_figures",
    "logged_steps",
    "mark_report_run",
    "move_trials",
    "names_in",
    "note_interruption",
    "open_store",
    "read_history",
    "read_search",
    "read_trial",
    "relocate",
    "renew_lease",
    "require_can_be_made",
    "require_not_live",
    "run_address",
    "start_search",
    "start_trial",
    "table_address",
    "tracking_uri",
    "try_artifacts",
    "unless_read_only",
    "without_files",
]
