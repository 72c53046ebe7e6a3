"""Longer trainings that go on from the kept checkpoints of shorter ones."""

import dataclasses
import json
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from functools import cache as once
from pathlib import Path
from typing import Any

import pytest

import nets
from conftest import SMALL, Call
from fmnist_tracking import fingerprint, tracking
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.data import DataSplit
from fmnist_tracking.networks.source import find_network
from fmnist_tracking.results import EpochMetrics, TrainingResult
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking.resume import EPOCH_METRICS
from fmnist_tracking.training.checkpoints import CheckpointPlace
from fmnist_tracking.training.loop import Weights, train
from searches import Place, finish, weights

# At this learning rate the score goes up and down, so that patience may end it.
JUMPY = SMALL.replace(filters=16, strides=1, learning_rate=0.02)
# With batch normalisation and momentum.
CHOSEN: dict[str, Any] = {
    **{"model_type": "cnn", "cnn_filters": 2, "cnn_norm": True},
    **{"optimizer": "sgd", "momentum": 0.8},
}
NORMALIZED = TrainingConfig.of(find_network(f"{nets.__file__}:conditional"), **CHOSEN)
NETWORKS = {"coursework": JUMPY, "normalized": NORMALIZED}
# Epochs and patience of a training, and of one that may go on from its checkpoint.
PAIRS = [
    ((2, 0), (5, 0)),
    ((2, 0), (5, 2)),
    ((5, 2), (9, 2)),
    ((5, 1), (9, 3)),
    ((5, 0), (9, 1)),
    ((8, 0), (9, 1)),
    ((5, 0), (3, 0)),
    ((3, 0), (3, 0)),
]


def place_in(folder: Path, name: str) -> CheckpointPlace:
    return CheckpointPlace(folder=folder / name, fingerprint=name[0] * 64)


def figures(result: TrainingResult) -> list[EpochMetrics]:
    return [dataclasses.replace(e, epoch_seconds=0, ended_at=0, usage={}) for e in result.epochs]


def came_to(result: TrainingResult, of_best: Weights) -> Any:
    """All numbers that a training came to."""
    return figures(result), result.best.epoch, result.validation, [w.tobytes() for w in of_best]


@once
def undisturbed(config: TrainingConfig, folder: Path) -> tuple[Any, CheckpointPlace]:
    """Train without an interruption; return what it comes to, and where its checkpoint is kept."""
    kept = place_in(folder, f"kept {len(list(folder.iterdir()))}")
    result, of_best = train(config, SPLITS[0], place=place_in(folder, "own"), keep_in=kept)
    shutil.rmtree(folder / "own")
    return came_to(result, of_best), kept


SPLITS: list[DataSplit] = []


