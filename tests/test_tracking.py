import contextlib
import csv
import dataclasses
import functools
import io
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from conftest import SMALL
from fmnist_tracking import plots, tracking
from fmnist_tracking.cli.output import print_runs
from fmnist_tracking.config import CLASS_NAMES, FIELDS
from fmnist_tracking.data import DataSplit
from fmnist_tracking.errors import ConfigError, TrackingError
from fmnist_tracking.networks.models import load_model, predict
from fmnist_tracking.results import TrainingResult
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.split_config import DataSize, SplitConfig
from fmnist_tracking.tracking import Store, schema
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.training.loop import Weights, train
from models import with_weights
from records import epoch, training
from runs import (
    FACTS,
    SEARCH,
    SPACE,
    TRIAL,
    finish_quickly,
    search_result,
    start_search,
    start_trial,
)


def finish(
    store: Store,
    run_id: str,
    trained: tuple[TrainingResult, Weights],
    data: DataSplit,
    **options: Any,
) -> None:
    """A trial's end, the model included."""
    run = store.client.get_run(run_id)
    result, weights = trained
    tracking.finish_trial(
        store,
        run.info.experiment_id,
        run_id,
        dataclasses.replace(TRIAL, parent=run.data.tags.get(schema.PARENT)),
        result,
        with_weights(result.config, weights),
        data.validation_images[:2],
        plots.png(plots.learning_curves(result, "curves")),
        data=data.parts(),
        **options,
    )


def fail(store: Store, run_id: str, line: str, trace: str) -> None:
    experiment = store.client.get_run(run_id).info.experiment_id
    tracking.fail_trial(store, experiment, run_id, TRIAL, line, trace)


@pytest.fixture(scope="module")
def trained(split: DataSplit) -> tuple[TrainingResult, Weights]:
    return train(SMALL, split)


