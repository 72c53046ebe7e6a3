"""A trial's model, asked in a process of its own.

That process loads TensorFlow while the one that started it reads the store, prepares pictures
or draws.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fmnist_tracking import runtime
from fmnist_tracking.config import SEEN_IMAGES, Protocol, SplitConfig
from fmnist_tracking.errors import DataError, TrackingError, first_line
from fmnist_tracking.results import Evaluation
from fmnist_tracking.workers import LocalWorker, WorkerDied, WorkerPool, start_helpers

if TYPE_CHECKING:
    from fmnist_tracking.tracking import Store, TrackedRun

SAMPLES = 16
_LONGEST_REASON = 200
_MODULES = (
    "fmnist_tracking.data",
    "fmnist_tracking.metrics",
    "fmnist_tracking.networks.coursework",
)
# The test images are for a report alone.
Part = Literal["validation", "test"]

# Has a function of this module called in that process, given its arguments but the last, and gives
# what waits for its answer.
Ask = Callable[..., Callable[[], Any]]


@contextlib.contextmanager
def model_process() -> Iterator[Ask]:
    """Start the process; it is ended when the block is left.

    Waiting for an answer raises what the function raises, and `TrackingError` if the process
    died.
    """
    prepare = partial(runtime.prepare_process, runtime.threads_of(1), 0, _MODULES)
    start_helpers([])
    with WorkerPool([LocalWorker(prepare)], lambda *_: None) as pool:

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
class About:
    """What a model is: which trial's, of how many images, and how good.

    Attributes:
        run_id: of the trial.
        name: of the trial, for people.
        protocol: how the images were split.
        limit: to how many images the trial was limited, None for all.
        training_images: how many it was trained on.
        val_accuracy: of its best epoch, 0 to 1; None if the run does not say.
    """

    run_id: str
    name: str
    protocol: Protocol
    limit: int | None
    training_images: int
    val_accuracy: float | None

    @property
    def is_trial_run(self) -> bool:
        """Whether it was trained on a part of the images, to try things out."""
        return self.limit is not None and self.limit < SEEN_IMAGES[self.protocol]

    def __str__(self) -> str:
        accuracy = "unknown" if self.val_accuracy is None else f"{self.val_accuracy:.4f}"
        line = (
            f"Model: {self.name}, run {self.run_id[:8]}, trained on {self.training_images:,} "
            f"images (protocol {self.protocol}), validation accuracy {accuracy}."
        )
        if self.is_trial_run:
            line += (
                f" It is a trial run, made with --limit {self.limit}: expect better answers from a "
                "model of all images."
            )
        return line

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json` can write."""
        return {**asdict(self), "is_trial_run": self.is_trial_run}


def about(trial: "TrackedRun") -> About:
    """Return what a trial's model is, as its run says."""
    from fmnist_tracking.tracking import read_trial

    return About(
        run_id=trial.run_id,
        name=trial.name if trial.name.isprintable() else ascii(trial.name),
        protocol=trial.split.protocol,
        limit=trial.split.limit,
        training_images=trial.split.training_images,
        val_accuracy=read_trial(trial).val_accuracy,
    )


@dataclass(frozen=True, kw_only=True)
class InspectionTask:
    """What to look at: a trial's model, and images that it was not trained on.

    Attributes:
        model: its `.keras` file.
        run_id: of the trial, for messages.
        split: how its data was split.
        data_dir: where the data is, None for the usual places.
        data_sha256: `Dataset.digest` of the data it was trained on.
        seed: of the choice of sample images.
        part: `validation`, of which the samples alone are classified; or `test`, which opens the
            sealed images and scores all of them.
    """

    model: Path
    run_id: str
    split: SplitConfig
    data_dir: Path | None
    data_sha256: str
    seed: int
    part: Part


@dataclass(frozen=True, kw_only=True)
class ModelInspection:
    """What there was to see.

    Attributes:
        source: where the data was found.
        is_fashion_mnist: whether it is that.
        class_names: ten names, in label order.
        part: which images the samples are of.
        available: how many images that part has.
        chosen: the samples' places among them, shape (k,).
        images: the samples, uint8, shape (k, 28, 28, 1).
        labels: their true classes, uint8, shape (k,).
        probabilities: what the model gives for them, float32, shape (k, 10).
        maps: what its first convolution makes of the first sample, float32, shape
            (filters, height, width).
        evaluation: of all test images, None if they stayed sealed.
    """

    source: str
    is_fashion_mnist: bool
    class_names: tuple[str, ...]
    part: Part
    available: int
    chosen: NDArray[np.intp]
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    maps: NDArray[np.float32]
    evaluation: Evaluation | None


def look(task: InspectionTask, _: Callable[[Any], None]) -> ModelInspection:
    """Look at a model and some images; for `model_process`.

    Raises:
        DataError: the data is not what the model was trained on, or cannot be had.
        TrackingError: the model cannot be used, or gives no numbers.
    """
    from fmnist_tracking.data import load_dataset, split_dataset, test_set
    from fmnist_tracking.metrics import evaluate
    from fmnist_tracking.networks.coursework import first_layer_activations

    model = _load(task.model, task.run_id)
    dataset = load_dataset(task.data_dir)
    if dataset.digest != task.data_sha256:
        raise DataError(
            f"The run {task.run_id[:8]} was trained on other data than {dataset.source} holds "
            f"(SHA-256 {task.data_sha256[:12]}… against {dataset.digest[:12]}…). Name the right "
            "folder with --data-dir."
        )
    if task.part == "test":
        test = test_set(dataset, task.split)
        images, labels = test.images, test.labels
        everything = classify(task.model, task.run_id, images)
        evaluation = evaluate(labels, everything, dataset.class_names)
    else:
        split = split_dataset(dataset, task.split)
        images, labels = split.validation_images, split.validation_labels
        evaluation = None
    count = len(labels)
    chosen = np.random.default_rng(task.seed).choice(count, min(SAMPLES, count), replace=False)
    try:
        maps = first_layer_activations(model, images[chosen[0]])
    except Exception as error:  # of a network that this project did not build
        raise _unusable(task.run_id, error) from None
    return ModelInspection(
        source=dataset.source,
        is_fashion_mnist=dataset.is_fashion_mnist,
        class_names=dataset.class_names,
        part=task.part,
        available=count,
        chosen=chosen,
        images=images[chosen],
        labels=labels[chosen],
        probabilities=everything[chosen]
        if evaluation
        else classify(task.model, task.run_id, images[chosen]),
        maps=maps,
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
        TrackingError: the model cannot be used, or gives no numbers.
    """
    from fmnist_tracking.networks.coursework import predict

    probabilities = predict(_load(model, run_id), images)
    if not np.isfinite(probabilities).all():
        raise TrackingError(
            f"The model of trial {run_id[:8]} gives no numbers (NaN): its training diverged. "
            "Choose another trial, and train with a smaller learning rate."
        )
    return probabilities


@lru_cache(maxsize=1)
def _load(path: Path, run_id: str) -> Any:
    from fmnist_tracking.networks.coursework import load_model

    try:
        return load_model(path)
    except Exception as error:  # Keras raises many kinds of what is damaged or not its own
        raise _unusable(run_id, error) from None


def _unusable(run_id: str, error: Exception) -> TrackingError:
    why = first_line(error)[:_LONGEST_REASON]
    return TrackingError(
        f"The model file of trial {run_id[:8]} cannot be used; it is damaged, or not one of this "
        f"project: {why} Choose another trial, or train this one again with --fresh."
    )
