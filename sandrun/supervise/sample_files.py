"""The files with the samples of runs: `runs/<run id>.jsonl` in `folders.state_home`.

Imported only by a run that lasts a second or has an event (`sandrun.supervise.recorder`), and by
the commands that read or prune samples.

Invariants
- A live run's file is locked (flock(2)) by its supervisor, from its creation on and through each
  replacement: the new file is locked before it gets the name. So a file without a lock belongs to
  no live run. On Windows an open file cannot be removed.
- Every line is one write(2). After a SIGKILL all lines before the last are whole.
- Directory 0700, files 0600, because command lines can contain secrets. Root may run with a user's
  HOME: it follows no link at `runs` nor at a file's name.

Proof before a file is removed: it is a regular file in that directory, its owner is ours or that of
the directory, its name is `<run id>.jsonl` or that plus a random ending, its first line is the
header of that run's samples (or a torn part of it), and no process holds its lock.
"""

import errno
import os
import sys

from sandrun.model import is_run_id
from sandrun.platform import folders

if sys.platform != "win32":
    import fcntl

VERSION = 1
SUFFIX = ".jsonl"
_RANDOM = 16
"""Characters in the random ending of the name of a file that will replace another one."""
_EXAMINED = 1000
"""The number of files that one run examines at most, in some milliseconds; it removes at most a
tenth of that."""
_FRESH = 60.0
"""A file is not removed within so many seconds of its last write."""
_UNLOCKED = 86400.0
"""The same on a file system without locks. A run that is not stopped writes at least every six
hours."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_BLOCK = 512


def directory() -> str:
    """The directory of the sample files. Raises OSError without a home directory."""
    state = folders.state_home()
    if not state:
        raise OSError(errno.ENOENT, "no home directory")
    return os.path.join(state, "runs")


def header_start(run_id: str) -> bytes:
    """How the first line of a run's samples begins."""
    return b'{"v": %d, "id": "%s"' % (VERSION, run_id.encode())


def id_of(name: str) -> str:
    """The run whose samples a file of this name contains; '': the name is not one of ours."""
    run_id, _, ending = name.partition(SUFFIX)
    is_ours = not ending or (len(ending) == _RANDOM + 1 and ending[0] == "." and ending.isascii())
    return run_id if is_ours and SUFFIX in name and is_run_id(run_id) else ""


if sys.platform == "win32":

    class Folder:
        """The open directory of the sample files. Raises OSError."""

        def __init__(self, make: bool = False) -> None:
            self.path = directory()
            if make:
                folders.make_folders(self.path, 0o700)

        def close(self) -> None:
            """Nothing is open."""

        def names(self) -> "list[str]":
            return os.listdir(self.path)

        def stat(self, name: str) -> os.stat_result:
            return os.lstat(os.path.join(self.path, name))

        def create(self, name: str) -> int:
            return folders.create(os.path.join(self.path, name), os.O_WRONLY | os.O_APPEND, 0o600)

        def replace(self, old: str, new: str) -> None:
            os.replace(os.path.join(self.path, old), os.path.join(self.path, new))

        def unlink(self, name: str) -> None:
            os.unlink(os.path.join(self.path, name))

        def open(self, name: str, flags: int = os.O_RDONLY) -> int:
            flags |= os.O_BINARY | os.O_NOINHERIT
            return os.open(os.path.join(self.path, name), flags)

        def is_own(self, info: os.stat_result) -> bool:
            return True

    def is_locked(fd: int, age: float) -> bool:
        """False: an open file of a live run cannot be removed anyway."""
        return False

