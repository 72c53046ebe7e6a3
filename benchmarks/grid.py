"""The coursework's grid, for what searches it without this package; it imports no library."""

import json
import sys
from collections.abc import Iterable, Mapping

GRID = {
    "filters": [12, 36, 48],
    "strides": [1, 2],
    "kernel_size": [3, 4],
    "hidden_units": [64],
}


def write_result(points: Iterable[Mapping[str, object]], best_val_accuracy: float) -> None:
    """Write `result.json`: how many different points were trained, and the best accuracy."""
    result = {
        "points": len({tuple(sorted(values.items())) for values in points}),
        "best_val_accuracy": best_val_accuracy,
        # This package sets things in the processes that use it; none of that here.
        "is_stock": "fmnist_tracking" not in sys.modules,
    }
    with open("result.json", "w", encoding="utf-8") as file:
        json.dump(result, file)
