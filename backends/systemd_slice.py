"""A run's own slice of systemd: it contains the run's scope, and units that its command requests.

A process can request a scope or service in its own slice: tmux does so for each pane, and
`systemd-run --slice-inherit` for its command. Such processes are not in the run's group. So each
run has a slice, `<slice of the caller>-sandrun_<id>.slice`. Invariants:
- The slice has the run's limits, plus `_ROOM` of memory and `_PROCESSES` for sandrun's own
  processes, which are in the scope, beside the run's group. A run without units beside the scope
  reaches the exact limits of its own group first; a run with such units may exceed them by these
  amounts.
- When a unit appears beside the scope, the supervisor moves to a scope outside of the slice. It
  must have left before the slice is out of memory: the kernel skips a victim that has begun to exit
  but still holds its memory (css_task_iter_advance, kernel/cgroup/cgroup.c), so the next allocation
  in the slice kills the largest other process. That was sandrun in one of five tries (Linux 7.2).
  The keepers stay, so the scope is not empty before the supervisor ends.
- Processes in the slice but not in the scope belong to the run: they are counted, listed and ended.
- systemd removes the slice when no unit is left in it (StopWhenUnneeded), also if sandrun was
  killed. When the unit to which the scope is bound is stopped, systemd stops the slice and every
  unit in it.

The proof that a group beside the scope may be killed: the names of its slice, of the scope and of
the run's group have the same run id, and the slice's group belongs to our user.

Measured in the laboratory, where a system call costs a hundred times as much as elsewhere: 5 ms of
the 180 ms (user's manager) to 390 ms (system's manager) that a run takes.
"""

import fcntl
import os
import sys
import time

assert sys.platform == "linux"

from sandrun import messages
from sandrun.backends import cgroup_common, cgroup_files
from sandrun.backends.cgroup2 import Files, Group2
from sandrun.bare import signal as _signal
from sandrun.model import MIB, Limits, Unusable, Usage
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Units(Protocol):
        """The manager of the run's units; see `sandrun.backends.systemd`."""

        def step_aside(self) -> None: ...
        def change(self, unit: str, properties: "list[tuple[str, Any]]") -> None: ...
        def stop(self, find: "Callable[[], list[str]]", mode: str) -> None: ...


_ROOM = 32 * MIB
"""For the supervisor, its keepers and its witness, which take 6 to 10, and what the kernel counts
in advance for each processor (mm/memcontrol.c, MEMCG_CHARGE_BATCH)."""
_PROCESSES = 16
_MARK = "sandrun_"
"""Without a hyphen, because each hyphen adds an enclosing slice (systemd.slice(5))."""
_LONGEST_NAME = 255
"""Of a unit (UNIT_NAME_MAX of systemd)."""
_SCOPE_ALONE = 3
"""Links of the slice's directory: kernfs counts two, and one for each directory in it."""
SUPERVISOR = "-supervisor"
"""The end of the name of the scope to which a supervisor moves when it leaves its run's slice."""
_IO = {
    "rbps": "IOReadBandwidthMax",
    "riops": "IOReadIOPSMax",
    "wbps": "IOWriteBandwidthMax",
    "wiops": "IOWriteIOPSMax",
}
_COUNTS = ("memory.max", "memory.swap.max", "pids.max")
"""The limits that are a number, of which the lowest applies."""
_UNLIMITED = (1 << 64) - 1
"""No limit, in properties (org.freedesktop.systemd1(5))."""


def name_of(parent: str, run_id: str) -> str:
    """The name of a run's slice in the slice `parent`: systemd derives the place from the name.
    '': the name would be too long."""
    name = f"{parent.removesuffix('.slice')}-{_MARK}{run_id}.slice"
    return name if len(name) <= _LONGEST_NAME else ""


def scope_in(path: str) -> str:
    """The path of the run's scope in the group `path`, if that has the name of a run's slice; else
    ''."""
    run_id = path.rpartition("-")[2].removeprefix(_MARK).removesuffix(".slice")
    name = cgroup_common.PREFIX + run_id
    if cgroup_common.is_run_name(name) and path.endswith(f"-{_MARK}{run_id}.slice"):
        return f"{path}/{name}.scope"
    return ""