@pytest.fixture(scope="module", autouse=True)
def folder(split: DataSplit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    SPLITS[:] = [split]
    return tmp_path_factory.mktemp("kept")


@pytest.mark.parametrize(("before", "after"), PAIRS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_longer_training_comes_to_what_an_undisturbed_one_comes_to(
    network: str,
    before: tuple[int, int],
    after: tuple[int, int],
    split: DataSplit,
    folder: Path,
    tmp_path: Path,
) -> None:
    shorter, longer = (
        NETWORKS[network].replace(epochs=epochs, patience=patience)
        for epochs, patience in (before, after)
    )
    (shorter_figures, *_), kept = undisturbed(shorter, folder)
    expected, _ = undisturbed(longer, folder)
    spared: list[Sequence[EpochMetrics]] = []
    came = came_to(
        *train(
            longer,
            split,
            place=place_in(tmp_path, "own"),
            begin_from=kept,
            on_start=spared.append,
        )
    )
    assert came == expected
    # It goes on from there exactly if it comes so far itself.
    comes_so_far = len(expected[0]) >= len(shorter_figures)
    assert len(spared[0]) == (len(shorter_figures) if comes_so_far else 0)


def test_from_the_start_on_it_can_go_on_without_what_was_kept(
    split: DataSplit, tmp_path: Path
) -> None:
    kept, place = place_in(tmp_path, "kept"), place_in(tmp_path, "own")
    train(SMALL, split, place=place_in(tmp_path, "first"), keep_in=kept)

    def cut_off(epochs: Sequence[EpochMetrics]) -> None:
        raise InterruptedError

    longer = SMALL.replace(epochs=3)
    with pytest.raises(InterruptedError):
        train(longer, split, place=place, begin_from=kept, on_start=cut_off)
    shutil.rmtree(kept.folder)
    spared: list[Sequence[EpochMetrics]] = []
    train(longer, split, place=place, begin_from=kept, on_start=spared.append)
    assert [len(epochs) for epochs in spared] == [2]


def test_of_two_the_checkpoint_of_more_epochs_stays(split: DataSplit, tmp_path: Path) -> None:
    kept = place_in(tmp_path, "kept")
    for epochs in (3, 1, 2):
        place = place_in(tmp_path, f"{epochs}")
        train(SMALL.replace(epochs=epochs), split, place=place, keep_in=kept)
    spared: list[Sequence[EpochMetrics]] = []
    place = place_in(tmp_path, "own")
    train(SMALL.replace(epochs=4), split, place=place, begin_from=kept, on_start=spared.append)
    assert [len(epochs) for epochs in spared] == [3]
    assert [file.name for file in kept.folder.iterdir()] == ["checkpoint"]


def test_a_training_that_diverged_stays_as_it_is(split: DataSplit, tmp_path: Path) -> None:
    config, kept = SMALL.replace(learning_rate=1e30), place_in(tmp_path, "kept")
    train(config, split, place=place_in(tmp_path, "first"), keep_in=kept)
    spared: list[Sequence[EpochMetrics]] = []
    longer, place = config.replace(epochs=9), place_in(tmp_path, "own")
    result, _ = train(longer, split, place=place, begin_from=kept, on_start=spared.append)
    assert result.diverged == len(result.epochs) == len(spared[0]) == 1


def test_a_full_disk_costs_what_is_kept_alone(
    split: DataSplit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    kept = CheckpointPlace(folder=tmp_path / "file" / "kept", fingerprint="f" * 64)
    with caplog.at_level(logging.WARNING, "fmnist_tracking"):
        result, _ = train(SMALL, split, place=place_in(tmp_path, "own"), keep_in=kept)
    assert len(result.epochs) == 2
    (said,) = caplog.messages
    assert said.startswith(f"The checkpoint to be kept in {kept.folder} was not written (")


def test_epochs_and_patience_alone_are_not_in_the_key() -> None:
    split = SplitConfig(limit=600)

    def key(config: TrainingConfig, split: SplitConfig = split, data: str = "d") -> str:
        return fingerprint.of_epochs(config, split, data)

    for config in (SMALL, NORMALIZED):
        assert key(config) == key(config.replace(epochs=7, patience=3))
        others = [config.replace(seed=1), config.replace(batch_size=7)]
        assert key(config) not in map(key, others)
        assert key(config) != key(config, SplitConfig(limit=700))
        assert key(config) != key(config, data="e")
    assert key(NORMALIZED) != key(NORMALIZED.replace(momentum=0.4))


SEARCHES = {
    "coursework": (
        *("--filters", "4", "--strides", "2", "--kernel-sizes", "3", "--hidden-units", "8"),
        *("--axis", "dropout=0.1,0.4"),
    ),
    "normalized": (
        *("--network", f"{nets.__file__}:conditional", "--axis"),
        "model_type=cnn;cnn_filters=2;cnn_norm=true,false;optimizer=adam",
    ),
}
KEEP = "--keep-checkpoints"


def search(call: Call, name: str, epochs: int, *options: str) -> tuple[dict[str, Any], str]:
    words = ("search", "--limit", "600", "--workers", "1", "--epochs", str(epochs), "--json")
    status, out, err = call(*words, *SEARCHES[name], *options)
    assert status == 0, err
    return json.loads(out), err


def trials(found: dict[str, Any], epochs: int, uri: str | None = None) -> dict[str, Any]:
    """What came out of each trial of a search, by its fingerprint, each step once."""
    came = {}
    with tracking.open_store(uri) as store:
        client = store.client
        for trial in found["trials"]:
            run = client.get_run(trial["run_id"])
            assert run.info.status == "FINISHED"
            curves = {
                name: sorted(
                    (m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)
                )
                for name in EPOCH_METRICS
            }
            for curve in curves.values():
                assert [step for step, _ in curve] == [*range(1, epochs + 1)]
            del curves["epoch_seconds"]
            summary = [run.data.metrics[name] for name in ("best_val_accuracy", "best_epoch")]
            model = weights(client, run, found["experiment_id"])
            came[run.data.tags["fmnist.point"]] = curves, summary, [w.tobytes() for w in model]
    return came


def interruptions(found: dict[str, Any], uri: str | None = None) -> list[str]:
    with tracking.open_store(uri) as store:
        runs = [store.client.get_run(trial["run_id"]) for trial in found["trials"]]
    return [run.data.tags.get("fmnist.interruptions", "") for run in runs]


def kept_files() -> list[Path]:
    return [file for file in Path(os.environ["FMNIST_STATE_DIR"]).rglob("*") if file.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_of_more_epochs_goes_on_from_what_was_kept(name: str, call: Call) -> None:
    expected, _ = search(call, name, 4, "--experiment", "undisturbed")
    assert kept_files() == []  # nobody has asked for them
    plan, _ = search(call, name, 2, KEEP, "--dry-run")
    assert [point["state"] for point in plan["points"]] == ["new", "new"]
    first, _ = search(call, name, 2, KEEP)
    size = sum(file.stat().st_size for file in kept_files())
    assert len(kept_files()) == 2
    assert size / 2 < plan["kept_bytes"] < size * 2
    assert search(call, name, 2, "--dry-run")[0]["kept_bytes"] == 0
    elsewhere, _ = search(call, name, 4, "--dry-run", "--experiment", "another")
    assert {point["state"] for point in elsewhere["points"]} == {"new"}
    anew, _ = search(call, name, 4, "--dry-run", "--fresh")
    assert {point["state"] for point in anew["points"]} == {"new"}
    plan, _ = search(call, name, 4, "--dry-run")
    assert [(p["state"], p["epochs_done"], p["epochs"]) for p in plan["points"]] == [
        ("continues", 2, 4)
    ] * 2
    longer, err = search(call, name, 4)
    assert err.count("goes on after epoch 2") == 2
    assert trials(longer, 4) == trials(expected, 4)
    assert {t["run_id"] for t in first["trials"]}.isdisjoint(t["run_id"] for t in longer["trials"])
    for line in interruptions(longer):
        assert "begun after epoch 2, from the checkpoint that an earlier training kept" in line
    assert sum(file.stat().st_size for file in kept_files()) == size  # this one was to keep none
    fewer, err = search(call, name, 1)
    assert "goes on after" not in err
    assert len(trials(fewer, 1)) == 2


@pytest.mark.slow
def test_a_damaged_file_costs_its_epochs_alone(
    call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = search(call, "coursework", 3, "--experiment", "undisturbed")
    search(call, "coursework", 2, KEEP)
    damaged = kept_files()[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with caplog.at_level(logging.WARNING, "fmnist_tracking"):
        found, err = search(call, "coursework", 3, KEEP)
    (said,) = caplog.messages
    assert said.startswith(f"The checkpoint in {damaged.parent} is not used: it has changed since")
    assert err.count("goes on after epoch 2") == 1
    assert trials(found, 3) == trials(expected, 3)
    plan, _ = search(call, "coursework", 5, "--dry-run")
    assert [point["epochs_done"] for point in plan["points"]] == [3, 3]  # it was replaced


@pytest.mark.slow
def test_a_single_training_goes_on_too(call: Call) -> None:
    words = ("train", "--limit", "600", "--filters", "4", "--strides", "2", "--json")
    for epochs, how in ((1, "started"), (2, "goes on after epoch 1"), (3, "goes on after epoch 2")):
        status, _, err = call(*words, "--epochs", str(epochs), KEEP)
        assert (status, how in err) == (0, True), err
    assert len(kept_files()) == 1
    status, _, err = call(*words, "--epochs", "4", "--fresh")
    assert (status, "goes on after" in err) == (0, False)


@pytest.mark.slow
def test_a_search_that_was_to_train_anew_still_does(call: Call) -> None:
    search(call, "coursework", 1, KEEP)
    found, _ = search(call, "coursework", 2, "--fresh")
    with tracking.open_store() as store:
        store.client.delete_run(found["trials"][0]["run_id"])
    plan, _ = search(call, "coursework", 2, "--dry-run")
    assert sorted(point["state"] for point in plan["points"]) == ["finished", "new"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["coursework", pytest.param("normalized", marks=pytest.mark.release)]
)
def test_killed_while_it_goes_on(name: str, tmp_path: Path, cache: Path) -> None:
    def begin(place: Place, epochs: int, *options: str) -> Any:
        words = ("search", "--limit", "3000", "--workers", "2", "--json", *SEARCHES[name])
        return place.start(words=(*words, "--epochs", str(epochs), *options))

    calm, place = Place(tmp_path / "calm", cache), Place(tmp_path / "disturbed", cache)
    expected = finish(begin(calm, 9), calm)
    finish(begin(place, 3, KEEP), place)
    process = begin(place, 9, KEEP)
    place.wait_until_said("goes on after epoch 3", 1, process)  # which is logged at once
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process = begin(place, 9, KEEP)
    place.wait_until_said("epoch 6/9", 1, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = finish(begin(place, 9, KEEP), place)
    assert trials(found, 9, place.uri) == trials(expected, 9, calm.uri)
    with tracking.open_store(place.uri) as store:  # a trial that was cut off went on in its run
        runs = store.client.search_runs([found["experiment_id"]])
    ended = [run.info.status for run in runs if run.data.tags["fmnist.role"] == "trial"]
    assert ended == ["FINISHED"] * 4
    left = [file for file in Path(place.state).rglob("*") if file.is_file()]
    assert [file.name for file in left] == ["checkpoint"] * 2
    words = ("--dry-run", KEEP)
    plan = finish(begin(place, 10, *words), place)
    assert [point["epochs_done"] for point in plan["points"]] == [9, 9]
