"""Waiting for a turn on Windows: asleep on locks and events; stands in for `sandrun.queue.waiter`.

Imported only by a run that has to wait. Invariants
- Waiting for a lock is a blocking LockFileEx in a thread of its own, because an overlapped one
  needs a kernel that completes it (Wine's does not). The thread asks for a shared lock of a handle
  of its own, gives it back at once and wakes the waiter, who then looks for itself. Nothing is held
  by a thread, so one that is not needed any more is left alone; it ends when its lock comes free.
- Ctrl-C, Ctrl-Break and a closing console leave the queue at once (exit 128 + the signal's number),
  as do the orders of `sandrun kill` and `queue cancel`.
- Where the head finds the run lock held though nobody is ahead (the end of a killed supervisor is
  still under way), it waits for that lock in the same way.
"""

import _thread
import time

from sandrun.errors import Interrupted, cancelled, gave_up
from sandrun.model import span_text
from sandrun.platform import windows_api, windows_console, windows_files
from sandrun.queue.windows_queue import CANCEL, END, RECHECK, Queue
from sandrun.queue.windows_queue import Ticket as OwnTicket
from sandrun.queue.windows_run_lock import RunLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.queue.memory_pool import Reservation
    from sandrun.queue.progress import Progress
    from sandrun.queue.ticket import Ticket

RECHECK_SECONDS = 15.0
"""Seconds between two looks around that nothing asked for: only for an event that was lost."""
SIGINT, SIGTERM, SIGBREAK, SIGHUP = 2, 15, 21, 1
_SIGNALS = {windows_api.CTRL_C_EVENT: SIGINT, windows_api.CTRL_BREAK_EVENT: SIGBREAK}


class Waiter:
    """Sleeping until `deadline`; watches locks while it lasts. Two are for POSIX."""

    def __init__(
        self, mask: "set[int]", deadline: float, progress: "Progress", private: "list[int]"
    ) -> None:
        self.deadline = deadline
        self.progress = progress
        self.began = time.monotonic()
        self.freed = windows_files.make_event()
        self.watched: set[str] = set()
        """What threads wait for at this time."""

    def __enter__(self) -> "Waiter":
        windows_console.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._take_events()  # one that came too late for the last sleep

    def _take_events(self) -> None:
        for kind in windows_console.take():
            raise Interrupted(_SIGNALS.get(kind, SIGHUP))

    def watch(self, key: str, handle: int) -> None:
        """Wake the next sleep when the lock of `handle`, which is ours to close, comes free."""
        if key in self.watched:
            windows_files.close(handle)
            return
        self.watched.add(key)
        _thread.start_new_thread(self._watch, (key, handle))

    def _watch(self, key: str, handle: int) -> None:
        try:
            windows_files.wait_lock(handle)
            windows_files.unlock(handle)
        except OSError:
            pass  # whoever is woken looks for itself
        windows_files.close(handle)
        self.watched.discard(key)
        windows_files.set_event(self.freed)

    def sleep(self, own: "Ticket") -> None:
        """Sleep until a watched lock comes free, something is said to us, or it is time to look
        around or to say something.

        Raises Interrupted, and SandrunError when the deadline is over or the ticket was cancelled.
        """
        events = own.events if isinstance(own, OwnTicket) else {}
        order = [b"freed", b"console", *events]
        seconds = min(
            self.progress.seconds_to_next(RECHECK_SECONDS), self.deadline - time.monotonic()
        )
        at = windows_files.wait_any([self.freed, windows_console.event, *events.values()], seconds)
        self._take_events()
        told = order[at] if at >= 0 else b""
        if told == END:
            raise Interrupted(SIGTERM)
        if told == CANCEL:
            raise cancelled()
        assert told in (b"", b"freed", b"console", RECHECK)
        if time.monotonic() >= self.deadline:
            waited = span_text(time.monotonic() - self.began)
            raise gave_up(f"gave up after waiting {waited}", self.progress.name)


def wait_turn(
    queue: Queue,
    ticket: "Ticket",
    lock: RunLock,
    waiter: Waiter,
    check: "Callable[[], None]",
    recover: "Callable[[Queue, bytes], bool]",
) -> None:
    """Return when a slot of `lock` is ours and fewer than all slots are ahead of `ticket`.

    `check` raises when the wait would never end. Nothing is left to `recover`: a run's job ends
    with its supervisor. Raises what Waiter.sleep does, and StateGone.
    """
    while True:
        nearest = queue.ahead(ticket, lock.slots)
        if len(nearest) == lock.slots:
            _watch_tickets(waiter, nearest)
            check()
            waiter.progress.report_position(nearest)
        elif queue.paused:
            waiter.progress.report_pause()
        elif lock.try_acquire():
            _close(nearest)
            return
        else:
            waiter.progress.report_orphans([])
            _watch_lock(waiter, lock)
        _close(nearest)
        waiter.sleep(ticket)


def _watch_tickets(waiter: Waiter, tickets: "list[Ticket]") -> None:
    for other in tickets:
        waiter.watch(other.id, other.fd)
        other.fd = 0


def _watch_lock(waiter: Waiter, lock: RunLock) -> None:
    for slot in range(lock.first, lock.slots + 1):
        waiter.watch(f"slot {slot}", lock.open_to_watch(slot))


def _close(tickets: "list[Ticket]") -> None:
    for other in tickets:
        other.close()


def wait_room(reservation: "Reservation", waiter: Waiter, check: "Callable[[], None]") -> None:
    """Return when the pool has let `reservation` in; otherwise as `wait_turn`."""
    from sandrun.queue import memory_pool

    while not reservation.try_enter():
        ahead = reservation.queue.ahead(reservation.ticket, len(reservation.queue.names()))
        if ahead:  # any of them may make room; when none is left it is there already
            _watch_tickets(waiter, ahead)
            check()
            text = memory_pool.explain(reservation, ahead[::-1])
            waiter.progress.report_pool(text, [t.id for t in ahead])
            waiter.sleep(reservation.ticket)