def test_a_finished_trial_has_all_that_the_contract_names(
    store: Store, split: DataSplit, trained: tuple[TrainingResult, Weights], tmp_path: Path
) -> None:
    result, weights = trained
    model = with_weights(SMALL, weights)
    parent = start_search(store)
    run_id = start_trial(store, SMALL, parent)
    tracking.log_epochs(store, run_id, result.epochs)
    tracking.log_inputs(store, run_id, FACTS, split.parts())
    import keras_tuner  # registers custom objects, which MLflow would pickle

    assert keras_tuner
    assert len(keras.saving.get_custom_objects()) > 0
    finish(store, run_id, trained, split)
    assert len(keras.saving.get_custom_objects()) > 0

    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    tags = {k: v for k, v in run.data.tags.items() if k.startswith("fmnist.")}
    lease = Lease.read(tags)
    assert lease is not None
    assert lease.is_mine()
    assert tags == {
        "fmnist.lease": lease.text(),
        "fmnist.role": "trial",
        "fmnist.point": "f" * 64,
        "fmnist.data_sha256": "d" * 64,
        "fmnist.dataset": FACTS.description,
        "fmnist.protocol": "canonical",
        "fmnist.threads": "2",
        "fmnist.version": "1.2",
        "fmnist.code_sha256": "c" * 64,
    }
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["mlflow.source.git.commit"] == "a" * 40
    assert run.data.tags["mlflow.source.git.dirty"] == "true"
    assert {k: run.data.params[k] for k in FIELDS} == {k: str(v) for k, v in SMALL.values.items()}
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds"):
        history = store.client.get_metric_history(run_id, name)
        assert [(m.step, m.value, m.timestamp) for m in history] == [
            (e.epoch, getattr(e, name), e.ended_at) for e in result.epochs
        ]
    assert result.summary().items() <= run.data.metrics.items()
    files = {f.path for f in store.client.list_artifacts(run_id)}
    assert files == {"environment.json", "figures", "history.json", "validation"}
    environment = mlflow.artifacts.load_text(f"runs:/{run_id}/environment.json")
    assert json.loads(environment) == {"python": "CPython 3"}
    assert [f.path for f in store.client.list_artifacts(run_id, "figures")] == [
        "figures/learning_curves.png"
    ]

    table = mlflow.artifacts.load_text(f"runs:/{run_id}/validation/classes.csv").splitlines()
    assert table[0] == "class,precision,recall,f1,support"
    assert [line.split(",")[0] for line in table[1:]] == [
        *CLASS_NAMES,
        "macro avg",
        "weighted avg",
    ]
    confusion = mlflow.artifacts.load_text(f"runs:/{run_id}/validation/confusion_matrix.csv")
    rows = [line.split(",") for line in confusion.splitlines()]
    assert rows[0][1:] == [row[0] for row in rows[1:]] == list(CLASS_NAMES)
    right = sum(int(row[n]) for n, row in enumerate(rows[1:], start=1))
    assert right == round((result.best.val_accuracy or 0) * len(split.validation_labels))

    assert run.inputs is not None
    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert sorted(inputs) == ["training", "validation"]
    for part in split.parts():
        dataset = inputs[part.role]
        assert dataset.name == f"fashion-mnist-{part.role}"
        profile = json.loads(dataset.profile or "")
        assert profile["images_sha256"] == part.images_sha256
        assert profile["labels_sha256"] == part.labels_sha256

    (logged,) = store.client.search_logged_models([run.info.experiment_id])
    assert (logged.name, logged.source_run_id) == ("model", run_id)
    assert logged.status == "READY"
    assert logged.params["filters"] == str(SMALL["filters"])
    assert run.outputs is not None
    assert logged.metrics is not None
    assert [(o.model_id, o.step) for o in run.outputs.model_outputs] == [
        (logged.model_id, result.best.epoch)
    ]
    of_model = {m.key: m for m in logged.metrics}
    for name, value in result.validation_scores().items():
        assert (of_model[name].value, of_model[name].dataset_digest) == (
            value,
            inputs["validation"].digest,
        )
    assert of_model["model_bytes"].value > 4 * result.model_parameters
    note = run.data.tags["mlflow.note.content"]
    assert f"#/experiments/{run.info.experiment_id}/models/{logged.model_id}" in note
    assert f"#/experiments/{run.info.experiment_id}/runs/{parent}" in note
    images = split.validation_images
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    assert str(loaded.metadata.signature.inputs) == ("[Tensor('uint8', (-1, 28, 28, 1))]")
    np.testing.assert_array_equal(loaded.input_example, images[:2])
    right = loaded.predict(images).argmax(axis=1) == split.validation_labels
    assert np.mean(right) == result.best.val_accuracy
    requirements = Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/model"))
    lines = (requirements / "requirements.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in lines} == {"mlflow", "tensorflow", "keras", "numpy"}
    assert not list(requirements.rglob("*pickle*"))

    found = tracking.find_run(store, run_id)
    assert tracking.read_history(store, found) == result
    file = tracking.download_model(store, found, tmp_path)
    np.testing.assert_array_equal(predict(load_model(file), images), predict(model, images))


def test_a_trial_that_is_finished_again_has_all_of_it_once(
    store: Store, split: DataSplit, trained: tuple[TrainingResult, Weights]
) -> None:
    result, weights = trained
    run_id = start_trial(store, SMALL, start_search(store))
    for retry in (False, True):
        finish(store, run_id, trained, split, retry=retry)
    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    (logged,) = store.client.search_logged_models([run.info.experiment_id])
    assert run.outputs
    assert [m.model_id for m in run.outputs.model_outputs] == [logged.model_id]
    assert [m.value for m in store.client.get_metric_history(run_id, "model_bytes")] == [
        run.data.metrics["model_bytes"]
    ]
    for name, value in result.summary().items():
        assert [m.value for m in store.client.get_metric_history(run_id, name)] == [value]
    images = split.validation_images
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    expected = predict(with_weights(SMALL, weights), images)
    np.testing.assert_allclose(loaded.predict(images), expected, rtol=1e-5, atol=1e-7)


def test_epochs_that_are_logged_again_are_there_once(store: Store) -> None:
    run_id = start_trial(store, SMALL, start_search(store))
    epochs = [dataclasses.replace(epoch(n, n / 300), ended_at=n * 1000) for n in range(1, 202)]
    for count in (150, 201):
        tracking.log_epochs(store, run_id, epochs[:count])
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds"):
        history = store.client.get_metric_history(run_id, name)
        assert sorted((m.step, m.value, m.timestamp) for m in history) == [
            (e.epoch, getattr(e, name), e.ended_at) for e in epochs
        ]
    assert tracking.logged_steps(store, run_id) == set(range(1, 202))


def test_a_failed_trial_keeps_its_traceback(store: Store) -> None:
    run_id = start_trial(store, SMALL, start_search(store))
    fail(store, run_id, "ValueError: first line", "Traceback\n  in a function")
    assert store.client.get_run(run_id).info.status == "FAILED"
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/traceback.txt")
    assert text == "Traceback\n  in a function"
    error = tracking.read_trial(tracking.find_run(store, run_id)).error
    assert error == "ValueError: first line"


def test_a_trial_is_failed_even_where_artifacts_cannot_be_kept(
    store: Store, tmp_path: Path
) -> None:
    run_id = start_trial(store, SMALL, start_search(store))
    (tmp_path / "mlruns").touch()  # a file where the folder of artifacts should be
    fail(store, run_id, "OSError: disk full", "its traceback")
    run = store.client.get_run(run_id)
    assert (run.info.status, run.data.tags["fmnist.error"]) == ("FAILED", "OSError: disk full")


def test_a_trial_that_was_cut_off_goes_on_in_its_run(store: Store) -> None:
    first, second = start_search(store), start_search(store)
    run_id = start_trial(store, SMALL, first)
    tracking.log_epochs(store, run_id, [epoch(1, 0.5)])
    fail(store, run_id, "OSError: disk full", "")
    assert start_trial(store, SMALL, second, resume=run_id) == run_id
    run = store.client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert schema.ERROR not in run.data.tags
    assert run.data.tags["mlflow.parentRunId"] == second
    assert tracking.logged_steps(store, run_id) == {1}


def test_a_trial_that_this_process_has_opened_is_found(store: Store) -> None:
    experiment = tracking.choose_experiment(store, "fashion-mnist")
    parent = start_search(store)
    facts = dataclasses.replace(TRIAL, parent=parent)
    assert tracking.find_trial(store, experiment, facts) is None
    run_id = tracking.start_trial(store, experiment, facts)
    assert tracking.find_trial(store, experiment, facts) == run_id
    for other in (
        dataclasses.replace(facts, parent="0" * 32),
        dataclasses.replace(facts, fingerprint="0" * 64),
    ):
        assert tracking.find_trial(store, experiment, other) is None
    lease = dataclasses.replace(Lease.of_this_process(), machine="another")
    store.client.set_tag(run_id, schema.LEASE, lease.text())
    assert tracking.find_trial(store, experiment, facts) is None
    tracking.renew_lease(store, run_id)
    assert tracking.find_trial(store, experiment, facts) == run_id
    store.client.set_terminated(run_id, "KILLED")
    assert tracking.find_trial(store, experiment, facts) is None


def test_interruptions_are_noted_once_each(store: Store) -> None:
    run_id = start_trial(store, SMALL, start_search(store))
    for line in ("cut off", "died", "cut off", "died"):
        tracking.note_interruption(store, run_id, line)
    assert store.client.get_run(run_id).data.tags["fmnist.interruptions"] == "cut off\ndied"


def test_a_search_is_read_back_in_the_grid_s_order(store: Store) -> None:
    run_id = start_search(store)
    points = SPACE.points(SMALL)
    for score, config in zip((0.4, 0.3, 0.2, 0.1), reversed(points), strict=True):
        finish_quickly(store, start_trial(store, config, run_id), score)
    result = search_result(store, run_id)
    assert result.space == SPACE
    assert [t.config for t in result.trials] == list(points)
    assert [t.val_accuracy for t in result.trials] == [0.1, 0.2, 0.3, 0.4]
    assert tracking.best_trial(store, tracking.find_run(store, run_id)).run_id == (
        result.trials[3].run_id
    )


def test_a_finished_search_has_its_leaderboard(store: Store) -> None:
    run_id = start_search(store)
    trials = [start_trial(store, config, run_id) for config in SPACE.points(SMALL)]
    for trial, score in zip(trials, (0.4, 0.9, 0.2), strict=False):
        finish_quickly(store, trial, score)
    fail(store, trials[3], "RuntimeError: no memory", "its traceback")
    result = search_result(store, run_id)
    tracking.finish_search(store, result, b"a picture")

    run = store.client.get_run(run_id)
    assert run.info.status == "FAILED"  # a point is missing
    assert run.data.metrics["best_val_accuracy"] == 0.9
    assert run.data.metrics["finished_points"] == 3
    assert {f.path for f in store.client.list_artifacts(run_id)} == {
        "environment.json",
        "leaderboard.csv",
        "search.json",
        "figures",
    }
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/leaderboard.csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["rank"] for row in rows] == ["1", "2", "3", ""]
    assert [row["run_id"] for row in rows] == [trials[i] for i in (1, 0, 2, 3)]
    assert rows[0]["learning_rate"] == "0.001"
    content = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/search.json"))
    assert content == result.to_json(result.trials[1])
    assert content["failed"] == 1


