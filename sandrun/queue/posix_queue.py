"""The queue of a project: a chain of locked tickets.

Promises
- Tickets are served in the order of their keys. A ticket is alive exactly while it is locked, so
  whatever kills a process takes it out of the queue; no pid is ever taken as proof of life.
- Waiting costs nothing: a waiter sleeps in poll(2) on the nearest live tickets ahead of it, as
  many as the queue has slots, so an end wakes as many processes and not the herd.

Invariants
- A ticket is a FIFO that its owner alone holds open for writing. The kernel hangs up those who
  watch it when the owner ends, however it ends. A byte written into it is a ring at its owner's
  door: look again. Neither needs a pid, so both work across pid namespaces.
- On macOS, which refuses flock(2) on a FIFO (VNOP_ADVLOCK, XNU's bsd/vfs/kpi_vfs.c) and does not
  tell poll(2) of its hang-up, a ticket is a regular file: those who watch it have a child blocked
  in flock(2) on it (`sandrun.queue.waiter`), and a ring is a byte and a SIGURG, ignored by default.
- A ticket appears under its name already locked (made under a private name, locked, then
  renamed), hence an unlocked ticket is dead, and anybody may remove it. No lock guards the
  registration, so no stopped process can hold one.
- With S slots a ticket may run while fewer than S live ones are ahead. One with c ahead needs
  c - S + 1 of them to go, so at least one of any S of them: watching the S nearest misses no turn.
- The order of names decides only who waits for whom. Exclusion is the run lock's alone
  (`sandrun.queue`): a listing that misses a name mid-rename costs a wake-up, never a second run.
- A ticket that comes to stand ahead of others rings the one behind it, and a ticket that runs says
  so in its own FIFO. So a waiter that sees the one ahead end, says-it-ran read and no ring pending,
  is the head without another look at a long queue.
- A priority is a head start in time and part of the key, so a ticket is overtaken only by those
  that came within the difference of head starts after it: nobody starves.
- Whoever renames another's ticket (`move`), pauses or resumes rings every waiter afterwards. If it
  is killed in between, the waiters' own recheck (`waiter.RECHECK_SECONDS`) mends it.

Left to others: when to wait and what to say meanwhile (`sandrun.queue.waiter`).
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
"""What is written into a ticket that has to leave the queue; any other byte: look again."""
WAKEUP_SIGNAL = _signal.SIGURG

_NO_SUCH_FILES = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
"""From mknod(2) and flock(2) on a file system without FIFOs, or without locks."""
_MADE = os.O_CREAT | os.O_EXCL | os.O_APPEND if DARWIN else 0


class Queue(BaseQueue):
    """The queue whose state lives in the directory `path`; SandrunError if that is unsafe."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.dir = open_state(path)

    def close(self) -> None:
        os.close(self.dir)

    def enqueue(self, run_id: str, command: "list[str]", extra: int = 0, key: int = 0) -> Ticket:
        """Take a place: at `key`, by default behind all that came before.

        Raises StateGone, or SandrunError when the file system refuses.
        """
        tail = f"{os.getpid()}.{int(time.time())}.{extra}.{escape(command_text(command))}"
        name = f"w{key or new_key(0):020}.{run_id}.{tail}"
        private = f".{run_id}"
        while True:
            fd = -1
            try:
                if not DARWIN:
                    os.mkfifo(private, 0o600, dir_fd=self.dir)
                flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | _MADE
                fd = os.open(private, flags, 0o600, dir_fd=self.dir)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Fails if a sweep took the file for a dead one before it was locked.
                os.rename(private, name, src_dir_fd=self.dir, dst_dir_fd=self.dir)
                return Ticket(name, fd)
            except (FileNotFoundError, BlockingIOError):
                if fd >= 0:
                    os.close(fd)
                if os.fstat(self.dir).st_nlink == 0:
                    raise StateGone from None
                self.remove(private)
            except OSError as error:
                full = error.errno not in _NO_SUCH_FILES
                raise SandrunError(
                    f"cannot take a place in the queue {self.path}: {error.strerror}",
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
            pass  # too long, or a full disk

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
        """Open a file if its owner has it locked; else remove it.

        Opened before the lock is looked at: so the owner, alive then, was its writer at a time
        when we already had it open, and we will be hung up (pipe_poll in Linux's fs/pipe.c).
        """
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self.dir)
        except OSError:
            return None
        try:
            # Shared: several that look at once must not take each other for the owner.
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
                pass  # a full disk, or rings enough: it only spares a look
        return marked

    def notify(self, name: str, byte: bytes = b"?") -> None:
        """Ring at a ticket's owner: it looks again, or leaves if `byte` is CANCEL."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_APPEND
        try:
            fd = os.open(name, flags, dir_fd=self.dir)
        except OSError:  # ENXIO: it is dead
            return
        try:
            os.write(fd, byte)
        except OSError:  # full: it has rings enough to answer
            pass
        finally:
            os.close(fd)
        if DARWIN and (pid := Ticket(name).pid) > 1 and self.is_live(name):
            try:
                os.kill(pid, WAKEUP_SIGNAL)
            except OSError:
                pass  # it ended just now