def _rows(limits: Limits) -> "list[tuple[str, str, str, tuple[str, Any]]]":
    """For each limit of the slice: its file, what the kernel stores there, and the property with
    its value (systemd.resource-control(5)). A limit that was not asked for is left out, so that
    systemd does not enable its controller."""
    memory, swap = map(cgroup_files.whole_pages, (limits.memory, limits.swap))
    memory, pids, quota = memory + _ROOM, limits.pids + _PROCESSES, int(limits.cpus * 100000)
    weight, io_weight = limits.cpu_weight, limits.io_weight
    rows = [
        (True, "memory.max", str(memory), "MemoryMax", memory),
        (True, "memory.swap.max", str(swap), "MemorySwapMax", swap),
        (limits.pids > 0, "pids.max", str(pids), "TasksMax", pids),
        (limits.cpus > 0, "cpu.max", f"{quota} 100000", "CPUQuotaPerSecUSec", quota * 10),
        (weight > 0, "cpu.weight", str(weight), "CPUWeight", weight),
        (io_weight > 0, "io.weight", str(io_weight), "IOWeight", io_weight),
    ]
    found: list[tuple[str, str, str, tuple[str, Any]]] = [
        (file, text, name, ("t", value)) for wanted, file, text, name, value in rows if wanted
    ]
    for key, value in limits.io.items():
        kept = ("a(st)", [(limits.directory, value)])
        found.append(("io.max", f"{key}={value}", _IO[key], kept))
    return found


def properties(limits: Limits) -> "list[tuple[str, tuple[str, Any]]]":
    """The properties of a run's new slice."""
    return [
        ("Description", ("s", "a run of sandrun, and what systemd starts for it")),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("StopWhenUnneeded", ("b", True)),
        *((name, value) for _, _, name, value in _rows(limits)),
    ]


def overridden(name: str, limits: Limits) -> "list[tuple[str, tuple[str, Any]]]":
    """The properties that must be set again after the start: drop-ins have precedence over a new
    unit, and systemd has one for `user-` (user-.slice.d/10-defaults.conf) with TasksMax."""
    rows = _rows(limits) if name.startswith("user-") else []
    return [(key, value) for _, _, key, value in rows if key == "TasksMax"]


def _unlimited(limits: Limits) -> "list[tuple[str, tuple[str, Any]]]":
    """The properties that remove those limits again; a weight limits nothing by itself."""
    found: list[tuple[str, tuple[str, Any]]] = []
    for _, _, name, (kind, value) in _rows(limits):
        if kind == "a(st)":
            found.append((name, (kind, [(path, _UNLIMITED) for path, _ in value])))
        elif not name.endswith("Weight"):
            found.append((name, (kind, _UNLIMITED)))
    return found


def slice_of(scope: str) -> str:
    """The path of the run's slice that the scope at that path is in; '' if it is in none."""
    path = os.path.dirname(scope)
    return path if scope_in(path) == scope else ""


def is_limited(path: str, limits: Limits, units: "Units") -> bool:
    """Whether the slice at that path has the limits. If not, processes beside the scope have left
    the container (`sandrun.backends.escapes`), and the limits that it has are removed."""
    if not (missing := _refused(path, limits)):
        return True
    try:
        units.change(os.path.basename(path), missing)
        if not _refused(path, limits):
            return True
        messages.decision(f"systemd: {path} does not have the limits of the run")
        units.change(os.path.basename(path), _unlimited(limits))
    except Unusable as error:
        messages.decision(f"systemd: {path} does not have the limits of the run: {error.text}")
    return False


def _refused(path: str, limits: Limits) -> "list[tuple[str, tuple[str, Any]]]":
    """The properties that the slice at that path does not have in the kernel, because a drop-in has
    others. A lower limit of a drop-in is no refusal: it applies as that of an enclosing group."""
    found = []
    for name, wanted, key, value in _rows(limits):
        file = f"{path}/{name}"
        # The run's group does not have a file either that is missing here, and reports it.
        words = processes.read(file).decode().split() if os.path.exists(file) else wanted.split()
        is_lower = name in _COUNTS and words[0] != "max" and int(words[0]) < int(wanted)
        if not is_lower and not set(wanted.split()).issubset(words):
            messages.detail(f"{file} = {' '.join(words)}, not {wanted}")
            found.append((key, value))
    return found


