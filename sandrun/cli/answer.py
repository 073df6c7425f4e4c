"""Where the answer of a subcommand goes: standard output."""

import errno
import os
import sys

from sandrun.model import plain


def out(text: str) -> None:
    """A line of the answer, which may show names of others' choosing. Raises as `page`."""
    page(plain(text))


def page(text: str) -> None:
    """An answer as it is: JSON, a program, lines that are `plain` already, a path for programs.
    Raises OSError, also where standard output is closed."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    sys.stdout.write(text + "\n")
