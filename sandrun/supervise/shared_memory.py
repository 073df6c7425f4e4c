"""Shared memory that outlives the processes of a run: named, and removed if proved its own.

How much is left is what the run's group is still charged for (`Usage.shared`), so that a run which
leaves none never comes here. SysV segments are found by their creator, files of POSIX shared memory
and in other tmpfs by owner and time (proc(5), shm_overview(7), tmpfs(5)); what the same user made
meanwhile elsewhere looks alike. A segment is removed only if all is proved: its creator was
seen in the run, it was made since the run began, and nobody is attached. Files are never removed.
"""

import os
import sys

from sandrun.model import command_text, size_text
from sandrun.platform import processes

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.model import Usage

SHARED = "/dev/shm"
_SEGMENTS = "/proc/sysvipc/shm"
_IPC_RMID = 0  # <linux/ipc.h>
_ENTRIES = 5000
"""So many names are looked at, of all tmpfs together: some 20 ms."""
_SMALL = 64
"""Once all but such a part of what is left has names, files smaller than that get none."""
_OURS = ("seq-exec-", "sandrun-")
"""What sandrun's own directories are named."""


def settle(
    pids: "set[int]", since: float, usage: "Usage", apart: "tuple[str, ...]"
) -> "tuple[list[str], list[str]]":
    """Remove what is proved to be of the run of the processes `pids`, which began at `since` (as
    time.time() tells); what is left of what it used, and the commands that remove it.

    `apart`: directories whose files are not looked at; /dev/shm stands for segments too. Where no
    group tells that anything is left, only segments of the usage's `makers` are named.
    """
    texts, commands = [], []
    charged, makers = usage.shared, usage.shm_creators
    left = charged
    for number, size, creator in _segments(int(since), charged) if SHARED not in apart else []:
        if makers and creator not in makers:
            continue
        left -= size
        text = f"SysV segment {number} ({size_text(size)}, made by pid {creator})"
        if creator in pids and _remove(number):
            texts.append(text + ", now removed")
        else:
            texts.append(text)
            commands.append(f"ipcrm -m {number}")
    found = [] if makers else _files(since, charged, {*apart, os.path.expanduser("~")})
    for path, size in sorted(found, key=lambda file: -file[1]):
        if max(left, size) < charged // _SMALL:
            break  # others write small files all the time, where /tmp is a tmpfs
        left -= size
        texts.append(f"{path} ({size_text(size)})")
        commands.append(command_text(["rm", path]))
    return texts, commands


def _segments(since: int, most: int) -> "list[tuple[int, int, int]]":
    """Number, memory and creator of this user's segments to which nobody is attached and whose
    creator is gone."""
    try:
        head, *lines = processes.read(_SEGMENTS).splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        row = dict(zip(head.split(), line.split(), strict=False))
        size, creator = int(row[b"rss"]), int(row[b"cpid"])
        ours = int(row[b"cuid"]) == os.geteuid() and int(row[b"ctime"]) >= since
        if ours and row[b"nattch"] == b"0" and 0 < size <= most and not processes.start(creator):
            found.append((int(row[b"shmid"]), size, creator))
    return found


def _remove(number: int) -> bool:
    """shmctl(2). Who attaches at this instant keeps it until they let it go."""
    import ctypes

    return bool(ctypes.CDLL(None).shmctl(number, _IPC_RMID, None) == 0)


def _places() -> "list[str]":
    """Directories of tmpfs in which a program leaves files: those for everybody, and the user's
    own. Not /run itself, where services of root's are at work all the time."""
    try:
        mounts = os.fsdecode(processes.read("/proc/self/mountinfo")).split("\n")
    except OSError:
        return [SHARED]
    rows = [line.split(" ") for line in mounts if " - tmpfs " in line]
    devices = {os.makedev(*map(int, row[2].split(":"))) for row in rows}
    named = [SHARED, *(os.environ.get(name, "") for name in ("TMPDIR", "XDG_RUNTIME_DIR"))]
    named += ["/tmp", "/var/tmp", f"/run/user/{os.geteuid()}"]
    places: dict[tuple[int, int], str] = {}
    for path in (*named, *(row[4] for row in rows)):
        try:
            info = os.stat(path)
        except OSError:
            continue
        shared = info.st_mode & 0o1002 == 0o1002
        if info.st_dev in devices and (shared or (path in named and info.st_uid == os.geteuid())):
            places.setdefault((info.st_dev, info.st_ino), path)
    return list(places.values())


def _files(since: float, most: int, apart: "set[str]") -> "list[tuple[str, int]]":
    """The files of ours in tmpfs that changed `since` then, with their sizes."""
    found: dict[str, int] = {}
    folders = [path for path in _places() if path not in apart]
    left = _ENTRIES
    while folders and left > 0:
        try:
            # All places at the top before what is deep in one of them.
            with os.scandir(folders.pop(0)) as entries:
                for entry in entries:
                    left -= 1
                    info = entry.stat(follow_symlinks=False)
                    if info.st_uid != os.geteuid():
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if entry.path not in apart and not entry.name.startswith(_OURS):
                            folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False) and info.st_ctime >= since:
                        found[entry.path] = info.st_blocks * 512
        except OSError:
            continue  # it is gone, or changes at this instant
    return [(path, size) for path, size in found.items() if 0 < size <= most]
