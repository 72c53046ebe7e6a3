"""Results of trainings that were never done: epochs, scores, trials."""

import dataclasses

from fmnist_tracking.config import CLASS_NAMES, TrainingConfig
from fmnist_tracking.results import (
    ClassScores,
    EpochMetrics,
    Evaluation,
    TrainingResult,
    TrialResult,
)


def epoch(number: int, val_accuracy: float) -> EpochMetrics:
    return EpochMetrics(
        epoch=number,
        loss=1.0 / number,
        accuracy=0.5,
        val_loss=0.9,
        val_accuracy=val_accuracy,
        epoch_seconds=2.0,
    )


def evaluation(accuracy: float) -> Evaluation:
    """Of 10 images, one of each class."""
    classes = tuple(
        ClassScores(name=name, precision=0.5, recall=0.4, f1=n / 10, support=1)
        for n, name in enumerate(CLASS_NAMES)
    )
    mean = dataclasses.replace(classes[0], name="macro avg", f1=0.45, support=10)
    confusion = tuple(tuple(int(row == column) for column in range(10)) for row in range(10))
    return Evaluation(
        accuracy=accuracy,
        loss=0.9,
        classes=classes,
        macro=mean,
        weighted=dataclasses.replace(mean, name="weighted avg"),
        confusion=confusion,
    )


def training(*scores: float) -> TrainingResult:
    return TrainingResult(
        config=TrainingConfig.of(epochs=len(scores)),
        epochs=tuple(epoch(n, s) for n, s in enumerate(scores, start=1)),
        model_parameters=7,
        train_seconds=2.0 * len(scores),
        images_per_second=100.0,
        train_images=500,
        validation=evaluation(max(scores)),
    )


def trial(run_id: str, val_accuracy: float | None, **changes: object) -> TrialResult:
    fields: dict[str, object] = {
        "run_id": run_id,
        "name": f"trial {run_id}",
        "status": "FAILED" if val_accuracy is None else "FINISHED",
        "config": TrainingConfig.of(),
        "val_accuracy": val_accuracy,
        "best_epoch": None if val_accuracy is None else 3,
        **changes,
    }
    return TrialResult(**fields)  # type: ignore[arg-type]
