"""The process that outlasts the supervisor, where this system needs one."""

import sys

if sys.platform == "win32":
    from sandrun.supervise.windows_keeper import Keeper, hold
else:
    from sandrun.supervise.posix_keeper import Keeper, hold

__all__ = ["Keeper", "hold"]
