"""The split of the images: made once by the driver, and read by all workers."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from fmnist_tracking import fingerprint
from fmnist_tracking.config import SplitConfig
from fmnist_tracking.data import Dataset, DataSplit, load_dataset, shared_split, split_dataset
from fmnist_tracking.errors import DataError
from fmnist_tracking.results import DatasetPart

Split = tuple[DataSplit, tuple[DatasetPart, DatasetPart]]


def cache_split(dataset: Dataset, split: SplitConfig) -> None:
    """Put the split into the cache, so that not each worker must make it."""
    _cached(lambda: dataset, split, dataset.digest)


@lru_cache(maxsize=1)  # a worker runs many trials on the same images
def load_split(data_dir: Path | None, split: SplitConfig, data_sha256: str) -> Split:
    """Return the split from the cache, or make it; for the arguments, see `TrialTask`.

    Raises:
        DataError: the data is another, or cannot be had.
    """

    def load() -> Dataset:
        dataset = load_dataset(data_dir)
        if dataset.digest != data_sha256:
            raise DataError(f"The data in {dataset.source} changed while the search was running.")
        return dataset

    return _cached(load, split, data_sha256)


def _cached(load: Callable[[], Dataset], split: SplitConfig, data_sha256: str) -> Split:
    key = json.dumps([fingerprint.of_program(), data_sha256, asdict(split)])
    return shared_split(key, lambda: split_dataset(load(), split))
