"""Which code runs, with which packages, on which machine, for a run to record."""

import contextlib
import dataclasses
import logging
import os
import platform
import shlex
import subprocess
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from fmnist_tracking import __version__, fingerprint, machine, runtime
from fmnist_tracking.redact import to_be_kept

_log = logging.getLogger(__name__)
_GIT_SECONDS = 10

# Reasons for having no commit that are not a problem.
INSTALLED = "the package is installed, and does not run from a checkout"
NO_REPOSITORY = "the package lies in no Git repository"
NOT_OF_IT = "the Git repository around the package does not hold it"


@dataclass(frozen=True, kw_only=True)
class Code:
    """The code that a run was made with."""

    version: str  # of this package
    sha256: str  # of the versions of code and libraries that determine a trial's numbers
    commit: str | None = None  # of the Git repository that the code runs from
    branch: str | None = None
    dirty: bool = False  # whether a file of this package differs from that commit
    no_commit: str | None = None  # why there is none


@lru_cache(maxsize=1)
def code() -> Code:
    """Return the code that this process runs, as its files are now."""
    here = partial(Code, version=__version__, sha256=fingerprint.of_program())
    package = Path(__file__).resolve().parent
    if package.parent.name in ("site-packages", "dist-packages"):
        # An installed package is not part of a repository around it, which may contain its .venv.
        return here(no_commit=INSTALLED)
    repository = next((p for p in package.parents if (p / ".git").exists()), None)
    if repository is None:
        return here(no_commit=NO_REPOSITORY)
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        return here(
            commit=_git(package, "rev-parse", "HEAD"),
            branch=_git(package, "rev-parse", "--abbrev-ref", "HEAD"),
            dirty=bool(_git(package, "status", "--porcelain", "--", ".")),
        )
    except (OSError, subprocess.SubprocessError) as error:
        return here(no_commit=_why_git_failed(error, repository))


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_GIT_SECONDS,
        check=True,
    ).stdout.strip()


def _why_git_failed(error: OSError | subprocess.SubprocessError, repository: Path) -> str:
    if isinstance(error, OSError):
        return f"git cannot be run ({error.strerror}). Install it."
    if not isinstance(error, subprocess.CalledProcessError):
        return f"git has not answered for {_GIT_SECONDS} seconds. Try `git status` there."
    if "did not match any file" in error.stderr:
        return NOT_OF_IT
    if "safe.directory" in error.stderr:
        return (
            f"{repository} is of another user, so git refuses it. Allow it: "
            f"git config --global --add safe.directory {shlex.quote(str(repository))}"
        )
    said = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[0]
    return f"git fails in {repository} ({said})."


def describe(threads: int) -> dict[str, Any]:
    """Return what a training's numbers and speed may depend on, beside its configuration.

    It logs a warning if there is a commit that cannot be found out.

    Returns:
        A dictionary that `json` can write: code, Python, machine, settings, determinism and the
        version of every installed package.
    """
    reason = code().no_commit
    if reason not in (None, INSTALLED, NO_REPOSITORY, NOT_OF_IT):
        _log.warning("No Git commit is recorded: %s", reason)
    kept = None if reason is None else to_be_kept(reason)
    return {
        "code": {**dataclasses.asdict(code()), "no_commit": kept},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": machine.cores(),
            "threads": threads,
            "memory_gigabytes": round(machine.memory() / 1e9, 1),
            "gpus": _gpus(),
        },
        "settings": runtime.settings(),
        "determinism": {
            "seeded": "weights, dropout and the order of images, by the parameter seed",
            "bit_equal": "on a processor, with the same packages, processor type and number of "
            "threads; not on a GPU",
            "tensorflow_op_determinism": False,
        },
        "packages": _packages(),
    }


def _packages() -> dict[str, str]:
    """Return the version of each installed package by name."""
    found = {}
    for package in distributions():
        # A package whose installation was interrupted has no metadata, so no name or version.
        with contextlib.suppress(FileNotFoundError, KeyError):
            if package.name and package.version:
                found[package.name] = package.version
    return dict(sorted(found.items()))


def processor() -> str:
    """Return the name of the processor, or else its kind."""
    try:  # Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(named, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    tf = runtime.import_tensorflow()
    return [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in runtime.gpus()
    ]
