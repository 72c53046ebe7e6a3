"""Searches of networks of one's own: real processes, real signals, the real images."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from sklearn.datasets import load_digits

import layer_nets
import nets
from conftest import Call
from data_sets import noise, write_idx, write_npz
from fmnist_tracking import tracking
from fmnist_tracking.tracking import open_store
from fmnist_tracking.tracking.resume import EPOCH_METRICS
from processes import workers_of
from searches import Place, finish, weights

EPOCHS = 5
COMMON = ("--limit", "1200", "--epochs", str(EPOCHS), "--workers", "2", "--json")
PACKAGE = "fmnist_tracking.networks"
SEARCHES = {
    "coursework": (
        *("--filters", "4", "--kernel-sizes", "3", "--hidden-units", "8"),
        *("--axis", "dropout=0.1,0.4"),
    ),
    # Batch normalisation, two optimizers.
    f"{PACKAGE}.coursework_plus:build": (
        *("--filters", "4", "--hidden-units", "8", "--axis", "padding=same", "--axis"),
        *("activation=gelu; optimizer=adam,sgd; batch_normalization=true,false",),
    ),
    # Batch normalisation, a schedule of the learning rate, a conditional hyperparameter.
    f"{PACKAGE}.three_blocks:build": ("--filters", "2", "--axis", "dropout=0.2"),
    # Layers of its own, with a state.
    f"{layer_nets.__file__}:sequential": (),
}
POINTS = (4, 4, 3, 2)


def begun(place: Place, words: tuple[str, ...]) -> "subprocess.Popen[str]":
    return place.start(words=("search", *words, *COMMON))


def came_out(place: Place, points: int) -> dict[str, Any]:
    """Check that every point is there once, and return what came out of each."""
    with open_store(place.uri) as store:
        client = store.client
        (experiment,) = client.search_experiments(filter_string="name = 'fashion-mnist'")
        runs = client.search_runs([experiment.experiment_id])
        trials = [run for run in runs if run.data.tags["fmnist.role"] == "trial"]
        assert {run.info.status for run in runs} == {"FINISHED"}
        found = {
            run.data.tags["fmnist.point"]: (
                {name: _history(client, run.info.run_id, name) for name in EPOCH_METRICS[:4]},
                [w.tobytes() for w in weights(client, run, experiment.experiment_id)],
            )
            for run in trials
        }
    assert len(found) == len(trials) == points
    return found


def _history(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    history = sorted((m.step, m.value) for m in client.get_metric_history(run_id, name))
    assert [step for step, _ in history] == list(range(1, EPOCHS + 1))  # none missing or doubled
    return history


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "points"),
    [*zip(SEARCHES, POINTS, strict=True)],
    ids=["coursework", "coursework_plus", "three_blocks", "own layers"],
)
def test_killed_driver_and_worker_change_no_bit(
    network: str, points: int, tmp_path: Path, cache: Path
) -> None:
    words = ("--network", network, *SEARCHES[network])
    calm = Place(tmp_path / "calm", cache)
    assert finish(begun(calm, words), calm)["finished"] == points
    place = Place(tmp_path / "disturbed", cache)
    process = begun(place, words)
    place.wait_until_said(f"epoch 2/{EPOCHS}", 1, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process = begun(place, words)
    place.wait_until_said(f"epoch 4/{EPOCHS}", 1, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    result = finish(process, place)
    assert (result["finished"], result["failed"], result["grid_points"]) == (points, 0, points)
    assert came_out(place, points) == came_out(calm, points)


def search(call: Call, *words: str) -> tuple[int, Any, str]:
    status, out, err = call("search", "--limit", "600", "--epochs", "1", "--json", *words)
    return status, json.loads(out) if out else None, err


def test_a_network_of_one_s_own_can_do_all_that_the_coursework_s_can(
    call: Call, tmp_path: Path
) -> None:
    shutil.copy(nets.__file__, "mine.py")
    words = ("--network", "mine.py:conditional", "--axis", "model_type=cnn; cnn_filters=2")
    status, found, err = search(call, *words, "--axis", "batch_size=16,32;optimizer=sgd")
    assert status == 0, err
    # Two batch sizes, with and without batch normalisation, three momenta.
    assert found["finished"] == found["grid_points"] == 2 * 2 * 3
    params = found["trials"][0]["params"]
    assert params == {
        **{"model_type": "cnn", "cnn_filters": 2, "cnn_norm": True, "optimizer": "sgd"},
        **{"momentum": 0.0, "batch_size": 16, "epochs": 1, "seed": 0, "patience": 0},
    }
    assert found["trials"][0]["name"] == "cnn_norm=True momentum=0 batch_size=16"
    # One value more: the points that are the same are reused.
    status, more, err = search(call, *words, "--axis", "batch_size=16,32,64;optimizer=sgd")
    assert (more["reused"], more["finished"]) == (12, 18)
    # A comment changes nothing; another line does.
    source = Path("mine.py").read_text()
    Path("mine.py").write_text(f"# My networks.\n{source}")
    status, plan, err = search(call, *words, "--axis", "batch_size=16;optimizer=sgd", "--dry-run")
    assert status == 0, err
    assert {point["state"] for point in plan["points"]} == {"finished"}
    Path("mine.py").write_text(source.replace('padding="same"', 'padding="valid"'))
    status, plan, err = search(call, *words, "--axis", "batch_size=16;optimizer=sgd", "--dry-run")
    assert status == 0, err
    assert {point["state"] for point in plan["points"]} == {"new"}
    Path("mine.py").unlink()  # nothing below needs it
    best = more["best"]
    assert call("best")[0] == 0
    status, out, _ = call("report", "--run-id", "latest", "--json")
    assert status == 0
    report = json.loads(out)
    assert report["trial_run_id"] == best["run_id"]
    assert {"grid.png", "activations.png"} <= {Path(file).name for file in report["files"]}
    page = Path("reports", more["run_id"][:8], "index.html").read_text()
    assert "cnn_norm" in page
    sample = f"reports/{more['run_id'][:8]}/sample.png"
    status, out, _ = call("predict", "--run-id", "best", "--json", sample)
    assert (status, len(json.loads(out)["pictures"])) == (0, 1)
    assert call("promote", "--run-id", "best")[0] == 0
    status, out, _ = call("runs")
    assert "mine.py:conditional" in out


def test_points_that_cannot_be_built(call: Call) -> None:
    words = ("--network", f"{nets.__file__}:sometimes")
    status, _, err = search(call, *words)
    assert status == 2
    assert "1 of 3 points of nets.py:sometimes cannot be built. The first: size=40: " in err
    assert "--skip-impossible" in err
    status, plan, _ = search(call, *words, "--dry-run")
    assert [point["state"] for point in plan["points"]] == ["new", "new", "refused"]
    status, found, err = search(call, *words, "--skip-impossible")
    assert (status, found["finished"], found["grid_points"]) == (0, 2, 2)
    assert "Left out, as it cannot be built: size=40" in err
    coursework = ("--filters", "4", "--strides", "2", "--kernel-sizes", "3,29")
    status, _, err = search(call, *coursework)
    assert (status, "leaves nothing for layer conv1" in err) == (2, True)
    status, found, err = search(call, *coursework, "--skip-impossible")
    assert (status, found["finished"], found["grid_points"]) == (0, 1, 1)
    status, again, err = search(call, *coursework, "--skip-impossible")
    assert again["run_id"] == found["run_id"]


def test_a_copy_of_the_coursework_s_network_is_trained_as_fast(call: Call, tmp_path: Path) -> None:
    from fmnist_tracking.networks import coursework

    shutil.copy(coursework.__file__, "copy_of_it.py")
    small = ("--filters", "4", "--strides", "2", "--kernel-sizes", "3", "--hidden-units", "8")
    _, own, _ = search(call, "--network", "copy_of_it.py:build", *small)
    _, ours, _ = search(call, *small)
    with tracking.open_store() as store:
        found = [
            tracking.read_history(store, tracking.find_run(store, one["best"]["run_id"]))
            for one in (own, ours)
        ]
    assert found[0].best.val_loss == found[1].best.val_loss
    assert found[0].summary()["flops_per_image"] == found[1].summary()["flops_per_image"]


def digits(folder: Path) -> Path:
    """Write the 1,797 images of handwritten digits that scikit-learn has, 8x8 pixels of 0 to 16.

    They are the test part of E. Alpaydin and C. Kaynak's "Optical Recognition of Handwritten
    Digits", UCI Machine Learning Repository, 1998.
    """
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * 15.9375).astype(np.uint8)
    arrays = {"x_train": pixels[:1500], "y_train": labels[:1500]}
    arrays |= {"x_test": pixels[1500:], "y_test": labels[1500:]}
    return write_npz(folder / "digits.npz", arrays)


def letters(folder: Path) -> Path:
    """Write 47 classes in torchvision's layout, with their names beside them."""
    write_idx(folder / "EMNIST" / "raw", noise(2000, 300, (28, 28), 47))
    names = "\n".join(f"letter {n}" for n in range(47))
    (folder / "EMNIST" / "raw" / "class_names.txt").write_text(names)
    return folder / "EMNIST"


