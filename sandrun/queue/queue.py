"""The tickets of a queue and their order: what is the same on every system.

A ticket is a file whose name has all data about it. So a queue is listed without reading a file,
and a rename changes a ticket atomically. `sandrun.queue.posix_queue` and
`sandrun.queue.windows_queue` implement how tickets are created, locked, watched and notified.

Versions: these names are format 1. A name of any other form belongs to another version of sandrun;
it is skipped and never removed. A version with another format must use other names. The run lock
alone orders the runs of two such versions: one at a time, in no promised order.
"""

import os
import sys
import time
from itertools import islice

from sandrun.model import SandrunError, command_text, is_run_id
from sandrun.platform import folders
from sandrun.queue.state import slot_numbers

STARTED = b"R"
"""What the owner of a ticket writes into it when its run starts."""
SECOND = 10**9
# Keys are this plus nanoseconds since the boot. So a key that a head start reduces soon after a
# boot is still positive and has at most 20 digits.
_KEY_BASE = 10**19
_COMMAND_BYTES = 120  # a file name has at most 255 bytes
NEXT = 2
"""The turn of a ticket is near if at most so many waiting tickets are ahead of it."""
_KEPT_SECONDS = 120
"""How long a place is kept for a waiter that gave up, in case it comes back."""
_TRIES = 50
"""How often a renamed ticket is searched for again. So many renames in a row are no accident."""
_QUEUE_FILE = "queue.txt"
_PAUSED = "paused"
_ID_AT = 22  # where the id starts in a name: after the order, 20 digits and a dot


class Ticket:
    """A run's place in a queue, parsed from its file name:
    `<w|r><key>.<id>.<pid>.<epoch seconds>.<extra>.<command>`.

    r (running) sorts before w (waiting). The time is when the run started to run or to wait.
    `extra` is the head start in seconds; in the pool, the run's memory in bytes. `pid` is for
    display, and is signalled only after the lock has proved that the process is alive.
    """

    __slots__ = ("command", "extra", "fd", "id", "key", "name", "pid", "running", "since")

    def __init__(self, name: str, fd: int = -1) -> None:
        self.fd = fd
        self.rename(name)

    def rename(self, name: str) -> None:
        self.name = name
        order, self.id, pid, since, extra, command = name.split(".", 5)
        self.running = order[0] == "r"
        self.key = int(order[1:])
        self.pid = int(pid)
        self.since = int(since)
        self.extra = int(extra)
        self.command = unescape(command)

    def has_run(self) -> bool:
        """Whether the owner, now exited, had started its run. Only the first call returns True."""
        try:
            return STARTED in os.read(self.fd, 4096)
        except OSError:
            return False

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1


class StateGone(Exception):
    """The state directory was removed while we used it: enqueue again in a new one."""


