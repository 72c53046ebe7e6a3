"""Logging the results of runs: epochs, outcomes, and the end of a trial or a search."""

import contextlib
import csv
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from numpy.typing import NDArray

from fmnist_tracking.config import FASHION_MNIST
from fmnist_tracking.errors import TrackingError, shortened
from fmnist_tracking.leaderboard import best, effects, leaderboard
from fmnist_tracking.objective import VAL_ACCURACY
from fmnist_tracking.redact import printable, to_be_kept
from fmnist_tracking.results import (
    FAILED,
    FINISHED,
    DatasetPart,
    EpochMetrics,
    Evaluation,
    SearchResult,
    TrainingResult,
    TrialResult,
)
from fmnist_tracking.tracking import descriptions, schema
from fmnist_tracking.tracking.artifacts import log_files
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.tracking.log_datasets import as_dataset, link_inputs
from fmnist_tracking.tracking.logged_model import find_models, log_model
from fmnist_tracking.tracking.start import TrialInfo, program_tags
from fmnist_tracking.tracking.store import Store

_MAX_TAG = 500
_MAX_NOTES = 5000
_METRICS_AT_ONCE = 500
_RUN_BY_SPREADSHEETS = ("=", "+", "-", "@")
_LEADERBOARD_COLUMNS = (
    "run_id",
    "name",
    "status",
    "val_accuracy",
    "best_epoch",
    "train_seconds",
    "model_parameters",
    "reused",
    "diverged",
)


def renew_lease(store: Store, run_id: str) -> None:
    """Log a heartbeat: this process is still working on the run."""
    store.client.set_tag(run_id, schema.LEASE, Lease.of_this_process().text())


def note_interruption(store: Store, run_id: str, line: str) -> None:
    """Append a line to a run's record of interruptions, unless it is there already."""
    line = to_be_kept(line)
    known = store.client.get_run(run_id).data.tags.get(schema.INTERRUPTIONS, "")
    if line not in known.splitlines():
        store.client.set_tag(run_id, schema.INTERRUPTIONS, f"{known}\n{line}".strip()[-_MAX_NOTES:])


def log_epochs(store: Store, run_id: str, epochs: Iterable[EpochMetrics]) -> None:
    """Log the metrics of epochs, each with its number as the step and the time it ended."""
    metrics = [
        Metric(name, value, epoch.ended_at, epoch.epoch)
        for epoch in epochs
        for name, value in epoch.metrics().items()
    ]
    for start in range(0, len(metrics), _METRICS_AT_ONCE):
        store.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_AT_ONCE])


