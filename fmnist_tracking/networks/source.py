"""Find the function that builds a network, and what it is made of; nothing of it is run here."""

import ast
import contextlib
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from fmnist_tracking.errors import ConfigError, setting, shown
from fmnist_tracking.network import COURSEWORK, COURSEWORK_NAME, Network

# A function build(hp), a HyperModel class, or the name of one; None for the coursework's.
NetworkName: TypeAlias = str | Callable[..., Any] | Network | None
_EXAMPLE = "Examples: my_net.py:build, my_package.networks:build"
_PACKAGE = __name__.partition(".")[0]
# More files than any network imports from beside it.
_MOST_FILES = 1000


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
    return _network(path.resolve(), f"{path.name}:{function}", function, None)


def _in_module(module: str, function: str) -> Network:
    if (module, function) == (COURSEWORK.module, COURSEWORK.function):
        return COURSEWORK
    top, _, below = module.partition(".")
    with folder_on_path(Path.cwd()), contextlib.suppress(ImportError, ValueError, AttributeError):
        found = find_spec(top)  # which runs nothing, as it would for a module in a package
        roots = (found and found.submodule_search_locations) or []
        places = [place for root in roots for place in _places(Path(root), below)] if below else []
        for path in places or [Path((found and found.origin) or "")]:
            if path.suffix == ".py" and path.is_file():
                return _network(path.resolve(), f"{module}:{function}", function, module)
    raise ConfigError(f"There is no module {module}, which {setting('network')} names. {_EXAMPLE}")


def _network(path: Path, name: str, function: str, module: str | None) -> Network:
    known = Network(name=name, function=function, source="?", module=module, file=path)
    digest = hashlib.sha256()
    for code in sorted(source_of(known).values()):
        digest.update(hashlib.sha256(code).digest())
    return Network(
        name=name, function=function, source=digest.hexdigest(), module=module, file=path
    )


def require_unchanged(network: Network) -> None:
    """Raise `ConfigError` if the source of a network has changed since it was found."""
    assert network.file is not None
    now = _network(network.file, network.name, network.function, network.module)
    if now.source != network.source:
        raise ConfigError(
            f"{network.name} has changed while it was in use: its source, or what it imports from "
            "beside it, is another than when this began. Begin again."
        )


def root_of(network: Network) -> Path:
    """Return the folder in which the modules that a network imports from beside it are found."""
    assert network.file is not None
    if network.module is None:
        return network.file.parent
    is_package = network.file.name == "__init__.py"
    return network.file.parents[network.module.count(".") + is_package]


@contextlib.contextmanager
def folder_on_path(folder: Path) -> Iterator[None]:
    """Have Python look for modules in a folder, before all other places."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # its code may have changed the list
            sys.path.remove(str(folder))


def source_of(network: Network) -> dict[Path, bytes]:
    """Return the code of a network's file, and of what it imports from beside it, by file.

    Comments, docstrings, layout, and what is under `if __name__ == "__main__":` do not count. What
    is imported in other ways than by `import` is not seen.

    Raises:
        ConfigError: a file cannot be read, or is no Python.
    """
    assert network.file is not None
    root, top = root_of(network), (network.module or "").partition(".")[0]
    found: dict[Path, bytes] = {}
    waiting = [network.file]
    if network.module is not None and top != _PACKAGE:
        waiting += _parents(root, network.module)
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        if len(found) >= _MOST_FILES:
            raise ConfigError(f"{network.name} imports more than {_MOST_FILES} files.")
        tree = _parsed(path)
        found[path] = _canonical(tree, path)
        waiting += [
            place.resolve()
            for name in imported_names(tree, path, root)
            if name and (not top or name.partition(".")[0] == top)
            for place in (*_parents(root, name), *_places(root, name))
        ]
    return found


def _places(root: Path, module: str) -> tuple[Path, Path]:
    path = root / module.replace(".", "/")
    return path.with_name(f"{path.name}.py"), path / "__init__.py"


def _parents(root: Path, module: str) -> list[Path]:
    """Return the files of the packages that a module is in, which run when it is imported."""
    parts = module.split(".")[:-1]
    return [root.joinpath(*parts[: n + 1], "__init__.py") for n in range(len(parts))]


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {error.msg}.") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None


def imported_names(tree: ast.Module, path: Path, root: Path) -> Iterator[str]:
    """Yield the full names of modules that a file may import; some are names in modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                folder = path.parents[min(node.level, len(path.parents)) - 1]
                if not folder.is_relative_to(root):
                    continue
                package = ".".join(folder.relative_to(root).parts)
                module = ".".join(filter(None, (package, module)))
            yield module
            yield from (".".join(filter(None, (module, alias.name))) for alias in node.names)


def _canonical(tree: ast.Module, path: Path) -> bytes:
    """Return what a file's code says, in words that are the same for every version of Python."""
    tree.body = [node for node in tree.body if not _is_main_block(node)]
    try:
        return "\n".join(_words(tree)).encode("utf-8", "surrogatepass")
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be read.") from None


def _is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def _words(node: Any) -> Iterator[str]:
    """Yield the words of a node of a syntax tree: kinds, names, values; not what is empty."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        fields = dict(ast.iter_fields(node))
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            fields["body"] = node.body[1:]
        for name, value in fields.items():
            if value not in (None, []) and name not in ("kind", "type_comment", "ctx"):
                yield name
                yield from _words(value)
        yield ")"
    elif isinstance(node, list):
        for one in node:
            yield from _words(one)
    else:
        yield f"{type(node).__name__} {node!r}"