class BaseQueue:
    """The queue in one state directory. A system implements the methods down to `notify`."""

    path: str
    paused = False
    """Whether the queue was paused when `names` was last called."""
    waiting_ahead = 0
    """The number of waiting tickets ahead of ours when `ahead` was last called."""
    head = ""
    """The name of the first ticket when `ahead` was last called."""

    def enqueue(self, run_id: str, command: "list[str]", extra: int = 0, key: int = 0) -> Ticket:
        """Add a ticket at `key`, by default behind all others. Raises StateGone, SandrunError."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the directory. Open tickets stay open."""
        raise NotImplementedError

    def listing(self) -> "list[str]":
        """The names of all files in the directory. Raises OSError, like the next two."""
        raise NotImplementedError

    def unlink(self, name: str) -> None:
        """Remove a file."""
        raise NotImplementedError

    def replace(self, old: str, new: str) -> None:
        """Rename a file, atomically."""
        raise NotImplementedError

    def write_file(self, name: str, data: bytes, new: bool = False) -> None:
        """Write a file. Raises OSError; FileExistsError if it must be `new` and exists."""
        raise NotImplementedError

    def write_note(self, name: str, text: str) -> None:
        """Store a short text, if possible: notes only save time or explain."""
        raise NotImplementedError

    def read_note(self, name: str) -> str:
        """The text stored under a name, or ''."""
        raise NotImplementedError

    def open_live(self, name: str) -> "Ticket | None":
        """Open a ticket if it is alive; remove it if it is dead."""
        raise NotImplementedError

    def is_live(self, name: str) -> bool:
        """Whether a file is locked by its owner; removes it if it is not."""
        raise NotImplementedError

    def notify(self, name: str, byte: bytes = b"?") -> None:
        """Wake up the owner of a ticket, so that it re-reads the queue."""
        raise NotImplementedError

    def remove(self, name: str) -> bool:
        """Remove a file. False: it does not exist (any more)."""
        try:
            self.unlink(name)
            return True
        except OSError:
            return False

    def names(self) -> "list[str]":
        """The names of the tickets in order, the running ones first. Some may be dead."""
        return list(filter(_is_ticket, self._listed("rw")))

    def _listed(self, kinds: str) -> "list[str]":
        """The names whose first letter is one of `kinds`, in order. `_is_ticket`, which takes
        longer, must still be applied to them."""
        listing = self.listing()
        self.paused = _PAUSED in listing
        return sorted(name for name in listing if name[0] in kinds)

    def tickets(self) -> "list[Ticket]":
        """The live tickets in order. Removes dead ones."""
        return [Ticket(name) for name in self.names() if self.is_live(name)]

    def running(self) -> "list[Ticket]":
        """The live tickets that run. Opens no waiting ticket."""
        return [Ticket(n) for n in filter(_is_ticket, self._listed("r")) if self.is_live(n)]

    def slots(self) -> "list[int]":
        """The numbers of the slots that were ever acquired, and 1."""
        return sorted({1, *slot_numbers("executor", self.listing())})

    def find(self, ticket: Ticket, names: "list[str]") -> int:
        """The index of `ticket`, which may have been renamed, in `names`. Raises StateGone if it is
        not among them."""
        for index, name in enumerate(names):
            if name.startswith(ticket.id, _ID_AT):
                if name != ticket.name:
                    ticket.rename(name)
                return index
        raise StateGone

    def ahead(self, ticket: Ticket, most: int = 1, new: bool = False) -> "list[Ticket]":
        """The nearest live tickets ahead of `ticket`, at most `most`, opened to be watched.

        Skips stopped waiters. `new`: also notifies the ticket behind it. Raises StateGone.
        """
        names = self.names()
        at, self.head = self.find(ticket, names), names[0]
        self.waiting_ahead = sum(name[0] == "w" for name in names[:at])
        if new and at + 1 < len(names):
            self._notify_next(names[at + 1 :])
        found: list[Ticket] = []
        for name in reversed(names[:at]):
            other = self.open_live(name)
            if other is None:
                continue
            # Checked only for tickets that we would wait for: the kernel notifies nobody of a stop.
            if not other.running and is_stopped(other.pid):
                other.close()
                continue
            found.append(other)
            if len(found) == most:
                break
        return found

    def mark(self, ticket: Ticket, running: bool) -> bool:
        """Mark the ticket of the run lock's holder as running, so that it sorts before all waiting
        tickets; or as waiting again (`sandrun.queue.memory_pool`). False: it cannot be renamed, or
        the directory was removed. That is harmless, because the run lock is held."""
        order = "r" if running else "w"
        for _ in range(_TRIES):
            first, run_id, pid, _, rest = ticket.name.split(".", 4)
            name = f"{order}{first[1:]}.{run_id}.{pid}.{int(time.time())}.{rest}"
            try:
                self.replace(ticket.name, name)
                ticket.rename(name)
                return True
            except FileNotFoundError:
                try:
                    self.find(ticket, self.names())  # it was renamed a moment ago
                except (StateGone, OSError):
                    break
            except OSError:
                break
        return False

    def leave(self, ticket: Ticket) -> None:
        """Remove the ticket. That wakes up the waiters that watch it."""
        self.remove(ticket.name)
        ticket.close()
        try:
            listed = self._listed("w")
            waiting = list(islice(filter(_is_ticket, listed), NEXT + 1))
            # A stopped waiter does not react to its wakeup, and those behind it got none.
            if waiting and is_stopped(Ticket(waiting[0]).pid):
                self._notify_next(list(filter(_is_ticket, listed)))
            if len(waiting) > NEXT:
                self.notify(waiting[NEXT])
            if self.paused or not ticket.running or not waiting:
                self.publish_queue_file()  # else the next run does so
        except OSError:
            pass

    def _notify_next(self, names: "list[str]") -> None:
        """Notify the first of these waiters that is not stopped, and those before it."""
        for name in names:
            self.notify(name)
            if self.is_live(name) and not is_stopped(Ticket(name).pid):
                return

    def notify_waiters(self) -> None:
        """Wake up every waiter, so that it re-reads the queue."""
        for name in self.names():
            if name[0] == "w":
                self.notify(name)

    def move(self, ticket: Ticket, head_start: int) -> bool:
        """Give a waiting ticket another head start. False: it is no longer waiting."""
        key = ticket.key + (ticket.extra - head_start) * SECOND
        _, run_id, pid, since, _, command = ticket.name.split(".", 5)
        try:
            self.replace(ticket.name, f"w{key:020}.{run_id}.{pid}.{since}.{head_start}.{command}")
        except OSError:
            return False
        self.notify_waiters()
        self.publish_queue_file()
        return True

    def pause(self) -> bool:
        """Let no waiting run start until `resume`. False: the queue was already paused."""
        try:
            self.write_file(_PAUSED, b"", new=True)
        except FileExistsError:
            return False
        self.notify_waiters()
        return True

    def resume(self) -> bool:
        """End a pause. False: there was none."""
        try:
            self.unlink(_PAUSED)
        except FileNotFoundError:
            return False
        except OSError as error:
            path = os.path.join(self.path, _PAUSED)
            raise SandrunError(f"{path}: {error.strerror}", f"rm -r {path}") from None
        self.notify_waiters()
        return True

    def keep_place(self, ticket: Ticket, owner: str) -> None:
        """Keep the place of a waiter that gave up, in case it comes back as the same `owner`."""
        expiry = time.perf_counter_ns() + _KEPT_SECONDS * SECOND
        self.write_note(f"kept.{owner}", f"{ticket.key}.{ticket.extra}.{expiry}")

    def claim_place(self, owner: str, extra: int) -> int:
        """Claim the kept place of `owner` if its head start is still `extra`: the key, or 0."""
        try:
            key, had, expiry = map(int, self.read_note(f"kept.{owner}").split("."))
        except ValueError:
            return 0
        claimed = self.remove(f"kept.{owner}")  # of several claims at once, one succeeds
        return key if claimed and _is_fresh(expiry) and had == extra else 0

    def publish_queue_file(self) -> None:
        """Rewrite queue.txt: one `PID:TIMESTAMP:COMMAND` line for each ticket, the head first.

        Needs no lock: each writer re-reads the queue after writing, so the file that is written
        last is correct. sandrun itself never reads it. On a full disk it stays out of date.
        """
        private = folders.private_name(".view")
        try:
            names = self._listed("rw")
            while True:
                text = "".join(map(_line, filter(_is_ticket, names)))
                self.write_file(private, text.encode("utf-8", "replace"))
                self.replace(private, _QUEUE_FILE)
                written, names = names, self._listed("rw")
                if names == written:
                    return
        except OSError:
            self.remove(private)

    def sweep(self) -> None:
        """Remove files that a SIGKILL left between two steps, and kept places that expired."""
        ids = {name[_ID_AT:].partition(".")[0] for name in self.names()}
        for name in self.listing():
            if _is_private(name):
                self.is_live(name)
            elif name.startswith("around."):  # of sandrun.queue.nesting; made after its ticket
                if is_run_id(name[7:]) and name[7:] not in ids:
                    self.remove(name)
            elif name.startswith("kept."):
                expiry = self.read_note(name).rpartition(".")[2]
                if expiry.isdecimal() and not _is_fresh(int(expiry)):
                    self.remove(name)


