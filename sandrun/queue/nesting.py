"""Runs inside runs: whether a run encloses this process, and whether runs wait for each other.

The environment names the enclosing runs, but it leaks into daemons and terminal multiplexers that
outlive their run, and tools clear it. So it is only a hint. The proof is a ticket that is locked
(so its run is alive) if the process that locked it is our ancestor, or if we are in the run's
cgroup (as a daemon of the run is). In a pid and cgroup namespace of our own (a sandbox) neither is
visible. There the proof is an inherited open file of the run lock: /proc/PID/fdinfo lists a lock
only for the open file that holds it (proc(5)). A sandbox that closes descriptors, or has no /proc,
leaves no proof: such a run waits.

A run that waits inside another run has a note beside its ticket, `around.<id>`, which names its
enclosing runs. It is written before the run first reads the queues. So if two runs complete a
deadlock at the same time, at least one of them sees it. Only a wait inside a run can complete one,
so other runs do not check.
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

_NOTE = "around."


if sys.platform == "win32":
    from sandrun.backends import job_object
    from sandrun.platform.windows_api import calls

    def ticket_holder(queue: Queue, ticket: Ticket) -> int:
        """The process that locked a live ticket. Windows has no pid namespaces."""
        return ticket.pid

    def _inherited_runs(queue: Queue, running: "list[Ticket]") -> "list[str]":
        """No ids: on Windows, locks are not inherited."""
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

    def _inherited_runs(queue: Queue, running: "list[Ticket]") -> "list[str]":
        """The ids of the runs of `queue`, which are `running`, whose run lock we inherited; '' for
        an unknown id."""
        from sandrun.queue import holder

        ids = []
        for file, line in holder.lines(queue):
            if linux_locks.is_inherited_lock(file, [ticket.pid for ticket in running]):
                found = holder.parse(line)
                ids.append(found.id if found else "")  # on a full disk there is no line
        return ids

    def _in_container(run_id: str) -> bool:
        """Whether we are in the cgroup of a run, or in its slice of systemd (`systemd_slice`)."""
        try:
            group = processes.read("/proc/self/cgroup")
        except OSError:
            return False
        return any(f"sandrun{mark}{run_id}".encode() in group for mark in "-_")

    def outside_holder(file: os.stat_result) -> "int | None":
        """The process that locked the second lock file of a run lock (0: it is not visible); None:
        a run that encloses us holds that lock."""
        holder = linux_locks.lock_holder(file)
        encloses = bool(holder and _is_ancestor(holder)) or linux_locks.is_inherited_lock(file)
        return None if encloses else holder


class Deadlock(SandrunError):
    """Runs that wait for each other."""


def is_inside(enclosing: str, state: str) -> bool:
    """Whether a live run of the queue in the state directory `state` encloses this process, if the
    environment names it in `enclosing`."""
    ids = [run_id for path, run_id in _runs(enclosing) if path == state]
    if not ids or not os.path.isdir(state):
        return False
    queue = Queue(state)
    try:
        running = queue.running()
        found = any(t.id in ids and _encloses(queue, t) for t in running)
        return found or bool(_inherited_runs(queue, running))
    finally:
        queue.close()


def contains_us(queue: Queue) -> bool:
    """Whether a live run of `queue` encloses this process, whatever the environment names.

    Without this, a run whose command cleared the environment (`env -i`) would wait for itself.
    """
    running = queue.running()
    return any(_encloses(queue, t) for t in running) or bool(_inherited_runs(queue, running))


def _encloses(queue: Queue, ticket: Ticket) -> bool:
    # On Windows the job is asked first: it is the better proof, and ancestors are slower.
    return (
        (sys.platform == "win32" and _in_container(ticket.id))
        or _is_ancestor(ticket_holder(queue, ticket))
        or _in_container(ticket.id)
    )


def _is_ancestor(pid: int) -> bool:
    return pid in processes.ancestors(os.getpid())


def enclosing_runs(enclosing: str, examined: str = "") -> str:
    """The live runs that enclose this process, in the form of the hint `enclosing`; without those
    of the queue in the directory `examined`, for which `contains_us` was False.

    Searches all queues and the pool, also in the state directories that our ancestors used, because
    the environment that named them may have been cleared. Takes a millisecond, so only runs that
    have to wait call it.
    """
    ancestors = processes.ancestors(os.getpid())
    found: dict[str, str] = {}
    for path in _states(enclosing, ancestors):
        if path == examined:
            continue
        try:
            queue = Queue(path)
        except SandrunError:
            continue
        try:
            running = queue.running()
            new = (t for t in running if t.id not in found)
            ids = [t.id for t in new if ticket_holder(queue, t) in ancestors or _in_container(t.id)]
            found.update(dict.fromkeys([*ids, *_inherited_runs(queue, running)], path))
        except OSError:
            continue  # removed meanwhile
        finally:
            queue.close()
    return os.pathsep.join(f"{path}/{run_id}" for run_id, path in found.items())


def _states(enclosing: str, ancestors: "list[int]") -> "list[str]":
    """The state directories in which an enclosing run may have its ticket, by the environments of
    our ancestors."""
    roots = _roots(enclosing)
    for pid in ancestors:
        try:
            env = processes.environ(pid)
        except OSError:  # it is another user's, or has exited
            continue
        roots |= {env.get("SANDRUN_STATE_DIR", "")} | _roots(env.get("SANDRUN_RUNS", ""))
    return _all_states(roots)


def _all_states(roots: "set[str]") -> "list[str]":
    """The state directories of all our queues and pools, also of those below `roots`."""
    pool = pool_path()
    found = {*all_states(), pool}
    for root in roots - {""}:
        found.update(states_below(root), [os.path.join(root, os.path.basename(pool))])
    return sorted(path for path in found if os.path.isdir(path))


def _roots(enclosing: str) -> "set[str]":
    return {os.path.dirname(path) for path, _ in _runs(enclosing)}


def _runs(enclosing: str) -> "Iterator[tuple[str, str]]":
    """The state directory and the id of each run in `enclosing`."""
    for entry in enclosing.split(os.pathsep):
        path, _, run_id = entry.rpartition("/")
        if path:
            yield path, run_id


def is_charged(pool: Queue, enclosing: str) -> bool:
    """Whether one of the runs `enclosing` has a reservation in the pool, to which our memory is
    charged."""
    ids = {run_id for _, run_id in _runs(enclosing)}
    return any(ticket.id in ids for ticket in pool.running())


def announce(queue: Queue, ticket: Ticket, enclosing: str) -> None:
    """Publish which runs enclose this waiter, so that others can see a deadlock."""
    queue.write_note(_NOTE + ticket.id, enclosing)


def withdraw(queue: Queue, ticket: Ticket) -> None:
    """Remove what `announce` published."""
    queue.remove(_NOTE + ticket.id)


class _NestedWaiter:
    """A live waiting ticket that other runs enclose."""

    def __init__(self, queue: "_Snapshot", ticket: Ticket, enclosing: str) -> None:
        self.queue = queue
        self.ticket = ticket
        self.enclosing = {run_id for _, run_id in _runs(enclosing)}


class _Snapshot:
    """The live tickets of one queue at one point in time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.running: list[Ticket] = []
        self.waiters: list[_NestedWaiter] = []
        if not os.path.isdir(path):
            return
        queue = Queue(path)
        try:
            tickets = queue.tickets()
            self.running = [t for t in tickets if t.running]
            for ticket in tickets:
                enclosing = "" if ticket.running else queue.read_note(_NOTE + ticket.id)
                if enclosing:
                    self.waiters.append(_NestedWaiter(self, ticket, enclosing))
        finally:
            queue.close()

    def running_ids(self) -> "list[str]":
        """The ids of the runs that hold a slot."""
        return [run.id for run in self.running]


