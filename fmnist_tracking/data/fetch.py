"""Getting Fashion-MNIST from the network, where no copy is at hand."""

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pooch

from fmnist_tracking.data.idx import FILES, file_name
from fmnist_tracking.errors import DataError

# Each holds the four .gz files; the first is the authors' repository.
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)
DEBIAN_PACKAGE = "dataset-fashion-mnist"
PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_TIMEOUT_SECONDS = 15
_APT_TIMEOUT_SECONDS = 300

_log = logging.getLogger(__name__)


def fetch(folder: Path, mirrors: Iterable[str] = MIRRORS) -> str:
    """Put the four files of Fashion-MNIST into a folder.

    The mirrors are tried in turn, then apt. Nothing is verified here: the reader of the
    folder does that, whatever the source.

    Returns:
        Where the files came from.

    Raises:
        DataError: no source could be reached; the message has a line for each.
    """
    failures = []
    for mirror in mirrors:
        _log.info("Fetching Fashion-MNIST from %s", mirror)
        try:
            _download(mirror, folder)
        except Exception as error:  # pooch passes on whatever its HTTP library raises
            failures.append(f"{mirror}: {_reason(error)}")
        else:
            return mirror
    _log.info("Fetching Debian's package %s", DEBIAN_PACKAGE)
    try:
        _unpack_debian_package(folder)
    except (OSError, subprocess.SubprocessError) as error:
        failures.append(f"apt package {DEBIAN_PACKAGE}: {_reason(error)}")
    else:
        return f"apt package {DEBIAN_PACKAGE}"
    raise DataError("; ".join(failures))


def _download(mirror: str, folder: Path) -> None:
    downloader = pooch.HTTPDownloader(timeout=_TIMEOUT_SECONDS)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        for part in FILES:
            name = file_name(part) + ".gz"
            # No hash here: the gzip wrappers differ between mirrors, the contents do not,
            # and those are verified when they are read.
            pooch.retrieve(mirror + name, None, name, partial, downloader=downloader)
        _move_all(Path(partial), folder)


def _unpack_debian_package(folder: Path) -> None:
    """Download and unpack the package; apt's lists go to a folder of our own, so no root."""
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
        _move_all(base / "unpacked" / PACKAGE_FOLDER.relative_to("/"), folder)


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


def _move_all(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.move(path, target / path.name)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = str(error.stderr).strip().splitlines() or [f"exit status {error.returncode}"]
        return lines[-1]
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer within {error.timeout:.0f} s"
    cause = error.__cause__ or error.__context__ or error
    return (str(cause).splitlines() or [type(error).__name__])[0]
