"""Whatever stands in names, tags and files' names, none of it steers a terminal."""

import contextlib
import dataclasses
import json
import os
import pty
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import SMALL, TINY
from fmnist_tracking.tracking import Lease, open_store
from runs import finish_quickly, start_trial

LONG = "x" * 5000
CONTROLS = [chr(n) for n in (*range(0x20), *range(0x7F, 0xA0, 4), 0x85, 0x9B, 0x9C, 0x9D)]
OVERRIDES = [chr(n) for n in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200B, 0x2028)]
SEQUENCES = ["\x1b[2J", "\x1b]8;;http://x\x07y\x1b]8;;\x07", "\x1b]52;c;eA==\x07", "\x1b]0;t\x1b\\"]
NAMES = [f"a{one}b" for one in CONTROLS + OVERRIDES + SEQUENCES] + [
    LONG,
    "x\nFORGED 0.9999",
    "$\\frac$",
    "\N{PILE OF POO} \N{CJK UNIFIED IDEOGRAPH-4E2D}",
    "[bold]x[/bold] :bomb:",
]
ALL = "\n".join(name for name in NAMES if name != LONG) + LONG
# What rich itself writes to a terminal: colours, and the moves of a live display.
OURS = re.compile(r"\x1b\[([\d;]*m|\?25[lh]|2K|1A)|\r")
PICTURES = [name[:200].replace("\0", "").replace("/", "") + ".png" for name in [*NAMES, ALL]]
LOST = "sqlite:///not/there\x1b[2J\n.db"

