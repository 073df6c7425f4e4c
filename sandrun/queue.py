"""The queue of a project: a chain of locked tickets, and one run lock.

Promises
- At most one holder of the run lock exists on this kernel, whoever started it.
- Tickets are served in the order of their keys. A ticket is alive exactly while it is locked, so
  whatever kills a process takes it out of the queue; no pid is ever taken as proof of life.
- Waiting costs nothing: a waiter sleeps in flock(2) on the nearest live ticket ahead of it, so an
  end wakes one process and not the herd.

Invariants
- A ticket appears under its name already locked (made under a private name, locked, then
  renamed), hence an unlocked ticket is dead, and anybody may remove it. No lock guards the
  registration, so no stopped process can hold one.
- The order of names decides only who waits for whom. Exclusion is the run lock's alone: a
  listing that misses a name mid-rename costs a wake-up, never two runs at once.
- The run lock's file holds one JSON line about its holder while a run is on, and nothing after a
  clean end. What is left in it by a dead run says what must be cleaned up (`sandrun.recovery`).
- Locks are advisory locks of open files (flock(2)): they belong to the open file description, so
  children that inherit it keep the lock, and an explicit unlock frees it for all of them.

Left to others: when to wait and what to say meanwhile (`sandrun.waiting`).
"""

import fcntl
import os
import time

from sandrun import project
from sandrun.model import SandrunError, command_text

_RUN_LOCK = "executor.lock"
_VIEW = "queue.txt"
# Keys are nanoseconds of CLOCK_MONOTONIC plus this, so that a head start taken off soon after a
# boot still leaves a positive number of 20 digits.
_KEY_BASE = 10**19
_COMMAND_BYTES = 120  # names end at 255 bytes


class StateGone(Exception):
    """The state directory was removed under us; enqueue again in a new one."""


class Ticket:
    """A run's place in the queue, as its file name tells: no file is read to show a queue.

    `<w|r><key>.<id>.<pid>.<epoch seconds>.<command>`: r (running) sorts before w (waiting); the
    time is when it began to run or to wait. `pid` is for people and for signals after the lock
    proved it alive.
    """

    __slots__ = ("command", "fd", "id", "key", "name", "pid", "running", "since")

    def __init__(self, name: str, fd: int = -1) -> None:
        self.name = name
        self.fd = fd
        order, self.id, pid, since, command = name.split(".", 4)
        self.running = order[0] == "r"
        self.key = int(order[1:])
        self.pid = int(pid)
        self.since = int(since)
        self.command = _unescape(command)


def _escape(text: str) -> str:
    """A command as part of a file name: no slash, nothing unprintable, short."""
    raw = os.fsencode(text)[:_COMMAND_BYTES]
    return "".join(chr(c) if 32 <= c < 127 and c not in b"/%" else f"%{c:02X}" for c in raw)[:180]


def _unescape(text: str) -> str:
    first, *rest = text.split("%")
    raw = first.encode("latin-1")
    for part in rest:
        try:
            raw += bytes((int(part[:2], 16),)) + part[2:].encode("latin-1")
        except ValueError:  # cut in the middle of an escape
            break
    shown = raw.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in shown)


