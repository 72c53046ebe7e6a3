"""Results: records of an epoch, a training, a trial, a search and an evaluation."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from fmnist_tracking.config import TrainingConfig, size_of
from fmnist_tracking.errors import ConfigError, shown
from fmnist_tracking.network import COURSEWORK, Network, NetworkSize, Value
from fmnist_tracking.objective import VAL_ACCURACY, Objective
from fmnist_tracking.search_space import SearchSpace

FINISHED, FAILED = "FINISHED", "FAILED"
RUNNING = "RUNNING"
# Shown for a trial that has finished without a usable model.
DIVERGED = "diverged"
# Characters that are replaced in the name of a metric.
_NO_WORD = re.compile(r"[^a-z0-9_.-]")
# A training step computes the forward pass, and gradients by the activations and by the weights,
# each as costly as the forward pass.
_PASSES_A_STEP = 3


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """The metrics of one epoch.

    Attributes:
        epoch: 1 for the first.
        loss: mean over the training images, with dropout, while the weights were changing: of the
            loss that the network was compiled with; of the coursework's, cross-entropy in nats.
        accuracy: share of training images classified correctly, under the same conditions.
        val_loss: the same over the validation images after the epoch; None where there are none.
        val_accuracy: share of validation images classified correctly after the epoch, or None.
        objective: what the epochs are compared by, if it is neither accuracy nor loss.
        epoch_seconds: wall-clock seconds for training and validation together.
        ended_at: when the epoch ended, in milliseconds since 1970 (UTC).
        usage: use of the machine meanwhile, by metric name; see `training.system_metrics`.
    """

    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    epoch_seconds: float
    objective: float | None = None
    ended_at: int = 0
    usage: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        """Return whether the losses are finite; if not, the training has diverged."""
        return math.isfinite(self.loss) and math.isfinite(self.val_loss or 0.0)

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name, those that there are."""
        values = dataclasses.asdict(self)
        del values["epoch"], values["ended_at"], values["usage"]
        return {name: v for name, v in values.items() if v is not None} | {**self.usage}

    def value(self, objective: Objective) -> float | None:
        """Return its figure of an objective by which the training's epochs are compared.

        It is None without validation images.
        """
        if objective.average:
            return self.objective
        return self.val_loss if objective.is_loss else self.val_accuracy


def best_epoch(epochs: Sequence[EpochMetrics], objective: Objective) -> EpochMetrics:
    """Return the best epoch by an objective, the earliest if several are equal.

    An epoch whose loss is not finite is the best only if there is no other. Without validation
    images, by which alone epochs are compared, it is the last.
    """

    def key(epoch: EpochMetrics) -> tuple[bool, float, int]:
        value = epoch.value(objective)
        if value is None or epoch.val_accuracy is None:
            return epoch.is_finite, 0.0, epoch.epoch
        score = objective.goodness(value) if epoch.is_finite else epoch.val_accuracy
        return epoch.is_finite, score, -epoch.epoch

    return max(epochs, key=key)


def diverged_in(epochs: Iterable[EpochMetrics]) -> int | None:
    """Return the first epoch with a training or validation loss that is not finite, else None."""
    return next((e.epoch for e in epochs if not e.is_finite), None)


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Precision, recall, F1 (0 to 1) and the number of true images of one class."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a model classifies a set of labelled images.

    Attributes:
        accuracy: share of images classified correctly.
        loss: mean cross-entropy, in nats; on validation images, the network's own, as `val_loss`.
        classes: the scores by class, in label order.
        macro: unweighted mean of the scores over the classes.
        weighted: mean of the scores weighted by support.
        confusion: `confusion[t][p]` counts images of true class t classified as class p.
    """

    accuracy: float
    loss: float
    classes: tuple[ClassScores, ...]
    macro: ClassScores
    weighted: ClassScores
    confusion: tuple[tuple[int, ...], ...]

    def value(self, objective: Objective) -> float:
        """Return a mean over the classes that is an objective; see `objective.OBJECTIVES`."""
        return float(getattr(getattr(self, objective.average), objective.score))

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write and `from_json` can read."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Evaluation":
        """Return the record that `to_json` was called on."""
        return cls(
            accuracy=content["accuracy"],
            loss=content["loss"],
            classes=tuple(ClassScores(**scores) for scores in content["classes"]),
            macro=ClassScores(**content["macro"]),
            weighted=ClassScores(**content["weighted"]),
            confusion=tuple(map(tuple, content["confusion"])),
        )


# In the place of another while a record is made a dictionary.
COURSEWORK_CONFIG = TrainingConfig()


def _config_to_json(config: TrainingConfig, key: str) -> dict[str, Any]:
    """Return a configuration's values, and its network unless that is the coursework's."""
    network = {} if config.network == COURSEWORK else {"network": config.network.to_json()}
    size = {} if config.network.is_coursework else {"size": dataclasses.asdict(size_of(config))}
    return {key: dict(config.values), **network, **size}


def _config_from_json(fields: dict[str, Any], key: str) -> TrainingConfig:
    """Take what `_config_to_json` has returned out of a record's fields, and read it."""
    content = fields.pop("network", None)
    network = COURSEWORK if content is None else Network.from_json(content)
    config = TrainingConfig.of(network, **fields.pop(key))
    size = fields.pop("size", None)
    return dataclasses.replace(config, size=NetworkSize(**size)) if size else config


