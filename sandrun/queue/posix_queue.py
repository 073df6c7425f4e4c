"""The queue on POSIX: locked tickets, and the events that wake up a waiter.

Promises
- Tickets are served in the order of their keys. A ticket is alive exactly while its owner has it
  locked. So every way in which a process can die removes it from the queue; a pid never proves that
  a process is alive.
- Waiting needs no CPU time. A waiter blocks in poll(2) on the nearest live tickets ahead of it, as
  many as the queue has slots. So each exit wakes up as many waiters as there are slots, not all;
  and one more, whose turn is near now (`sandrun.queue.waiter`).

Invariants
- A ticket is a FIFO that only its owner keeps open for writing. When the owner exits, in any way,
  poll(2) reports a hang-up to the processes that watch the FIFO. A byte that is written into it
  notifies the owner, which re-reads the queue. Neither needs a pid, so both work across pid
  namespaces.
- macOS refuses flock(2) on a FIFO (VNOP_ADVLOCK, XNU's bsd/vfs/kpi_vfs.c), and poll(2) does not
  report its hang-up. There a ticket is a regular file. A process that watches it has a child that
  blocks in flock(2) on it (`sandrun.queue.posix_waiter`). A notification is a byte and a SIGURG,
  which is ignored by default.
- A ticket gets its name when it is already locked: it is created under a private name, locked, then
  renamed. So an unlocked ticket is dead, and anybody may remove it. No lock guards this, so no
  stopped process can hold one.
- With S slots a ticket may run while fewer than S live tickets are ahead. If c are ahead, it must
  wait until c - S + 1 of them are gone, and any S of them include at least one of those. So a
  waiter that watches the nearest S misses no turn.
- The order of names decides only who waits for whom. Exclusion is the task of the run lock alone
  (`sandrun.queue.posix_run_lock`). A listing that misses a file during its rename costs a wakeup,
  never a second run.
- The owner of a new ticket notifies the ticket behind it, and an owner whose run starts writes that
  into its own FIFO. So a waiter knows that it is the head, without reading a long queue again, if
  the only ticket ahead is dead, had started to run, and no notification is pending.
- A priority is a head start in time and part of the key. So a ticket is overtaken only by tickets
  that arrive within the difference of the head starts after it, and no ticket starves.
- A process that renames another's ticket (`move`), pauses or resumes the queue then notifies every
  waiter. If it is killed before that, the waiters find the change by their own recheck
  (`sandrun.queue.waiter.RECHECK_SECONDS`).
"""

import errno
import fcntl
import os
import sys
import time

assert sys.platform != "win32"

from sandrun.bare import signal as _signal
from sandrun.model import DARWIN, SandrunError, command_text
from sandrun.queue.queue import STARTED, BaseQueue, StateGone, Ticket, escape, new_key
from sandrun.queue.state import open_state

CANCEL = b"c"
"""The notification that makes a waiter leave the queue. With any other byte it re-reads it."""
WAKEUP_SIGNAL = _signal.SIGURG
"""The signal that accompanies a notification on macOS."""

_UNSUPPORTED = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
"""Errors of mknod(2) and flock(2) on a file system without FIFOs or without locks."""
_CREATE = os.O_CREAT | os.O_EXCL | os.O_APPEND if DARWIN else 0


class Queue(BaseQueue):
    """The queue in the state directory `path`. Raises SandrunError if that is unsafe."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.dir = open_state(path)

    def close(self) -> None:
        os.close(self.dir)

    def enqueue(self, run_id: str, command: "list[str]", extra: int = 0, key: int = 0) -> Ticket:
        """Add a ticket at `key`, by default behind all others.

        Raises StateGone, and SandrunError if the file system refuses.
        """
        tail = f"{os.getpid()}.{int(time.time())}.{extra}.{escape(command_text(command))}"
        name = f"w{key or new_key(0):020}.{run_id}.{tail}"
        private = f".{run_id}"
        while True:
            fd = -1
            try:
                if not DARWIN:
                    os.mkfifo(private, 0o600, dir_fd=self.dir)
                flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | _CREATE
                fd = os.open(private, flags, 0o600, dir_fd=self.dir)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Fails if a sweep removed the file as dead before it was locked.
                os.rename(private, name, src_dir_fd=self.dir, dst_dir_fd=self.dir)
                return Ticket(name, fd)
            except (FileNotFoundError, BlockingIOError):
                if fd >= 0:
                    os.close(fd)
                if os.fstat(self.dir).st_nlink == 0:
                    raise StateGone from None
                self.remove(private)
            except OSError as error:
                full = error.errno not in _UNSUPPORTED
                raise SandrunError(
                    f"cannot add a ticket to the queue {self.path}: {error.strerror}",
                    "free some space there, or set SANDRUN_STATE_DIR to another directory"
                    if full
                    else "set SANDRUN_STATE_DIR to a directory of yours on a local file system "
                    "that has FIFOs and locks",
                ) from None

    def listing(self) -> "list[str]":
        return os.listdir(self.dir)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self.dir)

    def replace(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self.dir, dst_dir_fd=self.dir)

    def write_file(self, name: str, data: bytes, new: bool = False) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= os.O_EXCL if new else os.O_TRUNC
        fd = os.open(name, flags, 0o600, dir_fd=self.dir)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def write_note(self, name: str, text: str) -> None:
        self.remove(name)
        try:
            os.symlink(text, name, dir_fd=self.dir)
        except OSError:
            pass  # the text is too long, or the disk is full

    def read_note(self, name: str) -> str:
        try:
            return os.readlink(name, dir_fd=self.dir)
        except OSError:
            return ""

    def open_live(self, name: str) -> "Ticket | None":
        fd = self._open_locked(name)
        return None if fd is None else Ticket(name, fd)

    def is_live(self, name: str) -> bool:
        fd = self._open_locked(name)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def _open_locked(self, name: str) -> "int | None":
        """Open a file if its owner has it locked; otherwise remove it.

        It is opened before the lock is tested. So if the owner is alive at the test, the FIFO had a
        writer while we had it open, and poll(2) will report the hang-up (pipe_poll in Linux's
        fs/pipe.c).
        """
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self.dir)
        except OSError:
            return None
        try:
            # Shared: several processes that test at once must not mistake each other for the owner.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return fd
        self.remove(name)
        os.close(fd)
        return None

    def mark(self, ticket: Ticket, running: bool) -> bool:
        marked = super().mark(ticket, running)
        if marked and running:
            try:
                os.write(ticket.fd, STARTED)
            except OSError:
                pass  # full; this byte only saves the next run a listing
        return marked

    def notify(self, name: str, byte: bytes = b"?") -> None:
        """Notify a ticket's owner: it re-reads the queue, or leaves it if `byte` is CANCEL."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_APPEND
        try:
            fd = os.open(name, flags, dir_fd=self.dir)
        except OSError:  # ENXIO: it is dead
            return
        try:
            os.write(fd, byte)
        except OSError:  # full: enough notifications are pending
            pass
        finally:
            os.close(fd)
        if DARWIN and (pid := Ticket(name).pid) > 1 and self.is_live(name):
            try:
                os.kill(pid, WAKEUP_SIGNAL)
            except OSError:
                pass  # it exited a moment ago
