import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmnist_tracking import machine, runtime
from fmnist_tracking.workers import (
    LocalWorker,
    NoWorker,
    Silence,
    TaskFailed,
    TimedOut,
    WorkerDied,
    WorkerPool,
    fork_server,
)
from processes import is_alive, wait_for
from tasks import (
    OfTwo,
    Reports,
    WithoutText,
    cannot_be_prepared,
    exit_and_leave_a_child,
    exit_with_status,
    fail,
    fail_with,
    fork_and_go_on,
    kill_itself,
    own_pid,
    pool_of,
    prepare_nothing,
    report_a_lot,
    report_twice,
    report_what_only_it_can_read,
    return_a_lock,
    sleep_long,
    take_and_report,
    wait_for_file,
    warn_and_log,
)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_results_and_reports_come_back_from_another_process(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "_start_method", lambda: method)
    reports = Reports()
    with pool_of(1, reports) as pool:
        futures = [pool.submit(report_twice, number) for number in range(3)]
        results = [future.result() for future in futures]
    assert [number for number, _ in results] == [0, 1, 2]
    assert {pid for _, pid in results}.isdisjoint({os.getpid()})
    assert len({pid for _, pid in results}) == 1
    assert reports.all == [(0, (word, n)) for n in range(3) for word in ("begun", "done")]


def test_a_long_name_of_the_temporary_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        "from tasks import Reports, pool_of, report_twice\n"
        "if __name__ == '__main__':\n"
        "    with pool_of(1, Reports()) as pool:\n"
        "        print(pool.submit(report_twice, 7).result()[0])\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_each_worker_reports_under_its_number(tmp_path: Path) -> None:
    reports = Reports()
    with pool_of(2, reports) as pool:
        futures = [pool.submit(wait_for_file, tmp_path / "go") for _ in range(2)]
        wait_for(lambda: len(reports.all) == 2)
        (tmp_path / "go").touch()
        pids = [future.result(timeout=60) for future in futures]
    assert {worker for worker, _ in reports.all} == {0, 1}
    assert {pid for _, pid in reports.all} == set(pids)


def test_reports_are_passed_on_before_the_task_is_done() -> None:
    reports = Reports()
    taken_in: list[int] = []

    def slowly(worker: int, report: Any) -> None:
        time.sleep(0.0005)
        reports(worker, report)

    with pool_of(1, slowly) as pool:
        future = pool.submit(report_a_lot)
        future.add_done_callback(lambda _: taken_in.append(len(reports.all)))
        future.result(timeout=60)
        died = pool.submit(exit_with_status, 3)
        died.add_done_callback(lambda _: taken_in.append(len(reports.all)))
        wait([died], timeout=60)
    assert taken_in == [2000, 2001]


def test_an_error_of_a_task_is_its_future_s_and_the_process_stays() -> None:
    with pool_of(1, Reports()) as pool:
        before = pool.submit(own_pid).result(timeout=60)
        with pytest.raises(ValueError, match="of the task"):
            pool.submit(fail).result(timeout=60)
        assert pool.submit(own_pid).result(timeout=60) == before


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (WithoutText(), "WithoutText: its message cannot be made (RuntimeError)"),
        (OfTwo(1, 2), "OfTwo: 1 and 2"),
    ],
)
def test_an_error_that_cannot_be_sent_is_told(error: BaseException, text: str) -> None:
    with pool_of(1, Reports()) as pool:
        before = pool.submit(own_pid).result(timeout=60)
        with pytest.raises(TaskFailed) as caught:
            pool.submit(fail_with, type(error), error.args).result(timeout=60)
        assert str(caught.value) == text
        assert pool.submit(own_pid).result(timeout=60) == before


def test_an_error_with_a_long_message_is_told_by_its_beginning_and_end() -> None:
    with pool_of(1, Reports()) as pool, pytest.raises(TaskFailed) as caught:
        args = ("begin " + "x" * 1_000_000 + " end",)
        pool.submit(fail_with, ValueError, args).result(timeout=60)
    assert str(caught.value).startswith("ValueError: begin x")
    assert str(caught.value).endswith("x end")
    assert len(str(caught.value)) < 2_100


