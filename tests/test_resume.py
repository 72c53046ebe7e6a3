import contextlib
import dataclasses
import random
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from conftest import SMALL
from fmnist_tracking import fingerprint, tracking
from fmnist_tracking.config import DEFAULT_EXPERIMENT
from fmnist_tracking.environment import Code
from fmnist_tracking.errors import SearchError, TrackingError
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.tracking import ResumeState, Store, leases, resume, schema
from fmnist_tracking.tracking.leases import Lease
from fmnist_tracking.tracking.resume import UnfinishedTrial
from records import epoch
from runs import ORIGIN, SEARCH, TRIAL, finish_quickly, keys

SPACE = SearchSpace(axes={"filters": (1, 2, 3, 4)})
POINTS = SPACE.points(SMALL)
PRINTS = tuple(f"{number:064x}" for number in range(len(POINTS)))
CONFIGS = dict(zip(PRINTS, POINTS, strict=True))
GRID = "9" * 64


@pytest.fixture
def experiment(store: Store) -> str:
    return store.experiment_id(DEFAULT_EXPERIMENT)


def lease_of(pid: int) -> Lease:
    started, ticks = psutil.Process(pid).create_time(), leases._ticks(pid)
    return dataclasses.replace(Lease.of_this_process(), pid=pid, started=started, ticks=ticks)


