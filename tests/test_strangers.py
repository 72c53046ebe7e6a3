"""Whatever others write into a store, commands answer for our searches as they did before."""

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from mlflow import MlflowClient
from PIL import Image

from conftest import Run
from fmnist_tracking.data import Dataset
from fmnist_tracking.tracking import schema
from strangers import PLACES, Stranger, strangers, write

OPTIONS = (
    *("--limit", "600", "--epochs", "1", "--strides", "2", "--hidden-units", "8"),
    *("--kernel-sizes", "3"),
)
SEARCH = ("search", "--filters", "4,5", *OPTIONS)
AT_LEAST = 150  # in each of two experiments


class Crowd:
    """A good search of two points in a store of its own, and what commands say of it."""

    def __init__(self, called: Run, folder: Path, pictures: Path) -> None:
        self._called, self._pictures = called, pictures
        self.database = folder / "mlflow.db"
        done = called(*SEARCH, "--json", "--workers", "2")
        assert done.returncode == 0, done.stderr
        self.search = json.loads(done.stdout)["run_id"]
        trained = called("train", "--filters", "6", *OPTIONS[:-2], "--kernel-size", "3", "--json")
        assert trained.returncode == 0, trained.stderr
        self.client = MlflowClient(f"sqlite:///{self.database}")
        trial = json.loads(done.stdout)["best"]["run_id"]
        ids = (self.search, trial, json.loads(trained.stdout)["run_id"])
        self.ours = {
            role: self.client.get_run(run_id)
            for role, run_id in zip((schema.SEARCH, schema.TRIAL, schema.TRAIN), ids, strict=True)
        }
        self.experiment = self.ours[schema.SEARCH].info.experiment_id

    def by_id(self) -> dict[str, Any]:
        """What commands answer that are given the id of the search."""
        of = ("--run-id", self.search)
        return {
            name: self.answer(*words)
            for name, words in {
                "runs": ("runs", *of, "--json"),
                "best": ("best", *of, "--json"),
                "predict": ("predict", *of, str(self._pictures), "--json"),
                "predictions": ("predictions", *of, "--json"),
                "activations": ("activations", *of, "--json"),
                "report": ("report", *of, "--json"),
                "promote": ("promote", *of, "--json"),
            }.items()
        }

    def by_word(self) -> dict[str, Any]:
        """What commands answer that look for the search themselves."""
        return {
            " ".join(words): self.answer(*words, "--json")
            for words in (
                ("runs",),
                ("runs", "--run-id", "latest"),
                ("best",),
                ("best", "--run-id", "best-of-all"),
                ("best", "--run-id", "champion"),
                ("predict", "--run-id", "best", str(self._pictures)),
                ("runs", "--repair"),
                (*SEARCH, "--dry-run"),
                SEARCH,
            )
        }

    def answer(self, *words: str) -> Any:
        done = self._called(*words)
        assert "Traceback" not in done.stderr, (words, done.stderr)
        assert done.returncode == 0, (words, done.stderr)
        return json.loads(done.stdout)


@pytest.fixture
def crowd(called: Run, tmp_path: Path, dataset: Dataset) -> Crowd:
    Image.fromarray(dataset.test_images[0]).save(tmp_path / "boot.png")
    return Crowd(called, tmp_path, tmp_path / "boot.png")


def fill(crowd: Crowd, experiment: str) -> int:
    """Write many arbitrary runs into an experiment; return how many."""
    written = []

    @settings(
        max_examples=AT_LEAST,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        derandomize="CI" in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(strangers)
    def write_one(stranger: Stranger) -> None:
        written.append(write(crowd.client, crowd.database, experiment, stranger, crowd.ours))

    write_one()
    return len(written)


@pytest.fixture
def their_experiment(crowd: Crowd) -> str:
    made = {place: crowd.client.create_experiment(f"\x1b[2J{place}") for place in PLACES}
    with contextlib.closing(sqlite3.connect(crowd.database)) as rows, rows:
        rows.executemany(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", made.items()
        )
    return crowd.client.create_experiment(
        "theirs", artifact_location=(crowd.database.parent / "mlruns" / "theirs").as_uri()
    )


@pytest.mark.slow
def test_whatever_others_write_no_answer_about_our_search_changes(
    crowd: Crowd, their_experiment: str, called: Run, caplog: pytest.LogCaptureFixture
) -> None:
    crowd.by_id()  # promotes, once
    crowd.by_word()  # asks for the search again, which makes it the latest
    ids, words = crowd.by_id(), crowd.by_word()
    assert fill(crowd, their_experiment) >= AT_LEAST
    assert crowd.by_word() == words

    # Where others may write into our own experiment, what is ours is still told by its id.
    before = {run["run_id"] for run in crowd.answer("runs", "--json")}
    assert fill(crowd, crowd.experiment) >= AT_LEAST
    assert crowd.by_id() == ids
    listed = called("runs", "--json")
    assert before <= {run["run_id"] for run in json.loads(listed.stdout)}
    assert "Left out, as this version cannot read or resume" in caplog.text
    for command in (
        *(("best",), ("predict", "boot.png", "--run-id", "best"), ("doctor",)),
        *(
            (*SEARCH, "--dry-run"),
            SEARCH,
            ("runs", "--repair"),
            ("best", "--run-id", "best-of-all"),
        ),
    ):
        done = called(*command)
        assert "Traceback" not in done.stderr, (command, done.stderr)
        assert done.returncode in (0, 1), (command, done.stderr)
