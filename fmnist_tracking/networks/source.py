"""Find the function that builds a network, and what it is made of; nothing of it is run here."""

import ast
import contextlib
import hashlib
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from fmnist_tracking.errors import ConfigError, setting, shown
from fmnist_tracking.network import COURSEWORK, COURSEWORK_NAME, Network

# A function build(hp), a HyperModel class, or the name of one; None for the coursework's.
NetworkName: TypeAlias = str | Callable[..., Any] | Network | None
_EXAMPLE = "Examples: my_net.py:build, my_package.networks:build"


def find_network(named: NetworkName) -> Network:
    """Find the network that a person names.

    Args:
        named: "FILE.py:NAME", or "package.module:NAME", or the function or `HyperModel` class
            itself, which must be in a file; None for the coursework's.

    Raises:
        ConfigError: there is none, or its file is no Python.
    """
    if isinstance(named, Network):
        return named
    if named is None or named == COURSEWORK_NAME:
        return COURSEWORK
    if isinstance(named, str):
        place, colon, function = named.rpartition(":")
        if not colon or not function.isidentifier() or not place:
            raise ConfigError(
                f"Expected {setting('network')} to be FILE.py:NAME or package.module:NAME, got "
                f"{shown(named)}. {_EXAMPLE}"
            )
        if place.endswith(".py"):
            return _in_file(Path(place), function)
        return _in_module(place, function)
    return _of_object(named)


def _of_object(function: Any) -> Network:
    name, module = getattr(function, "__qualname__", None), getattr(function, "__module__", None)
    if not callable(function) or not isinstance(name, str) or not isinstance(module, str):
        raise ConfigError(
            f"Expected {setting('network')} to be a function build(hp), a HyperModel class, or the "
            f"name of one, got {shown(function)}. {_EXAMPLE}"
        )
    if not name.isidentifier():  # a lambda, or within another function
        raise ConfigError(
            f"Expected {setting('network')} to be a function that a worker process can import; "
            f"{shown(name)} is no name at the top of a module. Write it as a `def` there."
        )
    if module == "__main__":
        try:
            file = Path(inspect.getfile(function))
        except (TypeError, OSError):
            file = Path()
        if not file.is_file():
            raise ConfigError(
                f"Expected {setting('network')} to be a function in a file, which the worker "
                f"processes can load; {name} was typed in here. Save it as my_net.py, and give "
                f"{setting('network')} as 'my_net.py:{name}'."
            )
        return _in_file(file, name)
    return _in_module(module, name)


def _in_file(path: Path, function: str) -> Network:
    if not path.is_file():
        raise ConfigError(f"There is no file {path}, which {setting('network')} names. {_EXAMPLE}")
    path = path.resolve()
    return Network(
        name=f"{path.name}:{function}",
        function=function,
        source=_digest(path, function),
        file=path,
    )


def _in_module(module: str, function: str) -> Network:
    with folder_on_path(Path.cwd()):
        try:
            found = find_spec(module)
        except (ImportError, ValueError, AttributeError):  # a parent is no package
            found = None
    if found is None or not found.origin or not found.origin.endswith(".py"):
        raise ConfigError(
            f"There is no module {module}, which {setting('network')} names. {_EXAMPLE}"
        )
    if (module, function) == (COURSEWORK.module, COURSEWORK.function):
        return COURSEWORK
    path = Path(found.origin).resolve()
    return Network(
        name=f"{module}:{function}",
        function=function,
        source=_digest(path, function, module),
        module=module,
        file=path,
    )


@contextlib.contextmanager
def folder_on_path(folder: Path) -> Iterator[None]:
    """Have Python look for modules in a folder too, after all other places."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _digest(path: Path, function: str, module: str = "") -> str:
    """Compute the SHA-256, in hex, of a file's code and of what it imports from beside it.

    Comments, docstrings and layout do not count.

    Raises:
        ConfigError: a file cannot be read, is no Python, or lacks the function.
    """
    known: dict[Path, str] = {}
    _add(path, [path.parent, path.parents[module.count(".")]], known)
    tree = ast.parse(known[path])
    if function not in _top_names(tree):
        names = [name for name in _top_names(tree) if not name.startswith("_")]
        there = f" It has: {', '.join(names[:9])}." if names else ""
        raise ConfigError(f"There is no {function} in {path}.{there} {_EXAMPLE}")
    parts = [f"{file.relative_to(path.parent)}\n{code}" for file, code in sorted(known.items())]
    # The file itself may be renamed.
    parts[sorted(known).index(path)] = known[path]
    return hashlib.sha256("\0".join(sorted(parts)).encode()).hexdigest()


def _add(path: Path, roots: Sequence[Path], known: dict[Path, str]) -> None:
    """Add a file's code, and that of the files beside it that it imports.

    Modules are looked for in the roots, of which the first is the folder that is meant by beside.
    """
    tree = _parsed(path)
    known[path] = ""
    for name, root in itertools.product(_imported(tree), roots):
        for place in (root / f"{name}.py", root / name / "__init__.py"):
            beside = place.resolve()
            if beside.is_relative_to(roots[0]) and beside.is_file() and beside not in known:
                _add(beside, roots, known)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body[:1] = [] if len(node.body) > 1 else [ast.Pass()]
    known[path] = ast.unparse(tree)


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {error.msg}.") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the names of modules, as paths below the file's folder, that a file may import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.replace(".", "/")
        elif isinstance(node, ast.ImportFrom) and node.level <= 1:
            module = (node.module or "").replace(".", "/")
            if module:
                yield module
            for alias in node.names:
                yield f"{module}/{alias.name}".lstrip("/")


def _top_names(tree: ast.Module) -> list[str]:
    """Return the names that a module gives to functions, classes and variables."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names += [alias.asname or alias.name for alias in node.names]
    return names
