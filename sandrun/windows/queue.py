"""The queue on Windows: a chain of locked tickets; stands in for `sandrun.queue`.

Promises as there: tickets are served in the order of their keys, a ticket is alive exactly while it
is locked, and waiting costs nothing.

Invariants
- A ticket is a file that its owner alone has locked (LockFileEx). The kernel unlocks it when the
  owner ends, however it ends, and so wakes those who wait for that lock (`windows.waiting`).
- A ticket appears under its name already locked (made under a private name, locked, then renamed),
  hence an unlocked ticket is dead, and anybody may remove it.
- Every handle to a ticket shares deletion, so that it can be renamed and removed while others look.
  A removed file keeps its name until the last of them looks away; it cannot be opened any more,
  which is to be dead as well.
- With S slots a ticket may run while fewer than S live ones are ahead; it waits for any of the S
  nearest. The order decides only who waits for whom: exclusion is the run lock's alone.
- Each ticket's owner has three named events, which others set without knowing its process: look
  again, leave the queue (`queue cancel`), end (`sandrun kill`). They are hints: whoever is told
  looks for itself, and one that is missed costs a wait of `waiting.LOOK`.
"""

import os
import time

from sandrun import ticket as places
from sandrun.model import SandrunError, command_text
from sandrun.ticket import SECOND, escape, head_key, unescape
from sandrun.windows import api, files

KEEPSECONDS = 120
"""How long the place of one that gave up waiting is kept for its coming back."""
CANCEL = b"c"
"""What a ticket is told that has to leave the queue (exit 75)."""
END = b"e"
"""What a ticket is told whose run, or wait, has to end."""
LOOK = b"?"

_EVENTS = {LOOK: "look", CANCEL: "cancel", END: "end"}
_VIEW = "queue.txt"
_PAUSED = "paused"
_ID_AT = 22
_ACCESS = api.GENERIC_READ | api.GENERIC_WRITE | api.DELETE
_TRIES = 50
"""How often a rename is tried that a virus scanner or an indexer may be in the way of."""


class StateGone(Exception):
    """The state directory was removed under us; enqueue again in a new one."""


class Ticket(places.Ticket):
    """A ticket of our own: `fd` is the handle that has it locked, `events` its owner's events."""

    __slots__ = ("events",)

    def __init__(self, name: str, fd: int, events: "dict[bytes, int]") -> None:
        super().__init__(name, fd)
        self.events = events

    def close(self) -> None:
        for handle in (self.fd, *self.events.values()):
            files.close(handle)
        self.fd = 0
        self.events = {}


own: "Ticket | None" = None
"""This process's first ticket (the pool's comes after it): a supervisor listens to its events."""


def event_name(run_id: str, byte: bytes) -> str:
    """The event of a ticket's owner; global, because sessions (ssh, a service) share a queue."""
    return f"Global\\sandrun-{run_id}-{_EVENTS[byte]}"


