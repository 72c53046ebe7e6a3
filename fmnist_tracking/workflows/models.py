"""A trial's model, asked in a process of its own.

That process loads TensorFlow while the one that started it reads the store, prepares pictures
or draws.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tracking.config import SplitConfig
from fmnist_tracking.errors import DataError, TrackingError
from fmnist_tracking.executors import WorkerDied, WorkerPool
from fmnist_tracking.results import Evaluation

if TYPE_CHECKING:
    from fmnist_tracking.tracking import Store, TrackedRun

SAMPLES = 16

# Has a function of this module called in that process, given its arguments but the last, and gives
# what waits for its answer.
Ask = Callable[..., Callable[[], Any]]


@contextlib.contextmanager
def model_process() -> Iterator[Ask]:
    """Start the process; it is ended when the block is left.

    Waiting for an answer raises what the function raises, and `TrackingError` if the process
    died.
    """
    with WorkerPool(1, lambda *_: None, _prepare) as pool:

        def ask(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
            answer = pool.submit(function, *arguments)

            def wait() -> Any:
                try:
                    return answer.result()
                except WorkerDied as death:
                    raise TrackingError(
                        f"The model could not be asked: {death.what} ({death})."
                    ) from None

            return wait

        yield ask


def _prepare() -> None:
    from fmnist_tracking import data, evaluation, model  # noqa: F401


@contextlib.contextmanager
def fetched_model(store: "Store", trial: "TrackedRun") -> Iterator[Path]:
    """A trial's `.keras` file, fetched from the store for as long as the block lasts.

    Raises:
        TrackingError: the trial has no model.
    """
    from fmnist_tracking import tracking

    with tempfile.TemporaryDirectory() as scratch:
        yield tracking.download_model(store, trial, Path(scratch))


@dataclass(frozen=True, kw_only=True)
class LookTask:
    """What to look at: a trial's model, and test images that it has not seen.

    Attributes:
        model: its `.keras` file.
        run_id: of the trial, for messages.
        split: how its data was split.
        data_dir: where the data is, None for the usual places.
        data_sha256: `Dataset.digest` of the data it was trained on.
        seed: of the choice of sample images.
        score: whether all test images are scored, or the samples alone classified.
    """

    model: Path
    run_id: str
    split: SplitConfig
    data_dir: Path | None
    data_sha256: str
    seed: int
    score: bool


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What there was to see.

    Attributes:
        source: where the data was found.
        is_fashion_mnist: whether it is that.
        class_names: ten names, in label order.
        test_images: how many test images there are.
        chosen: the samples' places among them, shape (k,).
        images: the samples, uint8, shape (k, 28, 28, 1).
        labels: their true classes, uint8, shape (k,).
        probabilities: what the model gives for them, float32, shape (k, 10).
        maps: what its first convolution makes of the first sample, float32, shape
            (filters, height, width).
        evaluation: of all test images, None if they were not to be scored.
    """

    source: str
    is_fashion_mnist: bool
    class_names: tuple[str, ...]
    test_images: int
    chosen: NDArray[np.intp]
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    maps: NDArray[np.float32]
    evaluation: Evaluation | None


def look(task: LookTask, _: Callable[[Any], None]) -> Looked:
    """Look at a model and its test images; for `model_process`.

    Raises:
        DataError: the data is not what the model was trained on, or cannot be had.
        TrackingError: the model gives no numbers.
    """
    from fmnist_tracking.data import load_dataset, test_set
    from fmnist_tracking.evaluation import evaluate
    from fmnist_tracking.model import first_layer_activations

    dataset = load_dataset(task.data_dir)
    if dataset.digest != task.data_sha256:
        raise DataError(
            f"The run {task.run_id[:8]} was trained on other data than {dataset.source} holds "
            f"(SHA-256 {task.data_sha256[:12]}… against {dataset.digest[:12]}…). Name the right "
            "folder with --data-dir."
        )
    test = test_set(dataset, task.split)
    count = len(test.labels)
    chosen = np.random.default_rng(task.seed).choice(count, min(SAMPLES, count), replace=False)
    images, labels = test.images[chosen], test.labels[chosen]
    evaluation = None
    if task.score:
        everything = classify(task.model, task.run_id, test.images)
        evaluation = evaluate(test.labels, everything, dataset.class_names)
        probabilities = everything[chosen]
    else:
        probabilities = classify(task.model, task.run_id, images)
    return Looked(
        source=dataset.source,
        is_fashion_mnist=dataset.is_fashion_mnist,
        class_names=dataset.class_names,
        test_images=count,
        chosen=chosen,
        images=images,
        labels=labels,
        probabilities=probabilities,
        maps=first_layer_activations(_load(task.model), images[0]),
        evaluation=evaluation,
    )


def classify(
    model: Path, run_id: str, images: NDArray[np.uint8], _: Callable[[Any], None] = print
) -> NDArray[np.float32]:
    """Class probabilities of raw images; for `model_process`.

    Args:
        model: a `.keras` file.
        run_id: of its trial, for messages.
        images: uint8, shape (n, 28, 28, 1), 0..255.

    Returns:
        float32, shape (n, 10).

    Raises:
        TrackingError: the model gives no numbers.
    """
    from fmnist_tracking.model import predict

    probabilities = predict(_load(model), images)
    if not np.isfinite(probabilities).all():
        raise TrackingError(
            f"The model of trial {run_id[:8]} gives no numbers (NaN): its training diverged. "
            "Choose another trial, and train with a smaller learning rate."
        )
    return probabilities


@lru_cache(maxsize=1)
def _load(path: Path) -> Any:
    from fmnist_tracking.model import load_model

    return load_model(path)
