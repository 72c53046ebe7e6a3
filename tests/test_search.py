"""`search` and `train` as a person meets them: the next command, and MLflow's own runner."""

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

from conftest import TINY, Run
from processes import PROGRAM, shell

ROOT = Path(__file__).parent.parent


def on_a_terminal(columns: int, *arguments: str) -> list[str]:
    """The lines that a command leaves on a terminal of so many columns, escape sequences aside."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    words = [sys.executable, "-m", "fmnist_tracking", *arguments]
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    with subprocess.Popen(
        words, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # how Linux tells the end
            while part := os.read(ours, 4096):
                said += part
    os.close(ours)
    assert process.returncode == 0, said
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode()).splitlines()


def next_commands(said: str) -> list[list[str]]:
    """The commands of the line that says what to do next."""
    (line,) = (line for line in said.splitlines() if line.startswith("Next"))
    words = shlex.split(line.partition(": ")[2])
    place = words.index("or:")
    return [words[:place], words[place + 1 :]]


def test_what_is_said_to_do_next_can_be_done(called: Run, real_copy: Path, tmp_path: Path) -> None:
    data = tmp_path / "my data"
    real_copy.rename(data)
    uri = f"sqlite:///{tmp_path}/other.db"
    arguments = ("--tracking-uri", uri, "--experiment", "it's mine", "--data-dir", "my data")
    for name, kernel in (("search", "--kernel-sizes"), ("train", "--kernel-size")):
        done = called(name, *TINY, kernel, "3", *arguments)
        assert done.returncode == 0, done.stderr
        report, page = next_commands(done.stderr)
        assert report[:2] == ["fmnist-track", "report"]
        assert page == ["fmnist-track", "ui", "--tracking-uri", uri]
        reported = called(*report[1:])
        assert reported.returncode == 0, reported.stderr
        assert (tmp_path / reported.stdout.strip()).exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_the_next_command_is_called_as_this_one_was() -> None:
    """Where the environment is not activated, its own folder leads to the program."""
    program = os.path.relpath(Path(sys.executable).with_name("fmnist-track"))
    done = shell(shlex.join([program, "train", *TINY]))
    assert done.returncode == 0, done.stderr
    report, page = next_commands(done.stderr)
    assert [report[0], page[0]] == [program, program]
    bare = shell(shlex.join(report), PATH="/usr/bin:/bin")
    assert bare.returncode == 0, bare.stderr


def test_the_latest_search_is_the_one_whose_command_was_given_last(called: Run) -> None:
    one, other = (("search", *TINY, "--kernel-sizes", size, "--json") for size in "34")
    first, second = (json.loads(called(*words).stdout)["run_id"] for words in (one, other))
    listed = json.loads(called("runs", "--json").stdout)
    assert [run["run_id"] for run in listed] == [second, first]
    again = called(*one)
    assert "nothing is left to train" in again.stderr
    listed = json.loads(called("runs", "--json").stdout)
    assert [run["run_id"] for run in listed] == [first, second]
    shown = json.loads(called("runs", "latest", "--json").stdout)
    assert shown["run_id"] == first
    assert json.loads(called("best", "--json").stdout)["run_id"] == shown["best"]["run_id"]


def test_a_search_leaves_no_temporary_file(command: Run, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = command("search", *TINY, "--kernel-sizes", "3", TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == []


def test_without_options_the_next_command_is_short(called: Run) -> None:
    done = called("train", *TINY)
    report, page = next_commands(done.stderr)
    assert len(report) == 3
    assert page == ["fmnist-track", "ui"]


def test_the_table_at_the_end_fits_the_terminal(tmp_path: Path) -> None:
    arguments = ("--kernel-sizes", "3", "--axis", "learning_rate=0.00123456789,0.00123456788")
    for columns, words in ((60, ["search", *TINY, *arguments]), (45, ["runs", "latest"])):
        lines = on_a_terminal(columns, *words)
        start = next(n for n, line in enumerate(lines) if line.startswith("rank"))
        end = next(n for n, line in enumerate(lines) if line.startswith("search "))
        table = lines[start:end]
        assert max(map(len, table)) <= columns
        joined = "".join(" ".join(table).split())
        assert "val.acc." in joined
        for rate in ("0.00123456789", "0.00123456788"):
            assert rate in joined.replace("FINISHED", ""), table


def test_mlflow_run_passes_on_what_is_typed(tmp_path: Path) -> None:
    typed = {
        "epochs": "1.0",
        "limit": "600.0",
        "filters": "4,6.0",
        "strides": "2",
        "kernel_sizes": "3",
        "hidden_units": "8",
        "seed": "",
        "axis": "dropout=0.0,0.5;batch_size=64",
    }
    words = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local"]
    for name, value in typed.items():
        words += ["-P", f"{name}={value}"]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    listed = shell(f"{PROGRAM} runs --run-id latest --experiment Default").stdout.splitlines()
    names = sorted(line.split(maxsplit=1)[1].split("  ")[0] for line in listed[1:-1])
    assert names == [f"f{f} k3 s2 dropout={d}" for f in (4, 6) for d in ("0", "0.5")]
    refused = subprocess.run(
        [*words, "-P", "epoch=3"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert refused.returncode != 0
    assert "No such option: --epoch. Did you mean --epochs?" in refused.stderr
