"""Shared memory that outlives the processes of a run: reported, and removed if provably the run's.

The run's cgroup is still charged for what is left (`Usage.shared`), so a run that leaves none never
imports this. SysV segments are found by their creator; files in a tmpfs, such as those of POSIX
shared memory, by owner and time (proc(5), shm_overview(7), tmpfs(5)). Files that other programs of
the user made meanwhile cannot be distinguished. A segment is removed only if its creator was seen
in the run, it was made since the run began, and no process is attached. Files are never removed.
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
"""The number of names that are examined, in all tmpfs together: about 20 ms."""
_SMALL = 64
"""Once all but 1/64 of the memory is attributed, files smaller than that part are not named."""
_OURS = ("seq-exec-", "sandrun-")
"""The start of the names of sandrun's own directories."""


def settle(
    pids: "set[int]", since: float, usage: "Usage", excluded: "tuple[str, ...]"
) -> "tuple[list[str], list[str]]":
    """Remove segments that are provably of the run of the processes `pids`, which began at `since`
    (time.time()). Return descriptions of the memory that was left, and commands that remove it.

    `excluded`: directories that are not searched; /dev/shm stands for segments too. Without a
    cgroup that shows what is left, only segments of the usage's `shm_creators` are named.
    """
    texts, commands = [], []
    charged, creators = usage.shared, usage.shm_creators
    left = charged
    for number, size, creator in _segments(int(since), charged) if SHARED not in excluded else []:
        if creators and creator not in creators:
            continue
        left -= size
        text = f"SysV segment {number} ({size_text(size)}, made by pid {creator})"
        if creator in pids and _remove(number):
            texts.append(text + ", now removed")
        else:
            texts.append(text)
            commands.append(f"ipcrm -m {number}")
    found = [] if creators else _files(since, charged, {*excluded, os.path.expanduser("~")})
    for path, size in sorted(found, key=lambda file: -file[1]):
        if max(left, size) < charged // _SMALL:
            break  # where /tmp is a tmpfs, other programs write small files all the time
        left -= size
        texts.append(f"{path} ({size_text(size)})")
        commands.append(command_text(["rm", path]))
    return texts, commands


def _segments(since: int, most: int) -> "list[tuple[int, int, int]]":
    """Number, memory and creator of this user's segments to which no process is attached and whose
    creator has exited."""
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
    """shmctl(2). A process that attaches at this instant keeps the segment until it detaches."""
    import ctypes

    return bool(ctypes.CDLL(None).shmctl(number, _IPC_RMID, None) == 0)


def _directories() -> "list[str]":
    """Directories of tmpfs in which programs leave files: those for everybody, and the user's own.
    Not /run itself, where root's services write all the time."""
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


def _files(since: float, most: int, excluded: "set[str]") -> "list[tuple[str, int]]":
    """This user's files in tmpfs that changed since that time, with their sizes."""
    found: dict[str, int] = {}
    folders = [path for path in _directories() if path not in excluded]
    left = _ENTRIES
    while folders and left > 0:
        try:
            # The tops of all places come before the folders deep in one of them.
            with os.scandir(folders.pop(0)) as entries:
                for entry in entries:
                    left -= 1
                    info = entry.stat(follow_symlinks=False)
                    if info.st_uid != os.geteuid():
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if entry.path not in excluded and not entry.name.startswith(_OURS):
                            folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False) and info.st_ctime >= since:
                        found[entry.path] = info.st_blocks * 512
        except OSError:
            continue  # it is gone, or changes at this instant
    return [(path, size) for path, size in found.items() if 0 < size <= most]
