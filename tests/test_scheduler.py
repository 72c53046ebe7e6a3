import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Run
from fmnist_tracking.tracking import open_store
from misbehaving import FAILURES, GOOD

SEARCH = (
    *("search", "--limit", "600", "--epochs", "3", "--filters", "4", "--strides", "2"),
    *("--kernel-sizes", "3", "--hidden-units", "8"),
)


def in_own_mounts(mount: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line where a folder is mounted as one line of the shell says."""
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable]
    return subprocess.run(
        [*command, "-m", "fmnist_tracking", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
    )


NEEDS_MOUNTS = pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="the system does not let this user mount",
)


@NEEDS_MOUNTS
def test_shared_memory_that_cannot_be_written_is_not_needed(tmp_path: Path) -> None:
    done = in_own_mounts("mount -t tmpfs -o ro tmpfs /dev/shm", *SEARCH)
    assert done.returncode == 0, done.stderr


def test_a_search_with_a_trial_that_diverges_and_one_of_none_but_such(
    called: Run, tmp_path: Path
) -> None:
    one = ("--workers", "1")
    lost = called(*SEARCH, *one, "--axis", "learning_rate=1e30", "--json")
    assert lost.returncode == 1
    assert "Every trial diverged" in lost.stderr
    result = json.loads(lost.stdout)
    assert (result["best"], result["finished"], result["diverged"]) == (None, 1, 1)
    with open_store(f"sqlite:///{tmp_path}/mlflow.db") as store:
        tags = store.client.get_run(result["trials"][0]["run_id"]).data.tags
        steps = store.client.get_metric_history(result["trials"][0]["run_id"], "loss")
    assert tags["fmnist.diverged"] == "1"
    assert [step.step for step in steps] == [1]  # of three
    both = called(*SEARCH, *one, "--axis", "learning_rate=1e30,0.001")
    assert both.returncode == 0, both.stderr
    assert "is trained already: it diverged" in both.stderr
    rows = [line.split() for line in both.stdout.splitlines()]
    assert [row[0] for row in rows if "diverged" in row] == ["2"]
    again = called(*SEARCH, *one, "--axis", "learning_rate=1e30", "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["trials"][0]["diverged"]
    done = called(*SEARCH, *one, "--axis", "learning_rate=1e30,0.001", "--dry-run")
    assert done.stdout.splitlines()[-1] == "Nothing left to train."
    alone = called(
        *("train", "--limit", "600", "--epochs", "3", "--filters", "4", "--strides", "2"),
        *("--kernel-size", "3", "--hidden-units", "8", "--learning-rate", "1e30"),
    )
    assert alone.returncode == 1
    assert "The training diverged" in alone.stderr


@pytest.mark.slow
def test_whatever_a_network_does_the_others_finish(tmp_path: Path, cache: Path) -> None:
    units = ",".join(map(str, (GOOD[0], *FAILURES, GOOD[1])))
    tests = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", "import misbehaving; misbehaving.main()", *SEARCH[:-1], units,
         "--workers", "2", "--trial-timeout", "20", "--json"],
        cwd=tmp_path,
        env={**os.environ, "FMNIST_CACHE_DIR": str(cache), "PYTHONPATH": tests},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert (result["finished"], result["failed"]) == (len(GOOD), len(FAILURES))
    assert len(done.stderr) < 50_000
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert "is usual: its worker is the process " in done.stderr
    with open_store(f"sqlite:///{tmp_path}/mlflow.db") as store:
        runs = [store.client.get_run(trial["run_id"]) for trial in result["trials"]]
        said = {int(run.data.params["hidden_units"]): run.data.tags.get("fmnist.error", "")
                for run in runs}  # fmt: skip
        assert {number: said[number] for number in GOOD} == dict.fromkeys(GOOD, "")
        for number, text in FAILURES.items():
            assert text in said[number]
        for run in runs:
            if run.info.status == "FAILED":
                trace = store.client.download_artifacts(run.info.run_id, "traceback.txt")
                assert 0 < Path(trace).stat().st_size <= 65_536
