import os
from pathlib import Path

import pytest

from fmnist_tracking.files import write_file


@pytest.mark.parametrize("kind", ["link", "link that leads nowhere", "hard link", "file", "none"])
def test_a_link_in_a_file_s_place_is_replaced_not_followed(tmp_path: Path, kind: str) -> None:
    precious, path = tmp_path / "precious", tmp_path / "index.html"
    precious.write_text("mine")
    if kind.startswith("link"):
        path.symlink_to(precious if kind == "link" else tmp_path / "nowhere")
    elif kind == "hard link":
        path.hardlink_to(precious)
    elif kind == "file":
        path.write_text("before")
    mask = os.umask(0o027)
    try:
        write_file(path, b"the ", b"page")
    finally:
        os.umask(mask)
    assert (path.read_text(), path.is_symlink()) == ("the page", False)
    assert path.stat().st_mode & 0o777 == 0o640
    assert precious.read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"precious", "index.html"}


def test_a_folder_in_a_file_s_place_is_left(tmp_path: Path) -> None:
    (tmp_path / "index.html").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "index.html", b"")
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
