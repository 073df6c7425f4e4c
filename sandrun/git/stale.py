"""Locks whose owner is dead: proving it, moving them aside, restoring them.

Promises
- A lock of a live git is never moved. Neither its age nor the fact that no process has it open is
  proof: both are normal during the editor of `git commit -a`.
- A lock is moved automatically (`heal`, `after_run`) only with proof that its owner is dead: it is
  older than this boot, or the git named by core.lockfilePid is dead, or it was created in a run
  whose processes are all dead. In addition, no git may be active in the repository, no process may
  have the file open, and no possible owner may be invisible to us.
- Nothing is deleted. The lock moves to `sandrun-unlocked/` in the common directory, or gets another
  name if it is outside, because an index.lock may be the only copy of staged work.

Assumption: a program other than git that takes git's locks (JGit, libgit2) keeps the file open. If
the clock is changed by hand while git runs, the live git is still visible.
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

ASIDE = "sandrun-unlocked"
_SUFFIX = ".sandrun-"  # follows the name of a lock that cannot move into the git directory
_CLOCK_MARGIN = 5.0  # btime of /proc/stat has whole seconds and follows clock adjustments
INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, <linux/proc_ns.h>
_LOCAL = (
    *("bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "ntfs3"),
    *("overlay", "ramfs", "reiserfs", "tmpfs", "vfat", "xfs", "zfs"),
)


def heal(repo: Repository, lock: str) -> bool:
    """Move a lock aside if it is provably stale; return whether it was moved."""
    reason = _born_before_boot(lock) or _owner_is_dead(lock)
    return bool(reason) and _move_if_unowned(repo, lock, reason)


def after_run(repo: Repository, since: float, run_id: str) -> None:
    """Move aside the locks that a run left. All of its processes must be dead.

    Locks older than `since`, when the run began, are left alone.
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
    """The file in which git 2.54 and later name the owner of a lock, if core.lockfilePid is set."""
    return lock.removesuffix(".lock") + "~pid.lock"


def _owner_is_dead(lock: str) -> str:
    try:
        words = processes.read(pid_file(lock)).split()
        written = os.lstat(pid_file(lock)).st_mtime
        pid = int(words[1])
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
    except OSError:  # macOS: whether the pid was reused is unknown
        return ""
    return dead if time.time() - uptime + started > written + _CLOCK_MARGIN else ""


def owners(repo: "Repository | None", lock: str) -> "list[int]":
    """The processes that may own the lock."""
    try:
        uid = os.lstat(lock).st_uid
    except OSError:
        uid = -1
    return git_processes.openers(lock) or git_processes.possible_owners(repo, uid)


def blind_spots(lock: str) -> "list[str]":
    """The reasons why an owner of the lock could be invisible to us; empty: none."""
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
    """Move a lock to `sandrun-unlocked/` of `home` (default: `repo`), or rename it if it is outside
    that git directory. Return its new path and the stamp that restores it. Raises SandrunError.
    `repo` is the repository whose git commands may own it; None: any.

    Between the check and the move, a live lock may have replaced the stale one. Then the moved file
    is not the checked one, or its owner is visible now, and it is moved back at once.
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
            restore(aside, lock)
            raise SandrunError(f"{lock} was replaced by a live lock meanwhile: left alone")
        if os.path.lexists(pid_file(lock)):
            os.rename(pid_file(lock), _aside(home or repo, pid_file(lock), stamp))
    except OSError as error:
        raise SandrunError(f"cannot move {lock} aside: {error.strerror}") from None
    return aside, stamp


def _aside(home: "Repository | None", lock: str, stamp: str) -> str:
    """The new path, always on the lock's file system, because a rename is atomic."""
    name = os.path.relpath(lock, home.common_dir) if home else ".."
    if not home or name.startswith(".."):
        return f"{lock}{_SUFFIX}{stamp}"
    return os.path.join(home.common_dir, ASIDE, stamp, name)


def restore(aside: str, lock: str) -> None:
    """Move a lock back unless a new one exists. Raises OSError."""
    os.link(aside, lock)
    os.unlink(aside)
    folder = os.path.dirname(aside) if f"/{ASIDE}/" in aside else ASIDE
    while os.path.basename(folder) != ASIDE:
        try:
            os.rmdir(folder)
        except OSError:  # other locks of the same stamp remain
            return
        folder = os.path.dirname(folder)


def moved_aside(
    repo: Repository, env: "Mapping[str, str]", stamp: str = ""
) -> "list[tuple[str, str]]":
    """The locks moved aside with a `stamp` (default: the last): their current and former paths."""
    found = [*_asides_in(repo), *_asides_beside(repo, env)]
    wanted = stamp or max((each for each, _, _ in found), default="")
    return [(aside, lock) for each, aside, lock in found if each == wanted]


def _asides_in(repo: Repository) -> "Iterator[tuple[str, str, str]]":
    home = os.path.join(repo.common_dir, ASIDE)
    for folder, _, files in os.walk(home):
        for path in (os.path.join(folder, name) for name in files):
            stamp, _, name = os.path.relpath(path, home).partition("/")
            yield stamp, path, os.path.join(repo.common_dir, name)


def _asides_beside(repo: Repository, env: "Mapping[str, str]") -> "Iterator[tuple[str, str, str]]":
    outside = [repo.index, os.path.join(repo.top, ".gitmodules"), *lock_paths.user_files(env)]
    for file in outside:
        for lock in (file + ".lock", file + "~pid.lock"):
            folder, base = os.path.split(lock + _SUFFIX)
            for name in lock_paths.entries(folder):
                if name.startswith(base):
                    yield name.removeprefix(base), os.path.join(folder, name), lock


def describe(repo: Repository, lock: str) -> str:
    """A lock for a message: its name, size and age."""
    try:
        size = os.lstat(lock).st_size
    except OSError:
        size = 0
    return f"{lock} ({size} bytes, {lock_files.age_text(lock)} old)"
