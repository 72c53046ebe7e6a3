"""Servers that refuse or are none: one line, with the remedy, and never a password."""

import contextlib
import os
import ssl
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fmnist_tracking.cli import app as program
from fmnist_tracking.errors import TrackingError
from fmnist_tracking.tracking import Store, open_store
from fmnist_tracking.tracking.error_messages import is_passing, tracking_error
from fmnist_tracking.tracking.registry import ModelVersion, make_champion

SECRET = "p@ss word"
QUOTED = "p%40ss%20word"
VERSION = ModelVersion(
    name="fashion-mnist",
    version="1",
    run_id="r",
    val_accuracy=None,
    data_sha256=None,
    split=None,
    run_exists=True,
)


class Answer(BaseHTTPRequestHandler):
    """Answers all with one status and text; keeps what it was sent as a password."""

    status, text = 404, "<html>nothing here</html>"
    authorization: str | None = None

    def do_GET(self) -> None:
        type(self).authorization = self.headers.get("Authorization")
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.text.encode())

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def answering(
    status: int, text: str, certificate: Path | None = None
) -> Iterator[tuple[int, type[Answer]]]:
    handler = type("Handler", (Answer,), {"status": status, "text": text})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port, handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost that nobody has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *form)
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return file


def opened(uri: str) -> str:
    with pytest.raises(TrackingError) as caught, open_store(uri):
        pass
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    assert QUOTED not in text
    return text


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (404, "<html>nothing here</html>", "is not an MLflow server"),
        (501, "Unsupported method", "is not an MLflow server"),
        (200, "<html>welcome</html>", "is not an MLflow server"),
        (400, "The plain HTTP request was sent to HTTPS port", "If it speaks TLS, name it with"),
        (401, "who are you", "asks for a user name and a password (401). Set MLFLOW_TRACKING_U"),
        (403, "Permission denied", "does not let the user None do this (403)"),
        (403, "Invalid Host header - possible", "may not be called by that name (403)"),
        (502, "Bad gateway", "MLflow failed at http://127.0.0.1:"),
    ],
)
def test_a_server_that_answers_something_else(status: int, text: str, words: str) -> None:
    with answering(status, text) as (port, _):
        assert words in opened(f"http://127.0.0.1:{port}")


def test_the_name_that_was_refused_is_told() -> None:
    with answering(401, "who are you") as (port, handler):
        text = opened(f"http://ann:{QUOTED}@127.0.0.1:{port}")
        assert "does not accept the name 'ann' with the password given" in text
        assert handler.authorization == "Basic YW5uOnBAc3Mgd29yZA=="  # ann:p@ss word
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_tls_that_is_not_as_it_should_be(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(404, "", certificate) as (port, _):
        assert "If it speaks TLS, name it with https://" in opened(
            f"http://ann:{QUOTED}@127.0.0.1:{port}"
        )
        text = opened(f"https://ann:{QUOTED}@localhost:{port}")
        assert "is not trusted (self-signed certificate)" in text
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in text
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        assert "is not an MLflow server" in opened(f"https://localhost:{port}")
        text = opened(f"https://127.0.0.1:{port}")
        assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in text
    with answering(404, "") as (port, _):
        text = opened(f"https://127.0.0.1:{port}")
        assert "If the server speaks plain HTTP, name it with http://" in text


@pytest.mark.parametrize(
    ("status", "passing"), [(401, False), (403, False), (404, False), (429, True), (503, True)]
)
def test_artifacts_that_are_refused_are_not_waited_for(status: int, passing: bool) -> None:
    """MLflow passes on what requests raises, which is an OSError."""
    error = OSError("for url")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    assert is_passing(error) is passing


def test_a_password_in_a_message_of_mlflow_s_is_not_shown() -> None:
    error = MlflowException(f"API request to https://ann:{QUOTED}@host/api failed")
    assert str(tracking_error(f"https://ann:{QUOTED}@host", error)).endswith(
        "https://***@host: API request to https://***@host/api failed"
    )


@pytest.mark.parametrize("uri", ["http://[::1", "postgresql://ann:p@ss@[::1/db"])
def test_an_address_that_is_none(uri: str) -> None:
    text = opened(uri)
    assert text.startswith("Expected tracking_uri or MLFLOW_TRACKING_URI to be the address of")
    assert "ann" not in text
    assert "p@ss" not in text


def test_no_permission_for_a_registered_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment of one's own would not help."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "eve")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(403, "Permission denied") as (port, handler):
        monkeypatch.setattr(handler, "do_GET", _tell_the_version)
        uri = f"http://127.0.0.1:{port}"
        with pytest.raises(TrackingError) as caught:
            make_champion(Store(uri=uri, client=MlflowClient(uri)), VERSION)
    assert str(caught.value) == (
        f"The MLflow server at {uri} does not let the user 'eve' change the registered model "
        "'fashion-mnist' (403). Ask whoever runs it for the permission EDIT on that model, or "
        "promote under a name of your own, with name."
    )


def _tell_the_version(answer: Answer) -> None:
    answer.send_response(200)
    answer.end_headers()
    answer.wfile.write(b'{"model_version": {"name": "fashion-mnist", "version": "1"}}')


def test_a_password_on_the_command_line_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["fmnist-track", "search", "--limit", "600", "--fresh"]
    for address in (["--tracking-uri", "http://ann:secret@host:5000"],
                    ["--tracking-uri=http://ann:secret@host:5000"]):  # fmt: skip
        monkeypatch.setattr("sys.argv", [*words, *address, "--json"])
        assert program._how_to_resume() == (
            " Go on, with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD set, with: "
            "fmnist-track search --limit 600 --tracking-uri http://host:5000 --json"
        )
    monkeypatch.setattr("sys.argv", [*words, "--tracking-uri", "postgresql://ann:secret@host/x"])
    assert program._how_to_resume() == (
        " Go on, with MLFLOW_TRACKING_URI set to this store, with: fmnist-track search --limit 600"
    )
