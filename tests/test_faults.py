"""A search that is killed, stopped, out of disk or without its store ends as if nothing had been.

Real processes, real signals, the real images, real stores. What "as if nothing had been" means
is in one place: `searches.assert_as_undisturbed`.
"""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmnist_tracking.tracking import logged_steps, open_store
from processes import fork_servers, is_alive, wait_for, workers_of
from searches import EPOCHS, POINTS, SEARCH, Outcome, Place, assert_as_undisturbed, finish
from servers import free_port, serving

pytestmark = pytest.mark.slow

KILLS_A_SEARCH = 17


def has_ended(pid: int) -> bool:
    return not is_alive(pid)


@pytest.mark.parametrize("kills", [12, pytest.param(50, marks=pytest.mark.release)])
def test_killed_at_random_again_and_again(
    tmp_path: Path, cache: Path, undisturbed: Outcome, kills: int
) -> None:
    seed = int(os.environ.get("KILLS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"KILLS_SEED={seed} kills at the same moments again")
    chance = random.Random(seed)
    victims = (["worker", "driver"] * kills)[: kills - kills // 10] + ["fork server"] * (
        kills // 10
    )
    chance.shuffle(victims)
    searches = 0
    while victims:
        place = Place(tmp_path / f"search{searches}", cache)
        process = place.start()
        searches += 1
        for _ in range(KILLS_A_SEARCH):
            time.sleep(chance.uniform(0, 3))
            if victims[-1] != "driver" or chance.random() < 0.6:  # else it may be loading yet
                wait_for(partial(is_at_work_or_done, process), seconds=120)
                time.sleep(chance.uniform(0, 2))
            if process.poll() is not None:
                break
            if kill(victims[-1], process, chance):
                victims.pop()
            if process.poll() is not None:
                process = place.start()
            if not victims:
                break
        for _ in range(20):
            if process.wait(timeout=300) == 0:
                break
            # A trial whose worker was killed twice in the same epoch was given up; and a process
            # that has just been killed may still hold the folder for a moment.
            assert process.returncode == 1, place.said()
            process = place.start()
        assert_as_undisturbed(place, undisturbed)


def is_at_work_or_done(process: "subprocess.Popen[str]") -> bool:
    return bool(workers_of(process)) or process.poll() is not None


def kill(victim: str, process: "subprocess.Popen[str]", chance: random.Random) -> bool:
    """Kill a worker of a search, its driver or its fork server; tell whether there was one."""
    if victim == "driver":
        process.kill()
        process.wait()
        return True
    found = (
        workers_of(process)
        if victim == "worker"
        else [server.pid for server in fork_servers(process)]
    )
    if found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(found), signal.SIGKILL)
            return True
    return False


def test_stopped_by_sigterm_again_and_again(
    tmp_path: Path, cache: Path, undisturbed: Outcome
) -> None:
    place = Place(tmp_path / "search", cache)
    # Epochs that are trained before each stop: 3 of 32, so that even with those that are trained
    # while the signal is on its way the search does not end before it is stopped.
    for epochs in (0, 2, 1):
        process = place.start()
        trained = place.said().count("  loss ")
        place.wait_until_said("Search ", place.said().count("Search ") + 1, process)
        place.wait_until_said("  loss ", trained + epochs, process)
        while not workers_of(process):
            assert process.poll() is None, place.said()
            time.sleep(0.05)
        workers = workers_of(process)
        begin = time.monotonic()
        process.terminate()
        assert process.wait(timeout=60) == 143, place.said()
        assert time.monotonic() - begin < 10
        assert f"Go on with: fmnist-track {' '.join(SEARCH)}" in place.said()
        with open_store(place.uri) as store:
            open_runs = store.client.search_runs(
                [store.experiment_id("fashion-mnist")], "attributes.status = 'RUNNING'"
            )
        assert list(open_runs) == []
        for worker in workers:
            wait_for(partial(has_ended, worker), seconds=5)
    finish(place.start(), place)
    assert_as_undisturbed(place, undisturbed)


def test_a_killed_worker_disturbs_nobody(tmp_path: Path, cache: Path, undisturbed: Outcome) -> None:
    place = Place(tmp_path / "search", cache)
    process = place.start()
    place.wait_until_said(f"epoch 2/{EPOCHS}", 2, process)
    victim, other = workers_of(process)
    os.kill(victim, signal.SIGKILL)
    place.wait_until_said("the worker process died (killed by SIGKILL, Killed)", 1, process)
    assert psutil.pid_exists(other)
    result = finish(process, place)
    assert (result["finished"], result["failed"]) == (POINTS, 0)
    assert_as_undisturbed(place, undisturbed)
    with open_store(place.uri) as store:
        notes = [
            store.client.get_run(trial["run_id"]).data.tags.get("fmnist.interruptions", "")
            for trial in result["trials"]
        ]
    (note,) = filter(None, notes)
    assert "worker process died after epoch" in note


def test_killed_with_a_full_disk(
    tmp_path: Path, cache: Path, small_disk: Path, undisturbed: Outcome
) -> None:
    place = Place(tmp_path / "search", cache, state=str(small_disk))
    filler = small_disk / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)

    # Full from the first epoch on: nothing can be kept of the trials that were begun.
    process = place.start()
    place.wait_until_said("Search ", 1, process)
    fill()
    place.wait_until_said("was not written", 3, process)
    process.kill()
    process.wait()
    # Room for a while, then full again: they go on from an earlier epoch than the last one logged.
    filler.unlink()
    process = place.start()
    place.wait_until_said(f"epoch 2/{EPOCHS}", 2, process)
    fill()
    written = place.said().count("was not written")
    place.wait_until_said("was not written", written + 2, process)
    process.kill()
    process.wait()
    assert finish(place.start(), place)["finished"] == POINTS
    filler.unlink()
    assert_as_undisturbed(place, undisturbed)


