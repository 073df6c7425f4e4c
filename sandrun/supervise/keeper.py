"""The process that outlives the supervisor and ends its run, where the system needs one."""

import sys

if sys.platform == "win32":
    from sandrun.supervise.windows_keeper import Keeper, hold
else:
    from sandrun.supervise.posix_keeper import Keeper, hold

__all__ = ["Keeper", "hold"]
