"""Promotion: a real store, a real registry, models that were really logged."""

import dataclasses
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from conftest import SMALL, SMALL_SPLIT, Call
from fmnist_tracking import tracking
from fmnist_tracking.cli.models import say_how_to_serve
from fmnist_tracking.data import DataSplit
from fmnist_tracking.errors import ConfigError, PromotionError, TrackingError
from fmnist_tracking.networks.build import build_model
from fmnist_tracking.networks.models import predict
from fmnist_tracking.promotion import promote
from fmnist_tracking.split_config import DataSize, SplitConfig
from fmnist_tracking.tracking import DatasetInfo, Store, schema
from imports import loaded_by
from models import with_weights
from records import training
from runs import FACTS, SPACE, TRIAL, start_search

NAME = "fashion-mnist"


@pytest.fixture(scope="module")
def model() -> Any:
    return with_weights(SMALL, build_model(SMALL).get_weights())


class Trials:
    """Makes finished trials with a logged model, whatever score they are to have."""

    def __init__(self, store: Store, model: Any, split: DataSplit) -> None:
        self.store, self._model, self._example = store, model, split.train_images[:1]

    def __call__(self, score: float, **changes: object) -> str:
        experiment = tracking.choose_experiment(self.store, "fashion-mnist")
        facts = dataclasses.replace(TRIAL, **changes)  # type: ignore[arg-type]
        run_id = tracking.start_trial(self.store, experiment, facts)
        result = dataclasses.replace(training(score), config=facts.config)
        tracking.finish_trial(
            self.store, experiment, run_id, facts, result, self._model, self._example, b"png"
        )
        return run_id


@pytest.fixture
def finished(store: Store, model: Any, split: DataSplit) -> Trials:
    return Trials(store, model, split)


def versions(store: Store, name: str = NAME) -> dict[str, str]:
    """Run ids by version."""
    found = store.client.search_model_versions(f"name = '{name}'")
    return {str(version.version): str(version.run_id) for version in found}


def champion(store: Store) -> str:
    return str(store.client.get_model_version_by_alias(NAME, "champion").version)


def test_the_first_champion(finished: Trials, store: Store, split: DataSplit, model: Any) -> None:
    run_id = finished(0.8)
    done = promote(run_id)
    assert (done.changed, done.registered, done.previous) == (True, True, None)
    version = store.client.get_model_version_by_alias(NAME, "champion")
    (logged,) = store.client.search_logged_models([store.client.get_run(run_id).info.experiment_id])
    assert (version.run_id, version.source) == (run_id, f"models:/{logged.model_id}")
    assert version.status == "READY"
    assert version.tags == {
        "fmnist.run_id": run_id,
        "fmnist.point": "f" * 64,
        "fmnist.val_accuracy": "0.8",
        "fmnist.data_sha256": "d" * 64,
        "fmnist.dataset": FACTS.description,
        "fmnist.protocol": "canonical",
        "fmnist.split_seed": "0",
        "fmnist.split_limit": "600",
        "fmnist.split_train_images": "60000",
        "fmnist.split_test_images": "10000",
        "fmnist.split_classes": "10",
    }
    assert "| validation accuracy | 0.8000 |" in str(version.description)
    assert "the test images have no part" in store.client.get_registered_model(NAME).description
    # The logged model leads to the version, by the tag that MLflow's page reads.
    links = json.loads(store.client.get_logged_model(logged.model_id).tags["mlflow.modelVersions"])
    assert links == [{"name": NAME, "version": version.version}]
    served = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    images = split.validation_images[:5]
    np.testing.assert_allclose(served.predict(images), predict(model, images), rtol=1e-5)


