"""The order of a queue against a model: hypothesis drives real tickets, the model says who may run.

The most important property is that no wakeup is missed: at every instant, the head of the queue has
a pending wakeup (a hang-up of a ticket that it watches, or a notification).
"""

import os
import select
import tempfile
import time
from unittest import mock

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sandrun.queue import Queue, Ticket, new_key

EXAMPLES = int(os.environ.get("SANDRUN_TEST_EXAMPLES") or 60)
head_starts = st.sampled_from([3600, 0, -3600]) | st.integers(-5000, 5000)


class Waiter:
    """A process as the queue knows it: its ticket, and the tickets that it blocks on."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.key = ticket.key
        self.head_start = ticket.extra
        self.running = False
        self.watched: list[Ticket] = []

    def forget(self) -> None:
        for other in self.watched:
            other.close()
        self.watched = []

    def is_notified(self) -> bool:
        try:
            return bool(os.read(self.ticket.fd, 4096))
        except BlockingIOError:
            return False

    def is_hung_up(self) -> bool:
        poll = select.poll()
        for other in self.watched:
            poll.register(other.fd, 0)
        return bool(poll.poll(0))

    def is_woken(self) -> bool:
        poll = select.poll()
        poll.register(self.ticket.fd, select.POLLIN)
        return bool(poll.poll(0)) or self.is_hung_up()


class Ordering(RuleBasedStateMachine):
    """Arrivals, ends, kills, moves and rechecks in any order, against what the model expects."""

    waiters = Bundle("waiters")

    @initialize(slots=st.integers(1, 3))
    def begin(self, slots: int) -> None:
        self.scratch = tempfile.TemporaryDirectory()
        self.queue = Queue(self.scratch.name)
        self.slots = slots
        self.alive: list[Waiter] = []
        self.count = 0

    @rule(target=waiters, head_start=head_starts)
    def arrive(self, head_start: int) -> Waiter:
        self.count += 1
        run_id = f"{self.count:08x}"
        key = new_key(head_start)
        waiter = Waiter(self.queue.enqueue(run_id, ["job"], head_start, key))
        self.alive.append(waiter)
        self.recheck(waiter, new=True)
        return waiter

    def recheck(self, waiter: Waiter, new: bool = False) -> None:
        """What a waiter does when it wakes up; as `Waiter.wait_turn`."""
        notified = waiter.is_notified()
        only_hung_up = waiter.is_hung_up() and not notified
        if not (self.slots == 1 and only_hung_up and waiter.watched[0].has_run()):
            waiter.forget()
            nearest = self.queue.ahead(waiter.ticket, self.slots, new)
            if len(nearest) == self.slots:
                waiter.watched = nearest
                return
            for other in nearest:
                other.close()
        # As good as reading the queue: the model has the same head.
        assert self.expected().index(waiter) < self.slots
        # The run lock excludes whatever the order says; the model has slots instead.
        assert sum(other.running for other in self.alive) < self.slots
        waiter.forget()
        self.queue.mark(waiter.ticket, running=True)
        waiter.running = True

    @precondition(lambda self: any(w.is_woken() for w in self.alive if not w.running))
    @rule(data=st.data())
    def wake_one(self, data: st.DataObject) -> None:
        woken = [w for w in self.alive if not w.running and w.is_woken()]
        self.recheck(data.draw(st.sampled_from(woken)))

    @rule(waiter=waiters)
    def recheck_without_a_wakeup(self, waiter: Waiter) -> None:
        if waiter in self.alive and not waiter.running:
            self.recheck(waiter)

    @rule(waiter=consumes(waiters))
    def end(self, waiter: Waiter) -> None:
        """A run that ends, or a waiter that gives up."""
        if waiter in self.alive:
            self.alive.remove(waiter)
            waiter.forget()
            self.queue.leave(waiter.ticket)

    @rule(waiter=consumes(waiters))
    def kill(self, waiter: Waiter) -> None:
        """SIGKILL: the kernel closes what was open, and nobody removes the name."""
        if waiter in self.alive:
            self.alive.remove(waiter)
            waiter.forget()
            waiter.ticket.close()

    @rule(waiter=waiters, head_start=head_starts)
    def move(self, waiter: Waiter, head_start: int) -> None:
        """As from another process, which knows the name only."""
        if waiter in self.alive and not waiter.running:
            seen = next(t for t in self.queue.tickets() if t.id == waiter.ticket.id)
            assert self.queue.move(seen, head_start)
            waiter.key += (waiter.head_start - head_start) * 10**9
            waiter.head_start = head_start

    @rule()
    def sweep(self) -> None:
        self.queue.sweep()
        self.queue.publish_queue_file()

    def expected(self) -> list[Waiter]:
        return sorted(self.alive, key=lambda w: (not w.running, w.key))

    @invariant()
    def the_order_is_the_models(self) -> None:
        if not hasattr(self, "queue"):
            return
        found = [ticket.id for ticket in self.queue.tickets()]
        assert found == [waiter.ticket.id for waiter in self.expected()]

    @invariant()
    def the_head_has_a_pending_wakeup(self) -> None:
        if not hasattr(self, "queue"):
            return
        for position, waiter in enumerate(self.expected()):
            if position < self.slots and not waiter.running:
                assert waiter.is_woken()

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        # After all waiters with a wakeup have rechecked, as many run as may.
        while woken := [w for w in self.alive if not w.running and w.is_woken()]:
            self.recheck(woken[0])
        assert sum(w.running for w in self.alive) == min(self.slots, len(self.alive))
        for waiter in self.alive:
            waiter.forget()
            waiter.ticket.close()
        self.queue.close()
        self.scratch.cleanup()


def test_order_and_wakeups_hold_whatever_happens() -> None:
    run_state_machine_as_test(
        Ordering, settings=settings(max_examples=EXAMPLES, deadline=None, stateful_step_count=40)
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 4000), head_starts, st.integers(0, 3)), min_size=1, max_size=30
    )
)
def test_nobody_is_overtaken_by_later_ones_than_head_starts_allow(
    arrivals: "list[tuple[int, int, int]]",
) -> None:
    """So nobody starves: who came longer ago than the difference of head starts goes first."""
    with tempfile.TemporaryDirectory() as scratch:
        queue = Queue(scratch)
        now = time.perf_counter_ns()
        came: dict[str, tuple[int, int]] = {}
        tickets: dict[str, Ticket] = {}
        served: list[str] = []
        waited: dict[str, set[str]] = {}

        def serve() -> None:
            names = queue.names()
            run_id = Ticket(names[0]).id
            served.append(run_id)
            waited[run_id] = set(tickets)
            queue.leave(tickets.pop(run_id))

        for number, (gap, head_start, ends) in enumerate(arrivals):
            now += gap * 10**9
            run_id = f"{number:08x}"
            with mock.patch("time.perf_counter_ns", return_value=now):
                key = new_key(head_start)
            came[run_id] = (now, head_start)
            tickets[run_id] = queue.enqueue(run_id, ["job"], head_start, key)
            for _ in range(min(ends, len(tickets))):
                serve()
        while tickets:
            serve()
        queue.close()
    for first in served:
        for passed in waited[first] - {first}:
            (came_first, start_first), (came_passed, start_passed) = came[first], came[passed]
            assert came_first - came_passed <= (start_first - start_passed) * 10**9
