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
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH
from numpy.typing import NDArray

from fmnist_tracking.analysis import best, leaderboard
from fmnist_tracking.config import SearchSpace, SplitConfig, TrainingConfig
from fmnist_tracking.results import FINISHED, RUNNING, EpochMetrics, SearchResult, TrainingResult
from fmnist_tracking.tracking import names
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.tracking.reading import TrackedRun
from fmnist_tracking.tracking.store import Store

# What is needed to load and serve a logged model, pinned to what trained it.
MODEL_REQUIREMENTS = ("mlflow", "tensorflow", "keras", "numpy")
_MAX_TAG = 500
_MAX_NOTES = 5000
_METRICS_AT_ONCE = 500
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


def existing_experiment(store: Store, name: str) -> str | None:
    """The id of the experiment that `choose_experiment` would choose, None if it is to be made."""
    adopted = adoptable_run(store)
    if adopted is not None:
        return str(store.client.get_run(adopted).info.experiment_id)
    found = store.client.get_experiment_by_name(name)
    return None if found is None else str(found.experiment_id)


@dataclass(frozen=True, kw_only=True)
class SearchFacts:
    """What a search's run records when it is opened.

    Attributes:
        name: for people; a name that a person gave to `mlflow run` stays.
        space: the grid.
        base: value of each setting that is not an axis.
        split: how the data is split.
        data: which data.
        grid: fingerprint of the whole grid.
        fresh: whether it trains all anew.
    """

    name: str
    space: SearchSpace
    base: TrainingConfig
    split: SplitConfig
    data: DataFacts
    grid: str
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """What a trial's run records when it is opened.

    Attributes:
        name: for people.
        config: what is trained.
        split: how its data is split.
        data: which data.
        fingerprint: of all that determines its numbers.
        threads: that its arithmetic is done with.
        parent: the search's run id, None for a training of its own.
    """

    name: str
    config: TrainingConfig
    split: SplitConfig
    data: DataFacts
    fingerprint: str
    threads: int
    parent: str | None


def start_search(
    store: Store, experiment_id: str, facts: SearchFacts, resume: TrackedRun | None = None
) -> str:
    """Open the parent run of a search, held by this process.

    It is the run that `mlflow run` made for this command, if there is one; else the run of
    the same search that was cut off, if there is one; else a new one. In the first case what
    the search that was cut off has trained moves to the new run.

    Args:
        store: the store.
        experiment_id: of the experiment to put it in.
        facts: what to record.
        resume: the search's run that was cut off.

    Returns:
        The run's id.
    """
    axes = {axis: json.dumps(values) for axis, values in facts.space.axes.items()}
    too_long = any(len(text) > MAX_PARAM_VAL_LENGTH for text in axes.values())
    params = {
        names.AXIS_PREFIX + axis: f"see {names.AXES_FILE}" if too_long else text
        for axis, text in axes.items()
    }
    params |= {names.BASE_PREFIX + k: v for k, v in dataclasses.asdict(facts.base).items()}
    params |= {names.SPLIT_PREFIX + k: v for k, v in dataclasses.asdict(facts.split).items()}
    tags = {
        names.ROLE: names.SEARCH,
        names.GRID: facts.grid,
        names.LEASE: Lease.of_this_process().text(),
        **_data_tags(facts.split, facts.data),
    }
    if facts.fresh or (resume and names.FRESH in resume.raw.data.tags):
        tags[names.FRESH] = "true"
    existing = adoptable_run(store)
    if existing is not None and resume is not None:
        tags[names.CONTINUES] = resume.run_id
    elif resume is not None:
        existing = resume.run_id
    run_id = _start(store, experiment_id, facts.name, params, tags, existing)
    if too_long:
        content = {axis: list(values) for axis, values in facts.space.axes.items()}
        store.client.log_dict(run_id, content, names.AXES_FILE)
    return run_id


def move_trials(store: Store, trials: Iterable[str], old: str, new: str) -> None:
    """Make trials the children of a search's new run, and say so in the old one."""
    for trial in trials:
        store.client.set_tag(trial, names.PARENT, new)
    store.client.set_tag(old, names.CONTINUED_BY, new)


