"""The run lock on POSIX: held while any process of a run is alive.

Promises
- At most one run holds a slot of a queue on this kernel, whichever user started it. This does not
  depend on the order of the tickets.
- Exclusion survives the removal of the state directory, and holds between users and containers that
  share a checkout: each slot has two lock files, and a run needs both.

Lock files: `executor.lock` in the state directory, and a second one that `rm -rf /tmp/seq-exec-*`
does not remove. That is `sandrun.lock` in the git directory, or in the directory that the
administrator made for a named queue; else a file in a directory of the user's in /dev/shm. The
names for further slots contain a number: `executor.2.lock`.

Invariants
- A lock belongs to the open file (flock(2)). Children that inherit the file keep the lock, and an
  explicit unlock frees it for all of them.
- The two files of a slot are locked in a fixed order, without blocking. A failure unlocks both. A
  waiter also unlocks both before it blocks on anything but the run lock. So no two runs hold one
  file each and wait for the other's.
- The first file contains the holder's line while the command runs, and is empty after a clean end.
  The line of a killed run names what must be cleaned up (`sandrun.lifecycle.recovery`).
- A lock counts only if the locked file is the one that others would open now. So fstat is compared
  with stat after each lock. Only the holder of a file's lock may remove the file
  (`sandrun.queue.unused_states`).
- Exactly the users who may write a shared directory may lock the file in it. Its owner (or root)
  restores that mode and group whenever they differ, for example after `chmod -R g+w`.
- The second file is an additional protection. Where it cannot be used, the run goes on with the one
  in /dev/shm, or without. If other users are then not excluded, a warning says so.
"""

import errno
import fcntl
import os
import sys

assert sys.platform != "win32"

from sandrun import messages
from sandrun.config import project
from sandrun.model import SandrunError, out_of_descriptors
from sandrun.platform import folders
from sandrun.queue.posix_queue import Queue
from sandrun.queue.queue import StateGone
from sandrun.queue.state import lock_root, open_state, shared_queue, slot_file

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


_Rights = tuple[int, int, int]
"""The mode of a lock file, its owner and its group (-1: unchanged)."""
_OWN = (0o600, -1, -1)
_NOT_EXCLUDED = "runs of other users are not excluded"