def test_descriptions_lead_to_the_run_that_continues_a_search(store: Store) -> None:
    old, new = start_search(store), start_search(store)
    trial = start_trial(store, SPACE.points(SMALL)[0], old)
    tracking.move_trials(store, [trial], old, new)
    tags = store.client.get_run(trial).data.tags
    assert tags["mlflow.parentRunId"] == new
    assert new in tags["mlflow.note.content"]
    assert old not in tags["mlflow.note.content"]
    assert new in store.client.get_run(old).data.tags["mlflow.note.content"]


def test_a_search_that_is_ended_again_is_at_a_later_step(store: Store) -> None:
    run_id = start_search(store)
    trials = [start_trial(store, config, run_id) for config in SPACE.points(SMALL)]
    for trial in trials[:3]:
        finish_quickly(store, trial, 0.5)
    fail(store, trials[3], "RuntimeError: no memory", "")
    for _ in range(2):  # the same end twice is logged once
        tracking.finish_search(store, search_result(store, run_id), b"a picture")
    finish_quickly(store, start_trial(store, SPACE.points(SMALL)[3], run_id), 0.9)
    tracking.finish_search(store, search_result(store, run_id), b"a picture")
    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best_val_accuracy"] == 0.9
    history = store.client.get_metric_history(run_id, "finished_points")
    assert [(m.step, m.value) for m in history] == [(3, 3), (4, 4)]
    by_trials = tracking.read_search(store, tracking.find_run(store, run_id), summary=False)
    assert search_result(store, run_id) == by_trials


def test_what_a_person_wrote_stays(store: Store) -> None:
    run_id = start_search(store)
    trials = [start_trial(store, config, run_id) for config in SPACE.points(SMALL)]
    for trial in trials:
        finish_quickly(store, trial, 0.5)
    store.client.set_tag(run_id, "mlflow.note.content", "Mine: look at *this*.")
    for _ in range(2):
        tracking.finish_search(store, search_result(store, run_id), b"a picture")
        note = store.client.get_run(run_id).data.tags["mlflow.note.content"]
        assert note.startswith("Mine: look at *this*.\n\n---\n\n")
        assert note.count("**Best: ") == 1


