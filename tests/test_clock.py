import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from conftest import SMALL

STOPPED_SECONDS = 4.0

WAITING = """
import sys, time
from fmnist_tracking import clock
start, wall = clock.now(), time.monotonic()
print("begun", flush=True)
sys.stdin.readline()
print(clock.now() - start, time.monotonic() - wall)
"""
# A library that keeps Python's threads from running computes meanwhile: that counts.
HOLDING = """
import time
from fmnist_tracking import clock
clock.now()
time.sleep(0.3)
start, wall, used = clock.now(), time.monotonic(), time.process_time()
pow(7, 1 << 22)
print(clock.now() - start, time.monotonic() - wall, time.process_time() - used)
"""
TRAINING = """
import dataclasses, json, sys
from fmnist_tracking import runtime
runtime.load_tensorflow(1)
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.data import load_dataset, split_dataset
from fmnist_tracking.training.loop import train
split = split_dataset(load_dataset(), SplitConfig(limit=6000))
def told(epoch):
    print(epoch.epoch, flush=True)
result, _ = train(TrainingConfig.of(**json.loads(sys.argv[1])), split, told)
print(json.dumps([result.train_seconds, result.images_per_second, result.train_images,
                  [e.epoch_seconds for e in result.epochs]]))
"""


def run(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def stop_for_a_while(pid: int, kill: Callable[[int, signal.Signals], None] = os.kill) -> None:
    kill(pid, signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    kill(pid, signal.SIGCONT)


def test_the_clock_stands_still_while_its_process_is_stopped() -> None:
    with run(WAITING) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(2):
            stop_for_a_while(process.pid)
            time.sleep(0.5)
        out, _ = process.communicate("on\n", timeout=60)
    counted, wall = map(float, out.split())
    assert wall > 2 * STOPPED_SECONDS
    # What it ran for, and what ten looks a second leave unknown of each stop.
    assert 0 < counted < wall - 2 * (STOPPED_SECONDS - 0.5)


def test_the_clock_runs_on_while_a_library_computes() -> None:
    out, _ = run(HOLDING).communicate(timeout=120)
    counted, wall, used = map(float, out.split())
    if used < 0.7 * wall:
        pytest.skip("the machine is too busy to tell a process that waits from one that is stopped")
    assert counted > 0.99 * wall


def test_seconds_in_which_a_training_was_stopped_do_not_count() -> None:
    config = {"filters": 16, "strides": 1, "hidden_units": SMALL["hidden_units"], "epochs": 4}
    begun = time.monotonic()
    with run(TRAINING, json.dumps(config)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        first = time.monotonic()
        stop_for_a_while(process.pid)
        *_, last = process.stdout.read().splitlines()
        took = time.monotonic() - first
    seconds, speed, images, epochs = json.loads(last)
    assert took > STOPPED_SECONDS
    assert sum(epochs[1:]) < took - STOPPED_SECONDS + 0.5
    assert seconds == sum(epochs) < time.monotonic() - begun
    assert speed > images * len(epochs) / seconds
