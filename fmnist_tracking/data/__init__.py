"""The images: found or downloaded, verified, cached, and split."""

from fmnist_tracking.data.dataset import Dataset, class_names, load_dataset
from fmnist_tracking.data.split import DataSplit, split_dataset, test_set
from fmnist_tracking.data.split_cache import shared_split

__all__ = [
    "DataSplit",
    "Dataset",
    "class_names",
    "load_dataset",
    "shared_split",
    "split_dataset",
    "test_set",
]