def test_a_better_one_takes_its_place_and_a_worse_one_does_not(
    finished: Trials, store: Store
) -> None:
    first, better, worse = finished(0.8), finished(0.9), finished(0.85)
    promote(first)
    done = promote(better)
    assert done.previous is not None
    assert (done.previous.version, done.previous.val_accuracy) == ("1", 0.8)
    assert champion(store) == "2"
    with pytest.raises(PromotionError, match=r"accuracy of 0\.8500, is worse than the champion, "):
        promote(worse)
    assert (champion(store), versions(store)) == ("2", {"1": first, "2": better})
    forced = promote(worse, force=True)
    assert forced.overruled
    assert "0.8500" in forced.overruled
    assert (champion(store), versions(store)["3"]) == ("3", worse)


def test_as_good_is_good_enough(finished: Trials, store: Store) -> None:
    promote(finished(0.8))
    assert promote(finished(0.8)).changed
    assert champion(store) == "2"


def test_promoted_again_it_is_the_same_version(finished: Trials, store: Store) -> None:
    first, second = finished(0.8), finished(0.9)
    promote(first)
    again = promote(first)
    assert (again.changed, again.registered) == (False, False)
    assert again.previous == again.champion
    promote(second)
    back = promote(first, force=True)
    assert (back.changed, back.registered, back.champion.version) == (True, False, "1")
    assert versions(store) == {"1": first, "2": second}
    assert champion(store) == "1"


def test_a_promotion_that_failed_half_way_is_made_whole(
    finished: Trials, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = finished(0.8)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_logged_model_tags", _locked)
        with pytest.raises(TrackingError, match="database is locked"):
            promote(run_id)
    assert versions(store) == {"1": run_id}
    done = promote(run_id)
    assert (done.changed, done.registered, versions(store)) == (True, False, {"1": run_id})
    (logged,) = store.client.search_logged_models([store.client.get_run(run_id).info.experiment_id])
    links = json.loads(store.client.get_logged_model(logged.model_id).tags["mlflow.modelVersions"])
    assert [(link["name"], str(link["version"])) for link in links] == [(NAME, "1")]


def _locked(*_: object) -> None:
    raise MlflowException("database is locked")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"data": DatasetInfo(sha256="e" * 64, name="not Fashion-MNIST", source="x")},
            "data eeeeeeeeeeee… against dddddddddddd…",
        ),
        ({"split": SplitConfig(limit=700)}, "limit 700 against 600"),
        ({"split": SplitConfig()}, "limit none against 600"),
        ({"split": SplitConfig(limit=600, seed=1)}, "split seed 1 against 0"),
        (
            {"split": SplitConfig(limit=600, protocol="coursework")},
            "protocol coursework against canonical",
        ),
    ],
)
def test_what_was_validated_on_other_images_cannot_be_compared(
    finished: Trials, store: Store, changes: dict[str, object], words: str
) -> None:
    promote(finished(0.8))
    other = finished(0.9, **changes)
    with pytest.raises(PromotionError, match="validated on different images") as caught:
        promote(other)
    assert f"({words})" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert champion(store) == "1"
    assert promote(other, force=True).champion.version == "2"


def test_a_champion_whose_run_was_deleted(finished: Trials, store: Store) -> None:
    gone = finished(0.8)
    promote(gone)
    store.client.delete_run(gone)
    with pytest.raises(
        PromotionError, match=rf"0\.8000, run {gone[:8]}, which was deleted\. Restore"
    ):
        promote(finished(0.7))
    done = promote(finished(0.9))
    assert done.previous is not None
    assert (done.previous.run_exists, done.previous.val_accuracy) == (False, 0.8)


def test_a_champion_that_was_registered_by_other_means(finished: Trials, store: Store) -> None:
    run_id = finished(0.8)
    by_hand = mlflow.register_model(f"runs:/{run_id}/model", NAME)
    store.client.set_registered_model_alias(NAME, "champion", by_hand.version)
    with pytest.raises(PromotionError, match=r"worse than the champion.*accuracy 0\.8000"):
        promote(finished(0.7))
    assert not promote(run_id).changed
    foreign = store.client.create_run("0").info.run_id
    nobody_s = store.client.create_model_version(NAME, "file:///nowhere", foreign)
    store.client.set_registered_model_alias(NAME, "champion", nobody_s.version)
    with pytest.raises(PromotionError, match="neither that version nor its run says"):
        promote(finished(0.9))
    assert promote(finished(0.9), force=True).changed