def log_reused(store: Store, run_id: str, trials: Sequence[str]) -> None:
    """Keep with a search which finished trials of others it counts among its own."""
    if trials:
        store.client.log_text(run_id, json.dumps(trials), names.REUSED_FILE)
        store.client.set_tag(run_id, names.REUSED, str(len(trials)))


def start_trial(
    store: Store, experiment_id: str, facts: TrialFacts, resume: str | None = None
) -> str:
    """Open the run of one trial, held by this process.

    Args:
        store: the store.
        experiment_id: of the experiment to put it in.
        facts: what to record.
        resume: the trial's run that was cut off, to go on in; None opens a new one.

    Returns:
        The run's id.
    """
    params = {
        **dataclasses.asdict(facts.config),
        **{names.SPLIT_PREFIX + k: v for k, v in dataclasses.asdict(facts.split).items()},
    }
    tags = {
        names.POINT: facts.fingerprint,
        names.THREADS: str(facts.threads),
        names.LEASE: Lease.of_this_process().text(),
        **_data_tags(facts.split, facts.data),
    }
    if facts.parent is not None:
        tags |= {names.ROLE: names.TRIAL, names.PARENT: facts.parent}
        return _start(store, experiment_id, facts.name, params, tags, resume)
    tags[names.ROLE] = names.TRAIN
    adopted = adoptable_run(store)
    return _start(store, experiment_id, facts.name, params, tags, adopted or resume)


def find_trial(store: Store, experiment_id: str, facts: TrialFacts) -> str | None:
    """The run of a trial that this process has opened already, None if it has not."""
    parent = "" if facts.parent is None else f"AND tags.`{names.PARENT}` = '{facts.parent}' "
    found = store.client.search_runs(
        [experiment_id],
        f"tags.`{names.POINT}` = '{facts.fingerprint}' {parent}AND attributes.status = '{RUNNING}'",
    )
    mine = (
        run.info.run_id for run in found if (lease := Lease.read(run.data.tags)) and lease.is_mine()
    )
    return next(mine, None)


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
    existing: str | None,
) -> str:
    client = store.client
    if existing is None:
        # resolve_tags gives what MLflow itself would: user, source file, git commit.
        run = client.create_run(experiment_id, tags={**resolve_tags(), **tags}, run_name=name)
        new_tags: Mapping[str, str] = {}
    else:
        run, new_tags = client.get_run(existing), tags
    run_id = str(run.info.run_id)
    if existing is not None and _GENERATED_NAME.fullmatch(run.info.run_name or ""):
        client.update_run(run_id, name=name)
    # `mlflow run` has logged what the person typed, and MLflow forbids a second spelling.
    new_params = {k: str(v) for k, v in params.items() if k not in run.data.params}
    client.log_batch(
        run_id,
        params=[Param(k, v) for k, v in new_params.items()],
        tags=[RunTag(k, v) for k, v in new_tags.items()],
    )
    if existing is not None and run.info.status != RUNNING:
        client.update_run(run_id, status=RUNNING)
        if names.ERROR in run.data.tags:
            client.delete_tag(run_id, names.ERROR)
    return run_id


def renew_lease(store: Store, run_id: str) -> None:
    """Give a sign of life: this process is still working on a run."""
    store.client.set_tag(run_id, names.LEASE, Lease.of_this_process().text())


def note_interruption(store: Store, run_id: str, line: str) -> None:
    """Add a line to a run's record of what happened to it; the same line only once."""
    known = store.client.get_run(run_id).data.tags.get(names.INTERRUPTIONS, "")
    if line not in known.splitlines():
        store.client.set_tag(run_id, names.INTERRUPTIONS, f"{known}\n{line}".strip()[-_MAX_NOTES:])


def log_epochs(store: Store, run_id: str, epochs: Iterable[EpochMetrics]) -> None:
    """Log the figures of epochs, each at the step of its number and the time it ended."""
    metrics = [
        Metric(name, value, epoch.ended_at, epoch.epoch)
        for epoch in epochs
        for name, value in epoch.metrics().items()
    ]
    for start in range(0, len(metrics), _METRICS_AT_ONCE):
        store.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_AT_ONCE])


