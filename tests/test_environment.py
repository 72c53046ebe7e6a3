import json
import logging
import os
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


def code_of(folder: Path, **variables: str) -> dict[str, object]:
    """What a process that runs the package of that folder says of its code."""
    program = (
        "import dataclasses, json\n"
        "from fmnist_tracking import environment\n"
        "print(json.dumps(dataclasses.asdict(environment.code())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_code_in_a_repository(repository: Path) -> None:
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "all of it")
    commit = git(repository, "rev-parse", "HEAD")
    clean = code_of(repository)
    assert (clean["commit"], clean["branch"], clean["dirty"]) == (commit, "trunk", False)
    assert (clean["version"], clean["no_commit"]) == (fmnist_tracking.__version__, None)

    (repository / "notes.txt").write_text("beside the package")
    assert code_of(repository) == clean

    with (repository / PACKAGE.name / "plots.py").open("a") as file:
        file.write("# another line\n")
    changed = code_of(repository)
    assert changed == {**clean, "dirty": True}  # figures do not change a trial's numbers

    versions = repository / PACKAGE.name / "fingerprint.py"
    versions.write_text(versions.read_text().replace("TRAINING = 1", "TRAINING = 2"))
    assert code_of(repository)["sha256"] != clean["sha256"]


def test_code_that_lies_in_a_repository_without_being_of_it(repository: Path) -> None:
    (repository / "other.txt").write_text("something else")
    git(repository, "add", "other.txt")
    git(repository, "commit", "-q", "-m", "not the package")
    found = code_of(repository)
    assert (found["commit"], found["branch"], found["dirty"]) == (None, None, False)
    assert found["no_commit"] == environment.NOT_OF_IT


def test_code_that_lies_in_no_repository(repository: Path, tmp_path: Path) -> None:
    shutil.rmtree(repository / ".git")
    assert code_of(repository)["no_commit"] == environment.NO_REPOSITORY
    installed = repository / "lib" / "site-packages"
    installed.mkdir(parents=True)
    (repository / PACKAGE.name).rename(installed / PACKAGE.name)
    git(repository, "init", "-q")
    assert code_of(installed)["no_commit"] == environment.INSTALLED


def test_why_git_does_not_name_the_commit(repository: Path, tmp_path: Path) -> None:
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "all of it")
    # What Git itself tests with: the repository of another user, as containers mount them.
    foreign = code_of(repository, GIT_TEST_ASSUME_DIFFERENT_OWNER="1", HOME=str(tmp_path))
    assert (foreign["commit"], foreign["no_commit"]) == (
        None,
        f"{repository} is of another user, so git refuses it. Allow it: "
        f"git config --global --add safe.directory {repository}",
    )
    absent = code_of(repository, PATH=str(tmp_path))
    assert absent["no_commit"] == "git cannot be run (No such file or directory). Install it."


def test_a_commit_that_git_refuses_to_name_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def told(reason: str | None) -> list[str]:
        found = environment.Code(version="1", sha256="c" * 64, no_commit=reason)
        monkeypatch.setattr(environment, "code", lambda: found)
        caplog.clear()
        assert environment.describe(1)["code"]["no_commit"] == reason
        return [record.getMessage() for record in caplog.records]

    caplog.set_level(logging.INFO)
    assert told("git refuses. Allow it.") == ["No Git commit is recorded: git refuses. Allow it."]
    for harmless in (None, environment.NOT_OF_IT, environment.NO_REPOSITORY, environment.INSTALLED):
        assert told(harmless) == []


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


def test_a_package_without_metadata_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installation by pip that was interrupted leaves such a folder."""
    (tmp_path / "half_there-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.describe(1)["packages"]["numpy"]
