import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SEARCH = (
    *("search", "--limit", "600", "--epochs", "1", "--filters", "4", "--strides", "2"),
    *("--kernel-sizes", "3", "--hidden-units", "8"),
)


def in_own_mounts(mount: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line where a folder is mounted as one line of the shell says."""
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable]
    return subprocess.run(
        [*command, "-m", "fmnist_tracking", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
    )


NEEDS_MOUNTS = pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="the system does not let this user mount",
)


@NEEDS_MOUNTS
def test_why_no_worker_can_be_started_is_what_the_system_says(tmp_path: Path) -> None:
    done = in_own_mounts("mount -t tmpfs -o ro tmpfs /dev/shm", *SEARCH)
    assert done.returncode == 1
    assert (
        "FAILED: no worker process could be started (OSError: [Errno 30] Read-only file system; "
        "/dev/shm, where Python keeps what processes share, cannot be written)"
    ) in done.stderr
    assert "memory" not in done.stderr
    assert "process died" not in done.stderr
    again = subprocess.run(
        [sys.executable, "-m", "fmnist_tracking", *SEARCH], capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert os.access("/dev/shm", os.W_OK)
