"""How `sandrun init` reads a user's files and adds or removes a line.

Promises
- A file is replaced atomically and keeps its owner, group, mode, attributes and links. Where these
  cannot be kept, it is written in place.
- Only regular files are read.
- All steps of a change use one open directory, so that a user cannot redirect root, who works in
  the user's project, to another directory.
"""

import os
import stat
import sys
from collections.abc import Callable

from sandrun.model import SandrunError
from sandrun.platform import folders

_MOST = 8 << 20
"""Bytes. No Makefile or hook written by a person is larger."""
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def read(path: str) -> bytes:
    """The bytes of a file; b"" if there is none. Raises SandrunError."""
    try:
        return _read(os.open(path, _READ | getattr(os, "O_BINARY", 0)))
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise SandrunError(f"cannot read {path}: {error.strerror}", f"ls -l {path}") from error


def _read(fd: int) -> bytes:
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(22, "not a regular file")
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise OSError(27, "File too large")
    return data


def text(path: str) -> str:
    """The text of a file. Bytes that are not UTF-8 become surrogates, so none are lost."""
    return read(path).decode("utf-8", "surrogateescape")


def write_new(path: str, content: str) -> None:
    """Write a new file, which a failed write does not leave. Raises OSError."""
    fd = folders.create(path)
    try:
        with open(fd, "w", encoding="utf-8", newline="\n") as file:
            file.write(content)
    except BaseException:
        os.unlink(path)
        raise


def change(path: str, edit: "Callable[[str], str]") -> None:
    """Replace the text of a file, following links. Raises OSError."""
    folder, name = os.path.split(os.path.realpath(path))
    if sys.platform == "win32":
        _replace(name, os.path.join(folder, ""), None, edit)
        return
    directory = os.open(folder, folders.FOLDER)
    try:
        _replace(name, "", directory, edit)
    finally:
        os.close(directory)


def _replace(name: str, prefix: str, at: "int | None", edit: "Callable[[str], str]") -> None:
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    path = prefix + name
    old = os.open(path, _READ | flags, dir_fd=at)
    info = os.fstat(old)
    attributes = _attributes(old)
    before = _read(old).decode("utf-8", "surrogateescape")
    data = edit(before).encode("utf-8", "surrogateescape")
    private = folders.private_name(f"{prefix}.{name}.sandrun")
    fd = os.open(private, os.O_WRONLY | folders.NEW | flags, 0o600, dir_fd=at)
    try:
        with open(fd, "wb") as file:
            same = info.st_nlink == 1 and _copy_metadata(fd, info, attributes)
            file.write(data)
        if same:
            os.replace(private, path, src_dir_fd=at, dst_dir_fd=at)
            return
    except BaseException:
        os.unlink(private, dir_fd=at)
        raise
    os.unlink(private, dir_fd=at)
    with open(os.open(path, os.O_WRONLY | flags, dir_fd=at), "wb") as file:
        file.write(data)
        file.truncate()


def _attributes(fd: int) -> "dict[str, bytes]":
    """Access lists, labels and other extended attributes (xattr(7))."""
    if sys.platform != "linux":
        return {}
    try:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd)}
    except (OSError, AttributeError):
        return {}


def _copy_metadata(fd: int, info: os.stat_result, attributes: "dict[str, bytes]") -> bool:
    """Give a new file the owner, group, mode and attributes of the old one. Returns False if that
    is not permitted."""
    if sys.platform == "win32":
        return True
    new = os.fstat(fd)
    try:
        if (new.st_uid, new.st_gid) != (info.st_uid, info.st_gid):
            os.fchown(fd, info.st_uid, info.st_gid)
        if sys.platform == "linux":
            for name, value in attributes.items():
                os.setxattr(fd, name, value)
        os.fchmod(fd, stat.S_IMODE(info.st_mode))
        return True
    except OSError:
        return False