@pytest.mark.parametrize(
    ("run_id", "why"),
    [
        (None, "does not say which run it came from"),
        ("f" * 32, "came from the run ffffffff, which was deleted"),
        ("nobody's run", "came from the run nobody's, which was deleted"),
    ],
)
def test_a_champion_of_no_run(store: Store, run_id: str | None, why: str) -> None:
    store.client.create_registered_model(NAME)
    version = store.client.create_model_version(NAME, "file:///nowhere", run_id)
    store.client.set_registered_model_alias(NAME, "champion", version.version)
    with pytest.raises(TrackingError, match=rf"version 1, {why}\. Name another run"):
        tracking.find_run(store, "champion")


def test_a_search_means_its_best_trial(finished: Trials, store: Store) -> None:
    parent = start_search(store)
    scores = (0.7, 0.6, 0.9, 0.8)
    trials = [
        finished(score, parent=parent, config=config)
        for score, config in zip(scores, SPACE.points(SMALL), strict=True)
    ]
    best = trials[2]
    for reference in (parent, "latest", "best"):
        assert promote(reference).champion.run_id == best
    assert versions(store) == {"1": best}


def test_what_has_no_model_cannot_be_promoted(finished: Trials, store: Store) -> None:
    experiment = tracking.choose_experiment(store, "fashion-mnist")
    running = tracking.start_trial(store, experiment, TRIAL)
    with pytest.raises(TrackingError, match="is RUNNING, so it has no model"):
        promote(running)
    store.client.set_terminated(running, "FINISHED")
    with pytest.raises(TrackingError, match="has no logged model 'model': it was deleted"):
        promote(running, force=True)
    assert store.client.search_registered_models() == []


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a@champion", "x" * 300])
def test_a_name_that_cannot_be(name: str, store: Store) -> None:
    with pytest.raises(ConfigError, match="Expected name to be the name of a registered model"):
        promote("latest", name=name)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("is_tagged", [False, True])
def test_a_model_that_diverged_cannot_be_promoted(
    finished: Trials, store: Store, force: bool, is_tagged: bool
) -> None:
    run_id = finished(0.1)
    if is_tagged:
        store.client.set_tag(run_id, schema.DIVERGED, "3")  # its best epoch was before
    else:  # a run of an earlier version
        store.client.log_metric(run_id, "best_val_loss", float("nan"))
    with pytest.raises(TrackingError, match=rf"training of trial {run_id[:8]} diverged"):
        promote(run_id, force=force)
    assert versions(store) == {}


def test_a_name_with_a_quote(finished: Trials, store: Store) -> None:
    run_id = finished(0.8)
    assert promote(run_id, name="o'brien's \"model\"").registered
    assert not promote(run_id, name="o'brien's \"model\"").changed
    assert promote(run_id).registered  # another model's versions are not this one's


def test_nothing_of_a_run_becomes_markup(finished: Trials, store: Store) -> None:
    hostile = "<b>x</b> | [y](z) `w`\n# h"
    data = DatasetInfo(sha256="d" * 64, name=hostile, source="x")
    promote(finished(0.8, name=hostile, data=data))
    text = str(store.client.get_model_version(NAME, "1").description)
    assert "<b>" not in text.replace("\\<", "")
    assert r"\<b\>x\</b\> \| \[y\](z) \`w\` \# h" in text
    assert all(line.count(" | ") == 1 for line in text.splitlines() if line.startswith("| data |"))


def test_promotion_does_without_tensorflow(finished: Trials, tmp_path: Path) -> None:
    run_id = finished(0.8)
    status, modules = loaded_by("promote", "--run-id", run_id)
    assert status == 0
    assert "mlflow" in modules
    assert modules.isdisjoint({"tensorflow", "keras", "keras_tuner", "matplotlib"})


