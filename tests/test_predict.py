"""A person's pictures, by a model that was really trained and kept."""

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import SMALL, Call
from fmnist_tracking import tracking
from fmnist_tracking.config import CLASS_NAMES, TrainingConfig
from fmnist_tracking.data import Dataset, split_dataset, test_set
from fmnist_tracking.errors import OutputError, TrackingError
from fmnist_tracking.inference import about, fetched_model
from fmnist_tracking.inspection import Images, InspectionTask, StoredModel
from fmnist_tracking.model_worker import classify, inspect_model
from fmnist_tracking.network import COURSEWORK
from fmnist_tracking.networks import models
from fmnist_tracking.networks.build import build_model
from fmnist_tracking.networks.models import predict as probabilities_of
from fmnist_tracking.prediction import (
    Classified,
    Guess,
    Prediction,
    mirror_notes,
    predict,
)
from fmnist_tracking.preprocess_image import prepare, prepare_image
from fmnist_tracking.runs import load_trial
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import DatasetInfo, schema
from fmnist_tracking.tracking.logged_model import find_models, log_model
from fmnist_tracking.training.loop import train
from models import with_weights
from processes import memory_taken
from records import training
from runs import TRIAL

PARTS: tuple[Images, ...] = ("validation", "test")
CONFIG = TrainingConfig.of(filters=16, hidden_units=32, epochs=4)
# What is told of the model of `Kept`.
ABOUT = {"name": "a trial", "protocol": "canonical", "limit": 600, "training_images": 500,
         "all_training_images": 50_000, "val_accuracy": 0.8, "is_trial_run": True}  # fmt: skip


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> Any:
    """Trained on 5,000 images, which is enough to be right four times of five."""
    _, weights = train(CONFIG, split_dataset(dataset, SplitConfig(limit=6000)))
    return with_weights(CONFIG, weights)


