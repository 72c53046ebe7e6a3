"""The versions in `fingerprint` are raised when the numbers change, and only then.

`golden.json` keeps what the code of these versions computes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fmnist_tracking

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden.json"
RAISE = (
    "The numbers have changed: {what}. Raise the version in fingerprint.py, NETWORKS if the "
    "network is another, TRAINING if it is trained or scored otherwise, GENERAL_TRAINING if other "
    "networks are, SPLIT if the images are split otherwise; then: "
    "python tests/golden.py > tests/golden.json"
)


def compare(package: Path) -> None:
    """Compare what a copy of the package computes with what is kept."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "golden.py")],
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
    )
    if done.returncode:  # they cannot be computed any more
        raise AssertionError(f"{RAISE.format(what='all of them')}\n{done.stderr}")
    now, kept = json.loads(done.stdout), json.loads(GOLDEN.read_text())
    assert "choose another seed" not in GOLDEN.read_text()
    different = [name for name in kept["figures"] if kept["figures"][name] != now["figures"][name]]
    if now["versions"] == kept["versions"]:
        assert not different, RAISE.format(what=", ".join(different))
    else:
        assert different, "A version was raised, but the numbers are those of the one before."
        raise AssertionError("Keep the new numbers: python tests/golden.py > tests/golden.json")


def test_the_numbers_are_those_of_their_versions() -> None:
    compare(Path(fmnist_tracking.__file__).parent)


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        path = package / file
        text = path.read_text()
        assert old in text, f"{old!r} is no longer in {file}: choose another change"
        path.write_text(text.replace(old, new))

    return change


def rename_a_module(package: Path) -> None:
    training = package / "training"
    (training / "coursework_step.py").rename(training / "fast_step.py")
    for path in package.rglob("*.py"):
        path.write_text(re.sub(r"\bcoursework_step\b", "fast_step", path.read_text()))


def copy_of(package: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    copy = folder / "fmnist_tracking"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    change(copy)
    return copy


COMMENT = edit("training/coursework_step.py", "import itertools", "# A comment.\nimport itertools")
ANOTHER_NAME = edit("training/loop.py", "_save", "_write")
REFACTORED = edit(
    "training/coursework_step.py",
    "return float(loss) / len(order), int(right)",
    "mean = float(loss) / len(order)\n        return mean, int(right)",
)


def clean_up(package: Path) -> None:
    for change in (COMMENT, ANOTHER_NAME, REFACTORED, rename_a_module):
        change(package)


@pytest.mark.slow
def test_what_changes_no_number_keeps_the_version(tmp_path: Path) -> None:
    compare(copy_of(Path(fmnist_tracking.__file__).parent, tmp_path, clean_up))


RELU = 'activation="relu", name=f"conv{block}"'
STEP = "training/coursework_step.py"
CHANGES = {
    "pool size": edit("networks/coursework.py", "MaxPool2D(2,", "MaxPool2D(3,"),
    "general step": edit(
        "training/keras_step.py", "loss * (pixels.shape[0] / count)", "loss * (1 / count)"
    ),
    "initializer": edit("networks/coursework.py", RELU, f'kernel_initializer="he_normal", {RELU}'),
    "shuffle": edit("training/loop.py", "([config.seed, epoch])", "([epoch, config.seed])"),
    "optimizer": edit(
        "training/coursework_step.py", "_EPSILON = 0.9, 0.999", "_EPSILON = 0.95, 0.999"
    ),
    "dropout": edit(
        "training/coursework_step.py", "tf.cast(first, tf.uint64)", "tf.cast(first + 1, tf.uint64)"
    ),
    "split": edit("split_config.py", "VALIDATION_SHARE = 1 / 6", "VALIDATION_SHARE = 1 / 5"),
    "scores": edit("metrics.py", "argmax(axis=1)", "argmin(axis=1)"),
    # A Keras that draws other weights to begin with.
    "another Keras": edit(
        "networks/coursework.py",
        "import keras\n",
        "import keras\n"
        "_initializers = keras.src.initializers.random_initializers.random\n"
        "_draw = _initializers.uniform\n"
        "_initializers.uniform = lambda *a, **k: _draw(*a, **k) * 0.9\n",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_numbers_asks_for_a_new_version(tmp_path: Path, what: str) -> None:
    package = copy_of(Path(fmnist_tracking.__file__).parent, tmp_path, CHANGES[what])
    with pytest.raises(AssertionError, match="Raise the version"):
        compare(package)


@pytest.mark.slow
def test_numbers_are_kept_with_the_version_that_was_raised_for_them(tmp_path: Path) -> None:
    package = copy_of(Path(fmnist_tracking.__file__).parent, tmp_path, CHANGES["shuffle"])
    edit("fingerprint.py", "TRAINING = 1\n", "TRAINING = 2\n")(package)
    with pytest.raises(AssertionError, match="Keep the new numbers"):
        compare(package)


@pytest.mark.slow
def test_a_version_is_not_raised_for_nothing(tmp_path: Path) -> None:
    raised = edit("fingerprint.py", "TRAINING = 1\n", "TRAINING = 2\n")
    with pytest.raises(AssertionError, match="those of the one before"):
        compare(copy_of(Path(fmnist_tracking.__file__).parent, tmp_path, raised))
