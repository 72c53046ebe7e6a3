"""Checkpoints: the state of a training after an epoch, in a file, to resume it from."""

import dataclasses
import hashlib
import io
import json
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs
from numpy.typing import NDArray

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.errors import first_line
from fmnist_tracking.files import (
    PRIVATE_FILE,
    open_untrusted,
    private_folder,
    require_harmless_zip,
    sha256,
    write_file,
)
from fmnist_tracking.network import weight_shapes
from fmnist_tracking.results import EpochMetrics
from fmnist_tracking.runtime import STATE_VARIABLE

_FILE = "checkpoint"
# So many values for each weight are the most that an optimizer keeps, with the weight and the best.
_MOST_VALUES = 8
_LINE = 65  # bytes: a digest in hex, and the end of its line
# More than a checkpoint holds beside its numbers: once, and for each epoch.
_ABOUT_BYTES, _EPOCH_BYTES = 10**6, 10_000
_MOMENTS = 2  # of each weight, Adam's
_LARGEST = 10**10
# What reading a damaged file may raise.
_DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, MemoryError),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointPlace:
    """Where a training saves its checkpoint, and which training it is."""

    folder: Path  # created if it does not exist
    fingerprint: str  # a checkpoint of any other training is ignored


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a training needs to resume exactly as if it had never stopped."""

    fingerprint: str  # of what is trained; see `fmnist_tracking.fingerprint`
    epochs: tuple[EpochMetrics, ...]  # so far
    fit_seconds: float  # wall-clock seconds of training alone, validation excluded
    # `step.Step.variables`, such as weights, an optimizer's moments and its step count; each in its
    # own shape and dtype.
    variables: tuple[NDArray[np.generic], ...]
    best_weights: tuple[NDArray[Any], ...]  # the model's, after the best epoch so far
    best_predicted: NDArray[np.uint8]  # what they take the validation images for, shape (m,)
    compiled: bool = False  # whether XLA compiled the training step

    def fits(self, variables: Iterable[Any], model: Any) -> bool:
        """Return whether it holds a value for each variable of a training and its Keras model."""
        weights = [(tuple(w.shape), str(w.dtype)) for w in model.weights]
        return _kinds(self.best_weights) == weights and _kinds(self.variables) == [
            (tuple(v.shape), v.dtype.name) for v in variables
        ]


def state_dir() -> Path:
    """Return the user's folder for unfinished searches; FMNIST_STATE_DIR overrides the default."""
    named = os.environ.get(STATE_VARIABLE)
    return Path(named) if named else platformdirs.user_state_path("fmnist-tracking")


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Replace the folder's checkpoint, completely or not at all.

    The file begins with the SHA-256 of the rest, a NumPy archive.

    Raises:
        OSError: the checkpoint cannot be written; the previous one is still there.
    """
    about = {
        "fingerprint": checkpoint.fingerprint,
        "epochs": [dataclasses.asdict(epoch) for epoch in checkpoint.epochs],
        "fit_seconds": checkpoint.fit_seconds,
        "compiled": checkpoint.compiled,
    }
    arrays = {f"variable{i}": array for i, array in enumerate(checkpoint.variables)}
    arrays |= {f"best{i}": array for i, array in enumerate(checkpoint.best_weights)}
    arrays["predicted"] = checkpoint.best_predicted
    content = io.BytesIO()
    np.savez(content, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
    private_folder(folder)
    with content.getbuffer() as written:
        digest = f"{hashlib.sha256(written).hexdigest()}\n".encode()
        write_file(folder / _FILE, digest, written, mode=PRIVATE_FILE)


def load(
    folder: Path, fingerprint: str, config: TrainingConfig, validation_images: int
) -> Checkpoint | None:
    """Load the folder's checkpoint; return None if it is missing, damaged or another training's."""
    most = _most_bytes(config, validation_images)
    try:
        with open_untrusted(folder / _FILE, most) as file:
            digest = file.readline(_LINE).decode().rstrip("\n")
            if sha256(file) != digest:
                raise ValueError("it has changed since it was written")
            checkpoint = _read(file)
            _require_fits(checkpoint, fingerprint, config, validation_images)
            return checkpoint
    except (FileNotFoundError, NotADirectoryError):
        return None
    except _DAMAGED as error:
        why = getattr(error, "strerror", None) or first_line(error)
        _log.warning("The checkpoint in %s is not used: %s.", folder, why)
        return None


def _read(file: BinaryIO) -> Checkpoint:
    require_harmless_zip(file)
    with np.load(file, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        return Checkpoint(
            fingerprint=about["fingerprint"],
            epochs=tuple(EpochMetrics(**epoch) for epoch in about["epochs"]),
            fit_seconds=about["fit_seconds"],
            compiled=about["compiled"],
            variables=_numbered(arrays, "variable"),
            best_weights=_numbered(arrays, "best"),
            best_predicted=arrays["predicted"],
        )


def _most_bytes(config: TrainingConfig, validation_images: int) -> int:
    """Return the size in bytes that a checkpoint cannot exceed."""
    if config.size is None:
        return _LARGEST
    weights = _MOST_VALUES * 8 * config.size.parameters
    return weights + validation_images + _ABOUT_BYTES + _EPOCH_BYTES * config.epochs


def _require_fits(
    checkpoint: Checkpoint, fingerprint: str, config: TrainingConfig, validation_images: int
) -> None:
    """Raise `ValueError` if a checkpoint cannot be one of this training."""
    variables, best = _kinds(checkpoint.variables), _kinds(checkpoint.best_weights)
    if config.network.is_coursework:  # of another network, `fits` says it once that is built
        weights = [(shape, "float32") for shape in weight_shapes(config.values, config.network)]
        moments = [weight for weight in weights for _ in range(_MOMENTS)]
        has_shapes = variables == [*weights, *moments, ((), "int64")] and best == weights
    else:
        has_shapes = bool(variables and best)
    wrong = {
        "variables": not has_shapes,
        "fingerprint": checkpoint.fingerprint != fingerprint,
        "number of epochs": not 1 <= len(checkpoint.epochs) <= config.epochs
        or [epoch.epoch for epoch in checkpoint.epochs] != [*range(1, len(checkpoint.epochs) + 1)],
        "figures": not all(_can_be(epoch, validation_images) for epoch in checkpoint.epochs)
        or not 0 < checkpoint.fit_seconds < 1e9,
        "predictions": _kinds([checkpoint.best_predicted]) != [((validation_images,), "uint8")]
        or (checkpoint.best_predicted >= config.network.classes).any(),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"its {what} cannot be those of this training")


def _can_be(epoch: EpochMetrics, validation_images: int) -> bool:
    """Return whether figures can be those of an epoch; the losses of one that diverged are NaN."""
    values = (*epoch.metrics().values(), epoch.ended_at)
    validated = [value for value in (epoch.val_loss, epoch.val_accuracy) if value is not None]
    return (
        all(isinstance(value, int | float) for value in values)
        and len(validated) == (2 if validation_images else 0)
        and all(0 <= value <= 1 for value in (epoch.accuracy, *validated[1:]))
        and 0 <= epoch.epoch_seconds < 1e9
        and 0 <= epoch.ended_at < 2**53
    )


def _kinds(arrays: Iterable[NDArray[np.generic]]) -> list[tuple[tuple[int, ...], str]]:
    return [(array.shape, array.dtype.name) for array in arrays]


def _numbered(arrays: "np.lib.npyio.NpzFile", name: str) -> tuple[NDArray[Any], ...]:
    count = sum(key.startswith(name) for key in arrays.files)
    return tuple(arrays[f"{name}{i}"] for i in range(count))


def remove(folder: Path) -> None:
    """Remove a training's folder, if it exists."""
    shutil.rmtree(folder, ignore_errors=True)
