"""Addresses within MLflow's own page, and the columns that its table of runs opens with."""

import json

from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.store import Store

# Without it, the page shows what there is for language models beside the runs.
_KIND = "workflowType=machine_learning"
# The page keeps a view that is shared by its address as a tag of the experiment.
_VIEW = "fmnist-track"
_VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_METRICS = (schema.BEST_VAL_ACCURACY, "best_epoch", "val_macro_f1", "train_seconds")
_PARAMS = ("filters", "kernel_size", "strides", "hidden_units", "learning_rate")


def run_address(experiment_id: str, run_id: str) -> str:
    """Where the page shows a run, from the page's root on."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{_KIND}"


def model_address(experiment_id: str, model_id: str) -> str:
    """Where the page shows a logged model, from the page's root on."""
    return f"#/experiments/{experiment_id}/models/{model_id}?{_KIND}"


def table_address(experiment_id: str) -> str:
    """Where the page shows an experiment's runs, with the columns that `offer_table` chose."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={_VIEW}&{_KIND}"


def offer_table(store: Store, experiment_id: str) -> None:
    """Have the page show results and settings beside each run, at `table_address`.

    By itself it shows neither, and it lets nobody but its visitor choose.
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
