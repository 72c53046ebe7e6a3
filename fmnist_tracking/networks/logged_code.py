"""Load a model with the classes and functions that were logged with it.

A copy of this file lies beside them in the logged model, as `models.py`, and MLflow loads the model
by it: so it imports nothing of this package.
"""

import importlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

import keras

# Beside this file: the folder of the code, and where in it is what Keras knows by which name.
SOURCE, NAMES = "source", "objects.json"


def load_model(path: Any, custom_objects: Any = None, **options: Any) -> keras.Model:
    """Load a `.keras` file, as Keras does, with the code beside this file."""
    with keras.saving.custom_object_scope(own_objects(Path(__file__).parent)):
        return keras.models.load_model(path, custom_objects=custom_objects, **options)


def own_objects(folder: Path) -> dict[str, Any]:
    """Run the code in a folder, and return what a model needs of it, by Keras's names.

    It is run anew each time, apart from what else has been imported: another model may have other
    code of the same names.
    """
    places = json.loads((folder / NAMES).read_text("utf-8"))
    source = folder / SOURCE
    names = [module_name(file.relative_to(source)) for file in source.rglob("*.py")]
    importlib.invalidate_caches()
    sys.path.insert(0, str(source))
    try:
        with modules_apart(names, {}):
            return {
                key: getattr(importlib.import_module(module), name)
                for key, (module, name) in places.items()
            }
    finally:
        sys.path.remove(str(source))


def module_name(file: PurePath) -> str:
    """Return the name by which a file is imported from the folder that its path begins in."""
    parts = [part.replace(".", "_") for part in file.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@contextmanager
def modules_apart(names: Iterable[str], own: dict[str, ModuleType]) -> Iterator[None]:
    """Have modules of such names imported anew, but those in `own`, to which they are added."""
    names = {*names, *own}
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update(own)
    # A file that is changed twice in a second would be taken for what was compiled first.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        own.update({name: sys.modules.pop(name) for name in names if name in sys.modules})
        sys.modules.update(others)
