from typing import cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmnist_tracking.data import Dataset, DataSplit, split_dataset, test_set
from fmnist_tracking.split_config import PROTOCOLS, Protocol, SplitConfig

SIZES = {"canonical": (50_000, 10_000, 10_000), "coursework": (46_666, 9_334, 14_000)}


def keys(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sizes_and_strata(dataset: Dataset, protocol: Protocol) -> None:
    config = SplitConfig(protocol=protocol)
    split, test = split_dataset(dataset, config), test_set(dataset, config)
    parts = (split.train_labels, split.validation_labels, test.labels)
    assert tuple(map(len, parts)) == SIZES[protocol]
    assert len(split.train_labels) + len(split.validation_labels) == config.available_images
    for labels in parts:
        counts = np.bincount(labels)
        assert counts.max() - counts.min() <= 1
    for images in (split.train_images, split.validation_images, test.images):
        assert images.shape[1:] == (28, 28, 1)
        assert images.dtype == np.uint8


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_image_is_in_two_parts(dataset: Dataset, protocol: Protocol) -> None:
    # A few images occur twice in Fashion-MNIST itself, so parts are compared by position.
    config = SplitConfig(protocol=protocol)
    numbers = np.arange(70_000, dtype=np.uint32)
    numbered = Dataset(
        train_images=_numbered(numbers[:60_000]),
        train_labels=dataset.train_labels,
        test_images=_numbered(numbers[60_000:]),
        test_labels=dataset.test_labels,
        class_names=dataset.class_names,
        title="numbers",
        source="numbers",
        sha256=dataset.sha256,
    )
    split, test = split_dataset(numbered, config), test_set(numbered, config)
    parts = [split.train_images, split.validation_images, test.images]
    found = np.sort(np.concatenate([_numbers(part) for part in parts]))
    np.testing.assert_array_equal(found, numbers)
    if protocol == "canonical":
        np.testing.assert_array_equal(_numbers(test.images), numbers[60_000:])


def _numbered(numbers: np.ndarray) -> np.ndarray:
    images = np.zeros((len(numbers), 28, 28), np.uint8)
    images[:, 0, :4] = numbers.astype(np.uint32).view(np.uint8).reshape(-1, 4)
    return images


def _numbers(images: np.ndarray) -> np.ndarray:
    return cast(np.ndarray, np.ascontiguousarray(images[:, 0, :4, 0]).view(np.uint32)[:, 0])


def test_images_keep_their_labels(dataset: Dataset, split: DataSplit) -> None:
    known = dict(zip(keys(dataset.train_images), dataset.train_labels, strict=True))
    for image, label in zip(split.train_images, split.train_labels, strict=True):
        assert known[image.tobytes()] == label


def test_same_seed_same_split(dataset: Dataset) -> None:
    config = SplitConfig(limit=1200, seed=3)
    first, again = split_dataset(dataset, config), split_dataset(dataset, config)
    np.testing.assert_array_equal(first.train_images, again.train_images)
    other = split_dataset(dataset, SplitConfig(limit=1200, seed=4))
    assert not np.array_equal(first.train_images, other.train_images)


def test_limit_of_2400_gives_2000_and_400(dataset: Dataset) -> None:
    split = split_dataset(dataset, SplitConfig(limit=2400))
    assert (len(split.train_labels), len(split.validation_labels)) == (2000, 400)
    assert len(test_set(dataset, SplitConfig(limit=2400)).labels) == 2400


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    protocol=st.sampled_from(PROTOCOLS),
    limit=st.integers(60, 60_000) | st.integers(55_990, 56_000) | st.integers(9_990, 10_000),
)
def test_any_limit(dataset: Dataset, protocol: Protocol, limit: int) -> None:
    limit = min(limit, SplitConfig(protocol=protocol).available_images)
    config = SplitConfig(protocol=protocol, limit=limit)
    split, test = split_dataset(dataset, config), test_set(dataset, config)
    assert len(split.train_labels) + len(split.validation_labels) == limit
    assert len(test.labels) == min(limit, SIZES[protocol][2])
    assert set(split.train_labels) == set(split.validation_labels) == set(range(10))
