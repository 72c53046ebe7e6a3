"""Writing runs: a search's and its trials'."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types.schema import Schema, TensorSpec
from numpy.typing import NDArray

from fmnist_tracking.analysis import best, leaderboard
from fmnist_tracking.config import SearchSpace, SplitConfig, TrainingConfig
from fmnist_tracking.results import FINISHED, EpochMetrics, SearchResult, TrainingResult
from fmnist_tracking.tracking import names
from fmnist_tracking.tracking.store import Store

# What is needed to load and serve a logged model, pinned to what trained it.
MODEL_REQUIREMENTS = ("mlflow", "tensorflow", "keras", "numpy")
_MAX_TAG = 500
# As MLflow names a run that nobody named: "bemused-snail-512".
_GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
_LEADERBOARD_COLUMNS = (
    "run_id",
    "name",
    "status",
    "val_accuracy",
    "best_epoch",
    "train_seconds",
    "model_parameters",
    "reused",
)


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What runs record of their data.

    Attributes:
        sha256: `Dataset.digest`.
        description: for people: which data set, and where it was found.
    """

    sha256: str
    description: str


def adoptable_run(store: Store) -> str | None:
    """The run that `mlflow run` made for this command, if there is one not yet in use."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    tags = store.client.get_run(run_id).data.tags
    return None if names.ROLE in tags or names.REPORT_OF in tags else run_id


def choose_experiment(store: Store, name: str) -> str:
    """The id of the experiment to put runs in: the one `mlflow run` chose, else `name`'s."""
    adopted = adoptable_run(store)
    if adopted is not None:
        return str(store.client.get_run(adopted).info.experiment_id)
    return store.experiment_id(name)


def start_search(
    store: Store,
    experiment_id: str,
    name: str,
    space: SearchSpace,
    base: TrainingConfig,
    split: SplitConfig,
    data: DataFacts,
) -> str:
    """Open the parent run of a search: a new one, or the one `mlflow run` made.

    Args:
        store: the store.
        experiment_id: of the experiment to put it in.
        name: of the run, for people; a name that a person gave to `mlflow run` stays.
        space: the grid.
        base: value of each setting that is not an axis.
        split: how the data is split.
        data: which data.

    Returns:
        The run's id.
    """
    params = {names.AXIS_PREFIX + axis: json.dumps(v) for axis, v in space.axes.items()}
    params |= {names.BASE_PREFIX + k: v for k, v in dataclasses.asdict(base).items()}
    params |= {names.SPLIT_PREFIX + k: v for k, v in dataclasses.asdict(split).items()}
    tags = {names.ROLE: names.SEARCH, **_data_tags(split, data)}
    return _start(store, experiment_id, name, params, tags, adopt=adoptable_run(store))


def start_trial(
    store: Store,
    experiment_id: str,
    name: str,
    config: TrainingConfig,
    split: SplitConfig,
    data: DataFacts,
    fingerprint: str,
    threads: int,
    parent: str | None,
) -> str:
    """Open the run of one trial: a child of `parent`, or without one a run of its own.

    Args:
        store: the store.
        experiment_id: of the experiment to put it in.
        name: of the run, for people.
        config: what is trained.
        split: how its data is split.
        data: which data.
        fingerprint: of all that determines its numbers.
        threads: that its arithmetic is done with.
        parent: the search's run id, None for a training of its own.

    Returns:
        The run's id.
    """
    params = {
        **dataclasses.asdict(config),
        **{names.SPLIT_PREFIX + k: v for k, v in dataclasses.asdict(split).items()},
    }
    tags = {names.POINT: fingerprint, names.THREADS: str(threads), **_data_tags(split, data)}
    if parent is None:
        tags[names.ROLE] = names.TRAIN
        adopt = adoptable_run(store)
    else:
        tags |= {names.ROLE: names.TRIAL, names.PARENT: parent}
        adopt = None
    return _start(store, experiment_id, name, params, tags, adopt=adopt)


