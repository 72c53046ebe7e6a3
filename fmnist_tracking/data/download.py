"""Downloading Fashion-MNIST, if this machine has no copy."""

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pooch

from fmnist_tracking.data.checks import PARTS
from fmnist_tracking.data.idx import file_name
from fmnist_tracking.errors import DataError, first_line

# Each has the four .gz files; the first is the authors' repository.
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)
DEBIAN_PACKAGE = "dataset-fashion-mnist"
PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_TIMEOUT_SECONDS = 15
_APT_TIMEOUT_SECONDS = 300

_log = logging.getLogger(__name__)


def fetch(folder: Path, verify: Callable[[Path], None], mirrors: Iterable[str] = MIRRORS) -> None:
    """Download the four files of Fashion-MNIST to a folder.

    The mirrors are tried in order, then apt, until one gives files that can be verified.

    Args:
        folder: an empty folder.
        verify: raises `DataError` if the files in a folder are not the right ones.
        mirrors: addresses that end in "/".

    Raises:
        DataError: no source gave the right files; the message names what went wrong with each.
    """
    sources: dict[str, Callable[[Path], None]] = {
        mirror: partial(_download, mirror) for mirror in mirrors
    }
    sources[f"apt package {DEBIAN_PACKAGE}"] = _unpack_debian_package
    failures = []
    for name, get in sources.items():
        _log.info("Fetching Fashion-MNIST: %s", name)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            try:
                get(Path(scratch))
                verify(Path(scratch))
            except Exception as error:  # pooch passes on any error of its HTTP library
                failures.append(f"{name}: {_reason(error)}")
                _log.info("That failed: %s", failures[-1])
                continue
            for path in Path(scratch).iterdir():
                shutil.move(path, folder / path.name)
            return
    raise DataError("; ".join(failures))


def _download(mirror: str, folder: Path) -> None:
    downloader = pooch.HTTPDownloader(timeout=_TIMEOUT_SECONDS)
    for part in PARTS:
        name = file_name(part) + ".gz"
        # No hash here: the gzip headers differ between mirrors; the contents do not, and are
        # verified.
        pooch.retrieve(mirror + name, None, name, folder, downloader=downloader)


def _unpack_debian_package(folder: Path) -> None:
    """Download and unpack the package.

    apt's lists go to a temporary folder, so that root is not needed.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise FileNotFoundError(None, "apt-get and dpkg-deb are not installed")
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        for name in ("lists/partial", "archives/partial", "download", "unpacked"):
            (base / name).mkdir(parents=True)
        options = [
            *("-o", f"Dir::State::Lists={base / 'lists'}"),
            *("-o", f"Dir::Cache={base}"),
            *("-o", "APT::Sandbox::User="),
        ]
        _run(["apt-get", *options, "update"], base)
        _run(["apt-get", *options, "download", DEBIAN_PACKAGE], base / "download")
        package = next((base / "download").glob("*.deb"))
        _run(["dpkg-deb", "--extract", str(package), str(base / "unpacked")], base)
        for path in (base / "unpacked" / PACKAGE_FOLDER.relative_to("/")).iterdir():
            shutil.move(path, folder / path.name)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=_APT_TIMEOUT_SECONDS,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = str(error.stderr).strip().splitlines() or [f"exit status {error.returncode}"]
        return lines[-1]
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer within {error.timeout:.0f} s"
    return first_line(error.__cause__ or error.__context__ or error)