def log_metrics(
    store: Store,
    run_id: str,
    values: Mapping[str, float],
    step: int = 0,
    timestamp: int | None = None,
) -> None:
    """Log some metrics at once.

    Args:
        store: the store.
        run_id: of the run.
        values: by metric name.
        step: of all of them.
        timestamp: of all of them, in milliseconds since 1970; by default now. MLflow keeps one
            of two metrics that are alike in all this, so that logging may be tried again.
    """
    stamp = int(time.time() * 1000) if timestamp is None else timestamp
    metrics = [Metric(name, float(value), stamp, step) for name, value in values.items()]
    store.client.log_batch(run_id, metrics=metrics)


def finish_trial(
    store: Store,
    run_id: str,
    result: TrainingResult,
    model: Any,
    example: NDArray[np.uint8],
    curves: bytes,
    *,
    again: bool = False,
) -> None:
    """Log what a trial came to, and close its run as FINISHED.

    Args:
        store: the store.
        run_id: the trial's run.
        result: the outcome.
        model: the Keras model with the best epoch's weights.
        example: raw images, uint8 (n, 28, 28, 1), kept with the model as its input example.
        curves: the learning curves as a PNG file.
        again: whether this may have been done before, in part.
    """
    client = store.client
    log_metrics(store, run_id, result.summary(), timestamp=result.epochs[-1].ended_at)
    client.log_dict(run_id, result.to_json(), names.HISTORY_FILE)
    _log_bytes(store, run_id, curves, names.CURVES_FILE)
    if again:
        _delete_models(store, run_id)
    # Leaving start_run closes the run as FINISHED.
    with _without_custom_objects(), mlflow.start_run(run_id=run_id):
        _Model.log(
            artifact_path=None,
            name=names.MODEL,
            flavor=mlflow.tensorflow,
            model=model,
            signature=_signature(example, model),
            input_example=example,
            pip_requirements=[f"{name}=={version(name)}" for name in MODEL_REQUIREMENTS],
        )


class _Model(mlflow.models.Model):
    """A model that MLflow does not load again, after saving it, to see whether it can be served.

    That takes longer than all else that is logged of a trial; a test serves one instead.
    """

    def get_serving_input(self, path: str) -> None:
        """None to try it with."""


def _delete_models(store: Store, run_id: str) -> None:
    """Delete what an earlier try, cut off in the middle, left of a trial's model."""
    experiment_id = store.client.get_run(run_id).info.experiment_id
    for model in store.client.search_logged_models(
        [experiment_id], filter_string=f"source_run_id = '{run_id}'"
    ):
        store.client.delete_logged_model(model.model_id)


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


def fail_trial(store: Store, run_id: str, line: str, trace: str) -> None:
    """Record what ended a trial, and close its run as FAILED.

    Args:
        store: the store.
        run_id: the trial's run.
        line: the error in a line.
        trace: the traceback, kept as an artifact.
    """
    store.client.set_tag(run_id, names.ERROR, line[:_MAX_TAG])
    store.client.set_terminated(run_id, "FAILED")
    # Last, and not missed: what failed may be the very place where artifacts are kept.
    with contextlib.suppress(OSError, MlflowException):
        store.client.log_text(run_id, trace, names.TRACEBACK_FILE)


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
    summary: dict[str, float] = {names.FINISHED_POINTS: len(result.finished)}
    if winner is not None:
        _log_bytes(store, run_id, grid, names.GRID_FILE)
        client.set_tag(run_id, names.BEST_RUN, winner.run_id)
        summary |= {
            names.BEST_VAL_ACCURACY: winner.val_accuracy or 0.0,
            "best_epoch": winner.best_epoch or 0,
            "train_seconds": sum(t.train_seconds or 0.0 for t in result.finished),
        }
    # A search that is continued ends more than once: each time at a later step.
    known = client.get_run(run_id).data.metrics
    if any(known.get(name) != value for name, value in summary.items()):
        log_metrics(store, run_id, summary, step=len(result.finished))
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


def _log_bytes(store: Store, run_id: str, content: bytes, artifact_file: str) -> None:
    folder, _, name = artifact_file.rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, name)
        path.write_bytes(content)
        store.client.log_artifact(run_id, str(path), folder or None)
