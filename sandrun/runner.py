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
from sandrun import settings as settled
from sandrun.keeper import Keeper
from sandrun.model import Outcome
from sandrun.queue import Queue, RunLock, StateGone, Ticket
from sandrun.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.protocol import Backend, Container
    from sandrun.settings import Settings

RUNS_VARIABLE = "SANDRUN_RUNS"
"""In the command's environment: `<state directory>/<run id>` of each run around it, outermost
first, separated by colons. A hint for finding them, never a proof."""


class Run:
    """One run: what was asked, its place in the queue, and the record that it will leave."""

    def __init__(
        self, command: "list[str]", settings: "Settings", project: str, heritage: spawn.Heritage
    ) -> None:
        self.id = os.urandom(4).hex()
        self.command = command
        self.settings = settings
        self.project = project
        self.heritage = heritage
        self.state = projects.state_path(project, settings.queue)
        self.around = os.environ.get(RUNS_VARIABLE, "")
        self.place = Place()
        self.keeper: Keeper | None = None
        self.record: dict[str, object] = {
            "id": self.id,
            "pid": os.getpid(),
            "project": settings.queue or project,
            "cwd": projects.working_directory(),
            "command": command,
            "limit": settings.memory,
        }

    def environment(self) -> "dict[str, str]":
        """The command's environment: the caller's, and the mark of this run."""
        mark = f"{self.state}/{self.id}"
        return spawn.environment({RUNS_VARIABLE: f"{self.around}:{mark}" if self.around else mark})


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
    this = Run(command, settings, project, heritage)
    began = time.time()
    this.place = _take_place(this)
    this.record["since"] = since = time.time()
    this.record["wait"] = since - began
    outcome = Outcome("failed", 125)
    try:
        if settings.git_wait:
            _guard_git(project, settings.git_wait)
        outcome = _contained(this)
    finally:
        _record(this, outcome, time.time() - since)
        this.place.release()
        if this.place.queue:
            this.place.queue.write_view()
        if this.keeper:
            this.keeper.reap()
    return outcome


def _take_place(this: Run) -> Place:
    """Queue up and return when the run may start."""
    if this.around:
        from sandrun import nesting

        if nesting.is_inside(this.around, this.state):
            messages.decision("inside a run of the same queue: starting at once")
            return Place()
    while True:
        queue = Queue(this.state)
        try:
            return _wait_in(queue, this)
        except StateGone:
            os.close(queue.dir)


def _wait_in(queue: Queue, this: Run) -> Place:
    lock = RunLock(queue)
    ticket = queue.enqueue(this.id, this.command)
    try:
        ahead = queue.ahead(ticket)
        if ahead or not lock.try_take():
            if ahead:
                os.close(ahead.fd)
            queue.write_view()
            from sandrun import waiting

            waiting.wait_turn(queue, ticket, lock, this.heritage.mask, this.settings.wait_timeout)
    except BaseException:
        queue.leave(ticket)
        queue.write_view()
        raise
    queue.mark_running(ticket)
    queue.write_view()
    if lock.read_holder():
        from sandrun import recovery

        recovery.take_over(lock)
    messages.decision(f"run {this.id}: the run lock {queue.path}/executor.lock is ours")
    return Place(queue, ticket, lock)


def _guard_git(project: str, patience: float) -> None:
    if os.path.lexists(os.path.join(project, ".git", "index.lock")):
        from sandrun import gitguard

        gitguard.wait_quiet(project, patience)


def _contained(this: Run) -> Outcome:
    """Run the command in a container, from opening to closing it."""
    settings, place = this.settings, this.place
    backend, container, refused = backends.choose(
        settings.backend,
        this.id,
        settled.limits(settings, this.project),
        settings.require == "kernel",
    )
    messages.decision(
        f"backend {backend.name}" + (f" (not {'; not '.join(refused)})" if refused else "")
    )
    this.record["backend"] = backend.name
    more = {**this.record, "container": container.token, "state": this.state}
    line = history.encode(more).encode()
    if place.lock:
        place.lock.write_holder(line)
    keeper = None
    try:
        if container.token:
            keeper = Keeper(container, place.descriptors(), place.lock, line)
        outcome = _supervised(this, backend, container, keeper)
        if outcome.reason not in ("exit", "signal") or outcome.leftovers:
            from sandrun import report

            report.end(outcome, settings, backend)
    except BaseException:
        container.kill()
        raise
    finally:
        container.close()
        if keeper:
            keeper.dismiss()
            this.keeper = keeper
    return outcome


def _supervised(
    this: Run, backend: "Backend", container: "Container", keeper: "Keeper | None"
) -> Outcome:
    if this.place.lock:
        # After the keeper was forked, which has the same open file anyway.
        os.set_inheritable(this.place.lock.fd, True)
    stage, number = "", 0
    try:
        child = container.spawn(this.command, this.environment(), this.heritage)
    except OSError as error:
        stage, number = "X", error.errno or 0
    else:
        outcome = Supervisor(child, container, this.settings, backend.kernel, keeper).run()
        stage, number = spawn.failure(this.heritage)
    if stage:
        from sandrun import report

        return report.not_started(stage, number, this.command[0])
    return outcome


def _record(this: Run, outcome: Outcome, wall: float) -> None:
    times = os.times()
    this.record["wall"] = wall
    this.record["exit"] = outcome.code
    this.record["reason"] = outcome.reason
    this.record["peak"] = outcome.usage.peak
    cpu = outcome.usage.cpu
    this.record["cpu"] = times.children_user + times.children_system if cpu is None else cpu
    try:
        history.append(this.record, this.state)
    except OSError as error:
        messages.decision(f"cannot record the run: {error}")
