"""Shared memory that outlives the processes of a run: named, and removed if proved its own.

How much is left is what the run's group is still charged for (`Usage.shared`), so that a run which
leaves none never comes here. SysV segments are found by their creator, files of POSIX shared memory
by owner and time (proc(5), shm_overview(7)); what was made meanwhile by the same user elsewhere
looks alike. A segment is removed only if all is proved: its creator was seen in the run, it was
made since the run began, and nobody is attached. Files are never removed.
"""

import os

from sandrun import kernel
from sandrun.model import command_text, size_text

SHARED = "/dev/shm"
_SEGMENTS = "/proc/sysvipc/shm"
_IPC_RMID = 0  # <linux/ipc.h>


def settle(pids: "set[int]", since: float, charged: int) -> "tuple[list[str], list[str]]":
    """Remove what is proved to be of the run of the processes `pids`, which began at `since` (as
    time.time() tells); what is left of `charged` bytes, and the commands that remove it."""
    texts, commands = [], []
    for number, size, creator in _segments(int(since), charged):
        text = f"SysV segment {number} ({size_text(size)}, made by pid {creator})"
        if creator in pids and _remove(number):
            texts.append(text + ", now removed")
        else:
            texts.append(text)
            commands.append(f"ipcrm -m {number}")
    for path, size in _files(since, charged):
        texts.append(f"{path} ({size_text(size)})")
        commands.append(command_text(["rm", path]))
    return texts, commands


def _segments(since: int, most: int) -> "list[tuple[int, int, int]]":
    """Number, memory and creator of this user's segments to which nobody is attached and whose
    creator is gone."""
    try:
        head, *lines = kernel.read(_SEGMENTS).splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        row = dict(zip(head.split(), line.split(), strict=False))
        size, creator = int(row[b"rss"]), int(row[b"cpid"])
        ours = int(row[b"cuid"]) == os.geteuid() and int(row[b"ctime"]) >= since
        if ours and row[b"nattch"] == b"0" and 0 < size <= most and not kernel.start(creator):
            found.append((int(row[b"shmid"]), size, creator))
    return found


def _remove(number: int) -> bool:
    """shmctl(2). Who attaches at this instant keeps it until they let it go."""
    import ctypes

    return bool(ctypes.CDLL(None).shmctl(number, _IPC_RMID, None) == 0)


def _files(since: float, most: int) -> "list[tuple[str, int]]":
    found = []
    try:
        with os.scandir(SHARED) as entries:
            for entry in entries:
                stat = entry.stat(follow_symlinks=False)
                size = stat.st_blocks * 512
                ours = stat.st_uid == os.geteuid() and stat.st_ctime >= since
                if ours and entry.is_file(follow_symlinks=False) and 0 < size <= most:
                    found.append((entry.path, size))
    except OSError:
        pass  # there is none, or it changes at this instant
    return found
