"""The run lock: held while a run's processes live, so exclusion never depends on ordering code.

Promises
- At most one run holds a slot of a queue on this kernel, whoever started it.
- Exclusion outlives the removal of the state directory, and holds between users and containers
  that share a checkout: each slot is locked in two homes, and a run needs both.

Homes: `executor.lock` in the state directory, and a second one that `rm -rf /tmp/seq-exec-*` does
not reach: `<git-dir>/sandrun.lock`, else a directory of the user's in /dev/shm. Slots after the
first have a number: `executor.2.lock`.

Invariants
- Locks belong to the open file (flock(2)): children that inherit it keep the lock, and an
  explicit unlock frees it for all of them.
- A slot's homes are locked in one order, without blocking, and a failure unlocks all of them, as
  does whatever makes a waiter sleep on something else: no two runs hold one home each while they
  wait for the other's.
- The state home holds one JSON line about its holder while a run is on, and nothing after a clean
  end. What a dead run left there says what must be cleaned up (`sandrun.recovery`).
- A file counts only while it is the one that others would open, so after each lock fstat is
  compared with stat.
- The second home is a net under the first: where it cannot be had, the run goes on without it.
"""

import errno
import fcntl
import os

from sandrun import messages, project
from sandrun.model import SandrunError
from sandrun.queue import Queue
from sandrun.ticket import StateGone, slot_file

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class _File:
    """One home of one slot: a lock file below an open directory."""

    def __init__(self, directory: int, path: str, name: str, mode: int = 0o600) -> None:
        self.directory = directory
        self.path = path
        self.name = name
        self.mode = mode
        self.fd = -1

    def try_lock(self) -> bool:
        """Lock the file without blocking. False: it is held; `fd` is open to wait for it."""
        while True:
            self.open()
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                held = False
            if self._is_current():
                return held
            self.close()

    def open(self) -> None:
        if self.fd >= 0:
            return
        try:
            fd = os.open(self.name, os.O_RDWR | _FLAGS, dir_fd=self.directory)
        except OSError as error:
            if error.errno == errno.ENOENT:
                fd = self._make()
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                # A lock needs no right to write: another user's file, a read-only mount.
                fd = os.open(self.name, os.O_RDONLY | _FLAGS, dir_fd=self.directory)
            else:
                raise
        # High, so that a script's own `exec 3>file` does not close the lock of a dead supervisor.
        try:
            self.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
            os.close(fd)
        except OSError:  # a low RLIMIT_NOFILE
            self.fd = fd
        if os.fstat(self.fd).st_mode & 0o170000 != 0o100000:  # stat.S_ISREG, without the import
            self.close()
            raise OSError(errno.EINVAL, "not a regular file")

    def _make(self) -> int:
        """Make the missing file.

        Rights are set on a file that is certainly ours and new: one that was there may be a link
        that somebody laid for us.
        """
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS
            fd = os.open(self.name, flags, self.mode, dir_fd=self.directory)
        except FileExistsError:  # somebody was faster
            return os.open(self.name, os.O_RDWR | _FLAGS, dir_fd=self.directory)
        os.fchmod(fd, self.mode)  # whatever the umask took away
        if os.geteuid() == 0:  # what root makes in a user's checkout, the user must be able to open
            above = os.fstat(self.directory)
            os.fchown(fd, above.st_uid, above.st_gid)
        return fd

    def _is_current(self) -> bool:
        try:
            there = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except OSError:
            return False
        here = os.fstat(self.fd)
        return (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)

    def unlock(self) -> None:
        """Free the lock, also for children that inherited it; the file stays open."""
        if self.fd >= 0:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class RunLock:
    """One slot of a queue, once taken: `fd` is its state home, `slot` its number.

    `root` is the project whose checkout is the second home, unless the queue has a `name` of its
    own; '' (looking only): no second home.

    The child inherits `descriptors()`, so if the supervisor dies, exclusion lasts until its tree
    does.
    """

    def __init__(
        self, queue: Queue, slots: int = 1, root: str = "", name: str = "", first: int = 1
    ) -> None:
        self.queue = queue
        self.slots = slots
        self.first = first
        self.slot = 0
        self.note = ""
        self._second: tuple[int, str, str, int] | None = None
        if root:
            self._second = self._open_second(root, name)
        self._files: dict[int, list[_File]] = {}
        self.blocked: list[int] = []
        """After a failed try: an open file per slot whose lock somebody else holds."""

    @property
    def fd(self) -> int:
        files = self._files.get(self.slot or self.first)
        return files[0].fd if files else -1

    def _open_second(self, root: str, name: str) -> "tuple[int, str, str, int] | None":
        git = "" if name else project.git_directory(root)
        if git:
            try:
                fd = os.open(git, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                # Who may write the repository may exclude its other users, and nobody else.
                writers = os.fstat(fd).st_mode & 0o022
                return fd, git, "sandrun", 0o600 | writers | writers << 1
            except OSError as error:
                self.note = f"{git}: {error.strerror}"
        path = project.lock_root()
        try:
            return project.open_state(path), path, os.path.basename(self.queue.path), 0o600
        except SandrunError as error:
            self.note = error.text
            messages.decision(f"no second home for the run lock: {self.note}")
            return None

    def _slot_files(self, slot: int) -> "list[_File]":
        files = self._files.get(slot)
        if files is None:
            name = slot_file("executor", slot)
            files = [_File(self.queue.dir, os.path.join(self.queue.path, name), name)]
            if self._second:
                directory, path, stem, mode = self._second
                name = slot_file(stem, slot)
                files.append(_File(directory, os.path.join(path, name), name, mode))
            self._files[slot] = files
        return files

    def prepare(self) -> None:
        """Open the first slot's files ahead of the turn, to be quicker when it comes."""
        for file in self._slot_files(1):
            try:
                file.open()
            except OSError as error:  # try_take says it
                self.note = f"{file.path}: {error.strerror}"

    def second_path(self) -> str:
        """Where the second home is; '' if there is none."""
        files = self._slot_files(1)
        return files[1].path if len(files) > 1 else ""

    def try_take(self) -> bool:
        """Take a free slot. False: every one is held, see `blocked`.

        Raises SandrunError if a file is not what it should be, StateGone.
        """
        self.blocked = []
        for slot in range(self.first, self.slots + 1):
            if self._try_slot(slot):
                self.slot = slot
                for other in set(self._files) - {slot}:
                    self._drop(other)
                return True
        return False

    def _try_slot(self, slot: int) -> bool:
        files = self._slot_files(slot)
        for file in list(files):
            try:
                if file.try_lock():
                    continue
            except OSError as error:
                if file is files[0]:
                    self._refuse(file, error)
                self._without(file, error)
                continue
            for each in files:  # also one that was granted while we slept
                each.unlock()
            self.blocked.append(file.fd)
            return False
        return True

    def _refuse(self, file: _File, error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            raise StateGone from None
        raise SandrunError(
            f"{file.path}: {error.strerror}", f"look at it with: ls -l {file.path}"
        ) from None

    def _without(self, file: _File, error: OSError) -> None:
        """Go on without the second home: a read-only checkout, an odd file system."""
        self.note = f"{file.path}: {error.strerror}"
        messages.decision(f"no second home for the run lock: {self.note}")
        self._second = None
        for files in self._files.values():
            for other in files[1:]:
                other.close()
            del files[1:]

    def unlock(self) -> None:
        """Free what was granted while we slept: it is not our turn any more."""
        for files in self._files.values():
            for file in files:
                file.unlock()

    def holder_of_second(self) -> "_File | None":
        """The second home that the last failed try found held while the first was free."""
        for files in self._files.values():
            if len(files) > 1 and files[1].fd in self.blocked:
                return files[1]
        return None

    def skip_second(self) -> None:
        """Go on without the second home, because its holder is proved to be around us."""
        self._second = None
        for slot in list(self._files):
            self._drop(slot)

    def _drop(self, slot: int) -> None:
        for file in self._files.pop(slot):
            file.unlock()
            file.close()

    def descriptors(self) -> "list[int]":
        """The locked files, for the child to inherit."""
        return [file.fd for file in self._files.get(self.slot, []) if file.fd >= 0]

    def read_holder(self) -> bytes:
        """What the holder wrote about itself; empty after a clean end."""
        return read_line(self.fd)

    def write_holder(self, line: bytes) -> None:
        """Write who holds the lock. A full disk only costs the cleaning up after a SIGKILL."""
        try:
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, line, 0)
        except OSError:
            pass

    def release(self) -> None:
        """Empty and free the lock, also for children that inherited it."""
        if self.slot:
            try:
                os.ftruncate(self.fd, 0)
            except OSError:
                pass
        self.drop()

    def drop(self) -> None:
        """Free what is held and close all, without emptying: the next run cleans up by it."""
        for slot in list(self._files):
            self._drop(slot)
        self.slot = 0


def read_line(fd: int) -> bytes:
    """The holder's line in an open state home."""
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    except OSError:
        return b""
