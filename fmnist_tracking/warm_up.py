"""Starting, ahead of time, the process that workers are forked from."""

from fmnist_tracking.workers import start_helpers


def warm_up() -> None:
    """Have TensorFlow imported by the process that workers are forked from, if it does not run yet.

    It does so while this process imports for seconds itself, or reads the store.
    """
    start_helpers(["fmnist_tracking.preload"])
