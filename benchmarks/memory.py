"""Memory of the driver and its workers over 100 short trials: `python -m benchmarks.memory`.

Writes a picture, and prints the resident memory of each process after a quarter of the trials
and at the end. The pages that workers share with the process they are forked from count for each.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from matplotlib.figure import Figure

TRIALS = 100
SEARCH = (
    *("search", "--limit", "600", "--epochs", "2", "--filters", "12", "--strides", "2"),
    *("--kernel-sizes", "3", "--repeats", str(TRIALS), "--workers", "2"),
)
PICTURE = Path("docs/images/memory.png")


def main() -> None:
    """Search, sample, draw."""
    with tempfile.TemporaryDirectory() as folder:
        search = subprocess.Popen(
            [sys.executable, "-m", "fmnist_tracking", *SEARCH],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        ended: list[float] = []

        def count() -> None:
            assert search.stderr is not None
            for line in search.stderr:
                if "] f12" in line and " ended: validation" in line:
                    ended.append(time.monotonic())

        reader = threading.Thread(target=count)
        reader.start()
        samples: dict[int, list[tuple[int, float]]] = {}
        while search.poll() is None:
            for process in _processes(search.pid):
                try:
                    megabytes = process.memory_info().rss / 2**20
                except psutil.NoSuchProcess:
                    continue
                samples.setdefault(process.pid, []).append((len(ended), megabytes))
            time.sleep(0.25)
        reader.join()
    assert search.returncode == 0 and len(ended) == TRIALS
    _draw(samples, search.pid)
    _tell(samples, search.pid)


def _processes(driver: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(driver)
        servers = [c for c in parent.children() if "forkserver" in " ".join(c.cmdline())]
        return [parent, *(worker for server in servers for worker in server.children())]
    except psutil.NoSuchProcess:
        return []


def _draw(samples: dict[int, list[tuple[int, float]]], driver: int) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    workers_label: str | None = "workers, each replaced after 25 trials"
    for pid, points in samples.items():
        trials, megabytes = zip(*points, strict=True)
        if pid == driver:
            axes.plot(trials, megabytes, color="#0072B2", lw=2.2, label="driver")
        else:
            axes.plot(trials, megabytes, color="#D55E00", lw=1.2, label=workers_label)
            workers_label = None
    axes.set_xlabel("trials ended")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(0)
    axes.set_title(f"Memory over {TRIALS} trials, two workers")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(PICTURE, dpi=110)
    print(PICTURE)


def _tell(samples: dict[int, list[tuple[int, float]]], driver: int) -> None:
    quarter = next(m for t, m in samples[driver] if t >= TRIALS // 4)
    last = samples[driver][-1][1]
    print(f"driver: {quarter:.0f} MiB after {TRIALS // 4} trials, {last:.0f} at the end")
    most = [max(m for _, m in points) for pid, points in samples.items() if pid != driver]
    print(f"workers: {len(most)} processes one after the other, at most {max(most):.0f} MiB each")


if __name__ == "__main__":
    main()
