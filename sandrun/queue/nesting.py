"""Whether we run inside a run of the same queue, and whether a wait between runs would never end.

The environment says where to look, but it leaks into daemons and terminal multiplexers that
outlive their run, and tools clear it. The proof is a ticket that is locked (the run is alive) AND
that its locker is among our ancestors, or that we are in its cgroup (a daemon of the run). In a pid
and cgroup namespace of our own (a sandbox) neither is visible; there the proof is a descriptor of
the run lock that we inherited: proc(5) lists the lock with the open file that holds it, and with no
other. A sandbox that closes descriptors, or has no /proc, leaves no proof: such a run waits.

A run that waits inside another run is known by a link beside its ticket, `around.<id>`, whose
target names the runs around it (on Windows a file with that text). It is laid before the first
look, so of two runs that close a circle at once at least one sees it. Only a wait inside a run can
close one, so nobody else looks.
"""

import os
import sys

from sandrun.model import SandrunError
from sandrun.platform import processes
from sandrun.queue import Queue, Ticket
from sandrun.queue.state import all_states, pool_path, states_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LINK = "around."


if sys.platform == "win32":
    from sandrun.backends import job_object
    from sandrun.platform.windows_api import calls

    def ticket_holder(queue: Queue, ticket: Ticket) -> int:
        """The process that locked a live ticket: Windows has no pid namespaces."""
        return ticket.pid

    def _inherited_runs(queue: Queue) -> "list[str]":
        """Locks are not inherited."""
        return []

    def _in_container(run_id: str) -> bool:
        """Whether we are in the job of a run."""
        return job_object.contains(run_id, calls.GetCurrentProcess())

else:
    from sandrun.platform import linux_locks

    def ticket_holder(queue: Queue, ticket: Ticket) -> int:
        """The process that locked a live ticket, as a pid of our namespace; 0: it has none here."""
        try:
            file = os.stat(ticket.name, dir_fd=queue.dir, follow_symlinks=False)
        except OSError:
            return 0
        return linux_locks.lock_holder(file, ticket.pid)

    def _inherited_runs(queue: Queue) -> "list[str]":
        """The ids of the runs of `queue` whose run lock we inherited; '' for an unknown id."""
        from sandrun.queue import holder

        ids = []
        for file, line in holder.lines(queue):
            if linux_locks.is_inherited_lock(file):
                found = holder.parse(line)
                ids.append(found.id if found else "")  # on a full disk there is no line
        return ids

    def _in_container(run_id: str) -> bool:
        """Whether we are in the cgroup of a run."""
        try:
            return f"sandrun-{run_id}".encode() in processes.read("/proc/self/cgroup")
        except OSError:
            return False

    def outside_holder(file: os.stat_result) -> "int | None":
        """The process that locked the second lock file of a run lock (0: not visible); None: it is
        a run that encloses us."""
        holder = linux_locks.lock_holder(file)
        encloses = bool(holder and _is_ancestor(holder)) or linux_locks.is_inherited_lock(file)
        return None if encloses else holder


class Deadlock(SandrunError):
    """Runs that wait for each other."""


def is_inside(around: str, state: str) -> bool:
    """Whether a live run of the queue in the state directory `state` contains this process,
    if `around` (the environment) says so."""
    ids = [run_id for path, run_id in _runs(around) if path == state]
    if not ids or not os.path.isdir(state):
        return False
    queue = Queue(state)
    try:
        found = any(t.id in ids and _contains(queue, t) for t in queue.running())
        return found or bool(_inherited_runs(queue))
    finally:
        queue.close()


def contains_us(queue: Queue) -> bool:
    """Whether a live run of `queue` is around us, whatever our environment says.

    An environment that was cleared (`env -i`) must not make a run wait for itself.
    """
    return any(_contains(queue, t) for t in queue.running()) or bool(_inherited_runs(queue))


def _contains(queue: Queue, ticket: Ticket) -> bool:
    # A job is asked first: it is the better proof, and there the ancestors cost more.
    return (
        (sys.platform == "win32" and _in_container(ticket.id))
        or _is_ancestor(ticket_holder(queue, ticket))
        or _in_container(ticket.id)
    )


def enclosing_runs(around: str) -> str:
    """The live runs that contain this process, as `around` has them, whose hints are followed.

    Looks at all queues and the pool, also below the state directories that our ancestors used: the
    environment that named them to us may have been cleared. Costs a millisecond: only for who has
    to wait.
    """
    ours = processes.ancestors(os.getpid())
    found: dict[str, str] = {}
    for path in _states(around, ours):
        try:
            queue = Queue(path)
        except SandrunError:
            continue
        try:
            new = (t for t in queue.running() if t.id not in found)
            ids = [t.id for t in new if ticket_holder(queue, t) in ours or _in_container(t.id)]
            found.update(dict.fromkeys([*ids, *_inherited_runs(queue)], path))
        except OSError:
            continue  # removed meanwhile
        finally:
            queue.close()
    return os.pathsep.join(f"{path}/{run_id}" for run_id, path in found.items())


