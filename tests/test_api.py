"""The functions of the package, called as a person's own program calls them."""

import contextlib
import io
import json
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fmnist_tracking as ft
from conftest import SMALL, TINY, Run
from environments import own_environment
from fmnist_tracking.console import stderr_console
from fmnist_tracking.errors import ConfigError, SearchError, TrialsFailed

pytestmark = pytest.mark.slow
TINY_SETTINGS: dict[str, Any] = {"epochs": 2, "limit": 600, "strides": 2, "hidden_units": 8}

SEARCH = """
import fmnist_tracking as ft

{guard}ft.search({{"filters": [4]}}, epochs=1, limit=600, strides=2, hidden_units=8)
"""

TOUR = """
import gc, json, logging, os, signal, sys, threading

import h5py, keras_tuner, matplotlib, mlflow, tensorflow  # these change the environment themselves

import fmnist_tracking as ft


def state():
    stop = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    names = ("", "mlflow", "tensorflow", "matplotlib", "fmnist_tracking")
    return {
        "environment": dict(os.environ),
        "garbage": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "signals": [*map(str, stop), str(signal.pthread_sigmask(signal.SIG_BLOCK, ()))],
        "switch interval": sys.getswitchinterval(),
        "loggers": [(log.level, len(log.handlers)) for log in map(logging.getLogger, names)],
        "matplotlib": (matplotlib.get_backend(auto_select=False), str(matplotlib.rcParams.copy())),
        "store": mlflow.get_tracking_uri(),
        "run": mlflow.active_run(),
        "warnings": len(sys.warnoptions),
        "folder": os.getcwd(),
    }


if __name__ == "__main__":
    before = state()
    settings = {"epochs": 2, "limit": 600, "strides": 2, "hidden_units": 8}
    search = ft.search({"filters": [4, 8], "dropout": [0.1, 0.3]}, workers=2, **settings)
    best, table, history = search.best, search.to_dataframe(), search.best.history()
    model, page = best.load_model(), search._repr_html_()
    report = ft.report(search)
    figure = search.plot_grid()
    answer = ft.predict(best, [f"reports/{search.run_id[:8]}/sample.png"])
    guesses = answer.pictures[0].guesses
    promotion = ft.promote(search)
    promoted = promotion.champion.run_id
    single = ft.train(filters=4, **settings)
    plan = ft.dry_run({"filters": [4, 8], "dropout": [0.1, 0.3]}, **settings)
    after = state()
    print(json.dumps({
        "changed": [name for name in before if before[name] != after[name]],
        "run_id": search.run_id,
        "shown": str(search),
        "same": [best in search.trials, set(search.finished) == set(search.trials)],
        "reprs": [repr(one) for one in (search, best, report, promotion, answer, plan)],
        "points": [trial.params for trial in search.trials],
        "best": [best.run_id, best.val_accuracy, best.best_epoch, best.status],
        "table": json.loads(table.to_json(orient="records")),
        "epochs": history.index.tolist(),
        "columns": list(history.columns),
        "val_accuracy": history.val_accuracy.tolist(),
        "output_shape": list(model.output_shape),
        "page": page,
        "size": figure.get_size_inches().tolist(),
        "test_accuracy": report.test_accuracy,
        "report": report._repr_html_()[:40],
        "files": [file.name for file in report.files],
        "guesses": len(guesses),
        "promoted": promoted,
        "loaded": [ft.load_search("latest").run_id, ft.load_trial(best.run_id[:8]).run_id],
        "single": [single.params["filters"], single.result.reused],
        "plan": [point.state for point in plan.points],
    }))
"""


