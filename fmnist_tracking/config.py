"""What a person asks for: one training configuration, a grid of them, a split of the data."""

import contextlib
import dataclasses
import difflib
import itertools
import math
import numbers
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from fmnist_tracking.errors import ConfigError, setting, shown

Value: TypeAlias = int | float

CLASS_NAMES = (
    "Top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
IMAGE_SIZE = 28
POOL_SIZE = 2
# Set to 1 to use files wherever a store says that they are.
TRUST_ARTIFACT_LOCATION = "FMNIST_TRUST_ARTIFACT_LOCATION"
DEFAULT_EXPERIMENT = "fashion-mnist"
FASHION_MNIST = "Fashion-MNIST"
DEFAULT_MODEL_NAME = "fashion-mnist"
DEFAULT_SAMPLE_SEED = 0
# Every one is a run of the store.
MOST_POINTS = 100_000


def _whole(minimum: int, about: str, below: int | None = None) -> dict[str, Any]:
    return {"minimum": minimum, "below": below, "about": about}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One point of a grid: every setting that changes the trained numbers.

    Raises:
        ConfigError: a value is out of range, or a feature map of the network would vanish. The
            message names the field or the layer.
    """

    filters: int = field(default=48, metadata=_whole(1, "filters of each convolution"))
    kernel_size: int = field(
        default=3, metadata=_whole(1, "side of the convolution kernels, in pixels")
    )
    strides: int = field(default=1, metadata=_whole(1, "step of the convolutions, in pixels"))
    hidden_units: int = field(default=64, metadata=_whole(1, "units of the dense hidden layer"))
    dropout: float = field(
        default=0.3,
        metadata={"minimum": 0.0, "below": 1.0, "about": "share of activations dropped"},
    )
    learning_rate: float = field(
        default=0.001,
        metadata={"above": 0.0, "about": "Adam's learning rate"},
    )
    batch_size: int = field(default=32, metadata=_whole(1, "images in a training step"))
    epochs: int = field(
        default=25, metadata=_whole(1, "passes over the training images", below=10**6)
    )
    seed: int = field(
        default=0, metadata=_whole(0, "seed of the weights, dropout and shuffling", below=2**32)
    )
    patience: int = field(
        default=0,
        metadata=_whole(0, "epochs without improvement before stopping; 0 never stops early"),
    )

    def __post_init__(self) -> None:
        for name in FIELDS:
            object.__setattr__(self, name, check_value(name, getattr(self, name)))
        feature_map_sizes(self)


FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(TrainingConfig)}
# The grid of the coursework: 3 filter counts x 2 strides x 2 kernel sizes x 1 hidden layer.
COURSEWORK_GRID: dict[str, tuple[Value, ...]] = {
    "filters": (12, 36, 48),
    "strides": (1, 2),
    "kernel_size": (3, 4),
    "hidden_units": (64,),
}
# Names of settings in other programs and in the coursework.
_OTHER_NAMES = {
    "lr": "learning_rate",
    "filter_size": "filters",
    "stride_size": "strides",
    "neurons_hl": "hidden_units",
    "neuronshl": "hidden_units",
}


def flag(name: str) -> str:
    """Return the command-line option of a field: `batch_size` is `--batch-size`."""
    return "--" + name.replace("_", "-")


SEARCH_FLAGS = {**{name: flag(name) for name in COURSEWORK_GRID}, "kernel_size": "--kernel-sizes"}


def describe_range(name: str) -> str:
    """Describe the values that a field takes, such as "whole numbers of at least 1"."""
    limits = FIELDS[name].metadata
    noun = "whole numbers" if FIELDS[name].type is int else "numbers"
    parts = []
    if "minimum" in limits:
        parts.append(f"of at least {limits['minimum']:g}")
    if "above" in limits:
        parts.append(f"above {limits['above']:g}")
    if limits.get("below") is not None:
        parts.append(f"below {limits['below']}")
    return f"{noun} {' and '.join(parts)}"


def _require_setting(name: object) -> None:
    if name not in FIELDS:
        near = did_you_mean(name, FIELDS) if isinstance(name, str) else ""
        raise ConfigError(
            f"There is no setting called {shown(name)}.{near} Expected one of: {', '.join(FIELDS)}."
        )


def check_value(name: str, value: object) -> Value:
    """Check one value of a `TrainingConfig` field and convert it to the field's type.

    Raises:
        ConfigError: `name` is not a field, or `value` is of the wrong type or out of range.
    """
    _require_setting(name)
    whole = FIELDS[name].type is int
    limits = FIELDS[name].metadata
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError, ValueError):  # too large, or no number at all
            exact: Value = int(cast(Value, value)) if whole else float(value)
            if (
                math.isfinite(exact)
                and not (whole and exact != value)
                and limits.get("minimum", -math.inf) <= exact < (limits.get("below") or math.inf)
                and exact > limits.get("above", -math.inf)
            ):
                return exact + 0  # else -0.0 would be another point than 0.0
    expected = singular(describe_range(name))
    raise ConfigError(f"Expected {name} to be {expected}, got {shown(value)}.")


def require_whole(name: str, value: object, minimum: int = 1) -> int:
    """Return an argument as a whole number; raise `ConfigError` if it is none, or too small."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        whole = int(value)
        if whole >= minimum:
            return whole
    raise ConfigError(
        f"Expected {setting(name)} to be a whole number of at least {minimum}, got {shown(value)}."
    )


def require_flag(name: str, value: object) -> None:
    """Raise `ConfigError` for an argument that is neither True nor False."""
    if not isinstance(value, bool):
        raise ConfigError(f"Expected {setting(name)} to be True or False, got {shown(value)}.")


# Unicode's categories of control characters, halves of pairs, and separators of lines.
_IN_NO_NAME = {"Cc", "Cs", "Zl", "Zp"}


def require_text(name: str, value: object) -> None:
    """Raise `ConfigError` for an argument that cannot be a name or an address."""
    if not isinstance(value, str) or {unicodedata.category(c) for c in value} & _IN_NO_NAME:
        raise ConfigError(
            f"Expected {setting(name)} to be text of printable characters, got {shown(value)}."
        )


def require_path(name: str, value: object) -> Path:
    """Return an argument that names a file or folder; raise `ConfigError` if it cannot."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str) and text and "\0" not in text:
        with contextlib.suppress(UnicodeEncodeError):
            os.fsencode(text)
            return Path(text)
    raise ConfigError(f"Expected {setting(name)} to be a path, got {shown(value)}.")


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise `ConfigError` for an argument that is none of its choices, and name the near one."""
    if not isinstance(value, str) or value not in choices:
        near = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise ConfigError(
            f"Expected {setting(name)} to be {' or '.join(choices)}, got {shown(value)}.{near}"
        )


def singular(words: str) -> str:
    """Change the words of `describe_range` from many numbers to one."""
    return "a " + words.replace("numbers", "number", 1)


def setting_called(name: str) -> str | None:
    """Return the setting with this name, also in other programs; None if there is none."""
    name = name.strip("-").lower().replace("-", "_")
    name = _OTHER_NAMES.get(name, name)
    return name if name in FIELDS else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return a question with the most similar name, if any, such as " Did you mean dropout?"."""
    bare = {name.lstrip("-"): name for name in names}
    called = setting_called(word)
    near = [called] if called in bare else difflib.get_close_matches(word.lstrip("-"), bare, n=1)
    return f" Did you mean {bare[near[0]]}?" if near else ""


def feature_map_sizes(config: TrainingConfig) -> dict[str, int]:
    """Compute the side, in pixels, of the square feature map after each convolution and pooling.

    A convolution without padding gives floor((n - kernel_size) / strides) + 1 pixels, see V.
    Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning" (2016),
    relationship 6; pooling halves that, rounding down.

    Raises:
        ConfigError: a layer would have no pixel left. The message names the layer.
    """
    sizes: dict[str, int] = {}
    size = IMAGE_SIZE
    for block in (1, 2):
        for layer, window, step in (
            (f"conv{block}", config.kernel_size, config.strides),
            (f"pool{block}", POOL_SIZE, POOL_SIZE),
        ):
            if size < window:
                kind = "convolution" if layer.startswith("conv") else "pooling"
                raise ConfigError(
                    f"kernel_size={config.kernel_size} with strides={config.strides} leaves "
                    f"nothing for layer {layer}: its {window}x{window} {kind} window does not fit "
                    f"the {size}x{size} feature map it is given. Choose a smaller kernel_size or "
                    "smaller strides."
                )
            size = (size - window) // step + 1
            sizes[layer] = size
    return sizes


def multiply_adds(config: TrainingConfig) -> int:
    """Count the multiplications, each with an addition, to classify one image.

    For each convolution and dense layer, it is the number of output values times the inputs of
    each.
    """
    sizes = feature_map_sizes(config)
    window = config.kernel_size**2
    first = sizes["conv1"] ** 2 * config.filters * window
    second = sizes["conv2"] ** 2 * config.filters * window * config.filters
    flat = sizes["pool2"] ** 2 * config.filters
    return first + second + (flat + len(CLASS_NAMES)) * config.hidden_units


def flops_per_image(config: TrainingConfig) -> int:
    """Count the additions and multiplications to classify one image; see `multiply_adds`."""
    return 2 * multiply_adds(config)


def weight_shapes(config: TrainingConfig) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the network's trainable weights: each layer's kernel and biases."""
    window = (config.kernel_size, config.kernel_size)
    flat = feature_map_sizes(config)["pool2"] ** 2 * config.filters
    kernels: tuple[tuple[int, ...], ...] = (
        (*window, 1, config.filters),
        (*window, config.filters, config.filters),
        (flat, config.hidden_units),
        (config.hidden_units, len(CLASS_NAMES)),
    )
    return tuple(shape for kernel in kernels for shape in (kernel, kernel[-1:]))


def model_parameters(config: TrainingConfig) -> int:
    """Count the trainable weights of the network."""
    return sum(map(math.prod, weight_shapes(config)))


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A finite grid: for each axis, which is a field of `TrainingConfig`, the values in order.

    Attributes:
        axes: the values by the field's name; by default those of the coursework.

    Raises:
        ConfigError: there is no axis, an unknown one, one without values, or a repeated value; or
            the grid is larger than what can be explored.
    """

    axes: Mapping[str, tuple[Value, ...]] = field(default_factory=lambda: dict(COURSEWORK_GRID))

    def __post_init__(self) -> None:
        if not self.axes:
            raise ConfigError("Expected a grid with at least one axis, got none.")
        points = math.prod(len(values) for values in self.axes.values())
        if points > MOST_POINTS:
            raise ConfigError(f"Expected a grid of at most {MOST_POINTS:,} points, got more.")
        checked = {}
        for name, values in self.axes.items():
            _require_setting(name)
            if not values:
                raise ConfigError(f"Expected at least one value for the axis {name}, got none.")
            checked[name] = tuple(check_value(name, value) for value in values)
            (value, times), *_ = Counter(checked[name]).most_common(1)
            if times > 1:
                raise ConfigError(
                    f"Expected the values of {name} to differ, got {value:g} more than once."
                )
        object.__setattr__(self, "axes", checked)

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.axes.values())

    @property
    def varying(self) -> tuple[str, ...]:
        """Return the axes with more than one value."""
        return tuple(axis for axis, values in self.axes.items() if len(values) > 1)

    def points(self, base: TrainingConfig) -> tuple[TrainingConfig, ...]:
        """Return every configuration of the grid, the last axis changing fastest.

        Args:
            base: has the value of each field that is not an axis.

        Raises:
            ConfigError: a point of the grid cannot be built; the message names the layer.
        """
        return tuple(
            dataclasses.replace(base, **dict(zip(self.axes, values, strict=True)))  # type: ignore[arg-type]
            for values in itertools.product(*self.axes.values())
        )

    def with_axes(self, axes: Mapping[str, Iterable[Value]]) -> "SearchSpace":
        """Return this grid with axes added or replaced."""
        return SearchSpace(axes={**self.axes, **{k: tuple(v) for k, v in axes.items()}})