def check_deadlock(queue: Queue, ticket: Ticket, enclosing: str) -> None:
    """Raise Deadlock if `ticket` waits for a run that waits for one of our enclosing runs
    `enclosing`.

    With several slots, there is a deadlock only if every run that holds a slot waits like that. If
    one of them is in a deadlock without us, the runs in that one detect it.
    """
    ours = {run_id for _, run_id in _runs(enclosing)}
    if not ours:
        return
    snapshots = list(_snapshots(enclosing))
    here = next((s for s in snapshots if s.path == queue.path), None)
    if here is None or not here.running:
        return
    stuck = _stuck_waiters(ours, snapshots)
    waiters = [_waiter_inside(run.id, ours, stuck, set()) for run in here.running]
    first = waiters[0]
    if first is None or None in waiters:
        return
    runs = [run for s in snapshots for run in s.running if run.id in ours]
    awaited = next((run for run in runs if run in first.queue.running), None)
    raise Deadlock(
        f"deadlock: {_name(ticket)} inside {_name(awaited)} waits in {queue.path} for "
        f"{_name(here.running[0])}, inside which {_name(first.ticket)} waits in "
        f"{first.queue.path} for it",
        "use the queues in the same order everywhere, or end one of them: sandrun kill ID",
    )


def _snapshots(enclosing: str) -> "Iterator[_Snapshot]":
    for path in _all_states(_roots(enclosing)):
        try:
            yield _Snapshot(path)
        except (SandrunError, OSError):
            continue


def _stuck_waiters(ours: "set[str]", snapshots: "list[_Snapshot]") -> "list[_NestedWaiter]":
    """The waiters that get no turn while the runs `ours` do not end: every run that holds a slot is
    one of these or encloses another such waiter."""
    stuck = [waiter for snapshot in snapshots for waiter in snapshot.waiters]
    while True:
        blocked = ours.union(*(waiter.enclosing for waiter in stuck))
        found = [w for w in stuck if w.queue.running and blocked.issuperset(w.queue.running_ids())]
        if len(found) == len(stuck):
            return found
        stuck = found


def _waiter_inside(
    run_id: str, ours: "set[str]", stuck: "list[_NestedWaiter]", visited: "set[str]"
) -> "_NestedWaiter | None":
    """The waiter of `stuck` inside the run `run_id` that waits for one of the runs `ours`, directly
    or indirectly."""
    visited.add(run_id)
    for waiter in (w for w in stuck if run_id in w.enclosing):
        for run in waiter.queue.running_ids():
            if run in ours:
                return waiter
            if run not in visited and _waiter_inside(run, ours, stuck, visited):
                return waiter
    return None


def _name(ticket: "Ticket | None") -> str:
    return f"`{ticket.command}` (run {ticket.id}, pid {ticket.pid})" if ticket else "a run"
