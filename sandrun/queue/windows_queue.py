"""The queue on Windows: locked tickets, and the events that wake up a waiter.

Promises the same as `sandrun.queue.posix_queue`: tickets are served in the order of their keys, a
ticket is alive exactly while it is locked, and waiting needs no CPU time.

Invariants
- A ticket is a file that only its owner has locked (LockFileEx). When the owner exits, in any way,
  the kernel unlocks it, which wakes up the waiters for that lock (`sandrun.queue.windows_waiter`).
- A ticket gets its name when it is already locked: it is created under a private name, locked, then
  renamed. So an unlocked ticket is dead, and anybody may remove it.
- Every handle to a ticket shares deletion, so that it can be renamed and removed while others have
  it open. A removed file keeps its name until the last handle is closed, but it cannot be opened,
  so it counts as dead.
- With S slots a ticket may run while fewer than S live tickets are ahead; it waits for any of the
  nearest S. The order decides only who waits for whom; exclusion is the task of the run lock alone.
- Each ticket's owner has three named events, which others can set without a handle of its process:
  re-read the queue, leave it (`queue cancel`), end (`sandrun kill`). The first is only a hint: if
  it is lost, the owner still re-reads the queue after `sandrun.queue.waiter.RECHECK_SECONDS`.
"""

import os
import time

from sandrun.model import SandrunError, command_text
from sandrun.platform import windows_api, windows_files
from sandrun.queue.queue import BaseQueue, Ticket, escape, new_key

CANCEL = b"c"
"""The notification that makes a waiter leave the queue (exit 75)."""
END = b"e"
"""The notification that ends a run, or a waiter."""
RECHECK = b"?"
"""The notification that makes a waiter re-read the queue."""

_EVENTS = {RECHECK: "look", CANCEL: "cancel", END: "end"}
_ACCESS = windows_api.GENERIC_READ | windows_api.GENERIC_WRITE | windows_api.DELETE
_TRIES = 50
"""How often an operation is tried, because a virus scanner or an indexer may prevent it."""
_PAUSE = 0.01


class OwnTicket(Ticket):
    """A ticket of ours: `fd` is the handle that has it locked, `events` are our events."""

    __slots__ = ("events",)

    def __init__(self, name: str, fd: int, events: "dict[bytes, int]") -> None:
        super().__init__(name, fd)
        self.events = events

    def close(self) -> None:
        for handle in (self.fd, *self.events.values()):
            windows_files.close(handle)
        self.fd = 0
        self.events = {}


def end_event(ticket: "Ticket | None") -> int:
    """The event that asks the owner of our own `ticket` to end; 0: it is not our own."""
    return ticket.events[END] if isinstance(ticket, OwnTicket) else 0


def event_name(run_id: str, byte: bytes) -> str:
    """The name of an owner's event: global, because sessions (ssh, a service) share a queue."""
    return f"Global\\sandrun-{run_id}-{_EVENTS[byte]}"


class Queue(BaseQueue):
    """The queue in the state directory `path`. Raises SandrunError if it cannot be made."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.dir = windows_files.extended(os.path.abspath(path))
        _make(self.dir, path)

    def close(self) -> None:
        """Nothing to do: the directory is not open."""

    def _at(self, name: str) -> str:
        return f"{self.dir}\\{name}"

    def enqueue(self, run_id: str, command: "list[str]", extra: int = 0, key: int = 0) -> Ticket:
        """Add a ticket at `key`, by default behind all others. Raises SandrunError."""
        tail = f"{os.getpid()}.{int(time.time())}.{extra}.{escape(command_text(command))}"
        name = f"w{key or new_key(0):020}.{run_id}.{tail}"
        private = f".{run_id}"
        failure = "another process has the file open"
        for _ in range(_TRIES):
            handle = 0
            try:
                handle = windows_files.open_file(
                    self._at(private), _ACCESS, how=windows_api.CREATE_NEW
                )
                if windows_files.try_lock(handle):  # else a sweep is testing it
                    os.rename(self._at(private), self._at(name))
                    return OwnTicket(name, handle, _events(run_id))
            except FileNotFoundError:
                _make(self.dir, self.path)
            except OSError as error:
                failure = str(error.strerror)
                time.sleep(_PAUSE)
            if handle:
                windows_files.close(handle)
            self.remove(private)
        raise SandrunError(
            f"cannot add a ticket to the queue {self.path}: {failure}",
            "free some space there, or set SANDRUN_STATE_DIR to another directory",
        )

    def listing(self) -> "list[str]":
        return os.listdir(self.dir)

    def unlink(self, name: str) -> None:
        os.unlink(self._at(name))

    def replace(self, old: str, new: str) -> None:
        for _ in range(_TRIES):
            try:
                os.replace(self._at(old), self._at(new))
                return
            except PermissionError as error:
                failure = error
                time.sleep(_PAUSE)
        raise failure

    def write_file(self, name: str, data: bytes, new: bool = False) -> None:
        with open(self._at(name), "xb" if new else "wb") as file:
            file.write(data)

    def write_note(self, name: str, text: str) -> None:
        try:  # only administrators may make links
            self.write_file(name, text.encode("utf-8", "surrogatepass"))
        except OSError:
            pass

    def read_note(self, name: str) -> str:
        try:
            with open(self._at(name), "rb") as file:
                return file.read().decode("utf-8", "surrogatepass")
        except (OSError, ValueError):
            return ""

    def open_live(self, name: str) -> "Ticket | None":
        handle = self._open_locked(name)
        return _OtherTicket(name, handle) if handle else None

    def is_live(self, name: str) -> bool:
        handle = self._open_locked(name)
        if handle:
            windows_files.close(handle)
        return bool(handle)

    def _open_locked(self, name: str) -> int:
        """Open a file if its owner has it locked; otherwise remove it and return 0."""
        try:
            handle = windows_files.open_file(self._at(name), windows_api.GENERIC_READ)
        except OSError:
            return 0
        # Shared: several processes that test at once must not mistake each other for the owner.
        if not windows_files.try_lock(handle, exclusive=False):
            return handle
        windows_files.unlock(handle)
        self.remove(name)
        windows_files.close(handle)
        return 0

    def notify(self, name: str, byte: bytes = RECHECK) -> None:
        """Notify a ticket's owner: it re-reads the queue, leaves it (CANCEL) or ends (END)."""
        windows_files.set_named_event(event_name(Ticket(name).id, byte))


class _OtherTicket(Ticket):
    """An open ticket of another process; `fd` is the handle."""

    __slots__ = ()

    def close(self) -> None:
        if self.fd:
            windows_files.close(self.fd)
        self.fd = 0


def _make(directory: str, shown: str) -> None:
    """Make the state directory. Only the user can read it if it is in the user's own folder."""
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
            made[byte] = windows_files.make_event(event_name(run_id, byte))
        except OSError:  # another process has the name, or names are refused: no notifications
            made[byte] = windows_files.make_event()
    return made
