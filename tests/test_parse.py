import math
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist_tracking.cli.parse import load_space, parse_axis, parse_value, parse_values
from fmnist_tracking.config import FIELDS
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.search_space import SearchSpace


@pytest.mark.parametrize("text", ["abc", "", "2,x", "1,,2", "0", "1.5"])
def test_bad_list_is_quoted_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_values("strides", text)
    assert str(caught.value) == (
        f"Expected --strides to list whole numbers of at least 1, got {text!r}. "
        "Example: --strides 1,2"
    )


NO_WHOLE_NUMBERS = [
    "2.0", "1e1", " 600", "600 ", "02", "+5", "1_000", "0x10", "٣", "²", "True", "None", "-0", "",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_WHOLE_NUMBERS)
def test_what_is_no_whole_number_as_typed_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="Expected --epochs to be a whole number"):
        parse_value("epochs", text, "--epochs")


@pytest.mark.parametrize(
    "text",
    ["0,1", "01", "1_0", "inf", "nan", "0.1.", " 0.1", "1e-400", "٠.١", "1e", "-0.0", "0x1p-2"],
)
def test_what_is_no_number_as_typed_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="Expected --dropout to be a number"):
        parse_value("dropout", text, "--dropout")


def test_numbers_are_read_as_typed() -> None:
    assert parse_values("learning_rate", "0.001, 1e-3,.5,2.") == (0.001, 0.001, 0.5, 2.0)
    # As a float, the number below would be another one.
    assert parse_value("hidden_units", "9007199254740993", "--hidden-units") == 9007199254740993


@given(st.floats(0, 0.999))
def test_numbers_as_python_writes_them_are_read_back(number: float) -> None:
    if math.copysign(1, number) > 0:
        assert parse_value("dropout", repr(number), "--dropout") == number


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr", "learning_rate"),
        ("learningrate", "learning_rate"),
        ("LR", "learning_rate"),
        ("batchsize", "batch_size"),
        ("drop_out", "dropout"),
        ("kernel_sizes", "kernel_size"),
        ("neuronsHL", "hidden_units"),
    ],
)
def test_an_axis_that_is_nearly_right_gets_the_right_name(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"called '{typed}'\. Did you mean {meant}\?"):
        parse_axis(f"{typed}=1")


def test_nothing_is_guessed_from_a_name_that_is_like_none() -> None:
    with pytest.raises(ConfigError, match=r"called 'colour'\. Expected one of: filters, "):
        parse_axis("colour=1")


@given(st.lists(st.integers(1, 500), min_size=1))
def test_lists_of_whole_numbers_are_read_back(numbers: list[int]) -> None:
    assert parse_values("filters", ",".join(map(str, numbers))) == tuple(numbers)


def test_any_field_can_be_an_axis() -> None:
    for name, field in FIELDS.items():
        assert parse_axis(f"{name}={field.default}") == (name, (field.default,))
        assert len(SearchSpace(axes={name: (cast(int, field.default),)})) == 1
    assert parse_axis("learning-rate=0.001,1e-4") == ("learning_rate", (0.001, 0.0001))


@pytest.mark.parametrize("text", ["learning_rate", "=1", "nonsense=1", "dropout=2"])
def test_bad_axis_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_axis(text)


def test_one_value_names_its_option() -> None:
    assert parse_value("epochs", "3", "--epochs") == 3
    with pytest.raises(ConfigError, match="Expected --epochs to be a whole number of at least 1"):
        parse_value("epochs", "0", "--epochs")


def test_grid_file(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("filters: [8, 16]\nlearning_rate: 0.01\ndropout: [1e-1, .2]\n")
    assert load_space(file) == {
        "filters": (8, 16),
        "learning_rate": (0.01,),
        "dropout": (0.1, 0.2),
    }


def test_an_anchor_and_a_quoted_number_in_a_grid_file(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("filters: &few [8, '16']\nhidden_units: *few\n")
    assert load_space(file) == {"filters": (8, 16), "hidden_units": (8, 16)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("filters: [1", "is not YAML"),
        ("- 1", "is not a mapping"),
        ("filters: [a]", "In the grid file .*Expected filters .*, got 'a'"),
        ("{}", "at least one axis"),
        ("", "is empty"),
        ("# nothing\n---\n", "Expected|is empty"),
        ("filters: [8]\nstrides: [1]\nfilters: [9]", r"line 3: 'filters' is given twice"),
        ("filters: {a: 1, a: 2}", "'a' is given twice"),
        ("? {b: 1, b: 1}\n: 2", "'b' is given twice"),
        ("filters: [8]\n---\nfilters: [9]", "another document"),
        ("filters: [true, 8]", "Expected filters to list .*, got 'true'"),
        ("filters: [yes]", "got 'yes'"),
        ("filters: ~", "got '~'"),
        ("filters:", "got ''"),
        ("filters: [8, null]", "got 'null'"),
        ("filters: [[8, 9]]", "got .*8.*9"),
        ("filters: {from: 8}", "got .*from"),
        ("filters: [010]", "got '010'"),
        ("epochs: 1:30", "got '1:30'"),
        ("filters: [1_6]", "got '1_6'"),
        ("filters: [8.0]", "got '8.0'"),
        ("filters: []", "at least one value for the axis filters"),
        ("batch-size: [8]", "Did you mean batch_size"),
        ("8: [8]", "no setting called '8'"),
        ("[filters]: [8]", "is not YAML"),
        ("filters: &a [8, *a]", "is not YAML"),
        ("filters: [8]\0", "is not YAML"),
    ],
)
def test_bad_grid_file(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        load_space(file)


def test_missing_grid_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read the grid file .*No such file"):
        load_space(tmp_path / "none.yaml")