@pytest.fixture
def server(tmp_path: Path) -> tuple[str, Callable[[], Any]]:
    """A tracking server's address, and what starts it."""
    home, port = tmp_path / "server", free_port()
    home.mkdir()
    command = ("mlflow", "server", "--backend-store-uri", f"sqlite:///{home}/mlflow.db")
    return f"http://127.0.0.1:{port}", lambda: serving(port, home, *command)


def test_a_server_that_goes_and_comes_back(
    tmp_path: Path, cache: Path, server: tuple[str, Callable[[], Any]], undisturbed: Outcome
) -> None:
    address, serve = server
    place = Place(tmp_path / "search", cache, uri=address)
    with serve() as first:
        process = place.start()
        place.wait_until_said(f"epoch 2/{EPOCHS}", 1, process)
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    place.wait_until_said("Training goes on", 1, process)
    place.wait_until_said(f"epoch {EPOCHS}/{EPOCHS}", 3, process)  # trials begun without a store
    with serve() as second:
        place.wait_until_said("The store answers again", 1, process)
        os.killpg(second.pid, signal.SIGSTOP)  # there, but it does not answer
        time.sleep(3)
        os.killpg(second.pid, signal.SIGCONT)
        assert finish(process, place)["finished"] == POINTS
        assert_as_undisturbed(place, undisturbed)


def test_a_server_that_never_comes_back(
    tmp_path: Path, cache: Path, server: tuple[str, Callable[[], Any]], undisturbed: Outcome
) -> None:
    address, serve = server
    place = Place(tmp_path / "search", cache, uri=address)
    with serve() as first:
        process = place.start(FMNIST_STORE_PATIENCE="3")
        place.wait_until_said(f"epoch 2/{EPOCHS}", 1, process)
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert process.wait(timeout=120) == 1
    last = place.said().splitlines()[-1]
    assert "has not answered for 3 seconds" in last
    assert "Traceback" not in place.said()
    assert len(list(Path(place.state).rglob("checkpoint"))) == POINTS
    with serve():
        before = place.said()
        assert finish(place.start(), place)["finished"] == POINTS
        after = place.said().removeprefix(before)
        assert after.count(f"was trained to epoch {EPOCHS} before") == POINTS
        assert "  loss " not in after  # no epoch was trained again
        assert_as_undisturbed(place, undisturbed)


