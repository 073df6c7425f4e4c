"""Writes files atomically: other programs read the old content or the new."""

import errno
import os
import stat
import sys

from sandrun.platform import folders


def replace(path: str, content: bytes, mode: int = 0) -> None:
    """Write a file, or replace it atomically by a new one. Its mode is `mode`, by default that of
    any new file in its directory (`folders.create`). Raises OSError."""
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


def replaceable(path: str) -> str:
    """The path to replace: `path` or, if that is a link, where it leads. Raises OSError unless
    there is a regular file or none: a device that is replaced is lost to the whole system. Root
    follows no link that another user made."""
    end = os.path.realpath(path)  # before the check: a link that is made later is not followed
    try:
        link = os.lstat(path)
        info = os.stat(path)
    except FileNotFoundError:
        if not path or path.endswith((os.sep, os.altsep or os.sep)) or os.path.islink(path):
            raise
        return path
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", path)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    if sys.platform != "win32" and not os.geteuid() and stat.S_ISLNK(link.st_mode) and link.st_uid:
        raise PermissionError(errno.EPERM, "a link that another user made", path)
    return end if stat.S_ISLNK(link.st_mode) else path
