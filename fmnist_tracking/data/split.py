"""Which images are for training, which for validation, and which are kept for testing."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from fmnist_tracking.config import CLASS_NAMES, VALIDATION_SHARE, SplitConfig
from fmnist_tracking.data.dataset import Dataset
from fmnist_tracking.data.idx import FILES
from fmnist_tracking.results import DatasetPart

COURSEWORK_TEST_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class DataSplit:
    """The images that a trial may use. No test image is among them."""

    train_images: NDArray[np.uint8]  # shape (n, 28, 28, 1), 0..255
    train_labels: NDArray[np.uint8]  # shape (n,), 0..9
    validation_images: NDArray[np.uint8]  # shape (m, 28, 28, 1)
    validation_labels: NDArray[np.uint8]  # shape (m,)
    class_names: tuple[str, ...]  # ten, in label order

    def parts(self) -> tuple[DatasetPart, DatasetPart]:
        """Return what identifies the training images and the validation images."""
        return (
            _part("training", self.train_images, self.train_labels),
            _part("validation", self.validation_images, self.validation_labels),
        )


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """The test images, for a report alone: uint8 (n, 28, 28, 1), and labels uint8 (n,)."""

    __test__ = False  # else pytest collects it as a test

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def split_dataset(dataset: Dataset, config: SplitConfig) -> DataSplit:
    """Return the training and validation images, both stratified by class."""
    images, labels = _pool(dataset)
    seen, _ = _seen_and_test(labels, config)
    train, validation = train_test_split(
        seen, test_size=VALIDATION_SHARE, stratify=labels[seen], random_state=config.seed
    )
    return DataSplit(
        train_images=images[train][..., np.newaxis],
        train_labels=labels[train],
        validation_images=images[validation][..., np.newaxis],
        validation_labels=labels[validation],
        class_names=dataset.class_names,
    )


def test_set(dataset: Dataset, config: SplitConfig) -> TestSet:
    """Return the images that no trial with this split has seen."""
    images, labels = _pool(dataset)
    _, test = _seen_and_test(labels, config)
    return TestSet(images=images[test][..., np.newaxis], labels=labels[test])


test_set.__test__ = False  # type: ignore[attr-defined]  # likewise


def _part(role: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> DatasetPart:
    return DatasetPart(
        role=role,
        shape=images.shape,
        images_sha256=hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        labels_sha256=hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest(),
        class_counts=tuple(np.bincount(labels, minlength=len(CLASS_NAMES)).tolist()),
    )


def _pool(dataset: Dataset) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return all 70,000 images and labels, the data set's own test images last."""
    return (
        np.concatenate([dataset.train_images, dataset.test_images]),
        np.concatenate([dataset.train_labels, dataset.test_labels]),
    )


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
        seen, test = np.split(everything, [FILES["train-images"][0]])
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
    if len(indices) - count < len(np.unique(labels[indices])):
        # train_test_split requires the rest to have at least as many images as there are classes.
        return np.random.default_rng(seed).permutation(indices)[:count]
    chosen, _ = train_test_split(
        indices, train_size=count, stratify=labels[indices], random_state=seed
    )
    return np.asarray(chosen)