def log_metrics(store: Store, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    """Log several metrics at once, by name, all with the same step and the current time."""
    stamp = int(time.time() * 1000)
    metrics = [Metric(name, float(value), stamp, step) for name, value in values.items()]
    store.client.log_batch(run_id, metrics=metrics)


def finish_trial(
    store: Store,
    experiment_id: str,
    run_id: str,
    info: TrialInfo,
    result: TrainingResult,
    model: Any,
    example: NDArray[np.uint8],
    curves: bytes,
    *,
    data: Sequence[DatasetPart] = (),
    retry: bool = False,
) -> None:
    """Log the results of a trial, and close its run as FINISHED.

    The Keras model has the best epoch's weights; it is logged with its input example, raw images,
    uint8 (n, height, width, channels). The learning curves are a PNG file. The scores are linked
    with the validation images among `data`. On a `retry`, an earlier attempt may have done part of
    this.
    """
    client = store.client
    files = {schema.CURVES_FILE: curves}
    if result.validation is not None:
        files[schema.CLASSES_FILE] = _classes_csv(result.validation).encode()
        files[schema.CONFUSION_FILE] = _confusion_csv(result.validation).encode()
    files[schema.HISTORY_FILE] = json.dumps(result.to_json(), indent=2).encode()
    log_files(store, run_id, files)
    model_id, size = log_model(
        store,
        experiment_id,
        run_id,
        model,
        example,
        params=info.config.values,
        tags={
            **program_tags(info.origin.code),
            MLFLOW_RUN_NOTE: descriptions.model(
                experiment_id, run_id, info.name, example.shape[1:], info.final_of
            ),
        },
        step=result.best.epoch,
        retry=retry,
    )
    measured_on: dict[str, str] = {}
    for part in data:
        if part.role == "validation":
            dataset = as_dataset(info.data, part)
            measured_on = {"dataset_name": dataset.name, "dataset_digest": dataset.digest}
    scores = result.validation_scores()
    # MLflow stores equal metrics with equal timestamps once, so that this may be repeated.
    stamp = result.epochs[-1].ended_at
    metrics = [
        Metric(name, float(value), stamp, 0, model_id, **(measured_on if name in scores else {}))
        for name, value in {**result.summary(), "model_bytes": size, **scores}.items()
    ]
    note = descriptions.trial_ended(
        experiment_id,
        info.parent,
        result,
        info.split,
        model_id,
        size,
        other_data=info.data.other_than_fashion_mnist,
        final_of=info.final_of,
    )
    note = descriptions.beside(note, client.get_run(run_id).data.tags)
    tags = {MLFLOW_RUN_NOTE: note}
    if result.diverged is not None:
        tags[schema.DIVERGED] = str(result.diverged)
    client.log_batch(run_id, metrics=metrics, tags=[RunTag(k, v) for k, v in tags.items()])
    client.set_terminated(run_id, FINISHED)


def fail_trial(
    store: Store, experiment_id: str, run_id: str, info: TrialInfo, line: str, trace: str
) -> None:
    """Log the error that ended a trial, as a line and as a traceback; close its run as FAILED."""
    line = shortened(to_be_kept(line), _MAX_TAG)
    note = descriptions.trial_failed(experiment_id, info.parent, line, info.final_of)
    note = descriptions.beside(note, store.client.get_run(run_id).data.tags)
    tags = [RunTag(schema.ERROR, line), RunTag(MLFLOW_RUN_NOTE, note)]
    store.client.log_batch(run_id, tags=tags)
    store.client.set_terminated(run_id, "FAILED")
    # Last, and allowed to fail: the error may come from the artifact storage itself.
    with contextlib.suppress(OSError, MlflowException, TrackingError):
        log_files(store, run_id, {schema.TRACEBACK_FILE: to_be_kept(trace)})


def finish_search(
    store: Store, result: SearchResult, grid: bytes, *, is_part: bool = False
) -> None:
    """Log the leaderboard, the grid's figure (PNG) and the summary, and close the parent run.

    `is_part`: the caller has asked for a part of the grid.
    """
    client, run_id = store.client, result.run_id
    winner = best(result.finished)
    complete = len(result.finished) == len(result.space)
    files = {
        schema.LEADERBOARD_FILE: leaderboard_csv(result),
        schema.SEARCH_FILE: json.dumps(result.to_json(winner), indent=2),
    }
    log_files(store, run_id, files)
    known = client.get_run(run_id)
    data = known.data.tags.get(schema.DATASET, FASHION_MNIST)
    note = descriptions.search_ended(
        result,
        effects(result.space, result.finished),
        other_data=None if data.startswith(FASHION_MNIST) else data,
    )
    tags = {MLFLOW_RUN_NOTE: descriptions.beside(note, known.data.tags)}
    summary: dict[str, float] = {schema.FINISHED_POINTS: len(result.finished)}
    if winner is not None:
        log_files(store, run_id, {schema.GRID_FILE: grid})
        tags[schema.BEST_RUN] = winner.run_id
        summary |= {
            schema.BEST_VAL_ACCURACY: winner.val_accuracy or 0.0,
            "best_epoch": winner.best_epoch or 0,
            "train_seconds": sum(t.train_seconds or 0.0 for t in result.finished),
            "model_parameters": winner.model_parameters or 0,
        }
        _link_as_winner(store, known, winner, complete=complete)
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    # A resumed search ends more than once: each time at a later step.
    if any(known.data.metrics.get(name) != value for name, value in summary.items()):
        log_metrics(store, run_id, summary, step=len(result.finished))
    is_well = complete or (is_part and not result.failed)
    client.set_terminated(run_id, FINISHED if is_well else FAILED)


def _link_as_winner(store: Store, search: Run, winner: TrialResult, *, complete: bool) -> None:
    """Link the best trial's images with the search, and its model once the grid is complete.

    Before that, another trial may still become the best.
    """
    client, run_id = store.client, search.info.run_id
    inputs = client.get_run(winner.run_id).inputs
    if inputs and inputs.dataset_inputs:
        link_inputs(store, run_id, inputs.dataset_inputs)
    known = {model.model_id for model in search.outputs.model_outputs} if search.outputs else set()
    new = [
        LoggedModelOutput(model.model_id, winner.best_epoch or 0)
        for model in find_models(store, search.info.experiment_id, winner.run_id)
        if complete and model.status == LoggedModelStatus.READY and model.model_id not in known
    ]
    if new:
        client.log_outputs(run_id, new)


def leaderboard_csv(result: SearchResult) -> str:
    """Return the leaderboard of a search as CSV, the best trial first and failed ones last."""
    names = dict.fromkeys(name for trial in result.trials for name in trial.config.values)
    scores = () if result.objective == VAL_ACCURACY else ("score",)
    return _csv(
        ["rank", "point_mean", *scores, *_LEADERBOARD_COLUMNS, *names],
        (
            [
                row.rank,
                row.mean,
                *(getattr(row.trial, name) for name in (*scores, *_LEADERBOARD_COLUMNS)),
                *(row.trial.config.values.get(name) for name in names),
            ]
            for row in leaderboard(result.trials)
        ),
    )


def _classes_csv(evaluation: Evaluation) -> str:
    rows = [*evaluation.classes, evaluation.macro, evaluation.weighted]
    columns = ["name", "precision", "recall", "f1", "support"]
    return _csv(["class", *columns[1:]], ([getattr(row, c) for c in columns] for row in rows))


def _confusion_csv(evaluation: Evaluation) -> str:
    classes = [scores.name for scores in evaluation.classes]
    rows = ([name, *row] for name, row in zip(classes, evaluation.confusion, strict=True))
    return _csv(["true class", *classes], rows)


def _csv(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_harmless(cell) for cell in row] for row in [heads, *rows])
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    """Return a cell that a spreadsheet shows and does not run; a number stays one."""
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    with contextlib.suppress(ValueError):
        float(text)
        return text
    return f"'{text}" if text.startswith(_RUN_BY_SPREADSHEETS) else text
