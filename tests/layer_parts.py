"""What the networks of `layer_nets` import from beside them."""

from typing import Any

import keras


class Halved(keras.initializers.Initializer):  # type: ignore[misc]
    """Give half of a number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> Any:
        """Give it."""
        return keras.ops.full(shape, self.number / 2, dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the argument."""
        return {"number": self.number}


def swish_twice(x: Any) -> Any:
    """Apply an activation twice."""
    return keras.activations.silu(keras.activations.silu(x))
