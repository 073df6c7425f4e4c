"""The fallback where no kernel container is available: a polling monitor.

It promises less than the other backends, and reports that: a tree may exceed the limit between two
samples (`sandrun.backends.memory_monitor`). No rlimit bounds its memory, because rlimits count
reserved memory, and sanitizers, JVMs, browsers and thread stacks reserve many times what they use.
RLIMIT_NPROC only keeps a plain user's fork bomb from exhausting the pids of the host (root has no
such limit).

The run's processes are the descendants of the supervisor, which becomes a subreaper. After the
supervisor has died they are the processes with the run's mark, and their descendants. The mark is
the run's entry in SANDRUN_RUNS, or an RLIMIT_DATA larger than any address space, whose low bytes
are derived from the run's id. A daemon that clears its environment and closes all descriptors keeps
that rlimit, and any user may read it.

Proof before a kill: the process is our descendant, or it was when it was sampled and is still the
same process (by its start time); a pidfd refers to it while it is signalled. The mark must be a
complete entry of SANDRUN_RUNS, or exactly the RLIMIT_DATA derived from the run's id.
"""

import os
import resource
import sys
import time

from sandrun import messages
from sandrun.backends import memory_monitor, sampler
from sandrun.model import DARWIN, TOO_LARGE_TO_SIGNAL, Limits, Process, Unusable, Usage
from sandrun.platform import processes, spawn

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.model import Escape
    from sandrun.types import BackendName, LimitHit

KILL_SECONDS = 5.0
"""Seconds without progress after which a tree is considered unkillable."""
_REFUSED_SECONDS = 1.0
"""Seconds after which we give up if we may signal none of the remaining processes."""
_CHASE_SECONDS = 60.0
"""Seconds of a kill during which new processes count as progress."""
_NEAR = 0.8
"""The fraction of an rlimit from which on a failure may be due to it."""
_LARGEST = 3
"""Processes whose data size is read per sample."""
_MARK_BYTES = 1 << 24
"""The mark is the RLIMIT_DATA modulo this."""
_ADDRESSES = 1 << 56
"""No address space is larger (Documentation/arch/x86/x86_64/5level-paging.rst)."""
_LOWEST = 1 << 30
"""With an RLIMIT_DATA of the user below this, no mark is set."""
_NEWBORN_SECONDS = 0.05
"""If no process of the run is found for so many seconds, the run is over."""
_UNSUPPORTED = frozenset(
    ("cpus", "cpu_weight", "pids", "io_weight", "swap")
    + ("io_read_bps", "io_write_bps", "io_read_iops", "io_write_iops")
)
"""Settings that neither an rlimit nor the monitor can enforce. (RLIMIT_NPROC counts all tasks of
the user, so it is set to the number of tasks on the host plus the run's limit. Swapped memory
counts as memory.)"""


