"""Which network is trained, and how large it is: what can be known of it without building it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fmnist_tracking.errors import ConfigError

Value: TypeAlias = int | float | str | bool
IMAGE_SIZE = 28
POOL_SIZE = 2
COURSEWORK_NAME = "coursework"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A function `build(hp)` that returns a compiled Keras model, for images of one shape.

    Two are the same if their functions have the same name and their sources say the same, wherever
    the files lie.

    Attributes:
        name: for people, such as "my_net.py:build".
        function: the name of the function, or of a `HyperModel`, in its module.
        source: SHA-256, in hex, of its module's source; "" for the coursework's network, which has
            a version number instead (`fingerprint.NETWORKS`).
        image_shape: height, width and channels of the images.
        classes: how many there are.
        module: the name under which it is imported, None if it is loaded from `file`.
        file: the file of its source.
    """

    name: str = field(compare=False)
    function: str = "build"
    source: str = ""
    image_shape: tuple[int, int, int] = (IMAGE_SIZE, IMAGE_SIZE, 1)
    classes: int = 10
    module: str | None = field(default=None, compare=False)
    file: Path | None = field(default=None, compare=False)

    @property
    def is_coursework(self) -> bool:
        """Return whether it is the network of the coursework, whose sizes are known."""
        return not self.source

    def to_json(self) -> dict[str, Any]:
        """Return what identifies it, as a dictionary that `json` can write."""
        return {
            "name": self.name,
            "function": self.function,
            "source": self.source,
            "image_shape": list(self.image_shape),
            "classes": self.classes,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Network":
        """Return the network that `to_json` was called on; it cannot be built.

        Raises:
            ValueError: the content does not describe one.
        """
        shape = content.get("image_shape")
        texts = [content.get(key) for key in ("name", "function", "source")]
        numbers = [*(shape if isinstance(shape, list) else ()), content.get("classes")]
        if (
            len(numbers) != 4
            or not all(type(n) is int and 1 <= n < 10**6 for n in numbers)
            or not all(isinstance(text, str) for text in texts)
        ):
            raise ValueError("it does not describe a network")
        height, width, channels, classes = numbers
        name, function, source = map(str, texts)
        return cls(
            name=name,
            function=function,
            source=source,
            image_shape=(height, width, channels),
            classes=classes,
        )


COURSEWORK = Network(name=COURSEWORK_NAME, module="fmnist_tracking.networks.coursework")


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """How large a network is.

    Attributes:
        parameters: number of weights.
        multiply_adds: multiplications, each with an addition, to classify one image: for each
            convolution and dense layer, its output values times the inputs of each.
        outputs: values that its layers give for one image, which training keeps for a batch.
    """

    parameters: int
    multiply_adds: int
    outputs: int

    def __post_init__(self) -> None:
        numbers = (self.parameters, self.multiply_adds, self.outputs)
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise ConfigError(f"Expected the size of a network in whole numbers, got {numbers}.")


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """A trained model with classes or functions of its network's own, and their code, as files.

    Attributes:
        file: the `.keras` file.
        package: the Python package among the code whose module `models` loads it.
        code: files by path; Python finds the package where these paths begin.
        requirements: the names of the installed packages that the code imports.
        output_shape: of the model, None for the number of images.
    """

    file: bytes
    package: str
    code: Mapping[str, bytes]
    requirements: tuple[str, ...]
    output_shape: tuple[None, int]


def feature_map_sizes(
    values: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> dict[str, tuple[int, int]]:
    """Compute height and width of the feature map after each layer of the coursework's network.

    A convolution without padding gives floor((n - kernel_size) / strides) + 1 pixels, see V.
    Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning" (2016),
    relationship 6; pooling halves that, rounding down.

    Raises:
        ConfigError: a layer would have no pixel left. The message names the layer.
    """
    kernel_size, strides = values["kernel_size"], values["strides"]
    sizes: dict[str, tuple[int, int]] = {}
    height, width, _ = image_shape
    for block in (1, 2):
        for layer, window, step in (
            (f"conv{block}", kernel_size, strides),
            (f"pool{block}", POOL_SIZE, POOL_SIZE),
        ):
            if min(height, width) < window:
                kind = "convolution" if layer.startswith("conv") else "pooling"
                raise ConfigError(
                    f"kernel_size={kernel_size} with strides={strides} leaves "
                    f"nothing for layer {layer}: its {window}x{window} {kind} window does not fit "
                    f"the {height}x{width} feature map it is given. Choose a smaller kernel_size "
                    "or smaller strides."
                )
            height, width = ((side - window) // step + 1 for side in (height, width))
            sizes[layer] = height, width
    return sizes


def weight_shapes(values: Mapping[str, Any], network: Network) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the coursework's trainable weights: each layer's kernel and biases."""
    filters, hidden_units = values["filters"], values["hidden_units"]
    window = (values["kernel_size"],) * 2
    flat = math.prod(feature_map_sizes(values, network.image_shape)["pool2"]) * filters
    kernels: tuple[tuple[int, ...], ...] = (
        (*window, network.image_shape[2], filters),
        (*window, filters, filters),
        (flat, hidden_units),
        (hidden_units, network.classes),
    )
    return tuple(shape for kernel in kernels for shape in (kernel, kernel[-1:]))


def coursework_size(values: Mapping[str, Any], network: Network) -> NetworkSize:
    """Compute the size of the coursework's network with such hyperparameters.

    Raises:
        ConfigError: a layer would have no pixel left.
    """
    maps = feature_map_sizes(values, network.image_shape)
    shapes = weight_shapes(values, network)
    places = [math.prod(maps["conv1"]), math.prod(maps["conv2"]), 1, 1]
    kernels = [math.prod(shape) for shape in shapes[::2]]
    return NetworkSize(
        parameters=sum(map(math.prod, shapes)),
        multiply_adds=sum(n * k for n, k in zip(places, kernels, strict=True)),
        outputs=values["filters"] * sum(map(math.prod, maps.values())) + values["hidden_units"],
    )
