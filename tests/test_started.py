"""A search started in the ways in which people and services start programs."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fmnist_tracking.data import Dataset
from processes import PROGRAM, is_alive, processes_of, shell, wait_for

SEARCH = (
    f"{PROGRAM} search --limit 1200 --epochs 3 --filters 4,8 --strides 2 --kernel-sizes 3 "
    "--hidden-units 8 --workers 2"
)
LONGER = SEARCH.replace("--epochs 3", "--epochs 150")
pytestmark = pytest.mark.slow


class Terminal:
    """A shell with job control in a terminal of its own, as a person has it."""

    def __init__(self) -> None:
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
        self.shown = self.all_shown = ""
        self._is_open = True

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, seconds: float = 0.2) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self._file], [], [], 0.05)[0]:
                text = os.read(self._file, 65536).decode(errors="replace")
                self.shown += text
                self.all_shown += text

    def wait_until_shown(self, pattern: str) -> "re.Match[str]":
        def is_shown() -> bool:
            self.read()
            return re.search(pattern, self.shown) is not None

        wait_for(is_shown, 180)
        found = re.search(pattern, self.shown)
        assert found is not None
        self.shown = self.shown[found.end() :]
        return found

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._file)
            os.waitpid(self.pid, 0)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    with contextlib.closing(opened):
        yield opened


def finished() -> int:
    done = shell(f"{PROGRAM} runs --json")
    (search,) = json.loads(done.stdout)
    assert search["status"] == "FINISHED", done.stdout
    return int(search["finished"])


def test_ctrl_z_stops_all_and_fg_goes_on_with_it(terminal: Terminal) -> None:
    terminal.type(f"{LONGER}; echo status=$?\n")
    terminal.wait_until_shown(r"Search [0-9a-f]{32}")
    terminal.wait_until_shown(r"\d/150")
    (driver,) = psutil.Process(terminal.pid).children()
    terminal.type("\x1a")
    terminal.wait_until_shown("Stopped")
    workers = [p for p in driver.children(recursive=True) if "multiprocessing" in str(p.cmdline())]
    assert len(workers) >= 3  # and the process that they are forked from
    assert driver.status() == psutil.STATUS_STOPPED
    time.sleep(2)
    used = [sum(process.cpu_times()[:2]) for process in (driver, *workers)]
    time.sleep(2)
    assert [sum(process.cpu_times()[:2]) for process in (driver, *workers)] == used
    terminal.type("fg; echo again=$?\n")
    terminal.wait_until_shown("again=0")
    assert finished() == 2


def test_a_terminal_that_changes_its_size(terminal: Terminal) -> None:
    terminal.resize(80, 24)
    terminal.type(f"{LONGER}; echo status=$?\n")
    terminal.wait_until_shown(r"Search [0-9a-f]{32}")
    for columns, rows in ((20, 5), (1, 1), (300, 90), (0, 0), (40, 10)) * 2:
        terminal.resize(columns, rows)
        terminal.read(0.3)
    terminal.wait_until_shown("status=0")
    assert "Traceback" not in terminal.all_shown
    assert finished() == 2


def test_under_nohup_the_end_of_a_terminal_ends_nothing(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type(f"nohup {SEARCH} > log 2>&1 &\n")
    log = tmp_path / "log"
    wait_for(lambda: log.exists() and "Search " in log.read_text())
    (driver,) = (p for p in psutil.Process(terminal.pid).children() if "search" in p.cmdline())
    terminal.close()
    wait_for(lambda: not is_alive(driver.pid), 180)
    assert finished() == 2, log.read_text()


@pytest.mark.parametrize("where", ["cron", "systemd"])
def test_without_a_terminal_and_with_hardly_any_variable(
    tmp_path: Path, dataset: Dataset, where: str
) -> None:
    variables = {
        "cron": f"HOME={tmp_path} LOGNAME=root PATH=/usr/bin:/bin SHELL=/bin/sh "
        f"FMNIST_DATA_DIR={shlex.quote(dataset.source)}",
        "systemd": f"INVOCATION_ID=0123 PATH=/usr/bin FMNIST_STATE_DIR={tmp_path}/state "
        f"FMNIST_CACHE_DIR={tmp_path}/cache FMNIST_DATA_DIR={shlex.quote(dataset.source)}",
    }[where]
    done = shell(f"setsid env -i {variables} {SEARCH} < /dev/null")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert finished() == 2


def test_a_service_that_is_stopped_and_started_again_goes_on(tmp_path: Path) -> None:
    def start() -> "subprocess.Popen[str]":
        with (tmp_path / "journal").open("a") as journal:
            return subprocess.Popen(
                ["bash", "-c", f"exec {LONGER}"],
                stdin=subprocess.DEVNULL,
                stdout=journal,
                stderr=journal,
                start_new_session=True,
                text=True,
            )

    journal = tmp_path / "journal"
    service = start()
    wait_for(lambda: "/150 " in journal.read_text(), 180)
    for pid in processes_of(service.pid):  # systemd tells all that a service has started
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 15)
    assert service.wait(60) == 143, journal.read_text()
    wait_for(lambda: not processes_of(service.pid))
    assert start().wait(180) == 0, journal.read_text()
    assert finished() == 2
