"""Fingerprints, by which finished trials are found: hashes of what determines their numbers.

The network and the training procedure enter the hash by a version number, not by their code, so
that a comment, a new name or a refactoring makes no result unusable. Golden tests
(`tests/test_golden.py`) compare what the code computes with numbers that are stored for each
version; if the numbers change, they fail with "raise the version".
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.network import feature_map_sizes
from fmnist_tracking.split_config import SplitConfig

# Cached: a look-up takes half a millisecond, and each point of a grid needs all of them.
version = cache(metadata.version)

# Raise a network's version when the same configuration builds another network: other layers, or
# other initial weights.
NETWORK = "coursework"
NETWORKS = {NETWORK: 1}
# Raise it when the same network, data and configuration give other weights or scores.
TRAINING = 1
# The same for the step that trains any other network.
GENERAL_TRAINING = "general 2"
# Raise it when the same data is split differently.
SPLIT = 1

# Releases that compute the same, as the golden tests have shown. Any other release counts as
# different until the tests have passed with it and it is added here.
EQUAL_RELEASES = {
    "tensorflow": ("2.21",),
    "keras": ("3.12", "3.13", "3.14", "3.15"),
    "numpy": ("2.0", "2.1", "2.2", "2.3", "2.4", "2.5"),
    "scikit-learn": ("1.7", "1.8", "1.9"),
}


def of_point(config: TrainingConfig, split: SplitConfig, data_digest: str) -> str:
    """Compute a fingerprint: the SHA-256, in hex, of everything that determines a trial's numbers.

    The processor and the number of threads are not in it, because they only change the order of
    sums, and so the last digits. `data_digest` is `Dataset.digest`.
    """
    network: list[Any]
    if config.network.is_coursework:
        network = [NETWORK, NETWORKS[NETWORK], _map_sizes(config)]
    else:
        shape = [*config.network.image_shape, config.network.classes]
        network = [config.network.function, config.network.source, shape]
    content = {
        "network": network,
        # A copy of the coursework's network is trained as that is.
        "training": TRAINING if config.network.is_coursework else [GENERAL_TRAINING, TRAINING],
        "libraries": _libraries(exactly=not config.network.is_coursework),
        "config": _typed(config.values),
        "split": [SPLIT, typed_values(split)],
        "data": data_digest,
    }
    return _sha256(content)


def of_epochs(config: TrainingConfig, split: SplitConfig, data_digest: str) -> str:
    """Compute the SHA-256, in hex, of everything that determines the numbers of each epoch.

    It is the same for any number of epochs and any patience, which only say where a training ends.
    """
    return of_point(config.replace(epochs=1, patience=0), split, data_digest)


def of_program() -> str:
    """Compute the SHA-256, in hex, of the versions that `of_point` includes."""
    return _sha256([NETWORKS, TRAINING, GENERAL_TRAINING, SPLIT, _libraries()])


def of_search(points: Iterable[str]) -> str:
    """Compute the SHA-256, in hex, of a grid: that of its points' fingerprints, in order."""
    return hashlib.sha256("\n".join(points).encode()).hexdigest()


def of_bayesian(
    base: TrainingConfig,
    replaced: Mapping[str, tuple[Any, ...]],
    seed: int,
    split: SplitConfig,
    data_digest: str,
) -> str:
    """Compute the SHA-256, in hex, of all that determines which points a Bayesian search tries.

    It is the same for any number of points.
    """
    values = {name: [[type(one).__name__, one] for one in of] for name, of in replaced.items()}
    return _sha256(["bayesian", seed, values, of_point(base, split, data_digest)])


@dataclass(frozen=True, kw_only=True)
class GridKeys:
    """The fingerprints of a grid and its points: today's and those of earlier releases.

    Attributes:
        today: today's fingerprint of each point, in the grid's order.
        points: maps every fingerprint of a point, today's or earlier, to today's.
        configs: the configuration of each point, by today's fingerprint.
        grids: the fingerprints of the whole grid, today's first.
    """

    today: tuple[str, ...]
    points: Mapping[str, str]
    configs: Mapping[str, TrainingConfig]
    grids: tuple[str, ...]


def of_grid(configs: Iterable[TrainingConfig], split: SplitConfig, data_digest: str) -> GridKeys:
    """Compute the fingerprints by which a grid's trials and its search can be found."""
    known = list(configs)
    today = tuple(of_point(config, split, data_digest) for config in known)
    older = [older_keys(config, split, data_digest) for config in known]
    points = dict(zip(today, today, strict=True))
    for point, keys in zip(today, older, strict=True):
        points |= dict.fromkeys(keys, point)
    grids = (today, *(zip(*older, strict=True) if all(older) else ()))
    return GridKeys(
        today=today,
        points=points,
        configs=dict(zip(today, known, strict=True)),
        grids=tuple(map(of_search, grids)),
    )


