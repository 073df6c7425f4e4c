"""The admission of a run: `ticket -> head of the queue -> run lock -> pool`.

Promises: `Admission.acquire` returns with the run lock and, if the pool applies, the memory
reservation, or with neither for a run inside a run of the same queue; or it raises and leaves
nothing behind. `release` releases all of them in the order that wakes the next run once.

Modules that only a waiting run needs are imported lazily.
"""

import os
import sys
import time

from sandrun import backends, messages
from sandrun.lifecycle import Request, module_files
from sandrun.model import EXIT_GAVE_UP, SandrunError, plain
from sandrun.queue import Queue, RunLock, StateGone, Ticket, new_key
from sandrun.queue.state import is_state_name, sha1, state_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.config.settings import Settings
    from sandrun.queue.memory_pool import Reservation
    from sandrun.queue.waiter import Waiter
    from sandrun.types import WaitedFor

_NAMED = 5
_CHARACTERS = 80
"""How many runs `waited_for` names at most, and how many characters of each command line."""
_NOTED = "fallback-noted"
"""The note that names the boot in which the fallback was reported."""


class Refused(Exception):
    """The run would have to wait, but its command cannot be executed; `number` is the errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Admission:
    """A run's ticket, run lock and memory reservation, each None until the run asks for it.

    A run inside a run of the same queue has none of them. `request` is what was asked, with the
    effective limits and the state directory that is used.
    """

    __slots__ = (
        *("_deadline", "_pool_size", "_prepare"),
        *("lock", "queue", "request", "reservation", "ticket", "waits"),
    )

    def __init__(self, request: Request, prepare: "Callable[[], None]") -> None:
        """`prepare` is called at most once: when our turn is near and the limits are effective."""
        self.request = request
        self._prepare: Callable[[], None] | None = prepare
        self._pool_size: int | None = None
        self.queue: Queue | None = None
        self.ticket: Ticket | None = None
        self.lock: RunLock | None = None
        self.reservation: Reservation | None = None
        self.waits: dict[str, float] = {}
        """How long each ticket, by its name, was seen at the head while we waited (seconds)."""
        wait_timeout = request.settings.wait_timeout
        self._deadline = time.monotonic() + wait_timeout if wait_timeout else float("inf")

    def private_descriptors(self) -> "list[int]":
        """Descriptors that only the supervisor may hold open: a ticket is alive while locked."""
        return [self.ticket.fd] if self.ticket else []

    def make_lock_inheritable(self) -> None:
        """Let the command inherit the run lock. Called after the keeper was forked."""
        for fd in self.lock.descriptors() if self.lock else ():
            os.set_inheritable(fd, True)

    def publish_queue_file(self) -> None:
        """Rewrite queue.txt. Called after the command was started, because it is not urgent."""
        if self.queue:
            self.queue.publish_queue_file()

    def release(self) -> None:
        """Release the run lock, then remove the ticket, which wakes the next run: in this order, so
        that the next run finds the lock free."""
        if self.lock:
            self.lock.release()
        if self.queue and self.ticket:
            self.queue.leave(self.ticket)
        self._leave_pool()

    def _leave_pool(self) -> None:
        if self.reservation:
            self.reservation.leave()
        self.reservation = None

    def remove_unused_states(self) -> None:
        """After a project's first run, remove the state of projects that are no longer used."""
        if sys.platform == "win32":
            return
        root = os.path.dirname(self.request.state)
        try:
            has_others = sum(map(is_state_name, os.listdir(root))) > 1
        except OSError:  # no right to list it
            return
        if has_others:
            from sandrun.queue import unused_states

            unused_states.remove_some(root)

    def waited_for(self) -> "list[WaitedFor]":
        """The runs that were seen at the head of the queue while we waited."""
        runs: dict[str, WaitedFor] = {}
        for name, seconds in self.waits.items():
            ticket = Ticket(name)
            run = runs.setdefault(ticket.id, {"id": ticket.id, "command": "", "seconds": 0.0})
            run["command"] = plain(ticket.command)[:_CHARACTERS]
            run["seconds"] += seconds
        return sorted(runs.values(), key=lambda run: -run["seconds"])[:_NAMED]

    def report_fallback(self) -> None:
        """Report that no kernel enforces the limits: once per boot and project, or with -v."""
        from sandrun.platform import processes

        try:
            boot = processes.read("/proc/sys/kernel/random/boot_id").decode().strip()
        except OSError:
            boot = "this one"  # macOS, where a boot empties /tmp
        queue = self.queue
        is_known = queue is not None and queue.read_note(_NOTED) == boot
        if messages.level < 0 or (messages.level == 0 and is_known):
            return
        messages.status("a monitor polls the limits, no kernel enforces them here: sandrun doctor")
        if queue:
            queue.write_note(_NOTED, boot)

    def acquire(self) -> None:
        """Enqueue the run and return when it may start.

        Raises SandrunError (exit code 75 when the wait is given up), Refused, and
        errors.Interrupted when a signal ends the wait.
        """
        request = self.request
        if request.enclosing:
            from sandrun.queue import nesting

            if nesting.is_inside(request.enclosing, request.state):
                _report_nested()
                return
        key = 0
        while True:
            try:
                queue = Queue(self.request.state)
            except SandrunError:  # another user took the name after we had found it free
                state = state_path(request.project, request.settings.queue)
                if state == self.request.state:
                    raise
                self.request = request.replace(state=state)
                continue
            # A run keeps its place when the state directory is replaced.
            priority = request.settings.priority
            key = key or queue.claim_place(self._owner(), priority) or new_key(priority)
            try:
                self._acquire_in(queue, key)
                return
            except StateGone:
                queue.close()

    def _owner(self) -> str:
        """Identifies the owner of a kept place: the same command, from the same directory."""
        words = [self.request.cwd, *self.request.command]
        return sha1("\0".join(words).encode("utf-8", "surrogateescape"))[:16]

    def _acquire_in(self, queue: Queue, key: int) -> None:
        request = self.request
        settings = request.settings
        lock = RunLock(queue, settings.slots, request.project, settings.queue)
        ticket = queue.enqueue(request.id, request.command, settings.priority, key)
        self.queue, self.ticket, self.lock = queue, ticket, lock
        try:
            acquired = self._acquire_at_once(queue, ticket, lock)
            while not acquired:
                if not self._wait_turn(queue, ticket, lock):
                    self.release()
                    self.queue = self.ticket = self.lock = None
                    _report_nested()
                    return
                acquired = self._clean_up(lock)
            queue.mark(ticket, running=True)
            self._enter_pool()
        except BaseException as error:
            if getattr(error, "exit_code", 0) == EXIT_GAVE_UP and getattr(error, "keep", True):
                queue.keep_place(ticket, self._owner())
            self.release()
            raise
        messages.decision(f"run {request.id}: acquired slot {lock.slot} of {queue.path}")

    def _acquire_at_once(self, queue: Queue, ticket: Ticket, lock: RunLock) -> bool:
        """Acquire the run lock if that needs no waiting."""
        nearest = queue.ahead(ticket, lock.slots, new=True)
        for other in nearest:
            other.close()
        is_free = len(nearest) < lock.slots and not queue.paused
        return is_free and lock.try_acquire() and self._clean_up(lock)

    def _clean_up(self, lock: RunLock) -> bool:
        """Clean up after the last holder of the run lock, if it was killed.

        False: another process holds the lock now, for processes of that run that cannot be ended.
        """
        if not lock.read_holder():
            return True
        from sandrun.lifecycle import recovery

        return recovery.take_over(lock, self.private_descriptors())

    def _wait_turn(self, queue: Queue, ticket: Ticket, lock: RunLock) -> bool:
        """Wait for the run lock. False: its holder is an enclosing run."""
        from sandrun.queue import nesting

        if nesting.contains_us(queue):
            return False
        queue.publish_queue_file()
        lock.prepare()
        _import_early(self.request.settings)

        def wait(waiter: "Waiter") -> None:
            waiter.wait_turn(queue, ticket, lock, self._be_ready)

        enclosing = nesting.enclosing_runs(self.request.enclosing, queue.path)
        self._wait(queue, ticket, enclosing, [ticket.fd], wait)
        return True

    def _be_ready(self) -> None:
        """Prepare the run before its turn, so that the turn need not wait for that; once."""
        prepare, self._prepare = self._prepare, None
        if prepare:
            self._limit_memory()
            prepare()

    def _limit_memory(self) -> int:
        """Set the effective limits on memory and swap; return the size of the pool, 0: none."""
        settings = self.request.settings
        is_chosen = settings.source["memory"] == "default" or settings.is_user_choice("memory")
        if settings.backend == "none" or (settings.pool == "off" and is_chosen):
            return 0
        if self._pool_size is None:
            from sandrun.queue import memory_pool

            self._pool_size = memory_pool.budget(settings.pool)
            ceiling = self._pool_size or memory_pool.budget("100%")
            memory, swap = memory_pool.effective_limits(settings, ceiling)
            self.request = self.request.replace(settings=settings.with_limits(memory, swap))
        return self._pool_size

    def _enter_pool(self) -> None:
        """Wait until the run's memory limit fits into the pool."""
        total = self._limit_memory()
        while total:
            from sandrun.queue import memory_pool

            request = self.request
            memory = request.settings.memory
            reservation = memory_pool.enqueue(request.id, request.command, memory, total)
            self.reservation = reservation
            if reservation is None:
                return
            try:
                if not reservation.try_enter():
                    self._wait_room(reservation)
                return
            except StateGone:
                reservation.leave()

    def _wait_room(self, reservation: "Reservation") -> None:
        from sandrun.queue import nesting

        def wait(waiter: "Waiter") -> None:
            waiter.wait_room(reservation)

        queue, ticket = reservation.queue, reservation.ticket
        enclosing = nesting.enclosing_runs(self.request.enclosing)
        if nesting.is_charged(queue, enclosing):
            messages.decision("inside a run that has a reservation in the pool: starting at once")
            self._leave_pool()
            return
        self.publish_queue_file()
        # A process that waits for our run also waits for the pool.
        enclosing += f"{os.pathsep if enclosing else ''}{self.request.mark}"
        try:
            private = [*self.private_descriptors(), ticket.fd]
            self._wait(queue, ticket, enclosing, private, wait)
        except nesting.Deadlock as error:
            messages.warn(f"going on without the pool; {error.text}")
            self._leave_pool()

    def _wait(
        self,
        queue: Queue,
        ticket: Ticket,
        enclosing: str,
        private: "list[int]",
        wait: "Callable[[Waiter], None]",
    ) -> None:
        """Wait in `queue`. Announce the `enclosing` runs, so that a deadlock is detected."""
        from sandrun import errors
        from sandrun.queue import nesting
        from sandrun.queue.progress import Progress
        from sandrun.queue.waiter import Waiter
        from sandrun.supervise import command_lookup

        request, name = self.request, self.request.settings.queue
        began = min((ticket.since for ticket in queue.running()), default=0)
        if number := command_lookup.refusal(request.command[0], request.project, began):
            raise Refused(number)
        if request.settings.no_wait:
            raise errors.gave_up("not our turn, and --no-wait", name)
        module_files.hold(module_files.WAITING)
        if enclosing:
            nesting.announce(queue, ticket, enclosing)
        progress = Progress(queue, ticket, name or request.project, name, _describe_unkillable)

        def check() -> None:
            nesting.check_deadlock(queue, ticket, enclosing)

        mask, deadline = request.caller.mask, self._deadline
        try:
            with Waiter(mask, deadline, progress, private, check, _end_orphans) as waiter:
                waiter.waits = self.waits
                wait(waiter)
        finally:
            progress.clear_line()
            if enclosing:
                nesting.withdraw(queue, ticket)


def _import_early(settings: "Settings") -> None:
    """Import what the run will probably need at its turn, so that the turn does not wait for it."""
    backends.import_probable(settings.backend)
    if settings.backend != "none":
        from sandrun.queue import memory_pool
        from sandrun.supervise import keeper

        del memory_pool, keeper


def _report_nested() -> None:
    messages.decision("inside a run of the same queue: starting at once")


def _end_orphans(queue: Queue, line: bytes) -> bool:
    from sandrun.lifecycle import recovery  # only where a run was killed

    return recovery.end_orphans(queue, line)


def _describe_unkillable(pid: int) -> str:
    from sandrun.supervise import report  # only where a process survives SIGKILL

    return f"{report.unkillable(pid)}{report.way_to_end(pid)}"