class Kept:
    """A store with trials that have a model."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"
        with tracking.open_store(self.uri, access="create") as store:
            self._experiment = store.client.create_experiment(
                "kept", str(folder / "mlruns" / "kept")
            )

    def keep(self, model: Any, config: TrainingConfig, sha256: str) -> str:
        data = DatasetInfo(sha256=sha256, name="some data", source="somewhere")
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
        # To the last digit but one: they were computed in two processes.
        assert [guess.probability for guess in picture.guesses] == pytest.approx(row[labels], 1e-5)


SANDAL, SNEAKER, BAG, BOOT = (
    CLASS_NAMES.index(n) for n in ("Sandal", "Sneaker", "Bag", "Ankle boot")
)


def codes(picture: Classified) -> list[str]:
    return [note.code for note in picture.notes]


@pytest.mark.parametrize("shoe", [SANDAL, SNEAKER, BOOT], ids=lambda label: CLASS_NAMES[label])
def test_a_shoe_the_wrong_way_round_is_told(
    ask: Callable[..., Prediction], model: Any, dataset: Dataset, tmp_path: Path, shoe: int
) -> None:
    images = dataset.test_images[dataset.test_labels == shoe][:100]
    paths = [tmp_path / f"{side}{n}.png" for side in "lr" for n in range(len(images))]
    for path, pixels in zip(paths, [*images, *images[:, :, ::-1]], strict=True):
        Image.fromarray(pixels).save(path)
    pictures = ask(*paths).pictures
    right, turned = pictures[: len(images)], pictures[len(images) :]
    false_alarms = ["mirrored_shoe" in codes(picture) for picture in right]
    told = [
        "mirrored_shoe" in codes(picture)
        for picture, as_it_should_be in zip(turned, right, strict=True)
        if picture.guesses[0].label != shoe and as_it_should_be.guesses[0].label == shoe
    ]
    assert np.mean(false_alarms) < 0.2
    assert len(told) > 20
    assert np.mean(told) > 0.75
    for picture, other in zip(right, turned, strict=True):
        assert picture.mirrored == other.guesses[0]


@pytest.mark.parametrize(
    ("guess", "share", "mirrored", "mirrored_share", "code"),
    [
        (BAG, 0.99, BOOT, 0.4, "mirrored_shoe"),
        (SANDAL, 0.5, SNEAKER, 0.9, "mirrored_shoe"),
        (SNEAKER, 0.9, SANDAL, 0.5, None),  # as it is with a sneaker the right way round
        (BOOT, 0.9, BAG, 0.99, None),
        (0, 0.6, 6, 0.5, "mirrored_differs"),
        (3, 0.6, 3, 0.5, None),
    ],
)
def test_what_a_mirrored_answer_says(
    guess: int, share: float, mirrored: int, mirrored_share: float, code: str | None
) -> None:
    notes = mirror_notes(
        Guess(name=CLASS_NAMES[guess], label=guess, probability=share),
        Guess(name=CLASS_NAMES[mirrored], label=mirrored, probability=mirrored_share),
    )
    assert [note.code for note in notes] == ([code] if code else [])
    for note in notes:
        assert note.text.startswith(f"mirrored it is called {CLASS_NAMES[mirrored]} (")


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


def test_classes_of_other_data_are_those_of_the_trial_s_record(
    ask: Callable[..., Prediction], kept: Kept, model: Any, dataset: Dataset, tmp_path: Path
) -> None:
    other = kept.keep(model, CONFIG, "e" * 64)
    path = tmp_path / "a.png"
    Image.fromarray(dataset.test_images[0]).save(path)
    named, numbered = (ask(path, **k).pictures[0].guesses[0] for k in ({}, {"run_id": other}))
    assert (named.name, numbered.name) == (CLASS_NAMES[named.label],) * 2
    assert ask(path, run_id=other).pictures[0].mirrored is None  # what it shows is not known


def test_an_answer_is_printed_in_a_line(
    ask: Callable[..., Prediction], dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(dataset.test_images[0]).save(path)
    answer = ask(path, tmp_path / "none.png")
    guess = answer.pictures[0].guesses[0]
    assert str(answer).splitlines() == [
        f"{path}: {guess.name} ({guess.probability:.1%})",
        f"There is no file {tmp_path / 'none.png'}.",
    ]


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
    heading, boot, trousers, note = out.splitlines()[:4]
    assert heading.split() == ["picture", "class", "second", "third", "mirrored"]
    assert boot.startswith("boot.png")
    assert trousers.split()[:2] == ["trousers.jpg", "Trouser"]
    assert note.startswith("boot.png: already 28 by 28, so it was not trimmed")
    model_line, *told = err.splitlines()
    about_it = f"Model: {ABOUT['name']}, run {run_id[:8]}, trained on 500 of 50,000 images"
    assert model_line.startswith(about_it)
    assert told[0] == "boot.png: 28 by 28; used as it is"
    assert told[1].startswith("trousers.jpg: 500 by 400; made grey, trimmed to ")
    assert told[2] == "Error: There is no file none.png."
    assert told[3].startswith("Error: letter.png is no picture of a format")
    assert len(told) == 4

    status, out, _ = call(*asked, "--json")
    content = json.loads(out)
    assert status == 1
    assert content["run_id"] == run_id
    assert content["model"] == {"run_id": run_id, **ABOUT}
    assert [picture["file"] for picture in content["pictures"]] == files
    assert ["error" in picture for picture in content["pictures"]] == [False, True, False, True]
    assert content["pictures"][2]["class"] == "Trouser"
    assert len(content["pictures"][2]["top"]) == 3

    status, out, err = call("predict", "none.png", "--run-id", run_id, "--tracking-uri", kept.uri)
    assert (status, out) == (1, "")
    assert err == f"{model_line}\nError: There is no file none.png.\n"
    status, out, err = call("predict", "boot.png", "--run-id", run_id, "--tracking-uri", kept.uri)
    assert (status, len(err.splitlines())) == (0, 2)


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


def damaged_models() -> dict[str, Callable[[Path], None]]:
    """What can lie where a model should: each writes over the model's file."""
    import keras

    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (Path("executed"),)  # type: ignore[return-value]

    def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        with zipfile.ZipFile(path) as file:
            contents = {name: file.read(name) for name in file.namelist()}
        contents["config.json"] = json.dumps(change(json.loads(contents["config.json"]))).encode()
        with zipfile.ZipFile(path, "w") as file:
            for name, content in contents.items():
                file.writestr(name, content)

    def saved(*layers: Any) -> Callable[[Path], None]:
        return lambda path: keras.Sequential(list(layers)).save(path)

    def half(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def one_byte_less(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)

    def pickled(path: Path) -> None:
        path.write_bytes(pickle.dumps(Hostile()))

    def compressed(path: Path) -> None:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
            file.writestr("more", bytes(10**8))

    def outside(path: Path) -> None:
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("../executed", b"")

    def text(path: Path) -> None:
        path.write_text("hello")

    def gigabytes(config: dict[str, Any]) -> dict[str, Any]:
        hidden, last = [one for one in config["config"]["layers"] if one["class_name"] == "Dense"]
        hidden["config"]["units"] = 10**7
        last["build_config"]["input_shape"] = [None, 10**7]
        return config

    def touch(x: Any) -> Any:
        Path("executed").touch()
        return x

    return {
        "empty": lambda path: os.truncate(path, 0),
        "cut short": half,
        "altered": one_byte_less,
        "text": text,
        "pickle": pickled,
        "compressed": compressed,
        "outside": outside,
        "another zip": lambda path: zipfile.ZipFile(path, "w").close(),
        "code": lambda path: rewritten(
            path,
            lambda config: {
                "module": "os",
                "class_name": "system",
                "config": {"command": "touch executed"},
                "registered_name": None,
            },
        ),
        "list": lambda path: rewritten(path, lambda config: []),
        "a long name": lambda path: rewritten(path, lambda config: {**config, "more": "x" * 10**6}),
        "gigabytes": lambda path: rewritten(path, gigabytes),
        "a huge map": saved(
            keras.Input((28, 28, 1)),
            keras.layers.ZeroPadding2D(10_000),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ),
        "lambda": saved(
            keras.Input((28, 28, 1)),
            keras.layers.Lambda(lambda x: touch(x)),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ),
        "colours": saved(keras.Input((28, 28, 3)), keras.layers.Flatten(), keras.layers.Dense(10)),
        "two outputs": lambda path: _two_outputs().save(path),
        "none": Path.unlink,
    }


def _two_outputs() -> Any:
    import keras

    pixels = keras.Input((28, 28, 1))
    flat = keras.layers.Flatten()(pixels)
    return keras.Model(pixels, [keras.layers.Dense(10)(flat), keras.layers.Dense(1)(flat)])


def test_a_model_file_that_cannot_be_used_is_told_in_a_line_and_runs_nothing(
    tmp_path: Path,
) -> None:
    images = np.zeros((1, 28, 28, 1), np.uint8)
    for kind, damage in damaged_models().items():
        path = tmp_path / f"{kind}.keras"
        build_model(SMALL).save(path)
        damage(path)
        Path("executed").unlink(missing_ok=True)  # by Keras, to learn what a layer gives
        with pytest.raises(TrackingError, match="cannot be used; it is damaged, or not") as told:
            classify(StoredModel(file=path, run_id="abcdef0123", network=COURSEWORK), images, print)
        assert "\n" not in str(told.value), kind
        assert len(str(told.value)) < 400, kind
        assert not Path("executed").exists(), kind


def test_a_network_with_wide_layers_is_given_fewer_images_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = build_model(SMALL), np.zeros((7, 28, 28, 1), np.uint8)
    expected = probabilities_of(model, images)
    given: list[int] = []
    call = models._call

    def counted(model: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        given.append(len(images))
        return call(model, images)

    monkeypatch.setattr(models, "_call", counted)
    monkeypatch.setattr(models, "_VALUES_AT_ONCE", 2 * 28 * 28)
    np.testing.assert_allclose(probabilities_of(model, images), expected, rtol=1e-6)
    assert max(given) <= 2


@pytest.mark.slow
def test_a_model_file_that_asks_for_gigabytes_does_not_get_them(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    build_model(SMALL).save(path)
    damaged_models()["gigabytes"](path)
    said, megabytes = memory_taken(
        "from pathlib import Path\nfrom fmnist_tracking import model_worker, runtime\n"
        "from fmnist_tracking.inspection import StoredModel\n"
        "from fmnist_tracking.network import COURSEWORK\n"
        "runtime.prepare_process(1, 0, [])",
        f"model_worker._load(StoredModel(file=Path({str(path)!r}), run_id='abcdef0123', "
        "network=COURSEWORK))",
    )
    assert said.startswith("TrackingError ")
    assert "asks for" in said
    assert megabytes < 1000


def model_file(kept: Kept, run_id: str) -> Path:
    with tracking.open_store(kept.uri) as store:
        (logged,) = find_models(store, store.experiment_id("kept"), run_id)
    return Path(logged.artifact_location.removeprefix("file://"), schema.KERAS_FILE)


def forget_sha256(kept: Kept, run_id: str) -> None:
    """Leave a run's model as earlier releases logged it."""
    with contextlib.closing(sqlite3.connect(kept.uri.removeprefix("sqlite:///"))) as database:
        database.execute(
            "DELETE FROM logged_model_params WHERE param_key = 'model_sha256' AND model_id IN "
            "(SELECT model_id FROM logged_models WHERE source_run_id = ?)",
            [run_id],
        )
        database.commit()


def test_another_file_than_was_logged_is_no_model(
    tmp_path: Path, kept: Kept, dataset: Dataset
) -> None:
    run_id = kept.keep(build_model(SMALL), SMALL, dataset.digest)
    file = model_file(kept, run_id)
    good = file.read_bytes()
    others: dict[str, Callable[[Path], object]] = {
        **damaged_models(),
        "another's": lambda path: build_model(SMALL).save(path),
    }
    del others["none"]
    with tracking.open_store(kept.uri) as store:
        trial = tracking.find_run(store, run_id)
        for kind, damage in others.items():
            damage(file)
            with pytest.raises(TrackingError, match="it is not the one that was logged") as told:
                tracking.download_model(store, trial, tmp_path)
            assert "\n" not in str(told.value), kind
            file.write_bytes(good)
        assert tracking.download_model(store, trial, tmp_path).read_bytes() == good
        # What is logged for the same run later is not what was trained.
        model, example = build_model(SMALL), np.zeros((1, 28, 28, 1), np.uint8)
        where = trial.experiment_id, run_id
        log_model(store, *where, model, example, params={}, tags={}, step=1)
        assert tracking.download_model(store, trial, tmp_path).read_bytes() == good


COMMANDS = ("predict", "report", "activations", "predictions", "promote")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_says_in_a_line_that_a_model_file_cannot_be_used(
    call: Call, kept: Kept, dataset: Dataset, command: str
) -> None:
    Image.fromarray(dataset.test_images[0]).save("boot.png")
    run_id = kept.keep(build_model(SMALL), SMALL, dataset.digest)
    path = model_file(kept, run_id)
    arguments = [command, *(["boot.png"] if command == "predict" else [])]
    arguments += ["--run-id", run_id, "--tracking-uri", kept.uri]
    damaged = damaged_models()

    def refused(words: str) -> None:
        status, out, err = call(*arguments)
        assert (status, out) == (1, "")
        *told, error = err.splitlines()
        assert len(told) <= 2, err
        assert error.startswith("Error: The model")
        assert words in error
        assert not Path("executed").exists()

    build_model(SMALL).save(path)  # another one, which could be scored
    refused("cannot be used; it is not the one that was logged")
    if command != "promote":  # which loads no model
        forget_sha256(kept, run_id)
        damaged["code"](path)
        refused("cannot be used; it is damaged, or not")
    damaged["none"](path)
    refused("has no file data/model.keras")


def test_a_model_of_an_earlier_release_is_said_not_to_be_checked(
    kept: Kept, model: Any, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = kept.keep(model, CONFIG, dataset.digest)
    trial = load_trial(run_id, tracking_uri=kept.uri)
    load: Callable[[], Any] = trial.load_model
    with caplog.at_level(logging.WARNING, "fmnist_tracking"):
        first = load().get_weights()
        assert caplog.text == ""
        forget_sha256(kept, run_id)
        second = load().get_weights()
    assert "whether its file is still the same cannot be checked" in caplog.text
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_network_without_a_convolution_has_no_activations(
    call: Call, kept: Kept, dataset: Dataset
) -> None:
    import keras

    other = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    run_id = kept.keep(other, SMALL, dataset.digest)
    status, out, _ = call("activations", "--run-id", run_id, "--tracking-uri", kept.uri)
    assert (status, [Path(line).name for line in out.splitlines()]) == (0, ["sample.png"])


def test_the_maps_of_any_convolution_are_drawn(call: Call, kept: Kept, dataset: Dataset) -> None:
    run_id = kept.keep(build_model(SMALL), SMALL, dataset.digest)
    arguments = ["activations", "--run-id", run_id, "--tracking-uri", kept.uri, "--layer"]
    assert call(*arguments, "conv2")[0] == 0
    status, _, err = call(*arguments, "conv3")
    assert status == 2
    assert "Expected --layer to be one of scale, conv1, pool1, dropout1, conv2" in err


@pytest.mark.parametrize("command", ["activations", "predictions"])
def test_figures_of_validation_images_leave_the_test_images_sealed(
    call: Call, kept: Kept, dataset: Dataset, command: str
) -> None:
    run_id = kept.keep(build_model(SMALL), SMALL, dataset.digest)
    status, out, _ = call(command, "--run-id", run_id, "--json", "--tracking-uri", kept.uri)
    assert status == 0
    content = json.loads(out)
    assert content["images"] == "validation"
    assert content["model"]["training_images"] == 500
    folder = Path("reports", run_id[:8], "validation")
    assert {Path(file).parent for file in content["files"]} == {folder}
    with tracking.open_store(kept.uri) as store:
        assert schema.TEST_OPENED not in store.client.get_run(run_id).data.tags
        logged = {file.path for file in store.client.list_artifacts(run_id, "validation")}
    assert {f"validation/{Path(file).name}" for file in content["files"]} <= logged


def test_validation_samples_are_of_the_trial_s_validation_images(
    kept: Kept, model: Any, dataset: Dataset
) -> None:
    run_id = kept.keep(model, CONFIG, dataset.digest)
    with tracking.open_store(kept.uri) as store:
        trial = tracking.find_run(store, run_id)
        with fetched_model(store, trial, False) as stored:
            seen = {
                part: inspect_model(
                    InspectionTask(
                        model=stored,
                        split=trial.split,
                        data_dir=None,
                        data_sha256=dataset.digest,
                        seed=5,
                        images=part,
                    ),
                    print,
                )
                for part in PARTS
            }
    images = {
        "validation": split_dataset(dataset, trial.split).validation_images,
        "test": test_set(dataset, trial.split).images,
    }
    for part, looked in seen.items():
        np.testing.assert_array_equal(looked.images, images[part][looked.chosen])
        assert (looked.evaluation is None) == (part == "validation")
        assert looked.available == len(images[part])


@pytest.mark.parametrize(
    ("split", "images", "is_trial_run"),
    [
        (SplitConfig(), 50_000, False),
        (SplitConfig(limit=12_000), 10_000, True),
        (SplitConfig(limit=61), 50, True),
        (SplitConfig(protocol="coursework"), 46_666, False),
        (SplitConfig(limit=60_000), 50_000, False),
    ],
)
def test_what_is_told_of_a_model_is_what_it_was_trained_on(
    kept: Kept, run_id: str, dataset: Dataset, split: SplitConfig, images: int, is_trial_run: bool
) -> None:
    with tracking.open_store(kept.uri) as store:
        trial = tracking.find_run(store, run_id)
    told = about(dataclasses.replace(trial, split=split))
    assert told.training_images == images == len(split_dataset(dataset, split).train_labels)
    assert told.is_trial_run == is_trial_run
    assert ("of all of them" in str(told)) == is_trial_run