def test_what_cannot_be_read_here_ends_its_task_alone() -> None:
    with pool_of(1, Reports()) as pool:
        with pytest.raises(WorkerDied, match="cannot be read: RuntimeError: not here"):
            pool.submit(report_what_only_it_can_read, os.getpid()).result(timeout=60)
        assert pool.submit(own_pid).result(timeout=60)


def test_a_silent_worker_is_told_of_and_can_be_ended() -> None:
    reports, told = Reports(), []

    def on_silence(args: tuple[Any, ...], silence: Silence) -> TimedOut | None:
        told.append((args, silence))
        return TimedOut("too long") if silence.is_stopped else None

    workers = [LocalWorker(prepare_nothing)]
    with WorkerPool(workers, reports, on_silence) as pool:
        task = pool.submit(sleep_long)
        worker = reports.first()
        wait_for(lambda: bool(told))
        assert told[0] == ((), Silence(process=worker, is_stopped=False))
        os.kill(worker, signal.SIGSTOP)
        with pytest.raises(TimedOut, match="too long"):
            task.result(timeout=60)
        wait_for(lambda: not is_alive(worker))
        assert pool.submit(own_pid).result(timeout=60) != worker


def test_a_worker_that_dies_is_noticed_though_its_own_child_lives() -> None:
    reports = Reports()
    with pool_of(1, reports) as pool:
        with pytest.raises(WorkerDied, match="exit status 4"):
            pool.submit(exit_and_leave_a_child, 4).result(timeout=60)
        os.kill(reports.first(), signal.SIGKILL)


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_copy_that_a_task_makes_of_its_process_reports_nothing(seconds: float) -> None:
    reports = Reports()
    with pool_of(1, reports) as pool:
        assert pool.submit(fork_and_go_on, seconds).result(timeout=60) == "of the task"
        for number in range(8):
            assert pool.submit(report_twice, number).result(timeout=60)[0] == number
            time.sleep(0.2)
        wait_for(lambda: not is_alive(reports.all[0][1]))
    assert "from the copy" not in [report for _, report in reports.all]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGRTMIN + 1])
def test_a_crash_is_told_by_the_name_of_its_signal(number: int) -> None:
    name = {signal.SIGSEGV: "SIGSEGV, Segmentation fault", signal.SIGABRT: "SIGABRT, Aborted"}
    with pool_of(1, Reports()) as pool, pytest.raises(WorkerDied) as caught:
        pool.submit(kill_itself, number).result(timeout=60)
    assert str(caught.value) == f"killed by {name.get(number, f'signal {number}')}"  # type: ignore[call-overload]


def test_a_fork_server_that_is_stopped_holds_up_no_start() -> None:
    reports = Reports()
    with pool_of(1, reports, tasks_per_process=1) as pool:
        first = pool.submit(sleep_long)
        worker = psutil.Process(reports.first())
        server = worker.parent()
        assert server is not None
        worker.kill()
        with pytest.raises(WorkerDied):
            first.result(timeout=60)
        server.suspend()
        wait_for(lambda: server.status() == psutil.STATUS_STOPPED)
        assert pool.submit(own_pid).result(timeout=60)


def test_a_fork_server_that_is_being_killed_is_not_waited_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pool_of(1, Reports()) as pool:
        pool.submit(own_pid).result(timeout=60)
    server = fork_server.find_fork_server()
    assert server is not None
    # It is there still, but nobody listens at its socket any more.
    deaf = tmp_path / "deaf"
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(deaf))
    monkeypatch.setattr(forkserver._forkserver, "_forkserver_address", str(deaf))
    with pool_of(1, Reports()) as pool:
        assert pool.submit(own_pid).result(timeout=60)
    assert not is_alive(server.pid)