def activate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put this environment's programs on the PATH, as `activate` does."""
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


def test_what_a_person_is_told(
    finished: Trials, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate(monkeypatch)
    first, second, third = finished(0.8), finished(0.9), finished(0.7)

    def told(*arguments: str) -> tuple[int, str, list[str]]:
        status, out, err = call("promote", "--run-id", *arguments)
        return status, out.strip(), err.splitlines()

    one = f"fashion-mnist version 1: validation accuracy 0.8000, run {first[:8]}"
    two = f"fashion-mnist version 2: validation accuracy 0.9000, run {second[:8]}"
    model = "models:/fashion-mnist@champion"
    serve = f"Next: mlflow models serve -m {model} --env-manager local --port 5001"
    assert told(first) == (0, f"champion: {one}", ["There was no champion before.", serve])
    assert told(second) == (0, f"champion: {two}", [f"The champion before: {one}", serve])
    already = "It is the champion already; nothing is changed."
    assert told(second[:8]) == (0, f"champion: {two}", [already, serve])
    status, out, (line,) = told(third)
    assert (status, out) == (1, "")
    worse = (
        f"The trial {third[:8]}, with a validation accuracy of 0.7000, is worse than the champion, "
        f"{two}."
    )
    assert line == f"Error: {worse} Keep that one, or promote this with --force."
    status, out, lines = told(first, "--force")
    assert (status, out) == (0, f"champion: {one}")
    assert lines[0].startswith("Forced. The trial")
    assert lines[1:] == [
        f"The champion before: {two}",
        "The trial had been registered before; that version is used.",
        serve,
    ]
    status, out, lines = told(third, "--name", "two words", "--tracking-uri", finished.store.uri)
    assert lines[-1] == (
        f"Next: MLFLOW_TRACKING_URI={shlex.quote(finished.store.uri)} mlflow models serve -m "
        "'models:/two words@champion' --env-manager local --port 5001"
    )


def test_the_command_that_serves_can_be_pasted_wherever_the_store_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = "mlflow models serve -m models:/x@champion --env-manager local --port 5001"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    say_how_to_serve("x", "sqlite:////home/my runs/mlflow.db")
    line = capsys.readouterr().err
    programs = shlex.quote(str(Path(sys.executable).parent))
    store = "MLFLOW_TRACKING_URI='sqlite:////home/my runs/mlflow.db'"
    assert line == f'Next: PATH={programs}:"$PATH" {store} {serve}\n'
    activate(monkeypatch)
    for uri, line in (
        (
            "http://me:secret@host:5000",
            "Next, with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD set: "
            f"MLFLOW_TRACKING_URI=http://host:5000 {serve}\n",
        ),
        (
            "postgresql://me:secret@host/db",
            f"Next, with MLFLOW_TRACKING_URI set to this store: {serve}\n",
        ),
    ):
        say_how_to_serve("x", uri)
        assert capsys.readouterr().err == line


def test_a_promotion_as_json(finished: Trials) -> None:
    first, second = finished(0.8), finished(0.9)
    promote(first)
    content = json.loads(json.dumps(promote(second).to_json()))
    assert content["run_id"] == second
    assert (content["version"], content["changed"], content["registered"]) == ("2", True, True)
    assert content["previous"]["val_accuracy"] == 0.8
    assert content["previous"]["split"] == dataclasses.asdict(SMALL_SPLIT)


def test_a_version_knows_the_size_of_its_data_when_its_run_is_gone(
    finished: Trials, store: Store
) -> None:
    size = DataSize(train_images=2400, test_images=600, classes=10)
    run_id = finished(0.8, split=SplitConfig(limit=600, data=size))
    promote(run_id)
    store.client.delete_run(run_id)
    found = tracking.registry.find_champion(store, NAME)
    assert found is not None
    assert (found.run_exists, found.split) == (False, SplitConfig(limit=600, data=size))
