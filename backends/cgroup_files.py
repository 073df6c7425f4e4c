"""Control files of cgroups: cgroupspy, imported at a third of its cost, and values read from them.

cgroupspy needs only `collections.abc`. Every interpreter has loaded that as `_collections_abc`,
while importing the package `collections` costs 1.7 ms, a sixth of the whole start. So the loaded
module is registered as `collections.abc` during the import. It is removed afterwards, because it
would be a submodule of a package that was not imported.
"""

import _collections_abc
import os
import sys

_registered = "collections.abc" not in sys.modules
if _registered:
    sys.modules["collections.abc"] = _collections_abc

from cgroupspy import controllers
from cgroupspy.interfaces import BaseFileInterface, DictFile, IntegerFile

if _registered:
    del sys.modules["collections.abc"]

assert sys.platform == "linux"

from sandrun.model import Unusable
from sandrun.platform import processes

_PAGE = os.sysconf("SC_PAGESIZE")


class Controller(controllers.Controller):  # type: ignore[misc]  # cgroupspy has no types
    """cgroupspy's controller, but it reads and writes a control file with one system call. Its text
    streams cost four times as much and may split a write."""

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
    """A group as cgroupspy's controllers expect it: its path."""

    def __init__(self, path: str) -> None:
        self.full_path = os.fsencode(path)


def refused_forks(path: str, inner: str = "") -> "tuple[int, int]":
    """How many forks a limit on processes refused in a group, and the lowest such limit.

    Since Linux 6.11, pids.events.local counts only the group's own limit. Before that, pids.events
    counts every limit, in the group of the process that forked: this group or `inner`.
    """
    count = _events(f"{path}/pids.events.local")
    if count is None:
        found = (_events(f"{group}/pids.events") for group in (path, inner) if group)
        count = sum(filter(None, found))
    return (count, lowest_limit(path, "pids.max")) if count else (0, 0)


def _events(file: str) -> "int | None":
    try:
        return int(processes.read(file).split()[1])  # `max 3`
    except (OSError, IndexError, ValueError):
        return None


def number(path: str) -> "int | None":
    """The number in a control file; None: there is no such file, or it contains `max`."""
    try:
        return int(processes.read(path))
    except (OSError, ValueError):
        return None


def counts(path: str) -> "dict[str, int]":
    """The counters in a control file with lines such as `oom_kill 1`; {}: it cannot be read."""
    try:
        words = processes.read(path).decode().split()
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))
    except (OSError, ValueError):
        return {}


def whole_pages(size: int) -> int:
    """A limit in bytes as the kernel stores it: rounded down to whole pages."""
    return size // _PAGE * _PAGE


def lowest_limit(group: str, name: str) -> int:
    """The lowest value of the limit file `name` in a group and all visible groups above it; 1 << 62
    for none. A cgroup namespace hides the groups above its root."""
    found = 1 << 62
    while True:
        try:
            value = processes.read(f"{group}/{name}").strip()
            found = min(found, found if value == b"max" else int(value))
        except OSError:
            pass  # the root of the hierarchy has no limits
        if os.path.ismount(group) or group == "/":
            return found
        group = os.path.dirname(group)


def lowest_quota(group: str) -> str:
    """The lowest cpu.max (`<quota> <period>`) of a group and all visible groups above it; '' for
    none."""
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
    """The whole disk below a directory as `major:minor`, the form of io.max.

    Raises Unusable if the file system has no single disk (tmpfs, overlay, btrfs).
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
