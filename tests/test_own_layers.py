"""Networks with layers of their own: logged with their code, which is run where it is trusted."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import LoggedModel
from numpy.typing import NDArray

import fmnist_tracking as ft
import layer_nets
import layer_parts
from conftest import Call
from fmnist_tracking import tracking
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.data import Dataset
from fmnist_tracking.errors import ConfigError, TrackingError
from fmnist_tracking.networks.build import build_model, packed
from fmnist_tracking.networks.models import predict
from fmnist_tracking.networks.source import find_network
from fmnist_tracking.networks.space import explore_grid
from fmnist_tracking.tracking import Store, schema
from fmnist_tracking.tracking.logged_model import log_model
from fmnist_tracking.training.prepare import require_trainable
from servers import model_server, post

LOADS = """
import sys, numpy as np, mlflow
images = np.load("images.npy")
for flavour in ("pyfunc", "tensorflow"):
    for number, folder in enumerate(sys.argv[1:]):
        model = getattr(mlflow, flavour).load_model(folder)
        np.save(f"{flavour}-{number}.npy", model.predict(images))
"""
WORDS = ("--limit", "600", "--epochs", "1", "--workers", "1", "--json")


def copied(folder: Path) -> Path:
    """Copy the networks, so that they can be changed or removed; return their file."""
    folder.mkdir(exist_ok=True)
    shutil.copy(layer_parts.__file__, folder)
    return Path(shutil.copy(layer_nets.__file__, folder / "my-nets.v2.py"))


def loaded_elsewhere(folder: Path, images: NDArray[np.uint8], *models: Path) -> None:
    """Have MLflow load models in another process, where neither this package nor the networks are.

    It writes what each gives for the images.
    """
    folder.mkdir()
    np.save(folder / "images.npy", images)
    not_here = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    env = {k: v for k, v in os.environ.items() if k not in not_here}
    subprocess.run(
        [sys.executable, "-c", LOADS, *map(str, models)], cwd=folder, env=env, check=True
    )


@pytest.mark.slow
def test_mlflow_alone_loads_it_in_another_folder(
    store: Store, dataset: Dataset, tmp_path: Path
) -> None:
    images = dataset.test_images[:20, ..., np.newaxis]
    folders, expected = [], []
    file = copied(tmp_path / "mine")
    experiment = store.experiment_id("models")
    for _ in range(2):
        for name in ("sequential", "functional", "subclassed"):
            network = find_network(f"{file}:{name}")
            model = build_model(TrainingConfig.of(network))
            content = packed(model, model.get_weights(), network)
            run_id = store.client.create_run(experiment).info.run_id
            model_id, size = log_model(
                store, experiment, run_id, content, images[:1], params={}, tags={}, step=1
            )
            logged = store.client.get_logged_model(model_id)
            folders.append(Path(logged.artifact_location.removeprefix("file://")))
            expected.append(predict(model, images))
            assert size == (folders[-1] / schema.KERAS_FILE).stat().st_size
        # Other networks, whose classes and functions have the same names.
        text = file.read_text()
        assert "inputs * self.factor" in text
        file.write_text(text.replace("inputs * self.factor", "inputs * self.factor + 1.0"))
    shutil.rmtree(tmp_path / "mine")
    loaded_elsewhere(tmp_path / "elsewhere", images, *folders)
    for flavour in ("pyfunc", "tensorflow"):
        for number, probabilities in enumerate(expected):
            found = np.load(tmp_path / "elsewhere" / f"{flavour}-{number}.npy")
            np.testing.assert_allclose(found, probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("forgetful", "gives other probabilities once it was saved.* get_config of Bare"),
        ("unsaved", "a class that cannot be saved.* a method get_config"),
        ("lambda_layer", "has a lambda, .* Write it as a layer class in the file"),
        ("lambda_activation", "has a lambda, .* Write it as a layer class in the file"),
        ("local", "has Inner, which is neither Keras's own nor"),
        ("others", "has Other, which is neither Keras's own nor"),
        ("namesake", "an activation of its own that is called relu, as one of Keras's"),
        ("with_files", "cannot be loaded with its code alone: FileNotFoundError"),
    ],
)
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_what_could_not_be_loaded_elsewhere_is_refused_before_it_is_trained(
    name: str, said: str, tmp_path: Path
) -> None:
    file = copied(tmp_path / "mine")
    if name == "with_files":
        (file.parent / "start.txt").write_text("1.0")
        reads = "from pathlib import Path\nPath(__file__).with_name('start.txt').read_text()\n"
        file.write_text(file.read_text().replace("import keras\n", f"import keras\n{reads}", 1))
        name = "sequential"
    with pytest.raises(ConfigError) as error:
        explore_grid(find_network(f"{file}:{name}"), {}, require_trainable=require_trainable)
    assert re.search(said, str(error.value)), error.value
    assert "\n" not in str(error.value)


def the_model(store: Store, run_id: str) -> LoggedModel:
    (model,) = store.client.search_logged_models(
        [store.client.get_run(run_id).info.experiment_id],
        filter_string=f"source_run_id = '{run_id}'",
    )
    return model


def change(code: Path) -> None:
    with (code / "source" / "layer_parts.py").open("a") as file:
        file.write("# Changed.")


def add(code: Path) -> None:
    (code / "source" / "numpy.py").write_text("raise SystemExit('run')")


def remove(code: Path) -> None:
    (code / "source" / "layer_parts.py").unlink()


@pytest.mark.slow
def test_its_code_is_run_where_it_is_trusted_and_as_it_was_logged(
    call: Call, tmp_path: Path, dataset: Dataset
) -> None:
    file = copied(tmp_path / "mine")
    status, out, err = call("search", "--network", f"{file}:sequential", *WORDS)
    assert status == 0, err
    found = json.loads(out)
    assert found["finished"] == 2
    shutil.rmtree(tmp_path / "mine")  # nothing below needs it
    run_id, images = found["best"]["run_id"], dataset.test_images[:20, ..., np.newaxis]

    sample = str(tmp_path / "sample.png")
    commands = [
        ("report", "--run-id", "latest"),
        ("activations", "--run-id", "latest", "--layer", "scale"),
        ("predictions", "--run-id", "latest"),
        ("predict", "--run-id", "best", sample),
    ]
    trial = ft.load_trial("best")
    for command in commands[:3]:
        status, _, err = call(*command)
        line = err.splitlines()[-1]
        assert status == 1
        assert f"The model of trial {run_id[:8]} needs code" in line
        assert {"my-nets_v2.Scale", "my-nets_v2.Shift", "layer_parts.swish_twice"} == set(
            re.findall(r"[\w-]+\.(?:Scale|Shift|swish_twice)", line)
        )
        assert "Give --trust-code if you trust all who can" in line
    with pytest.raises(TrackingError, match=r"Give trust_code=True"):
        trial.load_model()
    with tracking.open_store() as store:
        assert schema.TEST_OPENED not in store.client.get_run(run_id).data.tags

    for command in commands[:3]:
        status, out, err = call(*command, "--trust-code", "--json")
        assert status == 0, err
    shutil.copy(Path("reports", found["run_id"][:8], "sample.png"), sample)
    page = Path("reports", found["run_id"][:8], "index.html").read_text()
    assert "--trust-code" in page
    assert call(*commands[3])[0] == 1
    assert call(*commands[3], "--trust-code")[0] == 0
    model = trial.load_model(trust_code=True)
    expected = predict(model, images)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-6)

    with tracking.open_store() as store:
        logged = the_model(store, run_id)
    folder = Path(logged.artifact_location.removeprefix("file://"))
    loaded_elsewhere(tmp_path / "elsewhere", images, folder)
    for flavour in ("pyfunc", "tensorflow"):
        probabilities = np.load(tmp_path / "elsewhere" / f"{flavour}-0.npy")
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    # Python has left compiled files in the store meanwhile; they are not used.
    (code,) = (folder / schema.CODE_FOLDER).glob("network_code_*")
    assert list(code.rglob("__pycache__"))
    np.testing.assert_array_equal(
        predict(ft.load_trial("best").load_model(trust_code=True), images), expected
    )

    shutil.copytree(code, tmp_path / "kept")
    for damage in (change, add, remove):
        damage(code)
        for command in (commands[0], commands[3]):
            status, _, err = call(*command, "--trust-code")
            assert status == 1
            assert "is not run; it is not the one that was logged" in err.splitlines()[-1]
        status, _, err = call("promote", "--run-id", "best")
        assert (status, "is not the one that was logged" in err) == (1, True)
        shutil.rmtree(code)
        shutil.copytree(tmp_path / "kept", code)
    assert call("promote", "--run-id", "best")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        (f"{layer_nets.__file__}:sequential", "--axis", "start=0.5"),
        (
            "fmnist_tracking.networks.three_blocks:build",
            *("--axis", "block=separable; depth_multiplier=2; filters=2; dropout=0.0"),
        ),
    ],
    ids=["own layers", "conditional hyperparameters"],
)
def test_a_network_of_one_s_own_is_served(
    words: tuple[str, ...], call: Call, tmp_path: Path, dataset: Dataset
) -> None:
    status, _, err = call("search", "--network", *words, *WORDS)
    assert status == 0, err
    status, _, err = call("promote", "--run-id", "best")
    assert status == 0, err
    (hint,) = (line for line in err.splitlines() if line.startswith("Next"))
    images = dataset.test_images[:10, ..., np.newaxis]
    trial = ft.load_trial("champion")
    is_own = "layer_nets" in words[0]
    expected = predict(trial.load_model(trust_code=is_own), images)
    with tracking.open_store() as store:
        logged = the_model(store, trial.run_id)
    folder = Path(logged.artifact_location.removeprefix("file://"))
    assert (folder / schema.CODE_FOLDER).exists() == is_own
    assert (schema.MODEL_CODE_SHA256 in logged.params) == is_own
    with model_server(hint, tmp_path) as address:
        answer = np.array(post(address, {"inputs": images.tolist()})["predictions"])
    np.testing.assert_allclose(answer, expected, atol=1e-5)