else:

    class Folder:
        """The open directory of the sample files. Raises OSError."""

        def __init__(self, make: bool = False) -> None:
            self.path = directory()
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            flags |= 0 if os.geteuid() else os.O_NOFOLLOW
            try:
                self.fd = os.open(self.path, flags)
            except FileNotFoundError:
                if not make:
                    raise
                folders.make_folders(self.path, 0o700)
                self.fd = os.open(self.path, flags)
            self.owner = os.fstat(self.fd).st_uid

        def close(self) -> None:
            os.close(self.fd)

        def names(self) -> "list[str]":
            return os.listdir(self.fd)

        def stat(self, name: str) -> os.stat_result:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

        def create(self, name: str) -> int:
            """Make a new file, locked if the file system has locks; its descriptor."""
            fd = folders.create_in(self.fd, name, os.O_WRONLY | os.O_APPEND, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(fd)
                    raise
            return fd

        def replace(self, old: str, new: str) -> None:
            os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

        def unlink(self, name: str) -> None:
            os.unlink(name, dir_fd=self.fd)

        def open(self, name: str) -> int:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(name, flags, dir_fd=self.fd)

        def is_own(self, info: os.stat_result) -> bool:
            return info.st_uid == self.owner or folders.is_own(info.st_uid)

    def is_locked(fd: int, age: float) -> bool:
        """Whether a live run holds the file, last written `age` seconds ago. Otherwise we hold its
        lock until it is closed."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except OSError as error:
            return error.errno not in _NO_LOCKS or age < _UNLOCKED


class SampleFile:
    """The file of one live run. Raises OSError, as every method may."""

    def __init__(self, run_id: str) -> None:
        self.name = run_id + SUFFIX
        self.folder = Folder(make=True)
        try:
            self.fd = self.folder.create(self.name)
        except OSError:
            self.folder.close()
            raise

    def append(self, line: str) -> None:
        """Write a line."""
        self._write(self.fd, line + "\n")

    def _write(self, fd: int, text: str) -> None:
        data = text.encode()
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)

    def replace(self, lines: "list[str]") -> None:
        """Replace all lines, atomically. If that fails, the file is as it was."""
        private = folders.private_name(self.name)
        fd = self.folder.create(private)
        try:
            self._write(fd, "\n".join([*lines, ""]))
            if sys.platform == "win32":  # which neither replaces nor renames an open file
                os.close(fd)
                os.close(self.fd)
                self.fd = -1
            self.folder.replace(private, self.name)
        except OSError:
            if sys.platform != "win32" or self.fd >= 0:  # else it is closed
                os.close(fd)
            self.folder.unlink(private)
            raise
        finally:
            if sys.platform == "win32" and self.fd < 0:
                self.fd = self.folder.open(self.name, os.O_WRONLY | os.O_APPEND)
        if sys.platform != "win32":
            os.close(self.fd)
            self.fd = fd

    def close(self) -> None:
        """Close the file, which also unlocks it."""
        if self.fd >= 0:
            os.close(self.fd)
        self.folder.close()


def prune(
    folder: Folder, now: float, age: float, size: int, own_id: str = "", dry_run: bool = False
) -> "tuple[int, int]":
    """Remove the samples of runs that ended more than `age` seconds before `now` (seconds since
    1970), and the oldest until the others take at most `size` bytes. 0: no limit. Returns the
    number of files removed, and their bytes. Raises OSError.

    `own_id`: do only a part of that. In a large directory, a run examines only the files whose
    names begin like its own id, and reduces them to their share of `size`. Ids are random, so some
    later run examines each file, and all files together do not exceed `size` for long.
    """
    names = [name for name in folder.names() if id_of(name)]
    digits = 0
    while own_id and len(names) > _EXAMINED and digits < len(own_id):
        digits += 1
        names, size = [n for n in names if n.startswith(own_id[:digits])], size // 16
    found: list[tuple[float, int, str]] = []
    for name in names:
        try:
            info = folder.stat(name)
        except OSError:
            continue
        if folder.is_own(info) and info.st_mode & 0o170000 == 0o100000:  # stat.S_ISREG
            taken = max(info.st_size, getattr(info, "st_blocks", 0) * _BLOCK)
            found.append((info.st_mtime, taken, name))
    left, removed, freed = sum(taken for _, taken, _ in found), 0, 0
    for written, taken, name in sorted(found):
        too_old = age and now - written > age
        if not (too_old or (size and left > size)) or (own_id and removed >= _EXAMINED // 10):
            break
        # The absolute value, because after a clock was set back older files lie in its future.
        if abs(now - written) <= _FRESH:
            continue
        if dry_run or _remove(folder, name, abs(now - written)):
            left, removed, freed = left - taken, removed + 1, freed + taken
    return removed, freed


def _remove(folder: Folder, name: str, age: float) -> bool:
    """Remove a file with the proof above; whether it was removed."""
    try:
        fd = folder.open(name)
        try:
            start = os.read(fd, 64)
            wanted = header_start(id_of(name))
            if is_locked(fd, age) or not (start.startswith(wanted) or wanted.startswith(start)):
                return False
            # Only the holder of its lock replaces the file that has the name, and that is us.
            if not os.path.samestat(folder.stat(name), os.fstat(fd)):
                return False
            if sys.platform != "win32":
                folder.unlink(name)
        finally:
            os.close(fd)
        if sys.platform == "win32":
            folder.unlink(name)
        return True
    except OSError:
        return False
