"""Checkpoints: the state of a training after an epoch, in a file, to resume it from."""

import dataclasses
import io
import json
import os
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from fmnist_tracking.results import EpochMetrics
from fmnist_tracking.runtime import STATE_VARIABLE

_FILE = "checkpoint.npz"
# What reading a damaged file may raise.
_DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a training needs to resume exactly as if it had never stopped."""

    fingerprint: str  # of what is trained; see `fmnist_tracking.fingerprint`
    epochs: tuple[EpochMetrics, ...]  # so far
    fit_seconds: float  # wall-clock seconds of training alone, validation excluded
    # `coursework_step.TrainingStep.variables`: weights, Adam's moments and its step count; each in
    # its own shape and dtype.
    variables: tuple[NDArray[np.generic], ...]
    best_weights: tuple[NDArray[np.float32], ...]  # the model's, after the best epoch so far
    best_predicted: NDArray[np.uint8]  # what they take the validation images for, shape (m,)
    compiled: bool = False  # whether XLA compiled the training step


def state_dir() -> Path:
    """Return the user's folder for unfinished searches; FMNIST_STATE_DIR overrides the default."""
    named = os.environ.get(STATE_VARIABLE)
    return Path(named) if named else platformdirs.user_state_path("fmnist-tracking")


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Replace the folder's checkpoint, completely or not at all.

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
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{_FILE}.{os.getpid()}.new"
    try:
        with new.open("wb") as file, content.getbuffer() as written:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
        new.replace(folder / _FILE)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def load(folder: Path, fingerprint: str) -> Checkpoint | None:
    """Load the folder's checkpoint; return None if it is missing, damaged or another training's."""
    try:
        with (
            (folder / _FILE).open("rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            about = json.loads(str(arrays["about"]))
            checkpoint = Checkpoint(
                fingerprint=about["fingerprint"],
                epochs=tuple(EpochMetrics(**epoch) for epoch in about["epochs"]),
                fit_seconds=about["fit_seconds"],
                compiled=about["compiled"],
                variables=_numbered(arrays, "variable"),
                best_weights=_numbered(arrays, "best"),
                best_predicted=arrays["predicted"],
            )
    except _DAMAGED:
        return None
    return checkpoint if checkpoint.fingerprint == fingerprint else None


def _numbered(arrays: "np.lib.npyio.NpzFile", name: str) -> tuple[NDArray[Any], ...]:
    count = sum(key.startswith(name) for key in arrays.files)
    return tuple(arrays[f"{name}{i}"] for i in range(count))


def remove(folder: Path) -> None:
    """Remove a training's folder, if it exists."""
    shutil.rmtree(folder, ignore_errors=True)
