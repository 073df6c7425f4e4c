"""The one path of a run; every entry point comes through `run`.

    settings -> project -> ticket in queue -> (head) run lock -> git guard
             -> backend opens container -> child enters it, then exec -> supervise
             -> outcome -> kill what is left -> close container -> record -> release

Only this module knows both queues and backends. A run inside a run of the same queue takes no
ticket: it starts at once, in a container inside the outer one (`sandrun.nesting`).
"""

import os
import time

from sandrun import backends, history, messages, spawn
from sandrun import project as projects
from sandrun.keeper import Keeper
from sandrun.model import Limits, Outcome
from sandrun.queue import Queue, RunLock, StateGone, Ticket
from sandrun.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.protocol import Backend, Container
    from sandrun.settings import Settings

RUNS_VARIABLE = "SANDRUN_RUNS"
"""In the command's environment: `<state directory>/<run id>` of each run around it, outermost
first, separated by colons. A hint for finding them, never a proof."""


class Place:
    """A run's place: its queue, ticket and run lock; nothing of them for a nested run."""

    __slots__ = ("lock", "queue", "ticket")

    def __init__(
        self,
        queue: "Queue | None" = None,
        ticket: "Ticket | None" = None,
        lock: "RunLock | None" = None,
    ) -> None:
        self.queue = queue
        self.ticket = ticket
        self.lock = lock

    def descriptors(self) -> "list[int]":
        """What only the supervisor may hold open: the ticket is alive while it is locked."""
        return [self.ticket.fd] if self.ticket else []

    def release(self) -> None:
        """Free the run lock, then the ticket (which wakes the next); in that order, so that
        the one who wakes finds the lock free."""
        if self.lock:
            self.lock.release()
        if self.queue and self.ticket:
            self.queue.leave(self.ticket)


def run(
    command: "list[str]", settings: "Settings", project: str, heritage: spawn.Heritage
) -> Outcome:
    """Run `command` through the queue of `project`, contained; how it ended.

    Raises SandrunError when sandrun fails before the command was started, and waiting.Left when
    a signal told the waiter to go.
    """
    run_id = os.urandom(4).hex()
    began = time.time()
    state = projects.state_path(project, settings.queue)
    place = _take_place(state, run_id, command, settings, heritage)
    since = time.time()
    outcome = Outcome("failed", 125)
    record: dict[str, object] = {
        "id": run_id,
        "pid": os.getpid(),
        "project": settings.queue or project,
        "cwd": projects.working_directory(),
        "command": command,
        "since": since,
        "wait": since - began,
        "limit": settings.memory,
    }
    try:
        if settings.git_wait:
            _guard_git(project, settings.git_wait)
        outcome = _contained(command, settings, state, place, heritage, record)
    finally:
        _record(record, outcome, since, state)
        place.release()
        if place.queue:
            place.queue.write_view()
    return outcome


def _take_place(
    state: str,
    run_id: str,
    command: "list[str]",
    settings: "Settings",
    heritage: spawn.Heritage,
) -> Place:
    """Queue up and return when the run may start."""
    around = os.environ.get(RUNS_VARIABLE)
    if around:
        from sandrun import nesting

        if nesting.is_inside(around, state):
            messages.decision("inside a run of the same queue: starting at once")
            return Place()
    while True:
        queue = Queue(state)
        try:
            return _wait_in(queue, run_id, command, settings, heritage)
        except StateGone:
            os.close(queue.dir)


def _wait_in(
    queue: Queue,
    run_id: str,
    command: "list[str]",
    settings: "Settings",
    heritage: spawn.Heritage,
) -> Place:
    lock = RunLock(queue)
    ticket = queue.enqueue(run_id, command)
    try:
        ahead = queue.ahead(ticket)
        if ahead or not lock.try_take():
            if ahead:
                os.close(ahead.fd)
            queue.write_view()
            from sandrun import waiting

            waiting.wait_turn(queue, ticket, lock, heritage.mask, settings.wait_timeout)
    except BaseException:
        queue.leave(ticket)
        queue.write_view()
        raise
    queue.mark_running(ticket)
    queue.write_view()
    if lock.read_holder():
        from sandrun import recovery

        recovery.take_over(lock)
    messages.decision(f"run {run_id}: the run lock {queue.path}/executor.lock is ours")
    return Place(queue, ticket, lock)


def _guard_git(project: str, patience: float) -> None:
    if os.path.lexists(os.path.join(project, ".git", "index.lock")):
        from sandrun import gitguard

        gitguard.wait_quiet(project, patience)


def _contained(
    command: "list[str]",
    settings: "Settings",
    state: str,
    place: Place,
    heritage: spawn.Heritage,
    record: "dict[str, object]",
) -> Outcome:
    """Run the command in a container, from opening to closing it."""
    run_id = str(record["id"])
    limits = Limits(settings.memory, settings.check_interval)
    backend, container, refused = backends.choose(settings.backend, run_id, limits)
    messages.decision(
        f"backend {backend.name}" + (f" (not {'; not '.join(refused)})" if refused else "")
    )
    record["backend"] = backend.name
    line = history.encode({**record, "container": container.token, "state": state}).encode()
    if place.lock:
        place.lock.write_holder(line)
    keeper = None
    try:
        if container.token:
            keeper = Keeper(container, place.descriptors(), place.lock, line)
        outcome = _supervised(
            command, settings, f"{state}/{run_id}", place, heritage, backend, container
        )
        if outcome.reason not in ("exit", "signal") or outcome.leftovers:
            from sandrun import report

            report.end(outcome, settings, backend)
    finally:
        container.close()
        if keeper:
            keeper.dismiss()
            keeper.reap()
    return outcome


def _supervised(
    command: "list[str]",
    settings: "Settings",
    mark: str,
    place: Place,
    heritage: spawn.Heritage,
    backend: "Backend",
    container: "Container",
) -> Outcome:
    around = os.environ.get(RUNS_VARIABLE)
    env = spawn.environment({RUNS_VARIABLE: f"{around}:{mark}" if around else mark})
    if place.lock:
        # Not in the keeper's way: it was forked before and has the same open file.
        os.set_inheritable(place.lock.fd, True)
    try:
        child = container.spawn(command, env, heritage)
    except OSError as error:
        from sandrun import report

        return report.not_started("X", error.errno or 0, command[0])
    outcome = Supervisor(child, container, settings, backend.kernel).run()
    stage, number = spawn.failure(heritage)
    if stage:
        from sandrun import report

        return report.not_started(stage, number, command[0])
    return outcome


def _record(record: "dict[str, object]", outcome: Outcome, since: float, state: str) -> None:
    record["wall"] = time.time() - since
    record["exit"] = outcome.code
    record["reason"] = outcome.reason
    record["peak"] = outcome.usage.peak
    times = os.times()
    record["cpu"] = times.children_user + times.children_system
    try:
        history.append(record, state)
    except OSError as error:
        messages.decision(f"cannot record the run: {error}")
