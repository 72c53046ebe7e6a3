"""The split of the images: made once by the driver, and read by all workers."""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fmnist_tracking.data import (
    Dataset,
    DataSplit,
    load_dataset,
    shared_split,
    split_dataset,
)
from fmnist_tracking.errors import DataError
from fmnist_tracking.network import Network
from fmnist_tracking.results import DatasetPart
from fmnist_tracking.split_config import FASHION_MNIST_SIZE, Protocol, SplitConfig


def split_of(
    named: Dataset | None, protocol: Protocol, seed: int, limit: int | None
) -> SplitConfig:
    """Return how the data is split that the user has named; None stands for Fashion-MNIST.

    Its size is known, so that a wrong limit is refused before it is looked for or fetched.

    Raises:
        ConfigError: see `SplitConfig`.
    """
    size = FASHION_MNIST_SIZE if named is None else named.size
    return SplitConfig(protocol=protocol, seed=seed, limit=limit, data=size)


def network_for(network: Network, named: Dataset | None) -> Network:
    """Return a network for the data that the user has named; None stands for Fashion-MNIST."""
    if named is None:
        return network
    return dataclasses.replace(network, image_shape=named.image_shape, classes=named.classes)


@dataclass(frozen=True, kw_only=True)
class Images:
    """Which images trials are given, in terms that can be sent to another process.

    Attributes:
        data_dir: where the data is, None for the usual places.
        data_sha256: `Dataset.digest` of the data that must be found there.
        class_names: of that data, in label order.
        split: how it is split.
        parts: what identifies the training and the validation images.
    """

    data_dir: Path | None
    data_sha256: str
    class_names: tuple[str, ...]
    split: SplitConfig
    parts: tuple[DatasetPart, DatasetPart]


def cache_images(dataset: Dataset, split: SplitConfig, data_dir: Path | None) -> Images:
    """Split the data, and cache the split, so that not each worker must make it."""
    made = split_dataset(dataset, split)
    images = Images(
        data_dir=data_dir,
        data_sha256=dataset.digest,
        class_names=dataset.class_names,
        split=split,
        parts=made.parts(),
    )
    shared_split(images.parts, images.class_names, lambda: made)
    return images


@lru_cache(maxsize=1)  # a worker runs many trials on the same images
def load_split(images: Images) -> DataSplit:
    """Return the split from the cache, or make it.

    Raises:
        DataError: the data is another, or cannot be had.
    """

    def make() -> DataSplit:
        dataset = load_dataset(images.data_dir)
        if dataset.digest != images.data_sha256:
            raise DataError(f"The data in {dataset.source} changed while the search was running.")
        return split_dataset(dataset, images.split)

    return shared_split(images.parts, images.class_names, make)
