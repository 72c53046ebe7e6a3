"""What searches and single trainings do alike: arguments checked, libraries loaded, ends judged."""

import warnings
from importlib import import_module
from typing import Literal, TypeAlias, TypeVar, get_args

from fmnist_tracking import interrupts, runtime, tracking
from fmnist_tracking.config import require_choice, require_flag, require_whole
from fmnist_tracking.console import require_function
from fmnist_tracking.errors import SearchError, TrialsFailed
from fmnist_tracking.grid_search.resources import Resources
from fmnist_tracking.runs import Search, Trial
from fmnist_tracking.tracking import Store, TrackedRun

OnFailure: TypeAlias = Literal["raise", "warn"]
Found = TypeVar("Found", Search, Trial)


def check_options(on_failure: object, echo: object, on_start: object, **flags: object) -> None:
    """Raise `ConfigError` for what is wrong with arguments that trainings have in common."""
    require_choice("on_failure", on_failure, get_args(OnFailure))
    require_function("echo", echo)
    require_function("on_start", on_start)
    for name, value in flags.items():
        require_flag(name, value)


def whole(name: str, value: int | None) -> int | None:
    """Return a whole number of at least 1, or None; raise `ConfigError` for anything else."""
    return None if value is None else require_whole(name, value)


def load_libraries(resources: Resources) -> None:
    """Load what trials need, the images for the workers first."""
    _ = resources.images
    with interrupts.held_back():
        runtime.load_tensorflow()
        import_module("fmnist_tracking.grid_search.scheduler")  # found whole from now on
        from fmnist_tracking.networks import models

    models.require_float32()


def own_run(store: Store, run_id: str) -> TrackedRun:
    """Return the run that this process has written; raise `SearchError` if it was deleted."""
    run = tracking.find_active(store, run_id)
    if run is None:
        raise SearchError(
            f"The run {run_id[:8]} was deleted while it was written. Restore it with `mlflow runs "
            f"restore --run-id {run_id}`, or leave it: either way, the same command goes on with "
            "what is missing."
        )
    return tracking.as_tracked(run)


def judged(found: Found, on_failure: OnFailure) -> Found:
    """Return what was trained; raise or warn if trials have failed, or none is of use.

    A warning is of the line that has called the caller.
    """
    message = found.failure
    if message and on_failure == "raise":
        raise TrialsFailed(message, found)
    if message:
        warnings.warn(message, stacklevel=3)
    return found
