"""A search that is to end before all of its grid is tried, and goes on when it is asked again."""

import json
from typing import Any

import pytest

import nets
from conftest import Call
from fmnist_tracking.cli.parse import parse_seconds
from fmnist_tracking.tracking import open_store


def search(call: Call, *words: str, epochs: int = 1) -> tuple[dict[str, Any], str]:
    size = ("--limit", "600", "--filters", "4", "--strides", "2", "--hidden-units", "8")
    grid = (*size, "--kernel-sizes", "2,3,4", "--epochs", str(epochs))
    status, out, err = call("search", *grid, "--json", *words)
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found, err


def status_of(run_id: str) -> str:
    with open_store() as store:
        return str(store.client.get_run(run_id).info.status)


def test_the_first_points_and_then_the_others(call: Call) -> None:
    two, err = search(call, "--max-trials", "2")
    assert [trial["params"]["kernel_size"] for trial in two["trials"]] == [2, 3]
    assert (two["grid_points"], two["finished"], two["failed"]) == (3, 2, 0)
    assert "1 of 3 points are left, as only 2 were to be tried." in err
    assert status_of(two["run_id"]) == "FINISHED"
    # The same again trains nothing; a dry run says so.
    again, err = search(call, "--max-trials", "2")
    assert (again["run_id"], again["reused"]) == (two["run_id"], 2)
    plan, _ = search(call, "--max-trials", "2", "--dry-run")
    assert [point["state"] for point in plan["points"]] == ["finished", "finished"]
    plan, _ = search(call, "--dry-run")
    assert [point["state"] for point in plan["points"]] == ["finished", "finished", "new"]
    # All of them: the same search goes on, and has what it had.
    whole, err = search(call, "--max-trials", "9")
    assert (whole["run_id"], whole["finished"]) == (two["run_id"], 3)
    assert [t["run_id"] for t in whole["trials"][:2]] == [t["run_id"] for t in two["trials"]]
    assert "are left" not in err
    fewer, _ = search(call, "--max-trials", "1")
    assert (fewer["run_id"], fewer["finished"]) == (two["run_id"], 3)


def test_points_that_are_drawn(call: Call) -> None:
    size = ("--limit", "600", "--epochs", "1", "--json")
    network = ("--network", f"{nets.__file__}:without_steps", "--oracle", "random")

    def drawn(*words: str) -> dict[str, Any]:
        status, out, err = call("search", *size, *network, *words)
        assert status == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    three = drawn("--max-trials", "3")
    points = [(trial["params"]["units"], trial["params"]["rate"]) for trial in three["trials"]]
    assert len({*points}) == three["finished"] == three["grid_points"] == 3
    five = drawn("--max-trials", "5")
    assert (five["finished"], five["reused"]) == (5, 3)
    again = drawn("--max-trials", "5")
    assert (again["run_id"], again["reused"]) == (five["run_id"], 5)
    other = drawn("--max-trials", "3", "--seed", "1", "--dry-run")
    assert {point["state"] for point in other["points"]} == {"new"}
    status, out, _ = call("report", "--run-id", "latest", "--json")
    assert status == 0
    # Of the coursework's network too, some of the 12.
    some = ("--oracle", "random", "--max-trials", "4", "--dry-run", "--filters", "2,3,4")
    status, out, err = call("search", *size, *some, "--axis", "dropout=0.1,0.2")
    assert status == 0, err
    assert len({point["name"] for point in json.loads(out)["points"]}) == 4
    status, _, err = call("search", "--oracle", "random")
    assert (status, "Expected --max-trials with the oracle random" in err) == (2, True)
    status, _, err = call("search", "--oracle", "hyperband")
    expected = "Expected --oracle to be grid, random or bayesian, got 'hyperband'"
    assert (status, expected in err) == (2, True)


@pytest.mark.slow
def test_the_time_is_over_and_the_search_goes_on(call: Call) -> None:
    trials, err = [], ""
    for seconds in (15, 30, 60, 120):  # as long as this machine takes to begin
        found, err = search(call, "--max-time", f"{seconds}s", "--workers", "1", epochs=100_000)
        assert (found["finished"], found["failed"]) == (0, 0)
        assert "3 of 3 points are left, as its time is over." in err
        assert status_of(found["run_id"]) == "FINISHED"
        trials += found["trials"]
        if "goes on after epoch" in err:
            break
    assert "goes on after epoch" in err
    # It is the same run, in which no epoch was trained or logged twice.
    (run_id,) = {trial["run_id"] for trial in trials}
    assert {trial["status"] for trial in trials} == {"KILLED"}
    with open_store() as store:
        history = store.client.get_metric_history(run_id, "loss")
    assert sorted(metric.step for metric in history) == [*range(1, len(history) + 1)]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("45", 45), ("0m5s", 5)]
)
def test_times(text: str, seconds: int) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["0", "1x", "-5", "1.5h", "m", "30m1h", " 5", "٣"])
def test_no_times(call: Call, text: str) -> None:
    status, _, err = call("search", "--max-time", text)
    assert (status, "such as 2h, 90m or 1h30m" in err) == (2, True)
