"""Stop git's file system monitor by git's own command.

If it is killed, it leaves its socket behind, and the next git waits for that before it starts
another monitor (one second with git 2.55). Only a daemon of the run is stopped: the run's container
listed its pid, and it has the socket open. It must also be our own user's, because its own program
is run to stop it, which another user could have put there for root to run.
"""

import os
import sys

from sandrun.platform import processes

assert sys.platform != "win32"

_SOCKET = "/fsmonitor--daemon.ipc"
"""In the git directory (compat/fsmonitor/fsm-ipc-unix.c). On a network file system the socket is
elsewhere, with a name that does not identify the repository: such a daemon gets a signal
instead."""
_SECONDS = 2.0


def stop(pid: int) -> None:
    """Ask the daemon to exit; return when it has acknowledged, or on failure. A signal may follow
    in any case."""
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
    """The path of the socket on which it listens, or ''. Raises OSError."""
    at = f"{processes.PROC}/{pid}/fd"
    opened = {os.readlink(f"{at}/{name}") for name in os.listdir(at)}
    for line in processes.read(f"{processes.PROC}/net/unix").splitlines():
        inode, _, path = os.fsdecode(line).partition(": ")[2].partition("/")
        if path and f"socket:[{inode.split()[-1]}]" in opened and path.endswith(_SOCKET):
            return "/" + path
    return ""
