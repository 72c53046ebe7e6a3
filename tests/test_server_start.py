"""What keeps a tracking server from starting: its folder, and a lock that a crash left."""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

START = Path(__file__).parent.parent / "server" / "start.py"


@pytest.fixture(scope="module")
def start() -> ModuleType:
    spec = importlib.util.spec_from_file_location("start", START)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_a_folder_that_it_makes_is_closed_to_others(start: ModuleType, tmp_path: Path) -> None:
    made = tmp_path / "new" / "state"
    with start._state_folder(made) as folder:
        assert folder == made
    assert mode(made) in (0o700, 0o711)
    (made / "secrets.json").write_text("{}")
    made.chmod(0o755)
    with start._state_folder(made):
        pass
    assert mode(made) == 0o755  # as its owner wants it


def test_an_empty_folder_is_left_as_open_as_it_is(start: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o750)
    (tmp_path / "mine").chmod(0o750)
    with start._state_folder(tmp_path / "mine"):
        assert mode(tmp_path / "mine") == 0o750


def test_folders_that_cannot_be_used(start: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = mode(tmp_path)
    for folder, words in (
        (tmp_path, "holds other things"),
        (tmp_path / "file", "cannot be used: Not a directory"),
        (tmp_path / "file" / "state", "cannot be used: Not a directory"),
        (tmp_path / "loop", "cannot be used: Too many levels of symbolic links"),
        (Path("/proc/state"), "cannot be used: No such file or directory"),
    ):
        with pytest.raises(start.CannotStart) as caught, start._state_folder(folder):
            pass
        assert words in str(caught.value)
        assert "with --state" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert mode(tmp_path) == before


def test_a_folder_that_cannot_be_used_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, str(START), "--state", str(tmp_path / "file"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    folder = tmp_path / "postgres"
    folder.mkdir()
    return folder


@pytest.fixture
def sleeper(tmp_path: Path, cluster: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has nothing to do with PostgreSQL."""
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        yield process
        process.kill()


def lock(cluster: Path, process: "subprocess.Popen[bytes]") -> Path:
    file = cluster / "postmaster.pid"
    file.write_text(f"{process.pid}\n{cluster}\n1700000000\n")
    return file


def test_a_lock_whose_number_another_process_has_now(
    start: ModuleType, cluster: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    """After `kill -9` or a reboot; in a container the same few numbers come back."""
    file = lock(cluster, sleeper)
    began = time.monotonic()
    start._require_not_running(cluster)
    assert time.monotonic() - began < 5
    assert not file.exists()  # PostgreSQL itself would take that process for its own
    assert sleeper.poll() is None


def test_locks_that_postgresql_can_judge_are_left_to_it(
    start: ModuleType, cluster: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    start._require_not_running(cluster)  # there is none
    file = lock(cluster, sleeper)
    sleeper.kill()
    sleeper.wait()
    start._require_not_running(cluster)
    assert file.exists()
    file.write_text("no number")
    start._require_not_running(cluster)
    assert file.exists()


def test_a_postgresql_of_this_cluster_that_runs(
    start: ModuleType, cluster: Path, tmp_path: Path
) -> None:
    program = tmp_path / "postgres-program" / "postgres"
    program.parent.mkdir()
    shutil.copy(shutil.which("sleep") or "", program)
    other = tmp_path / "other"
    other.mkdir()
    for folder, runs in ((cluster, True), (other, False)):
        with subprocess.Popen([str(program), "60"], cwd=folder) as process:
            try:
                lock(cluster, process)
                if runs:
                    with pytest.raises(start.CannotStart, match=f"kill -INT {process.pid}$"):
                        start._require_not_running(cluster)
                else:
                    start._require_not_running(cluster)
            finally:
                os.kill(process.pid, 9)