def _data_tags(split: SplitConfig, data: DataFacts) -> dict[str, str]:
    return {
        names.DATA_SHA256: data.sha256,
        names.DATASET: data.description,
        names.PROTOCOL: split.protocol,
    }


def _start(
    store: Store,
    experiment_id: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    adopt: str | None,
) -> str:
    client = store.client
    if adopt is None:
        # resolve_tags gives what MLflow itself would: user, source file, git commit.
        run = client.create_run(experiment_id, tags={**resolve_tags(), **tags}, run_name=name)
        new_tags: Mapping[str, str] = {}
    else:
        run, new_tags = client.get_run(adopt), tags
    run_id = str(run.info.run_id)
    try:
        if adopt is not None and _GENERATED_NAME.fullmatch(run.info.run_name or ""):
            client.update_run(adopt, name=name)
        # `mlflow run` has logged what the person typed, and MLflow forbids a second spelling.
        new_params = {k: str(v) for k, v in params.items() if k not in run.data.params}
        client.log_batch(
            run_id,
            params=[Param(k, v) for k, v in new_params.items()],
            tags=[RunTag(k, v) for k, v in new_tags.items()],
        )
    except BaseException:
        client.set_terminated(run_id, "KILLED")
        raise
    return run_id


def log_epoch(store: Store, run_id: str, epoch: EpochMetrics) -> None:
    """Log the figures of one epoch, at the step of its number."""
    _log_metrics(store, run_id, epoch.metrics(), step=epoch.epoch)


def _log_metrics(store: Store, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    now = int(time.time() * 1000)
    metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
    store.client.log_batch(run_id, metrics=metrics)


def finish_trial(
    store: Store,
    run_id: str,
    result: TrainingResult,
    model: Any,
    example: NDArray[np.uint8],
    curves: bytes,
) -> None:
    """Log what a trial came to, and close its run as FINISHED.

    Args:
        store: the store.
        run_id: the trial's run.
        result: the outcome.
        model: the Keras model with the best epoch's weights.
        example: raw images, uint8 (n, 28, 28, 1), kept with the model as its input example.
        curves: the learning curves as a PNG file.
    """
    client = store.client
    _log_metrics(store, run_id, result.summary())
    client.log_dict(run_id, result.to_json(), names.HISTORY_FILE)
    _log_bytes(store, run_id, curves, names.CURVES_FILE)
    # Leaving start_run closes the run as FINISHED.
    with _without_custom_objects(), mlflow.start_run(run_id=run_id):
        mlflow.tensorflow.log_model(
            model,
            name=names.MODEL,
            signature=_signature(example, model),
            input_example=example,
            pip_requirements=[f"{name}=={version(name)}" for name in MODEL_REQUIREMENTS],
        )


@contextlib.contextmanager
def _without_custom_objects() -> Iterator[None]:
    """Hide the custom Keras objects that other libraries have registered in this process.

    MLflow pickles all of them beside a model, though this network uses none, and unpickles
    them when the model is loaded; KerasTuner registers some when it is imported.
    """
    registered = mlflow.tensorflow.get_global_custom_objects()
    hidden = dict(registered)
    registered.clear()
    try:
        yield
    finally:
        registered.update(hidden)


def _signature(example: NDArray[np.uint8], model: Any) -> ModelSignature:
    pixels = TensorSpec(np.dtype("uint8"), (-1, *example.shape[1:]), name=None)
    probabilities = TensorSpec(np.dtype("float32"), (-1, *model.output_shape[1:]), name=None)
    return ModelSignature(Schema([pixels]), Schema([probabilities]))


def fail_trial(store: Store, run_id: str, error: Exception) -> str:
    """Record what ended a trial, close its run as FAILED, and give the error in a line."""
    line = f"{type(error).__name__}: {error}".splitlines()[0][:_MAX_TAG]
    store.client.set_tag(run_id, names.ERROR, line)
    store.client.set_terminated(run_id, "FAILED")
    text = "".join(traceback.format_exception(error))
    # Last, and not missed: what failed may be the very place where artifacts are kept.
    with contextlib.suppress(OSError, MlflowException):
        store.client.log_text(run_id, text, names.TRACEBACK_FILE)
    return line


def finish_search(store: Store, result: SearchResult, grid: bytes) -> None:
    """Log the leaderboard, the grid's picture and the summary, and close the parent run.

    Args:
        store: the store.
        result: the search.
        grid: the grid's picture as a PNG file.
    """
    client, run_id = store.client, result.run_id
    winner = best(result.finished)
    client.log_text(run_id, leaderboard_csv(result), names.LEADERBOARD_FILE)
    client.log_dict(run_id, result.to_json(winner), names.SEARCH_FILE)
    if winner is not None:
        _log_bytes(store, run_id, grid, names.GRID_FILE)
        _log_metrics(
            store,
            run_id,
            {
                names.BEST_VAL_ACCURACY: winner.val_accuracy or 0.0,
                "best_epoch": winner.best_epoch or 0,
                "train_seconds": sum(t.train_seconds or 0.0 for t in result.finished),
            },
        )
        client.set_tag(run_id, names.BEST_RUN, winner.run_id)
    _log_metrics(store, run_id, {names.FINISHED_POINTS: len(result.finished)})
    complete = len(result.finished) == len(result.space)
    client.set_terminated(run_id, FINISHED if complete else "FAILED")


def leaderboard_csv(result: SearchResult) -> str:
    """The trials of a search, the best first and those that failed last, as CSV."""
    fields = [f.name for f in dataclasses.fields(TrainingConfig)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "point_mean", *_LEADERBOARD_COLUMNS, *fields])
    for place in leaderboard(result.trials):
        columns = [getattr(place.trial, name) for name in _LEADERBOARD_COLUMNS]
        settings = [getattr(place.trial.config, f) for f in fields]
        writer.writerow([place.rank, place.mean, *columns, *settings])
    return text.getvalue()