class Queue:
    """The queue whose state lives in the directory `path`; SandrunError if that is unsafe."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.dir = project.open_state(path)

    def enqueue(self, run_id: str, command: "list[str]", head_start: int = 0) -> Ticket:
        """Take a place: behind all that came before, or `head_start` nanoseconds ahead of that.

        Raises StateGone, or SandrunError when the file system refuses.
        """
        key = _KEY_BASE + time.monotonic_ns() - head_start
        name = (
            f"w{key:020}.{run_id}.{os.getpid()}.{int(time.time())}.{_escape(command_text(command))}"
        )
        private = f".{run_id}"
        while True:
            try:
                fd = os.open(
                    private,
                    os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                    0o600,
                    dir_fd=self.dir,
                )
                fcntl.flock(fd, fcntl.LOCK_EX)
                # Fails if a sweep took the file for a dead one before it was locked.
                os.rename(private, name, src_dir_fd=self.dir, dst_dir_fd=self.dir)
                return Ticket(name, fd)
            except FileNotFoundError:
                if os.fstat(self.dir).st_nlink == 0:
                    raise StateGone from None
                os.close(fd)
            except OSError as error:
                raise SandrunError(
                    f"cannot take a place in the queue {self.path}: {error.strerror}",
                    "free some space there, or set SANDRUN_STATE_DIR to another directory",
                ) from None

    def names(self) -> "list[str]":
        """The tickets' names in order, the running one first; dead ones may be among them."""
        return sorted(n for n in os.listdir(self.dir) if n[0] in "rw" and n[1:21].isdigit())

    def tickets(self) -> "list[Ticket]":
        """The live tickets in order. Removes the dead ones it meets."""
        return [Ticket(name) for name in self.names() if not self._gone(name)]

    def ahead(self, ticket: Ticket, ignored: "frozenset[str]" = frozenset()) -> "Ticket | None":
        """The nearest live ticket ahead of `ticket`, opened for waiting; None: we are the head.

        Raises StateGone when our own ticket is not in the directory any more.
        """
        names = self.names()
        if ticket.name not in names:
            raise StateGone
        for name in reversed(names[: names.index(ticket.name)]):
            if name in ignored:
                continue
            fd = self._open_live(name)
            if fd is not None:
                return Ticket(name, fd)
        return None

    def _gone(self, name: str) -> bool:
        fd = self._open_live(name)
        if fd is None:
            return True
        os.close(fd)
        return False

    def _open_live(self, name: str) -> "int | None":
        """Open a ticket if it is alive; remove it if it is dead."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.dir)
        except OSError:
            return None
        try:
            # Shared: several that look at once must not take each other for the owner.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return fd
        self._remove(name)
        os.close(fd)
        return None

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.dir)
        except OSError:
            pass

    def mark_running(self, ticket: Ticket) -> None:
        """Put the ticket of the run lock's holder before all others, also before later keys."""
        order, run_id, pid, _, command = ticket.name.split(".", 4)
        name = f"r{order[1:]}.{run_id}.{pid}.{int(time.time())}.{command}"
        try:
            os.rename(ticket.name, name, src_dir_fd=self.dir, dst_dir_fd=self.dir)
        except OSError:
            return  # the directory was removed: the run lock, held, is what counts
        ticket.name = name

    def leave(self, ticket: Ticket) -> None:
        """Give the place up; wakes whoever waits behind it."""
        self._remove(ticket.name)
        os.close(ticket.fd)
        ticket.fd = -1

    def write_view(self) -> None:
        """Rewrite queue.txt, one `PID:TIMESTAMP:COMMAND` line per ticket, the head first.

        No lock: whoever writes looks again afterwards, so the last view written is a true one.
        Nothing reads it back, and a full disk only leaves it old.
        """
        try:
            names = self.names()
            while True:
                tickets = [Ticket(name) for name in names]
                text = "".join(f"{t.pid}:{t.since}:{t.command}\n" for t in tickets)
                private = f".view.{os.getpid()}"
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(private, flags, 0o600, dir_fd=self.dir)
                try:
                    os.write(fd, text.encode("utf-8", "replace"))
                finally:
                    os.close(fd)
                os.rename(private, _VIEW, src_dir_fd=self.dir, dst_dir_fd=self.dir)
                written, names = names, self.names()
                if names == written:
                    return
        except OSError:
            pass

    def sweep(self) -> None:
        """Remove private files that a SIGKILL left between making and naming a ticket."""
        for name in os.listdir(self.dir):
            if name[0] == ".":
                self._gone(name)


class RunLock:
    """The lock that is held while a run's processes live: `executor.lock`.

    The child inherits `fd`, so if the supervisor dies, exclusion lasts until its tree does.
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.fd = -1

    def try_take(self) -> bool:
        """Take the lock if it is free. False: `fd` is open for a blocking wait.

        Raises SandrunError if the file is not ours alone.
        """
        while True:
            self._open()
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self.is_current():
                return True

    def is_current(self) -> bool:
        """Whether the locked file is still the one that others would open."""
        try:
            there = os.stat(_RUN_LOCK, dir_fd=self.queue.dir, follow_symlinks=False)
        except OSError:
            return False
        here = os.fstat(self.fd)
        return (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)

    def _open(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        path = os.path.join(self.queue.path, _RUN_LOCK)
        try:
            fd = os.open(_RUN_LOCK, flags, 0o600, dir_fd=self.queue.dir)
        except FileNotFoundError:
            raise StateGone from None
        except OSError as error:
            raise SandrunError(
                f"{path}: {error.strerror}", f"look at it with: ls -l {path}"
            ) from None
        # High, so that a script's own `exec 3>file` does not close the lock of a dead supervisor.
        try:
            self.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
            os.close(fd)
        except OSError:  # a low RLIMIT_NOFILE
            self.fd = fd
        if os.fstat(self.fd).st_mode & 0o170000 != 0o100000:
            raise SandrunError(f"{path} is not a regular file", f"remove it: rm -r {path}")

    def read_holder(self) -> bytes:
        """What the holder wrote about itself; empty after a clean end."""
        try:
            return os.pread(self.fd, 1 << 20, 0)
        except OSError:
            return b""

    def write_holder(self, line: bytes) -> None:
        """Write who holds the lock. A full disk only costs the cleaning up after a SIGKILL."""
        try:
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, line, 0)
        except OSError:
            pass

    def release(self) -> None:
        """Empty and free the lock, also for children that inherited it."""
        if self.fd < 0:
            return
        try:
            os.ftruncate(self.fd, 0)
        except OSError:
            pass
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)
        self.fd = -1