def _is_ticket(name: str) -> bool:
    if name[0] not in "rw" or not (name[1:21].isdecimal() and name[21:31:9] == ".."):
        return False
    fields = name[31:].split(".", 3)
    return len(fields) == 4 and all(map(str.isdecimal, (*fields[:2], fields[2].removeprefix("-"))))


def _is_private(name: str) -> bool:
    """Whether this is the temporary name of a ticket (`.<id>`) or of queue.txt."""
    return name[:1] == "." and (is_run_id(name[1:]) or name.startswith(".view."))


def _is_fresh(expiry: int) -> bool:
    # A later expiry was computed before the last boot.
    return 0 <= expiry - time.perf_counter_ns() <= _KEPT_SECONDS * SECOND


def _line(name: str) -> str:
    _, _, pid, since, _, command = name.split(".", 5)
    return f"{pid}:{since}:{unescape(command)}\n"


_UNSAFE = b'/%\\:*?"<>|.' if sys.platform == "win32" else b"/%"
"""Characters that a file name must not contain or, on Windows, end with. A final blank, which it
must not end with either, is stripped by `escape`."""


def escape(text: str) -> str:
    """A command as part of a file name: no slash, nothing unprintable, short."""
    raw = os.fsencode(text)[:_COMMAND_BYTES]
    safe = "".join(chr(c) if 32 <= c < 127 and c not in _UNSAFE else f"%{c:02X}" for c in raw)
    return safe[:160].rstrip(" ") if sys.platform == "win32" else safe[:160]


def unescape(text: str) -> str:
    if "%" not in text:
        return text
    first, *rest = text.split("%")
    raw = first.encode("latin-1")
    for part in rest:
        try:
            raw += bytes((int(part[:2], 16),)) + part[2:].encode("latin-1")
        except ValueError:  # cut in the middle of an escape
            break
    shown = raw.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in shown)


def ticket_text(command: "list[str]") -> str:
    """The text of a command in its ticket."""
    return unescape(escape(command_text(command)))


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped (Ctrl-Z, a debugger). Windows has no such state."""
    if sys.platform == "win32":
        return False
    from sandrun.platform import processes

    try:
        return processes.Stat(pid).state in "Tt"
    except OSError:
        return False


def new_key(head_start: int) -> int:
    """The key of a ticket that arrives now with a head start in seconds."""
    # On Linux perf_counter is CLOCK_MONOTONIC; on Windows, monotonic advances by 1/64 s.
    return _KEY_BASE + time.perf_counter_ns() - head_start * SECOND
