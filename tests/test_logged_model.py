"""A logged model, opened by others: plain Keras of several versions, and MLflow's flavours."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import SMALL
from fmnist_tracking.data import Dataset
from fmnist_tracking.networks.build import build_model
from fmnist_tracking.networks.models import predict
from fmnist_tracking.tracking import Store, schema
from fmnist_tracking.tracking.logged_model import MODEL_REQUIREMENTS, log_model
from models import with_weights

ROOT = Path(__file__).parent.parent
# Kept for next time; each takes some seconds and 0.7 GB.
ENVIRONMENTS = ROOT / ".venv-keras"
OLDEST, NEWEST = "keras==3.5.0", "keras>=3.15"

LOADS = """
import sys, numpy as np, keras
images = np.load(sys.argv[2])
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(images, verbose=0))
"""
LOADS_BY_MLFLOW = """
import sys, numpy as np, mlflow.{flavour}
model = mlflow.{flavour}.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2])))
"""


class Logged:
    """A model as it lies in a store, some images, and what the model makes of them."""

    def __init__(self, folder: Path, images: NDArray[np.uint8], expected: NDArray[np.float32]):
        self.folder, self.images, self.expected = folder, images, expected


@pytest.fixture
def logged(store: Store, dataset: Dataset) -> Logged:
    images = dataset.test_images[:20, ..., np.newaxis]
    experiment = store.experiment_id("models")
    run_id = store.client.create_run(experiment).info.run_id
    model = with_weights(SMALL, build_model(SMALL).get_weights())
    model_id, _ = log_model(
        store, experiment, run_id, model, images[:1], params={}, tags={}, step=1
    )
    location = store.client.get_logged_model(model_id).artifact_location
    return Logged(Path(location.removeprefix("file://")), images, predict(model, images))


@pytest.mark.parametrize("flavour", ["pyfunc", "tensorflow", "keras"])
def test_every_flavour_of_mlflow_opens_it(logged: Logged, flavour: str) -> None:
    loaded = getattr(mlflow, flavour).load_model(str(logged.folder))
    np.testing.assert_allclose(loaded.predict(logged.images), logged.expected, atol=1e-6)


def in_fresh_environment(name: str, *requirements: str) -> Path:
    """The Python of an environment that holds these alone, made if it is not there."""
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that run tests at once share it
        return _install(ENVIRONMENTS / name, requirements)


def _install(folder: Path, requirements: tuple[str, ...]) -> Path:
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join(requirements)
    if done.exists() and done.read_text() == wanted:
        return python
    uv = (sys.executable, "-m", "uv")
    subprocess.run(
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True
    )
    installed = subprocess.run(
        [*uv, "pip", "install", "--quiet", "--python", python, *requirements],
        capture_output=True,
        text=True,
    )
    if installed.returncode != 0:
        unreachable = "error sending request" in installed.stderr.lower()
        if unreachable and not os.environ.get("CI"):
            pytest.skip(f"no package index answers, so {folder.name} cannot be installed")
        pytest.fail(installed.stderr)
    done.write_text(wanted)
    return python


def run_elsewhere(python: Path, code: str, logged: Logged, path: Path, backend: str) -> None:
    """Have the model asked where this package is not, and compare what it gives."""
    np.save("images.npy", logged.images)
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "KERAS_BACKEND")}
    subprocess.run(
        [python, "-c", code, path, "images.npy", "found.npy"],
        env={**clean, "KERAS_BACKEND": backend},
        check=True,
        timeout=300,
    )
    np.testing.assert_allclose(np.load("found.npy"), logged.expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "numpy"])
@pytest.mark.parametrize("keras", [OLDEST, NEWEST])
def test_plain_keras_opens_it_without_tensorflow(logged: Logged, keras: str, backend: str) -> None:
    # Keras's NumPy backend asks JAX for its convolutions.
    python = in_fresh_environment("oldest" if keras == OLDEST else "newest", keras, "numpy", "jax")
    run_elsewhere(python, LOADS, logged, logged.folder / schema.KERAS_FILE, backend)


@pytest.mark.slow
def test_its_requirements_are_all_that_it_needs(logged: Logged) -> None:
    requirements = (logged.folder / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == list(MODEL_REQUIREMENTS)
    python = in_fresh_environment("requirements", *requirements)
    for flavour in ("pyfunc", "tensorflow", "keras"):
        run_elsewhere(
            python, LOADS_BY_MLFLOW.format(flavour=flavour), logged, logged.folder, "tensorflow"
        )
