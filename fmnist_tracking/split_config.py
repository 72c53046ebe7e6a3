"""How a data set is split: what a person asks for, and how many images that gives."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from fmnist_tracking.config import CLASS_NAMES, check_value, require_choice, require_whole
from fmnist_tracking.errors import ConfigError, setting

Protocol: TypeAlias = Literal["canonical", "coursework"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
VALIDATION_SHARE = 1 / 6
COURSEWORK_TEST_SHARE = 0.2
# With fewer images of a class, a stratified sixth would not have one of it.
LEAST_OF_A_CLASS = 6
# More than any data set that can be read has.
_MOST_IMAGES = 10**9


@dataclass(frozen=True, kw_only=True)
class DataSize:
    """How large a data set is.

    Attributes:
        train_images: number of its images for training.
        test_images: number of its own images for testing.
        classes: number of its classes.

    Raises:
        ConfigError: there cannot be so few, or so many.
    """

    train_images: int
    test_images: int
    classes: int

    def __post_init__(self) -> None:
        for name, least in (("train_images", 1), ("test_images", 1), ("classes", 2)):
            number = require_whole(name, getattr(self, name), least)
            if number > _MOST_IMAGES:
                raise ConfigError(f"Expected {name} to be at most {_MOST_IMAGES:,}, got more.")
            object.__setattr__(self, name, number)

    def __str__(self) -> str:
        return (
            f"{self.train_images:,} training images, {self.test_images:,} test images and "
            f"{self.classes} classes"
        )


FASHION_MNIST_SIZE = DataSize(train_images=60_000, test_images=10_000, classes=len(CLASS_NAMES))


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which images are for training, which for validation, and which are kept for testing.

    Attributes:
        protocol: `canonical` keeps the data set's own test images (Fashion-MNIST's 10,000) and
            takes a sixth of the others (60,000) for validation; `coursework` pools all images,
            takes a fifth for testing and a sixth of the rest for validation.
        seed: seed of the stratified choice.
        limit: number of images for training and validation together, and at most as many for
            testing; None uses all.
        data: size of the data set that is split.
        validates: whether there are validation images; if not, those that it would take for them
            are for training too. The test images are the same.

    Raises:
        ConfigError: the protocol is unknown, or does not have as many images as the limit.
    """

    protocol: Protocol = "canonical"
    seed: int = 0
    limit: int | None = None
    data: DataSize = field(default=FASHION_MNIST_SIZE, metadata={"neutral": FASHION_MNIST_SIZE})
    validates: bool = field(default=True, metadata={"neutral": True})

    def __post_init__(self) -> None:
        require_choice("protocol", self.protocol, PROTOCOLS)
        object.__setattr__(self, "seed", check_value("seed", self.seed))
        if self.limit is None:
            return
        object.__setattr__(self, "limit", require_whole("limit", self.limit, minimum=0))
        least = LEAST_OF_A_CLASS * self.data.classes
        if not least <= self.limit <= self.available_images:
            raise ConfigError(
                f"Expected {setting('limit')} to be from {least}, so that each class is "
                f"in both training and validation, to {self.available_images}, the images that "
                f"{setting('protocol')} {self.protocol} has for them, got {self.limit}."
            )

    @property
    def available_images(self) -> int:
        """Return the number of images for training and validation together, without a limit."""
        if self.protocol == "canonical":
            return self.data.train_images
        pooled = self.data.train_images + self.data.test_images
        return pooled - math.ceil(COURSEWORK_TEST_SHARE * pooled)

    def values(self) -> dict[str, Any]:
        """Return all fields by name, those of the data's size among them.

        `validates` is among them where it is not the usual.
        """
        fields = dataclasses.asdict(self)
        size = fields.pop("data")
        if self.validates:
            del fields["validates"]
        return {**fields, **size}

    @property
    def training_images(self) -> int:
        """Return the number of training images.

        It is rounded down, as validation rounds its share up.
        """
        return self._seen - self.validation_images

    @property
    def validation_images(self) -> int:
        """Return the number of validation images."""
        return math.ceil(VALIDATION_SHARE * self._seen) if self.validates else 0

    @property
    def _seen(self) -> int:
        return self.limit or self.available_images
