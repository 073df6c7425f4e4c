"""What we use of cgroupspy, imported for a third of its price.

Of `collections` it wants `collections.abc` alone, which is `_collections_abc`: every interpreter
has loaded it, while the rest of the package is a sixth of the whole start (1.7 ms). So the module
is lent under that name for the time of the import, and taken back: it is no part of a package
that was not imported.
"""

import _collections_abc
import os
import sys

_lent = "collections.abc" not in sys.modules
if _lent:
    sys.modules["collections.abc"] = _collections_abc

from cgroupspy import controllers  # noqa: E402
from cgroupspy.interfaces import BaseFileInterface, DictFile, IntegerFile  # noqa: E402

if _lent:
    del sys.modules["collections.abc"]

from sandrun.model import Unusable  # noqa: E402
from sandrun.platform import processes  # noqa: E402

_PAGE = os.sysconf("SC_PAGESIZE")


class Controller(controllers.Controller):  # type: ignore[misc]  # cgroupspy has no types
    """cgroupspy's, but a control file is read and written by one system call each: its own way
    through text streams is four times as dear, and may split a write."""

    def get_property(self, filename: bytes) -> str:
        return processes.read(self.filepath(filename)).decode().strip()

    def set_property(self, filename: bytes, value: object) -> None:
        path = self.filepath(filename)
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
        finally:
            os.close(fd)


class CpuAcctController(Controller, controllers.CpuAcctController):  # type: ignore[misc]
    """v1 cpuacct."""


class CpuController(Controller, controllers.CpuController):  # type: ignore[misc]
    """v1 cpu."""


class MemoryController(Controller, controllers.MemoryController):  # type: ignore[misc]
    """v1 memory."""


class Node:
    """What cgroupspy's controllers need to know of a group: where it is."""

    def __init__(self, path: str) -> None:
        self.full_path = os.fsencode(path)


def refused(path: str, inner: str = "") -> "tuple[int, int]":
    """How many forks a limit on processes refused in a group, and the lowest limit around there.

    Since 6.11 pids.events.local tells of the group's own limit alone; before, pids.events tells
    whatever limit it was, of the group that the process was in: this one, or `inner`.
    """
    count = _events(f"{path}/pids.events.local")
    if count is None:
        found = (_events(f"{group}/pids.events") for group in (path, inner) if group)
        count = sum(filter(None, found))
    return (count, lowest(path, "pids.max")) if count else (0, 0)


def _events(file: str) -> "int | None":
    try:
        return int(processes.read(file).split()[1])  # `max 3`
    except (OSError, IndexError, ValueError):
        return None


def pages(size: int) -> int:
    """What the kernel makes of a limit in bytes: whole pages."""
    return size // _PAGE * _PAGE


def lowest(group: str, name: str) -> int:
    """The lowest value of a limit's file in a group and all above it that we can see; a very
    large number where there is none. A cgroup namespace hides what lies above its root."""
    found = 1 << 62
    while True:
        try:
            value = processes.read(f"{group}/{name}").strip()
            found = min(found, found if value == b"max" else int(value))
        except OSError:
            pass  # the hierarchy's root has no limits
        if os.path.ismount(group) or group == "/":
            return found
        group = os.path.dirname(group)


def lowest_quota(group: str) -> str:
    """The lowest cpu.max (`<quota> <period>`) of a group and all above it that we can see; '' if
    nothing limits the processors."""
    found, share = "", 0.0
    while True:
        try:
            words = processes.read(f"{group}/cpu.max").split()
            if words[0] != b"max" and not 0 < share <= int(words[0]) / int(words[1]):
                found, share = b" ".join(words).decode(), int(words[0]) / int(words[1])
        except OSError:
            pass  # the controller is not enabled here
        if os.path.ismount(group) or group == "/":
            return found
        group = os.path.dirname(group)


def disk_of(directory: str) -> str:
    """The whole disk under a directory as `major:minor`, which is what io.max takes.

    Raises Unusable where the file system has no disk of its own (tmpfs, overlay, btrfs).
    """
    number = os.stat(directory).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    try:
        block = os.path.realpath(f"/sys/dev/block/{name}", strict=True)
    except OSError:
        raise Unusable(
            f"io limits: {directory} is not on a disk that the kernel can throttle"
        ) from None
    if os.path.exists(block + "/partition"):
        return processes.read(os.path.dirname(block) + "/dev").decode().strip()
    return name


__all__ = [
    "BaseFileInterface",
    "Controller",
    "CpuAcctController",
    "CpuController",
    "DictFile",
    "IntegerFile",
    "MemoryController",
]
