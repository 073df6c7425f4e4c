"""Waiting for a turn in a queue or for room in the pool: what is the same on every system.

Imported only by a run that has to wait. A system adds how a waiter blocks (`Blocking`):
`sandrun.queue.posix_waiter`, `sandrun.queue.windows_waiter`.

Invariants
- A waiter blocks on the nearest tickets ahead of it, as many as the queue has slots, and re-reads
  the queue when it wakes up. A wakeup is only a hint. The one fact that is concluded from it is
  that the only ticket ahead has run and exited (`sandrun.queue.posix_queue`).
- The next few waiters (`NEXT`) prepare what they need at their turn. A run that leaves the queue
  notifies the waiter that has become one of them. If that misses it, its turn takes longer.
- A waiter that blocks on anything but the run lock holds no part of the run lock.
- A stopped waiter must not delay those behind it, and the kernel notifies nobody of a stop. A run
  that leaves the queue notifies the first waiter that is not stopped. A waiter that is stopped
  between its wakeup and its start is found because every waiter re-reads the queue after
  RECHECK_SECONDS. A stopped waiter loses only its place; the run lock still excludes it.
"""

import sys
import time

from sandrun.errors import gave_up
from sandrun.model import span_text
from sandrun.queue import read_holder_line
from sandrun.queue.queue import NEXT

if sys.platform == "win32":
    from sandrun.queue.windows_waiter import Blocker
else:
    from sandrun.queue.posix_waiter import Blocker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from sandrun.queue import Queue, RunLock, Ticket
    from sandrun.queue.memory_pool import Reservation
    from sandrun.queue.progress import Progress

    class Blocking(Protocol):
        """How a waiter blocks on one system; a context in which signals interrupt it.

        Each method returns when what it waits for has happened, when the owner of the ticket `own`
        was notified, when a signal arrived, or after `seconds`. Each raises Interrupted for a
        signal that ends the waiter, and SandrunError if `own` was cancelled.
        """

        def __enter__(self) -> object: ...

        def __exit__(self, kind: "type[BaseException] | None", *_: object) -> None: ...

        def block(self, own: Ticket, seconds: float) -> None:
            """Block with nothing else to wait for."""

        def block_on_tickets(self, tickets: "list[Ticket]", own: Ticket, seconds: float) -> bool:
            """Block until one of the open `tickets` is dead. True: no other event occurred."""

        def block_on_run_lock(self, lock: RunLock, own: Ticket, seconds: float) -> None:
            """Block until one of the slots of `lock` that the last try found held is free."""


RECHECK_SECONDS = 15.0
"""Seconds after which a waiter whose turn is near re-reads the queue without a wakeup."""
_FAR = 4
"""The other waiters block up to so many times longer: what they would find is not urgent."""


