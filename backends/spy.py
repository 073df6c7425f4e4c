"""What we use of cgroupspy, imported for a third of its price.

Of `collections` it wants `collections.abc` alone, which is `_collections_abc`: every interpreter
has loaded it, while the rest of the package is a sixth of the whole start (1.7 ms). So the module
is lent under that name for the time of the import, and taken back: it is no part of a package
that was not imported.
"""

import _collections_abc
import sys

_lent = "collections.abc" not in sys.modules
if _lent:
    sys.modules["collections.abc"] = _collections_abc

from cgroupspy.controllers import (  # noqa: E402
    BlkIOController,
    Controller,
    CpuAcctController,
    CpuController,
    MemoryController,
)
from cgroupspy.interfaces import BaseFileInterface, DictFile, FlagFile, IntegerFile  # noqa: E402

if _lent:
    del sys.modules["collections.abc"]

__all__ = [
    "BaseFileInterface",
    "BlkIOController",
    "Controller",
    "CpuAcctController",
    "CpuController",
    "DictFile",
    "FlagFile",
    "IntegerFile",
    "MemoryController",
]
