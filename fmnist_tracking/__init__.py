"""A hyperparameter grid search on Fashion-MNIST in which every point is a tracked experiment.

What is public is loaded when it is asked for: TensorFlow, MLflow and matplotlib take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fmnist_tracking.runtime import apply_defaults

if TYPE_CHECKING:
    from fmnist_tracking.api import list_runs, load_search, load_trial, repair_runs
    from fmnist_tracking.data import load_dataset
    from fmnist_tracking.doctor import check_installation, serve_ui
    from fmnist_tracking.grid_search.dry_run import dry_run
    from fmnist_tracking.grid_search.run import search, train
    from fmnist_tracking.prediction import predict
    from fmnist_tracking.promotion import promote
    from fmnist_tracking.reports.build import report

__version__ = "0.1.0"

# Each name, and the module that has it.
_PUBLIC = {
    "check_installation": "doctor",
    "dry_run": "grid_search.dry_run",
    "list_runs": "api",
    "load_dataset": "data",
    "load_search": "api",
    "load_trial": "api",
    "predict": "prediction",
    "promote": "promotion",
    "repair_runs": "api",
    "report": "reports.build",
    "search": "grid_search.run",
    "serve_ui": "doctor",
    "train": "grid_search.run",
}

__all__ = [
    "check_installation",
    "dry_run",
    "list_runs",
    "load_dataset",
    "load_search",
    "load_trial",
    "predict",
    "promote",
    "repair_runs",
    "report",
    "search",
    "serve_ui",
    "train",
]

apply_defaults()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
