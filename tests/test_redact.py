import logging
import sys
import traceback
from pathlib import Path

import pytest

from conftest import SMALL, Call
from fmnist_tracking.console import lines_to
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.logs import PlainFormatter, show_defect
from fmnist_tracking.redact import (
    LONGEST_NAME,
    bare,
    printable,
    remember,
    to_be_typed,
    without_user,
)
from fmnist_tracking.tracking import Store, fail_trial
from runs import TRIAL, start_trial

# Addresses at which nobody listens, with a password that says "hush".
SECRETIVE = [
    "postgresql://127.0.0.1:1/db?user=u&password=hush-hush",
    "postgresql://127.0.0.1:1/db?user=u&PassWord=hush-hush&sslpassword=hush",
    "postgresql://u:hush/hush@127.0.0.1:1/db",
    "postgresql://u:hush?hush@127.0.0.1:1/db",
    "postgresql://u:1/hush@127.0.0.1:1/db",
    "postgresql://u:hush@hush@127.0.0.1:1/db",
    "postgresql://u:hush%2Fhush@127.0.0.1:1/db",
    "mysql://u:hush#hush@127.0.0.1:1/db",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhush",
    "nothing://u:hush/hush@127.0.0.1:1/db",
    "u:hush-hush@127.0.0.1:5000",
    "http://u:hush/hush@127.0.0.1:1",
    "http://u:hush hush@127.0.0.1:1",
    "http://127.0.0.1:1/?access_token=hush-hush&x=1",
    "https://127.0.0.1:1/?x=1&X-Amz-Signature=hush&client_secret=hush",
    "http://u:123/hush-hush@127.0.0.1:1",
    "http:/u:hush-hush@127.0.0.1:1",
    "//u:hush-hush@127.0.0.1:1",
    "http//u:hush-hush@127.0.0.1:1",
    "C:\\u:hush-hush@host",
    "postgresql://127.0.0.1:1/db?user=u&pass%77ord=hush-hush",
    "postgresql://127.0.0.1:1/db?options=-c%20x.password%3Dhush-hush",
    "http://127.0.0.1:1/?auth=hush-hush",
    "http://127.0.0.1:1/#access_token=hush-hush",
]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:secret@host:5000", "http://***@host:5000"),
        ("postgresql://me:p@ss@host/db", "postgresql://***@host/db"),
        ("--tracking-uri=http://ann@host/a@b", "--tracking-uri=http://***@host/a@b"),
        ("from http://a:b@c to http://d:e@f/g", "from http://***@c to http://***@f/g"),
        ("http://ann:secret@[::1", "http://***@[::1"),
        ("http://host/a@b", "http://host/a@b"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("models:/fashion-mnist@champion", "models:/fashion-mnist@champion"),
        ("it's at 'ann:hush@host'", "it's at '***@host'"),
        ("/mnt/user=ann/data", "/mnt/user=ann/data"),
        ("host=h user=ann password=hush x=1", "host=h user=*** password=*** x=1"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("an address ann@host", "an address ann@host"),
        ("http://host:5000/a@b/c?d", "http://host:5000/a@b/c?d"),
        ("connect(password='hush', x=1)", "connect(password='***', x=1)"),
        ('{"user": "ann", "api_key": "hush"}', '{"user": "ann", "api_key": "***"}'),
        ("DRIVER=x;PWD=hush;", "DRIVER=***"),
        ("Authorization: Bearer hush.hush", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic aHVzaA=='}", "{'Authorization': 'Basic ***'}"),
        ("the token = 3 and a key: value", "the token = 3 and a key: value"),
    ],
)
def test_nobody_s_name_and_password_are_left(text: str, shown: str) -> None:
    assert without_user(text) == shown


def test_a_bare_address_can_be_used_with_another_name_and_password() -> None:
    assert bare("https://me:pass@word@host:5000/a") == "https://host:5000/a"
    assert bare("postgresql+psycopg://me@host/db") == "postgresql+psycopg://host/db"
    assert bare("http://me:hush@host/a@b") == "http://host/a@b"
    for text in ("sqlite:////home/me/my%20project/mlflow.db", "http://127.0.0.1:5000"):
        assert bare(text) == text


@pytest.mark.parametrize("address", SECRETIVE)
@pytest.mark.parametrize("words", [("doctor",), ("doctor", "--json"), ("runs",)], ids=" ".join)
def test_no_command_shows_a_secret_of_the_store_s_address(
    call: Call, words: tuple[str, ...], address: str
) -> None:
    status, out, err = call(*words, "--tracking-uri", address)
    assert status == 1
    assert "hush" not in out + err


@pytest.mark.parametrize("address", SECRETIVE)
def test_no_address_with_a_secret_is_suggested(address: str) -> None:
    assert "hush" not in str(to_be_typed(address))


@pytest.mark.parametrize(
    "variable", ["MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "MY_TOKEN"]
)
def test_secrets_of_the_environment_are_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "hush/hush+42")
    remember("")
    assert printable("got hush/hush+42, hush%2Fhush%2B42") == "got ***, ***"


def test_a_proxy_s_password_without_a_scheme_is_a_secret_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "ann:hush-42@proxy:8080")
    remember("")
    assert printable("with hush-42") == "with ***"