def test_a_report_that_cannot_be_shown_does_not_hold_up_the_work() -> None:
    def broken(worker: int, report: Any) -> None:
        raise SystemExit(1)

    with pool_of(1, broken) as pool:
        future = pool.submit(report_a_lot)
        future.result(timeout=60)
        pool.submit(report_a_lot).result(timeout=60)


def test_an_exception_ends_the_workers_at_once() -> None:
    reports = Reports()
    start = time.monotonic()
    with pytest.raises(RuntimeError), pool_of(1, reports) as pool:
        pool.submit(sleep_long)
        reports.first()
        raise RuntimeError
    assert time.monotonic() - start < 120
    assert not is_alive(reports.first())


def test_a_task_survives_the_process_that_its_worker_was_forked_from(tmp_path: Path) -> None:
    reports = Reports()
    with pool_of(1, reports) as pool:
        task = pool.submit(wait_for_file, tmp_path / "go")
        worker = psutil.Process(reports.first())
        server = worker.parent()
        assert server is not None and server.pid != os.getpid()
        assert "forkserver" in " ".join(server.cmdline())
        server.kill()
        wait_for(lambda: not is_alive(server.pid))
        (tmp_path / "go").touch()
        assert task.result(timeout=60) == worker.pid
        # Nobody can tell any more how that process is; once that is noticed, tasks get another one.
        wait_for(lambda: pool.submit(own_pid).result(timeout=60) != worker.pid)
        assert not is_alive(worker.pid)


def test_a_fork_server_that_is_stopped_holds_up_nobody_s_end() -> None:
    reports = Reports()
    with pool_of(2, reports) as pool:
        tasks = [pool.submit(sleep_long) for _ in range(2)]
        wait_for(lambda: len(reports.all) == 2)
        killed, other = (psutil.Process(pid) for _, pid in reports.all)
        server = killed.parent()
        assert server is not None
        server.suspend()
        killed.kill()
        pool.kill()
        assert len(wait(tasks, timeout=60).done) == 2
    wait_for(lambda: not is_alive(other.pid) and not is_alive(server.pid), seconds=20)


def test_how_a_worker_ended_is_not_made_up() -> None:
    reports = Reports()
    with pool_of(1, reports) as pool:
        lost = pool.submit(sleep_long)
        worker = psutil.Process(reports.first())
        server = worker.parent()
        assert server is not None
        server.kill()
        wait_for(lambda: not is_alive(server.pid))
        worker.kill()
        with pytest.raises(WorkerDied, match="forked from, which would know how, is gone"):
            lost.result(timeout=60)


LEFT_AT_ONCE = """
    import sys
    sys.path.insert(0, {tests!r})
    from fmnist_tracking.workers import start_helpers
    from tasks import pool_of
    if __name__ == "__main__":
        start_helpers(["imported_slowly"])
        with pool_of(2, print) as pool:
            {leave}
"""


