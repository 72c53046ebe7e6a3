"""The coursework's grid, for what searches it without this package; imports nothing."""

GRID = {
    "filters": [12, 36, 48],
    "strides": [1, 2],
    "kernel_size": [3, 4],
    "hidden_units": [64],
}