@dataclass(frozen=True, kw_only=True)
class DatasetPart:
    """The images that a trial was given, for training or for validation.

    Attributes:
        role: `training` or `validation`.
        shape: of the array of images.
        images_sha256: SHA-256 of their bytes, in the order of the split.
        labels_sha256: SHA-256 of their labels, one byte each, in the same order.
        class_counts: the number of images of each class, in label order.
    """

    role: str
    shape: tuple[int, ...]
    images_sha256: str
    labels_sha256: str
    class_counts: tuple[int, ...]


def _metric_words(class_names: Sequence[str]) -> list[str]:
    """Return words for classes that MLflow takes in a metric's name: "ankle_boot", or numbers.

    Names that differ in letters' case alone, or in what MLflow does not take, become numbers.
    """
    words = [_NO_WORD.sub("_", name.lower()) for name in class_names]
    if len(set(words)) < len(words):
        return [str(label) for label in range(len(words))]
    return words


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The result of training one configuration.

    Attributes:
        config: what was trained.
        epochs: metrics of each epoch, in order; never empty.
        model_parameters: number of weights of the network.
        train_seconds: wall-clock seconds of all epochs, validation included.
        images_per_second: training images processed in a second of training alone, validation
            excluded.
        train_images: number of training images.
        validation: how the best epoch's weights classify the validation images; None without any.
        settings: of the process that trained: those of `fmnist_tracking.runtime`, the number of
            shards of a batch, and whether XLA compiled the step.
        class_names: in label order; earlier releases have them in `validation` alone.
    """

    config: TrainingConfig
    epochs: tuple[EpochMetrics, ...]
    model_parameters: int
    train_seconds: float
    images_per_second: float
    train_images: int
    validation: Evaluation | None
    settings: Mapping[str, str | int | bool | None] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()

    @property
    def best(self) -> EpochMetrics:
        """Return the best epoch; see `best_epoch`."""
        return best_epoch(self.epochs, self.config.compared_by)

    @property
    def diverged(self) -> int | None:
        """Return the epoch in which the training diverged and ended, None if it did not."""
        return diverged_in(self.epochs)

    def summary(self) -> dict[str, float]:
        """Return the summary metrics of a trial, by their names in MLflow.

        `flops_per_image` counts the additions and multiplications of the forward pass of one image;
        `train_flops` counts those of all training steps, each as three forward passes.
        """
        flops = 2 * size_of(self.config).multiply_adds
        objective = self.config.compared_by
        scores = {"best_val_accuracy": self.best.val_accuracy}
        if objective != VAL_ACCURACY:
            scores["best_objective"] = self.best.value(objective)
        return {
            **{name: value for name, value in scores.items() if value is not None},
            "best_epoch": self.best.epoch,
            "train_seconds": self.train_seconds,
            "images_per_second": self.images_per_second,
            "model_parameters": self.model_parameters,
            "flops_per_image": flops,
            "train_flops": _PASSES_A_STEP * flops * self.train_images * len(self.epochs),
        }

    def validation_scores(self) -> dict[str, float]:
        """Return the best epoch's scores on the validation images, by their names in MLflow."""
        if self.validation is None:
            return {}
        return {
            "best_val_accuracy": self.validation.accuracy,
            "best_val_loss": self.validation.loss,
            "val_macro_f1": self.validation.macro.f1,
            **{
                f"val_f1_{word}": scores.f1
                for word, scores in zip(
                    _metric_words([scores.name for scores in self.validation.classes]),
                    self.validation.classes,
                    strict=True,
                )
            },
        }

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write and `from_json` can read."""
        content = dataclasses.asdict(dataclasses.replace(self, config=COURSEWORK_CONFIG))
        return {**content, **_config_to_json(self.config, "config")}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TrainingResult":
        """Return the record that `to_json` was called on."""
        fields, validation = dict(content), content["validation"]
        return cls(
            **{
                "config": _config_from_json(fields, "config"),
                **fields,
                "epochs": tuple(EpochMetrics(**epoch) for epoch in content["epochs"]),
                "validation": None if validation is None else Evaluation.from_json(validation),
                "class_names": tuple(content.get("class_names", ())),
            }
        )


@dataclass(frozen=True, kw_only=True)
class TrialScore:
    """The score of a trial.

    Attributes:
        value: of the objective in the best epoch, None if the trial failed.
        best_epoch: the best epoch, 1 for the first.
        error: the error that ended a failed trial, in one line.
        diverged: whether the loss became infinite or NaN.
    """

    value: float | None = None
    best_epoch: int | None = None
    error: str | None = None
    diverged: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One trial, as the store has it: its run, its configuration and its result.

    Attributes:
        run_id: of the MLflow run.
        name: of the MLflow run.
        status: MLflow's status: FINISHED, FAILED, KILLED or RUNNING.
        config: what was trained.
        val_accuracy: of the best epoch, None if the trial did not finish or has no validation
            images.
        best_objective: what it is compared by, in the best epoch, if that is another figure.
        best_epoch: the best epoch, 1 for the first.
        train_seconds: wall-clock seconds of training, validation included.
        model_parameters: number of weights of the network.
        error: the error that ended a failed trial, in one line.
        reused: whether an earlier search or single training had trained it already.
        diverged: whether the loss became infinite or NaN, which ended the trial.
        final_of: the run that it is the final training of, without validation images; None for
            all others.
    """

    run_id: str
    name: str
    status: str
    config: TrainingConfig
    val_accuracy: float | None = None
    best_objective: float | None = None
    best_epoch: int | None = None
    train_seconds: float | None = None
    model_parameters: int | None = None
    error: str | None = None
    reused: bool = False
    diverged: bool = False
    final_of: str | None = None

    @property
    def score(self) -> float | None:
        """Return what it is compared by, in its best epoch; None if it has no such figure."""
        is_usual = self.config.compared_by == VAL_ACCURACY
        return self.val_accuracy if is_usual else self.best_objective

    @property
    def is_scored(self) -> bool:
        """Return whether the trial finished, and so has a score."""
        return self.status == FINISHED and self.score is not None

    @property
    def outcome(self) -> str:
        """Return the result in a word: the trial's status, or "diverged"."""
        return DIVERGED if self.diverged else self.status

    def to_json(self) -> dict[str, Any]:
        """Return the trial as `search --json` prints it."""
        content = dataclasses.asdict(dataclasses.replace(self, config=COURSEWORK_CONFIG))
        del content["config"]
        for name in ("best_objective", "final_of"):
            if content[name] is None:
                del content[name]
        return {**content, **_config_to_json(self.config, "params")}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TrialResult":
        """Return the record that `to_json` was called on."""
        fields = dict(content)
        return cls(config=_config_from_json(fields, "params"), **fields)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A search and its trials.

    Attributes:
        run_id: of the parent run.
        experiment_id: of the MLflow experiment it is in.
        space: the grid.
        trials: one for each point that was started, in the grid's order.
    """

    run_id: str
    experiment_id: str
    space: SearchSpace
    trials: tuple[TrialResult, ...]

    @cached_property
    def finished(self) -> tuple[TrialResult, ...]:
        """Return the trials that finished, and so have a score."""
        return tuple(trial for trial in self.trials if trial.is_scored)

    @property
    def objective(self) -> Objective:
        """Return what its trials are compared by."""
        return self.trials[0].config.compared_by if self.trials else VAL_ACCURACY

    @property
    def failed(self) -> tuple[TrialResult, ...]:
        """Return the trials that ended without a result; one that was cut off has not ended."""
        return tuple(trial for trial in self.trials if trial.status == FAILED)

    def to_json(self, best: TrialResult | None) -> dict[str, Any]:
        """Return the object that `search --json` prints at the end, for the best trial, if any."""
        return {
            "run_id": self.run_id,
            "experiment_id": self.experiment_id,
            "grid_points": len(self.space),
            "finished": len(self.finished),
            "failed": len(self.failed),
            "reused": sum(t.reused for t in self.trials),
            "diverged": sum(t.diverged for t in self.trials),
            "best": best
            and {
                "run_id": best.run_id,
                "params": best.config.values,
                "val_accuracy": best.val_accuracy,
            },
            "trials": [t.to_json() for t in self.trials],
        }


class StoredRun(Protocol):
    """A search or trial that knows its store."""

    @property
    def run_id(self) -> str:
        """Return the id of its MLflow run."""

    @property
    def tracking_uri(self) -> str:
        """Return the address of its store."""


def located(run: str | StoredRun, tracking_uri: str | None) -> tuple[str, str | None]:
    """Return the run id or other name of a run, and the address of the store to look in.

    Raises:
        ConfigError: it is no run.
    """
    if isinstance(run, str):
        return run, tracking_uri
    if not hasattr(run, "run_id"):
        raise ConfigError(f"Expected a search, a trial, or the name of a run, got {shown(run)}.")
    return run.run_id, tracking_uri or getattr(run, "tracking_uri", None)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A search or a single training, in one line of a list.

    Attributes:
        run_id: of the MLflow run.
        role: `search` or `train`.
        name: of the MLflow run.
        experiment: the name of its experiment.
        status: MLflow's status.
        started: in milliseconds since 1970 (UTC).
        points: number of points of the grid; 1 for a single training.
        finished: number of points with a finished trial.
        val_accuracy: of the best trial, None until one has finished, and for a final training.
        grid: the values of each setting that varies or is not the default; one value each for a
            single training.
        epochs: of each trial, None if it varies.
        limit: of the number of images, None for all.
    """

    run_id: str
    role: str
    name: str
    experiment: str
    status: str
    started: int
    points: int
    finished: int
    val_accuracy: float | None
    grid: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    epochs: int | None = None
    limit: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write."""
        return dataclasses.asdict(self)
