"""The search: its points are planned, tried in worker processes, and recorded as trials.

`run` is the main path. `grid` says which point comes next, `scheduler` sees to it that each is
tried to its end, `worker` is what a worker process does, `trial_logger` logs what happens to it.
"""

from fmnist_tracking.workers import start_helpers


def warm_up() -> None:
    """Start the process that workers are forked from, which imports TensorFlow meanwhile.

    Called before this process imports for seconds itself, it saves those; more calls do nothing.
    """
    start_helpers(["fmnist_tracking.grid_search.preload"])
