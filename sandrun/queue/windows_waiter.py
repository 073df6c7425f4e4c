"""How a waiter blocks on Windows: on events, and on threads that wait for locks.

Imported only by a run that has to wait (`sandrun.queue.waiter`). Invariants
- For each lock, a separate thread waits in a blocking LockFileEx, because an overlapped call needs
  a kernel that completes it (Wine's does not). The thread locks a handle of its own, shared,
  unlocks it at once and wakes up the waiter, which then re-reads the queue. A thread keeps no lock,
  so one that is no longer needed is left alone; it exits when its lock is free.
- Ctrl-C, Ctrl-Break and the closing of the console end the waiter at once (exit 128 + the number of
  the signal), and so do `sandrun kill` and `queue cancel`.
"""

import _thread

from sandrun.errors import Interrupted, cancelled
from sandrun.platform import windows_api, windows_console, windows_files
from sandrun.queue.windows_queue import CANCEL, END, RECHECK, OwnTicket
from sandrun.queue.windows_run_lock import RunLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.queue.queue import Ticket

SIGINT, SIGTERM, SIGBREAK, SIGHUP = 2, 15, 21, 1
_SIGNALS = {windows_api.CTRL_C_EVENT: SIGINT, windows_api.CTRL_BREAK_EVENT: SIGBREAK}


class Blocker:
    """See `sandrun.queue.waiter.Blocking`. `mask` and `private` matter on POSIX only."""

    def __init__(self, mask: "set[int]", private: "list[int]") -> None:
        self.freed = windows_files.make_event()
        self.watched: set[str] = set()
        """The keys of the locks that threads wait for."""

    def __enter__(self) -> "Blocker":
        windows_console.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._read_console()  # an event that arrived after the last wait

    def _read_console(self) -> None:
        for kind in windows_console.take_events():
            raise Interrupted(_SIGNALS.get(kind, SIGHUP))

    def block(self, own: "Ticket", seconds: float) -> None:
        """Also returns when a watched lock is free: a thread may still wait for one."""
        events = own.events if isinstance(own, OwnTicket) else {}
        order = [b"freed", b"console", *events]
        at = windows_files.wait_any([self.freed, windows_console.event, *events.values()], seconds)
        self._read_console()
        reason = order[at] if at >= 0 else b""
        if reason == END:
            raise Interrupted(SIGTERM)
        if reason == CANCEL:
            raise cancelled()
        assert reason in (b"", b"freed", b"console", RECHECK)

    def block_on_tickets(self, tickets: "list[Ticket]", own: "Ticket", seconds: float) -> bool:
        for other in tickets:
            self._watch(other.id, other.fd)
            other.fd = 0
        self.block(own, seconds)
        return False

    def block_on_run_lock(self, lock: RunLock, own: "Ticket", seconds: float) -> None:
        for slot in range(lock.first, lock.slots + 1):
            self._watch(f"slot {slot}", lock.open_to_watch(slot))
        self.block(own, seconds)

    def _watch(self, key: str, handle: int) -> None:
        """Wake up `block` when the lock of `handle` is free. Takes over `handle`."""
        if key in self.watched:
            windows_files.close(handle)
            return
        self.watched.add(key)
        _thread.start_new_thread(self._wait_for_lock, (key, handle))

    def _wait_for_lock(self, key: str, handle: int) -> None:
        try:
            windows_files.wait_lock(handle)
            windows_files.unlock(handle)
        except OSError:
            pass  # the waiter re-reads the queue in any case
        windows_files.close(handle)
        self.watched.discard(key)
        windows_files.set_event(self.freed)
