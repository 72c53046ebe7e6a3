"""`.keras` files that other versions of Keras can read."""

import importlib
import inspect
import json
import os
import zipfile
from pathlib import Path
from typing import Any

# The file in a `.keras` archive that describes the layers.
_CONFIG_FILE = "config.json"


def make_portable(path: Path) -> None:
    """Replace a `.keras` file by one that all versions of Keras from 3.5 on can read.

    Keras writes every argument of a layer or initializer, and refuses a file with an argument that
    it does not know: 3.12 cannot load what 3.15 saves. An argument that is null or false, and is so
    by default, is removed; the model is the same without it.
    """
    rewritten = path.with_name(f"{path.name}.part")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(rewritten, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename == _CONFIG_FILE:
                content = json.dumps(_without_defaults(json.loads(content))).encode()
            new.writestr(entry, content)
    os.replace(rewritten, path)


def _without_defaults(value: Any) -> Any:
    """Remove arguments that are null or false by default from what Keras has serialized."""
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _without_defaults(item) for key, item in value.items()}
    module, config = kept.get("module"), kept.get("config")
    # Other libraries' classes may be of any version, and are not imported here.
    if isinstance(config, dict) and str(module).partition(".")[0] == "keras":
        made_by = getattr(importlib.import_module(str(module)), str(kept["class_name"]), None)
        known = inspect.signature(made_by).parameters if inspect.isclass(made_by) else {}
        kept["config"] = {
            name: argument
            for name, argument in config.items()
            if not (
                (argument is None or argument is False)
                and name in known
                and known[name].default is argument
            )
        }
    return kept