class Waiter:
    """A run that waits until `deadline` (time.monotonic) and reports its `progress`.

    `mask`: the caller's signal mask. `private`: the descriptors of the run's own tickets, which no
    child of the waiter may keep open. `check` raises if the wait would never end. `recover` ends
    the remaining processes of the run that a holder's line describes, if its supervisor is dead; it
    returns whether all of them are dead.
    """

    def __init__(
        self,
        mask: "set[int]",
        deadline: float,
        progress: "Progress",
        private: "list[int]",
        check: "Callable[[], None]",
        recover: "Callable[[Queue, bytes], bool]",
    ) -> None:
        self.deadline = deadline
        self.progress = progress
        self.check = check
        self.recover = recover
        self.began = self.seen_at = time.monotonic()
        self.distance = 0
        """How many waiting tickets were ahead of ours when we last read the queue."""
        self.head = ""
        """The name of the ticket that was the head when we last read the queue."""
        self.waits: dict[str, float] = {}
        """For how many seconds each ticket, by its name, was seen to be the head."""
        self.blocker: Blocking = Blocker(mask, private)

    def __enter__(self) -> "Waiter":
        self.blocker.__enter__()
        return self

    def __exit__(self, kind: "type[BaseException] | None", *rest: object) -> None:
        self.blocker.__exit__(kind, *rest)

    def _seconds(self) -> float:
        """Seconds to block: until a recheck, a message, or the deadline is due."""
        recheck = RECHECK_SECONDS * min(max(1, self.distance - NEXT), _FAR)
        seconds = self.progress.seconds_to_next(recheck)
        return max(0.0, min(seconds, self.deadline - time.monotonic()))

    def _check_deadline(self) -> None:
        if time.monotonic() >= self.deadline:
            waited = span_text(time.monotonic() - self.began)
            raise gave_up(f"gave up after waiting {waited}", self.progress.name)

    def _see(self, head: str) -> None:
        """Count the time since the last call for the ticket that was the head then."""
        now = time.monotonic()
        if self.head:
            self.waits[self.head] = self.waits.get(self.head, 0.0) + now - self.seen_at
        self.head, self.seen_at = head, now

    def wait_turn(
        self, queue: "Queue", ticket: "Ticket", lock: "RunLock", prepare: "Callable[[], None]"
    ) -> None:
        """Return when we hold a slot of `lock` and fewer tickets than slots are ahead of `ticket`.
        Call `prepare` whenever our turn is near.

        Raises Interrupted, StateGone, and SandrunError when the deadline is over or the ticket was
        cancelled.
        """
        is_head = False
        while True:
            if not is_head:
                nearest = queue.ahead(ticket, lock.slots)
                try:
                    if len(nearest) == lock.slots:
                        lock.unlock()
                        self._see(queue.head)
                        self.check()
                        self.distance = queue.waiting_ahead
                        if self.distance <= NEXT:
                            prepare()
                        self.progress.report_position(nearest)
                        is_head = self._next_after(nearest, ticket)
                        continue
                finally:
                    for other in nearest:
                        other.close()
            self._see("")
            if queue.paused:
                lock.unlock()
                self.progress.report_pause()
                self.blocker.block(ticket, self._seconds())
                self._check_deadline()
            elif lock.try_acquire() or (not is_head and self._wait_for_holder(queue, ticket, lock)):
                return
            is_head = False

    def _next_after(self, nearest: "list[Ticket]", ticket: "Ticket") -> bool:
        """Block on the tickets ahead. True: there was one, it has run and exited, and no
        notification arrived, so `ticket` is the head of the queue."""
        only_exit = self.blocker.block_on_tickets(nearest, ticket, self._seconds())
        self._check_deadline()
        return len(nearest) == 1 and only_exit and nearest[0].has_run()

    def _wait_for_holder(self, queue: "Queue", ticket: "Ticket", lock: "RunLock") -> bool:
        """Block once on a run lock that is held although no ticket is ahead. True: we acquired it
        instead."""
        if sys.platform != "win32" and (second := lock.held_second()):
            from sandrun.queue import nesting

            path, file = second
            outside = nesting.outside_holder(file)
            if outside is None:
                lock.skip_second()
                return False
            self.progress.report_outside_holder(path, outside)
        elif self._recovers(queue, lock):
            return True
        self.blocker.block_on_run_lock(lock, ticket, self._seconds())
        self._check_deadline()
        return False

    def _recovers(self, queue: "Queue", lock: "RunLock") -> bool:
        """End the processes of killed runs that hold the run lock. True: we now hold it."""
        from sandrun.queue import holder

        held = list(map(read_holder_line, lock.blocked))
        # The keeper of a run with unkillable processes has already tried to end them.
        lost = [line for line in held if line and not holder.unkillable(line)]
        ended = [self.recover(queue, line) for line in lost]
        if any(ended) and lock.try_acquire():
            return True
        held = list(map(read_holder_line, lock.blocked))
        self.progress.report_orphans([pid for line in held for pid in holder.unkillable(line)])
        return False

    def wait_room(self, reservation: "Reservation") -> None:
        """Return once `reservation` has entered the pool, which needs room. Raises what `wait_turn`
        raises."""
        from sandrun.queue import memory_pool

        queue, ticket = reservation.queue, reservation.ticket
        while not reservation.try_enter():
            ahead = queue.ahead(ticket, len(queue.names()))
            try:
                self._see(ahead[-1].name if ahead else "")
                self.check()
                text = memory_pool.explain(reservation, ahead[::-1])
                self.progress.report_pool(text, [other.id for other in ahead])
                # The exit of any of them may make room. If none is left, there is room already.
                if ahead:
                    self.blocker.block_on_tickets(ahead, ticket, self._seconds())
                    self._check_deadline()
            finally:
                for other in ahead:
                    other.close()
        self._see("")
