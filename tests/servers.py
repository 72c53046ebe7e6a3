"""Web servers on free ports, each in a process group of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from processes import processes_of, wait_for


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
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
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
