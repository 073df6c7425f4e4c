"""The processes of this system, as libproc, /proc or psutil report them.

The module of each system has the facts (`Stat`, `children`, `environ` ...). Here is what is derived
from them in the same way on several systems.
"""

import os
import sys

if sys.platform == "win32":
    from sandrun.platform.windows_processes import *
elif sys.platform == "darwin":
    from sandrun.platform.macos_processes import *
else:
    from sandrun.platform.linux_processes import *


def start(pid: int) -> int:
    """When the process started, in the system's own unit (see its `Stat`); 0: it is gone."""
    try:
        return Stat(pid).start
    except OSError:
        return 0


if sys.platform != "win32":

    def ancestors(pid: int) -> "list[int]":
        """The chain of parents of `pid`, nearest first, as far as our pid namespace shows them."""
        chain: list[int] = []
        while pid > 1:
            try:
                pid = Stat(pid).parent
            except OSError:
                break
            if pid:  # 0: a process outside our pid namespace
                chain.append(pid)
        return chain

    def descendants(root: int) -> "list[int]":
        """The descendants of `root`, parents before children, without a scan of the host. Orphans
        are included only if an ancestor in the tree is a subreaper."""
        found = children(root)
        for pid in found:
            found += children(pid)
        return found

    def kill_if_same(pid: int, started: int) -> bool:
        """SIGKILL the process of that pid if it started at `started`. False: it lives, and we are
        not permitted to kill it."""
        pidfd = open_pidfd(pid)
        try:
            return start(pid) != started or kill_process(pid, pidfd)
        finally:
            if pidfd >= 0:
                os.close(pidfd)
