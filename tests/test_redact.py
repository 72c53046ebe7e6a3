import pytest

from fmnist_tracking.redact import bare, without_user


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:secret@host:5000", "http://***@host:5000"),
        ("postgresql://me:p@ss@host/db", "postgresql://***@host/db"),
        ("--tracking-uri=http://ann@host/a@b", "--tracking-uri=http://***@host/a@b"),
        ("from http://a:b@c to http://d:e@f/g", "from http://***@c to http://***@f/g"),
        ("http://ann:secret@[::1", "http://***@[::1"),
        ("http://host/a@b", "http://host/a@b"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("an address ann@host", "an address ann@host"),
    ],
)
def test_nobody_s_name_and_password_are_left(text: str, shown: str) -> None:
    assert without_user(text) == shown


def test_a_bare_address_can_be_used_with_another_name_and_password() -> None:
    assert bare("https://me:pass@word@host:5000/a") == "https://host:5000/a"
    assert bare("postgresql+psycopg://me@host/db") == "postgresql+psycopg://host/db"
    for text in ("sqlite:////home/me/my%20project/mlflow.db", "http://127.0.0.1:5000"):
        assert bare(text) == text
