"""Standard output and error as other programs and shells leave them."""

import os
import tempfile
from pathlib import Path

import pytest

from fmnist_tracking.config import DEFAULT_EXPERIMENT
from fmnist_tracking.tracking import Store
from processes import PROGRAM, shell

SEARCH = "search --limit 600 --epochs 1 --filters 4 --strides 2 --kernel-sizes 3 --hidden-units 8"


@pytest.mark.parametrize(
    ("target", "reason"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")],
)
@pytest.mark.parametrize("command", ["data", "data --json", "--help", "search --help"])
def test_output_that_cannot_be_written_is_told_in_a_line(
    command: str, target: str, reason: str
) -> None:
    done = shell(f"{PROGRAM} {command} {target}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: Cannot write to standard output ({reason}): ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(store: Store) -> None:
    tags = {
        "fmnist.role": "train",
        "fmnist.protocol": "canonical",
        "fmnist.data_sha256": "d" * 64,
    }
    for _ in range(3):
        store.client.create_run(store.experiment_id(DEFAULT_EXPERIMENT), tags=tags)
    done = shell(f"{PROGRAM} runs | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_standard_error_may_be_closed() -> None:
    done = shell(f"{PROGRAM} data --json 2>&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("{")
    assert shell(f"{PROGRAM} search --strides 0 2>&-").returncode == 2


@pytest.mark.parametrize("target", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_search_that_cannot_say_anything_is_kept(target: str) -> None:
    done = shell(f"{PROGRAM} {SEARCH} {target}")
    assert done.returncode == 1
    best = shell(f"{PROGRAM} best --json")
    assert '"status": "FINISHED"' in best.stdout, best.stderr
    assert best.returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_encoding_with_few_characters(encoding: str) -> None:
    done = shell(f"{PROGRAM} doctor", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("+ Python: ")
    done = shell(f"{PROGRAM} search --help", PYTHONIOENCODING=encoding, LC_ALL="C", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "N,N,..." in done.stdout if encoding == "ascii" else "N,N," in done.stdout


def test_a_working_folder_that_was_deleted(tmp_path: Path) -> None:
    for command in ("data", "runs", SEARCH):
        line = f"mkdir gone; cd gone; rmdir ../gone; {PROGRAM} {command}"
        done = shell(line, PYTHONPATH=str(Path(__file__).parent.parent))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Error: The working folder cannot be used (No such file")
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be taken on by root alone")
def test_a_user_that_the_system_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:  # others may not enter pytest's own
        monkeypatch.chdir(folder)
        be_unknown_in(Path(folder))


def be_unknown_in(folder: Path) -> None:
    folder.chmod(0o777)
    # Root's Python may lie where others cannot read.
    reading = "--inh-caps +dac_read_search --ambient-caps +dac_read_search"
    user = f"setpriv --reuid 12345 --regid 12345 --clear-groups {reading} env -i"
    root = Path(__file__).parent.parent
    known = f"PYTHONDONTWRITEBYTECODE=1 PATH={os.environ['PATH']} PYTHONPATH={root}"
    done = shell(f"{user} {known} {PROGRAM} {SEARCH}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: This user has no home folder")
    assert done.stderr.count("\n") == 1
    done = shell(f"{user} {known} HOME={folder} {PROGRAM} {SEARCH}")
    assert done.returncode == 0, done.stderr
    done = shell(f"{user} {known} HOME=/proc {PROGRAM} {SEARCH} --fresh")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: The folder /proc/")
    folders = f"FMNIST_STATE_DIR={folder}/state FMNIST_CACHE_DIR={folder}/cache"
    done = shell(f"{user} {known} HOME=/proc {folders} {PROGRAM} {SEARCH} --fresh")
    assert done.returncode == 0, done.stderr


def test_too_few_files_for_the_workers_are_told_before_a_trial() -> None:
    done = shell(f"ulimit -n 20; {PROGRAM} {SEARCH} --repeats 2 --workers 2")
    assert done.returncode == 2
    data, error = done.stderr.splitlines()
    assert data.startswith("Data: ")
    assert error.startswith(
        "Error: Expected room for about 12 more open files, as 2 workers need, "
    )
    assert error.endswith("Raise the limit (`ulimit -n`), or choose fewer --workers.")
    done = shell(f"ulimit -n 32; {PROGRAM} {SEARCH} --repeats 2 --workers 2")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be taken on by root alone")
def test_too_few_processes_for_the_workers_are_told_before_a_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # others may not enter pytest's own
        monkeypatch.chdir(folder)
        Path(folder).chmod(0o777)
        reading = "--inh-caps +dac_read_search --ambient-caps +dac_read_search"
        user = f"setpriv --reuid 12346 --regid 12346 --clear-groups {reading} env -i"
        known = f"PATH={os.environ['PATH']} PYTHONPATH={Path(__file__).parent.parent} HOME={folder}"
        search = f"{PROGRAM} {SEARCH} --repeats 2 --workers 2"
        done = shell(f"{user} PYTHONDONTWRITEBYTECODE=1 {known} prlimit --nproc=22 {search}")
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Error: Expected room for about ")
    assert " more processes and threads, as 2 workers need, got " in error
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_no_variable_makes_a_pipe_a_terminal(variable: str, store: Store) -> None:
    tags = {
        "fmnist.role": "train",
        "fmnist.protocol": "canonical",
        "fmnist.data_sha256": "d" * 64,
    }
    store.client.create_run(store.experiment_id(DEFAULT_EXPERIMENT), tags=tags)
    done = shell(f"{PROGRAM} runs", COLUMNS="20", **{variable: "1"})
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "experiment" in done.stdout.splitlines()[0]
