"""Read values as they are typed: after options, as axes, and in a grid file."""

import re
from pathlib import Path
from typing import Any

import yaml

from fmnist_tracking.config import (
    COURSEWORK_GRID,
    FIELDS,
    SEARCH_FLAGS,
    TRAINING_SETTINGS,
    check_value,
    describe_range,
    singular,
)
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.network import Value
from fmnist_tracking.search_space import SearchSpace

# Numbers as they are typed: ASCII digits, without leading zeros. No setting is below 0.
_WHOLE = re.compile(r"(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DURATION = re.compile(r"(?:(?P<h>[0-9]+)h)?(?:(?P<m>[0-9]+)m)?(?:(?P<s>[0-9]+)s?)?")
_SPACE_EXAMPLE = "one line an axis, such as 'filters: [12, 36, 48]'."


def parse_whole(text: str) -> int:
    """Read a whole number as it is typed: "600", not "6e2", "600.0", "0600" or " 600".

    Raises:
        ValueError: it is none.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(text)
    return int(text)


def parse_seconds(text: str) -> int:
    """Read a time as it is typed: "90m", "2h", "1h30m", or "5400", of seconds.

    Raises:
        ValueError: it is none, or of no length.
    """
    found = _DURATION.fullmatch(text)
    parts = {unit: int(number or 0) for unit, number in found.groupdict().items()} if found else {}
    seconds = 3600 * parts.get("h", 0) + 60 * parts.get("m", 0) + parts.get("s", 0)
    if not seconds:
        raise ValueError(text)
    return seconds


def parse_number(name: str, text: str) -> Value:
    """Read one value of a field as it is typed, and check it.

    Raises:
        ConfigError: the field cannot be that.
        ValueError: it is no number of the field's kind.
    """
    if FIELDS[name].is_whole:
        return check_value(name, parse_whole(text))
    if not _DECIMAL.fullmatch(text):
        raise ValueError(text)
    number = float(text)
    if number == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
        raise ValueError(text)  # too small for a number of Python
    return check_value(name, number)


def parse_values(name: str, text: str, option: str | None = None) -> tuple[Value, ...]:
    """Read a comma-separated list of values for one field.

    Args:
        name: a field of `TrainingConfig`.
        text: what the person typed, such as "12,36,48"; spaces may follow the commas.
        option: the option it was typed after, for the message; by default the field's own.

    Raises:
        ConfigError: the list is empty, or holds something that the field cannot be.
    """
    option = option or SEARCH_FLAGS.get(name) or f"--axis {name}"
    if name not in FIELDS:
        check_value(name, None)
    try:
        return tuple(parse_number(name, part.strip(" ")) for part in text.split(","))
    except (ValueError, ConfigError):
        joiner = "=" if option.startswith("--axis") else " "
        example = ",".join(f"{v:g}" for v in COURSEWORK_GRID.get(name, (FIELDS[name].default,)))
        raise ConfigError(
            f"Expected {option} to list {describe_range(name)}, got {text!r}. "
            f"Example: {option}{joiner}{example}"
        ) from None


def parse_value(name: str, text: str, option: str) -> Value:
    """Read the one value typed after an option; raise `ConfigError` if it cannot be that."""
    try:
        return parse_number(name, text)
    except (ValueError, ConfigError):
        raise ConfigError(
            f"Expected {option} to be {singular(describe_range(name))}, got {text!r}. "
            f"Example: {option} {FIELDS[name].default:g}"
        ) from None


def parse_axis(text: str, *, is_coursework: bool = True) -> tuple[str, tuple[Value, ...]]:
    """Read an axis typed as "learning_rate=0.001,0.0003".

    The values of a network's own hyperparameters stay texts: it says of which type they are.

    Raises:
        ConfigError: there is no "=", no such setting, or a value it cannot take.
    """
    name, equals, values = text.partition("=")
    if not equals:
        raise ConfigError(
            f"Expected --axis NAME=VALUE,VALUE, got {text!r}. "
            "Example: --axis learning_rate=0.001,0.0003"
        )
    name = name.strip()
    if is_coursework or name in TRAINING_SETTINGS:
        name = name.replace("-", "_")
        return name, parse_values(name, values, f"--axis {name}")
    return name, parse_texts(values, f"--axis {name}=")


def parse_texts(text: str, option: str) -> tuple[str, ...]:
    """Read a comma-separated list of texts; raise `ConfigError` if one is empty."""
    values = tuple(part.strip(" ") for part in text.split(","))
    if not all(values):
        raise ConfigError(f"Expected {option} to list values, separated by commas, got {text!r}.")
    return values


def parse_setting(text: str) -> tuple[str, str]:
    """Read a hyperparameter typed as "optimizer=adam"; raise `ConfigError` if it is none."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise ConfigError(f"Expected --set NAME=VALUE, got {text!r}. Example: --set optimizer=sgd")
    return name.strip(), value.strip()


def load_space(path: Path, *, is_coursework: bool = True) -> dict[str, tuple[Value, ...]]:
    """Read a grid from a YAML file that maps each axis to its values.

    Numbers are read as they are on the command line, so that none becomes another one: YAML 1.1
    takes 010 for 8, 1:30 for 90 and yes for true.

    Raises:
        ConfigError: the file cannot be read, is not such a mapping, gives something twice, or holds
            a bad axis.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _TextLoader)
    except OSError as error:
        raise ConfigError(f"Cannot read the grid file {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"The grid file {path} is not YAML{_what_is_wrong(error)}. Expected {_SPACE_EXAMPLE}"
        ) from None
    if content is None:
        raise ConfigError(f"The grid file {path} is empty. Expected {_SPACE_EXAMPLE}")
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigError(f"The grid file {path} is not a mapping. Expected {_SPACE_EXAMPLE}")
    try:
        if is_coursework:
            return dict(SearchSpace(axes={n: _listed(n, v) for n, v in content.items()}).axes)
        return {
            name: _listed(name, value) if name in TRAINING_SETTINGS else _texts(name, value)
            for name, value in content.items()
        }
    except ConfigError as error:
        raise ConfigError(f"In the grid file {path}: {error}") from None


class _TextLoader(yaml.BaseLoader):
    """Reads every value as the text it is, and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: list[str] = []
        for key, _ in node.value:
            if key.value in names:
                problem = f"{key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            names.append(key.value)
        return super().construct_mapping(node, deep)


def _what_is_wrong(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f" (line {mark.line + 1}: {problem})" if mark and problem else ""


def _texts(name: str, value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str) and one for one in values):
        raise ConfigError(f"Expected {name} to list values, got {value!r}.")
    return tuple(values)


def _listed(name: str, value: Any) -> tuple[Value, ...]:
    """Return the values of an axis in a grid file, which may be one alone."""
    if name not in FIELDS:
        check_value(name, None)
    values = []
    for one in value if isinstance(value, list) else [value]:
        try:
            if not isinstance(one, str):
                raise ValueError(one)
            values.append(parse_number(name, one))
        except (ValueError, ConfigError):
            raise ConfigError(
                f"Expected {name} to list {describe_range(name)}, got {one!r}."
            ) from None
    return tuple(values)