def close_open_runs(store: Store, run_id: str, status: str) -> None:
    """Close a run, and those of its children that are still open.

    Args:
        store: the store.
        run_id: of a search or trial.
        status: KILLED or FAILED, for the run; open children were KILLED either way.
    """
    run = store.client.get_run(run_id)
    children = store.client.search_runs(
        [run.info.experiment_id],
        f"tags.`{names.PARENT}` = '{run_id}' AND attributes.status = 'RUNNING'",
    )
    for child in children:
        store.client.set_terminated(child.info.run_id, "KILLED")
    store.client.set_terminated(run_id, status)


def log_report(
    store: Store,
    run_id: str,
    files: Sequence[Path],
    metrics: Mapping[str, float],
    trial_id: str,
) -> None:
    """Keep a report's files with the run it is about, and that the test set was opened.

    The test metrics are logged once: made again, a report gives the same figures, and a
    second value of a metric would only look like a second measurement.

    Args:
        store: the store.
        run_id: the trial or search the report is about.
        files: what to keep.
        metrics: test metrics by name; none if the test set was not scored.
        trial_id: the trial whose model was used; `run_id` itself unless that is a search.
    """
    client = store.client
    for file in files:
        client.log_artifact(run_id, str(file), names.REPORT_FOLDER)
    known = client.get_run(run_id).data.metrics
    if any(known.get(name) != value for name, value in metrics.items()):
        _log_metrics(store, run_id, metrics)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for opened in {run_id, trial_id}:
        if names.TEST_OPENED not in client.get_run(opened).data.tags:
            client.set_tag(opened, names.TEST_OPENED, now)


def mark_report_run(store: Store, run_id: str, name: str) -> None:
    """Say, on the run that `mlflow run` made for a report, which run the report is about."""
    adopted = adoptable_run(store)
    if adopted is not None:
        store.client.update_run(adopted, name=f"{name} of {run_id[:8]}")
        # No role: it is neither a search nor a trial, and is not to be listed as one.
        store.client.set_tag(adopted, names.REPORT_OF, run_id)


def _log_bytes(store: Store, run_id: str, content: bytes, artifact_file: str) -> None:
    folder, _, name = artifact_file.rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, name)
        path.write_bytes(content)
        store.client.log_artifact(run_id, str(path), folder or None)