@pytest.mark.parametrize("text", ["(a:", "=a:", "a://", "a@", "a=", "'a':'", "authorization:"])
def test_a_very_long_text_is_looked_through(text: str) -> None:
    """It would take an hour if the time grew with the square of the length."""
    assert without_user(text * 300_000 + "@").endswith("@")


def test_a_short_password_is_a_word_of_its_own() -> None:
    remember("postgresql://mlflow:mlflow@host/db")
    assert printable("(mlflow) at mlflow.db in /mlflows") == "(***) at ***.db in /mlflows"


def test_a_secret_in_an_error_is_not_recorded(store: Store) -> None:
    run_id = start_trial(store, SMALL, None)
    remember("postgresql://u:hush-hush@host/db")
    try:
        try:
            raise ValueError("cannot reach postgresql://u:hush-hush@host/db")
        except ValueError as error:
            raise OSError("with the password 'hush-hush'") from error
    except OSError as error:
        line, trace = str(error), "".join(traceback.format_exception(error))
    fail_trial(store, "0", run_id, TRIAL, line, trace)
    kept = store.client.get_run(run_id)
    files = store.client.download_artifacts(run_id, "traceback.txt")
    assert "ValueError: cannot reach postgresql://***@host/db" in Path(files).read_text()
    assert "hush" not in Path(files).read_text() + str(kept.to_dictionary())


def test_a_log_record_is_a_line_without_secrets() -> None:
    remember("postgresql://u:hush-hush@host/db")
    try:
        raise ValueError("hush-hush\x1b[2J")
    except ValueError:
        record = logging.LogRecord(
            "mlflow", logging.ERROR, "", 1, "%s\x1b[2J", ("a\nb hush-hush",), sys.exc_info()
        )
    first, *others = PlainFormatter("%(message)s").format(record).splitlines()
    assert first == r"a\nb ***\x1b[2J"
    assert others[0] == "Traceback (most recent call last):"
    assert others[-1] == r"ValueError: ***\x1b[2J"


def test_a_defect_s_traceback_has_no_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    remember("postgresql://u:hush-hush@host/db")
    try:
        raise KeyError("hush-hush") from ValueError("http://u:hush-hush@host\x1b[2J")
    except KeyError as error:
        show_defect(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert "KeyError: '***'" in shown
    assert r"ValueError: http://***@host\x1b[2J" in shown
    assert "hush" not in shown


def test_a_program_is_told_lines_and_errors_that_steer_nothing() -> None:
    told: list[str] = []
    lines_to(told.append)("a\x1b[2J at http://u:hush@host")
    error = ConfigError("b\x1b[2J at http://u:hush@host")
    assert [*told, str(error)] == [rf"{x}\x1b[2J at http://***@host" for x in "ab"]


def test_what_is_shown_is_not_endless() -> None:
    assert printable("x" * 5000) == "x" * LONGEST_NAME + "…"
    assert len(printable("\x1b" * 5000)) == LONGEST_NAME + 1
    assert printable("a\u202eb\u2066c\x9bd\0\te\nf") == r"a\u202eb\u2066c\x9bd\x00\te\nf"
