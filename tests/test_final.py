"""Final trainings: a trial trained anew on training and validation images together."""

import dataclasses
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fmnist_tracking as ft
import nets
from conftest import SMALL, SMALL_SPLIT, Call
from fmnist_tracking import fingerprint, tracking
from fmnist_tracking.console import PlainConsole
from fmnist_tracking.data import Dataset, DataSplit, split_dataset
from fmnist_tracking.data import test_set as sealed_images
from fmnist_tracking.data.split_cache import shared_split
from fmnist_tracking.errors import ConfigError, PromotionError
from fmnist_tracking.grid_search.messages import EpochEnded, TrialEnded, TrialStarted
from fmnist_tracking.grid_search.progress import Progress
from fmnist_tracking.results import EpochMetrics, TrainingResult, TrialScore
from fmnist_tracking.split_config import Protocol, SplitConfig
from fmnist_tracking.tracking import Store
from fmnist_tracking.training.checkpoints import CheckpointPlace
from fmnist_tracking.training.loop import train
from models import with_weights
from records import epoch
from runs import TRIAL
from searches import Place, finish, weights

ALL_SPLIT = dataclasses.replace(SMALL_SPLIT, validates=False)
# At this learning rate the score goes up and down, so that the best epoch is seldom the last.
JUMPY = (
    *("search", "--limit", "600", "--epochs", "6", "--filters", "8", "--kernel-sizes", "3"),
    *("--strides", "1", "--hidden-units", "8", "--axis", "learning_rate=0.02", "--repeats", "3"),
    *("--workers", "1", "--json"),
)


@pytest.fixture(scope="module")
def all_images(dataset: Dataset) -> DataSplit:
    return split_dataset(dataset, ALL_SPLIT)


def ordered(*parts: np.ndarray[Any, Any]) -> list[bytes]:
    return sorted(image.tobytes() for part in parts for image in part)


@pytest.mark.parametrize("protocol", ["canonical", "coursework"])
@pytest.mark.parametrize("limit", [600, None])
def test_it_has_the_training_and_validation_images_and_no_others(
    protocol: Protocol, limit: int | None, dataset: Dataset
) -> None:
    usual = SplitConfig(protocol=protocol, limit=limit)
    final = dataclasses.replace(usual, validates=False)
    split, whole = split_dataset(dataset, usual), split_dataset(dataset, final)
    assert len(whole.train_images) == final.training_images
    assert final.training_images == usual.training_images + usual.validation_images
    assert len(whole.validation_images) == final.validation_images == 0
    both = ordered(split.train_images, split.validation_images)
    assert ordered(whole.train_images) == both
    counts = [np.bincount(one, minlength=10) for one in (split.train_labels, whole.train_labels)]
    assert (counts[0] + np.bincount(split.validation_labels, minlength=10) == counts[1]).all()
    np.testing.assert_array_equal(
        sealed_images(dataset, usual).images, sealed_images(dataset, final).images
    )


def test_its_images_are_cached_as_others_are(all_images: DataSplit) -> None:
    def made() -> DataSplit:
        pytest.fail("it is in the cache")

    parts, names = all_images.parts(), all_images.class_names
    shared_split(parts, names, lambda: all_images)
    cached = shared_split(parts, names, made)
    assert cached.parts() == parts
    assert len(cached.validation_images) == 0


def test_the_fingerprint_is_another_and_that_of_others_stays() -> None:
    usual, final = (fingerprint.of_point(SMALL, s, "d") for s in (SMALL_SPLIT, ALL_SPLIT))
    assert usual != final
    assert "validates" not in fingerprint.typed_values(SMALL_SPLIT)
    assert "validates" not in SMALL_SPLIT.values()


def figures(result: TrainingResult) -> list[EpochMetrics]:
    return [dataclasses.replace(e, epoch_seconds=0, ended_at=0, usage={}) for e in result.epochs]


class Stop(Exception):
    """Stops a training."""


def test_without_validation_images_nothing_is_chosen(all_images: DataSplit, tmp_path: Path) -> None:
    config = SMALL.replace(epochs=3, objective="val_macro_f1")
    result, last = train(config, all_images)
    assert [e.val_accuracy for e in result.epochs] == [None] * 3
    assert (result.best.epoch, result.validation, result.validation_scores()) == (3, None, {})
    assert not {"best_val_accuracy", "best_objective"} & result.summary().keys()
    assert not any("val" in name or "objective" in name for name in result.epochs[0].metrics())
    assert TrainingResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    # It goes on from its checkpoint to the same numbers.
    place = CheckpointPlace(folder=tmp_path / "place", fingerprint="f" * 64)

    def stop(metrics: EpochMetrics) -> None:
        if metrics.epoch == 1:
            raise Stop

    with pytest.raises(Stop):
        train(config, all_images, stop, place=place)
    begun: list[int] = []
    again, weights_again = train(
        config, all_images, place=place, on_start=lambda epochs: begun.append(len(epochs))
    )
    assert begun[0] >= 1
    assert figures(again) == figures(result)
    for array, other in zip(last, weights_again, strict=True):
        np.testing.assert_array_equal(array, other)