class RlimitContainer:
    """See `sandrun.backends.protocol.Container`. `limits` is None in an attached container. `data`
    is the RLIMIT_DATA that marks the run's processes; 0: no mark. No process can leave, so
    `escaped` is empty."""

    def __init__(self, run_id: str, limits: "Limits | None" = None, data: int = 0) -> None:
        self.run_id = run_id
        self.limits = limits
        self.data = data
        self.token = f"{run_id}:{data}"
        self.helpers: set[int] = set()
        self.mark = ""
        self.events = (-1, 0)
        self.limit_hit: LimitHit = ""
        self.oom_events = 0
        self.escaped: dict[int, Escape] = {}
        self.starts: dict[int, int] = {}
        """The start times of the processes last seen, by pid."""
        self.is_over = False
        """Whether the last call of `live_pids` found no process of the run."""
        self.tasks = self.most_tasks = 0
        """The number of processes and threads in the last sample, and the highest number."""
        self.near: dict[str, tuple[int, int]] = {}
        """The highest usage near an rlimit, and that limit, by kind."""
        self.owner = os.getpid() if limits else 0
        self.earlier_children: dict[int, int] = {}
        self.host_tasks = processes.thread_count()
        self.data_limit_before = resource.getrlimit(resource.RLIMIT_DATA)
        self.task_limit_before = resource.getrlimit(resource.RLIMIT_NPROC)
        self.monitor = memory_monitor.Monitor(
            limits.memory if limits else 0, limits.check_interval if limits else 1.0
        )
        self.sampler = sampler.Sampler(limits.memory if limits else 0)

    def spawn(self, argv: "list[str]", env: "Mapping[str, str]", caller: spawn.CallerState) -> int:
        if not processes.become_subreaper():
            messages.decision("no subreaper here: a daemon of the command may escape")
        # Children of the program that became sandrun by exec do not belong to the run.
        self.earlier_children = {
            pid: info.start for pid, info in memory_monitor.walk(self.owner).items()
        }
        child = spawn.direct(argv, env, caller, self._enter, self._leave)
        self.monitor.known_pids.add(child)
        return child

    def _enter(self) -> None:
        # Soft limits only, so that ours can be restored after the spawn.
        soft, hard = self.task_limit_before
        most = self.host_tasks + self.limits.pids if self.limits and self.host_tasks else soft
        if soft == resource.RLIM_INFINITY or most < soft:
            resource.setrlimit(resource.RLIMIT_NPROC, (most, hard))
        if self.data:
            resource.setrlimit(resource.RLIMIT_DATA, (self.data, self.data_limit_before[1]))

    def _leave(self) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, self.data_limit_before)
        resource.setrlimit(resource.RLIMIT_NPROC, self.task_limit_before)

    def poll(self) -> "float | None":
        now = time.monotonic()
        if self.monitor.is_due(now):
            self._measure(now)
        return self.monitor.due(now)

    def _measure(self, now: float) -> "dict[int, processes.Stat]":
        """Measure the tree, and note whether it exceeds its memory limit. Returns its processes."""
        assert self.limits
        members = self._members()
        current = self.monitor.sample(members, now)
        seen = self.sampler.sample(current, lambda: self.monitor.largest(2 * sampler.TOP))
        self.sampler.keep(seen, bool(self.limit_hit))
        if current > self.limits.memory:
            self.limit_hit = "own"
            self.oom_events += 1
        self.tasks = sum(info.threads for info in members.values())
        self.most_tasks = max(self.most_tasks, self.tasks)
        self._record_near_limits(members)
        return members

    @property
    def current(self) -> "int | None":
        return self.monitor.current

    def sample(self) -> Usage:
        members = self._measure(time.monotonic())
        usage, times = self.usage(), os.times()
        usage.tasks = self.tasks
        live = sum(info.cpu for info in members.values())
        usage.cpu = times.children_user + times.children_system + live
        return usage

    def counters(self) -> "dict[str, int]":
        return {}

    def _members(self) -> "dict[int, processes.Stat]":
        """The live processes of the run, parents before children."""
        members = memory_monitor.walk(self.owner, self.earlier_children)
        return {pid: info for pid, info in members.items() if pid not in self.helpers}

    def _is_outsider(self, pid: int) -> bool:
        """Whether our child `pid` does not belong to the run."""
        if pid in self.earlier_children:
            return self.earlier_children[pid] == processes.start(pid)
        return pid in self.helpers

    def _record_near_limits(self, members: "dict[int, processes.Stat]") -> None:
        """Record usage near an rlimit: the kernel does not report when a process hits one."""
        assert self.limits
        if self.limits.pids > 0 and os.geteuid():  # root has no such limit
            self._record_near("tasks", self.tasks, self.limits.pids)
        if not DARWIN and 0 < self.data < _ADDRESSES:
            for pid in sorted(members, key=lambda pid: -members[pid].size)[:_LARGEST]:
                self._record_near("data", processes.data_size(pid), self.data)

    def _record_near(self, kind: str, had: int, most: int) -> None:
        if had > most * _NEAR and had > self.near.get(kind, (0, 0))[0]:
            self.near[kind] = had, most

    def usage(self) -> Usage:
        usage = Usage(self.monitor.current, self.monitor.peak, sampled=True)
        usage.near_limits = self.near
        usage.most_tasks = self.most_tasks or None
        if self.is_over:
            usage.shm_creators = self.monitor.known_pids
            usage.shared = memory_monitor.segments(self.monitor.known_pids)
        return usage

    def top_consumers(self) -> "list[Process]":
        return self.sampler.top_consumers()

    def live_pids(self) -> "list[int]":
        # A chain of forks and exits can outrun a walk. But orphans become our own children. So if
        # all our children are dead, and the same before and after they were read, no process of the
        # run lives. (No child is reaped meanwhile.)
        while True:
            if os.getpid() != self.owner:
                return self._marked_pids()
            found = self._members()
            self.starts = {pid: info.start for pid, info in found.items()}
            if found:
                return list(found)
            children = processes.children(self.owner)
            # /proc may hide another user's processes (hidepid, proc(5)).
            living = (pid for pid in children if not processes.has_exited(pid))
            hidden = [pid for pid in living if not processes.start(pid)]
            if hidden:
                self.starts = dict.fromkeys(hidden, 0)
                return hidden
            dead = all(self._is_outsider(pid) or processes.has_exited(pid) for pid in children)
            if dead and processes.children(self.owner) == children:
                self.is_over = True
                return []

    def is_too_large_to_signal(self) -> bool:
        # Cheap check first: the tasks that the host has gained since the start.
        many = processes.thread_count() - self.host_tasks > TOO_LARGE_TO_SIGNAL
        return many and memory_monitor.has_more_descendants(self.owner, TOO_LARGE_TO_SIGNAL)

    def _marked_pids(self) -> "list[int]":
        limit = f"Max data size {self.data} " if self.data else ""
        found = processes.marked_processes(self.mark, limit)
        # In a chain of forks a process may start after the scan has passed its pid.
        found = found or processes.wait_for_marked_process(self.mark, limit, _NEWBORN_SECONDS)
        # A scan takes long enough for a pid to be reused.
        before = {pid: processes.start(pid) for pid in found}
        still = processes.marked_processes(self.mark, limit, found) if found else []
        roots = [pid for pid in still if processes.start(pid) == before[pid]]
        below = memory_monitor.tree(roots, {os.getpid(): processes.start(os.getpid())})
        self.starts = {pid: info.start for pid, info in below.items()}
        return list(below)

    def _kill_children(self) -> None:
        """SIGKILL our children without examining them; their orphans become our children in turn.
        That ends most of a fork bomb at a tenth of the cost of a walk."""
        before: list[int] = []
        while (found := processes.children(self.owner)) != before:
            for pid in found:
                if not self._is_outsider(pid):
                    processes.kill_process(pid, -1)  # an unreaped child: its pid is not reused
            before = found
            time.sleep(0.001)  # the scheduler prefers a process that has slept

    def kill(self) -> None:
        if os.getpid() == self.owner and self.is_too_large_to_signal():
            self._kill_children()
        began = time.monotonic()
        deadline = began + KILL_SECONDS
        before: list[int] = []
        while pids := self.live_pids():
            refused = [
                pid for pid in reversed(pids) if not processes.kill_if_same(pid, self.starts[pid])
            ]
            if refused == pids[::-1]:  # we may signal none of them
                deadline = min(deadline, time.monotonic() + _REFUSED_SECONDS)
            if time.monotonic() > deadline:
                raise TimeoutError(pids)
            if set(pids) <= set(before):  # otherwise they fork: do not wait
                time.sleep(0.002)
            if pids != before and refused != pids[::-1]:
                deadline = min(time.monotonic(), began + _CHASE_SECONDS) + KILL_SECONDS
            before = pids

    def release_processes(self) -> None:
        if DARWIN:
            return  # one process cannot change the limits of another
        for pid in self.live_pids():
            try:
                resource.prlimit(pid, resource.RLIMIT_DATA, self.data_limit_before)
                resource.prlimit(pid, resource.RLIMIT_NPROC, self.task_limit_before)
            except OSError:
                continue

    def close(self) -> None:
        pass


