import ctypes.util
import importlib.util
import os
import sys
from pathlib import Path

import pytest

from fmnist_tracking import machine
from fmnist_tracking.grid_search.memory import best_workers


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of 64 cores without GPUs, and the folder of its control groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "no such folder")
    monkeypatch.setattr(machine, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN_GROUP", tmp_path / "own")
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/\n")
    return tmp_path


def test_what_a_container_is_limited_to_counts(groups: Path) -> None:
    (groups / "cpu.max").write_text("250000 100000\n")
    (groups / "memory.max").write_text("4000000000\n")
    assert (machine.cores(), machine.memory(), best_workers()) == (2, 4_000_000_000, 2)
    (groups / "cpu.max").write_text("max 100000\n")
    assert (machine.cores(), best_workers()) == (64, 3)
    (groups / "memory.max").write_text("1000000000\n")
    assert best_workers() == 1
    (groups / "memory.max").write_text("max\n")
    assert machine.memory() > 1_000_000_000


def test_what_files_take_in_the_cache_of_a_container_is_left_to_it(groups: Path) -> None:
    (groups / "memory.max").write_text("2000000\n")
    (groups / "memory.current").write_text("1900000\n")
    (groups / "memory.stat").write_text("anon 1\ninactive_file 700000\nactive_file 9\n")
    assert machine.memory_left() == 800_000
    (groups / "memory.max").write_text("max\n")
    assert machine.memory_left() > 1_000_000


def test_a_container_has_so_many_threads_left(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # of root no threads are counted
    assert machine.spare_threads() == sys.maxsize
    (groups / "pids.current").write_text("20\n")
    (groups / "pids.max").write_text("max\n")
    assert machine.spare_threads() == sys.maxsize
    (groups / "pids.max").write_text("22\n")
    assert machine.spare_threads() == 2


def test_the_narrowest_of_groups_within_groups_counts(groups: Path) -> None:
    inner = groups / "job" / "step"
    inner.mkdir(parents=True)
    (groups / "own").write_text("0::/job/step\n")
    (groups / "cpu.max").write_text("800000 100000\n")
    (groups / "job" / "cpu.max").write_text("300000 100000\n")
    (inner / "cpu.max").write_text("max 100000\n")
    assert machine.cores() == 3


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4),
        ("0,2", 2),
        ("3", 1),
        ("", 0),
        ("-1", 0),
        ("1,-1,2", 1),
        ("0,1,2,3,4,5", 4),
        ("1,9", 1),
        ("7", 0),
    ],
)
def test_gpus_that_are_hidden_do_not_count(
    groups: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int
) -> None:
    for number in range(4):
        (groups / "gpus" / f"{number}").mkdir(parents=True)
    monkeypatch.setattr(machine, "_NVIDIA", groups / "gpus")
    monkeypatch.setattr(machine, "_has_cudnn", lambda: True)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == count
    monkeypatch.setattr(machine, "memory", lambda: 10**12)
    assert best_workers() == (count or 64)


def test_gpus_that_tensorflow_cannot_compute_on_do_not_count(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (groups / "gpus" / "0").mkdir(parents=True)
    (groups / "lib").mkdir()
    monkeypatch.setattr(machine, "_NVIDIA", groups / "gpus")
    monkeypatch.setattr(machine, "memory", lambda: 10**12)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    monkeypatch.setattr(sys, "prefix", str(groups))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert (machine.gpus(), best_workers()) == (0, 64)
    (groups / "lib" / "libcudnn.so.9").touch()
    assert (machine.gpus(), best_workers()) == (1, 1)
    (groups / "lib" / "libcudnn.so.9").rename(groups / "libcudnn.so.9")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{groups}")
    assert machine.gpus() == 1
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert machine.gpus() == 0
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert machine.gpus() == 1


def test_processes_killed_for_want_of_memory_are_counted(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_SYSTEM", groups / "vmstat")
    assert machine.oom_kills() == 0
    (groups / "vmstat").write_text("pgfault 7\noom_kill 5\n")
    assert machine.oom_kills() == 5
    (groups / "memory.events").write_text("low 0\noom 4\noom_kill 2\noom_group_kill 1\n")
    assert machine.oom_kills() == 2  # of this container
