"""Locks whose owner is dead: what proves it, moving them aside, putting them back.

Promises
- A lock of a live git is never moved. Neither its age nor that nobody has it open proves
  anything: both are so in the editor of `git commit -a`.
- Moved by itself (`heal`, `after_run`) only with proof that its owner cannot live: it is older
  than this boot, or the git that core.lockfilePid names is dead, or it was born in a run whose
  every process is dead. And only if nothing contradicts: no git is at work in the repository, no
  process has the file open, and no owner could be out of our sight.
- Nothing is ever deleted: the lock moves to `sandrun-unlocked/` in the common dir (one outside of
  it gets another name), because an index.lock may be all that is left of what somebody staged.

Assumptions: a program other than git that takes git's locks (JGit, libgit2) has the file open
while it does. Whoever changes the clock by hand while git runs still has a live git to be seen.
"""

import os
import sys
import time

from sandrun import messages
from sandrun.git import git_processes, lock_files, lock_paths
from sandrun.git.repository import Repository
from sandrun.model import SandrunError
from sandrun.platform import folders, processes

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HOME = "sandrun-unlocked"
_BESIDE = ".sandrun-"  # what follows a lock's name where it cannot move into the git dir
_CLOCK_MARGIN = 5.0  # btime of /proc/stat has whole seconds and follows clock adjustments
INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, <linux/proc_ns.h>
_LOCAL = (
    *("bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "ntfs3"),
    *("overlay", "ramfs", "reiserfs", "tmpfs", "vfat", "xfs", "zfs"),
)


def heal(repo: Repository, lock: str) -> bool:
    """Move a lock aside if it is stale beyond doubt; whether it was moved."""
    reason = _born_before_boot(lock) or _owner_is_dead(lock)
    return bool(reason) and _move_if_unowned(repo, lock, reason)


def after_run(repo: Repository, since: float, run_id: str) -> None:
    """Move aside the locks that a run left, every process of which is dead.

    The caller knows that none of them was there at `since`, when the run began.
    """
    for lock, owner in lock_paths.every_lock(repo, os.environ).items():
        try:
            info = os.lstat(lock)
        except OSError:
            continue
        if info.st_ctime >= since and info.st_uid == os.geteuid():
            _move_if_unowned(owner, lock, f"left by run {run_id}, which was ended", repo)


def _move_if_unowned(
    repo: "Repository | None", lock: str, reason: str, home: "Repository | None" = None
) -> bool:
    if blind_spots(lock) or owners(repo, lock):
        return False
    try:
        aside, _ = move_aside(repo, lock, home)
    except SandrunError as error:
        messages.decision(error.text)
        return False
    messages.warn(f"stale lock ({reason}): moved {lock} to {aside}")
    return True


def _born_before_boot(lock: str) -> str:
    try:
        line = next(row for row in processes.read("/proc/stat").splitlines() if row[:5] == b"btime")
        old = os.lstat(lock).st_ctime < int(line.split()[1]) - _CLOCK_MARGIN
    except (OSError, StopIteration, ValueError):
        return ""
    return "older than this boot" if old else ""


def pid_file(lock: str) -> str:
    """Where git 2.54 and later say who owns the lock, if core.lockfilePid is set."""
    return lock.removesuffix(".lock") + "~pid.lock"


def _owner_is_dead(lock: str) -> str:
    try:
        said = processes.read(pid_file(lock)).split()
        written = os.lstat(pid_file(lock)).st_mtime
        pid = int(said[1])
    except (OSError, ValueError, IndexError):
        return ""
    dead = f"its git, pid {pid}, is dead"
    try:
        started = processes.Stat(pid).start / os.sysconf("SC_CLK_TCK")
    except (FileNotFoundError, ProcessLookupError):
        return dead
    except OSError:
        return ""
    try:
        uptime = float(processes.read("/proc/uptime").split()[0])
    except OSError:  # macOS: whether the pid has a new owner cannot be told
        return ""
    return dead if time.time() - uptime + started > written + _CLOCK_MARGIN else ""


def owners(repo: "Repository | None", lock: str) -> "list[int]":
    """The processes that may own the lock."""
    try:
        uid = os.lstat(lock).st_uid
    except OSError:
        uid = -1
    return git_processes.openers(lock) or git_processes.at_work(repo, uid)


def blind_spots(lock: str) -> "list[str]":
    """Why an owner of the lock could be out of our sight; empty: it could not."""
    reasons = []
    try:
        if os.readlink("/proc/self/ns/pid") != INITIAL_PID_NAMESPACE:
            reasons.append("processes outside this container cannot be seen")
        kind = _file_system(lock)
        if kind not in _LOCAL:
            reasons.append(f"another machine may share this file system ({kind})")
        if os.geteuid() and os.lstat(lock).st_uid != os.geteuid():
            reasons.append(f"the lock belongs to uid {os.lstat(lock).st_uid}")
        if os.geteuid() and "hidepid=" in _mounts("/proc")[1]:
            reasons.append("other users' processes are hidden (hidepid)")
    except OSError as error:
        reasons.append(f"/proc cannot be read: {error.strerror}")
    return reasons


def _file_system(path: str) -> str:
    return _mounts(os.path.realpath(path))[0]


def _mounts(path: str) -> "tuple[str, str]":
    """The type and the options of the file system that `path` is on (proc(5), mountinfo)."""
    best, found = "", ("unknown", "")
    for row in os.fsdecode(processes.read("/proc/self/mountinfo")).splitlines():
        fields, _, rest = row.partition(" - ")
        point = fields.split()[4].replace("\\040", " ").rstrip("/")
        if len(point) >= len(best) and (path + "/").startswith(point + "/"):
            kind, _, options = rest.split(" ", 2)
            best, found = point, (kind, options)
    return found


def move_aside(
    repo: "Repository | None", lock: str, home: "Repository | None" = None
) -> "tuple[str, str]":
    """Move a lock to `sandrun-unlocked/` of `home` (`repo` itself, unless given), or beside itself
    where it is outside of that git dir: where it is now, and the stamp that restores it. Raises
    SandrunError. `repo` is whose gits may own it; None: any.

    Between looking and moving, the lock may have gone and a live one have come. Then what was
    moved is not what was looked at, or its owner is to be seen now, and it goes straight back.
    """
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
    aside = _aside(home or repo, lock, stamp)
    try:
        before = os.lstat(lock)
        folders.make_folders(os.path.dirname(aside), 0o777)
        os.rename(lock, aside)
        after = os.lstat(aside)
        same = (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
        if not same or owners(repo, aside):
            put_back(aside, lock)
            raise SandrunError(f"{lock} came alive while it was looked at: left alone")
        if os.path.lexists(pid_file(lock)):
            os.rename(pid_file(lock), _aside(home or repo, pid_file(lock), stamp))
    except OSError as error:
        raise SandrunError(f"cannot move {lock} aside: {error.strerror}") from None
    return aside, stamp


def _aside(home: "Repository | None", lock: str, stamp: str) -> str:
    """Always on the file system of the lock: a rename is what makes moving it atomic."""
    name = os.path.relpath(lock, home.common_dir) if home else ".."
    if not home or name.startswith(".."):
        return f"{lock}{_BESIDE}{stamp}"
    return os.path.join(home.common_dir, HOME, stamp, name)


def put_back(aside: str, lock: str) -> None:
    """Move a lock back unless there is a new one. Raises OSError."""
    os.link(aside, lock)
    os.unlink(aside)
    folder = os.path.dirname(aside) if f"/{HOME}/" in aside else HOME
    while os.path.basename(folder) != HOME:
        try:
            os.rmdir(folder)
        except OSError:  # others of the same stamp are still there
            return
        folder = os.path.dirname(folder)


def asides(repo: Repository, env: "Mapping[str, str]", stamp: str = "") -> "list[tuple[str, str]]":
    """What was moved aside at `stamp` (last, unless given): where it is, where it was."""
    found = [*_asides_in(repo), *_asides_beside(repo, env)]
    wanted = stamp or max((each for each, _, _ in found), default="")
    return [(aside, lock) for each, aside, lock in found if each == wanted]


def _asides_in(repo: Repository) -> "Iterator[tuple[str, str, str]]":
    home = os.path.join(repo.common_dir, HOME)
    for folder, _, files in os.walk(home):
        for path in (os.path.join(folder, name) for name in files):
            stamp, _, name = os.path.relpath(path, home).partition("/")
            yield stamp, path, os.path.join(repo.common_dir, name)


def _asides_beside(repo: Repository, env: "Mapping[str, str]") -> "Iterator[tuple[str, str, str]]":
    outside = [repo.index, os.path.join(repo.top, ".gitmodules"), *lock_paths.user_files(env)]
    for file in outside:
        for lock in (file + ".lock", file + "~pid.lock"):
            folder, base = os.path.split(lock + _BESIDE)
            for name in lock_paths.entries(folder):
                if name.startswith(base):
                    yield name.removeprefix(base), os.path.join(folder, name), lock


def describe(repo: Repository, lock: str) -> str:
    """A lock for people: its name, size and age."""
    try:
        size = os.lstat(lock).st_size
    except OSError:
        size = 0
    return f"{lock} ({size} bytes, {lock_files.age_text(lock)} old)"
