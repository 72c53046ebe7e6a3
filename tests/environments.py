"""The environment of a person's own program: without what the tests set for their process."""

import os

from fmnist_tracking import runtime

_OURS = {*runtime.DEFAULTS, "KERAS_BACKEND", "KERAS_HOME", "MPLBACKEND", "PYTHONSAFEPATH"}


def own_environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    return {**kept, **variables}
