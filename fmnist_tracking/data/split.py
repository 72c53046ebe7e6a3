"""Which images are for training, which for validation, and which are kept for testing."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from fmnist_tracking.data.dataset import Dataset
from fmnist_tracking.errors import ConfigError, DataError, setting
from fmnist_tracking.redact import printable
from fmnist_tracking.results import DatasetPart
from fmnist_tracking.split_config import (
    COURSEWORK_TEST_SHARE,
    LEAST_OF_A_CLASS,
    VALIDATION_SHARE,
    SplitConfig,
)


@dataclass(frozen=True, kw_only=True)
class DataSplit:
    """The images that a trial may use. No test image is among them."""

    train_images: NDArray[np.uint8]  # shape (n, height, width, channels), 0..255
    train_labels: NDArray[np.uint8]  # shape (n,), from 0 on
    validation_images: NDArray[np.uint8]  # shape (m, height, width, channels)
    validation_labels: NDArray[np.uint8]  # shape (m,)
    class_names: tuple[str, ...]  # in label order

    def parts(self) -> tuple[DatasetPart, DatasetPart]:
        """Return what identifies the training images and the validation images."""
        classes = len(self.class_names)
        return (
            _part("training", self.train_images, self.train_labels, classes),
            _part("validation", self.validation_images, self.validation_labels, classes),
        )


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """The test images, for a report alone.

    They are uint8 of shape (n, height, width, channels), their labels uint8 of shape (n,).
    """

    __test__ = False  # else pytest collects it as a test

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def split_dataset(dataset: Dataset, config: SplitConfig) -> DataSplit:
    """Return the training and validation images, both stratified by class.

    Where the split has no validation images, all are for training.

    Raises:
        ConfigError: the limit leaves too few images of a class.
        DataError: the data has too few images of a class, or is of another size.
    """
    require_enough(dataset, config)
    labels = _all_labels(dataset)
    seen, _ = _seen_and_test(labels, config)
    train, validation = seen, seen[:0]
    if config.validates:
        train, validation = train_test_split(
            seen, test_size=VALIDATION_SHARE, stratify=labels[seen], random_state=config.seed
        )
    return DataSplit(
        train_images=_images(dataset, train),
        train_labels=labels[train],
        validation_images=_images(dataset, validation),
        validation_labels=labels[validation],
        class_names=dataset.class_names,
    )


def test_set(dataset: Dataset, config: SplitConfig) -> TestSet:
    """Return the images that no trial with this split has seen; raises what `split_dataset` does.

    They are stratified by class as far as each class has two of them.
    """
    require_enough(dataset, config)
    labels = _all_labels(dataset)
    _, test = _seen_and_test(labels, config)
    return TestSet(images=_images(dataset, test), labels=labels[test])


test_set.__test__ = False  # type: ignore[attr-defined]  # likewise


def require_enough(dataset: Dataset, config: SplitConfig) -> None:
    """Refuse a split in which not each class is sure to be in both training and validation.

    Raises:
        ConfigError: the limit leaves too few images of a class; the message names it.
        DataError: the data has too few images of a class, or is not of the size that is split.
    """
    if config.data != dataset.size:
        raise DataError(
            f"Expected {dataset.name} to be of {config.data}, got {dataset.size}. Was it replaced?"
        )
    pooled = config.protocol == "coursework"
    counts = np.bincount(
        _all_labels(dataset) if pooled else dataset.train_labels, minlength=dataset.classes
    )
    total, available = int(counts.sum()), config.available_images
    rarest = int(counts.argmin())
    name = printable(dataset.class_names[rarest])
    # A stratified choice takes the exact share of a class, rounded down or up.
    has = int(counts[rarest]) * available // total
    if has < LEAST_OF_A_CLASS:
        needed = -(-LEAST_OF_A_CLASS * total // available)
        of = "" if pooled else " for training"
        raise DataError(
            f"The class {name} of {dataset.name} has {counts[rarest]} images{of}, expected at "
            f"least {needed}, so that it is in both training and validation. Add images of it, or "
            "leave the class out."
        )
    if config.limit is None or config.limit == available:
        return
    left = has * config.limit // available
    if available - config.limit < dataset.classes:  # see `_stratified_choice`
        left = has - (available - config.limit)
    if left < LEAST_OF_A_CLASS:
        least = -(-LEAST_OF_A_CLASS * available // has)
        raise ConfigError(
            f"Expected {setting('limit')} to be at least {least}, so that the class {name}, with "
            f"{has} of {available} images, is in both training and validation, got {config.limit}."
        )


def _part(
    role: str, images: NDArray[np.uint8], labels: NDArray[np.uint8], classes: int
) -> DatasetPart:
    return DatasetPart(
        role=role,
        shape=images.shape,
        images_sha256=hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        labels_sha256=hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest(),
        class_counts=tuple(np.bincount(labels, minlength=classes).tolist()),
    )


def _all_labels(dataset: Dataset) -> NDArray[np.uint8]:
    """Return the labels of all images, the data set's own test images last."""
    return np.concatenate([dataset.train_labels, dataset.test_labels])


def _images(dataset: Dataset, indices: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Return images by their place among all, as in `_all_labels`, without a copy of all."""
    chosen = np.empty((len(indices), *dataset.image_shape), np.uint8)
    first = len(dataset.train_images)
    for images, mine, offset in (
        (dataset.train_images, indices < first, 0),
        (dataset.test_images, indices >= first, first),
    ):
        chosen[mine] = images[indices[mine] - offset].reshape(-1, *dataset.image_shape)
    return chosen


def _seen_and_test(
    labels: NDArray[np.uint8], config: SplitConfig
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the images for training and validation together, and for testing."""
    everything = np.arange(len(labels))
    if config.protocol == "coursework":
        seen, test = train_test_split(
            everything,
            test_size=COURSEWORK_TEST_SHARE,
            stratify=labels,
            random_state=config.seed,
        )
    else:
        seen, test = np.split(everything, [config.data.train_images])
    if config.limit is None:
        return seen, test
    return (
        _stratified_choice(seen, labels, config.limit, config.seed),
        _stratified_choice(test, labels, config.limit, config.seed),
    )


def _stratified_choice(
    indices: NDArray[np.intp], labels: NDArray[np.uint8], count: int, seed: int
) -> NDArray[np.intp]:
    if count >= len(indices):
        return indices
    counts = np.unique(labels[indices], return_counts=True)[1]
    if len(indices) - count < len(counts) or counts.min() < 2:
        # train_test_split requires the rest to have at least as many images as there are classes,
        # and each class to have two, which a class of the test images need not have.
        return np.random.default_rng(seed).permutation(indices)[:count]
    chosen, _ = train_test_split(
        indices, train_size=count, stratify=labels[indices], random_state=seed
    )
    return np.asarray(chosen)