class Queue:
    """The queue whose state lives in the directory `path`; SandrunError if that is unsafe."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.paused = False
        """Whether the queue was paused at the last look (`names`)."""
        self.dir = files.extended(os.path.abspath(path))
        _make(self.dir, path)

    def close(self) -> None:
        """Nothing is held open but tickets."""

    def _at(self, name: str) -> str:
        return f"{self.dir}\\{name}"

    def enqueue(self, run_id: str, command: "list[str]", extra: int = 0, key: int = 0) -> Ticket:
        """Take a place: at `key`, by default behind all that came before. Raises SandrunError."""
        global own
        tail = f"{os.getpid()}.{int(time.time())}.{extra}.{escape(command_text(command))}"
        name = f"w{key or head_key(0):020}.{run_id}.{tail}"
        private = f".{run_id}"
        failure = "no place to be had"
        for _ in range(_TRIES):
            handle = 0
            try:
                handle = files.open_file(self._at(private), _ACCESS, how=api.CREATE_NEW)
                if files.try_lock(handle):  # else a sweep looks at it just now
                    os.rename(self._at(private), self._at(name))
                    taken = Ticket(name, handle, _events(run_id))
                    own = own or taken
                    return taken
            except FileNotFoundError:
                _make(self.dir, self.path)
            except OSError as error:
                failure = str(error.strerror)
                time.sleep(0.01)
            if handle:
                files.close(handle)
            self._remove(private)
        raise SandrunError(
            f"cannot take a place in the queue {self.path}: {failure}",
            "free some space there, or set SANDRUN_STATE_DIR to another directory",
        )

    def names(self) -> "list[str]":
        """The tickets' names in order, the running ones first; dead ones may be among them."""
        listing = os.listdir(self.dir)
        self.paused = _PAUSED in listing
        return sorted(n for n in listing if n[0] in "rw" and n[1:21].isdigit())

    def tickets(self) -> "list[places.Ticket]":
        """The live tickets in order. Removes the dead ones it meets."""
        return [places.Ticket(name) for name in self.names() if self.is_live(name)]

    def find(self, ticket: "places.Ticket", names: "list[str]") -> int:
        """Where `ticket` stands among `names`, under whatever name it was given meanwhile.

        Raises StateGone when it is not in the directory any more.
        """
        for index, name in enumerate(names):
            if name.startswith(ticket.id, _ID_AT):
                if name != ticket.name:
                    ticket.rename(name)
                return index
        raise StateGone

    def ahead(
        self, ticket: "places.Ticket", most: int = 1, new: bool = False
    ) -> "list[places.Ticket]":
        """The nearest live tickets ahead of `ticket`, at most `most`, open for waiting.

        A `new` one makes itself known to the one behind. Raises StateGone like `find`.
        """
        names = self.names()
        at = self.find(ticket, names)
        if new:
            self._ring_next(names[at + 1 :])
        found: list[places.Ticket] = []
        for name in reversed(names[:at]):
            handle = self.open_live(name)
            if handle:
                found.append(_Seen(name, handle))
            if len(found) == most:
                break
        return found

    def is_live(self, name: str) -> bool:
        """Whether a ticket is alive; removes it if it is dead."""
        handle = self.open_live(name)
        if handle:
            files.close(handle)
        return bool(handle)

    def open_live(self, name: str) -> int:
        """Open a ticket if it is alive, else 0; removes it if it is dead."""
        try:
            handle = files.open_file(self._at(name), api.GENERIC_READ)
        except OSError:
            return 0
        # Shared: several that look at once must not take each other for the owner.
        if not files.try_lock(handle, exclusive=False):
            return handle
        files.unlock(handle)
        self._remove(name)
        files.close(handle)
        return 0

    def _remove(self, name: str) -> None:
        try:
            os.unlink(self._at(name))
        except OSError:
            pass

    def mark(self, ticket: "places.Ticket", running: bool) -> None:
        """Put the ticket of the run lock's holder before all others, or back among the waiting."""
        order = "r" if running else "w"

        def renamed() -> str:
            first, run_id, pid, _, rest = ticket.name.split(".", 4)
            return f"{order}{first[1:]}.{run_id}.{pid}.{int(time.time())}.{rest}"

        for _ in range(_TRIES):
            if self._rename(ticket, renamed()):
                return
            try:
                self.find(ticket, self.names())  # somebody moved it an instant ago
            except (StateGone, OSError):
                return  # the directory was removed: the run lock, held, is what counts
            time.sleep(0.01)

    def _rename(self, ticket: "places.Ticket", name: str) -> bool:
        try:
            os.rename(self._at(ticket.name), self._at(name))
        except OSError:
            return False
        ticket.rename(name)
        return True

    def leave(self, ticket: "places.Ticket") -> None:
        """Give the place up; wakes whoever waits for it."""
        global own
        self._remove(ticket.name)
        ticket.close()
        if own is ticket:
            own = None
        try:
            waiting = [name for name in self.names() if name[0] == "w"]
            if self.paused or not ticket.running or not waiting:
                self.write_view()  # else the next one writes it
        except OSError:
            pass

    def _ring_next(self, names: "list[str]") -> None:
        """Have the first live one of these look again."""
        for name in names:
            self.ring(name)
            if self.is_live(name):
                return

    def ring(self, name: str, byte: bytes = LOOK) -> None:
        """Have a ticket's owner look again; or leave, or end, by CANCEL and END."""
        files.set_named_event(event_name(places.Ticket(name).id, byte))

    def ring_waiters(self) -> None:
        """Have every waiter look again."""
        for name in self.names():
            if name[0] == "w":
                self.ring(name)

    def move(self, ticket: "places.Ticket", head_start: int) -> bool:
        """Give a waiting ticket anticket head start; False: it waits no more."""
        key = ticket.key + (ticket.extra - head_start) * SECOND
        _, run_id, pid, since, _, command = ticket.name.split(".", 5)
        name = f"w{key:020}.{run_id}.{pid}.{since}.{head_start}.{command}"
        if not any(self._rename(ticket, name) for _ in _pauses()):
            return False
        self.ring_waiters()
        self.write_view()
        return True

    def pause(self) -> bool:
        """Let no waiting run start until `resume`; False: it was paused already."""
        try:
            os.close(os.open(self._at(_PAUSED), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        self.ring_waiters()
        return True

    def resume(self) -> bool:
        """Lift a pause; False: there was none."""
        try:
            os.unlink(self._at(_PAUSED))
        except FileNotFoundError:
            return False
        self.ring_waiters()
        return True

    def lay(self, name: str, text: str) -> None:
        """Keep a short text under a name."""
        try:
            with open(self._at(name), "w", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            pass  # a full disk: what is kept so only saves time or explains

    def laid(self, name: str) -> str:
        """The text kept under a name, or ''."""
        try:
            with open(self._at(name), encoding="utf-8") as file:
                return file.read()
        except OSError:
            return ""

    def take_up(self, name: str) -> bool:
        """Remove what is kept under a name; False: somebody else did."""
        try:
            os.unlink(self._at(name))
            return True
        except OSError:
            return False

    def keep(self, ticket: "places.Ticket", owner: str) -> None:
        """Keep the place of one that gave up, for its coming back as the same `owner`."""
        expiry = time.perf_counter_ns() + KEEPSECONDS * SECOND
        self.lay(f"kept.{owner}", f"{ticket.key}.{ticket.extra}.{expiry}")

    def kept(self, owner: str, extra: int) -> int:
        """Claim the kept place of `owner`, if its head start is still `extra`: its key, or 0."""
        try:
            key, had, expiry = map(int, self.laid(f"kept.{owner}").split("."))
        except ValueError:
            return 0
        claimed = self.take_up(f"kept.{owner}")  # only one of several can have it
        return key if claimed and _is_fresh(expiry) and had == extra else 0

    def write_view(self) -> None:
        """Rewrite queue.txt, one `PID:TIMESTAMP:COMMAND` line per ticket, the head first.

        No lock: whoever writes looks again afterwards, so the last view written is a true one.
        """
        private = self._at(f".view.{os.getpid()}")
        try:
            names = self.names()
            while True:
                with open(private, "w", encoding="utf-8", errors="replace", newline="\n") as file:
                    file.writelines(map(_line, names))
                if not any(_replaced(private, self._at(_VIEW)) for _ in _pauses()):
                    os.unlink(private)  # somebody has the old view open
                    return
                written, names = names, self.names()
                if names == written:
                    return
        except OSError:
            pass

    def sweep(self) -> None:
        """Remove what a kill left between two steps, and kept places that nobody came for."""
        ids = {name[_ID_AT:].partition(".")[0] for name in self.names()}
        for name in os.listdir(self.dir):
            if name[0] == ".":
                self.is_live(name)
            elif name.startswith("around."):
                if name[7:] not in ids:
                    self._remove(name)
            elif name.startswith("kept."):
                expiry = self.laid(name).rpartition(".")[2]
                if not expiry.isdigit() or not _is_fresh(int(expiry)):
                    self._remove(name)


class _Seen(places.Ticket):
    """Another's ticket, open; `fd` is the handle."""

    __slots__ = ()

    def close(self) -> None:
        if self.fd:
            files.close(self.fd)
        self.fd = 0


def _pauses() -> "range":
    return range(_TRIES)


def _replaced(source: str, target: str) -> bool:
    try:
        os.replace(source, target)
        return True
    except PermissionError:
        time.sleep(0.01)
        return False


def _make(directory: str, shown: str) -> None:
    """Make the state directory; below a user's own folder it is the user's alone."""
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise SandrunError(
            f"cannot make the state directory {shown}: {error.strerror}",
            "set SANDRUN_STATE_DIR to a directory that you can write",
        ) from None


def _events(run_id: str) -> "dict[bytes, int]":
    made: dict[bytes, int] = {}
    for byte in _EVENTS:
        try:
            made[byte] = files.make_event(event_name(run_id, byte))
        except OSError:  # somebody else's, or no such names here: nobody can tell us then
            made[byte] = files.make_event()
    return made


def _is_fresh(expiry: int) -> bool:
    # More than KEEPSECONDS ahead of us: it was kept before the last boot.
    return 0 <= expiry - time.perf_counter_ns() <= KEEPSECONDS * SECOND


def _line(name: str) -> str:
    _, _, pid, since, _, command = name.split(".", 5)
    return f"{pid}:{since}:{unescape(command)}\n"