def test_a_finished_search_has_its_winner_s_model_and_images(
    store: Store, split: DataSplit, trained: tuple[TrainingResult, Weights]
) -> None:
    parent = start_search(store, space=SearchSpace(axes={"filters": (SMALL["filters"],)}))
    run_id = start_trial(store, SMALL, parent)
    tracking.log_inputs(store, run_id, FACTS, split.parts())
    finish(store, run_id, trained, split)
    for _ in range(2):
        tracking.finish_search(store, search_result(store, parent), b"a picture")
    ended, trial = store.client.get_run(parent), store.client.get_run(run_id)
    assert ended.inputs and trial.inputs
    assert len(ended.inputs.dataset_inputs) == 2
    assert {i.dataset.digest for i in ended.inputs.dataset_inputs} == {
        i.dataset.digest for i in trial.inputs.dataset_inputs
    }
    assert ended.outputs and trial.outputs
    assert [m.model_id for m in ended.outputs.model_outputs] == [
        m.model_id for m in trial.outputs.model_outputs
    ]


def test_images_can_be_linked_by_many_at_once(store: Store, split: DataSplit) -> None:
    experiment = store.experiment_id("fashion-mnist")
    runs = [store.client.create_run(experiment).info.run_id for _ in range(8)]
    together = threading.Barrier(len(runs))

    def link(run_id: str) -> None:
        for number in range(10):
            data = dataclasses.replace(FACTS, name=f"data {number}")
            together.wait()
            tracking.log_inputs(store, run_id, data, split.parts())

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(link, runs))
    for run_id in runs:
        inputs = store.client.get_run(run_id).inputs
        assert inputs
        assert len(inputs.dataset_inputs) == 10 * 2


def test_a_history_of_another_version(store: Store) -> None:
    run_id = start_trial(store, SMALL, None)
    finish_quickly(store, run_id, 0.5)
    store.client.log_dict(run_id, {"config": {}, "epochs": []}, "history.json")
    with pytest.raises(TrackingError, match="is not one of this version"):
        tracking.read_history(store, tracking.find_run(store, run_id))


def test_reused_trials_count_among_a_search_s_own(store: Store) -> None:
    other, run_id = start_search(store), start_search(store)
    points = SPACE.points(SMALL)
    reused = [start_trial(store, config, other) for config in points[:2]]
    own = [start_trial(store, config, run_id) for config in points[2:]]
    for trial, score in zip((*reused, *own), (0.1, 0.2, 0.3, 0.4), strict=True):
        finish_quickly(store, trial, score)
    tracking.log_reused(store, run_id, reused)
    result = search_result(store, run_id)
    assert [t.run_id for t in result.trials] == [*reused, *own]
    assert [t.reused for t in result.trials] == [True, True, False, False]
    assert [t.val_accuracy for t in result.trials] == [0.1, 0.2, 0.3, 0.4]
    assert len(search_result(store, other).trials) == 2


def test_of_two_runs_of_a_point_the_finished_one_counts(store: Store) -> None:
    run_id = start_search(store)
    config = SPACE.points(SMALL)[0]
    finished = start_trial(store, config, run_id)
    finish_quickly(store, finished, 0.5)
    cut_off = start_trial(store, config, run_id)
    store.client.set_terminated(cut_off, "KILLED")
    (trial,) = search_result(store, run_id).trials
    assert trial.run_id == finished


def test_open_runs_of_this_process_are_closed(store: Store) -> None:
    run_id = start_search(store)
    done, running = (start_trial(store, c, run_id) for c in SPACE.points(SMALL)[:2])
    finish_quickly(store, done, 0.5)
    other = start_search(store)
    lease = dataclasses.replace(Lease.of_this_process(), machine="another")
    store.client.set_tag(other, schema.LEASE, lease.text())
    experiment = tracking.choose_experiment(store, "fashion-mnist")
    foreign = store.client.create_run(experiment).info.run_id
    tracking.close_own(store, experiment, "FAILED")
    runs = (done, running, run_id, other, foreign)
    assert [store.client.get_run(r).info.status for r in runs] == [
        "FINISHED",
        "KILLED",
        "FAILED",
        "RUNNING",
        "RUNNING",
    ]


def _log_params(client: MlflowClient, run: str, names: Sequence[str]) -> None:
    for name in names:
        client.log_param(run, name, "1")


def made_by_mlflow_run(
    store: Store, entry_point: str, params: Mapping[str, str] | None = None, name: str | None = None
) -> MlflowRun:
    """A run as `mlflow run` makes it before it starts a command."""
    experiment = store.client.get_experiment_by_name("chosen by mlflow run")
    run = store.client.create_run(
        experiment.experiment_id if experiment else store.experiment_id("chosen by mlflow run"),
        tags={"mlflow.project.entryPoint": entry_point, "mlflow.source.type": "PROJECT"},
        run_name=name,
    )
    for key, value in (params or {}).items():
        store.client.log_param(run.info.run_id, key, value)
    return run


