"""Which images a run used, as MLflow datasets."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
import tenacity
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException
from mlflow.types.schema import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from fmnist_tracking.results import DatasetPart
from fmnist_tracking.tracking.start import DatasetInfo
from fmnist_tracking.tracking.store import Store

# The width of the column in MLflow's tables.
_DIGEST_LENGTH = 36


def log_inputs(store: Store, run_id: str, data: DatasetInfo, parts: Iterable[DatasetPart]) -> None:
    """Link a run with its training images, and its validation images if it has any."""
    inputs = [
        DatasetInput(as_dataset(data, part), [InputTag(MLFLOW_DATASET_CONTEXT, part.role)])
        for part in parts
        if part.shape[0]
    ]
    if inputs:
        link_inputs(store, run_id, inputs)


def _is_beaten(error: BaseException) -> bool:
    words = str(error).lower()
    return isinstance(error, MlflowException) and ("integrity" in words or "unique" in words)


@tenacity.retry(
    retry=tenacity.retry_if_exception(_is_beaten),
    stop=tenacity.stop_after_attempt(5),
    wait=tenacity.wait_random(max=0.2),
    reraise=True,
)
def link_inputs(store: Store, run_id: str, inputs: Sequence[DatasetInput]) -> None:
    """Link a run with data sets.

    MLflow checks whether a data set exists and then adds it, in two steps. If two processes do so
    at once, one of them fails because the data set exists already; a retry finds it.
    """
    store.client.log_inputs(run_id, list(inputs))


def as_dataset(data: DatasetInfo, part: DatasetPart) -> Dataset:
    """Return one part of a data set as an MLflow dataset.

    Its digest is the beginning of a SHA-256 over all images and labels; the full hashes are in the
    profile. (MLflow's own digest of an array covers its first 10,000 values.)
    """
    sums = f"{part.images_sha256}\n{part.labels_sha256}"
    pixels = TensorSpec(np.dtype("uint8"), (-1, *part.shape[1:]))
    labels = TensorSpec(np.dtype("uint8"), (-1,))
    schema = TensorDatasetSchema(features=Schema([pixels]), targets=Schema([labels]))
    profile = {
        "images": part.shape[0],
        "shape": list(part.shape),
        "images_in_each_class": list(part.class_counts),
        "images_sha256": part.images_sha256,
        "labels_sha256": part.labels_sha256,
        "data_set_sha256": data.sha256,
    }
    name = re.sub(r"[^a-z0-9]+", "-", data.name.lower()).strip("-")
    return Dataset(
        name=f"{name}-{part.role}",
        digest=hashlib.sha256(sums.encode()).hexdigest()[:_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": data.source}),
        schema=json.dumps(schema.to_dict()),
        profile=json.dumps(profile),
    )
