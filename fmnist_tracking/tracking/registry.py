"""The model registry: versions of a model, and the champion, which is the version in use."""

import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from fmnist_tracking.config import format_value
from fmnist_tracking.errors import ConfigError, TrackingError
from fmnist_tracking.results import TrialResult
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.descriptions import plain
from fmnist_tracking.tracking.error_messages import registry_error
from fmnist_tracking.tracking.logged_model import download_model, trial_model
from fmnist_tracking.tracking.queries import ABSENT, find_active, find_any
from fmnist_tracking.tracking.records import (
    TrackedRun,
    as_tracked,
    final_of,
    read_size,
    read_split,
    read_trial,
)
from fmnist_tracking.tracking.store import Store

_EXISTS = ErrorCode.Name(RESOURCE_ALREADY_EXISTS)
_LOGGED_MODEL = re.compile(r"models:/(m-\w+)")
_ABOUT_THE_MODEL = (
    "Classifies images. Each version is the best epoch of a trial, or its final training, that "
    f"`fmnist-track promote` chose; the alias `{schema.CHAMPION}` is on the one in use. Versions "
    "are compared by validation accuracy; the test images have no part in it.\n\n"
    "It takes raw pixels, `uint8`, 0 to 255, and gives the probabilities of the classes; the "
    "signature of a version has their shapes. Fashion-MNIST's images are light on black."
)


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        version: its number.
        run_id: of the trial it came from.
        val_accuracy: of the trial, None if neither the version nor the run has it; but see
            `judged`.
        data_sha256: `Dataset.digest` of the trial's data, None if unknown.
        split: how that data was split, None if unknown.
        run_exists: whether the trial's run still exists.
        final_of: the run that the trial is the final training of, None for all others.
    """

    name: str
    version: str
    run_id: str
    val_accuracy: float | None
    data_sha256: str | None
    split: SplitConfig | None
    run_exists: bool
    final_of: str | None = None

    def line(self) -> str:
        """Return what it is, in a line."""
        scored = "unknown" if self.val_accuracy is None else f"{self.val_accuracy:.4f}"
        what = f"validation accuracy {scored}"
        if self.final_of is not None:
            has = "" if self.val_accuracy is None else f", which has validation accuracy {scored}"
            what = f"final of the trial {self.final_of[:8]}{has}"
        gone = "" if self.run_exists else ", which was deleted"
        run = self.run_id[:8] or "unknown"
        return f"{self.name} version {self.version}: {what}, run {run}{gone}"

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write."""
        return dataclasses.asdict(self)


def find_champion(store: Store, name: str) -> ModelVersion | None:
    """Return the version of a model in use, None if there is none or it was deleted."""
    with _tolerating(ABSENT):
        version = store.client.get_registered_model(name).aliases.get(schema.CHAMPION)
        if version is not None:
            return _version(store, store.client.get_model_version(name, version))
    return None


def judge(store: Store, trial: TrackedRun) -> TrackedRun | None:
    """Return the trial by whose validation accuracy one is judged: it itself.

    A final training has no such figure: it is judged by the trial that it is the final of. None if
    that is gone.
    """
    origin = read_trial(trial).final_of
    if origin is None:
        return trial
    run = find_any(store, origin)
    return None if run is None else as_tracked(run)


def judged(store: Store, version: ModelVersion) -> ModelVersion:
    """Return a version with the figures by which it is compared; see `judge`."""
    run = find_any(store, version.final_of) if version.final_of else None
    if run is None:
        return version
    trial = as_tracked(run)
    return dataclasses.replace(
        version, val_accuracy=read_trial(trial).val_accuracy, split=trial.split
    )


