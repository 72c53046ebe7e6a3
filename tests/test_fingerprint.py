import dataclasses
import subprocess
import sys
from importlib.metadata import version

import pytest

from conftest import SMALL, SMALL_SPLIT
from fmnist_tracking import fingerprint, network
from fmnist_tracking.config import FIELDS, TrainingConfig
from fmnist_tracking.split_config import FASHION_MNIST_SIZE, DataSize, SplitConfig

POINT = "97dfa7b099a1804a9c227c232be3bb95c6f10de9d19c1533084dc8a5e57ff720"


def test_it_covers_configuration_split_and_data() -> None:
    base = fingerprint.of_point(SMALL, SMALL_SPLIT, "digest")
    assert base == fingerprint.of_point(SMALL.replace(), SMALL_SPLIT, "digest")
    others = {
        fingerprint.of_point(SMALL.replace(dropout=0.2), SMALL_SPLIT, "digest"),
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
    value = SMALL[field]
    assert isinstance(value, int | float)
    changed = value / 2 if isinstance(value, float) else (1 if value == 2 else value + 1)
    other = TrainingConfig.of(**{**SMALL.values, field: changed})
    assert fingerprint.of_point(other, SMALL_SPLIT, "d") != fingerprint.of_point(
        SMALL, SMALL_SPLIT, "d"
    )


def test_the_same_value_in_another_spelling_does_not_change_it() -> None:
    whole = SMALL.replace(dropout=0, filters=4.0)
    assert fingerprint.of_point(whole, SMALL_SPLIT, "d") == fingerprint.of_point(
        SMALL.replace(dropout=0.0, filters=4), SMALL_SPLIT, "d"
    )


def test_a_value_counts_with_its_type() -> None:
    texts = {
        repr(fingerprint.typed_values(Setting(value=value)))
        for value in (1, 1.0, "1", True, "True")
    }
    assert len(texts) == 5


@dataclasses.dataclass(frozen=True)
class Setting:
    value: object


@dataclasses.dataclass(frozen=True)
class Later(Setting):
    padding: str = dataclasses.field(default="valid", metadata={"neutral": "valid"})


def test_a_field_that_was_added_with_its_default_keeps_the_key() -> None:
    before = fingerprint.typed_values(Setting(value=1))
    assert fingerprint.typed_values(Later(value=1)) == before
    assert fingerprint.typed_values(Later(value=1, padding="same")) == {
        **before,
        "padding": ["str", "same"],
    }


def test_the_key_is_the_one_that_stores_hold() -> None:
    point = fingerprint.of_point(TrainingConfig.of(), SplitConfig(), "d")
    assert point == POINT, (
        "Every result in every store would be trained again. A field that was added needs, in its "
        "metadata, `neutral`: the value that stands for how it was before."
    )


def test_the_size_of_other_data_is_in_the_key() -> None:
    sizes = [DataSize(train_images=n, test_images=100, classes=10) for n in (900, 1000)]
    points = {
        fingerprint.of_point(SMALL, dataclasses.replace(SMALL_SPLIT, data=size), "d")
        for size in (FASHION_MNIST_SIZE, *sizes)
    }
    assert len(points) == 3


@pytest.mark.parametrize("name", fingerprint.EQUAL_RELEASES)
def test_another_release_counts_unless_its_numbers_are_known_to_be_equal(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(release: str) -> str:
        monkeypatch.setattr(
            fingerprint, "version", lambda one: release if one == name else version(one)
        )
        return fingerprint.of_point(SMALL, SMALL_SPLIT, "d")

    listed = fingerprint.EQUAL_RELEASES[name]
    assert {key(f"{release}.7") for release in listed} == {key(version(name))}
    assert key("99.1.0") != key(version(name))
    assert key("99.1.0") == key("99.1.3") != key("99.2.0")


def test_the_installed_releases_are_among_those_that_are_equal() -> None:
    for name, releases in fingerprint.EQUAL_RELEASES.items():
        assert ".".join(version(name).split(".")[:2]) in releases


# Of the coursework's grid on all images, written by version 0.1.0 before network and training had
# versions, with the packages of constraints.txt on Python 3.11.
OLD = "45bfaf47c8f088321da770e193b81917088c9033e3d5bb491682b7411a3d33d3"


def test_the_key_of_the_version_before_is_known_for_the_same_network_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = TrainingConfig.of(), SplitConfig(), "d"
    assert OLD in fingerprint.older_keys(*point)
    monkeypatch.setattr(network, "POOL_SIZE", 3)
    assert fingerprint.older_keys(*point) == ()
    assert fingerprint.of_point(*point) != POINT
    monkeypatch.undo()
    monkeypatch.setattr(fingerprint, "TRAINING", 2)
    assert fingerprint.older_keys(*point) == ()


def test_a_search_s_covers_its_points_and_their_order() -> None:
    a, b, c = "a" * 64, "b" * 64, "c" * 64
    base = fingerprint.of_search([a, b])
    assert base == fingerprint.of_search(iter((a, b)))
    assert len({base, *map(fingerprint.of_search, ([b, a], [a], [a, c], [a, b, c]))}) == 5


def test_it_is_had_without_tensorflow() -> None:
    code = (
        "import sys\n"
        "from fmnist_tracking import config, fingerprint, split_config\n"
        "print(fingerprint.of_point(config.TrainingConfig(), split_config.SplitConfig(), 'd'))\n"
        "print(sorted(set(sys.modules) & {'tensorflow', 'keras', 'sklearn', 'numpy'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, loaded = done.stdout.splitlines()
    assert len(text) == 64
    assert loaded == "[]"
