"""Writing the page to its file.

Promises: the file is replaced atomically, and only its owner can read it, because command lines may
contain secrets. Only a regular file is replaced. Root follows no link at the file's name that
another user made.
"""

import os

from sandrun.insight.output import replaceable
from sandrun.model import SandrunError
from sandrun.platform import folders
from sandrun.platform.small_files import replace

_FLAGS = os.O_WRONLY | folders.NEW | getattr(os, "O_BINARY", 0)


def write(path: str, content: str) -> None:
    """Write the file. Raises SandrunError."""
    try:
        replace(replaceable(path), content.encode(), _create)
    except OSError as error:
        raise SandrunError(
            f"cannot write {path or 'a file without a name'}: {error.strerror or error}",
            "--html FILE names another file, --html - is standard output",
        ) from error


def _create(path: str) -> int:
    return os.open(path, _FLAGS, 0o600)  # also in a user's directory it is root's own
