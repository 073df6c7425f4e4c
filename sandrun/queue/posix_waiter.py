"""Waiting for a turn: asleep in poll(2) on the tickets ahead, the own ticket's bell, and signals.

On macOS (see `sandrun.queue`) a child that is blocked in flock(2) stands for each ticket ahead.

Imported only by a run that has to wait. Invariants
- A waiter's signals act at once: they leave the queue (exit 128+n); those that the caller ignored
  stay ignored. They arrive through a pipe that poll(2) watches too, so none can fall between a
  look and a sleep. Stops (Ctrl-Z) are left to the kernel.
- A stopped waiter must not stall those behind it, and the kernel tells nobody of a stop. Who
  leaves the queue rings the first that is not stopped; for one that stops between being woken and
  starting, every waiter looks around each RECHECK_SECONDS. It is passed by in the order only; the
  run lock still excludes.
- Where the head finds the run lock held though nobody is ahead (the tree of a killed supervisor,
  another user of the checkout), a child blocks in flock(2) on the same open file. What it is
  granted belongs to that file, thus to us; its end is what we poll for. It dies with us.
"""

import fcntl
import os
import select
import time

from sandrun.bare import signal as _signal
from sandrun.errors import Interrupted, cancelled, gave_up
from sandrun.model import DARWIN, span_text
from sandrun.queue.posix_queue import CANCEL, WAKEUP_SIGNAL, Queue
from sandrun.queue.posix_run_lock import RunLock, read_holder_line
from sandrun.queue.ticket import Ticket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.queue.memory_pool import Reservation
    from sandrun.queue.progress import Progress

RECHECK_SECONDS = 15.0
"""Seconds between two looks around that nothing asked for: only for what the kernel tells nobody
(a stop) and for a ring that was lost because its sender was killed."""

_WATCHED = 8
"""Tickets that a waiter watches by a child each, where it needs those: of more the foremost, which
run or are next to; the look around finds out about the others."""
_LEAVING = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)

_RUNG = (WAKEUP_SIGNAL,) if DARWIN else ()


class Waiter:
    """Sleeping with the caller's signal mask, until `deadline`; restores what was there.

    `private`: the descriptors of the waiter's own tickets, which no child of it may hold open.
    """

    def __init__(
        self, mask: "set[int]", deadline: float, progress: "Progress", private: "list[int]"
    ) -> None:
        self.mask = mask
        self.deadline = deadline
        self.progress = progress
        self.private = private
        self.began = time.monotonic()

    def __enter__(self) -> "Waiter":
        self.pipe, self._end = os.pipe()
        for fd in (self.pipe, self._end):
            os.set_blocking(fd, False)
        self._wakeup = _signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
        signals = [s for s in _LEAVING if _signal.getsignal(s) != _signal.SIG_IGN]
        # Being continued may mean that the turn came meanwhile.
        self.handlers = {s: _signal.signal(s, _noted) for s in (*signals, _signal.SIGCONT, *_RUNG)}
        self.before = _signal.pthread_sigmask(_signal.SIG_SETMASK, self.mask)
        return self

    def __exit__(self, kind: "type[BaseException] | None", *_: object) -> None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self.before)
        for signum, handler in self.handlers.items():
            _signal.signal(signum, handler)
        _signal.set_wakeup_fd(self._wakeup)
        try:
            if kind is None:
                self._take_signals()  # one that came too late for the last sleep
        finally:
            os.close(self.pipe)
            os.close(self._end)

    def _take_signals(self) -> None:
        try:
            for signum in os.read(self.pipe, 64):
                if signum in _LEAVING:
                    raise Interrupted(signum)
        except BlockingIOError:
            pass

    def watch(self, tickets: "list[Ticket]", bell: int) -> bool:
        """`sleep` until one of these open tickets ends."""
        if not DARWIN:
            return self.sleep([ticket.fd for ticket in tickets], bell)
        return self.await_locks([t.fd for t in tickets[-_WATCHED:]], fcntl.LOCK_SH, bell)

    def await_locks(self, files: "list[int]", operation: int, bell: int) -> bool:
        """`sleep` until one of these open files is locked, for it."""
        helpers = [_Helper(fd, operation, [*self.private, self.pipe]) for fd in files]
        try:
            return self.sleep([helper.pipe for helper in helpers], bell)
        finally:
            for helper in helpers:
                helper.end()

    def sleep(self, hangups: "list[int]", bell: int) -> bool:
        """Sleep until one of `hangups` is hung up, the bell rings, a signal comes, or it is time
        to look around or to say something. True: only the first.

        Raises Interrupted, and SandrunError when the deadline is over or the ticket was cancelled.
        """
        poll = select.poll()
        for fd in hangups:
            # Nobody reads what is in a FIFO but its owner. Of a pipe macOS tells only who reads.
            poll.register(fd, select.POLLIN if DARWIN else 0)
        poll.register(self.pipe, select.POLLIN)
        if DARWIN:
            self._answer(bell)
        else:
            poll.register(bell, select.POLLIN)
        seconds = min(
            self.progress.seconds_to_next(RECHECK_SECONDS), self.deadline - time.monotonic()
        )
        events = poll.poll(max(0.0, seconds) * 1000 + 1)
        self._take_signals()
        if DARWIN or any(fd == bell for fd, _ in events):
            self._answer(bell)
        if time.monotonic() >= self.deadline:
            waited = span_text(time.monotonic() - self.began)
            raise gave_up(f"gave up after waiting {waited}", self.progress.name)
        return bool(events) and all(fd in hangups for fd, _ in events)

    def _answer(self, bell: int) -> None:
        if CANCEL in os.read(bell, 4096):
            raise cancelled()


