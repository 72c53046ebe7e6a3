"""What a command loads: heavy libraries only where they are used. What tests import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from environments import own_environment
from imports import loaded_by


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["search", "--help"],
        ["report", "--help"],
        ["promote", "--help"],
        ["predict", "--help"],
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_by(*arguments) == (0, set())


def test_a_wrong_option_is_found_before_anything_heavy_is_loaded() -> None:
    assert loaded_by("search", "--strides", "0") == (2, set())


@pytest.mark.parametrize("arguments", [["runs"], ["best"], ["promote", "--run-id", "latest"]])
def test_listing_and_promoting_do_without_tensorflow(arguments: list[str], store: object) -> None:
    status, modules = loaded_by(*arguments)
    assert status == 1  # an empty store; MLflow was asked
    assert "mlflow" in modules
    assert modules.isdisjoint({"tensorflow", "keras", "keras_tuner", "matplotlib"})


def test_the_data_command_does_without_tensorflow() -> None:
    status, modules = loaded_by("data", "--json")
    assert status == 0
    assert modules.isdisjoint({"tensorflow", "keras", "mlflow", "matplotlib"})


def test_importing_the_package_changes_no_environment() -> None:
    code = (
        "import os; before = dict(os.environ); import fmnist_tracking\n"
        "print(dict(os.environ) == before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=own_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"


def test_what_workers_are_forked_from_has_computed_nothing() -> None:
    code = (
        "import fmnist_tracking.preload; import sys\n"
        "from tensorflow.python.eager import context\n"
        "print('fmnist_tracking.training.loop' in sys.modules, context._context)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True None\n"


def test_no_test_is_imported() -> None:
    """What several tests need is in a module of its own, or in conftest."""
    for path in Path(__file__).parent.glob("*.py"):
        modules: list[str] = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules += [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules.append(node.module or "")
        assert not [m for m in modules if "test_" in m], path.name


def test_what_all_tests_import_does_without_tensorflow() -> None:
    code = "import sys, conftest; print('tensorflow' in sys.modules)"
    path = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=path,
        env=own_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
