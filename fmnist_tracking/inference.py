"""A trial's model, asked in a process of its own.

That process loads TensorFlow while the one that started it reads the store, prepares pictures
or draws.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fmnist_tracking import runtime, tracking
from fmnist_tracking.errors import TrackingError, setting
from fmnist_tracking.inspection import StoredModel
from fmnist_tracking.redact import printable
from fmnist_tracking.split_config import Protocol
from fmnist_tracking.tracking import Store, TrackedRun
from fmnist_tracking.warm_up import warm_up
from fmnist_tracking.workers import LocalWorker, WorkerDied, WorkerPool

_WORKER = "fmnist_tracking.model_worker"
# Calls a function of that module there, by its name; returns a function that waits for its answer.
Ask = Callable[..., Callable[[], Any]]


@contextlib.contextmanager
def model_process() -> Iterator[Ask]:
    """Start the process; it is ended when the block is left.

    Waiting for an answer raises what the function raises, and `TrackingError` if the process
    died.
    """
    prepare = partial(runtime.prepare_process, runtime.threads_of(1), 0, [_WORKER])
    warm_up()
    with WorkerPool([LocalWorker(prepare)], lambda *_: None) as pool:

        def ask(function: str, *arguments: Any) -> Callable[[], Any]:
            answer = pool.submit(f"{_WORKER}:{function}", *arguments)

            def wait() -> Any:
                try:
                    return answer.result()
                except WorkerDied as death:
                    raise TrackingError(
                        f"The model could not be asked: {death.what} ({death})."
                    ) from None

            return wait

        yield ask


@contextlib.contextmanager
def fetched_model(store: Store, trial: TrackedRun, trust_code: bool) -> Iterator[StoredModel]:
    """Fetch a trial's model from the store, for as long as the block lasts.

    Raises:
        TrackingError: the trial has no model, or one that needs code that is not trusted.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = tracking.download_model(store, trial, Path(scratch))
        code = tracking.code_beside(file)
        if code is not None and not trust_code:
            raise TrackingError(
                f"The model of trial {trial.run_id[:8]} needs code that was logged with it: "
                f"{tracking.names_in(code)}. It was not run: code from a store can do "
                f"all that you can do, and whoever can write to {store.public_uri} could have put "
                f"it there. Give {setting('trust_code=True')} if you trust all who can."
            )
        network = tracking.read_trial(trial).config.network
        yield StoredModel(file=file, run_id=trial.run_id, network=network, code=code)


@dataclass(frozen=True, kw_only=True)
class About:
    """What a model is: which trial's, of how many images, and how good.

    Attributes:
        run_id: of the trial.
        name: of the trial, for people.
        protocol: how the images were split.
        limit: to how many images the trial was limited, None for all.
        training_images: how many it was trained on.
        all_training_images: how many there are without a limit.
        val_accuracy: of its best epoch, 0 to 1; None if the run does not say.
        final_of: the run that it is the final training of, without validation images; None for
            all others.
    """

    run_id: str
    name: str
    protocol: Protocol
    limit: int | None
    training_images: int
    all_training_images: int
    val_accuracy: float | None
    final_of: str | None = None

    @property
    def is_trial_run(self) -> bool:
        """Return whether it was trained on a part of the images, to try things out."""
        return self.training_images < self.all_training_images

    def __str__(self) -> str:
        accuracy = "unknown" if self.val_accuracy is None else f"{self.val_accuracy:.4f}"
        scored = f"validation accuracy {accuracy}"
        if self.final_of is not None:
            scored = f"final of the trial {self.final_of[:8]}, no validation images"
        of_all = f" of {self.all_training_images:,}" if self.is_trial_run else ""
        better = " Expect better answers from a model of all of them." if self.is_trial_run else ""
        return (
            f"Model: {self.name}, run {self.run_id[:8]}, trained on {self.training_images:,}"
            f"{of_all} images (protocol {self.protocol}), {scored}.{better}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write."""
        content = {**asdict(self), "is_trial_run": self.is_trial_run}
        if self.final_of is None:
            del content["final_of"]
        return content


def about(trial: TrackedRun) -> About:
    """Return what a trial's model is, as its run says."""
    result = tracking.read_trial(trial)
    return About(
        run_id=trial.run_id,
        name=printable(trial.name),
        protocol=trial.split.protocol,
        limit=trial.split.limit,
        training_images=trial.split.training_images,
        all_training_images=replace(trial.split, limit=None).training_images,
        val_accuracy=result.val_accuracy,
        final_of=result.final_of,
    )
