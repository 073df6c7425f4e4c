"""Files that others read, written as a whole."""

import os
import sys

from sandrun.platform import folders


def replace(path: str, content: bytes, mode: int = 0) -> None:
    """Write a file, or replace it at once by a new one with the same rights as any new file there,
    or with `mode`. Readers see the old content or the new. Raises OSError."""
    private = folders.private_name(path)
    try:
        fd = folders.create(private)
        try:
            with open(fd, "wb") as file:
                file.write(content)
                if mode and sys.platform != "win32":
                    os.fchmod(fd, mode)
            os.replace(private, path)
        except BaseException:
            os.unlink(private)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