def colours(folder: Path) -> Path:
    """Write 32x32 images in colour, as Keras keeps its data sets."""
    return write_npz(folder / "cifar.npz", noise(1000, 200, (32, 32, 3), 3).arrays())


OTHERS: dict[Callable[[Path], Path], Any] = {
    digits: ((8, 8, 1), 10, ("--filters", "8", "--kernel-sizes", "2", "--epochs", "30")),
    letters: ((28, 28, 1), 47, ("--filters", "2,3", "--kernel-sizes", "3", "--epochs", "1")),
    colours: ((32, 32, 3), 3, ("--filters", "2", "--kernel-sizes", "3,5", "--epochs", "1")),
}


@pytest.mark.parametrize("make", OTHERS, ids=lambda make: make.__name__)
def test_any_data_is_searched_reported_and_predicted(
    make: Callable[[Path], Path], call: Call, tmp_path: Path
) -> None:
    shape, classes, words = OTHERS[make]
    data = str(make(tmp_path / "data"))
    small = ("--strides", "1", "--hidden-units", "16", "--data-dir", data, "--json")
    status, out, err = call("search", *words, *small)
    assert status == 0, err
    found = json.loads(out)
    assert found["finished"] == found["grid_points"]
    status, out, err = call("report", "--run-id", "latest", "--data-dir", data, "--json")
    assert status == 0, err
    report = json.loads(out)
    names = {Path(file).name for file in report["files"]}
    assert {"activations.png", "confusion_matrix.png", "sample.png"} <= names
    if make is digits:
        assert report["test_accuracy"] > 0.6
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((40, 50, 3), (200, 10, 10), np.uint8)).save(picture)
    status, out, err = call(
        "predict", "--run-id", "best", "--json", "--output-dir", "seen", str(picture)
    )
    assert status == 0, err
    (answer,) = json.loads(out)["pictures"]
    assert len(answer["top"]) == 3
    if make is letters:
        assert answer["class"].startswith("letter ")
        # What is mirrored tells something of shoes alone.
        heading = call("predict", "--run-id", "best", str(picture))[1].splitlines()[0]
        assert heading.split() == ["picture", "class", "second", "third"]
    with Image.open(next(Path("seen").iterdir())) as seen:
        assert seen.size == (shape[1], shape[0])
    with tracking.open_store() as store:
        trial = tracking.read_trial(tracking.find_run(store, found["best"]["run_id"]))
    assert (trial.config.network.image_shape, trial.config.network.classes) == (shape, classes)
    status, out, err = call("search", *words, *small)
    assert json.loads(out)["run_id"] == found["run_id"]