class Recorded:
    """Records finished trials and final trainings of a network, without processes."""

    def __init__(self, store: Store, split: DataSplit, whole: DataSplit) -> None:
        self.store, self._splits = store, {True: split, False: whole}
        self._trained = {kind: train(SMALL, split) for kind, split in self._splits.items()}

    def __call__(self, accuracy: float = 0.5, final_of: str | None = None) -> str:
        experiment = tracking.choose_experiment(self.store, "fashion-mnist")
        validates = final_of is None
        info = dataclasses.replace(
            TRIAL, final_of=final_of, split=SMALL_SPLIT if validates else ALL_SPLIT
        )
        result, weights = self._trained[validates]
        if validates:
            epochs = [dataclasses.replace(e, val_accuracy=accuracy) for e in result.epochs]
            assert result.validation is not None
            validation = dataclasses.replace(result.validation, accuracy=accuracy)
            result = dataclasses.replace(result, epochs=tuple(epochs), validation=validation)
        run_id = tracking.start_trial(self.store, experiment, info)
        tracking.log_epochs(self.store, run_id, result.epochs)
        images = self._splits[validates]
        tracking.log_inputs(self.store, run_id, info.data, images.parts())
        tracking.finish_trial(
            *(self.store, experiment, run_id, info, result, with_weights(SMALL, weights)),
            *(images.train_images[:1], b"png"),
            data=images.parts(),
        )
        return run_id


@pytest.fixture
def recorded(store: Store, split: DataSplit, all_images: DataSplit) -> Recorded:
    return Recorded(store, split, all_images)


def test_its_run_has_no_validation_figure(recorded: Recorded) -> None:
    trial = recorded()
    final = recorded(final_of=trial)
    client = recorded.store.client
    run, usual = client.get_run(final), client.get_run(trial)
    kinds = {name for name in usual.data.metrics if "val" in name}
    assert kinds > {"val_loss", "best_val_accuracy", "val_macro_f1"}
    assert run.data.metrics.keys() == usual.data.metrics.keys() - kinds
    assert run.data.tags["fmnist.final_of"] == trial
    assert run.data.params["split.validates"] == "False"
    assert "split.validates" not in usual.data.params
    assert run.inputs is not None
    (images,) = run.inputs.dataset_inputs
    assert json.loads(images.dataset.profile or "")["images"] == 600
    assert {file.path for file in client.list_artifacts(final)} == {
        *("environment.json", "figures", "history.json")
    }
    assert "valid" not in run.data.tags["mlflow.note.content"].replace(
        "on training and validation images together", ""
    ).replace("no validation figures", "")
    assert tracking.logged_steps(recorded.store, final, validates=False) == {1, 2}
    found = tracking.read_trial(tracking.find_run(recorded.store, final))
    assert (found.status, found.val_accuracy, found.score, found.is_scored) == (
        *("FINISHED", None, None, False),
    )
    assert found.final_of == trial


def test_it_is_neither_ranked_nor_an_estimate(recorded: Recorded) -> None:
    trial = recorded()
    final = recorded(final_of=trial)
    experiment = tracking.choose_experiment(recorded.store, "fashion-mnist")
    like = tracking.like_trials(recorded.store, experiment, SMALL_SPLIT, TRIAL.threads)
    assert final not in {one.run_id for one in like}
    listed = {run.run_id: run.val_accuracy for run in ft.list_runs()}
    assert listed == {trial: 0.5, final: None}


def test_a_run_without_figures_that_is_no_final_training_is_left_out(recorded: Recorded) -> None:
    final = recorded(final_of=recorded())
    recorded.store.client.delete_tag(final, "fmnist.final_of")
    assert final not in {run.run_id for run in ft.list_runs()}


def test_what_somebody_has_put_in_its_tag_steers_no_terminal(
    recorded: Recorded, call: Call
) -> None:
    final = recorded(final_of="\x1b[2J' OR 1")
    for words in (("best", "--run-id", final), ("promote", "--run-id", final)):
        status, out, err = call(*words)
        assert (status, "\x1b" in out + err) == (0, False)
        assert "\\x1b[2J" in out


