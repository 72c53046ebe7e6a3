"""A trained network as an MLflow logged model."""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types.schema import Schema, TensorSpec
from numpy.typing import NDArray

from fmnist_tracking.errors import TrackingError, setting
from fmnist_tracking.files import digest_of, open_untrusted, sha256, write_files
from fmnist_tracking.network import PackedModel
from fmnist_tracking.networks.portable import make_portable
from fmnist_tracking.redact import without_user
from fmnist_tracking.tracking import schema
from fmnist_tracking.tracking.artifacts import fetch_file, files_at
from fmnist_tracking.tracking.records import TrackedRun, require_finished
from fmnist_tracking.tracking.store import Store

# What loading and serving a logged model needs, pinned to the versions that trained it.
MODEL_REQUIREMENTS = ("mlflow", "tensorflow", "keras", "numpy")

# More than the code of any model has.
_MOST_FOLDERS = 1000

_log = logging.getLogger(__name__)


def log_model(
    store: Store,
    experiment_id: str,
    run_id: str,
    model: Any,
    example: NDArray[np.uint8],
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    step: int,
    retry: bool = False,
) -> tuple[str, int]:
    """Log a Keras model as the result of a run.

    MLflow's own `log_model` does the same and more: it loads the model again to check that it can
    be served, which takes longer than everything else (a test serves one instead), and it reads the
    history of every metric of the run.

    The input example holds raw images, uint8 (n, height, width, channels); `params` and `tags` are
    set on the logged model; its weights are from the epoch `step`. On a `retry`, a complete model
    that an earlier attempt has logged is kept.

    A `PackedModel` is logged with its code, which MLflow runs when it loads the model.

    Returns:
        The id of the logged model, and the size of its weights file in bytes.
    """
    client = store.client
    if retry:
        for known in find_models(store, experiment_id, run_id):
            if known.status == LoggedModelStatus.READY:
                return known.model_id, _size(store, known)
            client.delete_logged_model(known.model_id)
    about = Model(run_id=run_id)
    # MLflow reads the options of the flavour `keras` if a model has it beside `tensorflow`, so all
    # of them must be here.
    about.add_flavor(
        "keras",
        data=schema.KERAS_FILE.partition("/")[0],
        model_type="keras",
        save_format="tf",
        save_exported_model=False,
        keras_version=version("keras"),
        keras_backend="tensorflow",
    )
    with tempfile.TemporaryDirectory() as scratch, _without_custom_objects():
        folder = Path(scratch, schema.MODEL)
        file = folder / schema.KERAS_FILE
        facts = dict(params)
        if isinstance(model, PackedModel):
            _save_with_code(model, folder, about, example)
            facts[schema.MODEL_CODE_SHA256] = digest_of(model.code)
        else:
            mlflow.tensorflow.save_model(
                model,
                str(folder),
                mlflow_model=about,
                signature=_signature(example, model),
                input_example=example,
                pip_requirements=_pinned(MODEL_REQUIREMENTS),
            )
            make_portable(file)
        with open_untrusted(file) as content:
            digest = sha256(content)
        size = file.stat().st_size
        # Among the parameters, which nobody can change or remove, as they can a tag.
        facts[schema.MODEL_SHA256] = digest
        logged = client.create_logged_model(
            experiment_id,
            name=schema.MODEL,
            source_run_id=run_id,
            params={name: str(value) for name, value in facts.items()},
            tags=dict(tags),
        )
        about.artifact_path = logged.artifact_location
        about.model_uuid = about.model_id = logged.model_id
        about.save(str(folder / MLMODEL_FILE_NAME))
        files = files_at(store, logged.artifact_location)
        files.log_artifacts(str(folder))  # type: ignore[no-untyped-call]
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return logged.model_id, size


def _save_with_code(
    model: PackedModel, folder: Path, about: Model, example: NDArray[np.uint8]
) -> None:
    """Save a model that this process cannot load, as it would have to run the model's code.

    The files are those of `mlflow.tensorflow.save_model`; but MLflow loads the model by a module
    that is among its code, in the place of `keras.models`.
    """
    about.signature = _signature(example, model)
    with tempfile.TemporaryDirectory() as scratch:
        write_files(Path(scratch), model.code)
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module="mlflow.tensorflow",
            code_paths=[str(Path(scratch, model.package))],
            mlflow_model=about,
            input_example=example,
            pip_requirements=_pinned((*MODEL_REQUIREMENTS, *model.requirements)),
        )
    data, _, name = schema.KERAS_FILE.partition("/")
    files = {name: model.file, "keras_module.txt": model.package.encode(), "save_format.txt": b"tf"}
    write_files(folder / data, files)
    about.flavors["python_function"]["data"] = data
    code = {"code": schema.CODE_FOLDER, "keras_module": model.package}
    about.flavors["keras"] |= code
    about.add_flavor(
        "tensorflow",
        data=data,
        model_type="keras",
        save_format="tf",
        keras_version=version("tensorflow"),
        **code,
    )
    about.model_size_bytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def _pinned(names: Iterable[str]) -> list[str]:
    return [f"{name}=={version(name)}" for name in dict.fromkeys(names)]


def find_models(store: Store, experiment_id: str, run_id: str) -> list[LoggedModel]:
    """Return the logged models of a run."""
    return list(
        store.client.search_logged_models(
            [experiment_id], filter_string=f"source_run_id = '{run_id}'"
        )
    )


