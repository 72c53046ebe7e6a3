"""Searches while the system's clock is stepped, and on machines whose clocks differ."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from searches import EPOCHS, POINTS, SEARCH, Outcome, Place, assert_as_undisturbed, finish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-m", "-p", "-f", "true"], capture_output=True).returncode
        != 0,
        reason="needs the right to make namespaces",
    ),
]
TINY = (
    *("train", "--limit", "600", "--epochs", "1", "--filters", "4", "--strides", "2"),
    *("--hidden-units", "8", "--json"),
)
# Another machine, as far as anybody can tell: its processes have numbers of their own.
ELSEWHERE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
SKEW = "import os, time\nreal = time.time\ntime.time = lambda: real() + float(os.environ['SKEW'])\n"


def say(place: Place, *words: str, within: Sequence[str] = (), **variables: str) -> str:
    done = subprocess.run(
        [*within, sys.executable, "-m", "fmnist_tracking", *words],
        cwd=place.folder,
        env={
            **os.environ,
            "FMNIST_CACHE_DIR": str(place.cache),
            "FMNIST_STATE_DIR": place.state,
            "MLFLOW_TRACKING_URI": place.uri,
            **variables,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return f"{done.returncode} {done.stdout} {done.stderr}"


def stepped(folder: Path, seconds: int) -> tuple[str, ...]:
    """A program in which the machine seems to have started at another time."""
    stat = Path("/proc/stat").read_text().splitlines()
    moved = int(psutil.boot_time()) + seconds
    lines = [f"btime {moved}" if line.startswith("btime ") else line for line in stat]
    file = folder / f"stat{seconds}"
    file.write_text("\n".join(lines) + "\n")
    script = f'mount --bind "{file}" /proc/stat && exec "$@"'
    return ("unshare", "-m", "sh", "-c", script, "sh")


def test_a_clock_that_is_stepped_closes_nobody_s_search(tmp_path: Path, cache: Path) -> None:
    place = Place(tmp_path, cache)
    running = place.start()
    place.wait_until_said("epoch 2/", 1, running)
    started = psutil.Process(running.pid).create_time()
    for seconds in (-3600, 7):
        seen = subprocess.run(
            [*stepped(tmp_path, seconds), sys.executable, "-c",
             f"import psutil; print(psutil.Process({running.pid}).create_time())"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert abs(float(seen.stdout) - started - seconds) < 2
        repaired = say(place, "runs", "--repair", "--json", within=stepped(tmp_path, seconds))
        assert repaired.startswith("0 []")
    # So does any other command that trains in the same experiment.
    assert say(place, *TINY, within=stepped(tmp_path, 7)).startswith("0 ")
    assert "Closed as KILLED" not in place.said()
    result = finish(running, place)
    assert result["finished"] == len(result["trials"])
    listed = json.loads(say(place, "runs", "--json")[2:].partition("\n")[0])
    assert [run["status"] for run in listed] == ["FINISHED", "FINISHED"]


@pytest.mark.parametrize("skew", [-300, 86400])
def test_a_machine_whose_clock_is_wrong_keeps_its_search(
    tmp_path: Path, cache: Path, skew: int
) -> None:
    place = Place(tmp_path, cache, epochs=2000)  # it is at work until it is stopped
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(SKEW)
    wrong = {"PYTHONPATH": str(tmp_path / "clock"), "SKEW": str(skew)}
    running = place.start(within=ELSEWHERE, **wrong)
    try:
        place.wait_until_said("epoch 2/", 1, running)
        words = ["2000" if word == str(EPOCHS) else word for word in SEARCH]
        # Here, nobody's lock is in the way.
        asked = say(place, *words, FMNIST_STATE_DIR=str(tmp_path / "own"))
        assert asked.startswith("1 ")
        assert "watching for up to" in asked
        assert "is running already" in asked
        assert say(place, *TINY).startswith("0 ")  # closes nobody's run either
        assert "RUNNING" in say(place, "runs", "--json")
    finally:
        running.kill()
        running.wait()


def test_a_container_that_was_killed_is_gone_on_with_at_once_in_another(
    tmp_path: Path, cache: Path, undisturbed: Outcome
) -> None:
    place = Place(tmp_path, cache)
    running = place.start(within=ELSEWHERE)
    place.wait_until_said("epoch 2/", 1, running)
    running.kill()
    running.wait()
    assert finish(place.start(within=ELSEWHERE), place)["finished"] == POINTS
    assert "watching for up to" not in place.said()
    assert "goes on after epoch" in place.said()
    assert_as_undisturbed(place, undisturbed)