@pytest.mark.parametrize("leave", ["pool.kill()", "pass", "raise SystemExit"])
def test_a_pool_that_is_left_at_once_leaves_nothing(tmp_path: Path, leave: str) -> None:
    (tmp_path / "imported_slowly.py").write_text("import time; time.sleep(600)")
    script, tests = tmp_path / "driver.py", os.path.dirname(__file__)
    script.write_text(textwrap.dedent(LEFT_AT_ONCE).format(tests=tests, leave=leave))
    done = subprocess.run(  # until its pipes are closed, by all who have them
        [sys.executable, str(script)], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 knows no safe path")
def test_workers_import_what_the_driver_does(tmp_path: Path) -> None:
    """Not what lies in the working folder, where a file may have the name of a module."""
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong one')")
    script, tests = tmp_path / "scripts" / "driver.py", os.path.dirname(__file__)
    script.parent.mkdir()
    script.write_text(textwrap.dedent(DRIVER).format(tests=tests, task="what_is_loaded"))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_left_normally_the_pool_does_all_that_was_submitted() -> None:
    with pool_of(1, Reports()) as pool:
        futures = [pool.submit(report_twice, number) for number in range(3)]
    wait(futures, timeout=10)
    assert [future.done() for future in futures] == [True] * 3
    assert [future.result()[0] for future in futures] == [0, 1, 2]


def test_what_waits_is_cancelled_when_the_workers_are_killed() -> None:
    reports = Reports()
    with pool_of(1, reports) as pool:
        running, waiting = pool.submit(sleep_long), pool.submit(sleep_long)
        reports.first()
        pool.kill()
        with pytest.raises(WorkerDied):
            running.result(timeout=60)
        with pytest.raises(CancelledError):
            waiting.result(timeout=5)


def test_a_killed_worker_costs_its_own_task_only(tmp_path: Path) -> None:
    reports = Reports()
    with pool_of(2, reports) as pool:
        doomed = pool.submit(sleep_long)
        killed = reports.first()
        other = pool.submit(wait_for_file, tmp_path / "go")
        wait_for(lambda: len(reports.all) == 2)
        undisturbed = reports.all[1][1]
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="killed by SIGKILL, Killed"):
            doomed.result(timeout=60)
        assert not other.done()
        replaced = pool.submit(own_pid).result(timeout=60)
        assert replaced not in (killed, undisturbed)
        (tmp_path / "go").touch()
        assert other.result(timeout=60) == undisturbed
    wait_for(lambda: not is_alive(replaced), seconds=20)


def test_workers_that_die_while_a_report_is_taken_in_do_not_hold_up_the_pool() -> None:
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); "
        "import tasks; tasks.two_die_while_a_report_is_taken_in()"
    )
    done = subprocess.run(  # not in this process, which would hang
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    assert done.stdout == "WorkerDied('exit status 3')\n"


@pytest.mark.parametrize("kills", [0, 1, 2])
def test_want_of_memory_is_told_only_where_the_system_has_counted_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kills: int
) -> None:
    (tmp_path / "vmstat").write_text("oom_kill 3\n")
    monkeypatch.setattr(machine, "_SYSTEM", tmp_path / "vmstat")
    monkeypatch.setattr(machine, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(machine, "memory_left", machine.memory)
    reports = Reports()
    with pool_of(1, reports) as pool:
        dying = pool.submit(sleep_long)
        pid = reports.first()
        (tmp_path / "vmstat").write_text(f"oom_kill {3 + kills}\n")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied) as caught:
            dying.result(timeout=60)
    seen = {0: "", 1: "1 process for want of memory", 2: "2 processes for want of memory"}[kills]
    assert str(caught.value).startswith("killed by SIGKILL, Killed")
    assert str(caught.value).endswith(seen or "Killed")


@pytest.mark.parametrize("left", [1e8, 1e10])
def test_that_memory_was_short_is_told_as_it_was_seen(
    monkeypatch: pytest.MonkeyPatch, left: float
) -> None:
    monkeypatch.setattr(machine, "memory_left", lambda: int(left))
    monkeypatch.setattr(machine, "memory", lambda: int(2e10))
    reports = Reports()
    with pool_of(1, reports) as pool:
        dying = pool.submit(take_and_report, 300)
        wait_for(lambda: len(reports.all) == 2)
        time.sleep(1.5)  # so that it would be looked at again
        os.kill(reports.first(), signal.SIGKILL)
        with pytest.raises(WorkerDied) as caught:
            dying.result(timeout=60)
    taken = r"; \d s before, it took 0\.[3-9] GB of memory, and 0\.1 GB of 20\.0 GB were left"
    expected = r"killed by SIGKILL, Killed" + (taken if left == 1e8 else "")
    assert re.fullmatch(expected, str(caught.value))


