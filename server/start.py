"""Start a tracking server for several people: MLflow with passwords, on PostgreSQL.

`make server`, or `python server/start.py` in an environment with `pip install '.[server]'`.
See docs/server.md. Everything is kept in one folder; Ctrl-C or SIGTERM stops the server.
"""

import argparse
import contextlib
import ctypes
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import psutil
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import OperationalError

STATE = Path(__file__).resolve().parent / "state"
LOOPBACK = "127.0.0.1"
OWNER = "fmnist"
RUNS, USERS = "mlflow", "mlflow_users"  # databases
# Where packages put the programs of PostgreSQL that are not on the PATH: Debian, Fedora, Homebrew.
PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
START_SECONDS = 180
STOP_SECONDS = 30
_PR_SET_PDEATHSIG = 1


class CannotStart(Exception):
    """What a person can put right, in a line."""


def main() -> int:
    """Start both servers, say so, and stop both when told to."""
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _require_packages()
        _require_free(options.host, options.port)
        with (
            _state_folder(options.state) as state,
            _postgres(state, options.postgres_port) as (database, postgres),
            _mlflow(state, database, options) as (address, mlflow),
        ):
            _tell(state, address)
            while postgres.poll() is None and mlflow.poll() is None:
                time.sleep(0.2)
            ended = "postgres" if postgres.poll() is not None else "mlflow"
            raise CannotStart(f"{ended} has ended by itself. {_last_words(state, ended)}")
    except CannotStart as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", flush=True)
        return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", type=Path, default=STATE, help="folder that keeps everything")
    parser.add_argument("--host", default=LOOPBACK, help="address MLflow listens on")
    parser.add_argument("--port", type=int, default=5000, help="port MLflow listens on")
    parser.add_argument("--workers", type=int, default=2, help="processes that answer requests")
    parser.add_argument(
        "--postgres-port", type=int, default=0, help="on 127.0.0.1; by default one that is free"
    )
    parser.add_argument(
        "--allowed-hosts", help="names this server is called by, if not localhost; MLflow's option"
    )
    return parser.parse_args()


