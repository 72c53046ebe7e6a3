"""From a search to a service: searched, promoted, served by MLflow, asked over HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from conftest import Run
from fmnist_tracking import tracking
from fmnist_tracking.config import CLASS_NAMES
from fmnist_tracking.data import Dataset, test_set
from fmnist_tracking.networks.models import load_model, predict
from fmnist_tracking.split_config import SplitConfig
from servers import free_port, model_server, post, serving

SEARCH = ("search", "--limit", "1200", "--epochs", "2", "--filters", "8", "--strides", "1,2",
          "--kernel-sizes", "3", "--json")  # fmt: skip
SPLIT = SplitConfig(limit=1200)


@pytest.fixture(params=["SQLite", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store: a file, or an MLflow server that keeps the artifacts too."""
    home = tmp_path / "home"
    home.mkdir()
    file = f"sqlite:///{home}/mlflow.db"
    if request.param == "SQLite":
        yield file
        return
    port = free_port()
    with serving(port, home, "mlflow", "server", "--backend-store-uri", file):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.slow
def test_the_champion_answers_as_the_model_does(
    uri: str, called: Run, tmp_path: Path, dataset: Dataset
) -> None:
    searched = called(*SEARCH, MLFLOW_TRACKING_URI=uri)
    assert searched.returncode == 0, searched.stderr
    best, other = sorted(
        json.loads(searched.stdout)["trials"], key=lambda t: t["val_accuracy"], reverse=True
    )

    promoted = called("promote", "--run-id", "latest", "--json", "--tracking-uri", uri)
    assert promoted.returncode == 0, promoted.stderr
    assert json.loads(promoted.stdout)["run_id"] == best["run_id"]
    worse = called("promote", "--run-id", other["run_id"], MLFLOW_TRACKING_URI=uri)
    assert worse.returncode == 1
    assert "is worse than the champion, fashion-mnist version 1" in worse.stderr
    assert worse.stderr.count("\n") == 1
    for _ in range(2):
        again = called("promote", "--run-id", best["run_id"], MLFLOW_TRACKING_URI=uri)
        assert again.returncode == 0, again.stderr
        assert "It is the champion already" in again.stderr
    forced = called("promote", "--run-id", other["run_id"], "--force", MLFLOW_TRACKING_URI=uri)
    assert f"version 2: validation accuracy {other['val_accuracy']:.4f}" in forced.stdout
    back = called("promote", "--run-id", "best", "--tracking-uri", uri)
    assert "that version is used" in back.stderr
    assert back.stdout.startswith("champion: fashion-mnist version 1: ")

    images = test_set(dataset, SPLIT).images[:10]
    with tracking.open_store(uri) as store:
        version = store.client.get_model_version_by_alias("fashion-mnist", "champion")
        logged = store.client.get_logged_model(str(version.source).removeprefix("models:/"))
        assert logged.source_run_id == best["run_id"]
        links = json.loads(logged.tags["mlflow.modelVersions"])
        assert [(link["name"], str(link["version"])) for link in links] == [("fashion-mnist", "1")]
        trial = tracking.find_run(store, best["run_id"])
        model = load_model(tracking.download_model(store, trial, tmp_path / "model"))
        expected = predict(model, images)
        loaded = mlflow.pyfunc.load_model("models:/fashion-mnist@champion")
        np.testing.assert_allclose(loaded.predict(images), expected, atol=1e-5)
    (hint,) = (line for line in back.stderr.splitlines() if line.startswith("Next"))
    with model_server(hint, tmp_path) as address:
        answer = np.array(post(address, {"inputs": images.tolist()})["predictions"])
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert answer.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()

    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number}.png")
    files = [f"{number}.png" for number in range(len(images))]
    asked = called("predict", "--run-id", "best", *files, "--json", MLFLOW_TRACKING_URI=uri)
    assert asked.returncode == 0, asked.stderr
    classes = [picture["class"] for picture in json.loads(asked.stdout)["pictures"]]
    assert classes == [CLASS_NAMES[label] for label in expected.argmax(axis=1)]
