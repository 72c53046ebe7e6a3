"""Web servers, and a database, on free ports, each in a process group of its own."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from processes import processes_of, wait_for

COMPOSE = Path(__file__).parent.parent / "server" / "compose.yaml"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving(port: int, folder: Path, *command: str) -> Iterator["subprocess.Popen[str]"]:
    """A web server in a process group of its own, once it answers."""
    server = subprocess.Popen(
        [sys.executable, "-m", *command, "--port", str(port)],
        cwd=folder,
        # One process that answers: three more would import MLflow for nothing.
        env={
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_WORKERS": "1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def answers() -> bool:
        assert server.poll() is None, server.stdout and server.stdout.read()
        return _answers(f"http://127.0.0.1:{port}")

    try:
        wait_for(answers, seconds=120)
        yield server
    finally:
        if server.poll() is None:
            server.terminate()
            server.communicate(timeout=60)


@contextlib.contextmanager
def model_server(hint: str, folder: Path) -> Iterator[str]:
    """What `promote` says comes next, as it stands; gives the address it answers at."""
    port = free_port()
    command = hint.removeprefix("Next: ").replace("--port 5001", f"--port {port}")
    with (folder / "serve.log").open("w+") as log:
        server = subprocess.Popen(
            ["sh", "-c", command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it starts another process, which must end with it
        )

        def answers() -> bool:
            assert server.poll() is None, (folder / "serve.log").read_text()
            return _answers(f"http://127.0.0.1:{port}/ping")

        try:
            wait_for(answers, seconds=180)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            wait_for(lambda: not processes_of(server.pid), seconds=20)


def post(address: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}/invocations",
        data=json.dumps(content).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as page:
            return bool(page.status == 200)
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Composed:
    """What `server/compose.yaml` starts: where it is, its secrets, and the folder of its files."""

    address: str
    admin_password: str
    database: str
    database_password: str
    folder: Path


@contextlib.contextmanager
def composed(folder: Path) -> Iterator[Composed]:
    """MLflow's server as `server/compose.yaml` starts it; only addresses, folders, secrets differ.

    Args:
        folder: an empty folder that every user can reach.
    """
    port, database_port = free_port(), free_port()
    plan = COMPOSE.read_text()
    values = {name: secrets.token_hex(24) for name in re.findall(r"\$\{(\w+):\?", plan)}
    replaced: dict[str, str | Callable[[re.Match[str]], str]] = {
        r"\$\{(\w+)(?::\?[^}]*)?\}": lambda found: values[found[1]],
        r"\$\{\w+:-([^}]*)\}": lambda found: found[1],  # its default
        r"@postgres:5432\b": f"@127.0.0.1:{database_port}",
        r"--host=0\.0\.0\.0\b": "--host=127.0.0.1",
        r"--port=5000\b": f"--port={port}",
        r"(=|: )/(artifacts|auth\.ini)$": rf"\1{folder}/\2",
    }
    for theirs, ours in replaced.items():
        plan, count = re.subn(theirs, ours, plan, flags=re.MULTILINE)
        assert count, theirs
    project = yaml.safe_load(plan)
    mlflow = project["services"]["mlflow"]
    others = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    (folder / "auth.ini").write_text(project["configs"]["auth"]["content"])
    with (
        _postgres(folder, database_port, values["POSTGRES_PASSWORD"]),
        _running(
            [sys.executable, "-m", *mlflow["command"]],
            folder / "mlflow.log",
            lambda: _answers(f"http://127.0.0.1:{port}/health"),
            cwd=folder,
            env={**others, **mlflow["environment"]},
        ),
    ):
        yield Composed(
            address=f"http://127.0.0.1:{port}",
            admin_password=values["MLFLOW_AUTH_ADMIN_PASSWORD"],
            database=mlflow["environment"]["MLFLOW_BACKEND_STORE_URI"],
            database_password=values["POSTGRES_PASSWORD"],
            folder=folder,
        )


@contextlib.contextmanager
def _postgres(folder: Path, port: int, password: str) -> Iterator[None]:
    """A new PostgreSQL with the database `mlflow`, from Debian's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))
    if not found and not os.environ.get("CI"):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    programs, cluster, word = found[-1], folder / "postgres", folder / "postgres-password"
    cluster.mkdir(mode=0o700)
    word.write_text(password)
    how: dict[str, Any] = {"cwd": "/", "env": {**os.environ, "PGPASSWORD": password}}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        how |= {"user": "postgres", "group": "postgres", "extra_groups": ()}
        shutil.chown(cluster, "postgres")
    options = (f"--pgdata={cluster}", "--username=mlflow", f"--pwfile={word}")
    initdb = [str(programs / "initdb"), *options, "--auth=scram-sha-256"]
    subprocess.run(initdb, check=True, capture_output=True, **how)
    where = ("--host=127.0.0.1", f"--port={port}", "--username=mlflow")
    with _running(
        [programs / "postgres", "-D", cluster, f"--port={port}", "--unix_socket_directories="],
        folder / "postgres.log",
        lambda: not subprocess.run([programs / "pg_isready", "--quiet", *where]).returncode,
        **how,
    ):
        subprocess.run([programs / "createdb", *where, "mlflow"], check=True, **how)
        yield


@contextlib.contextmanager
def _running(
    command: list[str | Path], log: Path, is_ready: Callable[[], bool], **how: Any
) -> Iterator[None]:
    """A process in a group of its own from when it is ready on; interrupted at the end."""
    with log.open("w") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
            **how,
        )

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        return is_ready()

    try:
        wait_for(ready, seconds=180)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        wait_for(lambda: not processes_of(process.pid), seconds=20)