def test_the_run_that_mlflow_run_made_becomes_the_parent(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_by_mlflow_run(
        store, "search", {"learning_rate": "1e-3", "axis": "", "limit": "600"}
    )
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", made.info.experiment_id)
    adopted = tracking.adoptable_run(store, "search")
    assert adopted == made.info.run_id
    experiment = tracking.choose_experiment(store, None, adopted)
    assert experiment == made.info.experiment_id
    assert tracking.start_search(store, experiment, SEARCH, None, adopted) == made.info.run_id
    # In use now, it is nobody else's.
    with pytest.raises(ConfigError, match="is in use already"):
        tracking.adoptable_run(store, "search")


def test_a_training_adopts_the_run_and_its_spelling(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_by_mlflow_run(store, "train", {"learning_rate": "1e-3"})
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    config = SMALL.replace(learning_rate=0.001)
    adopted = tracking.adoptable_run(store, "train")
    facts = dataclasses.replace(TRIAL, config=config, parent=None, adopted=adopted)
    assert tracking.start_trial(store, made.info.experiment_id, facts) == made.info.run_id
    run = tracking.find_run(store, made.info.run_id)
    assert run.role == "train"
    assert tracking.read_trial(run).config == config


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda client, run: client.set_terminated(run), "is FINISHED"),
        (lambda client, run: client.delete_run(run), "was deleted"),
        (lambda client, run: client.set_tag(run, "fmnist.role", "train"), "is in use already"),
        (lambda client, run: client.log_metric(run, "loss", 1.0), "is in use already"),
        (lambda client, run: client.set_tag(run, schema.ENTRY_POINT, "report"), "not made"),
        (lambda client, run: client.delete_tag(run, schema.ENTRY_POINT), "not made for"),
        *[
            (functools.partial(_log_params, names=(*known, foreign)), f"'{foreign}' is none here")
            for foreign in ("alpha", "momentum", "zoom")
            for known in ((), ("axis", "epochs"), ("workers",))
        ],
    ],
)  # fmt: skip
def test_no_other_run_is_adopted(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[MlflowClient, str], None],
    why: str,
) -> None:
    run_id = made_by_mlflow_run(store, "train").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert tracking.adoptable_run(store, "train") == run_id
    change(store.client, run_id)
    before = store.client.get_run(run_id).to_dictionary()
    with pytest.raises(ConfigError, match=why):
        tracking.adoptable_run(store, "train")
    alone = start_trial(store, SMALL, parent=None)
    tracking.mark_report_run(store, alone, "report")
    after = store.client.get_run(run_id).to_dictionary()
    assert (why == "not made") or after == before


def test_a_run_of_another_store_is_not_adopted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    with pytest.raises(ConfigError, match="is not in the store"):
        tracking.adoptable_run(store, "search")


def test_a_run_that_mlflow_run_made_keeps_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in ("my sweep", None):
        made = made_by_mlflow_run(store, "main", name=given)
        monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
        adopted = tracking.adoptable_run(store, "search")
        tracking.start_search(store, made.info.experiment_id, SEARCH, None, adopted)
        assert store.client.get_run(made.info.run_id).info.run_name == made.info.run_name


def test_the_run_that_mlflow_run_made_for_a_report_is_not_listed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = start_trial(store, SMALL, parent=None)
    made = made_by_mlflow_run(store, "report", {"run_id": "latest", "seed": "0"})
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    tracking.mark_report_run(store, alone, "report")
    assert tracking.find_run(store, "latest").run_id == alone
    assert [run.run_id for run in tracking.list_runs(store)] == [alone]
    marked = store.client.get_run(made.info.run_id)
    assert marked.data.tags["fmnist.report_of"] == alone
    assert marked.info.run_name == f"report of {alone[:8]}"


