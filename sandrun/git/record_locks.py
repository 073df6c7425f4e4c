"""Turns: guarded git commands of one repository run one after the other.

A turn is a set of POSIX record locks on single bytes of `sandrun-guard`, an empty file in the git
directory and one in the common directory. A record lock belongs to the process: exec keeps it, fork
does not pass it on, and the kernel releases it however the process ends. So the git that we become
holds it exactly as long as it lives, no supervisor is needed, and a daemon that git leaves behind
(gc, fsmonitor, a hook's `&`) never holds it. The kernel also reports the holder, and queues waiters
in the order of their arrival.

Invariants
- Locks are acquired in one order, this worktree's tree before the bytes of the common directory, so
  waits cannot form a cycle.
- Every guarded git shares ALL_BYTE; a command that needs everything (gc) locks it exclusively.
  Others may overtake it while it waits, until its deadline.
- Each file has one descriptor: closing a second one would release the locks.
- A git inside another git of the same repository (in a hook) must not wait for the outer one. It
  takes turns with its siblings instead, on bytes of their own from `base` on.
- Users that may write the directory may read and write the file, and no others: a user that may
  only read the repository cannot delay our git commands. If the file cannot be opened (read-only,
  another user's repository), there are no turns, only git's own locks. The file is never removed;
  if another process removes it, the next command makes a new one.

Turns only avoid collisions; exclusion is by git's own locks. After the deadline git runs anyway.
"""

import errno
import fcntl
import os
import sys

from sandrun import messages
from sandrun.git import classify

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.git.repository import Repository

    Waiter = Callable[[int, int, int], bool]
    """Called with (fd, operation, byte) of a lock that another process holds; True: it is ours."""

FILE = "sandrun-guard"
TREE_BYTE, ALL_BYTE, REFS_BYTE, REMOTE_BYTE = range(4)
_WIDTH = 4


def required_locks(repo: "Repository", needs: int) -> "list[tuple[str, int, int]]":
    """The locks for `needs`, in order; each a directory, a byte and an operation."""
    if needs == classify.REFRESH:
        return [(repo.git_dir, TREE_BYTE, fcntl.LOCK_EX)]
    wanted = []
    if needs & (classify.TREE | classify.ALL):
        wanted.append((repo.git_dir, TREE_BYTE, fcntl.LOCK_EX))
    all_mode = fcntl.LOCK_EX if needs & classify.ALL else fcntl.LOCK_SH
    wanted.append((repo.common_dir, ALL_BYTE, all_mode))
    if needs & classify.REFS:
        wanted.append((repo.common_dir, REFS_BYTE, fcntl.LOCK_EX))
    if needs & classify.REMOTE:
        wanted.append((repo.common_dir, REMOTE_BYTE, fcntl.LOCK_EX))
    return wanted


def acquire(repo: "Repository", needs: int, base: int, wait: "Waiter") -> "list[int]":
    """Acquire the locks; return the descriptors that hold them, which must stay open.

    `base` is the pid of the enclosing git (0: none). `wait` waits for a lock that another process
    holds; if it gives up, the command continues without that lock.
    """
    held: dict[str, int] = {}
    for directory, byte, operation in required_locks(repo, needs):
        if directory not in held:
            held[directory] = open_file(directory)
        if held[directory] >= 0:
            _acquire_one(held[directory], operation, base * _WIDTH + byte, wait)
    return [fd for fd in held.values() if fd >= 0]


def _acquire_one(fd: int, operation: int, byte: int, wait: "Waiter") -> None:
    try:
        fcntl.lockf(fd, operation | fcntl.LOCK_NB, 1, byte)
    except OSError as error:
        # Other errors (ENOLCK, EOPNOTSUPP): a file system without locks, so without turns.
        if error.errno in (errno.EAGAIN, errno.EACCES):
            wait(fd, operation, byte)


def open_file(directory: str, make: bool = True) -> int:
    """Open the guard file of a git directory, making it if necessary; -1 if that fails."""
    path = os.path.join(directory, FILE)
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    for _ in range(3):
        try:
            kind = os.lstat(path).st_mode & 0o170000
            if kind != 0o100000:  # not opened: opening a device may have effects
                _warn_irregular(path)
                return -1
            fd = os.open(path, flags)
        except FileNotFoundError:
            if not make or not _make(directory, path):
                return -1
            continue
        except OSError:
            return -1
        info = os.fstat(fd)
        if info.st_mode & 0o170000 != 0o100000:
            os.close(fd)
            return -1
        _fix_mode(fd, info, directory)
        return _move_high(fd)
    return -1


def _warn_irregular(path: str) -> None:
    messages.warn(f"{path} is no regular file: git commands here take no turns", f"rm -r {path}")


def _mode(home: os.stat_result) -> int:
    """The file's mode: readable only for users that may write the git directory, because a
    descriptor for reading suffices for a lock that delays writers (F_RDLCK, fcntl(2))."""
    writers = home.st_mode & 0o222
    return 0o600 | writers | writers << 1


def _fix_mode(fd: int, info: os.stat_result, directory: str) -> None:
    """Correct the mode of our file after an older version or a change of the directory's mode.

    A file with a second name is left alone: it may be a link to another file of ours.
    """
    try:
        wanted = _mode(os.stat(directory))
        may = info.st_nlink == 1 and os.geteuid() in (0, info.st_uid)
        if may and info.st_mode & 0o777 != wanted:
            os.fchmod(fd, wanted)
    except OSError:
        pass


def _make(directory: str, path: str) -> bool:
    """Make the file with the directory's write permissions and, for root, its owner: root must not
    lock a user out of the user's repository."""
    try:
        home = os.stat(directory)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:
                os.fchown(fd, home.st_uid, home.st_gid)
            os.fchmod(fd, _mode(home))
        finally:
            os.close(fd)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def _move_high(fd: int) -> int:
    """Move the file to a high descriptor, out of the way of a script's `exec 3>file`. Called before
    any lock is acquired, because closing a descriptor of the file releases its locks."""
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
    except OSError:  # a low RLIMIT_NOFILE
        return fd
    os.close(fd)
    return high


def holder(fd: int, operation: int, byte: int) -> int:
    """The process that holds a conflicting lock, by F_GETLK; 0: none is visible."""
    import struct

    if sys.platform != "linux":
        return 0
    layout = "hhqqi"  # struct flock of Linux
    kind = fcntl.F_WRLCK if operation & fcntl.LOCK_EX else fcntl.F_RDLCK
    asked = struct.pack(layout, kind, os.SEEK_SET, byte, 1, 0)
    try:
        answer = struct.unpack_from(layout, fcntl.fcntl(fd, fcntl.F_GETLK, asked + b"\0" * 8))
    except (OSError, struct.error):
        return 0
    return max(0, int(answer[4])) if answer[0] != fcntl.F_UNLCK else 0
