"""Refusing, before anything is begun, a call that workers would repeat or could not follow."""

import ast
import multiprocessing
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from fmnist_tracking.errors import ConfigError

# Tells a worker's process from others of the program's own.
WORKER_NAME = "fmnist-tracking worker"

_Conditional: TypeAlias = ast.If | ast.While | ast.Match | ast.Assert | ast.IfExp | ast.BoolOp
_EXITS = {"exit", "quit", "_exit"}


def require_startable() -> None:
    """Raise `ConfigError` where workers cannot be started.

    Python imports the main module in each new process, under another name, and so would run there
    again what stands outside of a block that asks for the name:
    https://docs.python.org/3/library/multiprocessing.html#the-spawn-and-forkserver-start-methods
    """
    process = multiprocessing.current_process()
    if process.name == WORKER_NAME:
        raise ConfigError(
            "Expected the main module to make this call in a block that begins with "
            '`if __name__ == "__main__":`, got one from a worker that imports it.'
        )
    if process.daemon:
        raise ConfigError(
            "Expected a process that may start others, got a daemonic one, such as those of "
            "multiprocessing.Pool. Call this from the main process, or from one that is started "
            "with daemon=False."
        )
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)  # none in a notebook, or of `python -c`
    if file is None:
        return
    if getattr(main, "__spec__", None) is None and not Path(file).is_file():
        raise ConfigError(
            f"Expected a program in a file, which workers can import, got {file}. Save it as one, "
            "or give it with `python -c`."
        )
    for line in _lines_at(file):
        if not _is_guarded(Path(file), line):
            raise ConfigError(
                f"Expected the script {file} to make this call in a block that begins "
                'with `if __name__ == "__main__":`, got a call outside of one, in line '
                f"{line}. Workers import the script, and would run that line again."
            )


def _lines_at(script: str) -> Iterator[int]:
    """Yield the lines of a script's top level that wait for this call, or for its thread."""
    main = threading.main_thread().ident
    for frame in (sys._getframe(), sys._current_frames().get(main or 0)):
        for caller, line in traceback.walk_stack(frame) if frame is not None else ():
            names = caller.f_globals.get("__name__"), caller.f_code.co_name
            if names == ("__main__", "<module>") and caller.f_code.co_filename == script:
                yield line


def _is_guarded(script: Path, line: int) -> bool:
    """Return whether a line of a script is run only where `__name__` has the right value.

    It is if a condition that asks for `__name__`, or for a variable that was computed from it,
    stands around the line, or stands before it at the top level and can end the script.
    """
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True  # it cannot be told
    computed = {"__name__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if _names(node.value) & computed:
                computed |= set().union(*map(_names, targets))
    return any(
        isinstance(node, _Conditional)
        and any(_names(asked) & computed for asked in _asked(node))
        and node.lineno <= line
        and (line <= (node.end_lineno or line) or (node in tree.body and _can_end(node)))
        for node in ast.walk(tree)
    )


def _asked(condition: _Conditional) -> list[ast.expr]:
    if isinstance(condition, ast.BoolOp):
        return condition.values[:-1]
    return [condition.subject if isinstance(condition, ast.Match) else condition.test]


def _can_end(condition: _Conditional) -> bool:
    """Return whether a condition leaves the script, if it does not hold or in one of its blocks."""
    if isinstance(condition, ast.Match):
        blocks = [case.body for case in condition.cases]
    elif isinstance(condition, ast.If | ast.While):
        blocks = [condition.body, condition.orelse]
    else:
        blocks = []
    return isinstance(condition, ast.Assert) or any(
        isinstance(statement, ast.Raise)
        or (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Call)
            and ast.unparse(statement.value.func).rpartition(".")[2] in _EXITS
        )
        for block in blocks
        for statement in block
    )


def _names(expression: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}