def _low_bytes(run_id: str) -> int:
    """The low bytes of a run's RLIMIT_DATA, which mark its processes."""
    # Modulo a prime, so that every byte of the id counts.
    return int.from_bytes(run_id.encode(), "big") % (_MARK_BYTES - 3)


def _data_limit(run_id: str) -> int:
    """The soft RLIMIT_DATA that marks a run's processes; 0: the user's own limit is too low.

    It is larger than a 64-bit address space (nearly 2 GiB with 32 bits), or some 16 MiB below a
    limit of the user or of an enclosing run.
    """
    limits = [v for v in resource.getrlimit(resource.RLIMIT_DATA) if v != resource.RLIM_INFINITY]
    lowest = min([sys.maxsize, *limits])
    return (
        (lowest // _MARK_BYTES - 1) * _MARK_BYTES + _low_bytes(run_id) if lowest >= _LOWEST else 0
    )


def _check_proc() -> None:
    """Raise Unusable if /proc does not show our pid namespace."""
    if DARWIN or processes.PROC != processes.NO_PROC:
        return
    text = "there is no /proc to find processes in"
    if os.path.exists("/proc/loadavg"):
        text = "/proc shows another pid namespace than ours, so its pids are not ours"
    raise Unusable(text, processes.MOUNT_PROC)


class RlimitBackend:
    """See `sandrun.backends.protocol.Backend`."""

    name: "BackendName" = "rlimit"
    kernel = False
    container = RlimitContainer

    def open(self, run_id: str, limits: Limits) -> RlimitContainer:
        beyond = sorted(limits.set_by_user & _UNSUPPORTED)
        if beyond:
            raise Unusable(f"only a kernel container limits {', '.join(beyond)}")
        _check_proc()
        if not DARWIN:
            messages.decision("swap is not forbidden: swapped memory counts as memory")
        return self.container(run_id, limits, 0 if DARWIN else _data_limit(run_id))

    def attach(self, run_id: str, token: str) -> RlimitContainer:
        of, _, digits = token.partition(":")
        data = int(digits) if digits.isdecimal() and len(digits) < 20 else -1
        _check_proc()
        if of != run_id or (data and data % _MARK_BYTES != _low_bytes(run_id)):
            raise Unusable(f"{token!r} is not the mark of run {run_id}")
        return self.container(run_id, None, data)
