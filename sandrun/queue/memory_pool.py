"""The pool: the memory budget that the runs of all projects of a user share on this host.

Promises: the limits of the runs in the pool never add up to more than the budget, and runs enter it
first in, first out. A limit above the budget takes the whole pool. A run inside another run is
charged to the outer run and never enters the pool.

The pool is a queue like the others (`sandrun.queue.queue`), whose tickets contain the limits of
their runs. A ticket fits if its limit plus those of all live tickets ahead are within the budget;
running tickets count as ahead. A ticket that does not fit keeps all tickets behind it out, so runs
enter first in, first out.

Invariant: a run marks its ticket as running, then checks again, and steps back if a ticket with an
earlier key has arrived in between. Of two runs that do this at once, at least one sees the other.
So no lock guards the budget, and no stopped process can hold one. A stopped waiter is overtaken. If
it was stopped between its first check and its mark, it may exceed the budget when it continues.

The supervisor and the keeper of a run keep its ticket locked, so its reservation ends when all its
processes are dead.
"""

from sandrun import messages
from sandrun.model import MIB, SandrunError, out_of_descriptors, size_text
from sandrun.platform.memory import host_memory
from sandrun.queue import Queue, StateGone, Ticket, is_stopped
from sandrun.queue.state import pool_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.config.settings import Settings

_SHOWN = 8


def budget(wish: str) -> int:
    """The budget in bytes for the setting `wish` (`off`, `80%`, a number of bytes); 0: no pool."""
    if wish == "off":
        return 0
    if not wish.endswith("%"):
        return int(wish)
    return int(host_memory() * float(wish[:-1]) / 100)


class Reservation:
    """A run's memory in the pool. `ticket` stays locked until the run is over."""

    def __init__(self, queue: Queue, ticket: Ticket, total: int) -> None:
        self.queue = queue
        self.ticket = ticket
        self.total = total

    def try_enter(self) -> bool:
        """Enter the pool if there is room. Raises StateGone."""
        if not self._fits(whole=True):
            return False
        self.queue.mark(self.ticket, running=True)
        if self._fits(whole=False):
            return True
        self.queue.mark(self.ticket, running=False)
        return False

    def _fits(self, whole: bool) -> bool:
        """Whether the tickets ahead leave room. `whole`: running tickets with a later key count,
        too."""
        used = self.ticket.extra
        names = self.queue.names()
        self.queue.find(self.ticket, names)
        for other in map(Ticket, names):
            ahead = other.key < self.ticket.key or (whole and other.running)
            if other.id != self.ticket.id and ahead and self._counts(other):
                used += other.extra
        return used <= self.total

    def _counts(self, other: Ticket) -> bool:
        return self.queue.is_live(other.name) and (other.running or not is_stopped(other.pid))

    def leave(self) -> None:
        """End the reservation. That wakes up the runs that wait for room."""
        self.queue.leave(self.ticket)
        self.queue.close()


def effective_limits(settings: "Settings", ceiling: int) -> "tuple[int, int]":
    """The limits on memory and swap of a run where only `ceiling` bytes exist (0: unknown).

    The default, or the limit of an untrusted project's file, is lowered to that. A limit that the
    user set is kept; one on memory causes a warning.
    """
    memory, swap = settings.memory, settings.swap
    if not ceiling:
        return memory, swap
    if swap > ceiling and not settings.is_user_choice("swap"):
        swap = ceiling
    if memory <= ceiling:
        return memory, swap
    if settings.is_user_choice("memory"):
        messages.warn(
            f"the memory limit {size_text(memory)} is more than the pool of "
            f"{size_text(ceiling)}: the run takes the whole pool",
            "a larger pool: --pool SIZE; none: --pool off",
        )
        return memory, swap
    messages.decision(
        f"memory limit {size_text(ceiling)} instead of {size_text(memory)}: the pool is no larger"
    )
    return ceiling // MIB * MIB or ceiling, swap


def enqueue(run_id: str, command: "list[str]", memory: int, total: int) -> "Reservation | None":
    """Enqueue a run with the limit `memory` in the pool of `total` bytes, which `try_enter` then
    enters. None: the pool cannot be used, which is reported."""
    size = min(memory, total)
    while True:
        try:
            queue = Queue(pool_path())
        except SandrunError as error:  # such as another user's directory: it must not stop our runs
            if out_of_descriptors(error):
                raise
            messages.warn(f"going on without the pool; {error.text}", error.hint)
            return None
        try:
            return Reservation(queue, queue.enqueue(run_id, command, size), total)
        except StateGone:
            queue.close()


def explain(reservation: Reservation, ahead: "list[Ticket]") -> str:
    """The message that says why a run has to wait for the pool."""
    users = ", ".join(
        f"{size_text(t.extra)} {'by' if t.running else 'for'} {t.command} (pid {t.pid})"
        for t in ahead[:_SHOWN]
    )
    return (
        f"waiting for memory: {size_text(reservation.ticket.extra)} of the pool's "
        f"{size_text(reservation.total)} requested; ahead: {users}"
    )