# Processes of the program's own, by each of Python's methods, after a call.
OTHERS = """
import gc, json, multiprocessing, os, signal, sys, time

import fmnist_tracking as ft

SETTINGS = {"filters": 4, "epochs": 1, "limit": 600, "strides": 2, "hidden_units": 8}


def state(queue):
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    os.environ["SET"] = "by a child"
    queue.put([
        *(os.environ["PYTHONPATH"], "MPLBACKEND" in os.environ, gc.isenabled(), list(mask)),
        *(sys.warnoptions, answer("fork", inherited)),
    ])


def inherited(queue):
    queue.put(os.environ.get("SET"))


def train(queue):
    try:
        queue.put(ft.train(echo=None, **SETTINGS).status)
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


def answer(method, function, daemon=False):
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=function, args=(queue,), daemon=daemon)
    child.start()
    found = queue.get()
    child.join()
    return found


if __name__ == "__main__":
    ft.train(echo=None, **SETTINGS)
    method = multiprocessing.get_start_method(allow_none=True)
    sleeper = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,))
    sleeper.start()
    time.sleep(1)
    sleeper.terminate()
    sleeper.join(30)
    print(json.dumps({
        "method": method,
        "ended by": sleeper.exitcode,
        "state": answer("forkserver", state),
        "fork": answer("fork", train),
        "daemonic": answer("spawn", train, daemon=True),
    }))
"""


# Interrupted in the middle of each library's import; the same call is made again each time.
INTERRUPTED = f"""
import os, signal, sys, threading, time
import fmnist_tracking as ft

def interrupt(module):
    while module not in sys.modules:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored in the background
    for module in ("mlflow.entities", "keras.src.backend"):
        try:
            threading.Thread(target=interrupt, args=(module,), daemon=True).start()
            ft.search({{"filters": [4, 5]}}, **{TINY_SETTINGS})
        except KeyboardInterrupt:
            print("interrupted")
    print(repr(ft.search({{"filters": [4, 5]}}, **{TINY_SETTINGS})))
"""