def _interrupt(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the rest is for stopping
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _require_packages() -> None:
    missing = [name for name in ("mlflow", "psycopg", "flask_wtf") if find_spec(name) is None]
    if missing:
        raise CannotStart(
            f"The Python packages {', '.join(missing)} are not installed. Install them: "
            "pip install '.[server]'"
        )


def _require_free(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise CannotStart(
            f"Cannot listen on port {port} of {host}: {os.strerror(error.errno or 0)}. Choose "
            "others with --port, --host."
        ) from None


@contextlib.contextmanager
def _state_folder(folder: Path) -> Iterator[Path]:
    folder = Path(os.path.realpath(folder))
    choose = "Name a new or an empty folder with --state."
    try:
        if not os.path.lexists(folder):
            folder.mkdir(parents=True)
            # PostgreSQL, as a user of its own, has to pass through; all else in it is closed.
            folder.chmod(0o711 if _database_user() else 0o700)
        present = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise CannotStart(
            f"The folder {folder} cannot be used: {error.strerror}. {choose}"
        ) from None
    if present - {"secrets.json.new"} and "secrets.json" not in present:
        raise CannotStart(f"{folder} holds other things than a server's. {choose}")
    if not os.access(folder, os.W_OK):
        raise CannotStart(f"The folder {folder} cannot be written. {choose}")
    yield folder


def _database_user() -> str | None:
    """Who PostgreSQL runs as, where that cannot be the one who starts it."""
    if os.geteuid() != 0:
        return None
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _secrets(state: Path) -> dict[str, str]:
    """The user, the passwords and the key of this server, made at its first start."""
    file = state / "secrets.json"
    if file.exists():
        known: dict[str, str] = json.loads(file.read_text())
        return known
    made = {
        "username": os.environ.get("MLFLOW_AUTH_ADMIN_USERNAME") or "admin",
        "password": os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD") or secrets.token_urlsafe(18),
        "database_password": secrets.token_urlsafe(32),
        "session_key": secrets.token_urlsafe(32),
    }
    _write_closed(file, json.dumps(made, indent=2) + "\n")
    return made


def _write_closed(file: Path, content: str) -> None:
    """Write a file that only its owner can read, in one step."""
    new = file.with_name(file.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(content)
    new.replace(file)


@contextlib.contextmanager
def _postgres(state: Path, port: int) -> Iterator[tuple[URL, "subprocess.Popen[bytes]"]]:
    """PostgreSQL on loopback: where its databases are, and its process."""
    programs = _postgres_programs()
    password = _secrets(state)["database_password"]
    cluster = state / "postgres"
    if not cluster.exists():
        _make_cluster(programs, cluster, password)
    _require_not_running(cluster)
    port = port or _free_port()
    command = [str(programs / "postgres"), "-D", str(cluster), "-c", f"port={port}"]
    command += ["-c", f"listen_addresses={LOOPBACK}", "-c", "unix_socket_directories="]
    server = URL.create("postgresql+psycopg", OWNER, password, LOOPBACK, port, "postgres")

    def ready() -> bool:
        try:
            _make_databases(server)
        except OperationalError:
            return False
        return True

    with _running(state, "postgres", command, user=_database_user()) as process:
        _wait(state, "postgres", process, ready)
        yield server, process


def _postgres_programs() -> Path:
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    places = [place for pattern in PLACES for place in Path("/").glob(pattern.lstrip("/"))]
    places = [place for place in places if (place / "initdb").exists()]
    if not places:
        raise CannotStart(
            "PostgreSQL is not installed. Install it (Debian, Ubuntu: apt-get install "
            "postgresql), or put the folder with its initdb on the PATH."
        )
    return max(places, key=lambda place: [int(n) for n in re.findall(r"\d+", str(place))])


def _make_cluster(programs: Path, cluster: Path, password: str) -> None:
    """Make it beside its place, and put it there when it is whole."""
    user = _database_user()
    new, word = cluster.with_name("postgres.new"), cluster.with_name("postgres.password")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    _write_closed(word, password + "\n")
    if user:
        shutil.chown(new, user)
        shutil.chown(word, user)
    command = [str(programs / "initdb"), "--pgdata", str(new), "--pwfile", str(word)]
    command += ["--username", OWNER, "--auth", "scram-sha-256"]
    command += ["--encoding", "UTF8", "--locale", "C", "--no-instructions"]
    done = subprocess.run(command, user=user, cwd="/", capture_output=True, text=True)
    word.unlink()
    if done.returncode != 0:
        shutil.rmtree(new, ignore_errors=True)
        passable = (
            f" It runs as the user {user}, who must be able to reach that folder: name another "
            "with --state, or start this as an ordinary user."
        )
        raise CannotStart(
            f"initdb could not make a PostgreSQL cluster in {cluster.parent}: "
            f"{(done.stderr.strip().splitlines() or ['no reason given'])[-1]}."
            f"{passable if user else ''}"
        )
    new.rename(cluster)


def _require_not_running(cluster: Path) -> None:
    for _ in range(10):  # it may be about to end
        serving = [process.pid for process in psutil.process_iter() if _serves(process, cluster)]
        if not serving:
            break
        time.sleep(1)
    else:
        raise CannotStart(
            f"The PostgreSQL of {cluster.parent} is running already, as process {min(serving)}. "
            f"Use the server it belongs to, or stop it: kill -INT {min(serving)}"
        )
    _remove_lock_of_another(cluster)


def _serves(process: psutil.Process, cluster: Path) -> bool:
    """Whether it is a PostgreSQL of this cluster, or what is left of one."""
    try:
        if process.name() != "postgres":
            return False
        # Its processes all work in the cluster's folder, in whatever way it was started.
        return str(cluster) in process.cmdline() or process.cwd() == os.path.realpath(cluster)
    except psutil.Error:  # it has ended, or is another user's
        return False


def _remove_lock_of_another(cluster: Path) -> None:
    """Remove a lock whose process was killed, and whose number another process has now.

    PostgreSQL would take that one for its own. Other locks of the dead it removes by itself.
    """
    lock = cluster / "postmaster.pid"
    with contextlib.suppress(OSError, ValueError, IndexError):
        if psutil.pid_exists(int(lock.read_text().splitlines()[0])):
            lock.unlink()


def _make_databases(server: URL) -> None:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            known = set(connection.scalars(text("SELECT datname FROM pg_database")))
            for name in {RUNS, USERS} - known:
                connection.execute(text(f"CREATE DATABASE {name}"))
    finally:
        engine.dispose()


@contextlib.contextmanager
def _mlflow(
    state: Path, server: URL, options: argparse.Namespace
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """MLflow's server: its address, and its process."""
    known = _secrets(state)
    runs, users = (
        server.set(database=name).render_as_string(hide_password=False) for name in (RUNS, USERS)
    )
    _write_closed(state / "database.uri", runs + "\n")
    _write_closed(
        state / "auth.ini",
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {users}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # A password is hashed at each request otherwise, slowly, as it should be: a request then
        # took 216 ms on two cores, against 56 ms.
        "auth_cache_ttl_seconds = 60\n",
    )
    artifacts = state / "artifacts"
    artifacts.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--host", options.host, "--port", str(options.port)]
    command += ["--workers", str(options.workers), "--artifacts-destination", str(artifacts)]
    if options.allowed_hosts:
        own = ",".join((f"{LOOPBACK}:*", "localhost:*", options.allowed_hosts))
        command += ["--allowed-hosts", own]  # a list replaces MLflow's own
    environment = {
        # Not on the command line, which is for all to read.
        "MLFLOW_BACKEND_STORE_URI": runs,
        "MLFLOW_AUTH_CONFIG_PATH": str(state / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": known["username"],
        "MLFLOW_AUTH_ADMIN_PASSWORD": known["password"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": known["session_key"],
        # Seven processes for jobs that nothing here submits.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    local = LOOPBACK if options.host in ("0.0.0.0", "::") else options.host
    address = f"http://{local}:{options.port}"

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as page:
                return bool(page.status == 200)
        except OSError:
            return False

    with _running(state, "mlflow", command, environment=environment) as process:
        _wait(state, "mlflow", process, ready)
        _write_closed(
            state / "client.env",
            f"export MLFLOW_TRACKING_URI={address}\n"
            f"export MLFLOW_TRACKING_USERNAME={shlex.quote(known['username'])}\n"
            f"export MLFLOW_TRACKING_PASSWORD={shlex.quote(known['password'])}\n",
        )
        yield address, process


@contextlib.contextmanager
def _running(
    state: Path,
    name: str,
    command: list[str],
    *,
    environment: dict[str, str] | None = None,
    user: str | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is stopped when the block is left, in whatever way."""
    as_user: dict[str, Any] = {}
    if user:
        as_user = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    with (state / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd="/" if user else state,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
            **as_user,
        )
    try:
        yield process
    finally:
        # To PostgreSQL this says: now, whoever is connected.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    """Have this process stopped when the one that started it is killed; Linux can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _wait(
    state: Path, name: str, process: "subprocess.Popen[bytes]", ready: Callable[[], bool]
) -> None:
    end = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise CannotStart(f"{name} did not start. {_last_words(state, name)}")
        time.sleep(0.2)


def _last_words(state: Path, name: str) -> str:
    log = state / f"{name}.log"
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{log} ends with: {lines[-1].strip()}" if lines else f"See {log}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


def _tell(state: Path, address: str) -> None:
    environment = state / "client.env"
    shown = str(environment.resolve())  # for use in another terminal, wherever that is
    print(
        f"MLflow at {address}, user {_secrets(state)['username']}; the password is in {shown}\n"
        f"Use it:  . {shlex.quote(shown)} && fmnist-track search\n"
        "Ctrl-C stops it.",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