def test_the_experiment_that_the_environment_names_is_used(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = store.experiment_id("mine"), store.experiment_id("other")
    assert tracking.choose_experiment(store, "mine") == mine
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", mine)
    assert tracking.choose_experiment(store, None) == mine
    assert tracking.choose_experiment(store, "mine") == mine
    assert tracking.experiment_in_use(store, None) == {mine: "mine"}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert tracking.existing_experiment(store, None) == mine
    for named, by_name in (("other", "mine"), (None, "other"), ("mine", "other")):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", by_name)
        for look in (tracking.choose_experiment, tracking.experiment_in_use):
            with pytest.raises(ConfigError, match="given in ways that differ"):
                look(store, named)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")
    with pytest.raises(ConfigError, match="has no experiment with that id"):
        tracking.choose_experiment(store, None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", other)
    store.client.delete_experiment(other)
    with pytest.raises(TrackingError, match="was deleted"):
        tracking.choose_experiment(store, None)


def test_latest_best_and_prefixes(store: Store) -> None:
    first, second = start_search(store), start_search(store)
    trials = [start_trial(store, config, second) for config in SPACE.points(SMALL)[:2]]
    for trial, score in zip(trials, (0.9, 0.8), strict=True):
        finish_quickly(store, trial, score)
    assert tracking.find_run(store, "latest").run_id == second
    assert tracking.find_run(store, "best").run_id == trials[0]
    assert tracking.find_run(store, first[:12]).run_id == first
    alone = start_trial(store, SMALL, parent=None)
    assert tracking.find_run(store, "latest").run_id == alone
    assert tracking.find_run(store, "latest", "fashion-mnist").run_id == alone


def test_runs_that_cannot_be_meant(store: Store) -> None:
    with pytest.raises(
        TrackingError, match="There is no search in the experiment 'fashion-mnist' yet"
    ):
        tracking.find_run(store, "latest")
    with pytest.raises(
        TrackingError, match="There is no search in the experiment 'fashion-mnist' yet"
    ):
        tracking.list_runs(store)
    empty = start_search(store)
    with pytest.raises(TrackingError, match=r"\(RUNNING\) has no finished trial\. Wait for one\."):
        tracking.find_run(store, "best")
    with pytest.raises(TrackingError, match="There is no run abcd1234 in this store"):
        tracking.find_run(store, "abcd1234")
    for nonsense in ("x", "abc", "latest'; DROP", "%"):
        with pytest.raises(TrackingError, match="Expected a run id"):
            tracking.find_run(store, nonsense)
    with pytest.raises(
        TrackingError,
        match=r"no experiment 'none' in this store\. It has: Default, fashion-mnist\.",
    ):
        tracking.find_run(store, empty, "none")
    foreign = store.client.create_run("0").info.run_id
    with pytest.raises(TrackingError, match="it is no search or trial of fmnist-track"):
        tracking.find_run(store, foreign)
    running = start_trial(store, SMALL, empty)
    with pytest.raises(TrackingError, match="is RUNNING, so it has no model"):
        tracking.download_model(store, tracking.find_run(store, running), Path())


def test_an_ambiguous_beginning_lists_the_runs(store: Store) -> None:
    ids = sorted(start_search(store) for _ in range(3))
    # Ids are random; their common beginning is empty, so one is forced by the store's own table.
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("PRAGMA foreign_keys = OFF")
        for number, run_id in enumerate(ids[:2]):
            new = f"abcdef{number}" + run_id[7:]
            database.execute("UPDATE runs SET run_uuid = ? WHERE run_uuid = ?", (new, run_id))
    with pytest.raises(TrackingError, match=r"abcdef is the beginning of 2 run ids: abcdef0"):
        tracking.find_run(store, "abcdef")


def test_runs_are_listed_newest_first(store: Store) -> None:
    search, alone = start_search(store), start_trial(store, SMALL, parent=None)
    finish_quickly(store, start_trial(store, SPACE.points(SMALL)[0], search), 0.6)
    finish_quickly(store, alone, 0.7)
    newest, oldest = tracking.list_runs(store)
    assert (newest.run_id, newest.role, newest.points, newest.finished) == (alone, "train", 1, 1)
    assert newest.val_accuracy == 0.7
    assert (oldest.run_id, oldest.role, oldest.points, oldest.finished) == (search, "search", 4, 1)
    assert (oldest.val_accuracy, oldest.status, oldest.experiment) == (
        0.6,
        "RUNNING",
        "fashion-mnist",
    )


@pytest.mark.parametrize(
    ("epochs", "shown", "listed"), [((), 2, ()), ((7,), 7, ()), ((5, 10), None, (5, 10))]
)
def test_the_epochs_of_a_search_are_listed(
    store: Store, epochs: tuple[int, ...], shown: int | None, listed: tuple[int, ...]
) -> None:
    axes = {"epochs": epochs} if epochs else {}
    start_search(store, space=SearchSpace(axes={"filters": (12, 36), **axes}))
    (summary,) = tracking.list_runs(store)
    assert summary.epochs == shown
    assert summary.grid.get("epochs", ()) == listed
    assert summary.grid["filters"] == (12, 36)


def test_a_report_s_metrics_are_logged_once_and_change_nothing_else(
    store: Store, tmp_path: Path
) -> None:
    search = start_search(store)
    trial = start_trial(store, SPACE.points(SMALL)[0], search)
    finish_quickly(store, trial, 0.6)
    before = store.client.get_run(trial)
    file = tmp_path / "page.html"
    file.write_text("<p>a page</p>")
    for _ in range(2):
        tracking.log_test_opened(store, search, trial)
        tracking.log_report(store, search, [file], {"test_accuracy": 0.5})
    assert [m.value for m in store.client.get_metric_history(search, "test_accuracy")] == [0.5]
    assert [f.path for f in store.client.list_artifacts(search, "report")] == ["report/page.html"]
    after = store.client.get_run(trial)
    assert after.data.metrics == before.data.metrics
    assert after.data.params == before.data.params
    assert after.info.status == before.info.status
    assert set(after.data.tags) - set(before.data.tags) == {schema.TEST_OPENED}
    assert schema.TEST_OPENED in store.client.get_run(search).data.tags


def test_figures_of_validation_images_are_kept_and_open_nothing(
    store: Store, tmp_path: Path
) -> None:
    trial = start_trial(store, SMALL, parent=None)
    file = tmp_path / "predictions.png"
    file.write_bytes(b"a figure")
    before = store.client.get_run(trial).data
    tracking.log_validation_figures(store, trial, [file])
    kept = [f.path for f in store.client.list_artifacts(trial, "validation")]
    assert kept == ["validation/predictions.png"]
    assert store.client.get_run(trial).data.tags == before.tags


def test_a_run_of_a_later_version_is_explained(store: Store) -> None:
    run_id = start_trial(store, SMALL, parent=None)
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("UPDATE params SET value = 'many' WHERE key = 'filters'")
    with pytest.raises(TrackingError, match="are not a configuration of this version"):
        tracking.read_trial(tracking.find_run(store, run_id))


def test_split_is_read_back(store: Store) -> None:
    run_id = start_trial(store, SMALL, None)
    assert tracking.find_run(store, run_id).split == SplitConfig(limit=600)
    with contextlib.closing(sqlite3.connect("mlflow.db")) as rows, rows:  # as of earlier releases
        names = "('split.train_images', 'split.test_images', 'split.classes')"
        assert rows.execute(f"DELETE FROM params WHERE key IN {names}").rowcount == 3
    assert tracking.find_run(store, run_id).split == SplitConfig(limit=600)


def test_the_size_of_other_data_is_read_back(store: Store) -> None:
    size = DataSize(train_images=940, test_images=188, classes=47)
    split = SplitConfig(protocol="coursework", data=size, limit=300, seed=2)
    for run_id in (
        start_search(store, split=split),
        tracking.start_trial(
            store, tracking.choose_experiment(store, None), dataclasses.replace(TRIAL, split=split)
        ),
    ):
        assert tracking.find_run(store, run_id).split == split
    # A limit that such data does not have is no split.
    with contextlib.closing(sqlite3.connect("mlflow.db")) as rows, rows:
        rows.execute("UPDATE params SET value = '281' WHERE key = 'split.limit'")
    with pytest.raises(TrackingError, match=r"split \(Expected limit to be from 282"):
        tracking.find_run(store, run_id)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://127.0.0.1:9", "cannot be reached"),
        ("postgresql://me:secret@127.0.0.1:9/db", r"postgresql://\*\*\*@127.0.0.1:9/db cannot"),
        ("sqlite:////no/such/folder/mlflow.db", "cannot be created"),
        ("./mlruns", "Did you mean sqlite:///"),
    ],
)
def test_unreachable_stores(uri: str, words: str) -> None:
    with (
        pytest.raises(TrackingError, match=words) as caught,
        tracking.open_store(uri, access="create"),
    ):
        pass
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_does_not_make_a_store() -> None:
    with pytest.raises(TrackingError, match="There is no MLflow store"), tracking.open_store():
        pass
    assert not Path("mlflow.db").exists()


