import pytest

from fmnist_tracking.addresses import without_user


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
