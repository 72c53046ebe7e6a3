import dataclasses
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from conftest import SMALL, SMALL_SPLIT
from fmnist_tracking import fingerprint
from fmnist_tracking.config import FIELDS, SplitConfig, TrainingConfig


def test_it_covers_configuration_split_and_data() -> None:
    base = fingerprint.of_point(SMALL, SMALL_SPLIT, "digest")
    assert base == fingerprint.of_point(dataclasses.replace(SMALL), SMALL_SPLIT, "digest")
    others = {
        fingerprint.of_point(dataclasses.replace(SMALL, dropout=0.2), SMALL_SPLIT, "digest"),
        fingerprint.of_point(SMALL, SplitConfig(limit=660), "digest"),
        fingerprint.of_point(SMALL, dataclasses.replace(SMALL_SPLIT, seed=1), "digest"),
        fingerprint.of_point(
            SMALL, dataclasses.replace(SMALL_SPLIT, protocol="coursework"), "digest"
        ),
        fingerprint.of_point(SMALL, SMALL_SPLIT, "another"),
    }
    assert len(others | {base}) == 6


@pytest.mark.parametrize("field", FIELDS)
def test_every_setting_changes_it(field: str) -> None:
    value = getattr(SMALL, field)
    changed = value / 2 if isinstance(value, float) else (1 if value == 2 else value + 1)
    other = TrainingConfig(**{**dataclasses.asdict(SMALL), field: changed})
    assert fingerprint.of_point(other, SMALL_SPLIT, "d") != fingerprint.of_point(
        SMALL, SMALL_SPLIT, "d"
    )


def test_the_same_value_in_another_spelling_does_not_change_it() -> None:
    whole = dataclasses.replace(SMALL, dropout=0, filters=4.0)  # type: ignore[arg-type]
    assert fingerprint.of_point(whole, SMALL_SPLIT, "d") == fingerprint.of_point(
        dataclasses.replace(SMALL, dropout=0.0, filters=4), SMALL_SPLIT, "d"
    )


@pytest.mark.parametrize("fact", ["training.py", "model.py", "split.py", "tensorflow", "numpy"])
def test_the_program_changes_it(fact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint.of_point(SMALL, SMALL_SPLIT, "d")
    if fact.endswith(".py"):
        real_bytes = Path.read_bytes
        monkeypatch.setattr(
            Path,
            "read_bytes",
            lambda path: real_bytes(path) + (b"# changed" if path.name == fact else b""),
        )
    else:
        monkeypatch.setattr(
            fingerprint,
            "version",
            lambda name: "0.1" if name == fact else version(name),
        )
    fingerprint._program.cache_clear()
    try:
        assert fingerprint.of_point(SMALL, SMALL_SPLIT, "d") != before
    finally:
        fingerprint._program.cache_clear()


def test_a_search_s_covers_its_points_and_their_order() -> None:
    a, b, c = "a" * 64, "b" * 64, "c" * 64
    base = fingerprint.of_search([a, b])
    assert base == fingerprint.of_search(iter((a, b)))
    assert len({base, *map(fingerprint.of_search, ([b, a], [a], [a, c], [a, b, c]))}) == 5


def test_it_is_had_without_tensorflow() -> None:
    code = (
        "import sys\n"
        "from fmnist_tracking import config, fingerprint\n"
        "print(fingerprint.of_point(config.TrainingConfig(), config.SplitConfig(), 'd'))\n"
        "print(sorted(set(sys.modules) & {'tensorflow', 'keras', 'sklearn', 'numpy'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, loaded = done.stdout.splitlines()
    assert len(text) == 64
    assert loaded == "[]"