def _noted(signum: int, frame: object) -> None:
    """A handler, so that the kernel interrupts the sleep; the pipe has the number."""


def wait_turn(
    queue: Queue,
    ticket: Ticket,
    lock: RunLock,
    waiter: Waiter,
    check: "Callable[[], None]",
    recover: "Callable[[Queue, bytes], bool]",
) -> None:
    """Return when a slot of `lock` is ours and fewer than all slots are ahead of `ticket`.

    `check` raises when the wait would never end. `recover` ends what is left of the run of a
    holder's line, if its supervisor is dead, and returns whether nothing of it lives. Raises what
    Waiter.sleep does, and StateGone.
    """
    turn = False
    while True:
        if not turn:
            nearest = queue.ahead(ticket, lock.slots)
            try:
                if len(nearest) == lock.slots:
                    lock.unlock()
                    check()
                    waiter.progress.report_position(nearest)
                    hung_up = waiter.watch(nearest, ticket.fd)
                    turn = lock.slots == 1 and hung_up and nearest[0].has_run()
                    continue
            finally:
                for other in nearest:
                    other.close()
        if queue.paused:
            lock.unlock()
            waiter.progress.report_pause()
            waiter.sleep([], ticket.fd)
        elif lock.try_acquire() or (not turn and _await_lock(queue, ticket, lock, waiter, recover)):
            return
        turn = False


def wait_room(reservation: "Reservation", waiter: Waiter, check: "Callable[[], None]") -> None:
    """Return when the pool has let `reservation` in; otherwise as `wait_turn`."""
    from sandrun.queue import memory_pool

    while not reservation.try_enter():
        ahead = reservation.queue.ahead(reservation.ticket, len(reservation.queue.names()))
        try:
            check()
            text = memory_pool.explain(reservation, ahead[::-1])
            waiter.progress.report_pool(text, [t.id for t in ahead])
            # Any of them may make room; when none is left it is there already.
            if ahead:
                waiter.watch(ahead, reservation.ticket.fd)
        finally:
            for other in ahead:
                other.close()


def _await_lock(
    queue: Queue,
    ticket: Ticket,
    lock: RunLock,
    waiter: Waiter,
    recover: "Callable[[Queue, bytes], bool]",
) -> bool:
    """One sleep on locks that are held though nobody is ahead; True: they are ours already."""
    second = lock.holder_of_second()
    if second:
        from sandrun.queue import nesting

        file = os.fstat(second.fd)
        if nesting.is_held_around_us(file):
            lock.skip_second()
            return False
        waiter.progress.report_outside_holder(second.path, nesting.lock_holder(file))
    else:
        from sandrun.queue import holder

        held = list(map(read_holder_line, lock.blocked))
        # What is known to be unkillable its keeper has tried to end.
        lost = [line for line in held if line and not holder.unkillable(line)]
        ended = [recover(queue, line) for line in lost]
        if any(ended) and lock.try_acquire():
            return True
        held = list(map(read_holder_line, lock.blocked))
        waiter.progress.report_orphans([pid for line in held for pid in holder.unkillable(line)])
    waiter.await_locks(lock.blocked, fcntl.LOCK_EX, ticket.fd)
    return False


class _Helper:
    """A child that blocks in flock(2) for us; `pipe` is hung up when it is done."""

    def __init__(self, fd: int, operation: int, close: "list[int]") -> None:
        from sandrun.platform import processes

        parent = os.getpid()
        self.pipe, end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                processes.die_with(parent)
                # A ticket lives while anybody has it open, and so does the caller's pipe.
                for other in (*close, self.pipe, 0, 1, 2):
                    os.close(other)
                _signal.set_wakeup_fd(-1)
                for signum in _LEAVING:
                    if _signal.getsignal(signum) == _noted:
                        _signal.signal(signum, _signal.SIG_DFL)
                fcntl.flock(fd, operation)
            finally:
                os._exit(0)
        os.close(end)

    def end(self) -> None:
        os.close(self.pipe)
        os.kill(self.pid, _signal.SIGKILL)  # our child, not yet reaped: the pid is its own
        os.waitpid(self.pid, 0)