def test_it_is_promoted_by_the_figures_of_its_trial(recorded: Recorded) -> None:
    worse, better = recorded(0.5), recorded(0.6)
    final_of_worse, final_of_better = recorded(final_of=worse), recorded(final_of=better)
    ft.promote(better)
    with pytest.raises(PromotionError, match=f"The trial {worse[:8]}, which {final_of_worse[:8]} "):
        ft.promote(final_of_worse)
    promoted = ft.promote(final_of_better)
    assert promoted.champion.run_id == final_of_better
    assert promoted.champion.val_accuracy is None
    assert f"final of the trial {better[:8]}" in repr(promoted)
    raw = recorded.store.client.get_model_version("fashion-mnist", promoted.champion.version)
    assert "fmnist.val_accuracy" not in raw.tags
    description = raw.description or ""
    assert f"final of the trial | {better}" in description
    assert not any(text in description for text in ("0.6", "0.0000", "None"))
    # The champion is judged in the same way.
    said = f"final of the trial {better[:8]}, which has validation accuracy 0.6000"
    with pytest.raises(PromotionError, match=said):
        ft.promote(worse)
    assert ft.promote(recorded(0.7)).overruled is None


def test_one_whose_trial_is_gone_is_promoted_by_force_alone(recorded: Recorded) -> None:
    final = recorded(final_of="0" * 32)
    ft.promote(recorded())
    with pytest.raises(PromotionError, match="the trial that it is the final of is gone"):
        ft.promote(final)
    assert ft.promote(final, force=True).champion.run_id == final
    with pytest.raises(PromotionError, match="says what it was validated on"):
        ft.promote(recorded())


def test_what_no_final_training_can_be_made_of(recorded: Recorded) -> None:
    trial = recorded()
    final = recorded(final_of=trial)
    with pytest.raises(ConfigError, match=f"is itself the final training of {trial[:8]}"):
        ft.train_final(final)
    recorded.store.client.set_tag(trial, "fmnist.diverged", "2")
    with pytest.raises(ConfigError, match="diverged"):
        ft.train_final(trial)
    recorded.store.client.set_terminated(trial, "FAILED")
    with pytest.raises(ConfigError, match="is FAILED, so that its best epoch is not known"):
        ft.train_final(trial)


def test_other_data_is_refused(recorded: Recorded, call: Call, other_data: Path) -> None:
    words = ("train", "--final", "--run-id", recorded(), "--data-dir", str(other_data))
    status, _, err = call(*words)
    assert (status, err.count("\n")) == (1, 1)
    assert "was trained on other data" in err
    assert "--data-dir" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--final", "Expected --run-id after --final"),
        ("--run-id best", "Expected --run-id together with --final"),
        (
            "--final --run-id best --epochs 3 --network a.py:b",
            "Expected --final without --epochs, --network",
        ),
        ("--final --run-id best --limit 600", "Expected --final without --limit"),
        ("--final --run-id best --set units=3", "Expected --final without --set"),
    ],
)
def test_what_counts_for_nothing_is_refused(call: Call, words: str, message: str) -> None:
    status, _, err = call("train", *words.split())
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def trained(call: Call, *words: str) -> tuple[dict[str, Any], str]:
    status, out, err = call(*words)
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found, err


@pytest.mark.slow
def test_the_way_from_a_search_to_a_final_model(
    call: Call, dataset: Dataset, tmp_path: Path
) -> None:
    search, _ = trained(call, *JUMPY)
    best = search["best"]["run_id"]
    final, err = trained(call, "train", "--final", "--run-id", "best", "--json")
    assert "val" not in err.replace("canonical", "")
    (trial,) = (one for one in search["trials"] if one["run_id"] == best)
    assert (final["final_of"], final["name"]) == (best, f"final of {trial['name']}")
    expected = {**trial["params"], "epochs": trial["best_epoch"], "patience": 0}
    assert (final["params"], final["val_accuracy"]) == (expected, None)
    # It is used again, by whatever name the trial is given.
    again, err = trained(call, "train", "--final", "--run-id", search["run_id"][:8], "--json")
    assert (again["run_id"], again["reused"]) == (final["run_id"], True)
    # One whose best epoch was not the last.
    early = next(one for one in search["trials"] if one["best_epoch"] < 6)
    other = ft.train_final(early["run_id"], echo=None)
    assert (other.best_epoch, other.final_of) == (early["best_epoch"], early["run_id"])
    history = other.history()
    assert list(history) == ["loss", "accuracy", "epoch_seconds"]
    assert len(history) == early["best_epoch"]
    assert str(other).endswith("FINISHED")

    for word in ("best", "best-of-all"):
        assert ft.load_trial(word).run_id == best
    assert len(ft.load_search().trials) == 3
    listed = {run.run_id: run.val_accuracy for run in ft.list_runs()}
    assert (listed[final["run_id"]], listed[other.run_id]) == (None, None)

    report = ft.report(final["run_id"], echo=None)
    assert report.evaluation is not None
    page = report.files[0].read_text()
    assert "there are no validation figures" in page
    assert "by which it was chosen" not in page
    metrics = json.loads((report.files[0].parent / "metrics.json").read_text())
    assert (metrics["val_accuracy"], metrics["test_images"]) == (None, 600)
    for part in ("activations", "predictions"):
        status, _, err = call(part, final["run_id"])
        assert (status, err.count("\n")) == (1, 1)
        assert "is a final training" in err
        assert not Path("reports", final["run_id"][:8], "validation").exists()
    Image.fromarray(dataset.test_images[0]).save(tmp_path / "one.png")
    answers, err = trained(call, "predict", "--run-id", final["run_id"], "one.png", "--json")
    assert (
        f"trained on 600 of 60,000 images (protocol canonical), final of the trial {best[:8]}"
        in (err)
    )
    assert answers["model"]["val_accuracy"] is None
    promoted, _ = trained(call, "promote", "--run-id", final["run_id"], "--json")
    assert (promoted["run_id"], promoted["val_accuracy"]) == (final["run_id"], None)
    assert call("promote", "--run-id", "best")[0] == 0
    assert ft.load_trial("champion").run_id == best


