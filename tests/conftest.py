"""Fixtures that several tests share: the real images, a real store, the command line."""

import contextlib
import fcntl
import functools
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest
from xdist.scheduler import LoadScopeScheduling

import data_sets
from fmnist_tracking import redact, runtime
from fmnist_tracking.cli import main
from fmnist_tracking.config import CLASS_NAMES, TrainingConfig
from fmnist_tracking.data import Dataset, DataSplit, load_dataset, split_dataset
from fmnist_tracking.metrics import evaluate
from fmnist_tracking.results import Evaluation
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import Store, open_store

if TYPE_CHECKING:
    from searches import Outcome

# Their asserts say what they compared, as those of a test do.
pytest.register_assert_rewrite("processes", "searches", "servers")

# Tests train in their own process, as workers do in theirs.
runtime.own_process()
# But what they start finds modules as it does when a person starts it.
del os.environ["PYTHONSAFEPATH"]

SMALL = TrainingConfig.of(filters=4, strides=2, hidden_units=8, epochs=2)
SMALL_SPLIT = SplitConfig(limit=600)
# The smallest training, as options.
TINY = (
    "--limit", "600", "--epochs", "1", "--filters", "4", "--strides", "2", "--hidden-units", "8"
)  # fmt: skip
CLEAN = ("MLFLOW_", "FMNIST_")
# No test asserts a time.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class SharingScheduler(LoadScopeScheduling):  # type: ignore[misc]
    """Shares the tests out one by one, but those of a module that sets up something for all.

    `--dist loadgroup` is to do so by marks, which pytest 9.2 with pytest-xdist 3.8 does not heed.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _scope_of(nodeid)


@functools.cache
def _scope_of(nodeid: str) -> str:
    module = nodeid.partition("::")[0]
    sets_up = 'scope="' in (Path(__file__).parents[1] / module).read_text(encoding="utf-8")
    return module if sets_up else nodeid


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones of those shared out one by one, so that none is alone at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharingScheduler:
    return SharingScheduler(config, log)


@pytest.fixture(scope="session", autouse=True)
def _quiet_tensorflow() -> None:
    if "tensorflow" in sys.modules:  # else no test of these computes here
        runtime.load_tensorflow(worker=0)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _clean_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> Iterator[None]:
    """No test sees the settings, the store or the folder of whoever runs the tests."""
    _use_the_usual_store()  # or what a module's fixture has opened would come back at the end
    for name in os.environ:
        if name.startswith(CLEAN):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FMNIST_CACHE_DIR", str(cache))
    monkeypatch.setenv("FMNIST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("FMNIST_PROGRESS_SECONDS", "0")  # tests wait for lines
    monkeypatch.chdir(tmp_path)
    with _what_a_process_sets_undone():
        yield


@pytest.fixture(autouse=True)
def _secrets_forgotten() -> Iterator[None]:
    """What one test keeps secret, another may show."""
    yield
    redact._secrets.clear()


@contextlib.contextmanager
def _what_a_process_sets_undone() -> Iterator[None]:
    """What the program sets for a process that is its own is not for those of later tests."""
    kept = dict(os.environ)
    try:
        yield
    finally:
        _use_the_usual_store()
        for name in os.environ.keys() - kept.keys():
            del os.environ[name]
        os.environ.update(kept)


def _use_the_usual_store() -> None:
    import mlflow

    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def dataset(cache: Path) -> Dataset:
    """The real Fashion-MNIST, from wherever this machine has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FMNIST_DATA_DIR", raising=False)
        patch.setenv("FMNIST_CACHE_DIR", str(cache))
        return load_dataset()


@pytest.fixture(scope="session")
def split(dataset: Dataset) -> DataSplit:
    """500 training and 100 validation images."""
    return split_dataset(dataset, SMALL_SPLIT)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 500).astype(np.uint8)
    probabilities = random.dirichlet(np.ones(10), 500).astype(np.float32)
    probabilities[np.arange(500), labels] += 0.3
    return evaluate(labels, probabilities / probabilities.sum(1, keepdims=True), CLASS_NAMES)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a new SQLite store, to be copied: MLflow takes a second to make its tables.

    Processes that run tests at once share it.
    """
    with _made_once("empty-store", tmp_path_factory) as (folder, is_made):
        if not is_made:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                _use_the_usual_store()
                with open_store(access="create"):
                    pass
    _use_the_usual_store()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> "Outcome":
    """What `searches.SEARCH` comes to when nothing happens to it; shared as `empty_store` is."""
    import searches  # with TensorFlow

    with _made_once("undisturbed", tmp_path_factory) as (folder, is_made):
        kept = folder / "outcome"
        if not is_made:
            place = searches.Place(folder, cache)
            result = searches.finish(place.start(), place)
            assert result["finished"] == searches.POINTS
            kept.write_bytes(pickle.dumps(searches.outcome(place)))
        outcome: Outcome = pickle.loads(kept.read_bytes())
        return outcome


@contextlib.contextmanager
def _made_once(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bool]]:
    """Yield a folder that processes which run tests at once share, and whether one has filled it.

    The others wait for the one that does.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_made = (folder / "complete").exists()
        if not is_made:
            for left in set(folder.iterdir()) - {folder / "lock"}:  # by one that failed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield folder, is_made
        (folder / "complete").touch()


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Iterator[Store]:
    """A new SQLite store, as a first search in an empty folder makes it."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as rows, rows:
        old, new = str(empty_store.parent), str(tmp_path)
        rows.execute("UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)",
                     (old, new))  # fmt: skip
    with open_store(access="create") as opened:
        yield opened


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Gives a folder that is a file system of its own."""
    mounted = []

    def give(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], capture_output=True)
        if done.returncode != 0:
            pytest.skip("needs the right to mount a file system")
        mounted.append(folder)
        return folder

    yield give
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def command(tmp_path: Path, cache: Path) -> Run:
    """Runs `fmnist-track` as a person does, in a process of its own, in an empty folder."""

    def run(
        *arguments: str, timeout: float = 180, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "fmnist_tracking", *arguments],
            cwd=tmp_path,
            env={**os.environ, "FMNIST_CACHE_DIR": str(cache), **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


class Call:
    """Calls the command line in this process: exit status, standard output, standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["fmnist-track", *arguments])
        self._capsys.readouterr()  # what the test itself has had printed
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(monkeypatch, capsys)


@pytest.fixture
def called(call: Call) -> Run:
    """The same as `command` in this process, for what a command does to the store and to files.

    Its workers are processes of their own all the same; but what they are forked from, and what the
    command itself imports, is loaded once for all tests.
    """

    def run(
        *arguments: str, timeout: float = 180, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        with _what_a_process_sets_undone():
            os.environ.update(variables)
            status, out, err = call(*arguments)
        return subprocess.CompletedProcess(arguments, status, out, err)

    return run


@pytest.fixture
def other_data(tmp_path: Path) -> Path:
    """A folder in the right format that is not Fashion-MNIST: plain files of noise."""
    return data_sets.write_idx(tmp_path / "other-data", data_sets.noise(2400, 600))


@pytest.fixture
def real_copy(tmp_path: Path, dataset: Dataset) -> Path:
    """A copy of the real files, for a test to damage."""
    folder = tmp_path / "copy"
    shutil.copytree(dataset.source, folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for one megabyte."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
