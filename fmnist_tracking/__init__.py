"""A hyperparameter grid search on Fashion-MNIST in which every point is a tracked experiment.

What is public is loaded when it is asked for: TensorFlow, MLflow and matplotlib take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fmnist_tracking import interrupts

if TYPE_CHECKING:
    from fmnist_tracking.data import load_dataset
    from fmnist_tracking.doctor import check_installation
    from fmnist_tracking.grid_search.dry_run import dry_run
    from fmnist_tracking.grid_search.final import train_final
    from fmnist_tracking.grid_search.run import search
    from fmnist_tracking.grid_search.train import train
    from fmnist_tracking.prediction import predict
    from fmnist_tracking.promotion import promote
    from fmnist_tracking.reports.build import report
    from fmnist_tracking.runs import (
        Search,
        Trial,
        list_runs,
        load_search,
        load_trial,
        repair_runs,
    )

__version__ = "0.1.0"

# Each module with the names that are loaded from it.
_PUBLIC = {
    "runs": ("Search", "Trial", "list_runs", "load_search", "load_trial", "repair_runs"),
    "grid_search.dry_run": ("dry_run",),
    "grid_search.final": ("train_final",),
    "grid_search.run": ("search",),
    "grid_search.train": ("train",),
    "data": ("load_dataset",),
    "doctor": ("check_installation",),
    "prediction": ("predict",),
    "promotion": ("promote",),
    "reports.build": ("report",),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "Search",
    "Trial",
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
    "train",
    "train_final",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with interrupts.held_back():
        module = import_module(f"{__name__}.{_MODULES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
