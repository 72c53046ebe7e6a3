import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from fmnist_tracking.executors import WorkerPool


def report_twice(number: int, report: Callable[[Any], None]) -> tuple[int, int]:
    report(("begun", number))
    report(("done", number))
    return number, os.getpid()


def sleep_long(report: Callable[[Any], None]) -> None:
    report(os.getpid())
    time.sleep(600)


def print_something(report: Callable[[Any], None]) -> None:
    print("from a library")


def prepare_nothing() -> None:
    pass


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def test_results_and_reports_come_back_from_another_process() -> None:
    reports: list[Any] = []
    with WorkerPool(1, reports.append, prepare_nothing) as pool:
        futures = [pool.submit(report_twice, number) for number in range(3)]
        results = [future.result() for future in futures]
    assert [number for number, _ in results] == [0, 1, 2]
    assert {pid for _, pid in results}.isdisjoint({os.getpid()})
    assert reports == [(word, n) for n in range(3) for word in ("begun", "done")]


def report_a_lot(report: Callable[[Any], None]) -> None:
    for number in range(2000):  # more than the pipe between the processes holds
        report("x" * 500 + str(number))


def test_a_report_that_cannot_be_shown_does_not_hold_up_the_work() -> None:
    def broken(_: Any) -> None:
        raise SystemExit(1)

    with WorkerPool(1, broken, prepare_nothing) as pool:
        future = pool.submit(report_a_lot)
        future.result(timeout=60)
        pool.submit(report_a_lot).result(timeout=60)


def test_an_exception_ends_the_workers_at_once() -> None:
    reports: list[int] = []
    start = time.monotonic()
    with pytest.raises(RuntimeError), WorkerPool(1, reports.append, prepare_nothing) as pool:
        pool.submit(sleep_long)
        wait_for(lambda: bool(reports))
        raise RuntimeError
    assert time.monotonic() - start < 120
    assert not is_alive(reports[0])


def test_a_killed_worker_is_noticed() -> None:
    reports: list[int] = []
    with WorkerPool(1, reports.append, prepare_nothing) as pool:
        future = pool.submit(sleep_long)
        wait_for(lambda: bool(reports))
        os.kill(reports[0], signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            future.result(timeout=60)


DRIVER = """
    import sys
    sys.path.insert(0, {tests!r})
    from test_executors import WorkerPool, print_something, prepare_nothing, sleep_long
    if __name__ == "__main__":
        with WorkerPool(1, lambda pid: print(pid, flush=True), prepare_nothing) as pool:
            pool.submit({task}).result()
"""


@pytest.fixture
def script(tmp_path: Any) -> Callable[[str], str]:
    def write(task: str) -> str:
        path = tmp_path / "driver.py"
        tests = os.path.dirname(__file__)
        path.write_text(textwrap.dedent(DRIVER).format(tests=tests, task=task))
        return str(path)

    return write


def test_a_worker_ends_when_its_driver_is_killed(script: Callable[[str], str]) -> None:
    command = [sys.executable, script("sleep_long")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        worker = int(driver.stdout.readline())
        driver.kill()
    wait_for(lambda: not is_alive(worker), seconds=20)


def test_what_a_worker_prints_stays_off_standard_output(script: Callable[[str], str]) -> None:
    done = subprocess.run(
        [sys.executable, script("print_something")], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert "from a library" in done.stderr
