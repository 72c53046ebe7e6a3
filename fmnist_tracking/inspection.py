"""The records of an inspection: what a trial's model is asked, and what it answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fmnist_tracking.network import Network
from fmnist_tracking.results import Evaluation
from fmnist_tracking.split_config import SplitConfig


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A trial's model: its `.keras` file, the trial's run, and which network it must be.

    The code is what was logged with it, to be run; None where it needs none.
    """

    file: Path
    run_id: str
    network: Network
    code: Path | None = None


# The test images are for a report alone.
Images = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class InspectionTask:
    """What to look at: a trial's model, and images that it was not trained on.

    Attributes:
        model: the trial's.
        split: how its data was split.
        data_dir: where the data is, None for the usual places.
        data_sha256: `Dataset.digest` of the data it was trained on.
        seed: of the choice of sample images.
        layer: the convolution whose maps are wanted, None for the first.
        images: `validation`, of which the samples alone are classified; or `test`, which opens the
            sealed ones and scores all of them.
    """

    model: StoredModel
    split: SplitConfig
    data_dir: Path | None
    data_sha256: str
    seed: int
    images: Images
    layer: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelInspection:
    """What was seen in an inspection: some images, and what the model makes of them.

    Attributes:
        data: the data set's name; see `Dataset.name`.
        summary: how many images it has, and of what kind; see `Dataset.summary`.
        is_fashion_mnist: whether the data is that.
        class_names: in label order.
        part: which images the samples are of.
        available: how many images that part has.
        chosen: the samples' places among them, shape (k,).
        images: the samples, uint8, shape (k, height, width, channels).
        labels: their true classes, uint8, shape (k,).
        probabilities: what the model gives for them, float32, shape (k, classes).
        layer: the convolution that was looked at, None where the network has none.
        maps: what it makes of the first sample, float32, shape (filters, height, width).
        evaluation: of all test images, None if they stayed sealed.
    """

    data: str
    summary: str
    is_fashion_mnist: bool
    class_names: tuple[str, ...]
    part: Images
    available: int
    chosen: NDArray[np.intp]
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    layer: str | None
    maps: NDArray[np.float32]
    evaluation: Evaluation | None
