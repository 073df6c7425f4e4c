"""Ending git's file system monitor as git does: by its own command.

A killed one leaves its socket behind, on which the next git waits before it starts another
(a second: git 2.55). Only a daemon of the run's is told, proved by its number, which the run's
container gave, and by the socket that it has open. And only one of this very user: what is run to
tell it is its own program, which another user may have put there for root to run.
"""

import os
import sys

from sandrun.platform import processes

assert sys.platform != "win32"

_SOCKET = "/fsmonitor--daemon.ipc"
"""In the git directory (compat/fsmonitor/fsm-ipc-unix.c); on a network file system it is elsewhere,
under a name that does not tell the repository: such a daemon gets the signal."""
_SECONDS = 2.0


def stop(pid: int) -> None:
    """Have the daemon end itself; returns when it has heard, or when that fails: a signal may
    follow in any case."""
    try:
        if processes.owner(pid) != os.geteuid():
            return
        git = os.readlink(f"{processes.PROC}/{pid}/exe")
        path = _socket(pid)
    except OSError:
        return
    if not path or os.path.basename(git) != "git":
        return
    import subprocess

    folder = os.path.dirname(path)
    words = [git, "--git-dir", folder, "--work-tree", os.path.dirname(folder)]
    try:
        subprocess.run(
            [*words, "fsmonitor--daemon", "stop"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        pass


def _socket(pid: int) -> str:
    """The path of the socket on which it listens; '': none. Raises OSError."""
    at = f"{processes.PROC}/{pid}/fd"
    opened = {os.readlink(f"{at}/{name}") for name in os.listdir(at)}
    for line in processes.read(f"{processes.PROC}/net/unix").splitlines():
        inode, _, path = os.fsdecode(line).partition(": ")[2].partition("/")
        if path and f"socket:[{inode.split()[-1]}]" in opened and path.endswith(_SOCKET):
            return "/" + path
    return ""