def champion_run(store: Store, name: str) -> TrackedRun:
    """Return the trial whose model is the version in use.

    Raises:
        TrackingError: no version is in use, or its run was deleted or is not known.
    """
    champion = find_champion(store, name)
    if champion is None:
        raise TrackingError(
            f"The registered model {name!r} has no champion. `fmnist-track promote` makes one."
        )
    run = find_active(store, champion.run_id)
    if run is None:
        why = (
            f"came from the run {champion.run_id[:8]}, which was deleted"
            if champion.run_id
            else "does not say which run it came from"
        )
        raise TrackingError(
            f"The champion, {name} version {champion.version}, {why}. Name another run."
        )
    return as_tracked(run)


def find_version(store: Store, name: str, run_id: str) -> ModelVersion | None:
    """Return the newest version made from a trial's model, None if there is none.

    A version whose logged model was deleted does not count.
    """
    found = store.client.search_model_versions(f"run_id = '{run_id}'")
    mine = [version for version in found if version.name == name and _has_model(store, version)]
    if not mine:
        return None
    return _version(store, max(mine, key=lambda version: int(version.version)))


def register_version(store: Store, name: str, trial: TrackedRun) -> ModelVersion:
    """Register a trial's logged model as a new version; create the registered model if needed.

    The version's source is the logged model, not a path in the run: then MLflow's page links the
    version with the logged model, and so with its metrics.

    Raises:
        TrackingError: the trial did not finish, or has no logged model; or the registered model
            belongs to another person.
    """
    client = store.client
    result = read_trial(trial)
    logged = trial_model(store, trial)
    if not _is_registered(store, name):
        with _tolerating(_EXISTS):  # another process was faster
            client.create_registered_model(name, description=_ABOUT_THE_MODEL)
    with _changing(store, name):
        made = client.create_model_version(
            name,
            source=f"models:/{logged.model_id}",
            run_id=trial.run_id,
            tags=_tags(trial, result),
            description=_description(trial, result),
            model_id=logged.model_id,
        )
    return _version(store, made)


def make_champion(store: Store, version: ModelVersion) -> None:
    """Set the alias `champion` to a version, and link its logged model with it.

    Raises:
        TrackingError: the registered model belongs to another person.
    """
    _link_back(store, version)
    with _changing(store, version.name):
        store.client.set_registered_model_alias(version.name, schema.CHAMPION, version.version)


def _has_model(store: Store, version: Any) -> bool:
    """Return whether a version's logged model exists; True if it was registered by other means."""
    found = _LOGGED_MODEL.fullmatch(version.source or "")
    if found is None:
        return True
    with _tolerating(ABSENT):
        return bool(store.client.get_logged_model(found[1]).status == LoggedModelStatus.READY)
    return False


def require_model(store: Store, trial: TrackedRun) -> None:
    """Raise `TrackingError` for a trial without the model that it logged, or that diverged."""
    with tempfile.TemporaryDirectory() as scratch:
        download_model(store, trial, Path(scratch))
    if read_trial(trial).diverged:
        raise TrackingError(
            f"The training of trial {trial.run_id[:8]} diverged, so that its model is of no use. "
            "Choose another trial, and train with a smaller learning rate."
        )


def _is_registered(store: Store, name: str) -> bool:
    with _tolerating(ABSENT):
        store.client.get_registered_model(name)
        return True
    return False


