"""What of a person and a machine is recorded or sent, and what is not."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import TINY
from fmnist_tracking.data import Dataset
from fmnist_tracking.redact import without_home

LOGIN = "annalogin"
# Where MLflow does not look whether it is tested.
WATCHED = ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS")


@dataclass
class Proxy:
    """Stands between a process and the world; notes what is asked for, and refuses it."""

    server: socket.socket
    asked: list[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(4096).decode(errors="replace").split("\r")[0])


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = Proxy(server, [])
        threading.Thread(target=found.serve, daemon=True).start()
        yield found
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def home(tmp_path: Path, dataset: Dataset) -> Path:
    """A home folder, with the data and a folder to work in."""
    folder = tmp_path / LOGIN
    shutil.copytree(dataset.source, folder / "data")
    (folder / "work").mkdir()
    return folder


def run(home: Path, cache: Path, *words: str, **variables: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in WATCHED}
    environment |= {"HOME": str(home), "FMNIST_CACHE_DIR": str(cache), **variables}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=home / "work",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr


def recorded(home: Path) -> list[str]:
    """All that the runs of a store hold, but the addresses of their files."""
    with sqlite3.connect(home / "work" / "mlflow.db") as rows:
        texts = [str(row) for row in rows.execute("SELECT * FROM datasets")]
        for table in ("tags", "params", "experiment_tags"):
            texts += [f"{k}={v}" for k, v in rows.execute(f"SELECT key, value FROM {table}")]
        texts += [
            f"{k}={v}" for k, v in rows.execute("SELECT tag_key, tag_value FROM logged_model_tags")
        ]
    return texts


@pytest.mark.slow
def test_nothing_that_is_handed_on_names_the_home_folder(home: Path, cache: Path) -> None:
    program = ("-m", "fmnist_tracking")
    run(home, cache, *program, "search", *TINY, "--data-dir", str(home / "data"))
    store = f"sqlite:///{home / 'work' / 'mlflow.db'}"
    words = ("--run-id", "latest", "--data-dir", str(home / "data"), "--tracking-uri", store)
    run(home, cache, *program, "report", *words)
    texts = recorded(home)
    assert f"fmnist.dataset=Fashion-MNIST (~{os.sep}data)" in texts
    assert not [text for text in texts if LOGIN in text]
    files = [path for path in (home / "work").rglob("*.[!p]*") if path.is_file()]
    named = {path.name for path in files if LOGIN in path.read_text(errors="replace")}
    assert named <= {"mlflow.db", "MLmodel"}  # MLflow's own
    page = next((home / "work" / "reports").rglob("index.html")).read_text()
    assert "697249e9d1e8" in page
    assert "--data-dir data" in page


@pytest.mark.slow
@pytest.mark.parametrize("asks", [False, True])
def test_mlflow_s_telemetry_is_off_unless_a_person_wants_it(
    home: Path, cache: Path, proxy: Proxy, asks: bool
) -> None:
    wanted = {"MLFLOW_DISABLE_TELEMETRY": "false"} if asks else {}
    run(home, cache, "-m", "fmnist_tracking", "search", *TINY, HTTPS_PROXY=proxy.address, **wanted)
    assert any("telemetry" in line for line in proxy.asked) == asks
    assert asks or not proxy.asked
    assert (home / ".config" / "mlflow" / "telemetry.json").exists() == asks


@pytest.mark.slow
def test_calls_send_no_telemetry_and_leave_the_program_s_setting(
    home: Path, cache: Path, proxy: Proxy
) -> None:
    (home / "work" / "program.py").write_text(
        "import os\n"
        "import fmnist_tracking as ft\n"
        "if __name__ == '__main__':\n"
        "    ft.train(limit=600, epochs=1, filters=4, strides=2, hidden_units=8)\n"
        "    assert 'MLFLOW_DISABLE_TELEMETRY' not in os.environ\n"
    )
    run(home, cache, "program.py", HTTPS_PROXY=proxy.address)
    assert proxy.asked == []


def test_the_home_folder_is_a_tilde_where_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    for text, shown in (
        ("/home/ann", "~"),
        ("in '/home/ann/my data'", "in '~/my data'"),
        ("sqlite:////home/ann/mlflow.db", "sqlite:///~/mlflow.db"),
        ("/home/anna/data", "/home/anna/data"),
        ("/mnt/home/ann/data", "/mnt/home/ann/data"),
    ):
        assert without_home(text) == shown
    monkeypatch.setenv("HOME", "/")
    assert without_home("/data") == "/data"