def python(
    folder: Path, cache: Path, *words: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=own_environment(FMNIST_CACHE_DIR=str(cache), **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Any]:
    """What a script saw that calls each function once."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "tour.py").write_text(TOUR)
    done = python(folder, cache, "tour.py")
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen | {"stderr": done.stderr}


def test_a_search_gives_its_best_trial_and_all_others(tour: dict[str, Any]) -> None:
    assert [(p["filters"], p["dropout"]) for p in tour["points"]] == [
        (4, 0.1), (4, 0.3), (8, 0.1), (8, 0.3)
    ]  # fmt: skip
    assert {p["epochs"] for p in tour["points"]} == {2}
    first, *others = tour["table"]
    assert tour["best"] == [first["run_id"], first["val_accuracy"], first["best_epoch"], "FINISHED"]
    assert all(row["val_accuracy"] <= first["val_accuracy"] for row in others)
    assert [row["rank"] for row in tour["table"]] == [1, 2, 3, 4]
    assert "4 of 4 points finished" in tour["shown"]
    assert tour["run_id"][:8] in tour["shown"]


def test_a_trial_gives_its_history_and_model(tour: dict[str, Any]) -> None:
    assert tour["epochs"] == [1, 2]
    assert tour["columns"] == ["loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds"]
    assert max(tour["val_accuracy"]) == tour["best"][1]
    assert tour["output_shape"] == [None, 10]


def test_a_notebook_shows_tables_and_pictures(tour: dict[str, Any]) -> None:
    assert tour["page"].count("<tr") == 5
    assert "data:image/png;base64," in tour["page"]
    assert tour["report"].startswith("<iframe srcdoc=")
    assert tour["size"][0] > tour["size"][1]


def test_a_run_can_be_given_as_it_is(tour: dict[str, Any]) -> None:
    assert 0 < tour["test_accuracy"] < 1
    assert tour["files"][0] == "index.html"
    assert tour["guesses"] == 3
    assert tour["promoted"] == tour["best"][0]
    assert tour["loaded"] == [tour["run_id"], tour["best"][0]]


def test_what_was_trained_is_known(tour: dict[str, Any]) -> None:
    assert tour["single"] == [4, True]  # the search had that point
    assert tour["plan"] == ["finished"] * 4


def test_nothing_of_the_process_is_changed(tour: dict[str, Any]) -> None:
    assert tour["changed"] == []


def test_processes_of_the_program_start_as_without_workers(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "others.py").write_text(OTHERS)
    done = python(tmp_path, cache, "-W", "error::BytesWarning", "others.py", PYTHONPATH="/mine")
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["method"] is None
    assert seen["ended by"] == -signal.SIGTERM
    assert seen["state"] == ["/mine", False, True, [], ["error::BytesWarning"], "by a child"]
    assert seen["fork"].startswith("ConfigError: Expected a process that can start workers")
    assert seen["daemonic"].startswith("ConfigError: Expected a process that may start others")


def test_a_standard_error_that_takes_no_text_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, object(), io.BytesIO(), None):  # the first trains, the others reuse
        monkeypatch.setattr(sys, "stderr", stream)
        assert ft.train(filters=4, **TINY_SETTINGS).status == "FINISHED"
        stderr_console().print("progress")
    assert capfd.readouterr().out == ""


def test_progress_goes_to_standard_error(tour: dict[str, Any]) -> None:
    assert tour["stderr"].count(" ended: validation accuracy ") == 4
    assert "Traceback" not in tour["stderr"]


def test_a_script_without_a_guard_is_told_at_once(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "mine.py").write_text(SEARCH.format(guard=""))
    done = python(tmp_path, cache, "mine.py")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert 'if __name__ == "__main__":' in done.stderr
    assert f"{tmp_path / 'mine.py'}" in done.stderr
    assert "line 4" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()


def test_code_without_a_file_needs_no_guard(tmp_path: Path, cache: Path) -> None:
    done = python(tmp_path, cache, "-c", SEARCH.format(guard=""))
    assert done.returncode == 0, done.stderr
    with_guard = 'if __name__ == "__main__":\n    '
    (tmp_path / "mine.py").write_text(SEARCH.format(guard=with_guard))
    again = python(tmp_path, cache, "mine.py")
    assert again.returncode == 0, again.stderr
    assert "has finished all 1 point before" in again.stderr


def test_an_import_that_is_interrupted_can_be_made_again(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "mine.py").write_text(INTERRUPTED)
    done = python(tmp_path, cache, "mine.py")
    assert done.returncode == 0, done.stderr
    *interrupted, search = done.stdout.splitlines()
    assert interrupted == ["interrupted"] * 2
    assert search.endswith(": 2 of 2 points finished>")


def test_without_eager_execution_nothing_is_begun(tmp_path: Path, cache: Path) -> None:
    code = f"""
import tensorflow as tf
tf.compat.v1.disable_eager_execution()
import fmnist_tracking as ft
ft.train(filters=4, echo=None, **{TINY_SETTINGS})
"""
    done = python(tmp_path, cache, "-c", code)
    assert "ConfigError: Expected TensorFlow to execute eagerly" in done.stderr.splitlines()[-1]
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert store.execute("SELECT count(*) FROM runs").fetchone() == (0,)


def test_another_backend_of_keras_is_refused(tmp_path: Path, cache: Path) -> None:
    done = python(tmp_path, cache, "-c", SEARCH.format(guard=""), KERAS_BACKEND="jax")
    assert done.returncode == 1
    assert "KERAS_BACKEND" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("function", [ft.search, ft.dry_run])
@pytest.mark.parametrize(
    ("grid", "settings", "facts"),
    [
        ({"filters": 24}, {}, ("filters", "24", "list")),
        ({"filters": "24,48"}, {}, ("filters", "24,48", "list")),
        ({"filtres": [24]}, {}, ("filtres", "Did you mean filters?")),
        ({"filters": [24]}, {"epoch": 5}, ("epoch", "Did you mean epochs?")),
        ({"filters": [24]}, {"filters": 12}, ("filters or an axis filters",)),
        ({"filters": [24, 24]}, {}, ("filters", "24 more than once")),
        ({"filters": []}, {}, ("at least one value", "filters")),
        ({"filters": [24]}, {"repeats": 0}, ("repeats", "at least 1", "0")),
        ({"seed": [1, 2]}, {"repeats": 2}, ("repeats or an axis seed",)),
        ({"filters": [24]}, {"limit": 5}, ("limit", "60", "5")),
        ({"filters": [24]}, {"limit": "600"}, ("limit", "whole number", "'600'")),
        ({"filters": [24]}, {"workers": 0}, ("workers", "at least 1", "0")),
        ({"filters": [24]}, {"workers": "2"}, ("workers", "whole number", "'2'")),
        ({"filters": [24]}, {"workers": 1.5}, ("workers", "whole number", "1.5")),
        ({"filters": [24]}, {"protocol": "mine"}, ("protocol", "canonical", "mine")),
        ({"filters": [24]}, {"protocol": np.array(["a", "b"])}, ("protocol", "array")),
        ({"filters": [10**400]}, {}, ("filters", "whole number", "1000")),
        ({"filters": [10**5000]}, {}, ("filters", "whole number", "type int")),
        ({"dropout": [Fraction(10**400)]}, {}, ("dropout", "Fraction")),
        ({1: [2]}, {}, ("setting called 1",)),
        ({10**5000: [2]}, {}, ("setting called a value of type int",)),
        ({"fil\nters": 4}, {}, ("'fil\\nters'", "list")),
        (
            {name: range(100_001) for name in ("filters", "seed", "epochs", "patience")},
            {},
            ("100,000 points",),
        ),
        ({"strides": [1]}, {"filters": b"ab"}, ("filters", "whole number", "b'ab'")),
        ({"filters": [24]}, {"data_dir": ""}, ("data_dir", "path", "''")),
        ({"filters": np.array(4)}, {}, ("filters", "list", "array(4)")),
        ({"filters": np.zeros((2, 2))}, {}, ("filters", "whole number", "array([0., 0.])")),
        ({"filters": b"\x04"}, {}, ("filters", "list")),
        ({"seed": range(10**9)}, {}, ("100,000 points",)),
        ({"filters": [24]}, {"repeats": 2**33}, ("100,000 points",)),
        ({"strides": [1]}, {"filters": [8, 9]}, ("one value", '{"filters": [8, 9]}')),
        ({"filters": [24]}, {"tracking_uri": Path("mlflow.db")}, ("tracking_uri", "text")),
        ({"filters": [24]}, {"tracking_uri": "sqlite:///a\0.db"}, ("tracking_uri", "text")),
        ({"filters": [24]}, {"experiment": 5}, ("experiment", "text", "5")),
        ({"filters": [24]}, {"experiment": "a\nb"}, ("experiment", "'a\\nb'")),
        ({"filters": [24]}, {"experiment": "\ud800"}, ("experiment", "text")),
        ({"filters": [24]}, {"data_dir": b"/data"}, ("data_dir", "path")),
        ({"filters": [24]}, {"data_dir": 3}, ("data_dir", "path", "3")),
        ({"filters": [24]}, {"echo": 5}, ("echo", "function", "5")),
        ({"filters": [24]}, {"fresh": "no"}, ("fresh", "True or False", "'no'")),
        ({"dropout": [0.0, -0.0]}, {}, ("dropout", "0 more than once")),
    ],
)
def test_what_cannot_be_is_told_without_options(
    function: Any, grid: Any, settings: dict[str, Any], facts: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        function(grid, **settings)
    for fact in facts:
        assert fact in str(caught.value)
    assert "--" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_are_numbers() -> None:
    plan = ft.dry_run({"filters": np.array([4, 8])}, echo=None, **TINY_SETTINGS)
    assert [point.name for point in plan.points] == ["f4 k3 s2", "f8 k3 s2"]


def test_trials_that_diverge_raise_or_warn() -> None:
    grid = {"learning_rate": [1e30]}
    with pytest.raises(TrialsFailed, match="diverged") as caught:
        ft.search(grid, filters=4, echo=None, **TINY_SETTINGS)
    assert caught.value.result.best is None
    assert [trial.status for trial in caught.value.result.trials] == ["diverged"]
    with pytest.warns(UserWarning, match="diverged"):
        search = ft.search(grid, filters=4, on_failure="warn", echo=None, **TINY_SETTINGS)
    assert search.run_id == caught.value.result.run_id
    with pytest.raises(SearchError, match="diverged") as single:
        ft.train(filters=4, learning_rate=1e29, echo=None, **TINY_SETTINGS)
    assert isinstance(single.value, TrialsFailed)
    assert single.value.result.status == "diverged"


def test_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    trial = ft.train(filters=4, echo=None, **TINY_SETTINGS)
    assert trial.status == "FINISHED"
    assert capfd.readouterr() == ("", "")


def test_repeats_are_seeds(called: Run) -> None:
    done = called("search", *TINY, "--kernel-sizes", "3", "--repeats", "2", "--seed", "5")
    assert done.returncode == 0, done.stderr
    same = {**TINY_SETTINGS, "epochs": SMALL.epochs - 1, "seed": 5}
    del same["strides"], same["hidden_units"]
    grid = {"filters": [4], "strides": [2], "kernel_size": [3], "hidden_units": [8]}
    search = ft.search(grid, repeats=2, echo=None, **same)
    assert [trial.params["seed"] for trial in search.trials] == [5, 6]
    assert all(trial.result.reused for trial in search.trials)


def test_trials_are_the_same_objects_and_short_to_read(tour: dict[str, Any]) -> None:
    assert tour["same"] == [True, True]
    assert all(len(text) < 120 and "\n" not in text for text in tour["reprs"])
    assert tour["reprs"][0] == f"<Search {tour['run_id'][:8]}: 4 of 4 points finished>"


def test_what_is_no_run_is_told() -> None:
    nothing: Any = None
    with pytest.raises(ConfigError, match="pictures"):
        ft.predict("best", 3, echo=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got None"):
        ft.report(nothing)
    with pytest.raises(ConfigError, match="got None"):
        ft.promote(nothing)
    with pytest.raises(ConfigError, match="part"):
        ft.report("best", part="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seed"):
        ft.report("best", seed=-1)
    with pytest.raises(ConfigError, match="on_failure"):
        ft.train(on_failure="raises", echo=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on_start"):
        ft.train(on_start=5, echo=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="upgrade_store"):
        ft.train(upgrade_store="x", echo=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="echo"):
        ft.predict("best", [], echo="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="force"):
        ft.promote("best", force="x")  # type: ignore[arg-type]
    for load in (ft.load_search, ft.load_trial):
        no_runs: list[Any] = [None, 5, b"best", []]
        for reference in no_runs:
            with pytest.raises(ConfigError, match="name of a run"):
                load(reference)
    with pytest.raises(ConfigError, match="dictionary"):
        ft.search("grid.yaml", echo=None)  # type: ignore[arg-type]


def test_one_search_at_a_time() -> None:
    with ThreadPoolExecutor(2) as threads:
        both = [
            threads.submit(ft.train, filters=filters, echo=None, **TINY_SETTINGS)
            for filters in (4, 5)
        ]
    errors = [str(future.exception()) for future in both if future.exception()]
    assert len(errors) == 1
    assert "Another search or training runs" in errors[0]


def test_the_latest_search_is_found_behind_a_training() -> None:
    search = ft.search({"filters": [4]}, echo=None, **TINY_SETTINGS)
    ft.train(filters=5, echo=None, **TINY_SETTINGS)
    assert ft.load_search().run_id == search.run_id
    assert ft.load_search(search).run_id == search.run_id
    assert search.best is not None
    assert ft.load_trial(search).run_id == ft.load_trial(search.best).run_id == search.best.run_id
    (seen,) = ft.predict("best", __file__, echo=None).pictures  # one path, not its letters
    assert seen.error is not None
