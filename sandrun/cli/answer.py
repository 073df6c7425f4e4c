"""The answer of a subcommand, on standard output."""

import errno
import os
import sys

from sandrun.model import plain


def out(text: str) -> None:
    """Write a line that may contain names chosen by others. Raises what `page` raises."""
    page(plain(text))


def page(text: str) -> None:
    """Write text as it is: JSON, a script, a path for programs, or lines that went through `plain`.
    Raises OSError, also if standard output is closed."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    try:
        sys.stdout.write(text + "\n")
    except UnicodeEncodeError as error:  # a locale without these characters
        known = (text + "\n").encode(error.encoding, "backslashreplace")
        sys.stdout.write(known.decode(error.encoding))


def data(content: bytes) -> None:
    """Write bytes, whatever the encoding of standard output is. Raises what `page` raises."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
