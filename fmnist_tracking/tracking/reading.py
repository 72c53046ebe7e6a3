"""Reading runs back as records."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fmnist_tracking.config import FIELDS, SearchSpace, SplitConfig, TrainingConfig
from fmnist_tracking.errors import ConfigError, TrackingError
from fmnist_tracking.results import (
    FINISHED,
    SearchResult,
    TrainingResult,
    TrialResult,
)
from fmnist_tracking.tracking import names
from fmnist_tracking.tracking.store import Store

_PAGE = 1000
_IDS_AT_ONCE = 200
_BEST_VAL_LOSS = "best_val_loss"
NEWEST_FIRST = ["attributes.start_time DESC"]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run of this project as the store has it.

    Attributes:
        run_id: the full id.
        experiment_id: of the experiment it is in.
        role: `search`, `trial` or `train`.
        name: for people.
        split: how its data was split.
        data_sha256: `Dataset.digest` of the data it was trained on.
        raw: MLflow's own record.
    """

    run_id: str
    experiment_id: str
    role: str
    name: str
    split: SplitConfig
    data_sha256: str
    raw: Run


def read_space(run: Run) -> SearchSpace:
    """The grid of a search's run."""
    axes = {
        key.removeprefix(names.AXIS_PREFIX): value
        for key, value in run.data.params.items()
        if key.startswith(names.AXIS_PREFIX)
    }
    if f"see {names.AXES_FILE}" in axes.values():
        return SearchSpace(axes=_read_json(run, names.AXES_FILE))
    return SearchSpace(axes={axis: tuple(json.loads(value)) for axis, value in axes.items()})


def read_search(store: Store, run: TrackedRun) -> SearchResult:
    """A search and its trials, in the grid's order.

    Of a finished search it is what was written when it ended, where that can be read: one file,
    however many trials there are.

    Raises:
        TrackingError: the parameters of a run are not those of this version.
    """
    if run.raw.info.status == FINISHED:
        with contextlib.suppress(MlflowException, OSError, LookupError, ValueError, ConfigError):
            return read_outcome(store, run)
    space = read_space(run.raw)
    found = [trial_result(r) for r in find_children(store, run.experiment_id, run.run_id)]
    found += _reused(store, run)
    # One for each point: a finished one rather than one that was cut off, and the newest.
    trials: dict[TrainingConfig, TrialResult] = {}
    for trial in found:
        known = trials.get(trial.config)
        if known is None or (known.status != FINISHED and trial.status == FINISHED):
            trials[trial.config] = trial
    ordered = sorted(
        trials.values(),
        key=lambda t: [v.index(getattr(t.config, a)) for a, v in space.axes.items()],
    )
    return SearchResult(
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        space=space,
        trials=tuple(ordered),
    )


def read_outcome(store: Store, run: TrackedRun) -> SearchResult:
    """A finished search as it was when it ended: one file, however many trials there are.

    Raises:
        TrackingError: it has no such file.
    """
    content = _read_json(run.raw, names.SEARCH_FILE)
    return SearchResult(
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        space=read_space(run.raw),
        trials=tuple(TrialResult.from_json(trial) for trial in content["trials"]),
    )


def find_children(store: Store, experiment_id: str, parent: str) -> Iterator[Run]:
    """The runs of a search's trials, the newest first."""
    for run in iterate_runs(store, [experiment_id], f"tags.`{names.PARENT}` = '{parent}'"):
        if names.ROLE in run.data.tags:
            yield run


def _reused(store: Store, run: TrackedRun) -> Iterator[TrialResult]:
    """Finished trials of others that a search counts among its own."""
    if names.REUSED not in run.raw.data.tags:
        return
    ids = _read_json(run.raw, names.REUSED_FILE)
    for start in range(0, len(ids), _IDS_AT_ONCE):
        listed = ", ".join(f"'{run_id}'" for run_id in ids[start : start + _IDS_AT_ONCE])
        filter_string = f"attributes.run_id IN ({listed})"
        for found in iterate_runs(store, [run.experiment_id], filter_string):
            yield dataclasses.replace(trial_result(found), reused=True)


