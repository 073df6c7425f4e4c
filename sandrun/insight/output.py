"""Which files may be replaced."""

import errno
import os
import stat
import sys


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
