"""The names of classes, in a text file beside the data."""

from collections.abc import Iterable
from pathlib import Path

from fmnist_tracking.errors import DataError
from fmnist_tracking.files import open_untrusted
from fmnist_tracking.redact import printable

FILES = ("class_names.txt", "classes.txt", "labels.txt")
_LONGEST = 100  # of a name, in characters
_MOST_BYTES = 2**18


def read_class_names(folders: Iterable[Path], count: int) -> tuple[str, ...] | None:
    """Read the names of classes, one a line in label order; None if there is no such file.

    Args:
        folders: where one of `FILES` may be, the first one found counts.
        count: how many classes there are.

    Raises:
        DataError: it cannot be read, has not as many names, or one is blank, repeated, too long or
            not printable.
    """
    for folder in folders:
        for path in (folder / name for name in FILES):
            if path.is_file():
                return _read(path, count)
    return None


def _read(path: Path, count: int) -> tuple[str, ...]:
    expected = f"expected {count}, the name of each class on a line of its own"
    try:
        with open_untrusted(path, _MOST_BYTES) as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8, {expected}.") from None
    names = tuple(line.strip() for line in text.rstrip().split("\n")) if text.strip() else ()
    if len(names) != count:
        raise DataError(f"{path} has {len(names)} lines, {expected}.")
    for number, name in enumerate(names, start=1):
        if not name or not name.isprintable() or len(name) > _LONGEST:
            raise DataError(
                f"{path} has the name {printable(name, _LONGEST)!r} on line {number}, expected one "
                f"of 1 to {_LONGEST} printable characters."
            )
        if name in names[: number - 1]:
            raise DataError(f"{path} has the name {name!r} twice, expected names that differ.")
    return names
