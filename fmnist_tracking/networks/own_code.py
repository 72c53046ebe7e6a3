"""What a model has that is not Keras's own: found in its network's files, and packed with it."""

import ast
import importlib.metadata
import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import FunctionType, ModuleType
from typing import Any

import keras

from fmnist_tracking.errors import ConfigError, named
from fmnist_tracking.files import digest_of, write_files
from fmnist_tracking.network import Network, PackedModel
from fmnist_tracking.networks import logged_code
from fmnist_tracking.networks.logged_code import module_name, modules_apart
from fmnist_tracking.networks.portable import make_portable
from fmnist_tracking.networks.source import imported_names, root_of, source_of

# Of each network: the modules that were imported from beside it, by name, and their files as they
# were then, by path.
_imported: dict[Network, dict[str, ModuleType]] = {}
_files: dict[Network, dict[str, bytes]] = {}
# Module and name there.
Place = tuple[str, str]


@contextmanager
def own_modules(network: Network) -> Iterator[None]:
    """Let a network import what is beside its file, whatever else has a module of such a name."""
    root = root_of(network)
    names = [module_name(file.relative_to(root)) for file in source_of(network)]
    with modules_apart(names, _imported.setdefault(network, {})):
        yield


def keep_files(network: Network) -> None:
    """Keep the files of a network as they are now, for what will be packed."""
    root = root_of(network)
    _files[network] = {
        file.relative_to(root).as_posix(): file.read_bytes() for file in source_of(network)
    }


def own_places(described: Any, network: Network) -> dict[str, Place]:
    """Return where the code is of what a model has that is not Keras's own, by Keras's names.

    Args:
        described: the model, as Keras serializes it.
        network: that has built it.

    Raises:
        ConfigError: something of it is not in the network's file, or beside it.
    """
    found: dict[str, Place] = {}
    for node in _foreign(described):
        if node.get("class_name") == "function":
            name, place = str(node["config"]), _place_of_function(node, network)
        elif node.get("registered_name") is not None:
            name, place = str(node["registered_name"]), _place_of_class(node, network)
        else:
            raise ConfigError(
                f"{network.name} has a lambda, which cannot be kept with a model. Write it as a "
                "layer class in the file."
            )
        if place is None:
            raise ConfigError(
                f"{network.name} has {name}, which is neither Keras's own nor one class or "
                "function of that name at the top of its file or of a module beside it: a model "
                "with it could not be loaded where its code is not. Define it there."
            )
        if found.setdefault(name, place) != place:
            raise ConfigError(
                f"{network.name} has two that Keras calls {name}, in {place[0]} and "
                f"{found[name][0]}: a model with both could not be loaded. Rename one."
            )
    return found


def require_no_namesake(model: keras.Model, network: Network) -> None:
    """Raise `ConfigError` for an activation that Keras would take for its own, by its name."""
    for layer in model._flatten_layers():
        used = getattr(layer, "activation", None)
        if (
            isinstance(used, FunctionType)
            and used.__module__ in _imported.get(network, {})
            and hasattr(keras.activations, _known_as(used))
        ):
            raise ConfigError(
                f"{network.name} has an activation of its own that is called {used.__name__}, as "
                "one of Keras's: a model would be loaded with that. Rename it."
            )


def own_objects(places: Mapping[str, Place], network: Network) -> dict[str, Any]:
    """Return a network's own classes and functions by Keras's names."""
    modules = _imported.get(network, {})
    return {key: getattr(modules[module], name) for key, (module, name) in places.items()}


def _foreign(content: Any) -> Iterator[dict[str, Any]]:
    """Yield what a model is made of that Keras alone cannot load, as Keras has serialized it."""
    if isinstance(content, dict):
        kind, code = content.get("class_name"), content.get("value")
        # Keras writes the code of a lambda so, in what is a number for all else.
        is_code = isinstance(code, tuple | list) and len(code) == 3 and isinstance(code[0], str)
        is_other = (
            content.get("registered_name") is not None
            and str(content["module"]).partition(".")[0] != "keras"
        )
        if kind in ("__lambda__", "function") or is_code or is_other:
            yield content
        for key, value in content.items():
            if key != "compile_config":  # loss and optimizer are not kept with the model
                yield from _foreign(value)
    elif isinstance(content, list | tuple):
        for one in content:
            yield from _foreign(one)


def _place_of_class(node: Mapping[str, Any], network: Network) -> Place | None:
    module, name = str(node["module"]), str(node["class_name"])
    found = getattr(_imported.get(network, {}).get(module), name, None)
    if not inspect.isclass(found):
        return None
    return (module, name) if _known_as(found) == node["registered_name"] else None


def _place_of_function(node: Mapping[str, Any], network: Network) -> Place | None:
    """Return where a function is, of which Keras writes the name alone; None if it may be two."""
    found = {
        value: (module, name)
        for module, content in _imported.get(network, {}).items()
        for name, value in vars(content).items()
        if isinstance(value, FunctionType)
        and value.__module__ == module
        and _known_as(value) == node["config"]
    }
    return next(iter(found.values())) if len(found) == 1 else None


def _known_as(value: Any) -> str:
    return str(keras.saving.get_registered_name(value))


def pack(model: keras.Model, places: Mapping[str, Place], network: Network) -> PackedModel:
    """Return a model with the code that it needs, as files.

    Raises:
        ConfigError: the code cannot be run, or the model loaded, with those files alone.
    """
    inner = _code(places, network)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "model.keras")
        model.save(file)
        make_portable(file)
        write_files(Path(scratch), inner)
        try:
            with keras.saving.custom_object_scope(logged_code.own_objects(Path(scratch))):
                keras.models.load_model(file, compile=False)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{network.name}: its model cannot be loaded with its code alone: {named(error)}. "
                "Its code is what it imports from beside its file, without other files."
            ) from error
        packed = file.read_bytes()
    # Models with other code have it by another name, so that one process can load both.
    package = f"network_code_{digest_of(inner)[:16]}"
    return PackedModel(
        file=packed,
        package=package,
        code={f"{package}/{path}": content for path, content in inner.items()},
        requirements=_requirements(network),
        output_shape=(None, network.classes),
    )


def _code(places: Mapping[str, Place], network: Network) -> dict[str, bytes]:
    files = {
        # A name with dots could not be imported.
        PurePosixPath(logged_code.SOURCE, path).with_name(
            PurePosixPath(path).stem.replace(".", "_") + ".py"
        ): content
        for path, content in _files[network].items()
    }
    return {
        "__init__.py": b"",
        "models.py": Path(logged_code.__file__).read_bytes(),  # MLflow asks for it by that name
        logged_code.NAMES: json.dumps(places, indent=2, sort_keys=True).encode(),
        **{str(path): content for path, content in files.items()},
    }


def _requirements(network: Network) -> tuple[str, ...]:
    """Return the packages that are installed here and imported by a network's files."""
    root, known = root_of(network), importlib.metadata.packages_distributions()
    names = {
        name.partition(".")[0]
        for path, content in _files[network].items()
        for name in imported_names(ast.parse(content), root / path, root)
    }
    return tuple(sorted({package for name in names for package in known.get(name, ())}))
