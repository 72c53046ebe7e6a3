"""What the shell offers at the Tab key, asked for as its scripts ask."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fmnist_tracking.tracking import Store
from runs import start_search
from servers import free_port, serving

ROOT = Path(__file__).parent.parent
PROBE = """
import sys
sys.argv = ["fmnist-track"]
from fmnist_tracking.cli import main
try:
    main()
finally:
    print("loaded:", *(set(sys.modules) & {"mlflow", "tensorflow", "pandas"}), file=sys.stderr)
"""

WORDS = ["latest", "best", "best-of-all", "champion"]


def offered(line: str, shell: str = "bash", **variables: str) -> list[str]:
    """What is offered after a line; loads neither MLflow nor TensorFlow, and says nothing else."""
    words = line.split(" ")
    asked = {
        "_FMNIST_TRACK_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "PYTHONPATH": str(ROOT), **asked, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "loaded:\n")
    return done.stdout.splitlines()


def add_run(store: Store, role: str = "search") -> str:
    run = store.client.create_run(
        "0", run_name=f'my "{role}"', tags={"fmnist.role": role, "fmnist.protocol": "canonical"}
    )
    return str(run.info.run_id)


def test_commands_options_and_their_values() -> None:
    assert offered("fmnist-track se") == ["search"]
    assert offered("fmnist-track search --prot") == ["--protocol"]
    assert offered("fmnist-track train --protocol ") == ["canonical", "coursework"]
    axes = offered("fmnist-track search --axis ")
    assert {"dropout=", "learning_rate=", "seed="} <= set(axes)
    assert "filters=" not in axes


@pytest.mark.parametrize("command", ["report", "runs", "best", "activations", "promote"])
def test_runs_of_the_store(store: Store, command: str) -> None:
    first, second = add_run(store), add_run(store, "trial")
    foreign = store.client.create_run("0").info.run_id
    for line in (f"fmnist-track {command} --run-id ", f"fmnist-track {command} "):
        found = offered(line)
        assert found[:4] == WORDS
        assert set(found[4:]) == {first, second}
        assert foreign not in found
    assert offered(f"fmnist-track {command} {first[:6]}") == [first]
    assert offered(f"fmnist-track {command} --run-id la") == ["latest"]
    assert offered("fmnist-track predict --run-id best-") == ["best-of-all"]


def test_runs_for_zsh(store: Store) -> None:
    run_id = add_run(store)
    (line,) = offered(f"fmnist-track report --run-id {run_id[:6]}", "zsh")
    assert f'"{run_id}":"my ""search"" RUNNING"' in line
    assert "latest" in offered("fmnist-track best lat", "zsh")[0]


def test_the_store_that_is_named(store: Store, tmp_path: Path) -> None:
    run_id = add_run(store)
    folder = tmp_path / "my stores"
    folder.mkdir()
    (tmp_path / "mlflow.db").rename(folder / "other.db")
    assert offered("fmnist-track report ") == WORDS
    uri = f"sqlite:///{folder}/other.db".replace(" ", "%20")
    assert offered("fmnist-track report ", MLFLOW_TRACKING_URI=uri)[4:] == [run_id]
    assert offered(f"fmnist-track report --tracking-uri {uri} --run-id ")[4:] == [run_id]


def test_nothing_is_made_upgraded_or_said(tmp_path: Path) -> None:
    assert offered("fmnist-track report ") == WORDS
    assert list(tmp_path.iterdir()) == []
    database = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(database)) as rows:  # of a version without tags
        rows.execute("CREATE TABLE runs (run_uuid TEXT)")
    before = database.read_bytes()
    assert offered("fmnist-track report ") == WORDS
    assert database.read_bytes() == before
    database.write_bytes(b"no database")
    assert not any(offered("fmnist-track report ab"))
    assert offered("fmnist-track report ", MLFLOW_TRACKING_URI="postgresql://nobody@nowhere/x")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def offered_by_a_server(address: str) -> list[str]:
    """What is offered where a server has the runs; nothing else is said."""
    line = f"fmnist-track report --tracking-uri {address} "
    asked = {
        "_FMNIST_TRACK_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": "4",
    }
    done = subprocess.run(
        [sys.executable, "-m", "fmnist_tracking"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **asked},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_server_that_is_away_is_not_told_of() -> None:
    assert offered_by_a_server("http://127.0.0.1:9") == WORDS


def test_what_a_server_has_is_offered_and_what_cannot_be_read_not_told_of(
    store: Store, tmp_path: Path
) -> None:
    search, odd = start_search(store), start_search(store, grid="8" * 64)
    store.client.log_param(odd, "grid.padding", "[1]")
    port = free_port()
    with serving(port, tmp_path, "mlflow", "server", "--backend-store-uri", store.uri):
        assert offered_by_a_server(f"http://127.0.0.1:{port}") == [*WORDS, search]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_for_a_shell(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fmnist_tracking"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "_FMNIST_TRACK_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "_FMNIST_TRACK_COMPLETE=complete_" + shell in done.stdout


def test_bash_completes_with_the_script(store: Store, tmp_path: Path) -> None:
    run_id = add_run(store)
    program = tmp_path / "bin" / "fmnist-track"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fmnist_tracking "$@"\n')
    program.chmod(0o755)
    script = f"""
        eval "$(_FMNIST_TRACK_COMPLETE=source_bash fmnist-track)"
        COMP_WORDS=(fmnist-track report --run-id {run_id[:5]}); COMP_CWORD=3
        _fmnist_track_completion fmnist-track
        printf '%s' "${{COMPREPLY[*]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (run_id, "")
