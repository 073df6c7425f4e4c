"""Taking turns: guarded git commands of one repository run one after the other.

The locks are POSIX record locks on single bytes of `sandrun-guard`, an empty file in the git dir
and one in the common dir. Such a lock belongs to the process: exec keeps it, fork does not pass
it on, and the kernel drops it however the process ends. So the git that we become holds it for
exactly as long as it lives, no supervisor is needed, and a daemon that git leaves behind (gc,
fsmonitor, a hook's `&`) never holds it. The kernel also tells who holds it, and queues waiters
in the order they came.

Invariants
- Order: this worktree's tree, then the common dir's bytes; hence no cycle of waits.
- Every guarded git shares ALL_BYTE, and who needs all for itself (gc) has it alone. While that one
  waits others may pass it; no longer than its deadline.
- One descriptor per file: closing another one of the same file would drop the locks.
- A git inside another git of the same repository (a hook) must not wait for what that one
  holds. It takes its turn among its siblings instead, on bytes of their own behind `base`.
- Who may write in the directory may read and write the file, and nobody else: whoever may only
  read the repository cannot delay our gits.
  Where it cannot be opened (read-only, another's repository) there is no queue, only git's own
  locks. It is never removed; if somebody else does, the next to come makes a new one.

It is a courtesy on top of git's own locks, never instead of them: when the deadline has passed,
git runs anyway.
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
    """Called as (fd, operation, byte) when that lock is taken; True: it is ours now."""

FILE = "sandrun-guard"
TREE_BYTE, ALL_BYTE, REFS_BYTE, REMOTE_BYTE = range(4)
_WIDTH = 4


def steps(repo: "Repository", needs: int) -> "list[tuple[str, int, int]]":
    """The locks that `needs` asks for, in order: directory, byte, operation."""
    if needs == classify.REFRESH:
        return [(repo.git_dir, TREE_BYTE, fcntl.LOCK_EX)]
    wanted = []
    if needs & (classify.TREE | classify.ALL):
        wanted.append((repo.git_dir, TREE_BYTE, fcntl.LOCK_EX))
    alone = fcntl.LOCK_EX if needs & classify.ALL else fcntl.LOCK_SH
    wanted.append((repo.common_dir, ALL_BYTE, alone))
    if needs & classify.REFS:
        wanted.append((repo.common_dir, REFS_BYTE, fcntl.LOCK_EX))
    if needs & classify.REMOTE:
        wanted.append((repo.common_dir, REMOTE_BYTE, fcntl.LOCK_EX))
    return wanted


def take(repo: "Repository", needs: int, base: int, wait: "Waiter") -> "list[int]":
    """Take the locks; the descriptors that hold them, to be kept open.

    `base` is the git around us (0: none). `wait` decides about a lock that another holds; when
    it gives up, the command goes on without that lock.
    """
    held: dict[str, int] = {}
    for directory, byte, operation in steps(repo, needs):
        if directory not in held:
            held[directory] = open_file(directory)
        if held[directory] >= 0:
            _take_one(held[directory], operation, base * _WIDTH + byte, wait)
    return [fd for fd in held.values() if fd >= 0]


def _take_one(fd: int, operation: int, byte: int, wait: "Waiter") -> None:
    try:
        fcntl.lockf(fd, operation | fcntl.LOCK_NB, 1, byte)
    except OSError as error:
        # Others (ENOLCK, EOPNOTSUPP): a file system without locks, so without a queue.
        if error.errno in (errno.EAGAIN, errno.EACCES):
            wait(fd, operation, byte)


def open_file(directory: str, make: bool = True) -> int:
    """Open the guard file of a git dir, made first if need be; -1 where that cannot be."""
    path = os.path.join(directory, FILE)
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    for _ in range(3):
        try:
            kind = os.lstat(path).st_mode & 0o170000
            if kind != 0o100000:  # not even opened: a device may act on that
                _complain(path)
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
        _mend(fd, info, directory)
        return _high(fd)
    return -1


def _complain(path: str) -> None:
    messages.warn(f"{path} is no regular file: gits here take no turns", f"rm -r {path}")


def _mode(home: os.stat_result) -> int:
    """Reading for those who may write in the git dir, and for nobody else: a lock that keeps
    writers away (F_RDLCK) needs no more than a descriptor for reading (fcntl(2))."""
    writers = home.st_mode & 0o222
    return 0o600 | writers | writers << 1


def _mend(fd: int, info: os.stat_result, directory: str) -> None:
    """Correct the mode of a file of ours, which an older version or a change of sharing left.

    Not where it has a second name: that may be a link to something else of ours.
    """
    try:
        wanted = _mode(os.stat(directory))
        may = info.st_nlink == 1 and os.geteuid() in (0, info.st_uid)
        if may and info.st_mode & 0o777 != wanted:
            os.fchmod(fd, wanted)
    except OSError:
        pass


def _make(directory: str, path: str) -> bool:
    """Make the file with the directory's writers and, for root, its owner: a root who commits in a
    user's repository must not shut the user out."""
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


def _high(fd: int) -> int:
    """Out of the way of scripts' own `exec 3>file`; before any lock, as closing drops them."""
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
    except OSError:  # a low RLIMIT_NOFILE
        return fd
    os.close(fd)
    return high


def holder(fd: int, operation: int, byte: int) -> int:
    """The process whose lock is in the way, as the kernel tells (F_GETLK); 0: none to be seen."""
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
