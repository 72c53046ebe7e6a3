"""One tracked trial: what a worker process runs for each point of a grid."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_tracking import runtime
from fmnist_tracking.config import SplitConfig, TrainingConfig
from fmnist_tracking.errors import DataError
from fmnist_tracking.results import FINISHED, TrainingResult, TrialResult

if TYPE_CHECKING:
    from fmnist_tracking.data import Dataset, DataSplit
    from fmnist_tracking.progress import Report
    from fmnist_tracking.tracking import DataFacts

# Images kept with the logged model as its input example.
_EXAMPLES = 2


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """A trial to run, in terms that can be sent to another process.

    Attributes:
        number: of the point in its grid, 1 for the first.
        name: of the run.
        config: what to train.
        split: how the data is split.
        data_dir: where the data is, None for the usual places.
        data_sha256: `Dataset.digest` of the data that must be found there.
        tracking_uri: of the store.
        experiment_id: of the MLflow experiment.
        parent: run id of the search, None for a training of its own.
    """

    number: int
    name: str
    config: TrainingConfig
    split: SplitConfig
    data_dir: Path | None
    data_sha256: str
    tracking_uri: str
    experiment_id: str
    parent: str | None


def trial_name(config: TrainingConfig, axes: tuple[str, ...] = ()) -> str:
    """A short name for people: "f48 k3 s1", and the other axes of the grid by name."""
    name = f"f{config.filters} k{config.kernel_size} s{config.strides}"
    others = [axis for axis in axes if axis not in ("filters", "kernel_size", "strides")]
    return " ".join([name, *(f"{axis}={getattr(config, axis):g}" for axis in others)])


def prepare_worker() -> None:
    """Import what a trial needs, so that the first trial of a worker starts at once."""
    from fmnist_tracking import plots, tracking, training  # noqa: F401


def run_trial(task: TrialTask, report: "Report") -> TrialResult:
    """Train one point, logging into its own run while it trains.

    An error of the training is recorded with the run and in the result; the store being out
    of reach is raised, because then nothing can be recorded.

    Args:
        task: what to run.
        report: called when the trial starts, after each epoch and when it has ended.

    Raises:
        DataError: the data is not what the search began with.
        TrackingError: the store cannot be reached.
    """
    from fmnist_tracking import plots, tracking, training
    from fmnist_tracking.progress import EpochDone, TrialEnded, TrialStarted
    from fmnist_tracking.results import EpochMetrics

    dataset, split = _load(task.data_dir, task.split)
    if dataset.digest != task.data_sha256:
        raise DataError(f"The data in {dataset.source} changed while the search was running.")
    with tracking.open_store(task.tracking_uri) as store:
        run_id = tracking.start_trial(
            store,
            task.experiment_id,
            task.name,
            task.config,
            task.split,
            data_facts(dataset),
            training.fingerprint(task.config, task.split, dataset.digest),
            runtime.threads(),
            task.parent,
        )

        def on_epoch(metrics: EpochMetrics) -> None:
            tracking.log_epoch(store, run_id, metrics)
            report(EpochDone(number=task.number, metrics=metrics))

        try:
            report(TrialStarted(number=task.number, name=task.name))
            training_result, model = training.train(task.config, split, on_epoch)
            title = f"Learning curves of {task.name} (run {run_id[:8]})"
            curves = plots.png(plots.learning_curves(training_result, title))
            examples = split.validation_images[:_EXAMPLES]
            tracking.finish_trial(store, run_id, training_result, model, examples, curves)
            result = _finished(run_id, task, training_result)
        except Exception as error:
            line = tracking.fail_trial(store, run_id, error)
            result = TrialResult(
                run_id=run_id, name=task.name, status="FAILED", config=task.config, error=line
            )
        except BaseException:
            tracking.close_open_runs(store, run_id, "KILLED")
            raise
        report(TrialEnded(number=task.number, result=result))
        return result


def data_facts(dataset: "Dataset") -> "DataFacts":
    """What runs record of their data."""
    from fmnist_tracking.tracking import DataFacts

    name = "Fashion-MNIST" if dataset.is_fashion_mnist else "not Fashion-MNIST"
    return DataFacts(sha256=dataset.digest, description=f"{name} ({dataset.source})")


@lru_cache(maxsize=1)  # a worker runs many trials on the same images
def _load(data_dir: Path | None, split: SplitConfig) -> "tuple[Dataset, DataSplit]":
    from fmnist_tracking.data import load_dataset, split_dataset

    dataset = load_dataset(data_dir)
    return dataset, split_dataset(dataset, split)


def _finished(run_id: str, task: TrialTask, result: TrainingResult) -> TrialResult:
    return TrialResult(
        run_id=run_id,
        name=task.name,
        status=FINISHED,
        config=task.config,
        val_accuracy=result.best.val_accuracy,
        best_epoch=result.best.epoch,
        train_seconds=result.train_seconds,
        model_parameters=result.model_parameters,
    )