class InSlice(Group2):
    """A run's group whose scope is in a slice of the run's own."""

    def __init__(
        self, path: str, limits: "Limits | None" = None, units: "Units | None" = None
    ) -> None:
        """`units` is None in an attached container."""
        super().__init__(path, limits)
        self.scope = os.path.dirname(path)
        self.slice = os.path.dirname(self.scope)
        self.units = units
        self.enclosing = Files(cgroup_files.Node(self.slice))
        self.ours = Files(cgroup_files.Node(self.scope))
        self.notice = -1
        """The slice's directory, locked: the kernel signals this process when a group is made in
        it."""
        self.is_shared = False
        """Whether there was ever a group beside the scope. From then on, figures are those of the
        slice, minus those of the scope (which contains sandrun), plus those of the run's group."""
        self.has_left: bool | None = None
        """Whether this process moved out of the slice; None: it did not have to."""

    def _beside(self) -> "list[str]":
        """The groups beside the scope."""
        try:
            if os.stat(self.slice).st_nlink <= _SCOPE_ALONE and os.path.isdir(self.scope):
                return []
            found = [entry.path for entry in os.scandir(self.slice) if entry.is_dir()]
        except OSError:
            return []  # systemd removed the slice
        self.is_shared = True
        return [path for path in found if path != self.scope]

    def member_pids(self) -> "list[int]":
        groups = (self.token, *self._beside())
        return [pid for group in groups for pid in cgroup_common.live_pids(group)]

    def is_too_large_to_signal(self) -> bool:
        return any(map(cgroup_common.is_too_large_to_signal, (self.token, *self._beside())))

    def create(self) -> None:
        super().create()
        # The supervisor polls at this signal. So it has left before processes beside the scope can
        # reach the limit. Without CONFIG_DNOTIFY, it leaves at the next poll that is due anyway.
        self.notice = os.open(self.slice, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self.notice, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.fcntl(self.notice, fcntl.F_SETSIG, int(_signal.SIGRTMAX))
            fcntl.fcntl(self.notice, fcntl.F_NOTIFY, fcntl.DN_CREATE)
        except OSError as error:
            messages.detail(f"no notification of new groups in {self.slice}: {error.strerror}")

    def poll(self) -> "float | None":
        if self.has_left is None and self._beside():
            self.sampler.limit = cgroup_files.lowest_limit(self.slice, "memory.max")
            self.has_left = self._ask(lambda units: units.step_aside())
        try:
            return super().poll()
        except OSError:
            if os.path.isdir(self.token):
                raise
            return None  # systemd stopped the slice, and removed it

    def _ask(self, work: "Callable[[Units], None]") -> bool:
        """Ask systemd for something that the run can do without; return whether it was done."""
        try:
            if self.units:
                work(self.units)
        except Unusable as error:
            messages.decision(f"{self.slice}: {error.text}")
            return False
        return bool(self.units)

    def _current(self) -> int:
        own = super()._current()
        if not self.is_shared:
            return own
        return own + max(0, int(self.enclosing.memory_current) - int(self.ours.memory_current))

    def _stat(self) -> "dict[str, int]":
        own = super()._stat()
        if not self.is_shared:
            return own
        outer, scope = self.enclosing.memory_stat, self.ours.memory_stat
        return {name: own[name] + max(0, outer.get(name, 0) - scope.get(name, 0)) for name in own}

    def cpu(self) -> "float | None":
        own = super().cpu()
        if own is None or not self.is_shared:
            return own
        try:
            outer, scope = (int(f.cpu_stat["usage_usec"]) for f in (self.enclosing, self.ours))
        except OSError:
            return own  # systemd removed the scope
        return own + (outer - scope) / 1e6

    def _own_count(self, key: str, inner: Files, both: bool) -> int:
        count = super()._own_count(key, inner, both)
        # The slice may have a lower limit, which is no limit of the run's (`is_limited`).
        if key == "oom" and self.enclosing.has("memory.events.local") and self._is_own_limit():
            count += self.enclosing.memory_events_local.get(key, 0)
        return count

    def _is_own_limit(self) -> bool:
        wanted = {file: text for file, text, _, _ in _rows(self.limits)} if self.limits else {}
        return bool(self.enclosing.memory_max == wanted.get("memory.max"))

    def usage(self) -> Usage:
        usage = super().usage()
        if not usage.failed_starts[0]:
            usage.failed_starts = cgroup_files.refused_forks(self.slice)
        return usage

    def sample(self) -> Usage:
        usage = super().sample()
        if beside := self._beside():
            more = sum(cgroup_common.count_tasks(path, "cgroup.threads") for path in beside)
            usage.tasks = (usage.tasks or 0) + more
            self._most_tasks = max(self._most_tasks, usage.tasks)
            usage.most_tasks = max(usage.most_tasks or 0, usage.tasks)
        return usage

    def kill_members(self) -> None:
        deadline = time.monotonic() + cgroup_common.KILL_SECONDS
        super().kill_members()
        # A killed process may have asked systemd for another unit just before.
        while left := [path for path in self._beside() if cgroup_common.live_pids(path)]:
            if time.monotonic() > deadline:
                raise TimeoutError([pid for p in left for pid in cgroup_common.live_pids(p)])
            for path in left:
                Group2(path).kill_members()

    def close(self) -> None:
        super().close()
        if self.notice >= 0:
            os.close(self.notice)
            self.notice = -1
        if self.has_left and not self.member_pids():
            # systemd may be about to start a unit that a killed process had asked for.
            self._ask(lambda units: units.stop(lambda: [os.path.basename(self.slice)], "replace"))

    def release_processes(self) -> None:
        assert self.limits
        changes = _unlimited(self.limits)
        self._ask(lambda units: units.change(os.path.basename(self.slice), changes))
        super().release_processes()


def attach(path: str) -> Group2:
    """The container of a run whose group is, or was, at `path`. The caller has checked that this is
    the path of a run's group. Groups beside its scope are the run's only in a slice of our user."""
    scope = os.path.dirname(path)
    is_inside = slice_of(scope) and scope.endswith(f"/{os.path.basename(path)}.scope")
    try:
        is_ours = bool(is_inside) and os.stat(os.path.dirname(scope)).st_uid == os.geteuid()
    except OSError:
        is_ours = False  # systemd removed the slice
    return (InSlice if is_ours else Group2)(path)


def collect(scope: str) -> "list[str]":
    """End the groups of dead runs (`cgroup_common.collect`) that were started in the same slice as
    the run in `scope`. Returns the empty groups of units that systemd may have failed to remove: it
    does not notice that a scope is empty if its only process was a zombie when it was moved there,
    and it keeps a slice whose scope did not start (versions 252 to 262)."""
    parent = os.path.dirname(slice_of(scope) or scope)
    empty = []
    for name in os.listdir(parent):
        path = f"{parent}/{name}"
        run = name.removesuffix(".scope").removesuffix(SUPERVISOR)
        if inner := scope_in(path):
            if os.path.isdir(inner):
                path = inner
            else:
                _end_late(path, inner)
        elif not (name.endswith(".scope") and cgroup_common.is_run_name(run)):
            continue
        if path != scope:
            cgroup_common.collect(path, _end_stale)
            empty += [path] if is_empty(path) else []
    return empty


def _end_late(path: str, scope: str) -> None:
    """Kill the processes that systemd started in the slice of a run after the run's end. A live run
    holds the slice's lock, and a run that released its processes has removed the slice's limits.
    `scope` is left alone: its run may be about to start."""
    fd = cgroup_common.lock(path)
    try:
        limited = processes.read(f"{path}/memory.max") != b"max\n"
        if fd >= 0 and limited and os.fstat(fd).st_uid == os.geteuid():
            for entry in os.scandir(path):
                if entry.is_dir() and entry.path != scope:
                    Group2(entry.path).kill_members()
    except OSError:  # systemd removed it, or a process cannot be killed (TimeoutError)
        pass
    finally:
        if fd >= 0:
            os.close(fd)


def is_empty(path: str) -> bool:
    """Whether no process is in that group, which belongs to our user."""
    try:
        owner = os.stat(path).st_uid
        events = processes.read(f"{path}/cgroup.events")
    except OSError:
        return False
    return b"populated 0" in events and owner == os.geteuid()


def _end_stale(path: str) -> None:
    container = attach(path)
    container.kill()
    container.close()
