"""Small files: reading those that others may have made (of a project, a repository, the user), and
writing our own.

Promises that a read never blocks and is bounded, whatever kind of file has the name; and that other
programs read the old content of a file that is written, or the new.
"""

import errno
import os
from stat import S_ISDIR, S_ISLNK, S_ISREG

from sandrun.platform import folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = 1 << 20
"""Bytes; no configuration file needs to be larger."""
_FLAGS = os.O_RDONLY
for _name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"):  # where the system has it
    _FLAGS |= getattr(os, _name, 0)


def read_small(path: str, top: str = "", most: int = SMALL) -> "bytes | None":
    """The content of a regular file of at most `most` bytes; None: there is no such file.

    No other kind of file is opened: a FIFO would block, /dev/zero never ends, and opening a device
    may have effects. A link is followed; with `top` (a real path) only to a file below that
    directory. Raises OSError.
    """
    try:
        info = os.lstat(path) if top else os.stat(path)
        flags = _FLAGS
        if top and S_ISLNK(info.st_mode):
            path = os.path.realpath(path)
            if not path.startswith(top.rstrip(os.sep) + os.sep):
                raise OSError(errno.EXDEV, "a link that leads out of the project is not followed")
            info = os.stat(path)
        if top:
            flags |= getattr(os, "O_NOFOLLOW", 0)
        _require_small(info, most)
        fd = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        _require_small(os.fstat(fd), most)
        data = b""
        while part := os.read(fd, most + 1 - len(data)):
            data += part
    finally:
        os.close(fd)
    if len(data) > most:  # it grew, or its reported size is 0, as in /proc
        raise OSError(errno.EFBIG, "too large")
    return data


def replace(
    path: str,
    data: bytes,
    create: "Callable[[str], int]" = folders.create,
    finish: "Callable[[int], object]" = lambda fd: None,
) -> None:
    """Write a file, or replace it atomically by a new one. `create` makes the new file, and its
    rights; `finish` gets its descriptor when it is written, and if it raises, the old file stays.
    Raises OSError."""
    private = folders.private_name(path)
    try:
        fd = create(private)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                finish(fd)
            os.replace(private, path)
        except BaseException:
            os.unlink(private)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def create_private(path: str) -> int:
    """Make a new file that only its owner may read and write; its descriptor. Raises OSError."""
    return folders.create(path, most=0o600)


def has_table(data: bytes) -> bool:
    """Whether a pyproject.toml may have a table of ours.

    Only escapes in keys are not found. It avoids tomllib, so that runs in most projects need not
    import that.
    """
    bare = b"\n" + data.removeprefix(b"\xef\xbb\xbf").translate(None, b" \t\r\"'")
    in_tool = b"\n[tool]" in bare and (b"\nsandrun=" in bare or b"\nsandrun." in bare)
    if b"[tool.sandrun]" in bare or b"\ntool.sandrun" in bare or in_tool:
        return True
    inline = b"{" + bare.partition(b"\ntool={")[2].replace(b"\n", b"")  # TOML 1.1 has line ends
    keys = (b"{sandrun={", b",sandrun={", b"{sandrun.", b",sandrun.")
    return any(key in inline for key in keys)


def _require_small(info: os.stat_result, most: int) -> None:
    if S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if info.st_size > most:
        raise OSError(errno.EFBIG, f"larger than {most >> 10} KiB")