@pytest.mark.slow
def test_a_network_of_one_s_own_is_found_again(call: Call, tmp_path: Path) -> None:
    shutil.copy(nets.__file__, "mine.py")
    words = ("--network", "mine.py:conditional", "--axis", "model_type=cnn;cnn_filters=2")
    axes = ("--axis", "cnn_norm=true;optimizer=sgd;momentum=0.4", "--limit", "600")
    search, _ = trained(call, "search", *words, *axes, "--epochs", "2", "--json")
    final = ("train", "--final", "--run-id", "best", "--json")
    source = Path("mine.py").read_text()
    for change, why in ((source + "\nnumber = 8\n", "has changed"), (None, "is not found")):
        Path("mine.py").unlink()
        if change is not None:
            Path("mine.py").write_text(change)
        else:
            assert not Path("mine.py").exists()
        status, _, err = call(*final)
        assert status == 2
        assert f"was trained with mine.py:conditional, which {why}" in err
        assert "Give the command in the folder that has that file" in err
        Path("mine.py").write_text(source)
    found, _ = trained(call, *final)
    (trial,) = search["trials"]
    assert found["params"] == {**trial["params"], "epochs": trial["best_epoch"]}
    model = ft.load_trial(found["run_id"]).load_model()
    assert model.output_shape == (None, 10)


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_numbers(tmp_path: Path, cache: Path) -> None:
    place = Place(tmp_path / "place", cache)
    search = ("search", "--limit", "2400", "--filters", "16", "--strides", "1", "--epochs", "5")
    small = ("--kernel-sizes", "3", "--hidden-units", "8", "--json")
    finish(place.start(words=(*search, *small)), place)
    final = ("train", "--final", "--run-id", "latest", "--json")
    process = place.start(words=final)
    place.wait_until_said("final of f16 k3 s1  epoch 2/", 1, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    gone_on = finish(place.start(words=final), place)
    assert "goes on after epoch" in place.said()
    undisturbed = finish(place.start(words=(*final, "--fresh")), place)
    assert gone_on["run_id"] != undisturbed["run_id"]
    came = []
    with tracking.open_store(place.uri) as store:
        client = store.client
        for found in (gone_on, undisturbed):
            run = client.get_run(found["run_id"])
            assert run.info.status == "FINISHED"
            curves = {
                name: sorted(
                    (m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)
                )
                for name in ("loss", "accuracy")
            }
            steps = [step for step, _ in curves["loss"]]
            assert steps == [*range(1, found["params"]["epochs"] + 1)]
            arrays = weights(client, run, run.info.experiment_id)
            came.append((curves, [array.tobytes() for array in arrays]))
        runs = client.search_runs([run.info.experiment_id])
        assert len([one for one in runs if "fmnist.final_of" in one.data.tags]) == 2
    assert came[0] == came[1]


@pytest.mark.parametrize("is_live", [False, True])
def test_progress_shows_no_validation_figures(is_live: bool) -> None:
    text = io.StringIO()
    console = PlainConsole(file=text, force_terminal=is_live, width=160)
    figures = dataclasses.replace(epoch(1, 0.5), val_loss=None, val_accuracy=None)
    with Progress([SMALL], ["final of f4"], console=console) as progress:
        progress(TrialStarted(number=1))
        progress(EpochEnded(number=1, metrics=figures))
        drawn = progress._cells(1)
        progress(TrialEnded(number=1, score=TrialScore(best_epoch=2)))
    assert drawn[3:6] == ["1.0000", "", ""]
    assert "[1/1] final of f4 ended, epoch 2" in text.getvalue()
    assert "None" not in text.getvalue()
    if is_live:
        assert "1 of 1 points ended  ·  no validation images" in text.getvalue()
    else:
        assert "val" not in text.getvalue()
