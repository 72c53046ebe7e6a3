import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL, TINY, Run
from fmnist_tracking import machine, runtime
from fmnist_tracking.data import DataSplit
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.training import coursework_step
from fmnist_tracking.training.checkpoints import CheckpointPlace
from fmnist_tracking.training.loop import train

ROOT = Path(__file__).parent.parent


def test_cores_are_shared_out_among_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert [runtime.threads_of(workers) for workers in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv(runtime.THREADS_VARIABLE, "5")
    assert [runtime.threads_of(workers) for workers in (1, 8)] == [5, 5]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²"])
def test_threads_that_are_no_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(runtime.THREADS_VARIABLE, text)
    expected = f"Expected FMNIST_THREADS to be a whole number of at least 1, got '{text}'."
    with pytest.raises(ConfigError) as error:
        runtime.threads_of(2)
    assert str(error.value) == expected


def test_a_search_refuses_a_wrong_setting_in_one_line(command: Run) -> None:
    done = command("search", "--limit", "600", FMNIST_THREADS="many")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("Error: Expected FMNIST_THREADS to be")
    done = command("search", "--limit", "600", FMNIST_JIT_COMPILE="yes")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "Error: Expected FMNIST_JIT_COMPILE to be 0 or 1, got 'yes'."
    )


def test_on_a_processor_nothing_is_compiled_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not runtime.has_gpu()
    assert runtime.jit_compile() is False
    for text, compiled in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(runtime.COMPILE_VARIABLE, text)
        assert runtime.jit_compile() is compiled


def test_on_a_gpu_what_is_faster_is_found_out(
    monkeypatch: pytest.MonkeyPatch, split: DataSplit
) -> None:
    tried: list[bool] = []
    run_epoch = coursework_step.CourseworkStep.run_epoch

    def watched(
        self: coursework_step.CourseworkStep, *args: object, **kw: object
    ) -> tuple[float, int]:
        tried.append(self.compiled)
        return run_epoch(self, *args, **kw)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "has_gpu", lambda: True)
        assert runtime.jit_compile() is None
        assert runtime.shards() == 1
        patch.setattr(coursework_step.CourseworkStep, "run_epoch", watched)
        result, weights = train(SMALL, split)
    assert tried[:4] == [False, False, True, True]
    assert set(tried[4:]) == {result.settings["jit_compile"]}
    assert len(tried) == 4 + SMALL.epochs
    monkeypatch.setattr(runtime, "shards", lambda: 1)
    expected, others = train(SMALL, split)  # trying it out has changed no weights
    assert expected.settings["jit_compile"] is False
    for some, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(some, other, rtol=0.01, atol=1e-3)


def test_a_result_says_what_it_was_computed_with(
    monkeypatch: pytest.MonkeyPatch, split: DataSplit
) -> None:
    settings = train(SMALL, split)[0].settings
    assert settings["TF_ENABLE_ONEDNN_OPTS"] == "1"
    assert settings["jit_compile"] is False
    assert settings["shards"] == runtime.shards()
    assert settings["threads"] == runtime.threads() == machine.cores()
    monkeypatch.setenv(runtime.COMPILE_VARIABLE, "1")
    assert train(SMALL, split)[0].settings["jit_compile"] is True


def test_a_training_goes_on_compiled_as_it_began(
    monkeypatch: pytest.MonkeyPatch, split: DataSplit, tmp_path: Path
) -> None:
    place = CheckpointPlace(folder=tmp_path / "here", fingerprint="f" * 64)
    monkeypatch.setenv(runtime.COMPILE_VARIABLE, "1")
    train(SMALL.replace(epochs=1), split, place=place)
    monkeypatch.setenv(runtime.COMPILE_VARIABLE, "0")
    result, _ = train(SMALL, split, place=place)
    assert result.settings["jit_compile"] is True


TINY_SEARCH = ("search", *TINY, "--kernel-sizes", "3", "--json")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a tiny training gives without settings of others."""
    return losses(tmp_path_factory.mktemp("undisturbed"), {})


def losses(folder: Path, variables: dict[str, str]) -> str:
    """Train in a process of its own; give the trial's history, but for its times."""
    environment = {**os.environ, "FMNIST_STATE_DIR": str(folder / "state"), **variables}
    done = subprocess.run(
        [sys.executable, "-m", "fmnist_tracking", *TINY_SEARCH],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (history,) = folder.glob("mlruns/**/history.json")
    epochs = json.loads(history.read_text())["epochs"]
    return str([(epoch["loss"], epoch["val_loss"]) for epoch in epochs])


OTHERS = {
    "KERAS_BACKEND": "torch",
    "KERAS_MAX_EPOCHS": "many",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
    "KERAS_NNX_ENABLED": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONWARNINGS": "error",
    "TF2_BEHAVIOR": "0",
    "TF_USE_LEGACY_KERAS": "1",
    "TF_XLA_FLAGS": "--no-such-flag",
}
KERAS_JSON = {
    "backend": "jax",
    "epsilon": 0.1,
    "floatx": "float16",
    "image_data_format": "channels_first",
    "nnx_enabled": True,
}


def test_settings_of_other_programs_change_nothing(tmp_path: Path, undisturbed: str) -> None:
    assert losses(tmp_path, OTHERS) == undisturbed


@pytest.mark.parametrize("variable", ["HOME", "KERAS_HOME"])
def test_a_person_s_keras_json_changes_nothing(
    tmp_path: Path, undisturbed: str, variable: str
) -> None:
    folder = tmp_path / "home" / ".keras"
    folder.mkdir(parents=True)
    (folder / "keras.json").write_text(json.dumps(KERAS_JSON))
    variables = {"HOME": str(folder.parent)}
    if variable == "KERAS_HOME":
        variables = {"HOME": "/proc/nowhere", "KERAS_HOME": str(folder)}
    assert losses(tmp_path, variables) == undisturbed
    assert json.loads((folder / "keras.json").read_text()) == KERAS_JSON


def test_where_nothing_temporary_can_be_written() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # as on a disk that is full
from fmnist_tracking import errors, runtime
try:
    runtime.temporary_folder()
except errors.OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("No usable temporary directory found in [")
    assert done.stdout.endswith("]. Set TMPDIR to a folder that can be written.\n")


@pytest.mark.parametrize("year", [1970, 1979, 2107, 2150])
def test_a_clock_that_no_file_of_a_model_can_hold_is_told(
    monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    runtime.require_dates()
    monkeypatch.setattr(time, "localtime", lambda: time.struct_time((year, *[1] * 8)))
    with pytest.raises(ConfigError, match=f"got {year}. Set the clock"):
        runtime.require_dates()
