"""A run's place: the one way to a turn, `ticket -> head -> run lock -> pool`.

Promises: `take` returns with the run lock held and the pool's share taken, or with an empty place
for a run inside a run of the same queue; or it raises and leaves nothing behind. Whatever was
taken is given back in the order that spares the next one a second wake-up.

What a free queue does not need is imported only by those that have to wait.
"""

import os
import time

from sandrun import backends, messages
from sandrun.config import project
from sandrun.lifecycle import module_files
from sandrun.model import EXIT_GAVE_UP, SandrunError
from sandrun.queue import Queue, RunLock
from sandrun.queue.ticket import StateGone, Ticket, new_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.lifecycle.runner import Run
    from sandrun.queue.memory_pool import Reservation
    from sandrun.queue.waiter import Waiter


class Refused(Exception):
    """The run would have to wait, and its command cannot be executed; `number`: the errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Place:
    """A run's queue, ticket, run lock and share of the pool; nothing of them for a nested run."""

    __slots__ = ("lock", "queue", "reservation", "ticket")

    def __init__(
        self,
        queue: "Queue | None" = None,
        ticket: "Ticket | None" = None,
        lock: "RunLock | None" = None,
    ) -> None:
        self.queue = queue
        self.ticket = ticket
        self.lock = lock
        self.reservation: Reservation | None = None

    def descriptors(self) -> "list[int]":
        """What only the supervisor may hold open: the ticket is alive while it is locked."""
        return [self.ticket.fd] if self.ticket else []

    def hand_down(self) -> None:
        """Let the command inherit the run lock, after the keeper was forked."""
        for fd in self.lock.descriptors() if self.lock else ():
            os.set_inheritable(fd, True)

    def show(self) -> None:
        """Rewrite the view; after the command was started, because it can wait."""
        if self.queue:
            self.queue.publish_queue_file()

    def release(self) -> None:
        """Free the run lock, then the ticket (which wakes the next); in that order, so that
        the one who wakes finds the lock free."""
        if self.lock:
            self.lock.release()
        if self.queue and self.ticket:
            self.queue.leave(self.ticket)
        if self.reservation:
            self.reservation.leave()


def take(this: "Run") -> Place:
    """Queue up and return when the run may start.

    Raises SandrunError (exit code 75 when the user would not wait longer), errors.Interrupted, and
    Refused.
    """
    if this.around:
        from sandrun.queue import nesting

        if nesting.is_inside(this.around, this.state):
            return _inside()
    deadline = float("inf")
    if this.settings.wait_timeout:
        deadline = time.monotonic() + this.settings.wait_timeout
    key = 0
    while True:
        try:
            queue = Queue(this.state)
        except SandrunError:  # somebody took the name after we had found it free
            refused, this.state = this.state, project.state_path(this.project, this.settings.queue)
            if this.state == refused:
                raise
            continue
        # A new state directory does not cost the old place.
        key = key or _kept(queue, this) or new_key(this.settings.priority)
        try:
            return _take_in(queue, this, key, deadline)
        except StateGone:
            queue.close()


def _inside() -> Place:
    messages.decision("inside a run of the same queue: starting at once")
    return Place()


def _owner(this: "Run") -> str:
    """Who a kept place is for: the same command, from the same directory."""
    words = [this.record["cwd"], *this.command]
    return project.sha1("\0".join(words).encode("utf-8", "surrogateescape"))[:16]


def _kept(queue: Queue, this: "Run") -> int:
    return queue.claim_place(_owner(this), this.settings.priority)


def _take_in(queue: Queue, this: "Run", key: int, deadline: float) -> Place:
    settings = this.settings
    lock = RunLock(queue, settings.slots, this.project, settings.queue)
    ticket = queue.enqueue(this.id, this.command, settings.priority, key)
    place = Place(queue, ticket, lock)
    try:
        turn = _at_once(place)
        while not turn:
            if not _wait_turn(this, place, deadline):
                place.release()
                return _inside()
            turn = _is_clean(place)
        queue.mark(ticket, running=True)
        _enter_pool(this, place, deadline)
    except BaseException as error:
        if getattr(error, "exit_code", 0) == EXIT_GAVE_UP and getattr(error, "keep", True):
            queue.keep_place(ticket, _owner(this))
        place.release()
        raise
    messages.decision(f"run {this.id}: slot {lock.slot} of {queue.path} is ours")
    return place


def _at_once(place: Place) -> bool:
    """Take the run lock if that needs no waiting."""
    queue, ticket, lock = place.queue, place.ticket, place.lock
    assert queue and ticket and lock
    nearest = queue.ahead(ticket, lock.slots, new=True)
    for other in nearest:
        other.close()
    free = len(nearest) < lock.slots and not queue.paused
    return free and lock.try_acquire() and _is_clean(place)