@pytest.fixture
def other() -> Iterator[Lease]:
    """The lease of another process on this machine, which is there."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield lease_of(process.pid)
        process.kill()


@pytest.fixture
def dead() -> Lease:
    """The lease of a process on this machine that has ended."""
    with subprocess.Popen(["sleep", "600"]) as process:
        lease = lease_of(process.pid)
        process.kill()
    return lease


def start_search(store: Store, experiment: str, grid: str = GRID, fresh: bool = False) -> str:
    facts = dataclasses.replace(SEARCH, space=SPACE, grid=grid, fresh=fresh)
    time.sleep(0.002)  # the newest is told by its milliseconds
    return tracking.start_search(store, experiment, facts)


def start_trial(store: Store, experiment: str, point: int, parent: str | None) -> str:
    facts = dataclasses.replace(
        TRIAL, config=POINTS[point], fingerprint=PRINTS[point], parent=parent
    )
    return tracking.start_trial(store, experiment, facts)


def finished_trial(
    store: Store, experiment: str, point: int, parent: str | None, score: float = 0.5
) -> str:
    run_id = start_trial(store, experiment, point, parent)
    finish_quickly(store, run_id, score)
    return run_id


def cut_off_trial(
    store: Store, experiment: str, point: int, parent: str | None, status: str = "KILLED"
) -> str:
    run_id = start_trial(store, experiment, point, parent)
    store.client.set_terminated(run_id, status)
    return run_id


def standing(
    store: Store, experiment: str, prints: Sequence[str] = PRINTS, *, fresh: bool = False
) -> ResumeState:
    searches = tracking.find_searches(store, experiment, [GRID])
    wanted = keys({point: CONFIGS[point] for point in prints})
    return tracking.find_resume_state(store, experiment, searches, wanted, fresh=fresh)


def found(what: ResumeState) -> dict[int, tuple[str, bool]]:
    """The finished trials by their point's place: the run and whether it is another's."""
    return {PRINTS.index(p): (t.run_id, t.reused) for p, t in what.finished.items()}


def give(store: Store, run_id: str, lease: Lease) -> None:
    store.client.set_tag(run_id, schema.LEASE, lease.text())


def status(store: Store, run_id: str) -> str:
    return str(store.client.get_run(run_id).info.status)


def test_of_equal_searches_the_one_last_asked_for_comes_first(
    store: Store, experiment: str
) -> None:
    ahead, later = start_search(store, experiment), start_search(store, experiment)
    with (
        contextlib.closing(sqlite3.connect("mlflow.db")) as rows,
        rows,
    ):  # the clock was a day ahead
        rows.execute(
            "UPDATE runs SET start_time = start_time + 86400000 WHERE run_uuid = ?", (ahead,)
        )
    store.client.set_tag(ahead, schema.ASKED_AT, "2026-01-01T00:00:00.000+00:00")
    searches = tracking.find_searches(store, experiment, [GRID])
    assert [search.run_id for search in searches] == [later, ahead]


def test_an_empty_store_has_nothing(store: Store, experiment: str) -> None:
    assert standing(store, experiment) == ResumeState(
        search=None, searches=(), finished={}, open={}
    )


def test_a_search_that_was_cut_off_is_found(store: Store, experiment: str) -> None:
    run_id = start_search(store, experiment)
    done = finished_trial(store, experiment, 0, run_id)
    begun = cut_off_trial(store, experiment, 1, run_id)
    tracking.log_epochs(store, begun, [epoch(1, 0.5)])
    failed = cut_off_trial(store, experiment, 2, run_id, "FAILED")
    start_search(store, experiment, grid="8" * 64)  # the newest, but another
    what = standing(store, experiment)
    assert what.search is not None
    assert what.search.run_id == run_id
    assert what.searches == (run_id,)
    assert found(what) == {0: (done, False)}
    assert what.open == {
        PRINTS[1]: UnfinishedTrial(run_id=begun, has_steps=True),
        PRINTS[2]: UnfinishedTrial(run_id=failed, has_steps=False),
    }
    assert what.finished[PRINTS[0]].config == POINTS[0]


def test_a_search_of_another_experiment_is_not_found(store: Store, experiment: str) -> None:
    elsewhere = store.experiment_id("elsewhere")
    run_id = start_search(store, elsewhere)
    finished_trial(store, elsewhere, 0, run_id)
    assert standing(store, experiment).search is None
    assert found(standing(store, experiment)) == {}


def test_points_that_others_have_finished_are_reused(store: Store, experiment: str) -> None:
    another = start_search(store, experiment, grid="8" * 64)
    theirs = finished_trial(store, experiment, 0, another)
    alone = finished_trial(store, experiment, 1, None)
    cut_off_trial(store, experiment, 2, another)
    assert found(standing(store, experiment)) == {0: (theirs, True), 1: (alone, True)}
    assert standing(store, experiment).open == {}

    run_id = start_search(store, experiment)
    own = finished_trial(store, experiment, 0, run_id)
    what = standing(store, experiment)
    assert found(what) == {0: (own, False), 1: (alone, True)}  # its own goes before another's


def test_only_the_points_asked_for_are_found_in_their_order(
    store: Store, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = start_search(store, experiment, grid="8" * 64)
    ids = [finished_trial(store, experiment, point, another) for point in range(4)]
    for few in (100, 1):  # one by one, and all at once
        monkeypatch.setattr("fmnist_tracking.tracking.resume._FEW", few)
        what = standing(store, experiment, (PRINTS[3], PRINTS[1]))
        assert [(p, t.run_id) for p, t in what.finished.items()] == [
            (PRINTS[3], ids[3]),
            (PRINTS[1], ids[1]),
        ]


def test_of_a_point_finished_twice_the_newest_counts(store: Store, experiment: str) -> None:
    run_id = start_search(store, experiment)
    finished_trial(store, experiment, 0, run_id, 0.9)
    time.sleep(0.002)
    newest = finished_trial(store, experiment, 0, run_id, 0.1)
    assert found(standing(store, experiment)) == {0: (newest, False)}


def test_a_search_that_was_to_train_anew_counts_its_own_alone(
    store: Store, experiment: str
) -> None:
    before = start_search(store, experiment)
    finished_trial(store, experiment, 0, before)
    cut_off_trial(store, experiment, 1, before)
    finished_trial(store, experiment, 2, None)
    run_id = start_search(store, experiment, fresh=True)
    own = finished_trial(store, experiment, 3, run_id)
    what = standing(store, experiment)
    assert what.search is not None
    assert what.search.run_id == run_id
    assert what.searches == (run_id,)
    assert found(what) == {3: (own, False)}
    assert what.open == {}


def test_to_train_anew_leaves_all_aside(store: Store, experiment: str) -> None:
    run_id = start_search(store, experiment)
    finished_trial(store, experiment, 0, run_id)
    cut_off_trial(store, experiment, 1, run_id)
    assert standing(store, experiment, fresh=True) == ResumeState(
        search=None, searches=(), finished={}, open={}
    )


def test_a_finished_search_is_not_gone_on_with(store: Store, experiment: str) -> None:
    old = start_search(store, experiment)
    store.client.set_terminated(old, "KILLED")
    run_id = start_search(store, experiment)
    done = finished_trial(store, experiment, 0, run_id)
    store.client.set_terminated(run_id, "FINISHED")
    what = standing(store, experiment)
    assert what.search is None
    assert what.searches == ()
    assert found(what) == {0: (done, True)}


def test_a_search_that_went_on_in_another_run_is_left_behind(store: Store, experiment: str) -> None:
    old = start_search(store, experiment)
    done, open_trial = (
        finished_trial(store, experiment, 0, old),
        cut_off_trial(store, experiment, 1, old),
    )
    new = start_search(store, experiment)
    assert standing(store, experiment).searches == (new, old)
    assert found(standing(store, experiment)) == {0: (done, False)}
    tracking.move_trials(store, [done, open_trial], old, new)
    what = standing(store, experiment)
    assert what.searches == (new,)
    assert found(what) == {0: (done, False)}
    assert what.open[PRINTS[1]].run_id == open_trial
    assert len(tracking.read_search(store, tracking.find_run(store, new)).trials) == 2


def test_what_would_be_written_elsewhere_is_not_gone_on_with(
    store: Store, experiment: str, tmp_path: Path
) -> None:
    def send_elsewhere(*run_ids: str) -> None:
        with contextlib.closing(sqlite3.connect("mlflow.db")) as rows, rows:
            for run_id in run_ids:
                place = (str(tmp_path / "elsewhere"), run_id)
                rows.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", place)

    search = start_search(store, experiment)
    done = finished_trial(store, experiment, 0, search)
    cut_off = cut_off_trial(store, experiment, 1, search)
    cut_off_trial(store, experiment, 2, search)
    alone = cut_off_trial(store, experiment, 3, None)
    send_elsewhere(done, cut_off, alone)
    what = standing(store, experiment)
    assert found(what) == {0: (done, False)}
    assert what.open.keys() == {PRINTS[2]}
    wanted = keys({PRINTS[3]: POINTS[3]})
    assert tracking.find_training(store, experiment, wanted) == ResumeState()
    assert "see --trust-artifact-location" in store.left_out[cut_off]
    assert store.left_out.keys() == {cut_off, alone}
    send_elsewhere(search)
    assert standing(store, experiment).search is None


def test_a_training_of_its_own_is_found(store: Store, experiment: str) -> None:
    def find(place: int) -> ResumeState:
        return tracking.find_training(store, experiment, keys({PRINTS[place]: POINTS[place]}))

    assert find(0) == ResumeState()
    cut_off_trial(store, experiment, 0, start_search(store, experiment))  # a search's
    assert find(0) == ResumeState()
    alone = cut_off_trial(store, experiment, 0, None)
    cut_off = UnfinishedTrial(run_id=alone, has_steps=False)
    assert find(0) == ResumeState(open={PRINTS[0]: cut_off})
    done = finished_trial(store, experiment, 0, start_search(store, experiment))
    assert find(0).open == {}
    assert find(0).finished[PRINTS[0]].run_id == done
    assert find(1) == ResumeState()


def test_time_is_estimated_from_trials_that_were_trained_to_their_end(
    store: Store, experiment: str
) -> None:
    code = Code(version="1", sha256=fingerprint.of_program(), commit=None, branch=None, dirty=False)
    facts = dataclasses.replace(TRIAL, origin=dataclasses.replace(ORIGIN, code=code))
    ids = []
    for place, seconds in enumerate((40.0, 1.0, 2.0, 60.0)):
        run_id = tracking.start_trial(store, experiment, facts)
        finish_quickly(store, run_id, 0.5)
        store.client.log_metric(run_id, "train_seconds", seconds, step=1)
        ids.append(run_id)
        if place == 1:
            store.client.set_tag(run_id, schema.DIVERGED, "1")
        if place == 2:  # as an earlier release recorded it
            store.client.log_metric(run_id, "best_val_loss", float("nan"))
    found = tracking.like_trials(store, experiment, TRIAL.split, TRIAL.threads)
    assert {trial.run_id for trial in found} == {ids[0], ids[3]}


def test_an_epoch_counts_as_logged_when_all_its_figures_are(store: Store, experiment: str) -> None:
    run_id = start_trial(store, experiment, 0, None)
    assert tracking.logged_steps(store, run_id) == set()
    tracking.log_epochs(store, run_id, [epoch(1, 0.5), epoch(2, 0.5)])
    store.client.log_metric(run_id, "loss", 0.1, step=3)
    assert tracking.logged_steps(store, run_id) == {1, 2}


def test_runs_of_dead_processes_are_closed(
    store: Store, experiment: str, dead: Lease, other: Lease
) -> None:
    mine, theirs, gone = (start_search(store, experiment) for _ in range(3))
    trials = {run: start_trial(store, experiment, 0, run) for run in (mine, theirs, gone)}
    alone = start_trial(store, experiment, 1, None)
    done = finished_trial(store, experiment, 2, gone)
    for run, lease in ((theirs, other), (gone, dead), (alone, dead), (done, dead)):
        give(store, run, lease)
        if run in trials:
            give(store, trials[run], lease)
    unheld = start_trial(store, experiment, 3, None)
    store.client.delete_tag(unheld, schema.LEASE)
    foreign = store.client.create_run(experiment).info.run_id

    elsewhere = store.experiment_id("elsewhere")
    not_looked_at = start_search(store, elsewhere)
    give(store, not_looked_at, dead)

    closed = tracking.close_orphans(store, [experiment])
    assert {run_id for run_id, _ in closed} == {gone, trials[gone], alone, unheld}
    assert {status(store, run_id) for run_id, _ in closed} == {"KILLED"}
    live = (mine, trials[mine], theirs, trials[theirs], foreign, not_looked_at)
    assert {status(store, run) for run in live} == {"RUNNING"}
    assert status(store, done) == "FINISHED"
    assert tracking.close_orphans(store, [experiment]) == []


def test_a_killed_search_shows_as_such_at_once(
    store: Store, experiment: str, dead: Lease, other: Lease
) -> None:
    killed, running = start_search(store, experiment), start_search(store, experiment)
    trials = [start_trial(store, experiment, 0, parent) for parent in (killed, running)]
    for run, trial, lease in ((killed, trials[0], dead), (running, trials[1], other)):
        give(store, run, lease)
        give(store, trial, lease)
    shown = {run.run_id: run.status for run in tracking.list_runs(store)}
    assert shown == {killed: "KILLED", running: "RUNNING"}
    for search, expected in shown.items():
        result = tracking.read_search(store, tracking.find_run(store, search))
        assert [trial.status for trial in result.trials] == [expected]
        with pytest.raises(TrackingError, match=rf"\({expected}\) has no finished trial"):
            tracking.best_trial(store, tracking.find_run(store, search))
    assert status(store, killed) == "RUNNING"  # to look changes nothing


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(resume, "_LOOK_SECONDS", 0.05)


@contextlib.contextmanager
def beating(store: Store, run_id: str, lease: Lease, ahead: float) -> Iterator[None]:
    """Another machine's process, whose clock is ahead or behind, and may jump."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.2):
            now = time.time() + ahead * random.choice((1, 1, 0.5))
            give(store, run_id, dataclasses.replace(lease, beat=now))

    give(store, run_id, dataclasses.replace(lease, beat=time.time() + ahead))
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


