"""Writing the page to its file.

Promises: the file is replaced atomically, and only its owner can read it, because command lines may
contain secrets. Only a regular file is replaced. Root follows no link at the file's name that
another user made.
"""

import os

from sandrun.insight.output import replaceable
from sandrun.model import SandrunError
from sandrun.platform import folders

_FLAGS = os.O_WRONLY | folders.NEW | getattr(os, "O_BINARY", 0)


def write(path: str, content: str) -> None:
    """Write the file. Raises SandrunError."""
    try:
        _write(path, content.encode())
    except OSError as error:
        raise SandrunError(
            f"cannot write {path or 'a file without a name'}: {error.strerror or error}",
            "--html FILE names another file, --html - is standard output",
        ) from error


def _write(path: str, data: bytes) -> None:
    path = replaceable(path)
    private = folders.private_name(os.path.join(os.path.dirname(path), ".sandrun-report"))
    fd = os.open(private, _FLAGS, 0o600)  # also root's own in a user's directory
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.replace(private, path)
    except BaseException:
        os.unlink(private)
        raise
