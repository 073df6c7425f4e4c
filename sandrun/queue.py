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
  in flock(2) on it (`sandrun.waiting`), and a ring is a byte and a SIGURG, ignored by default.
- A ticket appears under its name already locked (made under a private name, locked, then
  renamed), hence an unlocked ticket is dead, and anybody may remove it. No lock guards the
  registration, so no stopped process can hold one.
- With S slots a ticket may run while fewer than S live ones are ahead. One with c ahead needs
  c - S + 1 of them to go, so at least one of any S of them: watching the S nearest misses no turn.
- The order of names decides only who waits for whom. Exclusion is the run lock's alone
  (`sandrun.runlock`): a listing that misses a name mid-rename costs a wake-up, never a second run.
- A ticket that comes to stand ahead of others rings the one behind it, and a ticket that runs says
  so in its own FIFO. So a waiter that sees the one ahead end, says-it-ran read and no ring pending,
  is the head without another look at a long queue.
- A priority is a head start in time and part of the key, so a ticket is overtaken only by those
  that came within the difference of head starts after it: nobody starves.
- Whoever renames another's ticket (`move`), pauses or resumes rings every waiter afterwards. If it
  is killed in between, the waiters' own look around (`waiting.LOOK`) mends it.

Left to others: when to wait and what to say meanwhile (`sandrun.waiting`).
"""

import _signal
import fcntl
import os
import time

from sandrun import project
from sandrun.model import DARWIN, SandrunError, command_text
from sandrun.ticket import RUNS, SECOND, Ticket, escape, head_key, is_stopped, unescape

KEEPSECONDS = 120
"""How long the place of one that gave up waiting is kept for its coming back."""
CANCEL = b"c"
"""What is written into a ticket that has to leave the queue; any other byte: look again."""
BELL = _signal.SIGURG

_MADE = os.O_CREAT | os.O_EXCL | os.O_APPEND if DARWIN else 0
_VIEW = "queue.txt"
_PAUSED = "paused"
_ID_AT = 22  # where the id starts in a name: after the order, 20 digits and a dot


class StateGone(Exception):
    """The state directory was removed under us; enqueue again in a new one."""


class Queue:
    """The queue whose state lives in the directory `path`; SandrunError if that is unsafe."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.dir = project.open_state(path)
        self.paused = False
        """Whether the queue was paused at the last look (`names`)."""

    def close(self) -> None:
        os.close(self.dir)

    def enqueue(self, run_id: str, command: "list[str]", extra: int = 0, key: int = 0) -> Ticket:
        """Take a place: at `key`, by default behind all that came before.

        Raises StateGone, or SandrunError when the file system refuses.
        """
        tail = f"{os.getpid()}.{int(time.time())}.{extra}.{escape(command_text(command))}"
        name = f"w{key or head_key(0):020}.{run_id}.{tail}"
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
                self._remove(private)
            except OSError as error:
                raise SandrunError(
                    f"cannot take a place in the queue {self.path}: {error.strerror}",
                    "free some space there, or set SANDRUN_STATE_DIR to another directory",
                ) from None

    def names(self) -> "list[str]":
        """The tickets' names in order, the running ones first; dead ones may be among them."""
        listing = os.listdir(self.dir)
        self.paused = _PAUSED in listing
        return sorted(n for n in listing if n[0] in "rw" and n[1:21].isdigit())

    def tickets(self) -> "list[Ticket]":
        """The live tickets in order. Removes the dead ones it meets."""
        return [Ticket(name) for name in self.names() if self.is_live(name)]

    def find(self, ticket: Ticket, names: "list[str]") -> int:
        """Where `ticket` stands among `names`, under whatever name it was given meanwhile.

        Raises StateGone when it is not in the directory any more.
        """
        for index, name in enumerate(names):
            if name.startswith(ticket.id, _ID_AT):
                if name != ticket.name:
                    ticket.rename(name)
                return index
        raise StateGone

    def ahead(self, ticket: Ticket, most: int = 1, new: bool = False) -> "list[Ticket]":
        """The nearest live tickets ahead of `ticket`, at most `most`, opened for watching.

        Waiters that are stopped are passed by. A `new` one makes itself known to the one behind.
        Raises StateGone like `find`.
        """
        names = self.names()
        at = self.find(ticket, names)
        if new and at + 1 < len(names):
            self._ring_next(names[at + 1 :])
        found: list[Ticket] = []
        for name in reversed(names[:at]):
            fd = self._open_live(name)
            if fd is None:
                continue
            other = Ticket(name, fd)
            # Only looked at when it would hold us up; the kernel tells nobody of a stop.
            if not other.running and is_stopped(other.pid):
                other.close()
                continue
            found.append(other)
            if len(found) == most:
                break
        return found

    def is_live(self, name: str) -> bool:
        """Whether a ticket is alive; removes it if it is dead."""
        fd = self._open_live(name)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def _open_live(self, name: str) -> "int | None":
        """Open a ticket if it is alive; remove it if it is dead.

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
        self._remove(name)
        os.close(fd)
        return None

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.dir)
        except OSError:
            pass

    def mark(self, ticket: Ticket, running: bool) -> None:
        """Put the ticket of the run lock's holder before all others, also before later keys; or
        back among the waiting (see `sandrun.pool`)."""
        order = "r" if running else "w"
        while True:
            first, run_id, pid, _, rest = ticket.name.split(".", 4)
            name = f"{order}{first[1:]}.{run_id}.{pid}.{int(time.time())}.{rest}"
            try:
                os.rename(ticket.name, name, src_dir_fd=self.dir, dst_dir_fd=self.dir)
                ticket.rename(name)
                break
            except OSError:
                try:
                    self.find(ticket, self.names())  # somebody moved it an instant ago
                except (StateGone, OSError):
                    return  # the directory was removed: the run lock, held, is what counts
        if running:
            try:
                os.write(ticket.fd, RUNS)
            except OSError:
                pass  # a full disk, or rings enough: it only spares a look

    def leave(self, ticket: Ticket) -> None:
        """Give the place up; wakes whoever watches it."""
        self._remove(ticket.name)
        ticket.close()
        try:
            names = self.names()
            waiting = [name for name in names if name[0] == "w"]
            # The one that was just woken will not come, and those behind it do not know.
            if waiting and is_stopped(Ticket(waiting[0]).pid):
                self._ring_next(waiting)
            if self.paused or not ticket.running or not waiting:
                self.write_view()  # else the next one writes it
        except OSError:
            pass

    def _ring_next(self, names: "list[str]") -> None:
        """Ring at the first of these waiters that is not stopped, and at those before it."""
        for name in names:
            self.ring(name)
            if self.is_live(name) and not is_stopped(Ticket(name).pid):
                return

    def ring(self, name: str, byte: bytes = b"?") -> None:
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
        if DARWIN and self.is_live(name):
            try:
                os.kill(Ticket(name).pid, BELL)
            except OSError:
                pass  # it ended just now

    def ring_waiters(self) -> None:
        """Have every waiter look again."""
        for name in self.names():
            if name[0] == "w":
                self.ring(name)

    def move(self, ticket: Ticket, head_start: int) -> bool:
        """Give a waiting ticket another head start; False: it waits no more."""
        key = ticket.key + (ticket.extra - head_start) * SECOND
        _, run_id, pid, since, _, command = ticket.name.split(".", 5)
        name = f"w{key:020}.{run_id}.{pid}.{since}.{head_start}.{command}"
        try:
            os.rename(ticket.name, name, src_dir_fd=self.dir, dst_dir_fd=self.dir)
        except OSError:
            return False
        self.ring_waiters()
        self.write_view()
        return True

    def pause(self) -> bool:
        """Let no waiting run start until `resume`; False: it was paused already."""
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(_PAUSED, flags, 0o600, dir_fd=self.dir))
        except FileExistsError:
            return False
        self.ring_waiters()
        return True

    def resume(self) -> bool:
        """Lift a pause; False: there was none."""
        try:
            os.unlink(_PAUSED, dir_fd=self.dir)
        except FileNotFoundError:
            return False
        self.ring_waiters()
        return True

    def keep(self, ticket: Ticket, owner: str) -> None:
        """Keep the place of one that gave up, for its coming back as the same `owner`."""
        expiry = time.monotonic_ns() + KEEPSECONDS * SECOND
        self._remove(f"kept.{owner}")
        try:
            os.symlink(f"{ticket.key}.{ticket.extra}.{expiry}", f"kept.{owner}", dir_fd=self.dir)
        except OSError:
            pass  # it will come back as a newcomer

    def kept(self, owner: str, extra: int) -> int:
        """Claim the kept place of `owner`, if its head start is still `extra`: its key, or 0."""
        try:
            key, had, expiry = map(int, os.readlink(f"kept.{owner}", dir_fd=self.dir).split("."))
            os.unlink(f"kept.{owner}", dir_fd=self.dir)  # only one of several can have it
        except (OSError, ValueError):
            return 0
        return key if _is_fresh(expiry) and had == extra else 0

    def write_view(self) -> None:
        """Rewrite queue.txt, one `PID:TIMESTAMP:COMMAND` line per ticket, the head first.

        No lock: whoever writes looks again afterwards, so the last view written is a true one.
        Nothing reads it back, and a full disk only leaves it old.
        """
        try:
            names = self.names()
            while True:
                text = "".join(map(_line, names)).encode("utf-8", "replace")
                private = f".view.{os.getpid()}"
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(private, flags, 0o600, dir_fd=self.dir)
                try:
                    os.write(fd, text)
                finally:
                    os.close(fd)
                os.rename(private, _VIEW, src_dir_fd=self.dir, dst_dir_fd=self.dir)
                written, names = names, self.names()
                if names == written:
                    return
        except OSError:
            pass

    def sweep(self) -> None:
        """Remove what a SIGKILL left between two steps, and kept places that nobody came for."""
        ids = {name[_ID_AT:].partition(".")[0] for name in self.names()}
        for name in os.listdir(self.dir):
            if name[0] == ".":
                self.is_live(name)
            elif name.startswith("around."):  # see sandrun.nesting; laid after its ticket
                if name[7:] not in ids:
                    self._remove(name)
            elif name.startswith("kept."):
                try:
                    expiry = int(os.readlink(name, dir_fd=self.dir).rpartition(".")[2])
                except (OSError, ValueError):
                    expiry = 0
                if not _is_fresh(expiry):
                    self._remove(name)


def _is_fresh(expiry: int) -> bool:
    # More than KEEPSECONDS ahead of us: it was kept before the last boot.
    return 0 <= expiry - time.monotonic_ns() <= KEEPSECONDS * SECOND


def _line(name: str) -> str:
    _, _, pid, since, _, command = name.split(".", 5)
    return f"{pid}:{since}:{unescape(command)}\n"
