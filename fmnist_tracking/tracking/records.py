"""Reading runs as records; searches are read in `search_records`."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fmnist_tracking import fingerprint
from fmnist_tracking.config import FIELDS, OBJECTIVE, TRAINING_SETTINGS, Pairs, TrainingConfig
from fmnist_tracking.errors import (
    ConfigError,
    TrackingError,
    first_line,
    setting,
)
from fmnist_tracking.network import COURSEWORK, Network, NetworkSize
from fmnist_tracking.redact import printable
from fmnist_tracking.results import (
    FINISHED,
    TrainingResult,
    TrialResult,
)
from fmnist_tracking.split_config import FASHION_MNIST_SIZE, DataSize, SplitConfig
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.artifacts import read_file
from fmnist_tracking.tracking.queries import (
    is_ours,
)
from fmnist_tracking.tracking.store import Store

_BEST_VAL_LOSS = "best_val_loss"
# Above it, floats cannot represent every whole number.
_LARGEST_WHOLE = 2**53
# Raised for a text that is not JSON, is nested too deeply, or holds another kind of value.
NO_JSON = (ValueError, TypeError, RecursionError)
T = TypeVar("T")


class UnreadableRun(TrackingError):
    """A run of this project that this version cannot read: of another version, or damaged.

    Attributes:
        why: the reason, in words.
    """

    def __init__(self, run: Run, why: str) -> None:
        super().__init__(
            f"The run {run.info.run_id[:8]} cannot be read by this version of fmnist-track: {why}."
        )
        self.why = why


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run of this project in the store.

    Attributes:
        role: `search`, `trial` or `train`.
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


def readable(store: Store, runs: Iterable[Run], read: Callable[[Run], T]) -> Iterator[T]:
    """Yield what `read` returns for each run, and skip those for which it raises `UnreadableRun`.

    The store collects those in `left_out`.
    """
    for run in runs:
        try:
            yield read(run)
        except UnreadableRun as error:
            store.left_out[run.info.run_id] = error.why


def read_network(run: Run) -> Network:
    """Read which network a run is of; raise `ValueError` if it does not say."""
    described = run.data.tags.get(schema.NETWORK)
    return COURSEWORK if described is None else Network.from_json(json.loads(described))


def read_pairs(values: Any) -> Pairs:
    """Return hyperparameters read from JSON; raise `ValueError` if they are none."""
    if not isinstance(values, dict) or not all(
        isinstance(value, int | float | str) for value in values.values()
    ):
        raise ValueError("they are no hyperparameters")
    return tuple(values.items())


def read_history(store: Store, run: TrackedRun) -> TrainingResult:
    """Read the metrics of a finished trial, epoch by epoch.

    Raises:
        TrackingError: the trial did not finish, or its record cannot be read.
    """
    require_finished(run)
    try:
        return TrainingResult.from_json(read_json(store, run.raw, schema.HISTORY_FILE))
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"The record {schema.HISTORY_FILE} of run {run.run_id[:8]} cannot be fetched from the "
            f"store ({first_line(error)}). Choose another trial, or train that point again with "
            f"{setting('fresh=True')}."
        ) from None
    except (*NO_JSON, LookupError, AttributeError, ConfigError):
        raise TrackingError(
            f"The record {schema.HISTORY_FILE} of run {run.run_id[:8]} is not one of this version: "
            f"it was made by another. Train that point again with {setting('fresh=True')}."
        ) from None


def read_json(store: Store, run: Run, file: str) -> Any:
    """Return what a file of a run says, which is JSON; raises what `read_file` and `json` do."""
    return json.loads(read_file(store, run.info.artifact_uri, file))


def require_finished(run: TrackedRun) -> None:
    """Raise `TrackingError` for a trial that did not finish, and so has no model."""
    if run.raw.info.status != FINISHED:
        raise TrackingError(
            f"The trial {run.run_id[:8]} is {run.raw.info.status}, so it has no model. Choose a "
            "FINISHED one, or `best`; `fmnist-track runs` shows the status of each."
        )


def as_tracked(run: Run) -> TrackedRun:
    """Return an MLflow run as a run of this project.

    Raises:
        TrackingError: it is not of this project.
        UnreadableRun: it is, but a tag or a parameter is missing or wrong.
    """
    tags, params = run.data.tags, run.data.params
    role = tags.get(schema.ROLE)
    if role is None:
        if is_ours(run):
            raise UnreadableRun(run, f"its tag {schema.ROLE} is missing")
        raise TrackingError(
            f"The run {run.info.run_id[:8]} ({run.info.run_name}) is in this store, but it is no "
            "search or trial of fmnist-track. `fmnist-track runs` lists those."
        )
    if role not in (schema.SEARCH, schema.TRIAL, schema.TRAIN):
        raise UnreadableRun(run, f"its tag {schema.ROLE} is {role!r}, which is not known here")
    if not isinstance(run.info.run_name or "", str):  # SQLite keeps whatever it is given
        raise UnreadableRun(run, "its name is no text")
    if schema.DATA_SHA256 not in tags:
        raise UnreadableRun(run, f"its tag {schema.DATA_SHA256} is missing")
    try:
        split = read_split(
            tags.get(schema.PROTOCOL, ""),
            seed=params.get(schema.SPLIT_PREFIX + "seed", "0"),
            limit=params.get(schema.SPLIT_PREFIX + "limit", "None"),
            size=read_size(params, schema.SPLIT_PREFIX),
            validates=params.get(schema.SPLIT_PREFIX + "validates", "True"),
        )
    except (ValueError, ConfigError) as error:
        raise UnreadableRun(run, f"it does not say how its data was split ({error})") from None
    return TrackedRun(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        role=role,
        name=schema.unmarked(run.info.run_name or ""),
        split=split,
        data_sha256=tags[schema.DATA_SHA256],
        raw=run,
    )


def read_split(
    protocol: str, seed: str, limit: str, size: DataSize, validates: str = "True"
) -> SplitConfig:
    """Read a split from its fields as MLflow keeps them, in words.

    Raises:
        ValueError: a field is no number, or not True or False.
        ConfigError: there is no such split.
    """
    if validates not in ("True", "False"):
        raise ValueError(f"validates is {validates!r}")
    return SplitConfig(
        protocol=protocol,  # type: ignore[arg-type]  # checked by SplitConfig
        seed=int(seed),
        limit=None if limit == "None" else int(limit),
        data=size,
        validates=validates == "True",
    )


def read_size(values: Mapping[str, str], prefix: str) -> DataSize:
    """Read the size of the data that was split, from parameters or tags with a prefix.

    Earlier releases, whose runs do not have it, knew data of Fashion-MNIST's size alone.

    Raises:
        ValueError: one is no number.
        ConfigError: there is no data of such a size.
    """
    known = {name: values[prefix + name] for name in schema.SPLIT_SIZE if prefix + name in values}
    return dataclasses.replace(FASHION_MNIST_SIZE, **{k: int(v) for k, v in known.items()})


def trial_result(run: Run) -> TrialResult:
    """Read an MLflow run as a trial or a single training; raises what `read_trial` does."""
    return read_trial(as_tracked(run))


def read_trial(tracked: TrackedRun) -> TrialResult:
    """Read the record of a trial or a single training.

    Raises:
        UnreadableRun: this version does not know its parameters, or it finished without a valid
            result.
    """
    run, metrics = tracked.raw, tracked.raw.data.metrics
    validates = tracked.split.validates
    try:
        trial = TrialResult(
            run_id=tracked.run_id,
            name=tracked.name,
            status=run.info.status,
            config=_config(tracked),
            val_accuracy=metrics.get(schema.BEST_VAL_ACCURACY) if validates else None,
            best_objective=metrics.get(schema.BEST_OBJECTIVE) if validates else None,
            best_epoch=_whole(metrics.get("best_epoch")),
            train_seconds=metrics.get("train_seconds"),
            model_parameters=_whole(metrics.get("model_parameters")),
            error=run.data.tags.get(schema.ERROR),
            # Runs of earlier versions lack the tag.
            diverged=schema.DIVERGED in run.data.tags
            or math.isnan(metrics.get(_BEST_VAL_LOSS, 0.0)),
            final_of=final_of(run.data.tags),
        )
    except (ValueError, OverflowError) as error:
        raise UnreadableRun(run, f"one of its metrics is no whole number ({error})") from None
    if not validates and trial.final_of is None:
        raise UnreadableRun(run, f"its tag {schema.FINAL_OF} is missing")
    if trial.status == FINISHED and validates:
        if trial.val_accuracy is None:
            raise UnreadableRun(run, f"its metric {schema.BEST_VAL_ACCURACY} is missing")
        if not 0 <= trial.val_accuracy <= 1:
            raise UnreadableRun(run, f"its metric {schema.BEST_VAL_ACCURACY} is no share")
        if trial.score is None:
            raise UnreadableRun(run, f"its metric {schema.BEST_OBJECTIVE} is missing")
    return trial


def final_of(tags: Mapping[str, str]) -> str | None:
    """Return which run a final training, or a version of a model, is the final of."""
    named = tags.get(schema.FINAL_OF)
    return None if named is None else printable(named)


def _config(run: TrackedRun) -> TrainingConfig:
    params = run.raw.data.params
    config = as_config(run.raw, params)
    unknown = [
        name
        for name in params
        if name not in config.values and not name.startswith(schema.SPLIT_PREFIX)
    ]
    if unknown:
        # A parameter that somebody added does no harm if the fingerprint says what was trained.
        point = config, run.split, run.data_sha256
        known = (fingerprint.of_point(*point), *fingerprint.older_keys(*point))
        if run.raw.data.tags.get(schema.POINT) not in known:
            why = f"it has the setting {unknown[0]!r}, which is not known here"
            raise UnreadableRun(run.raw, why)
    return config


def as_config(run: Run, given: Mapping[str, str]) -> TrainingConfig:
    """Read a configuration from parameters; raise `UnreadableRun` if they are none."""
    try:
        network = read_network(run)
        numbers = FIELDS if network.is_coursework else TRAINING_SETTINGS
        values: dict[str, Any] = {name: float(given[name]) for name in numbers if name in given}
        values |= {name: given[name] for name in (OBJECTIVE,) if name in given}
        config = TrainingConfig.of(network, **values)
        if network.is_coursework:
            return config
        pairs = read_pairs(json.loads(run.data.tags[schema.HYPERPARAMETERS]))
        other = next((name for name, value in pairs if given.get(name) != str(value)), None)
        # `mlflow run` has logged its own parameters, among them those of the coursework's network.
        if other is not None and schema.ENTRY_POINT not in run.data.tags:
            raise ValueError(f"{other} is not what its tag {schema.HYPERPARAMETERS} says")
        return dataclasses.replace(config, hyperparameters=pairs, size=_read_size(run))
    except (*NO_JSON, KeyError, OverflowError, ConfigError) as error:
        raise UnreadableRun(
            run, f"its parameters are not a configuration of this version ({error})"
        ) from None


def _read_size(run: Run) -> NetworkSize | None:
    """Read how large a finished trial's network is, by which the time of others is estimated."""
    found = [run.data.metrics.get(name, -1.0) for name in ("model_parameters", "flops_per_image")]
    if not all(0 <= value < _LARGEST_WHOLE for value in found):
        return None
    return NetworkSize(parameters=int(found[0]), multiply_adds=int(found[1]) // 2, outputs=0)


def _whole(value: float | None) -> int | None:
    if value is not None and not abs(value) < _LARGEST_WHOLE:  # stands for infinity in MLflow
        raise ValueError(f"{value:g}")
    return None if value is None else int(value)