def read_trial(run: TrackedRun) -> TrialResult:
    """The record of a trial or a single training.

    Raises:
        TrackingError: its parameters are not those of this version.
    """
    return trial_result(run.raw)


def read_history(store: Store, run: TrackedRun) -> TrainingResult:
    """A finished trial's figures, epoch by epoch.

    Raises:
        TrackingError: the trial did not finish, so that it has none.
    """
    require_finished(run)
    try:
        return TrainingResult.from_json(_read_json(run.raw, names.HISTORY_FILE))
    except (LookupError, TypeError, ValueError, ConfigError):
        raise TrackingError(
            f"The record {names.HISTORY_FILE} of run {run.run_id[:8]} is not one of this version: "
            "it was made by another. Train that point again with --fresh."
        ) from None


def _read_json(run: Run, file: str) -> Any:
    # Not by `runs:/`, for which MLflow asks the store for the run again, and for its models.
    return json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{file}"))


def require_finished(run: TrackedRun) -> None:
    """Refuse a trial that has no model.

    Raises:
        TrackingError: it did not finish.
    """
    if run.raw.info.status != FINISHED:
        raise TrackingError(
            f"The trial {run.run_id[:8]} is {run.raw.info.status}, so it has no model. Choose a "
            "FINISHED one, or `best`; `fmnist-track runs` shows the status of each."
        )


def iterate_runs(store: Store, experiments: Iterable[str], filter_string: str) -> Iterator[Run]:
    """Runs that match a filter, the newest first, however many there are."""
    token, ids = None, list(experiments)
    while ids:
        page = store.client.search_runs(
            ids,
            filter_string,
            max_results=_PAGE,
            order_by=NEWEST_FIRST,
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            break


def as_tracked(run: Run) -> TrackedRun:
    """A run of MLflow as one of this project.

    Raises:
        TrackingError: it is not of this project.
    """
    tags, params = run.data.tags, run.data.params
    role = tags.get(names.ROLE)
    if role not in (names.SEARCH, names.TRIAL, names.TRAIN):
        raise TrackingError(
            f"The run {run.info.run_id[:8]} ({run.info.run_name}) is in this store, but it is no "
            "search or trial of fmnist-track. `fmnist-track runs` lists those."
        )
    limit = params.get(names.SPLIT_PREFIX + "limit", "None")
    return TrackedRun(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        role=role,
        name=names.unmarked(run.info.run_name),
        split=SplitConfig(
            protocol=tags.get(names.PROTOCOL),  # type: ignore[arg-type]  # checked by SplitConfig
            seed=int(params.get(names.SPLIT_PREFIX + "seed", 0)),
            limit=None if limit == "None" else int(limit),
        ),
        data_sha256=tags.get(names.DATA_SHA256, ""),
        raw=run,
    )


def trial_result(run: Run) -> TrialResult:
    """The run of a trial or a single training as a record.

    Raises:
        TrackingError: its parameters are not those of this version.
    """
    metrics = run.data.metrics
    return TrialResult(
        run_id=run.info.run_id,
        name=names.unmarked(run.info.run_name),
        status=run.info.status,
        config=_config(run),
        val_accuracy=metrics.get(names.BEST_VAL_ACCURACY),
        best_epoch=_whole(metrics.get("best_epoch")),
        train_seconds=metrics.get("train_seconds"),
        model_parameters=_whole(metrics.get("model_parameters")),
        error=run.data.tags.get(names.ERROR),
        # Runs of earlier versions have no such tag.
        diverged=names.DIVERGED in run.data.tags or math.isnan(metrics.get(_BEST_VAL_LOSS, 0.0)),
    )


def _config(run: Run) -> TrainingConfig:
    try:
        values: dict[str, Any] = {
            name: float(run.data.params[name]) for name in FIELDS if name in run.data.params
        }
        return TrainingConfig(**values)
    except (ValueError, ConfigError) as error:
        raise TrackingError(
            f"The parameters of run {run.info.run_id[:8]} are not a configuration of this "
            f"version: {error}"
        ) from None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