def _is_clean(place: Place) -> bool:
    """Clean up after the run lock's last holder, if it was killed; False: the lock is held again,
    for what of it nobody can end."""
    lock = place.lock
    assert lock
    if not lock.read_holder():
        return True
    from sandrun.lifecycle import recovery

    return recovery.take_over(lock, place.descriptors())


def _wait_turn(this: "Run", place: Place, deadline: float) -> bool:
    """Wait for the run lock; False: its holder is a run around us."""
    queue, ticket, lock = place.queue, place.ticket, place.lock
    assert queue and ticket and lock
    from sandrun.queue import nesting

    if nesting.contains_us(queue):
        return False
    queue.publish_queue_file()
    lock.prepare()
    if this.settings.backend != "auto":
        backends.named(this.settings.backend)  # imported now, to be quicker when the turn comes

    def wait(waiter: "Waiter") -> None:
        waiter.wait_turn(queue, ticket, lock)

    _wait(this, queue, ticket, nesting.enclosing_runs(this.around), deadline, [ticket.fd], wait)
    return True


def _end_orphans(queue: Queue, line: bytes) -> bool:
    from sandrun.lifecycle import recovery  # only where a run was killed

    return recovery.end_orphans(queue, line)


def _describe_unkillable(pid: int) -> str:
    from sandrun.supervise import report  # only where a process survives SIGKILL

    return f"{report.unkillable(pid)}{report.way_to_end(pid)}"


def _enter_pool(this: "Run", place: Place, deadline: float) -> None:
    """Wait until the run's limit fits into the pool."""
    settings = this.settings
    whose = settings.source["memory"] == "default" or settings.is_the_users("memory")
    if settings.backend == "none" or (settings.pool == "off" and whose):
        return
    from sandrun.queue import memory_pool

    total = memory_pool.budget(settings.pool)
    memory, swap = memory_pool.effective_limits(settings, total or memory_pool.budget("100%"))
    this.settings = settings.with_limits(memory, swap)
    while total:
        reservation = memory_pool.enqueue(this.id, this.command, memory, total)
        place.reservation = reservation
        if reservation is None:
            return
        try:
            if not reservation.try_enter():
                _wait_room(this, place, reservation, deadline)
            return
        except StateGone:
            reservation.leave()


def _wait_room(this: "Run", place: Place, reservation: "Reservation", deadline: float) -> None:
    from sandrun.queue import nesting

    def wait(waiter: "Waiter") -> None:
        waiter.wait_room(reservation)

    around = nesting.enclosing_runs(this.around)
    if nesting.is_charged(reservation.queue, around):
        messages.decision("inside a run that has its share of the pool: starting at once")
        reservation.leave()
        place.reservation = None
        return
    place.show()
    # Inside our own run too: those who wait for it wait for the pool through us.
    around += f"{os.pathsep if around else ''}{this.state}/{this.id}"
    try:
        private = [*place.descriptors(), reservation.ticket.fd]
        _wait(this, reservation.queue, reservation.ticket, around, deadline, private, wait)
    except nesting.Deadlock as error:
        messages.warn(f"going on without the pool; {error.text}")
        reservation.leave()
        place.reservation = None


def _wait(
    this: "Run",
    queue: Queue,
    ticket: Ticket,
    around: str,
    deadline: float,
    private: "list[int]",
    wait: "Callable[[Waiter], None]",
) -> None:
    """Wait in `queue`, telling others in which runs we are so that a circle is seen."""
    from sandrun import errors
    from sandrun.queue import nesting
    from sandrun.queue.progress import Progress
    from sandrun.queue.waiter import Waiter
    from sandrun.supervise import command_lookup

    began = min((ticket.since for ticket in queue.running()), default=0)
    if number := command_lookup.refusal(this.command[0], this.project, began):
        raise Refused(number)
    if this.settings.no_wait:
        raise errors.gave_up("not our turn, and --no-wait", this.settings.queue)
    module_files.hold(module_files.WAITING)
    if around:
        nesting.announce(queue, ticket, around)
    progress = Progress(
        queue, ticket, this.record["project"], this.settings.queue, _describe_unkillable
    )

    def check() -> None:
        nesting.check_deadlock(queue, ticket, around)

    try:
        with Waiter(this.caller.mask, deadline, progress, private, check, _end_orphans) as waiter:
            wait(waiter)
    finally:
        progress.clear_line()
        if around:
            nesting.withdraw(queue, ticket)