def test_a_task_that_cannot_be_sent_is_its_own_error_and_the_process_stays() -> None:
    with pool_of(1, Reports()) as pool:
        before = pool.submit(own_pid).result(timeout=60)
        with pytest.raises(TypeError, match="pickle"):
            pool.submit(own_pid, threading.Lock()).result(timeout=60)
        assert pool.submit(own_pid).result(timeout=60) == before


def test_why_no_process_can_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> None:
        os.open("/proc/self/no such file", os.O_RDONLY)

    with pool_of(1, Reports()) as pool:
        with pytest.raises(WorkerDied, match="exit status 7"):
            pool.submit(exit_with_status, 7).result(timeout=60)
        monkeypatch.setattr(fork_server, "_ensure_fork_server", start)
        with pytest.raises(NoWorker, match=r"^FileNotFoundError: \[Errno 2\] No such file"):
            pool.submit(own_pid).result(timeout=60)


def test_why_a_process_cannot_work_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with WorkerPool([LocalWorker(cannot_be_prepared)], Reports()) as pool:
        for _ in range(2):
            with pytest.raises(NoWorker, match=r"^RuntimeError: can't start new thread$"):
                pool.submit(own_pid).result(timeout=60)
    assert capfd.readouterr().err == ""


def test_what_a_worker_warns_of_and_logs_steers_no_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    fork_server.end_fork_server()  # one of an earlier test has that test's standard error
    wait_for(lambda: fork_server.find_fork_server() is None)
    worker = LocalWorker(partial(runtime.prepare_process, 1, 0, []))
    with WorkerPool([worker], Reports()) as pool:
        pool.submit(warn_and_log, "a\x1b[2J\nError: forged").result(timeout=120)
    warned, logged = capfd.readouterr().err.splitlines()
    assert warned.endswith(r"UserWarning: a\x1b[2J\nError: forged")
    assert logged == r"a\x1b[2J\nError: forged"


def test_a_result_that_cannot_be_sent_is_an_error_of_its_task() -> None:
    with pool_of(1, Reports()) as pool:
        with pytest.raises(TypeError, match=r"lock cannot be sent to the driver: cannot pickle"):
            pool.submit(return_a_lock).result(timeout=60)
        assert pool.submit(own_pid).result(timeout=60)


def test_a_task_given_to_a_pool_that_ends_is_cancelled() -> None:
    with pool_of(1, Reports()) as pool:
        pool.kill()
        assert pool.submit(own_pid).cancelled()


def test_a_worker_s_exit_status_is_told() -> None:
    with pool_of(1, Reports()) as pool:
        with pytest.raises(WorkerDied, match="exit status 7"):
            pool.submit(exit_with_status, 7).result(timeout=60)
        assert pool.submit(own_pid).result(timeout=60)


def test_a_process_is_replaced_after_its_tasks() -> None:
    with pool_of(1, Reports(), tasks_per_process=2) as pool:
        futures = [pool.submit(own_pid) for _ in range(4)]
        first, second, third, fourth = (future.result(timeout=120) for future in futures)
        assert first == second
        assert third == fourth
        assert first != third
        wait_for(lambda: not is_alive(first), seconds=20)


def test_workers_leave_signals_to_the_driver(tmp_path: Path) -> None:
    reports = Reports()
    with pool_of(2, reports) as pool:
        futures = [pool.submit(wait_for_file, tmp_path / "go") for _ in range(2)]
        wait_for(lambda: len(reports.all) == 2)
        pids = [pid for _, pid in reports.all]
        for pid in pids:
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
        time.sleep(0.5)
        (tmp_path / "go").touch()
        assert {future.result(timeout=60) for future in futures} == set(pids)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


DRIVER = """
    import sys
    sys.path.insert(0, {tests!r})
    from tasks import *
    from fmnist_tracking.workers import start_helpers
    if __name__ == "__main__":
        start_helpers(["fmnist_tracking.preload"])
        say = lambda worker, report: print(report, flush=True)
        with pool_of(1, say) as pool:
            pool.submit({task}).result()
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
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