@contextlib.contextmanager
def _tolerating(error_code: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code != error_code:
            raise


@contextlib.contextmanager
def _changing(store: Store, name: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        raise registry_error(store.uri, name, error) from error


def _link_back(store: Store, version: ModelVersion) -> None:
    """Record on the logged model which version it is, as `mlflow.register_model` does.

    A tracking server does this itself.
    """
    client = store.client
    raw = client.get_model_version(version.name, version.version)
    found = _LOGGED_MODEL.fullmatch(raw.source or "")
    if found is None:  # registered by other means
        return
    model_id = found[1]
    try:
        known = json.loads(client.get_logged_model(model_id).tags.get(schema.MODEL_VERSIONS, "[]"))
        known = [link for link in known if isinstance(link, dict)]
    except (ValueError, TypeError, RecursionError):  # another program wrote the tag
        return
    this = (version.name, version.version)
    if not any((link.get("name"), str(link.get("version"))) == this for link in known):
        known.append({"name": version.name, "version": raw.version})
        client.set_logged_model_tags(model_id, {schema.MODEL_VERSIONS: json.dumps(known)})


def _version(store: Store, raw: Any) -> ModelVersion:
    """Return a version, described by its own tags or else by its run."""
    tags: Mapping[str, str] = raw.tags
    run = find_any(store, raw.run_id) if raw.run_id else None
    if run is not None and schema.VAL_ACCURACY not in tags:
        with contextlib.suppress(TrackingError, ConfigError):  # a run of another kind
            tracked = as_tracked(run)
            tags = {**tags, **_tags(tracked, read_trial(tracked))}
    val_accuracy = split = None
    with contextlib.suppress(KeyError, ValueError):
        val_accuracy = float(tags[schema.VAL_ACCURACY])
    with contextlib.suppress(KeyError, ValueError, ConfigError):
        split = read_split(
            tags[schema.PROTOCOL],
            seed=tags[schema.SPLIT_SEED],
            limit=tags[schema.SPLIT_LIMIT],
            size=read_size(tags, schema.SPLIT_SIZE_PREFIX),
            validates=tags.get(schema.SPLIT_VALIDATES, "True"),
        )
    return ModelVersion(
        name=raw.name,
        version=str(raw.version),
        run_id=raw.run_id or tags.get(schema.RUN, ""),
        val_accuracy=val_accuracy,
        data_sha256=tags.get(schema.DATA_SHA256),
        split=split,
        run_exists=run is not None and run.info.lifecycle_stage == "active",
        final_of=final_of(tags),
    )


def _tags(trial: TrackedRun, result: TrialResult) -> dict[str, str]:
    """Return tags that describe a version, so that it can be judged after its run is deleted."""
    tags = {
        schema.RUN: trial.run_id,
        schema.SPLIT_SEED: str(trial.split.seed),
        schema.SPLIT_LIMIT: str(trial.split.limit),
    }
    if result.final_of is None:
        tags[schema.VAL_ACCURACY] = str(result.val_accuracy)
    else:
        tags |= {schema.FINAL_OF: result.final_of, schema.SPLIT_VALIDATES: "False"}
    for name in schema.SPLIT_SIZE:
        tags[schema.SPLIT_SIZE_PREFIX + name] = str(getattr(trial.split.data, name))
    for name in (schema.POINT, schema.DATA_SHA256, schema.DATASET, schema.PROTOCOL):
        if name in trial.raw.data.tags:
            tags[name] = trial.raw.data.tags[name]
    return tags


def _description(trial: TrackedRun, result: TrialResult) -> str:
    settings = ", ".join(f"{k} {format_value(v)}" for k, v in result.config.values.items())
    split = trial.split
    what = (
        f"The best epoch of the trial {plain(trial.name)}, chosen by its validation accuracy; "
        "the test images had no part in it."
    )
    rows = {
        "validation accuracy": f"{result.val_accuracy or 0:.4f}",
        "best epoch": f"{result.best_epoch} of {result.config.epochs}",
    }
    if result.final_of is not None:
        what = (
            f"The last epoch of {plain(trial.name)}, trained on training and validation images "
            "together; it has no validation figures."
        )
        rows = {"final of the trial": result.final_of}
    rows |= {
        "run": trial.run_id,
        "settings": settings,
        "data": trial.raw.data.tags.get(schema.DATASET, "unknown"),
        "data SHA-256": trial.data_sha256,
        "protocol": f"{split.protocol}, seed {split.seed}, "
        + ("all images" if split.limit is None else f"{split.limit} images"),
    }
    table = "\n".join(f"| {plain(name)} | {plain(text)} |" for name, text in rows.items())
    return f"{what}\n\n| | |\n|---|---|\n{table}\n"
