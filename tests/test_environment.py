import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fmnist_tracking
from fmnist_tracking import environment

PACKAGE = Path(fmnist_tracking.__file__).parent


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.run(
        ["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of its own, with this package in it."""
    folder = tmp_path / "repository"
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("__pycache__\n")
    git(folder, "init", "-q", "-b", "trunk")
    return folder


def code_of(folder: Path) -> dict[str, object]:
    """What a process that runs the package of that folder says of its code."""
    program = (
        "import dataclasses, json\n"
        "from fmnist_tracking import environment\n"
        "print(json.dumps(dataclasses.asdict(environment.code())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, check=True, capture_output=True, text=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_code_in_a_repository(repository: Path) -> None:
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "all of it")
    commit = git(repository, "rev-parse", "HEAD")
    clean = code_of(repository)
    assert (clean["commit"], clean["branch"], clean["dirty"]) == (commit, "trunk", False)
    assert clean["version"] == fmnist_tracking.__version__

    (repository / "notes.txt").write_text("beside the package")
    assert code_of(repository) == clean

    with (repository / PACKAGE.name / "plots.py").open("a") as file:
        file.write("# another line\n")
    changed = code_of(repository)
    assert changed == {**clean, "dirty": True}  # figures do not change a trial's numbers

    with (repository / PACKAGE.name / "model.py").open("a") as file:
        file.write("# another line\n")
    assert code_of(repository)["sha256"] != clean["sha256"]


def test_code_that_lies_in_a_repository_without_being_of_it(repository: Path) -> None:
    (repository / "other.txt").write_text("something else")
    git(repository, "add", "other.txt")
    git(repository, "commit", "-q", "-m", "not the package")
    found = code_of(repository)
    assert (found["commit"], found["branch"], found["dirty"]) == (None, None, False)


def test_the_environment_can_be_written_and_says_what_matters() -> None:
    found = json.loads(json.dumps(environment.describe(3)))
    assert found["python"].endswith(platform.python_version())
    assert found["machine"]["threads"] == 3
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["processor"]
    assert found["settings"]["KERAS_BACKEND"] == "tensorflow"
    for name in ("tensorflow", "keras", "numpy", "mlflow"):
        assert found["packages"][name]
    assert found["code"]["sha256"] == environment.code().sha256
