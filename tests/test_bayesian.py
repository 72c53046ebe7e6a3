"""Searches whose points depend on results: KerasTuner's own Bayesian optimisation."""

import json
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras_tuner
import pytest

import nets
from conftest import Call
from fmnist_tracking.networks.proposals import propose
from fmnist_tracking.networks.source import find_network
from fmnist_tracking.search_space import Combination, Draw
from fmnist_tracking.tracking import find_run, open_store, read_trial
from processes import workers_of
from searches import Place, finish, weights

NETWORK = f"{nets.__file__}:without_steps"
POINTS, EPOCHS, WORKERS = 9, 2, 2
WORDS = (
    *("search", "--network", NETWORK, "--oracle", "bayesian", "--limit", "1200", "--json"),
    *("--epochs", str(EPOCHS), "--max-trials", str(POINTS), "--workers", str(WORKERS)),
)


def score_of(values: Mapping[str, Any]) -> float:
    """Return a score as a training might give it: better in the middle, for a rate near 0.01."""
    numbers = [float(value) for value in values.values() if isinstance(value, bool | int | float)]
    return 1 / (1 + abs(math.log10(abs(numbers[-1]) + 1e-6) + 2)) + 0.001 * sum(numbers)


def asked_by_keras_tuner(build: Any, folder: Path, direction: str, **settings: int) -> list[Any]:
    """Return the values that KerasTuner's own tuner tries, one after the other."""

    class Stub(keras_tuner.BayesianOptimization):  # type: ignore[misc]
        def run_trial(self, trial: Any, *_: Any, **__: Any) -> dict[str, float]:
            self.hypermodel.build(trial.hyperparameters)
            return {"score": score_of(trial.hyperparameters.values)}

    objective = keras_tuner.Objective("score", direction)
    tuner = Stub(build, objective=objective, directory=folder, overwrite=True, **settings)
    tuner.search(verbose=0)
    return [trial.hyperparameters.values for trial in tuner.oracle.trials.values()]


def asked(network: str, draw: Draw, ahead: int, known: int = 0) -> list[dict[str, Any]]:
    """Return the values that are asked for if each is told as soon as it is asked for.

    The first of them are told all at once, as to a search that goes on.
    """
    scores: list[float | None] = []
    while True:
        found = propose(
            find_network(f"{nets.__file__}:{network}"), {}, draw, ahead, scores, lambda *_: None
        )
        if len(scores) == len(found.points):
            return [dict(one.values) for one in found.points]
        assert len(found.points) <= len(scores) + ahead
        new = [one for one in found.points[len(scores) :] if isinstance(one, Combination)]
        scores += [score_of(dict(one.values)) for one in new[: max(1, known - len(scores))]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "direction", "points"), [("without_steps", "min", 10), ("conditional", "max", 22)]
)
def test_points_are_those_of_keras_tuner(
    name: str, direction: str, points: int, tmp_path: Path
) -> None:
    expected = asked_by_keras_tuner(
        getattr(nets, name), tmp_path, direction, max_trials=points, seed=5
    )
    draw = Draw(points=points, seed=5, direction=direction)
    assert asked(name, draw, 1) == expected
    # More than chance: with results turned round, others follow.
    other = Draw(points=points, seed=5, direction={"min": "max", "max": "min"}[direction])
    assert asked(name, other, 1) != expected
    # Fewer of them are the first of them.
    assert asked(name, Draw(points=4, seed=5, direction=direction), 1) == expected[:4]


def test_several_at_once_are_asked_for_in_one_order_alone() -> None:
    draw = Draw(points=9, seed=0)
    first, again = asked("without_steps", draw, 3), asked("without_steps", draw, 3, known=2)
    assert first == again
    assert first != asked("without_steps", draw, 1)


def came_out(place: Place) -> dict[str, Any]:
    """Return what came out of each point, by its fingerprint; each must be there once."""
    with open_store(place.uri) as store:
        client, history = store.client, store.client.get_metric_history
        (experiment,) = client.search_experiments(filter_string="name = 'fashion-mnist'")
        runs = client.search_runs([experiment.experiment_id])
        trials = [run for run in runs if run.data.tags["fmnist.role"] == "trial"]
        assert {run.info.status for run in runs} == {"FINISHED"}
        found = {
            run.data.tags["fmnist.point"]: (
                run.info.run_name,
                sorted((m.step, m.value) for m in history(run.info.run_id, "val_loss")),
                [w.tobytes() for w in weights(client, run, experiment.experiment_id)],
            )
            for run in trials
        }
    assert len(found) == len(trials)
    return found


