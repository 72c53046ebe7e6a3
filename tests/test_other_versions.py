"""Runs that this version cannot read are left out, counted and named; the rest works."""

import contextlib
import dataclasses
import json
import logging
import sqlite3
from collections.abc import Callable

import pytest
from mlflow import MlflowClient

from conftest import SMALL, SMALL_SPLIT
from fmnist_tracking import fingerprint, tracking
from fmnist_tracking.errors import TrackingError
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.tracking import ResumeState, Store, TrackedRun, open_store, schema
from fmnist_tracking.tracking.records import UnreadableRun
from fmnist_tracking.tracking.resume import UnfinishedTrial
from runs import (
    FACTS,
    SPACE,
    TRIAL,
    finish_quickly,
    keys,
    search_result,
    start_search,
    start_trial,
)

Damage = Callable[[MlflowClient, str], object]


def good_search(store: Store) -> tuple[str, list[str]]:
    """A search all of whose points have finished; its id and its trials', the best last."""
    search = start_search(store)
    trials = [start_trial(store, config, search) for config in SPACE.points(SMALL)]
    for place, trial in enumerate(trials):
        finish_quickly(store, trial, 0.5 + place / 10)
    tracking.finish_search(store, search_result(store, search), b"a picture")
    return search, trials


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no role": (lambda c, r: c.delete_tag(r, schema.ROLE), "fmnist.role is missing"),
    "another role": (
        lambda c, r: c.set_tag(r, schema.ROLE, "sweep"),
        "fmnist.role is 'sweep', which is not known here",
    ),
    "no data": (lambda c, r: c.delete_tag(r, schema.DATA_SHA256), "data_sha256 is missing"),
    "no protocol": (lambda c, r: c.delete_tag(r, schema.PROTOCOL), "how its data was split"),
}
TRIAL_DAMAGES: dict[str, tuple[Damage, str]] = {
    **DAMAGES,
    "a setting": (lambda c, r: c.log_param(r, "padding", "same"), "the setting 'padding'"),
    "a protocol": (lambda c, r: c.set_tag(r, schema.PROTOCOL, "k-fold"), "how its data was split"),
    "infinite": (lambda c, r: c.log_metric(r, "best_epoch", float("inf")), "no whole number"),
    "not a number": (lambda c, r: c.log_metric(r, "best_epoch", float("nan")), "no whole number"),
    "no score": (
        lambda c, r: c.log_metric(r, schema.BEST_VAL_ACCURACY, float("inf")),
        "best_val_accuracy is no share",
    ),
}


