"""What determines a trial's numbers, as one short text to find it by."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fmnist_tracking.config import SplitConfig, TrainingConfig

# Modules whose text is part of it. They are not imported: they would load TensorFlow.
_CODE = ("training.py", "step.py", "model.py", "evaluation.py", "data/split.py")
_LIBRARIES = ("tensorflow", "keras", "numpy", "scikit-learn")


def of_point(config: TrainingConfig, split: SplitConfig, data_digest: str) -> str:
    """SHA-256, in hex, of everything that determines a trial's numbers, to within rounding.

    That is the configuration, the images and their split, the code of the network, the
    training and the split, and the versions of the libraries that do the arithmetic. Not the
    processor and the number of threads: they change the order of sums, and so last digits.

    Args:
        config: the point.
        split: how the data set is split.
        data_digest: `Dataset.digest`.
    """
    facts = {
        "config": asdict(config),
        "split": asdict(split),
        "data": data_digest,
        **_program(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def of_code() -> str:
    """SHA-256, in hex, of the code and the libraries among what `of_point` counts."""
    return hashlib.sha256(json.dumps(_program(), sort_keys=True).encode()).hexdigest()


def of_search(points: Iterable[str]) -> str:
    """SHA-256, in hex, of a grid: of its points' fingerprints, in order."""
    return hashlib.sha256("\n".join(points).encode()).hexdigest()


@lru_cache(maxsize=1)
def _program() -> dict[str, Any]:
    folder = Path(__file__).parent
    return {
        "code": {
            Path(file).name: hashlib.sha256((folder / file).read_bytes()).hexdigest()
            for file in _CODE
        },
        "versions": {name: version(name) for name in _LIBRARIES},
    }