def test_a_database_that_is_locked_for_a_while(
    tmp_path: Path, cache: Path, undisturbed: Outcome
) -> None:
    place = Place(tmp_path / "search", cache)
    process = place.start()
    place.wait_until_said(f"epoch 2/{EPOCHS}", 1, process)
    with contextlib.closing(sqlite3.connect(place.folder / "mlflow.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        place.wait_until_said("Training goes on", 1, process)
        database.rollback()
    place.wait_until_said("The store answers again", 1, process)
    assert finish(process, place)["finished"] == POINTS
    assert_as_undisturbed(place, undisturbed)


def test_a_second_driver_is_refused(tmp_path: Path, cache: Path) -> None:
    place = Place(tmp_path / "search", cache, epochs=2000)  # still there when the second one looks
    first = place.start()
    try:
        place.wait_until_said("epoch 1/2000", 1, first)
        second = place.start()
        assert second.wait(timeout=120) == 1
        assert f"is running already: process {first.pid} on " in place.said()
        assert first.poll() is None
        first.terminate()
        assert first.wait(timeout=60) == 143, place.said()
    finally:
        first.kill()
        first.wait()


def test_two_searches_begin_one_store_at_once(
    tmp_path: Path, cache: Path, undisturbed: Outcome
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    places = [
        Place(tmp_path / name, cache, uri=uri, experiment=name) for name in ("first", "second")
    ]
    processes = [place.start() for place in places]
    for place, process in zip(places, processes, strict=True):
        assert finish(process, place)["finished"] == POINTS
        assert_as_undisturbed(place, undisturbed)
        for word in ("lock", "MLflow failed", "Training goes on"):
            assert word not in place.said()


def test_two_searches_share_an_experiment(tmp_path: Path, cache: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    places = [Place(tmp_path / name, cache, uri=uri) for name in ("first", "second")]
    processes = [
        place.start("--axis", f"dropout={dropout}")
        for place, dropout in zip(places, (0.1, 0.2), strict=True)
    ]
    results = [finish(process, place) for process, place in zip(processes, places, strict=True)]
    with open_store(uri) as store:
        for result, dropout in zip(results, (0.1, 0.2), strict=True):
            assert (result["finished"], result["reused"]) == (POINTS, 0)
            assert {trial["params"]["dropout"] for trial in result["trials"]} == {dropout}
            filter_string = f"tags.`mlflow.parentRunId` = '{result['run_id']}'"
            found = store.client.search_runs([result["experiment_id"]], filter_string)
            assert {run.info.run_id for run in found} == {t["run_id"] for t in result["trials"]}
            for run in found:
                assert run.info.status == "FINISHED"
                assert logged_steps(store, run.info.run_id) == set(range(1, EPOCHS + 1))
    for place in places:
        assert "MLflow failed" not in place.said()


def test_files_that_are_removed_meanwhile_are_told_at_the_end(tmp_path: Path, cache: Path) -> None:
    place = Place(tmp_path, cache)
    running = place.start()
    place.wait_until_said("ended: validation accuracy", 1, running)
    wait_for(lambda: any((tmp_path / "mlruns").rglob("history.json")), seconds=60)
    shutil.rmtree(tmp_path / "mlruns", ignore_errors=True)
    result = finish(running, place)
    assert result["finished"] == POINTS
    (line,) = (line for line in place.said().splitlines() if " are gone" in line)
    assert "finished trials are gone, among them their models: " in line
    assert "delete those runs, and give the same command" in line


def test_what_was_changed_behind_a_search_s_back_changes_no_figure(
    tmp_path: Path, undisturbed: Outcome
) -> None:
    place = Place(tmp_path / "search", tmp_path / "own cache")
    running = place.start()
    place.wait_until_said("epoch 2/", 2, running)
    running.kill()
    running.wait()
    lying = [*Path(place.state).rglob("checkpoint"), *place.cache.rglob("*_labels")]
    assert len(lying) == 4
    for file in lying:
        content = bytearray(file.read_bytes())
        content[len(content) // 2 :] = reversed(content[len(content) // 2 :])
        file.write_bytes(content)
    finish(place.start(), place)
    assert place.said().count("is not used: ") == 2
    assert place.said().count("is damaged and is made anew") == 1
    assert_as_undisturbed(place, undisturbed)


def test_a_store_whose_file_is_taken_away_and_put_back(
    tmp_path: Path, cache: Path, undisturbed: Outcome
) -> None:
    place = Place(tmp_path, cache)
    running = place.start()
    place.wait_until_said("epoch 2/", 1, running)
    (tmp_path / "mlflow.db").rename(tmp_path / "taken away")
    assert running.wait(timeout=120) == 1
    said = place.said()
    (line,) = (line for line in said.splitlines() if line.startswith("Error: "))
    assert f"The MLflow store {tmp_path}/mlflow.db is not there any more" in line
    assert "Traceback" not in said
    (tmp_path / "taken away").replace(tmp_path / "mlflow.db")
    finish(place.start(), place)
    assert_as_undisturbed(place, undisturbed)
