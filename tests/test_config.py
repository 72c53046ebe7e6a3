import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist_tracking import config
from fmnist_tracking.config import (
    COURSEWORK_GRID,
    FIELDS,
    TrainingConfig,
    size_of,
)
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.network import feature_map_sizes
from fmnist_tracking.search_space import SearchSpace
from fmnist_tracking.split_config import SplitConfig


def test_coursework_grid_has_3_filter_counts_2_strides_2_kernels() -> None:
    points = SearchSpace().points(TrainingConfig.of())
    assert len(SearchSpace()) == len(points) == 3 * 2 * 2
    assert {p["hidden_units"] for p in points} == {64}
    assert points[0] == TrainingConfig.of(filters=12, strides=1, kernel_size=3)
    assert points[1] == TrainingConfig.of(filters=12, strides=1, kernel_size=4)  # last axis fastest
    assert TrainingConfig.of().epochs == 25


def test_sizes_of_the_best_coursework_point() -> None:
    # 28 -> 26 (3x3 kernel) -> 13 (pooling) -> 11 -> 5
    best = TrainingConfig.of()
    assert feature_map_sizes(best.values, best.network.image_shape) == {
        "conv1": (26, 26),
        "pool1": (13, 13),
        "conv2": (11, 11),
        "pool2": (5, 5),
    }


def test_multiply_adds_by_hand() -> None:
    by_hand = 26 * 26 * 48 * 9 + 11 * 11 * 48 * 9 * 48 + 5 * 5 * 48 * 64 + 64 * 10
    assert size_of(TrainingConfig.of()).multiply_adds == by_hand


@pytest.mark.parametrize(
    ("values", "layer"),
    [
        ({"kernel_size": 30}, "conv1"),
        ({"kernel_size": 28}, "pool1"),
        ({"kernel_size": 20}, "conv2"),
        ({"kernel_size": 13, "strides": 1}, "conv2"),
        ({"kernel_size": 4, "strides": 3}, "pool2"),
    ],
)
def test_vanishing_feature_map_names_the_layer(values: dict[str, int], layer: str) -> None:
    with pytest.raises(ConfigError, match=f"layer {layer}:"):
        TrainingConfig.of(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("filters", 0),
        ("filters", 2.5),
        ("filters", True),
        ("filters", "12"),
        ("strides", -1),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("epochs", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("batch_size", 0),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"Expected {name} to be .*got {re.escape(repr(value))}"):
        TrainingConfig.of(**{name: value})  # type: ignore[arg-type]


def test_every_field_has_words_and_a_range() -> None:
    for name, field in FIELDS.items():
        assert field.about, name
        assert re.match(r"(whole )?numbers (of at least|above) ", config.describe_range(name)), name


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({}, "at least one axis"),
        ({"filters": ()}, "at least one value"),
        ({"filters": (3, 3)}, "more than once"),
        ({"filter": (3,)}, "no setting called 'filter'"),
    ],
)
def test_bad_grids_are_refused(axes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SearchSpace(axes=axes)


axis_values = st.fixed_dictionaries(
    {},
    optional={
        "filters": st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True),
        "kernel_size": st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True),
        "dropout": st.lists(st.floats(0, 0.9), min_size=1, max_size=3, unique=True),
        "seed": st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    },
).filter(bool)


@given(axis_values)
def test_a_grid_holds_each_combination_once(axes: dict[str, list[float]]) -> None:
    space = SearchSpace(axes={name: tuple(values) for name, values in axes.items()})
    points = space.points(TrainingConfig.of())
    assert len(points) == len(set(points)) == math.prod(map(len, axes.values()))


def test_with_axes_adds_and_replaces() -> None:
    space = SearchSpace().with_axes({"filters": (8,), "dropout": (0.1, 0.2)})
    assert space.axes["filters"] == (8,)
    assert space.axes["strides"] == COURSEWORK_GRID["strides"]
    assert len(space) == 1 * 2 * 2 * 1 * 2


@pytest.mark.parametrize("limit", [0, 59, 60_001])
def test_limit_must_leave_room_for_every_class(limit: int) -> None:
    with pytest.raises(ConfigError, match="Expected limit to be from 60"):
        SplitConfig(limit=limit)


def test_protocols_differ_in_the_most_images() -> None:
    assert SplitConfig(protocol="canonical", limit=60_000).limit == 60_000
    with pytest.raises(ConfigError, match="56000"):
        SplitConfig(protocol="coursework", limit=60_000)
    with pytest.raises(ConfigError, match="canonical or coursework"):
        SplitConfig(protocol="other")  # type: ignore[arg-type]


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingConfig.of().epochs = 3  # type: ignore[misc]
