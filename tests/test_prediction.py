"""A person's pictures, by a model that was really trained and kept."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import SMALL
from fmnist_tracking import tracking
from fmnist_tracking.config import CLASS_NAMES, SplitConfig, TrainingConfig
from fmnist_tracking.data import Dataset, split_dataset
from fmnist_tracking.errors import OutputError, TrackingError
from fmnist_tracking.model import build_model, with_weights
from fmnist_tracking.model import predict as probabilities_of
from fmnist_tracking.pictures import prepare, prepare_image
from fmnist_tracking.tracking import DataFacts
from fmnist_tracking.training import train
from fmnist_tracking.workflows.prediction import Prediction, predict
from test_cli import Call, call
from test_results import training
from test_tracking import TRIAL

__all__ = ["call"]
CONFIG = TrainingConfig(filters=16, hidden_units=32, epochs=4)


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> Any:
    """Trained on 5,000 images, which is enough to be right four times of five."""
    _, weights = train(CONFIG, split_dataset(dataset, SplitConfig(limit=6000)))
    return with_weights(CONFIG, weights)


class Kept:
    """A store with trials that have a model."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"
        with tracking.open_store(self.uri, create=True) as store:
            self._experiment = store.client.create_experiment("kept", str(folder / "artifacts"))

    def keep(self, model: Any, config: TrainingConfig, sha256: str) -> str:
        data = DataFacts(sha256=sha256, name="some data", source="somewhere")
        facts = dataclasses.replace(TRIAL, config=config, data=data)
        example = np.zeros((1, 28, 28, 1), np.uint8)
        with tracking.open_store(self.uri) as store:
            run_id = tracking.start_trial(store, self._experiment, facts)
            tracking.finish_trial(
                store, self._experiment, run_id, facts, training(0.8), model, example, b"png"
            )
        return run_id


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def run_id(kept: Kept, model: Any, dataset: Dataset) -> str:
    return kept.keep(model, CONFIG, dataset.digest)


@pytest.fixture
def ask(kept: Kept, run_id: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Prediction]:
    monkeypatch.setenv("FMNIST_DATA_DIR", "/nowhere")  # predict does without the data

    def asked(*paths: Path, run_id: str = run_id, **options: Any) -> Prediction:
        return predict(run_id, paths, tracking_uri=kept.uri, **options)

    return asked


def test_an_image_of_the_data_set_as_a_file_is_predicted_as_the_array_is(
    ask: Callable[..., Prediction], model: Any, dataset: Dataset, tmp_path: Path
) -> None:
    images = dataset.test_images[:20]
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path)
    done = ask(*paths)
    expected = probabilities_of(model, images[..., np.newaxis])
    for path, row, picture in zip(paths, expected, done.pictures, strict=True):
        assert (picture.path, picture.size, picture.steps) == (path, (28, 28), ())
        labels = [guess.label for guess in picture.guesses]
        assert labels == np.argsort(-row, kind="stable")[:3].tolist()
        assert [guess.name for guess in picture.guesses] == [CLASS_NAMES[k] for k in labels]
        assert [guess.probability for guess in picture.guesses] == row[labels].tolist()


def as_a_person_has_it(pixels: NDArray[np.uint8]) -> Image.Image:
    """An image of the data set, ten times as large, in colour, on a wide white ground."""
    large = Image.fromarray(pixels).resize((280, 280), Image.Resampling.BICUBIC)
    tint = np.array([0.9, 0.7, 0.5])
    coloured = 255 - np.asarray(large)[..., np.newaxis] * tint
    ground = Image.new("RGB", (500, 400), (255, 255, 255))
    ground.paste(Image.fromarray(np.rint(coloured).astype(np.uint8)), (150, 40))
    return ground


def test_enlarged_coloured_and_negated_it_is_mostly_taken_for_the_same(
    model: Any, dataset: Dataset
) -> None:
    images = dataset.test_images[:200]
    prepared = np.stack([prepare_image(as_a_person_has_it(i)).pixels for i in images])
    as_files = probabilities_of(model, prepared).argmax(axis=1)
    as_arrays = probabilities_of(model, images[..., np.newaxis]).argmax(axis=1)

    assert np.mean(as_files == as_arrays) >= 0.85
    # And it is the preparation that does it.
    naive = [np.asarray(as_a_person_has_it(i).convert("L").resize((28, 28))) for i in images]
    without = probabilities_of(model, np.stack(naive)[..., np.newaxis]).argmax(axis=1)

    assert np.mean(without == as_arrays) < 0.5


def test_classes_of_other_data_are_numbers(
    ask: Callable[..., Prediction], kept: Kept, model: Any, dataset: Dataset, tmp_path: Path
) -> None:
    other = kept.keep(model, CONFIG, "e" * 64)
    path = tmp_path / "a.png"
    Image.fromarray(dataset.test_images[0]).save(path)
    named, numbered = (ask(path, **k).pictures[0].guesses[0] for k in ({}, {"run_id": other}))
    assert (named.name, numbered.name) == (CLASS_NAMES[named.label], str(named.label))


