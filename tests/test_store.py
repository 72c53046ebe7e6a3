import logging
import os
from pathlib import Path

import mlflow
import pytest

from fmnist_tracking.errors import TrackingError
from fmnist_tracking.tracking import open_store

LOGGERS = ("alembic", "mlflow.tracking", "mlflow.utils", "mlflow.store.db.utils")


def process() -> tuple[dict[str, str], list[int], str]:
    """What a store's opening may change of this process, and must put back."""
    levels = [logging.getLogger(name).level for name in LOGGERS]
    return dict(os.environ), levels, mlflow.get_tracking_uri()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("own", [None, "sqlite:////somewhere/else.db"])
def test_a_store_that_is_closed_leaves_the_process_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, fails: bool
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    if own is not None:
        mlflow.set_tracking_uri(own)
    logging.getLogger("alembic").setLevel(logging.INFO)
    before = process()
    uri = f"sqlite:///{tmp_path / 'missing' / 'mlflow.db' if fails else tmp_path / 'own.db'}"
    if fails:
        with pytest.raises(TrackingError), open_store(uri, access="create"):
            pass
    else:
        with open_store(uri, access="create") as store:
            assert mlflow.get_tracking_uri() == store.uri != before[2]
            assert process() != before
    assert process() == before


def test_the_password_in_an_address_is_gone_when_the_store_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    with pytest.raises(TrackingError), open_store("http://ann:secret@127.0.0.1:9"):
        pass
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


def test_a_path_that_is_too_long_for_sqlite_is_told_at_once(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*("d" * 200 for _ in range(3)))
    folder.mkdir(parents=True)
    with (
        pytest.raises(TrackingError, match="SQLite takes paths of 504 bytes"),
        open_store(f"sqlite:///{folder}/mlflow.db", access="create"),
    ):
        pass
    assert list(folder.iterdir()) == []
