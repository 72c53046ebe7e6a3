"""Is everything in place, and where is it; MLflow's own page."""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fmnist_tracking import environment, runtime, tracking
from fmnist_tracking.console import Echo
from fmnist_tracking.data import load_dataset
from fmnist_tracking.errors import (
    ConfigError,
    FmnistTrackingError,
    TrackingError,
    first_line,
    for_programs,
    setting,
)
from fmnist_tracking.output_folder import writable
from fmnist_tracking.redact import LONGEST_LINE, printable, without_user
from fmnist_tracking.training.checkpoints import state_dir

_PACKAGES = ("tensorflow", "keras", "keras-tuner", "mlflow", "numpy", "scikit-learn", "matplotlib")
_ENOUGH_FREE_GIB = 1.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: of what was checked.
        ok: whether it is well.
        message: what was seen, with the names of settings marked; see `errors.setting`.
    """

    name: str
    ok: bool
    message: str

    @property
    def seen(self) -> str:
        """Return what was seen, for people."""
        return printable(for_programs(self.message), LONGEST_LINE)

    def __str__(self) -> str:
        return f"{self.name}: {'' if self.ok else 'NOT IN ORDER: '}{self.seen}"


def check_installation(
    *,
    tracking_uri: str | None = None,
    data_dir: str | Path | None = None,
    relocate: bool = False,
    upgrade: bool = False,
) -> Iterator[Check]:
    """Check the installation, one thing after another.

    Args:
        tracking_uri: of the MLflow store, None for the usual one.
        data_dir: where the data is, None for the usual places.
        relocate: give the store that was moved the addresses of where its files are now.
        upgrade: bring the store of an older MLflow up to date.
    """
    checks: dict[str, Callable[[], str]] = {
        "Python": lambda: f"{platform.python_version()} at {sys.executable}",
        "packages": lambda: ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        "code": _code,
        "TensorFlow": _tensorflow,
        "data": lambda: _data(data_dir),
        "settings": _settings,
        "MLflow store": lambda: _store(tracking_uri, relocate=relocate, upgrade=upgrade),
        "checkpoints": lambda: f"{writable(state_dir(), runtime.STATE_VARIABLE)} can be written",
        "disk": _disk,
    }
    for name, look in checks.items():
        try:
            yield Check(name=name, ok=True, message=without_user(look()))
        except FmnistTrackingError as error:
            yield Check(name=name, ok=False, message=without_user(error.message))
        except Exception as error:  # whatever is wrong with an installation is its finding
            seen = f"{type(error).__name__}: {first_line(error)}"
            yield Check(name=name, ok=False, message=without_user(seen))


def _code() -> str:
    code = environment.code()
    if code.commit is None:
        return f"{code.version}, no Git commit: {code.no_commit}"
    differs = ", from which the files of the package differ" if code.dirty else ""
    return f"{code.version}, Git commit {code.commit[:12]} of {code.branch}{differs}"


def _tensorflow() -> str:
    tf = runtime.import_tensorflow()
    gpus = len(runtime.gpus())
    onednn = "on" if runtime.settings()["TF_ENABLE_ONEDNN_OPTS"] == "1" else "off"
    return f"{tf.__version__} computes on {os.cpu_count()} CPU cores, {gpus} GPUs; oneDNN {onednn}"


def _data(data_dir: str | Path | None) -> str:
    dataset = load_dataset(data_dir)
    if dataset.is_fashion_mnist:
        return f"{dataset.name}, verified, in {dataset.source}"
    return f"{dataset.name}, {dataset.summary}, SHA-256 {dataset.digest[:12]}…, in {dataset.source}"


def _settings() -> str:
    runtime.asked_to_compile()
    runtime.store_patience()
    return f"{runtime.threads_of(1)} threads for a single training"


def _store(tracking_uri: str | None, *, relocate: bool, upgrade: bool) -> str:
    if tracking.is_yet_to_be_made(tracking_uri):
        path = tracking.require_can_be_made(tracking_uri)
        return f"{path} will be made by the first search"
    done = []
    if relocate:
        with tracking.open_store(tracking_uri, files=False, upgrade=upgrade) as store:
            changed = tracking.relocate(store)
        done.append(f"{changed} addresses of files written anew" if changed else "it was not moved")
    with tracking.open_store(tracking_uri, upgrade=upgrade) as store:
        experiment_id = tracking.existing_experiment(store, None)
        if not store.can_be_written:
            raise TrackingError(
                f"{store.public_uri} can be read but not written by this user: `runs`, `best`, "
                "`report`, `predict` and `ui` work, `search`, `train` and `promote` do not."
            )
        tracking.adoptable_run(store, "search")
        place = tracking.try_artifacts(store, experiment_id)
        done.append(
            "where files are kept is known after a first search"
            if place is None
            else f"files are written to, read from and removed from {place}"
        )
        return f"{store.public_uri} can be reached; {', '.join(done)}"


def _disk() -> str:
    free = shutil.disk_usage(".").free / 2**30
    if free < _ENOUGH_FREE_GIB:
        raise FmnistTrackingError(
            f"{free:.1f} GiB free in the working folder; a search wants {_ENOUGH_FREE_GIB:.0f} GiB."
        )
    return f"{free:.1f} GiB free in the working folder"


def prepare_ui(
    *, host: str, port: int, tracking_uri: str | None, echo: Echo
) -> tuple[list[str], dict[str, str]] | None:
    """Return the command that serves MLflow's own page on the store, and its environment.

    `echo` is called with the addresses of the page. Of a server, which has a page of its own, None
    is returned.

    Raises:
        ConfigError: the port is taken.
        TrackingError: there is no store yet, or it cannot be reached.
    """
    with tracking.open_store(tracking_uri, files=False) as store:
        uri, latest = store.uri, tracking.latest_search(store)
    is_server = uri.startswith(("http://", "https://"))
    page = store.public_uri.rstrip("/") if is_server else f"http://{host}:{port}"
    if not is_server:
        try:
            socket.create_server((host, port)).close()
        except OSError as error:
            raise ConfigError(
                f"Cannot listen on port {port} of {host}: {error.strerror}. Choose others with "
                f"{setting('port')}, {setting('host')}."
            ) from None
    echo(f"MLflow's page for {store.public_uri}: {page}")
    if latest is not None:
        echo(f"All searches: {page}/{tracking.table_address(latest.experiment_id)}")
        search = tracking.run_address(latest.experiment_id, latest.run_id)
        echo(f"The latest search: {page}/{search}")
    if is_server:
        return None
    echo("Ctrl-C stops it.")
    environment = {
        # MLflow's page starts seven processes for jobs that nothing here submits.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",  # of MLflow's own code, once a process
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,  # a command line is for all to read
    }
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    return command, environment