def test_what_cannot_be_used_does_not_keep_the_others_from_an_answer(
    call: Call, kept: Kept, run_id: str, dataset: Dataset, tmp_path: Path
) -> None:
    Image.fromarray(dataset.test_images[0]).save("boot.png")
    as_a_person_has_it(dataset.test_images[2]).save("trousers.jpg")
    Path("letter.png").write_text("hello")
    files = ["boot.png", "none.png", "trousers.jpg", "letter.png"]
    asked = ("predict", *files, "--run-id", run_id, "--tracking-uri", kept.uri)
    status, out, err = call(*asked)
    assert status == 1
    heading, boot, trousers = out.splitlines()
    assert heading.split() == ["picture", "class", "second", "third"]
    assert boot.startswith("boot.png")
    assert trousers.split()[:2] == ["trousers.jpg", "Trouser"]
    told = err.splitlines()
    assert told[0] == "boot.png: 28 by 28; used as it is"
    assert told[1].startswith("trousers.jpg: 500 by 400; made grey, trimmed to ")
    assert told[2] == "Error: There is no file none.png."
    assert told[3].startswith("Error: letter.png is no picture of a format")
    assert len(told) == 4

    status, out, _ = call(*asked, "--json")
    content = json.loads(out)
    assert status == 1
    assert content["run_id"] == run_id
    assert [picture["file"] for picture in content["pictures"]] == files
    assert ["error" in picture for picture in content["pictures"]] == [False, True, False, True]
    assert content["pictures"][2]["class"] == "Trouser"
    assert len(content["pictures"][2]["top"]) == 3

    status, out, err = call("predict", "none.png", "--run-id", run_id, "--tracking-uri", kept.uri)
    assert (status, out, err) == (1, "", "Error: There is no file none.png.\n")
    status, out, err = call("predict", "boot.png", "--run-id", run_id, "--tracking-uri", kept.uri)
    assert (status, len(err.splitlines())) == (0, 1)


def test_what_the_model_saw_is_written(
    ask: Callable[..., Prediction], dataset: Dataset, tmp_path: Path
) -> None:
    folders = [tmp_path, tmp_path / "more"]
    folders[1].mkdir()
    names = ["a.png", "a.jpg", "más & $(x).png", ".hidden.png", "a-28x28.png", "x" * 240 + ".png"]
    paths = [folder / name for folder in folders for name in names]
    for number, path in enumerate(paths):
        as_a_person_has_it(dataset.test_images[number]).save(path)
    before = {path: path.read_bytes() for path in paths}
    done = ask(*paths, paths[0], output_dir=tmp_path)
    written = [picture.seen for picture in done.pictures]
    assert len(set(written)) == len(paths) + 1
    assert {path: path.read_bytes() for path in paths} == before
    for path, seen in zip([*paths, paths[0]], written, strict=True):
        assert seen is not None
        assert seen.parent == tmp_path
        assert set(seen.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.")
        np.testing.assert_array_equal(prepare(seen).pixels, prepare(path).pixels)
        assert prepare(seen).steps == ()
    assert [seen.name for seen in written[:3] if seen] == [
        "a-28x28-2.png",  # a-28x28.png is one of the pictures
        "a-28x28-3.png",
        "m_s_x_-28x28.png",
    ]


def test_a_link_to_itself_costs_no_other_answer(
    ask: Callable[..., Prediction], dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    Image.fromarray(dataset.test_images[0]).save(tmp_path / "a.png")
    loop, boot = ask(tmp_path / "loop.png", tmp_path / "a.png", output_dir=tmp_path).pictures
    assert loop.error is not None
    assert "\n" not in loop.error
    assert (boot.error, boot.seen) == (None, tmp_path / "a-28x28.png")


def test_a_folder_that_cannot_be_written(ask: Callable[..., Prediction], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"Cannot write to the folder .*/file/folder"):
        ask(tmp_path / "a.png", output_dir=tmp_path / "file" / "folder")


def test_a_trial_without_a_model(
    ask: Callable[..., Prediction], kept: Kept, dataset: Dataset, tmp_path: Path
) -> None:
    Image.fromarray(dataset.test_images[0]).save(tmp_path / "a.png")
    with tracking.open_store(kept.uri) as store:
        experiment = store.experiment_id("kept")
        running = tracking.start_trial(store, experiment, TRIAL)
    with pytest.raises(TrackingError, match="is RUNNING, so it has no model"):
        ask(tmp_path / "a.png", run_id=running)


def test_a_model_that_diverged(
    ask: Callable[..., Prediction], kept: Kept, dataset: Dataset, tmp_path: Path
) -> None:
    Image.fromarray(dataset.test_images[0]).save(tmp_path / "a.png")
    diverged = build_model(SMALL)
    diverged.set_weights([np.full_like(w, np.nan) for w in diverged.get_weights()])
    with pytest.raises(TrackingError, match="gives no numbers"):
        ask(tmp_path / "a.png", run_id=kept.keep(diverged, SMALL, dataset.digest))
