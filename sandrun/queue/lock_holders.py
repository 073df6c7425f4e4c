"""Runs that hold the lock of a shared checkout or queue and have no ticket in our queue.

They belong to another user, run in another container, or use another SANDRUN_STATE_DIR. Our runs
wait for them, so `sandrun status` shows them.
"""

import os
import sys
import time

from sandrun.config import project
from sandrun.model import command_text
from sandrun.platform import linux_locks, processes
from sandrun.queue import Queue, nesting
from sandrun.queue.state import shared_queue, slot_file

assert sys.platform != "win32"


def foreign(
    queue: "Queue | None", root: str, name: str, probe: bool = True
) -> "list[dict[str, object]]":
    """The holders of the shared locks of the project `root`, or of the queue `name`, that have no
    running ticket in `queue`. Each is a dict: the lock file's `path`, and the process's `pid` (0:
    it is not visible from here), `uid`, `user`, `command` and `since`. Without `probe` no file is
    locked for a test, so holders in another pid namespace are not found.
    """
    folder = shared_queue(name) if name else project.git_directory(root)
    known = _supervisors(queue) if queue else set()
    found = []
    slot = 1
    while folder:
        path = os.path.join(folder, slot_file("sandrun", slot))
        try:
            file = os.stat(path, follow_symlinks=False)
        except OSError:
            break
        holder = linux_locks.lock_holder(file) or (
            -1 if probe and not known and _is_locked(path) else 0
        )
        if holder and holder not in known:
            found.append({"path": path, **_process(holder)})
        slot += 1
    return found


def _supervisors(queue: Queue) -> "set[int]":
    return {nesting.ticket_holder(queue, ticket) for ticket in queue.tickets() if ticket.running}


def _is_locked(path: str) -> bool:
    """Whether a process that /proc/locks does not list, because it is in another pid namespace,
    holds the lock. The test locks the file for a moment, so it is made only while no run of ours
    is running."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def _process(pid: int) -> "dict[str, object]":
    """The visible facts about a process, which may be another user's."""
    try:
        uid = processes.owner(pid)
        age = float(processes.read("/proc/uptime").split()[0])
        age -= processes.Stat(pid).start / os.sysconf("SC_CLK_TCK")
        words = processes.arguments(pid)
    except (OSError, IndexError):
        return {"pid": max(0, pid), "uid": -1, "user": "", "command": "", "since": 0}
    for at, word in enumerate(words[:4]):  # after the interpreter and its options
        if os.path.basename(word) == "sandrun":
            words = ["sandrun", *words[at + 1 :]]
            break
    since = int(time.time() - age)
    command = command_text(words)[:200]
    return {"pid": pid, "uid": uid, "user": _user(uid), "command": command, "since": since}


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