AWAY = dataclasses.replace(Lease.of_this_process(), machine="another", pid=7)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ahead", [-300, 0, 300, 1e9])
def test_another_machine_is_judged_by_its_heartbeats_whatever_its_clock(
    store: Store, experiment: str, ahead: float
) -> None:
    at_work, gone = start_search(store, experiment), start_search(store, experiment)
    kept, lost, earlier = (
        start_trial(store, experiment, point, parent)
        for point, parent in ((0, at_work), (0, gone), (1, at_work))
    )
    silent = dataclasses.replace(AWAY, beat=time.time() + ahead)
    for run_id in (gone, lost):
        give(store, run_id, dataclasses.replace(silent, pid=8))
    give(store, kept, silent)  # a trial's lease is as old as the trial
    give(store, earlier, dataclasses.replace(silent, pid=6))  # of a process before this one
    assert tracking.close_orphans(store, [experiment]) == []  # seen for the first time
    with beating(store, at_work, AWAY, ahead):
        closed = {run_id for run_id, _ in tracking.close_orphans(store, [experiment], watch=True)}
        assert closed == {gone, lost, earlier}
        with pytest.raises(SearchError, match=f"{at_work[:8]} is running already: process 7 on"):
            tracking.require_not_live(store, tracking.find_run(store, at_work))
    tracking.require_not_live(store, tracking.find_run(store, at_work))
    assert status(store, at_work) == "RUNNING"  # it is left to who takes it over


