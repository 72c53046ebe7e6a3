"""Whether trainings fit into this machine's memory, by the known size of their networks."""

import itertools
from collections.abc import Sequence

from fmnist_tracking import machine
from fmnist_tracking.config import SEEN_IMAGES, SplitConfig, TrainingConfig, model_parameters
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.estimate import memory_bytes
from fmnist_tracking.workflows.session import Request, best_workers
from fmnist_tracking.workflows.trial import trial_name


def too_large(config: TrainingConfig, split: SplitConfig, memory: int) -> str | None:
    """Say why a network cannot be trained in so many bytes; None if its size does not tell."""
    needed = _needed(config, split)
    if needed <= memory:
        return None
    return (
        f"The network {trial_name(config, ('hidden_units', 'batch_size'))} has "
        f"{model_parameters(config):,} weights: to train it takes {_gigabytes(needed)} of memory "
        f"at least, for weights, gradients, Adam's moments and a batch, and there is "
        f"{_gigabytes(memory)} in all. Choose fewer hidden_units or filters, or a smaller "
        "batch_size."
    )


def workers_for(configs: Sequence[TrainingConfig], request: Request) -> int:
    """How many trials run at once: as many as asked for, or as suit this machine.

    Args:
        configs: what is to be trained.
        request: what is asked.

    Raises:
        ConfigError: one of them, or as many at once as are asked for, need more memory than
            there is.
    """
    memory = machine.memory()
    for config in configs:
        reason = too_large(config, request.split, memory)
        if reason is not None:
            raise ConfigError(reason)
    # At the worst, the largest run at once.
    needs = sorted((_needed(config, request.split) for config in configs), reverse=True)
    fitting = sum(total <= memory for total in itertools.accumulate(needs))
    if request.workers is None:
        return max(1, min(best_workers(), fitting, len(configs)))
    workers = min(request.workers, len(configs))
    if workers > fitting:
        raise ConfigError(
            f"Expected at most {fitting} workers for networks of this size, got {workers}: the "
            f"largest {workers} take {_gigabytes(sum(needs[:workers]))} of memory at least, and "
            f"there is {_gigabytes(memory)} in all."
        )
    return max(1, workers)


def _needed(config: TrainingConfig, split: SplitConfig) -> int:
    return memory_bytes(config, split.limit or SEEN_IMAGES[split.protocol])


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