class LockFile:
    """A lock file of one slot, in an open directory."""

    def __init__(self, directory: int, path: str, name: str, rights: "_Rights" = _OWN) -> None:
        self.directory = directory
        self.path = path
        self.name = name
        self.rights = rights
        self.fd = -1
        self.is_new = False
        """Whether we created the file."""

    def try_lock(self) -> bool:
        """Lock the file without blocking. False: it is held; `fd` is open to wait for the lock."""
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
                fd = self._create()
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                # flock(2) needs no write access: another user's file, a read-only mount.
                fd = os.open(self.name, os.O_RDONLY | _FLAGS, dir_fd=self.directory)
            else:
                raise
        # A high number, so that `exec 3>file` in a script does not close the inherited lock.
        try:
            self.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
            os.close(fd)
        except OSError:  # a low RLIMIT_NOFILE
            self.fd = fd
        info = os.fstat(self.fd)
        if info.st_mode & 0o170000 != 0o100000:  # stat.S_ISREG, without the import
            self.close()
            raise OSError(errno.EINVAL, "not a regular file")
        mode, uid, gid = self.rights
        is_right = info.st_mode & 0o777 == mode and uid in (-1, info.st_uid)
        if not (is_right and gid in (-1, info.st_gid)):
            self._restore_rights(info)

    def _create(self) -> int:
        """Create the missing file. O_EXCL does not follow a link that another user made."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS
        try:
            fd = os.open(self.name, flags, 0o600, dir_fd=self.directory)
            self.is_new = True
            return fd
        except FileExistsError:  # another process was faster
            return os.open(self.name, os.O_RDWR | _FLAGS, dir_fd=self.directory)

    def _restore_rights(self, info: os.stat_result) -> None:
        """Set the mode, owner and group that the file should have, if we may.

        Not if it has a second name: it may be a hard link to another file of ours. A file that root
        creates in a user's checkout becomes that user's.
        """
        mode, uid, gid = self.rights
        ours = folders.is_own(info.st_uid)
        if info.st_nlink != 1 or not (ours or os.geteuid() == 0):
            return
        try:
            try:
                os.fchown(self.fd, uid if ours else -1, gid)
            finally:
                os.fchmod(self.fd, mode)
        except OSError as error:  # we are not in the group; the owner is outside of our namespace
            messages.decision(f"{self.path}: cannot set mode and group: {error.strerror}")

    def _is_current(self) -> bool:
        try:
            there = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except OSError:
            return False
        here = os.fstat(self.fd)
        return (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)

    def unlock(self) -> None:
        """Unlock the file, also for children that inherited it. It stays open."""
        if self.fd >= 0:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class RunLock:
    """The run lock of a queue; see `sandrun.queue.RunLockContract`.

    The second lock file is in the checkout of the project `root`, or in the shared directory of the
    queue `name`. Without a `root` there is none: such a lock only tests whether a slot is held.

    The command inherits `descriptors()`. So if the supervisor dies, exclusion lasts until the last
    process of the run has exited.
    """

    def __init__(
        self, queue: Queue, slots: int = 1, root: str = "", name: str = "", first: int = 1
    ) -> None:
        self.queue = queue
        self.slots = slots
        self.first = first
        self.slot = 0
        self.is_new = False
        """Whether we acquired the first slot, as the first run in this state directory."""
        self.note = ""
        """Why there is no second lock file; '' if there is one."""
        self._second: tuple[int, str, str, _Rights] | None = None
        self._shared = False
        if root:
            self._second = self._open_shared(root, name) or self._open_own()
        self._files: dict[int, list[LockFile]] = {}
        self.blocked: list[int] = []
        """After a failed try, for each slot an open file whose lock another run holds."""

    @property
    def fd(self) -> int:
        files = self._files.get(self.slot or self.first)
        return files[0].fd if files else -1

    def _open_shared(self, root: str, name: str) -> "tuple[int, str, str, _Rights] | None":
        """Open the directory of the second lock file that other users find too, if there is one."""
        path = shared_queue(name) if name else project.git_directory(root)
        if not path:
            return None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self.note = f"{path}: {error.strerror}"
            if name:
                messages.warn(f"{self.note}: {_NOT_EXCLUDED}", "have its administrator add you")
            return None
        info = os.fstat(fd)
        writers = info.st_mode & 0o022
        is_root = os.geteuid() == 0
        rights = (
            0o600 | writers | writers << 1,
            info.st_uid if is_root else -1,
            info.st_gid if is_root or writers else -1,
        )
        self._shared = True
        return fd, path, "sandrun", rights

    def _open_own(self) -> "tuple[int, str, str, _Rights] | None":
        """Open the directory of the second lock file for our own runs only."""
        path = lock_root()
        try:
            return open_state(path), path, os.path.basename(self.queue.path), _OWN
        except SandrunError as error:
            if out_of_descriptors(error):
                raise
            self.note = error.text
            messages.decision(f"no second lock file: {self.note}")
            return None

    def _slot_files(self, slot: int) -> "list[LockFile]":
        files = self._files.get(slot)
        if files is None:
            name = slot_file("executor", slot)
            files = [LockFile(self.queue.dir, os.path.join(self.queue.path, name), name)]
            if self._second:
                directory, path, stem, rights = self._second
                name = slot_file(stem, slot)
                files.append(LockFile(directory, os.path.join(path, name), name, rights))
            self._files[slot] = files
        return files

    def prepare(self) -> None:
        """Open the files of the first slot, so that `try_acquire` is quicker."""
        for file in self._slot_files(1):
            try:
                file.open()
            except OSError as error:  # try_acquire reports it
                self.note = f"{file.path}: {error.strerror}"

    def second_path(self) -> str:
        """The path of the second lock file; '' if there is none."""
        files = self._slot_files(1)
        return files[1].path if len(files) > 1 else ""

    def try_acquire(self) -> bool:
        """Acquire a free slot. False: all are held, see `blocked`.

        Raises SandrunError if a lock file is not what it should be; StateGone.
        """
        while True:
            second, self.blocked = self._second, []
            for slot in range(self.first, self.slots + 1):
                if self._try_slot(slot):
                    self.slot = slot
                    self.is_new = slot == 1 and self._files[slot][0].is_new
                    for other in set(self._files) - {slot}:
                        self._drop(other)
                    return True
                if second != self._second:
                    break  # every slot has another second file now
            else:
                return False

    def _try_slot(self, slot: int) -> bool:
        """Lock both files of a slot. False: one is held, or the second one cannot be used."""
        files = self._slot_files(slot)
        for file in files:
            try:
                if file.try_lock():
                    continue
                self.blocked.append(file.fd)
            except OSError as error:
                if file is files[0] or out_of_descriptors(error):
                    self._refuse(file, error)
                self._without(file, error)
            for each in files:  # also one that was granted while we waited
                each.unlock()
            return False
        return True

    def _refuse(self, file: LockFile, error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            raise StateGone from None
        raise SandrunError(
            f"{file.path}: {error.strerror}", f"inspect it: ls -l {file.path}"
        ) from None

    def _without(self, file: LockFile, error: OSError) -> None:
        """Go on without a second file that cannot be used: in a read-only checkout, or no file."""
        self.note = f"{file.path}: {error.strerror}"
        messages.decision(f"no second lock file: {self.note}")
        shared, self._shared = self._shared, False
        if shared:
            self._warn_of(file)
        self._second = self._open_own() if shared else None
        for slot in list(self._files):
            self._drop(slot)

    def _warn_of(self, file: LockFile) -> None:
        """Warn that other users' runs are not excluded, if there is a file that they could lock."""
        try:
            info = os.stat(file.name, dir_fd=file.directory, follow_symlinks=False)
        except OSError:
            return  # no user can create one
        if info.st_mode & 0o170000 != 0o100000:
            hint = f"move it away: mv {file.path} {file.path}.odd"
        elif os.access(".", os.W_OK, dir_fd=file.directory, effective_ids=True):
            cure = f"chmod {file.rights[0]:o} {file.path}"
            if info.st_mode & 0o777 == file.rights[0]:
                cure = f"chown --reference={os.path.dirname(file.path)} {file.path}"
            hint = f"any run of its owner (uid {info.st_uid}) repairs that, or: {cure}"
        else:
            return  # we may not write in the directory, so it is not shared with us
        messages.warn(f"{self.note}: {_NOT_EXCLUDED}", hint)

    def unlock(self) -> None:
        """Unlock what was granted while we waited: we are no longer the head of the queue."""
        for files in self._files.values():
            for file in files:
                file.unlock()

    def held_second(self) -> "tuple[str, os.stat_result] | None":
        """The path and the status of the second lock file, if the last failed try found it held,
        but the first one free."""
        for files in self._files.values():
            if len(files) > 1 and files[1].fd in self.blocked:
                return files[1].path, os.fstat(files[1].fd)
        return None

    def skip_second(self) -> None:
        """Go on without the second lock file: the run that holds it encloses us."""
        self._second = None
        for slot in list(self._files):
            self._drop(slot)

    def _drop(self, slot: int) -> None:
        for file in self._files.pop(slot):
            file.unlock()
            file.close()

    def descriptors(self) -> "list[int]":
        """The locked files, which the command inherits."""
        return [file.fd for file in self._files.get(self.slot, []) if file.fd >= 0]

    def read_holder(self) -> bytes:
        """The holder's line; empty after a clean end."""
        return read_holder_line(self.fd)

    def written_at(self) -> float:
        """When the holder's line was written, by the clock of its file system."""
        return os.fstat(self.fd).st_mtime

    def write_holder(self, line: bytes) -> None:
        """Write the holder's line. On a full disk it is missing, and then no run can clean up
        after a SIGKILL."""
        try:
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, line, 0)
        except OSError:
            pass

    def release(self) -> None:
        """Empty the file and free the lock, also for children that inherited it."""
        if self.slot:
            try:
                os.ftruncate(self.fd, 0)
            except OSError:
                pass
        self.drop()

    def pass_on(self) -> None:
        """Close all files without unlocking: a child that inherited them keeps the lock."""
        for files in self._files.values():
            for file in files:
                file.close()
        self._files.clear()
        self.slot = 0

    def drop(self) -> None:
        """Free the lock, close all files, and keep the line for the next holder."""
        for slot in list(self._files):
            self._drop(slot)
        self.slot = 0


_LONGEST = 1 << 22
"""More bytes than any holder's line, in which the command line is cut (`history.bounded`)."""


def read_holder_line(fd: int) -> bytes:
    """Read the holder's line from an open lock file; from a larger file only the beginning."""
    try:
        return os.pread(fd, min(os.fstat(fd).st_size, _LONGEST), 0)
    except OSError:
        return b""
