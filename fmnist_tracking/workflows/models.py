"""A trial's model, made ready to be asked."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_tracking import runtime
from fmnist_tracking.errors import TrackingError

if TYPE_CHECKING:
    from fmnist_tracking.tracking import TrackedRun


def fetch_model(trial: "TrackedRun") -> Any:
    """Fetch a trial's model from the store and load it; this loads TensorFlow.

    Raises:
        TrackingError: the trial has no model.
    """
    from fmnist_tracking import tracking

    with tempfile.TemporaryDirectory() as scratch:
        path = tracking.download_model(trial, Path(scratch))
        runtime.load_tensorflow()
        from fmnist_tracking.model import load_model

        return load_model(path)


def ask_model(model: Any, trial: "TrackedRun", images: Any) -> Any:
    """Class probabilities, float32 (n, 10), of raw images, uint8 (n, 28, 28, 1).

    Raises:
        TrackingError: the model gives no numbers.
    """
    from fmnist_tracking.model import predict

    probabilities = predict(model, images)
    if not np.isfinite(probabilities).all():
        raise TrackingError(
            f"The model of trial {trial.run_id[:8]} gives no numbers (NaN): its training "
            "diverged. Choose another trial, and train with a smaller learning rate."
        )
    return probabilities
