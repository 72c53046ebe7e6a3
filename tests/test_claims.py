"""Searches at once whose grids overlap: each point is trained once, by one of them."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from fmnist_tracking.grid_search.claims import PointClaims
from fmnist_tracking.tracking import open_store, schema
from processes import wait_for

POINT, OTHER = "a" * 64, "b" * 64


def hold(
    folder: Path,
    held: "multiprocessing.synchronize.Event",
    done: "multiprocessing.synchronize.Event",
) -> None:
    claims = PointClaims(folder)
    assert claims.claim(POINT)
    held.set()
    done.wait(60)
    claims.close()


@pytest.mark.parametrize("killed", [False, True])
def test_a_point_is_claimed_by_one_process_until_it_lets_go_or_dies(
    tmp_path: Path, killed: bool
) -> None:
    folder = tmp_path / "points"
    claims = PointClaims(folder)
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(folder, held, done))
    other.start()
    assert held.wait(60)
    assert not claims.claim(POINT)
    assert claims.claim(OTHER)
    assert claims.claim(OTHER)  # it has it
    if killed:
        other.kill()
    else:
        done.set()
    other.join(60)
    assert claims.claim(POINT)
    # Of one that died, nobody knows: it may have ended the training before.
    assert claims.others_have_released()
    claims.close()
    assert not folder.exists()
    again = PointClaims(folder)
    assert again.claim(POINT)
    again.close()


def test_where_there_is_no_room_for_claims_points_are_trained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    claims = PointClaims(tmp_path / "file")
    assert claims.claim(POINT)
    claims.release(POINT)
    assert not claims.others_have_released()


def start(folder: Path, cache: Path, name: str, filters: str) -> "subprocess.Popen[str]":
    words = ("search", "--limit", "3000", "--epochs", "4", "--filters", filters, "--strides", "1",
             "--kernel-sizes", "3", "--hidden-units", "8", "--workers", "1", "--json")  # fmt: skip
    with (folder / f"{name}.log").open("w") as log, (folder / f"{name}.out").open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "fmnist_tracking", *words],
            cwd=folder,
            env={**os.environ, "FMNIST_CACHE_DIR": str(cache)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def trained(folder: Path) -> Counter[str]:
    """How often each point was trained to its end."""
    with open_store(f"sqlite:///{folder}/mlflow.db") as store:
        experiment = store.experiment_id("fashion-mnist")
        runs = store.client.search_runs([experiment], f"tags.`{schema.ROLE}` = 'trial'")
        assert "RUNNING" not in {run.info.status for run in runs}
        return Counter(run.data.params["filters"] for run in runs if run.info.status == "FINISHED")


def test_a_full_disk_keeps_no_point(small_disk: Path) -> None:
    folder = small_disk / "points"
    claims, others = PointClaims(folder), PointClaims(folder)
    assert claims.claim(POINT)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    claims.release(POINT)
    assert not (folder / POINT).exists()
    assert others.others_have_released()
    claims.close()
    assert not folder.exists()


@pytest.mark.slow
def test_a_point_of_two_searches_is_trained_once(tmp_path: Path, cache: Path) -> None:
    grids = {"one": "8,12", "two": "8,16"}
    running = {name: start(tmp_path, cache, name, grid) for name, grid in grids.items()}
    results = {}
    for name, process in running.items():
        assert process.wait(300) == 0, (tmp_path / f"{name}.log").read_text()
        results[name] = json.loads((tmp_path / f"{name}.out").read_text())
    assert trained(tmp_path) == {"8": 1, "12": 1, "16": 1}
    assert [result["finished"] for result in results.values()] == [2, 2]
    assert sorted(result["reused"] for result in results.values()) == [0, 1]
    shared = {
        trial["run_id"]
        for result in results.values()
        for trial in result["trials"]
        if trial["params"]["filters"] == 8
    }
    assert len(shared) == 1


@pytest.mark.slow
def test_a_point_whose_search_dies_is_trained_by_the_other(tmp_path: Path, cache: Path) -> None:
    first = start(tmp_path, cache, "first", "8,12")
    wait_for(lambda: "epoch 1/" in (tmp_path / "first.log").read_text(), seconds=120)
    # On a fast machine it would end before the other begins. (Its driver may be writing to the
    # store, which would be locked.)
    for process in psutil.Process(first.pid).children(recursive=True):
        process.suspend()
    other = start(tmp_path, cache, "other", "8,16")
    log = tmp_path / "other.log"
    wait_for(lambda: "is being trained by another search" in log.read_text(), seconds=120)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert other.wait(300) == 0, log.read_text()
    result = json.loads((tmp_path / "other.out").read_text())
    assert (result["finished"], result["reused"]) == (2, 0)
    again = start(tmp_path, cache, "first", "8,12")
    assert again.wait(300) == 0, (tmp_path / "first.log").read_text()
    assert trained(tmp_path) == {"8": 1, "12": 1, "16": 1}
