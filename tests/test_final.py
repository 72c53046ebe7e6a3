"""Final trainings: a trial trained anew on training and validation images together."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from conftest import SMALL, SMALL_SPLIT
from fmnist_tracking import fingerprint
from fmnist_tracking.data import Dataset, DataSplit, split_dataset
from fmnist_tracking.data import test_set as sealed_images
from fmnist_tracking.data.split_cache import shared_split
from fmnist_tracking.split_config import Protocol, SplitConfig

ALL_SPLIT = dataclasses.replace(SMALL_SPLIT, validates=False)


@pytest.fixture(scope="module")
def all_images(dataset: Dataset) -> DataSplit:
    return split_dataset(dataset, ALL_SPLIT)


def ordered(*parts: np.ndarray[Any, Any]) -> list[bytes]:
    return sorted(image.tobytes() for part in parts for image in part)


@pytest.mark.parametrize("protocol", ["canonical", "coursework"])
@pytest.mark.parametrize("limit", [600, None])
def test_it_has_the_training_and_validation_images_and_no_others(
    protocol: Protocol, limit: int | None, dataset: Dataset
) -> None:
    usual = SplitConfig(protocol=protocol, limit=limit)
    final = dataclasses.replace(usual, validates=False)
    split, whole = split_dataset(dataset, usual), split_dataset(dataset, final)
    assert len(whole.train_images) == final.training_images
    assert final.training_images == usual.training_images + usual.validation_images
    assert len(whole.validation_images) == final.validation_images == 0
    both = ordered(split.train_images, split.validation_images)
    assert ordered(whole.train_images) == both
    counts = [np.bincount(one, minlength=10) for one in (split.train_labels, whole.train_labels)]
    assert (counts[0] + np.bincount(split.validation_labels, minlength=10) == counts[1]).all()
    np.testing.assert_array_equal(
        sealed_images(dataset, usual).images, sealed_images(dataset, final).images
    )


def test_its_images_are_cached_as_others_are(all_images: DataSplit) -> None:
    def made() -> DataSplit:
        pytest.fail("it is in the cache")

    parts, names = all_images.parts(), all_images.class_names
    shared_split(parts, names, lambda: all_images)
    cached = shared_split(parts, names, made)
    assert cached.parts() == parts
    assert len(cached.validation_images) == 0


def test_the_fingerprint_is_another_and_that_of_others_stays() -> None:
    usual, final = (fingerprint.of_point(SMALL, s, "d") for s in (SMALL_SPLIT, ALL_SPLIT))
    assert usual != final
    assert "validates" not in fingerprint.typed_values(SMALL_SPLIT)
    assert "validates" not in SMALL_SPLIT.values()