def trial_model(store: Store, trial: TrackedRun) -> LoggedModel:
    """Return the logged model of a trial.

    Raises:
        TrackingError: the trial did not finish, or its model was deleted.
    """
    require_finished(trial)
    found = [
        model
        for model in find_models(store, trial.experiment_id, trial.run_id)
        if model.name == schema.MODEL and model.status == LoggedModelStatus.READY
    ]
    if not found:
        raise TrackingError(
            f"The trial {trial.run_id[:8]} has no logged model {schema.MODEL!r}: it was deleted. "
            f"Choose another trial, or train this one again with {setting('fresh=True')}."
        )
    # What somebody has logged for the same run since is not what was trained.
    return min(found, key=lambda model: model.creation_timestamp)


def require_files(store: Store, trial: TrackedRun, model: LoggedModel) -> None:
    """Raise `TrackingError` for a logged model whose file is missing; say where it should be."""
    if not _size(store, model):
        raise TrackingError(
            f"The model of trial {trial.run_id[:8]} has no file {schema.KERAS_FILE} at "
            f"{without_user(model.artifact_location)}: it was removed, or the place is not reached "
            "from here. Choose another trial, or train this one again with "
            f"{setting('fresh=True')}."
        )


def download_model(store: Store, trial: TrackedRun, folder: Path) -> Path:
    """Download the `.keras` file of a trial's logged model to a folder, and return its path.

    The code that it needs, if any, is put beside it; see `code_beside`. Nothing of it is run.

    Only these files are fetched, from the model's own location: to resolve `runs:/<run id>/model`,
    MLflow searches all models of the experiment, and downloads everything that belongs to one.

    Raises:
        TrackingError: the trial did not finish, or its model cannot be downloaded, or is another
            than was logged.
    """
    model = trial_model(store, trial)
    try:
        path = fetch_file(store, model.artifact_location, schema.KERAS_FILE, folder)
        if schema.MODEL_CODE_SHA256 in model.params:
            _fetch_code(store, trial, model, folder)
    except (MlflowException, OSError) as error:
        require_files(store, trial, model)
        why = " ".join(without_user(str(error)).split())
        raise TrackingError(
            f"The model of trial {trial.run_id[:8]} cannot be fetched from the store: {why}"
        ) from None
    _require_as_logged(trial, model, Path(path))
    return Path(path)


def _require_as_logged(trial: TrackedRun, model: LoggedModel, path: Path) -> None:
    logged = model.params.get(schema.MODEL_SHA256)
    if logged is None:
        _log.warning(
            "The model of trial %s was logged by an earlier release, without its SHA-256: whether "
            "its file is still the same cannot be checked.",
            trial.run_id[:8],
        )
        return
    with open_untrusted(path) as file:
        found = sha256(file)
    if found != logged:
        raise TrackingError(
            f"The model file of trial {trial.run_id[:8]} cannot be used; it is not the one that "
            f"was logged: its SHA-256 is {found[:12]}…, expected {logged[:12]}…. Put the right "
            "file back, choose another trial, or train this one again with "
            f"{setting('fresh=True')}."
        )


def _fetch_code(store: Store, trial: TrackedRun, model: LoggedModel, folder: Path) -> None:
    listed, folders = files_at(store, model.artifact_location), [schema.CODE_FOLDER]
    for inside in map(listed.list_artifacts, folders):  # to which are added
        for one in inside:
            parts = Path(one.path).parts
            if len(folders) > _MOST_FOLDERS or parts[:1] != (schema.CODE_FOLDER,) or ".." in parts:
                raise OSError(f"its folder {schema.CODE_FOLDER} is not as it was written")
            if not one.is_dir:
                fetch_file(store, model.artifact_location, one.path, folder)
            elif parts[-1] != "__pycache__":  # which Python leaves where MLflow runs the code
                folders.append(one.path)
    root = folder / schema.CODE_FOLDER
    files = {f.relative_to(root).as_posix(): f.read_bytes() for f in root.rglob("*") if f.is_file()}
    found, logged = digest_of(files), model.params[schema.MODEL_CODE_SHA256]
    if found != logged:
        raise TrackingError(
            f"The code of the model of trial {trial.run_id[:8]} is not run; it is not the one that "
            f"was logged: the SHA-256 of its files is {found[:12]}…, expected {logged[:12]}…. Put "
            "the right files back, choose another trial, or train this one again with "
            f"{setting('fresh=True')}."
        )


def code_beside(file: Path) -> Path | None:
    """Return the package of code that `download_model` has put beside a file, None without."""
    folder = file.parents[schema.KERAS_FILE.count("/")] / schema.CODE_FOLDER
    return next(folder.iterdir(), None) if folder.is_dir() else None


def names_in(code: Path) -> str:
    """Return the names of the classes and functions that a model needs of its code."""
    try:
        places = json.loads((code / schema.OBJECTS_FILE).read_bytes())
        return ", ".join(".".join(map(str, place)) for place in places.values())
    except (OSError, ValueError, TypeError, AttributeError):  # somebody else has written it
        return "it does not say what"


def _size(store: Store, model: LoggedModel) -> int:
    folder, _, _ = schema.KERAS_FILE.rpartition("/")
    files = files_at(store, model.artifact_location).list_artifacts(folder)
    return sum(file.file_size or 0 for file in files if file.path.endswith(schema.KERAS_FILE))


@contextlib.contextmanager
def _without_custom_objects() -> Iterator[None]:
    """Hide the custom Keras objects that other libraries have registered in this process.

    MLflow pickles all of them with a model, though this network uses none, and unpickles them when
    the model is loaded. KerasTuner registers some when it is imported.
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
