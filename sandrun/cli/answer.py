"""Where the answer of a subcommand goes: standard output."""

import errno
import os
import sys


def out(text: str) -> None:
    """A line of the answer. Raises OSError, also where standard output is closed."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    sys.stdout.write(text + "\n")
