"""Files and folders that other people and programs can reach: how they are opened and written."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

_PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
_CHUNK = 2**20
_FILE = 0o666  # less what the user's umask takes away


def open_untrusted(path: Path, most: int | None = None) -> BinaryIO:
    """Open a file for reading that may hold anything.

    A pipe or a device could keep the reader waiting for ever, or give bytes without end.

    Args:
        path: of the file; links are followed.
        most: the size in bytes that a file of this kind can have, None for any.

    Raises:
        OSError: it cannot be opened, is no regular file, or is larger.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and (most is None or status.st_size <= most):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    why = f"it has {status.st_size:,} bytes, expected {most:,} at most"
    raise OSError(errno.EFBIG, why, str(path))


def sha256(file: BinaryIO) -> str:
    """Return the SHA-256, in hex, of a file from where it is read next."""
    digest, start = hashlib.sha256(), file.tell()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    file.seek(start)
    return digest.hexdigest()


def digest_of(files: Mapping[str, bytes]) -> str:
    """Return one SHA-256, in hex, of the paths and contents of files."""
    each = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    return hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest()


def require_harmless_zip(file: BinaryIO) -> None:
    """Refuse a zip archive that unpacks to more than it holds, or outside its folder.

    Those of this project are not compressed. So one that is could only be made to fill the memory,
    and so could one whose entries share their bytes.

    Raises:
        zipfile.BadZipFile: it is such an archive, or none.
    """
    start = file.tell()
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        names = [Path(name) for name in archive.namelist()]
    file.seek(start)
    for name in names:
        if name.is_absolute() or ".." in name.parts:
            raise zipfile.BadZipFile(f"It would be unpacked to {str(name)!r}.")
    if unpacked > size:
        raise zipfile.BadZipFile(f"It has {size:,} bytes, and would unpack to {unpacked:,}.")


def write_file(path: Path, *content: bytes | memoryview, mode: int = _FILE) -> None:
    """Replace a file, completely or not at all; a link in its place is replaced, not followed.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    new = path.with_name(f".{secrets.token_hex(8)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(new, flags, mode), "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, given their contents by path."""
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def private_folder(folder: Path, named_by: str | None = None) -> None:
    """Make a folder that no other user can enter; take the right from others if it is there.

    A folder that is there already and that a person has named, with the variable `named_by`, keeps
    the rights that they gave it: it may be `/tmp`.

    Raises:
        OSError: it cannot be made, or belongs to another user.
    """
    while True:
        try:
            folder.mkdir(_PRIVATE_FOLDER, parents=True, exist_ok=True)
            break
        except FileExistsError:
            if os.path.lexists(folder):  # else another process has removed it meanwhile
                raise
    if named_by is not None and os.environ.get(named_by):
        return
    if not is_own_folder(folder):
        raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))
    if folder.stat().st_mode & ~_PRIVATE_FOLDER & 0o777:
        folder.chmod(_PRIVATE_FOLDER)


def is_own_folder(folder: Path) -> bool:
    """Return whether it is a folder of this user, or this user's link to one.

    Raises:
        OSError: there is none, or it cannot be looked at.
    """
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode) and status.st_uid == os.geteuid():
        status = folder.stat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