def typed_values(config: Any) -> dict[str, list[object]]:
    """Return the fields of a configuration, a dataclass, by name: each with its type and value.

    A field that is added to a published configuration has the key `neutral` in its metadata: the
    value that stands for the behaviour before. A field with that value is left out, so that earlier
    results keep their fingerprint.
    """
    return {
        field.name: [type(value).__name__, value]
        for field in dataclasses.fields(config)
        for value in [getattr(config, field.name)]
        if "neutral" not in field.metadata or value != field.metadata["neutral"]
    }


def _typed(values: Mapping[str, Any]) -> dict[str, list[object]]:
    return {name: [type(value).__name__, value] for name, value in values.items()}


def _map_sizes(config: TrainingConfig) -> dict[str, object]:
    """Return the sides of the coursework's feature maps, one number for a square."""
    sizes = feature_map_sizes(config.values, config.network.image_shape)
    return {layer: h if h == w else [h, w] for layer, (h, w) in sizes.items()}


def _libraries(*, exactly: bool = False) -> dict[str, str]:
    """Return a name for each library's arithmetic: releases that compute the same share one.

    That is known of the layers of the coursework's network alone; else it is the release `exactly`.
    """
    found = {}
    for name, equal in EQUAL_RELEASES.items():
        release = ".".join(version(name).split(".")[:2])
        found[name] = equal[0] if release in equal and not exactly else release
    return found


def _sha256(facts: object) -> str:
    text = json.dumps(facts, sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()


# What version 0.1.0 up to November 2026 used instead: a hash of the text of five modules and of the
# exact versions of four libraries.
_OLD_CODE = {
    "training.py": "af5bae3b1f5282749cd4c0bfd58fc8e3629dbdecd8923f6ce4e338bc28dfd7b9",
    "step.py": "181f88bda9f54210bfa0af3c4834d0bf2cb99abddbb723e5a542d40ab14c7653",
    "model.py": "7b7ed7fc370846b99807ba0691a9e3248ee1e75dfa01e9b0c6426ad116372d8f",
    "evaluation.py": "5d9a76f272f7400b31814c3c247eebadd89dc5c7b53b307d1b93d24b0ef8cea4",
    "split.py": "25a19a6c79868db71d17298a24d225fe3de40dd6acad8d9d1d07413bc4f1d3e8",
}
_OLD_CONFIG = (
    *("filters", "kernel_size", "strides", "hidden_units", "dropout"),
    *("learning_rate", "batch_size", "epochs", "seed", "patience"),
)
# The versions that it was pinned to: for Python 3.11, for newer ones, and for 3.10.
_OLD_PINS = (
    ("3.15.1", "2.4.6", "1.9.1"),
    ("3.15.1", "2.5.5", "1.9.1"),
    ("3.12.4", "2.2.6", "1.7.2"),
)


def older_keys(config: TrainingConfig, split: SplitConfig, data_digest: str) -> tuple[str, ...]:
    """Return the fingerprints by which earlier releases recorded the same numbers.

    They are valid only for the first versions of network, training and split. So there are none
    once one of those is raised, nor for a configuration that the earlier releases did not have.
    """
    if not config.network.is_coursework:
        return ()
    settings = _typed(config.values)
    # With POOL_SIZE 2, floor((28 - k) / s) + 1 pixels are halved; see `network.feature_map_sizes`.
    pooled = ((28 - int(config["kernel_size"])) // int(config["strides"]) + 1) // 2
    is_first = (NETWORKS[NETWORK], TRAINING, SPLIT) == (1, 1, 1)
    if not is_first or set(settings) != set(_OLD_CONFIG):
        return ()
    if _map_sizes(config)["pool1"] != pooled:
        return ()
    names = ("tensorflow", "keras", "numpy", "scikit-learn")
    tensorflow_here, *others = map(version, names)
    facts: Mapping[str, Any] = {
        "config": dict(config.values),
        "split": {name: value for name, (_, value) in typed_values(split).items()},
        "data": data_digest,
        "code": _OLD_CODE,
    }
    return tuple(
        _sha256({**facts, "versions": dict(zip(names, (tensorflow, *pins), strict=True))})
        for tensorflow in sorted({tensorflow_here, "2.21.0"})
        for pins in dict.fromkeys((tuple(others), *_OLD_PINS))
    )