def _states(around: str, ours: "list[int]") -> "list[str]":
    """The state directories in which a run around us may have its ticket, by the environments of
    our ancestors."""
    roots = _roots(around)
    for pid in ours:
        try:
            told = processes.environ(pid)
        except OSError:  # another user's, or it is gone
            continue
        roots |= {told.get("SANDRUN_STATE_DIR", "")} | _roots(told.get("SANDRUN_RUNS", ""))
    return _all_states(roots)


def _all_states(roots: "set[str]") -> "list[str]":
    """The state directories of all queues and pools of ours, also of those below `roots`."""
    pool = pool_path()
    found = {*all_states(), pool}
    for root in roots - {""}:
        found.update(states_below(root), [os.path.join(root, os.path.basename(pool))])
    return sorted(path for path in found if os.path.isdir(path))


def _roots(around: str) -> "set[str]":
    return {os.path.dirname(path) for path, _ in _runs(around)}


def _is_ancestor(pid: int) -> bool:
    """Whether the live process `pid` is one of our ancestors."""
    return pid in processes.ancestors(os.getpid())


def _runs(around: str) -> "Iterator[tuple[str, str]]":
    for entry in around.split(os.pathsep):
        path, _, run_id = entry.rpartition("/")
        if path:
            yield path, run_id


def is_charged(pool: Queue, around: str) -> bool:
    """Whether one of the runs `around` has its share of the pool, to which we are charged then."""
    ids = {run_id for _, run_id in _runs(around)}
    return any(ticket.id in ids for ticket in pool.running())


def announce(queue: Queue, ticket: Ticket, around: str) -> None:
    """Tell others in which runs this waiter is; else a circle is not seen from the other side."""
    queue.write_note(_LINK + ticket.id, around)


def withdraw(queue: Queue, ticket: Ticket) -> None:
    """We wait no more."""
    queue.remove(_LINK + ticket.id)


class _Waiter:
    """A live waiting ticket that is inside other runs."""

    def __init__(self, queue: "_Seen", ticket: Ticket, around: str) -> None:
        self.queue = queue
        self.ticket = ticket
        self.around = {run_id for _, run_id in _runs(around)}


class _Seen:
    """What is in one queue at this instant."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.running: list[Ticket] = []
        self.waiters: list[_Waiter] = []
        if not os.path.isdir(path):
            return
        queue = Queue(path)
        try:
            tickets = queue.tickets()
            self.running = [t for t in tickets if t.running]
            for ticket in tickets:
                around = "" if ticket.running else queue.read_note(_LINK + ticket.id)
                if around:
                    self.waiters.append(_Waiter(self, ticket, around))
        finally:
            queue.close()


def check_deadlock(queue: Queue, ticket: Ticket, around: str) -> None:
    """Raise Deadlock when the turn of `ticket` waits for a run that waits for us.

    With several slots a wait never ends only if all who run wait for us.
    """
    mine = {run_id for _, run_id in _runs(around)}
    if not mine:
        return
    seen = list(_look(around))
    here = next((s for s in seen if s.path == queue.path), None)
    if here is None or not here.running:
        return
    others = [_waits_for(run.id, mine, seen, set()) for run in here.running]
    first = others[0]
    if first is None or None in others:
        return
    around_us = [run for s in seen for run in s.running if run.id in mine]
    outer = next((run for run in around_us if run in first.queue.running), None)
    raise Deadlock(
        f"deadlock: {_name(ticket)} inside {_name(outer)} waits in {queue.path} for "
        f"{_name(here.running[0])}, inside which {_name(first.ticket)} waits in "
        f"{first.queue.path} for it",
        "take the queues in one order everywhere, or end one of them: sandrun kill ID",
    )


def _look(around: str) -> "Iterator[_Seen]":
    for path in _all_states(_roots(around)):
        try:
            yield _Seen(path)
        except (SandrunError, OSError):
            continue


def _waits_for(
    run_id: str, mine: "set[str]", seen: "list[_Seen]", visited: "set[str]"
) -> "_Waiter | None":
    """The waiter, inside the run `run_id` or further on, that waits for one of the runs `mine`."""
    if run_id in visited:
        return None
    visited.add(run_id)
    for waiter in (w for s in seen for w in s.waiters if run_id in w.around):
        running = [run.id for run in waiter.queue.running]
        if running and all(
            run in mine or _waits_for(run, mine, seen, visited) is not None for run in running
        ):
            return waiter
    return None


def _name(ticket: "Ticket | None") -> str:
    return f"`{ticket.command}` (run {ticket.id}, pid {ticket.pid})" if ticket else "a run"
