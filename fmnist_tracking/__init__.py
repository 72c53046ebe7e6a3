"""A hyperparameter grid search on Fashion-MNIST in which every point is a tracked experiment."""

from fmnist_tracking.runtime import apply_defaults

__version__ = "0.1.0"

apply_defaults()