COMMANDS = {
    "runs": ("runs",),
    "trials": ("runs", "--run-id", "{search}"),
    "best": ("best", "--run-id", "{search}"),
    "failed": ("best", "--run-id", "{failed}"),
    "report": ("report", "--run-id", "{search}"),
    "predict": ("predict", "--run-id", "{search}", "{pictures}"),
    "promote": ("promote", "--run-id", "{search}"),
    "plan": ("search", *TINY, "--dry-run"),
    "reused": ("search", *TINY),
    "held": ("search", *TINY, "--tracking-uri", "sqlite:///held.db"),
    "repair": ("runs", "--repair", "--tracking-uri", "sqlite:///silent.db"),
    "doctor": ("doctor", "--data-dir", "no\x1b[2J\nfolder"),
    "no experiment": ("runs", "--experiment", "a\x1b[2J\u202eb"),
    "no store": ("runs", "--tracking-uri", LOST),
    "no option": ("runs", "--a\x1b[2J\u202e\nb"),
    "no picture": ("predict", "--run-id", "{search}", "no\x1b[2J\n\u202e.png"),
    "completion": (),
}
# What shows no such name: the trials' own names, and settings.
SHOWING = COMMANDS.keys() - {"trials", "promote", "plan"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder with a search, single trainings, an experiment and pictures of such names."""
    folder = tmp_path_factory.mktemp("hostile")
    _run(folder, cache, *("search", *TINY, "--json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with open_store() as store:
            single = [start_trial(store, SMALL, None) for _ in NAMES]
            for run_id in single[1:-1]:
                finish_quickly(store, run_id, 0.8)
            store.client.set_terminated(single[0], "FAILED")
            store.client.set_tag(single[0], "fmnist.error", "soon another")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as rows, rows:
        _rename(rows, single)
        found = rows.execute("SELECT run_uuid FROM tags WHERE value = 'search'").fetchone()[0]
    for store_file, alive in (("held.db", True), ("silent.db", False)):
        shutil.copyfile(folder / "mlflow.db", folder / store_file)
        with contextlib.closing(sqlite3.connect(folder / store_file)) as rows, rows:
            _hold(rows, alive)
    (folder / "pictures").mkdir()
    for name in PICTURES:
        picture = Image.new("L", (40, 40), 255)
        picture.paste(0, (10, 5, 30, 35))
        picture.save(folder / "pictures" / name, format="PNG")
    (folder / "ids").write_text(json.dumps({"search": found, "failed": single[0]}))
    return folder


def _rename(rows: sqlite3.Connection, single: list[str]) -> None:
    """Give runs, errors and the experiment names that MLflow itself may refuse."""
    rows.execute("UPDATE runs SET name = ?, experiment_id = 1", (ALL,))
    rows.execute("UPDATE tags SET value = ? WHERE key = 'mlflow.runName'", (ALL,))
    for run_id, name in zip(single, NAMES, strict=True):
        rows.execute("UPDATE runs SET name = ? WHERE run_uuid = ?", (name, run_id))
        rows.execute(
            "UPDATE tags SET value = ? WHERE key = 'mlflow.runName' AND run_uuid = ?",
            (name, run_id),
        )
    rows.execute("UPDATE tags SET value = ? WHERE key = 'fmnist.error'", (ALL,))
    rows.execute("UPDATE experiments SET name = ? WHERE name = 'fashion-mnist'", (ALL,))


def _hold(rows: sqlite3.Connection, alive: bool) -> None:
    """Have a process hold all runs, which is there or not, and whose machine has such a name."""
    lease = dataclasses.replace(Lease.of_this_process(), host=ALL)
    lease = lease if alive else dataclasses.replace(lease, ticks=0)
    rows.execute("UPDATE runs SET status = 'RUNNING'")
    rows.execute("UPDATE tags SET value = ? WHERE key = 'fmnist.lease'", (lease.text(),))


def _environment(cache: Path, **variables: str) -> dict[str, str]:
    return {**os.environ, "FMNIST_CACHE_DIR": str(cache), "FMNIST_PROGRESS_SECONDS": "0"} | {
        "FMNIST_STATE_DIR": "state",
        **variables,
    }


def _run(folder: Path, cache: Path, *arguments: str, **variables: str) -> str:
    """Run a command; return its standard output and standard error, which are pipes."""
    done = subprocess.run(
        [sys.executable, "-m", "fmnist_tracking", *arguments],
        cwd=folder,
        env=_environment(cache, **variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=180,
    )
    return done.stdout.decode()


def _run_on_terminal(folder: Path, cache: Path, *arguments: str, **variables: str) -> str:
    """The same on a terminal; rich's own sequences are taken out."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "fmnist_tracking", *arguments],
        cwd=folder,
        env=_environment(cache, TERM="xterm-256color", **variables),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ):
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # its other end is closed
            while part := os.read(ours, 65536):
                written += part
    os.close(ours)
    return OURS.sub("", written.decode())


@pytest.mark.parametrize("run", [_run, _run_on_terminal], ids=["pipe", "terminal"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_steers_a_terminal(
    place: Path, cache: Path, command: str, run: Callable[..., str]
) -> None:
    ids = json.loads((place / "ids").read_text())
    words = [word.format(**ids, pictures="{pictures}") for word in COMMANDS[command]]
    if "{pictures}" in words:
        words[-1:] = [f"pictures/{name}" for name in PICTURES]
    variables = {"MLFLOW_EXPERIMENT_ID": "1"}
    if command == "completion":
        variables |= {
            "_FMNIST_TRACK_COMPLETE": "complete_zsh",
            "_TYPER_COMPLETE_ARGS": "fmnist-track report --run-id ",
        }
    seen = run(place, cache, *words, **variables)
    assert {c for c in seen if not c.isprintable()} <= {"\n"}
    assert "Traceback" not in seen
    assert "Warning" not in seen
    assert "bomb" in seen or "\N{BOMB}" not in seen
    if run is _run:
        assert r"\x1b" in seen or command not in SHOWING
        assert not any(line.startswith("FORGED") for line in seen.splitlines())
        assert max(map(len, seen.splitlines())) < 12_000
    if command == "report":
        for file in (place / "reports" / ids["search"][:8]).glob("*.[!p]*"):
            assert {c for c in file.read_text() if not c.isprintable()} <= {"\n"}, file
