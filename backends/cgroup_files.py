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

from sandrun.platform import processes  # noqa: E402


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


__all__ = [
    "BaseFileInterface",
    "Controller",
    "CpuAcctController",
    "CpuController",
    "DictFile",
    "IntegerFile",
    "MemoryController",
]
