"""How many trials run at once, and whether this machine has room for them."""

import itertools
from collections.abc import Sequence

from fmnist_tracking import machine, runtime, tracking
from fmnist_tracking.config import TrainingConfig, require_whole, size_of
from fmnist_tracking.errors import ConfigError, setting
from fmnist_tracking.grid_search.time_estimate import memory_bytes
from fmnist_tracking.search_space import trial_name
from fmnist_tracking.split_config import SplitConfig

# Of a worker that trains the coursework's largest network, or of the driver, rounded up.
_PROCESS_BYTES = 1e9
# Counted while trials ran: what the driver still opens, with its helpers, before the first trial;
# and what each worker takes, beside the threads of its arithmetic.
_DRIVER_THREADS, _WORKER_THREADS = 4, 7
_DRIVER_FILES, _WORKER_FILES = 6, 3


def best_workers() -> int:
    """Return how many trials at once suit this machine: one a processor core, if memory allows.

    A trial gains less from a second core than a second trial does. GPUs are not shared. What
    other programs use at the moment does not count, so that a search goes on as it began.
    """
    fitting = int(machine.memory() / _PROCESS_BYTES) - 1  # the driver is another
    return max(1, min(machine.gpus() or machine.cores(), fitting))


def too_large(config: TrainingConfig, split: SplitConfig, memory: int) -> str | None:
    """Say why a network cannot be trained in so many bytes; None if its size does not tell."""
    needed = _needed(config, split)
    if needed <= memory:
        return None
    named = ["hidden_units"] if config.network.is_coursework else dict(config.hyperparameters)
    shown = (*named, "batch_size")
    return (
        f"The network {trial_name(config, shown)} has "
        f"{size_of(config).parameters:,} weights: to train it takes {_gigabytes(needed)} of memory "
        f"at least, for weights, gradients, Adam's moments and a batch, and there is "
        f"{_gigabytes(memory)} in all. Choose a smaller network, such as one of fewer "
        "hidden_units or filters, or a smaller batch_size."
    )


def workers_for(configs: Sequence[TrainingConfig], split: SplitConfig, workers: int | None) -> int:
    """Return how many trials run at once: as many as asked for, or as suit this machine."""
    if workers is None:
        asked = min(best_workers(), _fitting(_needs(configs, split)))
    else:
        asked = require_whole("workers", workers)
    return max(1, min(asked, len(configs)))


def require_room(
    configs: Sequence[TrainingConfig], split: SplitConfig, workers: int | None
) -> None:
    """Refuse what this machine's memory has no room for; with `workers` None, one must fit.

    Raises:
        ConfigError: one of them, or as many at once as are asked for, need more memory than
            there is.
    """
    memory = machine.memory()
    for config in configs:
        reason = too_large(config, split, memory)
        if reason is not None:
            raise ConfigError(reason)
    needs = _needs(configs, split)
    fitting, at_once = _fitting(needs), 1 if workers is None else require_whole("workers", workers)
    at_once = min(at_once, len(configs))
    if at_once > fitting:
        raise ConfigError(
            f"Expected at most {fitting} workers for networks of this size, got {at_once}: the "
            f"largest {at_once} take {_gigabytes(sum(needs[:at_once]))} of memory at least, and "
            f"there is {_gigabytes(memory)} in all."
        )


def require_processes(workers: int) -> None:
    """Refuse more workers than can have the threads and files that they need.

    Raises:
        ConfigError: the limits of the system leave no room for them.
    """
    threads = _DRIVER_THREADS + workers * (_WORKER_THREADS + runtime.threads_of(workers))
    files = _DRIVER_FILES + workers * _WORKER_FILES
    for what, needed, spare, limit in (
        ("processes and threads", threads, machine.spare_threads(), "`ulimit -u`, or pids.max"),
        ("open files", files, machine.spare_files(), "`ulimit -n`"),
    ):
        if needed > spare:
            fewer = f", or choose fewer {setting('workers')}" if workers > 1 else ""
            raise ConfigError(
                f"Expected room for about {needed} more {what}, as {workers} "
                f"worker{'s need' if workers > 1 else ' needs'}, got {max(0, spare)}. Raise the "
                f"limit ({limit}){fewer}."
            )


def require_room_at_once(
    configs: Sequence[TrainingConfig],
    split: SplitConfig,
    workers: int | None,
    *,
    fresh: bool,
    tracking_uri: str | None,
) -> None:
    """Refuse, before anything is started, what has no room, unless it may have been trained."""
    try:
        require_room(configs, split, workers)
    except ConfigError:
        if fresh or tracking.is_yet_to_be_made(tracking_uri):
            raise


def _needs(configs: Sequence[TrainingConfig], split: SplitConfig) -> list[int]:
    """Return the bytes of each training, the most first: at the worst, those run at once."""
    return sorted((_needed(config, split) for config in configs), reverse=True)


def _fitting(needs: Sequence[int]) -> int:
    return sum(total <= machine.memory() for total in itertools.accumulate(needs))


def _needed(config: TrainingConfig, split: SplitConfig) -> int:
    return memory_bytes(config, split.training_images)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