@pytest.mark.slow
def test_a_killed_search_asks_for_the_same_points(tmp_path: Path, cache: Path) -> None:
    calm = Place(tmp_path / "calm", cache)
    assert finish(calm.start(words=WORDS), calm)["finished"] == POINTS
    place = Place(tmp_path / "disturbed", cache)
    process = place.start(words=WORDS)
    place.wait_until_said("ended: ", 5, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process = place.start(words=WORDS)
    place.wait_until_said("is trained already", 1, process)
    place.wait_until_said(f"epoch 1/{EPOCHS}", 2, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    result = finish(process, place)
    assert (result["finished"], result["failed"], result["grid_points"]) == (POINTS, 0, POINTS)
    assert came_out(place) == came_out(calm)
    # With another number of workers it goes on as it began, and has what it had.
    changes = {str(POINTS): str(POINTS + 1), str(WORKERS): str(WORKERS + 1)}
    limited = WORDS.index("--epochs")  # whose number is as many
    words = [*WORDS[: limited + 2], *(changes.get(word, word) for word in WORDS[limited + 2 :])]
    more = finish(place.start(words=words), place)
    assert f"At most {WORKERS} trials run at once" in place.said()
    assert (more["run_id"], more["finished"]) == (result["run_id"], POINTS + 1)
    assert came_out(place).items() > came_out(calm).items()


def search_of(call: Call, *words: str) -> tuple[int, Any, str]:
    status, out, err = call("search", "--limit", "600", "--epochs", "1", "--json", *words)
    return status, json.loads(out) if out else None, err


def search(call: Call, *words: str) -> tuple[int, Any, str]:
    return search_of(call, "--oracle", "bayesian", *words)


def test_a_search_and_the_same_again(call: Call) -> None:
    words = ("--network", NETWORK, "--max-trials")
    status, four, err = search(call, *words, "4")
    assert status == 0, err
    assert (four["finished"], four["grid_points"]) == (4, 4)
    assert {trial["name"].split("=")[0] for trial in four["trials"]} == {"units"}
    status, again, err = search(call, *words, "3")
    assert (again["run_id"], again["reused"]) == (four["run_id"], 4)
    assert "has finished all 4 points before" in err
    status, out, _ = call("runs", "--json")
    assert status == 0
    assert json.loads(out)[0]["points"] == 4
    # Another objective is another search, whose points are told in its own direction.
    status, other, err = search(call, *words, "4", "--objective", "val_loss")
    assert status == 0, err
    assert other["run_id"] != four["run_id"]
    status, plan, err = search(call, *words, "4", "--dry-run")
    assert "Which points follow the first ones depends on results" in err
    assert len(plan["points"]) == 4


def test_points_that_are_asked_for_again_or_cannot_be_built(call: Call) -> None:
    words = ("--network", f"{nets.__file__}:sometimes", "--max-trials", "8")
    status, found, err = search(call, *words)
    assert status == 0, err
    assert "Left out, as it cannot be trained: size=40" in err
    assert {trial["params"]["size"] for trial in found["trials"]} == {2, 3}
    assert (found["finished"], found["grid_points"], found["failed"]) == (2, 2, 0)
    status, again, err = search(call, *words)
    assert (again["run_id"], again["reused"]) == (found["run_id"], 2)


def test_a_point_is_trained_once_however_often_it_is_asked_for(call: Call) -> None:
    words = ("--network", f"{nets.__file__}:few", "--max-trials", "8")
    status, found, err = search(call, *words)
    assert status == 0, err
    rates = [trial["params"]["rate"] for trial in found["trials"]]
    assert len({*rates}) == len(rates) == found["grid_points"] <= 4
    # The oracle was told how each came out: what diverged has no score.
    scores = {trial["params"]["rate"]: trial["val_accuracy"] for trial in found["trials"]}
    scores |= {t["params"]["rate"]: None for t in found["trials"] if t["status"] == "diverged"}
    told: list[float | None] = []
    network = find_network(f"{nets.__file__}:few")
    for _ in range(8):
        known = propose(network, {}, Draw(points=8, seed=0), 2, told, lambda *_: None).points
        if len(told) < len(known):
            told.append(scores[dict(known[len(told)].values)["rate"]])
    values = [dict(one.values)["rate"] for one in known]
    assert {*values} == {*rates}
    assert len(values) > len(rates) or len(values) < 8  # asked for again, or there are no others


def test_results_are_told_in_the_direction_of_the_objective(call: Call) -> None:
    words = ("--network", NETWORK, "--max-trials", "8", "--workers", "1")
    status, found, err = search(call, *words, "--objective", "val_loss")
    assert status == 0, err
    with open_store() as store:
        run = store.client.get_run(found["run_id"])
        trials = {
            trial["params"]["rate"]: read_trial(find_run(store, trial["run_id"])).score
            for trial in found["trials"]
        }
    assert run.info.run_name == "bayesian search of 8 points of nets.py:without_steps"
    network = find_network(NETWORK)
    for direction, is_so in (("min", True), ("max", False)):
        draw, told = Draw(points=8, seed=0, direction=direction), list[float | None]()
        while len(told) < 8:
            known = propose(network, {}, draw, 1, told, lambda *_: None).points
            told.append(trials.get(dict(known[len(told)].values)["rate"]))
        assert ({dict(one.values)["rate"] for one in known} == {*trials}) is is_so


def test_what_another_search_has_trained_is_not_trained_again(call: Call) -> None:
    words = ("--network", f"{nets.__file__}:few")
    status, grid, err = search_of(call, *words)
    assert status == 0, err
    status, found, err = search(call, *words, "--max-trials", "3")
    assert (status, found["reused"], found["finished"]) == (0, 3, 3), err
    # Fewer are asked for of the same search; it is as it was.
    status, fewer, _ = search(call, *words, "--max-trials", "2")
    assert (fewer["run_id"], fewer["finished"]) == (found["run_id"], 3)
    assert {t["run_id"] for t in found["trials"]} < {t["run_id"] for t in grid["trials"]}


def test_time_that_is_over(call: Call) -> None:
    words = ("--network", NETWORK, "--max-trials", "5", "--workers", "1")
    status, part, err = search(call, *words, "--max-time", "1s")
    assert status == 0, err
    assert "points are left, as its time is over" in err
    assert part["finished"] < 5
    status, whole, err = search(call, *words)
    assert (status, whole["finished"]) == (0, 5)
    assert whole["run_id"] == part["run_id"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "Expected --max-trials with the oracle bayesian"),
        (("--max-trials", "4", "--repeats", "2"), "Expected no --repeats and no axis seed"),
        (("--max-trials", "4", "--axis", "batch_size=16,32"), "no axis batch_size"),
    ],
)
def test_what_does_not_go_together(call: Call, words: tuple[str, ...], expected: str) -> None:
    status, _, err = search(call, *words)
    assert (status, expected in err) == (2, True), err
    assert err.count("\n") == 1