def test_a_deleted_experiment_is_explained(store: Store) -> None:
    store.client.delete_experiment(store.experiment_id("gone"))
    with pytest.raises(TrackingError, match="The experiment 'gone' was deleted"):
        store.experiment_id("gone")


def test_a_file_that_is_no_store_is_explained(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("these are notes, not a database " * 100)
    with (
        pytest.raises(TrackingError, match="cannot be read as a SQLite database"),
        tracking.open_store(f"sqlite:///{tmp_path}/notes.db"),
    ):
        pass


def test_the_store_to_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///env.db")
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/env.db"
    assert tracking.tracking_uri("sqlite:///given.db") == f"sqlite:///{tmp_path}/given.db"


def diverged(scores: tuple[float, ...]) -> TrainingResult:
    """A training whose last epoch has no finite loss."""
    result = training(*scores)
    last = dataclasses.replace(result.epochs[-1], val_loss=float("nan"))
    return dataclasses.replace(result, epochs=(*result.epochs[:-1], last))


def test_a_trial_that_diverged_is_marked_and_a_search_of_such_has_no_best(
    store: Store, split: DataSplit, trained: tuple[TrainingResult, Weights]
) -> None:
    space = SearchSpace(axes={"filters": (4,)})
    search = start_search(store, space=space)
    run_id = start_trial(store, SMALL, search)
    epochs = diverged((0.7, 0.8)).epochs
    finish(store, run_id, (dataclasses.replace(trained[0], epochs=epochs), trained[1]), split)
    run = store.client.get_run(run_id)
    assert (run.info.status, run.data.tags["fmnist.diverged"]) == ("FINISHED", "2")
    assert "**It diverged in epoch 2**" in run.data.tags["mlflow.note.content"]
    assert tracking.read_trial(tracking.as_tracked(run)).diverged
    tracking.finish_search(store, search_result(store, search), b"picture")
    ended = store.client.get_run(search)
    assert ended.info.status == "FINISHED"
    assert "fmnist.best_run" not in ended.data.tags
    assert "best_val_accuracy" not in ended.data.metrics
    assert "Every trial diverged" in ended.data.tags["mlflow.note.content"]
    (row,) = csv.DictReader(io.StringIO(read(ended, "leaderboard.csv")))
    assert (row["status"], row["diverged"]) == ("FINISHED", "True")
    assert json.loads(read(ended, "search.json"))["best"] is None
    with pytest.raises(TrackingError, match=r"Every finished trial of the search .* diverged"):
        tracking.best_trial(store, tracking.find_run(store, search))


def read(run: Any, file: str) -> str:
    return str(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{file}"))


def test_a_run_of_an_earlier_version_without_a_loss_diverged(store: Store) -> None:
    lost, found = (start_trial(store, SMALL, None) for _ in range(2))
    for run_id, loss in ((lost, float("nan")), (found, 0.5)):
        store.client.log_metric(run_id, "best_val_loss", loss)
        finish_quickly(store, run_id, 0.1)
    results = [tracking.read_trial(tracking.find_run(store, run_id)) for run_id in (lost, found)]
    assert [result.diverged for result in results] == [True, False]


def test_a_search_s_description_tells_what_diverged(store: Store) -> None:
    search = start_search(store, space=SearchSpace(axes={"learning_rate": (0.001, 0.1, 10.0)}))
    for rate, score in ((0.001, 0.6), (0.1, 0.7), (10.0, 0.9)):
        run_id = start_trial(store, SMALL.replace(learning_rate=rate), search)
        if rate == 10:
            store.client.set_tag(run_id, schema.DIVERGED, "1")
        finish_quickly(store, run_id, score)
    tracking.finish_search(store, search_result(store, search), b"picture")
    note = store.client.get_run(search).data.tags["mlflow.note.content"]
    assert "3 of 3 points finished; 1 trial diverged." in note
    assert "| 3 | " in note
    assert "| diverged |" in note
    assert "0.001: 0.6000, 0.1: 0.7000, 10: diverged | 0.1000" in note


def test_a_search_each_of_whose_points_has_a_seed_that_diverged_ends(store: Store) -> None:
    space = SearchSpace(axes={"filters": (12, 36), "seed": (0, 1)})
    search = start_search(store, space=space)
    for place, config in enumerate(space.points(SMALL)):
        run_id = start_trial(store, config, search)
        if config.seed == 1:
            store.client.set_tag(run_id, schema.DIVERGED, "1")
        finish_quickly(store, run_id, 0.5 + place / 10)
    result = search_result(store, search)
    tracking.finish_search(store, result, plots.png(plots.search_grid(result)))
    ended = store.client.get_run(search)
    assert ended.info.status == "FINISHED"
    assert (ended.data.metrics["finished_points"], ended.data.metrics["best_val_accuracy"]) == (
        4,
        0.7,
    )
    assert "2 trials diverged" in ended.data.tags["mlflow.note.content"]
    rows = list(csv.DictReader(io.StringIO(read(ended, "leaderboard.csv"))))
    assert [row["diverged"] for row in rows] == ["False", "True"] * 2


@pytest.mark.parametrize("start", [99999999999999999, -99999999999999, "'abc'"])
def test_a_search_that_began_at_no_time_of_people_is_listed(
    store: Store, start: object, capsys: pytest.CaptureFixture[str]
) -> None:
    start_search(store)
    with contextlib.closing(sqlite3.connect("mlflow.db")) as rows, rows:
        rows.execute(f"UPDATE runs SET start_time = {start}")
    print_runs(tracking.list_runs(store))
    assert "search" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["'abc'", -1, 1e308])
def test_a_search_s_own_figures_are_believed_if_they_can_be(store: Store, value: object) -> None:
    search = start_search(store)
    trial = start_trial(store, SPACE.points(SMALL)[0], search)
    finish_quickly(store, trial, 0.6)
    tracking.finish_search(
        store, tracking.read_search(store, tracking.find_run(store, search)), b""
    )
    with contextlib.closing(sqlite3.connect("mlflow.db")) as rows, rows:
        rows.execute(
            f"UPDATE latest_metrics SET value = {value} WHERE key = 'best_val_accuracy' "
            "AND run_uuid = ?", (search,)
        )  # fmt: skip
    (listed,) = tracking.list_runs(store)
    assert listed.val_accuracy == 0.6


def test_words_and_lists_mean_the_experiment_in_use(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine = start_search(store)
    finish_quickly(store, start_trial(store, SPACE.points(SMALL)[0], mine), 0.6)
    theirs = store.experiment_id("theirs")
    newer = tracking.start_search(store, theirs, SEARCH)
    with caplog.at_level(logging.INFO):
        assert tracking.find_run(store, "latest").run_id == mine
    assert f"latest: the search {mine[:8]} in the experiment fashion-mnist" in caplog.text
    assert [run.run_id for run in tracking.list_runs(store)] == [mine]
    assert tracking.find_run(store, "latest", "theirs").run_id == newer
    assert tracking.find_run(store, newer[:12]).run_id == newer
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert tracking.find_run(store, "latest").run_id == newer
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    # The run that `mlflow run` has made says where to look, unless a person does.
    monkeypatch.setenv("MLFLOW_RUN_ID", store.client.create_run(theirs).info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", theirs)
    assert tracking.find_run(store, "latest").run_id == newer
    assert tracking.find_run(store, "latest", "fashion-mnist").run_id == mine


def test_where_the_experiment_in_use_is_empty_the_others_are_named(store: Store) -> None:
    tracking.start_search(store, store.experiment_id("theirs"), SEARCH)
    with pytest.raises(TrackingError, match=r"in the experiment .fashion-mnist. yet.*theirs"):
        tracking.find_run(store, "latest")


def test_what_begins_several_ids_means_the_one_in_use(store: Store) -> None:
    mine = start_search(store)
    theirs = tracking.start_search(store, store.experiment_id("theirs"), SEARCH)
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("PRAGMA foreign_keys = OFF")
        for number, run_id in enumerate((mine, theirs)):
            for table in ("runs", "tags", "params"):
                new = f"abcdef{number}" + run_id[7:]
                database.execute(
                    f"UPDATE {table} SET run_uuid = ? WHERE run_uuid = ?", (new, run_id)
                )
    assert tracking.find_run(store, "abcdef").run_id == f"abcdef0{mine[7:]}"
    assert tracking.find_run(store, "abcdef1").run_id == f"abcdef1{theirs[7:]}"


def test_another_s_champion_is_asked_for_by_name(store: Store) -> None:
    facts = dataclasses.replace(TRIAL, parent=None)
    trial = tracking.start_trial(store, store.experiment_id("theirs"), facts)
    finish_quickly(store, trial, 0.5)
    store.client.create_registered_model("fashion-mnist")
    store.client.create_model_version("fashion-mnist", "file:///x", trial)
    store.client.set_registered_model_alias("fashion-mnist", "champion", "1")
    with pytest.raises(TrackingError, match="another experiment than 'fashion-mnist'"):
        tracking.find_run(store, "champion")
    assert tracking.find_run(store, "champion", "theirs").run_id == trial
    assert tracking.find_run(store, "fashion-mnist@champion").run_id == trial
