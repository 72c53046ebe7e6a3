"""Addresses within MLflow's page, and the columns of its table of runs."""

import json

from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.store import Store

# Without it, the page shows its features for language models beside the runs.
_KIND = "workflowType=machine_learning"
# The page stores a view that is shared by its address as a tag of the experiment.
_VIEW = "fmnist-track"
_VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_METRICS = (schema.BEST_VAL_ACCURACY, "best_epoch", "val_macro_f1", "train_seconds")
_PARAMS = ("filters", "kernel_size", "strides", "hidden_units", "learning_rate")


def run_address(experiment_id: str, run_id: str) -> str:
    """Return the address of a run, relative to the root of MLflow's page."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{_KIND}"


def model_address(experiment_id: str, model_id: str) -> str:
    """Return the address of a logged model, relative to the root of MLflow's page."""
    return f"#/experiments/{experiment_id}/models/{model_id}?{_KIND}"


def table_address(experiment_id: str) -> str:
    """Return the address of an experiment's table of runs, with the columns of `offer_table`."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={_VIEW}&{_KIND}"


def offer_table(store: Store, experiment_id: str) -> None:
    """Make MLflow's page show results and settings beside each run, at `table_address`.

    By default it shows neither, and only a visitor can choose columns.
    """
    view = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "searchFilter": "",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            "attributes.`Models`",
            *(f"metrics.`{name}`" for name in _METRICS),
            *(f"params.`{name}`" for name in _PARAMS),
        ],
    }
    store.client.set_experiment_tag(experiment_id, _VIEW_TAG, json.dumps(view))
