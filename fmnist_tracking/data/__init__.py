"""The images: found or downloaded, verified or checked, cached, and split."""

from fmnist_tracking.data.dataset import (
    FASHION_MNIST_DIGEST,
    Dataset,
    load_dataset,
    load_named,
)
from fmnist_tracking.data.split import DataSplit, require_enough, split_dataset, test_set
from fmnist_tracking.data.split_cache import shared_split

__all__ = [
    "FASHION_MNIST_DIGEST",
    "DataSplit",
    "Dataset",
    "load_dataset",
    "load_named",
    "require_enough",
    "shared_split",
    "split_dataset",
    "test_set",
]