@pytest.mark.usefixtures("impatient")
def test_a_training_that_another_machine_is_at_is_not_gone_on_with(
    store: Store, experiment: str
) -> None:
    run_id = start_trial(store, experiment, 0, None)
    with (
        beating(store, run_id, AWAY, 0),
        pytest.raises(SearchError, match=f"The training {run_id[:8]} is running already"),
    ):
        tracking.find_training(store, experiment, keys({PRINTS[0]: POINTS[0]}))


def test_a_search_that_another_process_is_at_is_refused(
    store: Store, experiment: str, other: Lease
) -> None:
    run_id = start_search(store, experiment)
    give(store, run_id, other)
    with pytest.raises(SearchError, match=rf"{run_id[:8]} is running already: process {other.pid}"):
        tracking.require_not_live(store, tracking.find_run(store, run_id))
    store.client.set_terminated(run_id, "KILLED")
    tracking.require_not_live(store, tracking.find_run(store, run_id))


def test_a_search_that_no_other_process_is_at_may_go_on(
    store: Store, experiment: str, dead: Lease
) -> None:
    run_id = start_search(store, experiment)
    tracking.require_not_live(store, tracking.find_run(store, run_id))  # this process's own
    give(store, run_id, dead)
    tracking.require_not_live(store, tracking.find_run(store, run_id))
    store.client.delete_tag(run_id, schema.LEASE)
    tracking.require_not_live(store, tracking.find_run(store, run_id))


def test_a_run_with_the_fingerprint_of_another_configuration_is_left_out(
    store: Store, experiment: str
) -> None:
    facts = dataclasses.replace(TRIAL, config=POINTS[1], fingerprint=PRINTS[0], parent=None)
    run_id = tracking.start_trial(store, experiment, facts)
    finish_quickly(store, run_id, 0.9)
    assert standing(store, experiment).finished == {}
    assert "that of another configuration" in store.left_out[run_id]
