"""Which code runs, with which packages, on what machine: for a run to record."""

import dataclasses
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil

from fmnist_tracking import __version__, fingerprint, runtime

_GIT_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Code:
    """Which code a run was made with.

    Attributes:
        version: of this package.
        sha256: of the code and the libraries that determine a trial's numbers.
        commit: of the Git repository that the code lies in; None where it lies in none.
        branch: that was checked out.
        dirty: whether a file of this package differs from that commit.
    """

    version: str
    sha256: str
    commit: str | None = None
    branch: str | None = None
    dirty: bool = False


@lru_cache(maxsize=1)
def code() -> Code:
    """The code of this very process, as its files are now."""
    sha256 = fingerprint.of_code()
    package = Path(__file__).parent
    try:
        # A package installed below a repository, in its .venv for instance, is not of it.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        return Code(
            version=__version__,
            sha256=sha256,
            commit=_git(package, "rev-parse", "HEAD"),
            branch=_git(package, "rev-parse", "--abbrev-ref", "HEAD"),
            dirty=bool(_git(package, "status", "--porcelain", "--", ".")),
        )
    except (OSError, subprocess.SubprocessError):  # no Git, or no repository
        return Code(version=__version__, sha256=sha256)


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_GIT_SECONDS,
        check=True,
    ).stdout.strip()


def describe(threads: int) -> dict[str, Any]:
    """What a training's numbers and its speed may depend on, beside its configuration.

    Args:
        threads: that the arithmetic of each trial is done with.

    Returns:
        Something that `json` can write: code, Python, machine, settings, determinism and
        the version of every package that is installed.
    """
    return {
        "code": dataclasses.asdict(code()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": runtime.cores(),
            "threads": threads,
            "memory_gigabytes": round(psutil.virtual_memory().total / 1e9, 1),
            "gpus": _gpus(),
        },
        "settings": {name: os.environ.get(name) for name in runtime.DEFAULTS},
        "determinism": {
            "seeded": "weights, dropout and the order of images, by the parameter seed",
            "bit_equal": "with the same packages, processor type and number of threads",
            "tensorflow_op_determinism": False,
        },
        "packages": dict(sorted((found.name, found.version) for found in distributions())),
    }


def _processor() -> str:
    try:  # Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(named, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    import tensorflow as tf

    return [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
