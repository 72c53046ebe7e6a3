"""A search in processes of its own, and whether it came to what an undisturbed one comes to."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from fmnist_tracking import tracking
from fmnist_tracking.networks.models import load_model
from fmnist_tracking.tracking import open_store
from fmnist_tracking.tracking.resume import EPOCH_METRICS

LIMIT = 3000
EPOCHS = 8
POINTS = 4
SEARCH = (
    *("search", "--limit", str(LIMIT), "--epochs", str(EPOCHS), "--filters", "8,16"),
    *("--strides", "1", "--kernel-sizes", "3", "--hidden-units", "8", "--repeats", "2"),
    *("--workers", "2", "--json"),
)
SUMMARY = ("best_val_accuracy", "best_epoch", "model_parameters")


@dataclass
class Place:
    """A folder to search in: its store, its checkpoints, and what the processes said."""

    folder: Path
    cache: Path
    uri: str = ""
    state: str = ""
    experiment: str = "fashion-mnist"
    epochs: int = EPOCHS

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.uri = self.uri or f"sqlite:///{self.folder}/mlflow.db"
        self.state = self.state or f"{self.folder}/state"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(
        self,
        *options: str,
        within: Sequence[str] = (),
        words: Sequence[str] = (),
        **variables: str,
    ) -> "subprocess.Popen[str]":
        """Start the search, `within` another program that gives it an environment."""
        words = words or [str(self.epochs) if word == str(EPOCHS) else word for word in SEARCH]
        with self.log.open("a") as log, self.out.open("w") as out:
            return subprocess.Popen(
                [*within, sys.executable, "-m", "fmnist_tracking", *words, *options],
                cwd=self.folder,
                env={
                    **os.environ,
                    "FMNIST_CACHE_DIR": str(self.cache),
                    "FMNIST_STATE_DIR": self.state,
                    "MLFLOW_TRACKING_URI": self.uri,
                    "MLFLOW_EXPERIMENT_NAME": self.experiment,
                    **variables,
                },
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text()

    def wait_until_said(self, text: str, times: int, process: "subprocess.Popen[str]") -> None:
        end = time.monotonic() + 300
        while self.said().count(text) < times:
            assert process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)


@dataclass
class Outcome:
    """What a search came to, apart from how long it took."""

    figures: dict[tuple[str, ...], dict[str, list[tuple[int, float]]]]
    weights: dict[tuple[str, ...], list[Any]]


def finish(process: "subprocess.Popen[str]", place: Place) -> dict[str, Any]:
    assert process.wait(timeout=300) == 0, place.said()
    result: dict[str, Any] = json.loads(place.out.read_text())
    return result


def point(run: MlflowRun) -> tuple[str, ...]:
    return tuple(run.data.params[name] for name in ("filters", "seed"))


def outcome(place: Place) -> Outcome:
    """Check that the store is whole, and read what came out."""
    with open_store(place.uri) as store:
        client = store.client
        found = client.get_experiment_by_name(place.experiment)
        assert found is not None
        runs = list(client.search_runs([found.experiment_id], max_results=1000))
        searches = [r for r in runs if r.data.tags["fmnist.role"] == "search"]
        assert [r.info.status for r in searches] == ["FINISHED"]
        assert "RUNNING" not in {r.info.status for r in runs}
        trials = [r for r in runs if r.info.status == "FINISHED" and r not in searches]
        assert Counter(map(point, trials)) == dict.fromkeys(map(point, trials), 1)
        assert len(trials) == POINTS
        assert {r.data.tags["mlflow.parentRunId"] for r in runs if r not in searches} == {
            searches[0].info.run_id
        }
        for name in ("finished_points", "best_val_accuracy"):
            # Once for each time that the search came to an end: one that gave up a trial ends, as
            # FAILED, and is continued.
            steps = [m.step for m in client.get_metric_history(searches[0].info.run_id, name)]
            assert len(set(steps)) == len(steps)
            assert max(steps) == POINTS
        return Outcome(
            figures={point(trial): figures(client, trial) for trial in trials},
            weights={point(trial): weights(client, trial, found.experiment_id) for trial in trials},
        )


def figures(client: MlflowClient, trial: MlflowRun) -> dict[str, list[tuple[int, float]]]:
    read = {}
    for name in (*EPOCH_METRICS, *SUMMARY):
        history = client.get_metric_history(trial.info.run_id, name)
        read[name] = sorted((metric.step, metric.value) for metric in history)
    for name in EPOCH_METRICS:  # none missing, none doubled
        assert [step for step, _ in read[name]] == list(range(1, EPOCHS + 1))
    for name in SUMMARY:
        assert len(read[name]) == 1
    del read["epoch_seconds"]
    return read


def weights(client: MlflowClient, trial: MlflowRun, experiment_id: str) -> list[Any]:
    logged = client.search_logged_models(
        [experiment_id], filter_string=f"source_run_id = '{trial.info.run_id}'"
    )
    assert [str(model.status) for model in logged] == ["READY"]
    path = mlflow.artifacts.download_artifacts(f"runs:/{trial.info.run_id}/model")
    file = Path(path, "data", "model.keras")
    return list(load_model(file, code=tracking.code_beside(file)).get_weights())


def assert_as_undisturbed(place: Place, expected: Outcome) -> None:
    seen = outcome(place)
    assert seen.figures == expected.figures
    for key, arrays in expected.weights.items():
        for array, other in zip(arrays, seen.weights[key], strict=True):
            np.testing.assert_array_equal(array, other)
    kept = [p for p in Path(place.state).rglob("*") if p.is_file() and p.name != "filler"]
    assert kept == []
