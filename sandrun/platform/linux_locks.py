"""Which process holds a lock of flock(2), as the kernel reports it. macOS does not report it."""

import os
import sys

from sandrun.model import DARWIN
from sandrun.platform import processes

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def lock_holder(file: os.stat_result, claimed: int = 0) -> int:
    """The process that holds an exclusive flock(2) of a file; 0: none that is visible to us.

    From /proc/locks (proc(5)), whose pids are those of our pid namespace. `claimed` is the pid that
    the file itself names, possibly one of another namespace; 0: none. A line with another device
    (btrfs and overlayfs report another one to stat(2)) counts if its pid is `claimed`, or if that
    is 0. Without /proc/locks, `claimed` is believed on macOS only, which has no pid namespaces.

    Reading /proc/locks takes 10 ms, and no process of the host can lock a file meanwhile: it waits
    for a grace period of RCU (locks_start, fs/locks.c). So `claimed` is examined first.
    """
    if claimed and _has_locked(str(claimed), file):
        return claimed
    try:
        lines = processes.read(f"{processes.PROC}/locks").split(b"\n")
    except OSError:
        return claimed if DARWIN else 0
    device = b"%02x:%02x" % (os.major(file.st_dev), os.minor(file.st_dev))
    found = 0
    for line in lines:
        words = line.split()
        if len(words) > 5 and words[1:4:2] == [b"FLOCK", b"WRITE"]:
            where, _, inode = words[5].rpartition(b":")
            if int(inode) == file.st_ino:
                if where == device:
                    return int(words[4])
                if claimed in (0, int(words[4])):
                    found = int(words[4])
    return found


def is_inherited_lock(file: os.stat_result, probable: "Iterable[int]" = ()) -> bool:
    """Whether a file is locked by flock(2) through an open file that we inherited. `probable`: the
    processes that probably hold the lock; the answer does not depend on them (see `lock_holder`).

    If the holder is not visible, an open file of an ancestor counts, too: Python and node close
    descriptors for the processes that they start. /proc/PID/fdinfo lists a lock only for the open
    file that holds it (proc(5); Linux 4.1): a daemon of an exited run may have the same file open,
    but without the lock.
    """
    visible = any(_has_locked(str(pid), file) for pid in probable) or lock_holder(file)
    ancestors = () if visible else processes.ancestors(os.getpid())
    return any(_has_locked(str(pid), file) for pid in ("self", *ancestors))


def _has_locked(pid: str, file: os.stat_result) -> bool:
    """Whether a process has an open file that holds the lock; 'self': one that we inherited."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for name in reversed(names):  # the run lock's descriptor has one of the highest numbers
        try:
            # Descriptors that we opened ourselves are close-on-exec.
            if pid == "self" and not os.get_inheritable(int(name)):
                continue
            here = os.stat(f"/proc/{pid}/fd/{name}")
            if (here.st_ino, here.st_dev) != (file.st_ino, file.st_dev):
                continue
            if b"FLOCK" in processes.read(f"/proc/{pid}/fdinfo/{name}"):
                return True
        except OSError:  # closed: it was the descriptor of the listing itself
            continue
    return False