@pytest.mark.parametrize("what", TRIAL_DAMAGES)
def test_a_trial_that_cannot_be_read_is_left_out(
    store: Store, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    search, trials = good_search(store)
    damage, why = TRIAL_DAMAGES[what]
    odd_point = "0" * 64

    def standing_of(opened: Store, found: TrackedRun) -> ResumeState:
        searched = keys({odd_point: SPACE.points(SMALL)[0]})
        return tracking.find_resume_state(
            opened, found.experiment_id, [found], searched, reopen=True
        )

    # Of the same search and point, finished, and better than all others.
    odd = start_trial(store, SPACE.points(SMALL)[0], search)
    store.client.set_tag(odd, schema.POINT, odd_point)
    finish_quickly(store, odd, 0.99)
    damage(store.client, odd)
    caplog.clear()
    with caplog.at_level(logging.WARNING), open_store() as opened:
        (summary,) = tracking.list_runs(opened)
        assert (summary.run_id, summary.finished) == (search, 4)
        found = tracking.find_run(opened, "latest")
        assert tracking.best_trial(opened, found).run_id == trials[-1]
        assert tracking.find_run(opened, "best").run_id == trials[-1]
        assert len(tracking.read_search(opened, found).trials) == 4
        wanted = keys({odd_point: SPACE.points(SMALL)[0]})
        assert tracking.find_training(opened, found.experiment_id, wanted) == ResumeState()
        assert standing_of(opened, found).finished == {}
    (line,) = [r.getMessage() for r in caplog.records if "Left out" in r.getMessage()]
    assert odd[:8] in line
    assert why in line
    with open_store() as opened, pytest.raises(UnreadableRun, match=odd[:8]):
        tracking.read_trial(tracking.find_run(opened, odd))


SEARCH_DAMAGES: dict[str, tuple[Damage, str]] = {
    **DAMAGES,
    "an axis": (lambda c, r: c.log_param(r, "grid.padding", '["same", "valid"]'), "padding"),
    "an axis that is no list": (lambda c, r: c.log_param(r, "grid.dropout", "0.1;0.2"), "its grid"),
    "an axis that has no end": (
        lambda c, r: c.log_param(r, "grid.dropout", "[" * 6000),
        "its grid",
    ),
    "a grid in a file that is gone": (
        lambda c, r: c.log_param(r, "grid.dropout", f"see {schema.AXES_FILE}"),
        "its grid",
    ),
    "a value": (lambda c, r: c.log_param(r, "grid.dropout", '["a little"]'), "a little"),
}


def test_a_trial_that_was_cut_off_and_cannot_be_read_is_not_gone_on_with(store: Store) -> None:
    search, _ = good_search(store)
    points = dict.fromkeys(("0" * 64, "1" * 64), SMALL)
    odd, alone = start_trial(store, SMALL, search), start_trial(store, SMALL, parent=None)
    for run_id, point in zip((odd, alone), points, strict=True):
        store.client.set_tag(run_id, schema.POINT, point)
        store.client.set_terminated(run_id, "KILLED")
    store.client.set_terminated(search, "KILLED")

    def found() -> tuple[set[str], UnfinishedTrial | None]:
        run = tracking.find_run(store, search)
        standing = tracking.find_resume_state(store, run.experiment_id, [run], keys(points))
        point = "1" * 64
        training = tracking.find_training(store, run.experiment_id, keys({point: SMALL}))
        return {trial.run_id for trial in standing.open.values()}, training.open.get(point)

    assert found() == ({odd}, UnfinishedTrial(run_id=alone, has_steps=False))
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database, database:
        for run_id in (odd, alone):
            database.execute(
                "UPDATE params SET value = 'many' WHERE key = 'filters' AND run_uuid = ?", (run_id,)
            )
    assert found() == (set(), None)
    assert set(store.left_out) == {odd, alone}


@pytest.mark.parametrize("status", ["FINISHED", "RUNNING"])
@pytest.mark.parametrize("what", SEARCH_DAMAGES)
def test_a_search_that_cannot_be_read_is_left_out(
    store: Store, caplog: pytest.LogCaptureFixture, what: str, status: str
) -> None:
    search, trials = good_search(store)
    damage, why = SEARCH_DAMAGES[what]
    newer = start_search(store, name="of another version", grid="8" * 64)
    store.client.set_terminated(newer, status)
    damage(store.client, newer)
    caplog.clear()
    with caplog.at_level(logging.WARNING), open_store() as opened:
        assert [run.run_id for run in tracking.list_runs(opened)] == [search]
        assert tracking.find_run(opened, "latest").run_id == search
        assert tracking.find_run(opened, "best").run_id == trials[-1]
        assert tracking.find_run(opened, "best-of-all").run_id == trials[-1]
        latest = tracking.latest_search(opened)
        assert latest is not None
        assert latest.run_id == search
        tracking.close_orphans(opened, [latest.experiment_id])
        # The same grid again: it is begun anew.
        assert tracking.find_searches(opened, latest.experiment_id, ["8" * 64]) == []
        assert len(tracking.find_searches(opened, latest.experiment_id, ["9" * 64])) == 1
    (line,) = [r.getMessage() for r in caplog.records if "Left out" in r.getMessage()]
    assert newer[:8] in line
    assert why in line


def test_several_are_counted_and_the_first_named(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    good_search(store)
    for number in range(5):
        odd = start_search(store, grid=str(number) * 64)
        store.client.log_param(odd, "grid.padding", "[1]")
    caplog.clear()
    with open_store() as opened:
        assert len(tracking.list_runs(opened)) == 1
    (line,) = [r.getMessage() for r in caplog.records if "Left out" in r.getMessage()]
    assert "5 runs" in line
    assert "and 2 more" in line


def test_a_parameter_that_a_person_added_costs_no_result(store: Store) -> None:
    search, trials = good_search(store)
    config = SPACE.points(SMALL)[0]
    point = fingerprint.of_point(config, SMALL_SPLIT, FACTS.sha256)
    store.client.set_tag(trials[0], schema.POINT, point)
    store.client.log_param(trials[0], "my_note", "looks good")
    found = tracking.find_run(store, search)
    assert len(tracking.read_search(store, found, summary=False).finished) == 4
    experiment = tracking.choose_experiment(store, None)
    standing = tracking.find_resume_state(store, experiment, [], keys({point: config}))
    assert standing.finished[point].run_id == trials[0]
    assert store.left_out == {}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"trials": [{}]}', '{"trials": 3}', "\x00"])
def test_a_summary_that_cannot_be_read_is_made_up_for(store: Store, content: str) -> None:
    search, trials = good_search(store)
    store.client.log_text(search, content, schema.SEARCH_FILE)
    result = search_result(store, search)
    assert sorted(t.run_id for t in result.finished) == sorted(trials)


@pytest.mark.parametrize("place", range(4))
def test_a_summary_counts_only_while_each_of_its_trials_is_there(store: Store, place: int) -> None:
    search = start_search(store)
    before = start_trial(store, SPACE.points(SMALL)[0], search)
    finish_quickly(store, before, 0.1)
    store.client.delete_run(before)
    trials = [start_trial(store, config, search) for config in SPACE.points(SMALL)]
    for number, trial in enumerate(trials):
        finish_quickly(store, trial, 0.5 + number / 10)
    tracking.finish_search(store, search_result(store, search), b"a picture")
    assert len(search_result(store, search).finished) == 4
    # As many as before, though not the same.
    store.client.delete_run(trials[place])
    store.client.restore_run(before)
    left = {before, *trials} - {trials[place]}
    result = search_result(store, search)
    assert {trial.run_id for trial in result.finished} <= left
    assert len(result.finished) == (4 if place == 0 else 3)
    best = tracking.best_trial(store, tracking.find_run(store, search))
    assert best.run_id == (trials[2] if place == 3 else trials[3])


@pytest.mark.parametrize("named", [None, "", "nobody's", "f" * 32, "x" * 400])
def test_a_search_that_names_no_best_trial_is_read_by_its_trials(
    store: Store, named: str | None
) -> None:
    search, trials = good_search(store)
    if named is None:
        store.client.delete_tag(search, schema.BEST_RUN)
    else:
        store.client.set_tag(search, schema.BEST_RUN, named)
    with open_store() as opened:
        (summary,) = tracking.list_runs(opened)
        assert (summary.run_id, summary.finished, summary.val_accuracy) == (search, 4, 0.8)
        assert tracking.find_run(opened, "best").run_id == trials[-1]
        assert opened.left_out == {}


@pytest.mark.parametrize("listed", ["it's", "", "a b", "\\"])
def test_a_list_of_reused_trials_that_names_no_runs_stops_nobody(store: Store, listed: str) -> None:
    search, trials = good_search(store)
    store.client.set_tag(search, schema.REUSED, "1")
    store.client.log_text(search, json.dumps([listed]), schema.REUSED_FILE)
    with open_store() as opened:
        (summary,) = tracking.list_runs(opened)
        assert (summary.run_id, summary.finished) == (search, 4)
        found = tracking.find_run(opened, "latest")
        read = tracking.read_search(opened, found, summary=False)
        assert {trial.run_id for trial in read.finished} == set(trials)


def test_a_list_of_reused_trials_that_is_gone_is_told(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    search, _ = good_search(store)
    store.client.set_tag(search, schema.REUSED, "1")
    with open_store() as opened:
        (summary,) = tracking.list_runs(opened)
    assert summary.finished == 4
    (line,) = caplog.messages
    assert line.startswith(f"The trials that the search {search[:8]} has reused are not counted")


def test_what_the_release_before_trained_is_found_again(store: Store) -> None:
    config = SPACE.points(SMALL)[0]
    grid_keys = fingerprint.of_grid([config], SMALL_SPLIT, FACTS.sha256)
    experiment = tracking.choose_experiment(store, None)
    old = fingerprint.older_keys(config, SMALL_SPLIT, FACTS.sha256)[0]
    facts = dataclasses.replace(TRIAL, config=config, fingerprint=old, parent=None)
    trial = tracking.start_trial(store, experiment, facts)
    finish_quickly(store, trial, 0.7)
    standing = tracking.find_resume_state(store, experiment, [], grid_keys)
    assert standing.finished[grid_keys.today[0]].run_id == trial
    found = tracking.find_training(store, experiment, grid_keys)
    assert found.finished[grid_keys.today[0]].run_id == trial
    search = start_search(store, grid=fingerprint.of_search([old]))
    (known,) = tracking.find_searches(store, experiment, grid_keys.grids)
    assert known.run_id == search


def test_what_the_release_before_trained_is_asked_for_all_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = SearchSpace(axes={"filters": tuple(range(1, 7)), "strides": (1, 2)})
    grid_keys = fingerprint.of_grid(space.points(SMALL), SMALL_SPLIT, FACTS.sha256)
    assert len(grid_keys.points) > 2 * len(grid_keys.today)
    assert len(grid_keys.grids) > 2
    experiment = tracking.choose_experiment(store, None)
    olds = [
        key
        for key, today in grid_keys.points.items()
        if today in grid_keys.today[3:5] and key != today
    ]
    trials = {}
    for old in (olds[0], olds[-1]):
        config = grid_keys.configs[grid_keys.points[old]]
        facts = dataclasses.replace(TRIAL, config=config, fingerprint=old, parent=None)
        trials[grid_keys.points[old]] = tracking.start_trial(store, experiment, facts)
        finish_quickly(store, trials[grid_keys.points[old]], 0.7)
    search = start_search(store, grid=grid_keys.grids[-1])
    asked: list[object] = []
    ask = store.client.search_runs

    def counted(*arguments: object, **options: object) -> object:
        asked.append(arguments)
        return ask(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store.client, "search_runs", counted)
    (known,) = tracking.find_searches(store, experiment, grid_keys.grids)
    assert known.run_id == search
    assert len(asked) == 2  # by today's key, and by all older ones
    asked.clear()
    standing = tracking.find_resume_state(store, experiment, [], grid_keys)
    assert {point: trial.run_id for point, trial in standing.finished.items()} == trials
    # Whether there is any trial, each point by today's key, and all by the older ones.
    assert len(asked) == 1 + len(space) + 1


def test_a_run_without_a_name_or_a_time_is_read(store: Store) -> None:
    run_id = start_trial(store, SMALL, parent=None)
    finish_quickly(store, run_id, 0.5)
    raw = store.client.get_run(run_id)
    raw.info._run_name = None
    raw.info._start_time = None  # type: ignore[assignment]
    tracked: TrackedRun = tracking.as_tracked(raw)
    assert tracked.name == ""
    assert tracking.read_trial(tracked).val_accuracy == 0.5


def test_a_history_that_is_missing_is_told(store: Store) -> None:
    run_id = start_trial(store, SMALL, parent=None)
    finish_quickly(store, run_id, 0.5)
    with pytest.raises(TrackingError, match=r"history\.json of run .* cannot be fetched"):
        tracking.read_history(store, tracking.find_run(store, run_id))
