import json

import pytest

from conftest import SMALL, SMALL_SPLIT, TINY, Run
from fmnist_tracking import machine
from fmnist_tracking.config import TrainingConfig, size_of
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.grid_search import memory
from fmnist_tracking.grid_search.memory import require_room, too_large, workers_for
from fmnist_tracking.grid_search.time_estimate import memory_bytes

WIDE = TrainingConfig.of(hidden_units=100_000)
HUGE = ("--filters", "48", "--kernel-size", "3", "--hidden-units", "50000000")


def needed(config: TrainingConfig) -> int:
    return memory_bytes(config, SMALL_SPLIT.training_images)


def test_a_network_is_refused_only_if_its_size_leaves_no_doubt() -> None:
    assert too_large(WIDE, SMALL_SPLIT, needed(WIDE)) is None
    reason = too_large(WIDE, SMALL_SPLIT, needed(WIDE) - 1)
    assert reason is not None
    assert f"has {size_of(WIDE).parameters:,} weights: to train it takes 2.0 GB" in reason
    assert "\n" not in reason


def test_so_many_workers_as_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "best_workers", lambda: 8)
    monkeypatch.setattr(machine, "memory", lambda: 3 * needed(WIDE))
    points = [SMALL, WIDE, WIDE, WIDE, WIDE, WIDE]
    assert workers_for(points, SMALL_SPLIT, None) == 3
    assert workers_for(points, SMALL_SPLIT, 2) == 2
    with pytest.raises(ConfigError, match=r"at most 3 workers .*, got 4: .* take 7\.\d GB"):
        require_room(points, SMALL_SPLIT, 4)
    require_room(points, SMALL_SPLIT, 3)
    require_room(points, SMALL_SPLIT, None)
    assert workers_for([SMALL] * 5, SMALL_SPLIT, 4) == 4
    assert workers_for([SMALL], SMALL_SPLIT, 4) == 1
    assert workers_for([], SMALL_SPLIT, 4) == 1  # nothing is left to train
    monkeypatch.setattr(machine, "memory", lambda: needed(WIDE) - 1)
    with pytest.raises(ConfigError, match="f48 k3 s1 hidden_units=100000"):
        require_room(points, SMALL_SPLIT, None)


def test_what_was_trained_on_a_larger_machine_is_reused_here(
    called: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine with less memory than the training took."""
    grid = ("search", *TINY, "--kernel-sizes", "3", "--json")
    assert called(*grid).returncode == 0
    monkeypatch.setattr(machine, "memory", lambda: 1000)
    again = called(*grid)
    assert json.loads(again.stdout)["reused"] == 1, again.stderr
    planned = json.loads(called(*grid, "--dry-run").stdout)
    assert [point["state"] for point in planned["points"]] == ["finished"]
    more = called(*grid, "--axis", "seed=0,1")
    assert more.returncode == 2
    assert "there is 0.0 GB in all" in more.stderr


def test_a_dry_run_trains_nothing_large(called: Run) -> None:
    # An epoch of the larger ones takes minutes, and the largest has no room anywhere.
    grid = ("--filters", "8,2000,2001,400000", "--strides", "1", "--kernel-sizes", "3")
    done = called("search", "--dry-run", "--limit", "600", *grid, "--json", timeout=120)
    planned = json.loads(done.stdout)
    assert [point["state"] for point in planned["points"]] == ["new", "new", "new", "refused"]
    assert planned["based_on"] == (
        "two epochs of f48 k3 s1 on 500 images, by the FLOPs of each point"
    )
    assert planned["seconds"] is None


@pytest.mark.parametrize("arguments", [("train",), ("search",), ("search", "--dry-run")])
def test_a_network_that_has_no_room_is_refused_before_it_is_made(
    called: Run, arguments: tuple[str, ...]
) -> None:
    sizes = HUGE if arguments == ("train",) else [a.replace("-size", "-sizes") for a in HUGE]
    done = called(*arguments, *sizes, timeout=120)
    text = done.stdout + done.stderr
    assert "60,550,021,274 weights: to train it takes 975.2 GB" in text
    assert "started" not in text
    assert done.returncode == (0 if "--dry-run" in arguments else 2)
