"""cgroup v1 and hybrid hosts: a group in each controller that the limits need, below our own group.

The memory controller limits the run. At the limit the OOM killer kills one process, we are notified
through memory.oom_control, and the supervisor terminates the rest. Source:
Documentation/admin-guide/cgroup-v1/{memory,pids,blkio-controller}.rst.

v1 has no atomic kill. The freezer controller stops all processes while they are signalled, so that
none can fork. Without it, on a hybrid host, the run also gets a v2 group, which has cgroup.kill,
`populated` and cpu.stat without any controller. It is the second choice because clone3 costs 2 ms
more than a freezer group. Without either, processes are killed one by one.

Entering a group is cheap: a single thread that writes itself to `tasks` does not take the
threadgroup lock, whose writers wait for RCU (9 ms). So the supervisor enters, spawns, and leaves
again.
"""

import os
import sys

assert sys.platform == "linux"

from sandrun import messages
from sandrun.backends import cgroup_common, cgroup_files, run_group, sampler
from sandrun.backends.cgroup_files import (
    BaseFileInterface,
    Controller,
    CpuAcctController,
    CpuController,
    MemoryController,
)
from sandrun.model import Limits, Process, Unusable, Usage, error_text
from sandrun.platform import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.backends.cgroup2 import Group2
    from sandrun.types import BackendName, LimitHit


_V1_NAMES = {"io": "blkio"}
_CONTROLLERS = frozenset(("memory", "pids", "cpu", "blkio", "freezer", "cpuacct", ""))
"""The hierarchies in which a run may have a group; '' stands for v2."""
_POLLIN = 1  # select.POLLIN, poll(2), without an import on every run's path
_SMALL = 16 << 20
"""Bytes. With a lower limit the OOM killer may need a victim before the command's exec. That could
be the supervisor while it is in the group, or while a vfork child uses its memory (mm/oom_kill.c
kills all processes that share the victim's memory). So the child is forked and enters by itself.
(Derived from the source; seen once in some hundred runs with 1 MiB, and not in 260 others.)"""
_PERIOD = 100_000
"""cpu.cfs_period_us: the default of the kernel."""


class _Pids(Controller):  # cgroupspy has no pids controller
    max = BaseFileInterface("pids.max")


class _Freezer(Controller):
    state = BaseFileInterface("freezer.state")


class Group1(run_group.RunGroup):
    """See `sandrun.backends.protocol.Container`. `paths` has the group's directory by v1
    controller, and in the v2 hierarchy (key ''). `limits` is None in an attached container."""

    def __init__(self, paths: "dict[str, str]", limits: "Limits | None" = None) -> None:
        self.paths = paths
        self.token = "\n".join(f"{name}={path}" for name, path in paths.items())
        self.helpers: set[int] = set()
        self.limit_hit: LimitHit = ""
        self.limits = limits
        self.memory = MemoryController(cgroup_files.Node(paths["memory"]))
        self.v2_group = _make_v2_group(paths[""]) if "" in paths else None
        self.locks: list[int] = []
        self.events = (-1, 0)
        self.outer_events = -1
        """An eventfd like that of `events`, for the parent group."""
        self.oom_events = 0
        self.outer_oom_events = 0
        self.sampler = sampler.Sampler(limits.memory if limits else 0)

    def create(self) -> None:
        """Make the groups and set their limits. Each limit is read back and must be accepted.
        Raises Unusable or OSError, and then leaves nothing behind."""
        assert self.limits
        try:
            for name, path in list(self.paths.items()):
                self._make(name, path)
            self._limit_memory(self.limits)
            self._limit_others(self.limits)
            self._watch()
        except BaseException:
            self.close()
            raise
        if not self.v2_group:  # which has done so
            cgroup_common.adopt_orphans()

    def _make(self, name: str, path: str) -> None:
        assert self.limits
        if path in [p for n, p in self.paths.items() if n < name and p == path]:
            return  # controllers mounted together share a group
        try:
            if name:
                self.locks.append(cgroup_common.make_locked(path))
            elif self.v2_group:
                self.v2_group.create()
        except OSError as error:
            if name == "memory" or set(self.limits.set_by_user) & _SETTINGS.get(name, set()):
                raise
            messages.decision(f"no group for the run in {name or 'cgroup v2'}: {error.strerror}")
            del self.paths[name]
            if not name:
                self.v2_group = None

    def _limit_memory(self, limits: Limits) -> None:
        here = self.paths["memory"]
        if os.path.exists(here + "/memory.use_hierarchy") and not self.memory.use_hierarchy:
            self.memory.use_hierarchy = True  # nested runs are charged to this group
        self._set(self.memory, "limit_in_bytes", cgroup_files.whole_pages(limits.memory))
        if os.path.exists(here + "/memory.memsw.limit_in_bytes"):
            self._set(
                self.memory,
                "memsw_limit_in_bytes",
                cgroup_files.whole_pages(limits.memory + limits.swap),
            )
        elif "swap" in limits.set_by_user:
            raise Unusable(
                "swap: this kernel does not account for it",
                "boot with swapaccount=1 on the kernel's command line",
            )
        else:
            self._set(self.memory, "swappiness", 0)
            messages.decision(
                "no memory.memsw.limit_in_bytes here: swap is not forbidden; the run itself does "
                "not swap at its limit (swappiness 0)"
            )
        # Sample by the lowest limit, the run's or an enclosing one, since it is hit first.
        self.sampler.limit = cgroup_files.lowest_limit(here, "memory.limit_in_bytes")

    def _limit_others(self, limits: Limits) -> None:
        node = {name: cgroup_files.Node(path) for name, path in self.paths.items()}
        if "pids" in node and limits.pids > 0:
            self._set(_Pids(node["pids"]), "max", str(limits.pids))
        if limits.cpus:
            cpu = CpuController(node["cpu"])
            self._set(cpu, "cfs_period_us", _PERIOD)
            self._set(cpu, "cfs_quota_us", int(limits.cpus * _PERIOD))
        if limits.cpu_weight > 0:  # 1024 shares are the default, as 100 is for a v2 weight
            self._set(CpuController(node["cpu"]), "shares", max(2, limits.cpu_weight * 1024 // 100))
        if limits.io or limits.io_weight > 0:
            from sandrun.backends import cgroup1_blkio

            cgroup1_blkio.limit(self.paths["blkio"], limits)

    def _set(self, control: object, name: str, value: "int | str") -> None:
        messages.detail(f"{self.paths['memory']}: {type(control).__name__} {name} = {value}")
        setattr(control, name, value)
        stored = getattr(control, name)
        if stored != value:
            raise Unusable(f"{name}: set to {value!r}, the kernel stored {stored!r}")

    def _watch(self) -> None:
        self.events = (_oom_eventfd(self.memory), _POLLIN)
        self.outer_events = _oom_eventfd(_parent_memory(self.paths["memory"]))

    def memory_group(self) -> "tuple[str, str]":
        return self.paths["memory"], "memory"

    def start(self, argv: "list[str]", env: "Mapping[str, str]", caller: spawn.CallerState) -> int:
        if self.v2_group:
            return self.v2_group.start(argv, env, caller, self._enter)
        assert self.limits
        if self.limits.memory < _SMALL:
            return spawn.fork(argv, env, caller, self._enter)
        return spawn.direct(argv, env, caller, self._enter, self._leave)

    def _enter(self) -> None:
        for name, path in self.paths.items():
            if name:
                cgroup_common.enter(path + "/tasks")

    def _leave(self) -> None:
        for name, path in self.paths.items():
            if name:
                cgroup_common.enter(os.path.dirname(path) + "/tasks")

    def poll(self) -> "float | None":
        working_set = current = int(self.memory.usage_in_bytes)
        if not self.sampler.is_small(current):
            stat = self._stat()
            working_set = self.sampler.measure(current, _cache(stat))
            if working_set > self.sampler.limit // 2:
                self.sampler.note(working_set, self._kinds(stat))
        seen = self.sampler.sample(working_set, self.pids_if_few)
        hit = self._whose_limit_hit()
        self.limit_hit = self.limit_hit or hit
        self.sampler.keep(seen, bool(self.limit_hit))
        self.poll_escaped()
        return self.sampler.due(working_set)

    def _whose_limit_hit(self) -> "LimitHit":
        """v1 counts a kill in the victim's group, whichever limit was hit, but notifies the group
        at its limit and all groups below it. So an event that reached our group and not its parent
        was at our limit (mm/memcontrol-v1.c, memcg1_oom_notify)."""
        self.oom_events += _read(self.events[0])
        # Read last, because an event reaches the parent first.
        self.outer_oom_events += _read(self.outer_events)
        control = dict(self.memory.oom_control or {})
        if self.oom_events > self.outer_oom_events:
            return "own"
        return "outer" if control.get("oom_kill") else ""

    def usage(self) -> Usage:
        try:
            stat = self._stat()
            current = self.sampler.measure(int(self.memory.usage_in_bytes), _cache(stat))
            highest = int(self.memory.max_usage_in_bytes)
            peak = self.sampler.peak_working_set(highest, self.limit_hit == "own")
            usage = Usage(current, peak, self._cpu(), breakdown=self.sampler.kinds)
            usage.peak_with_cache = highest
            usage.shared = stat.get("total_shmem", 0)
            self.add_tasks(usage, self.paths.get("pids", ""))
            return usage
        except OSError:
            return Usage()

    def _cpu(self) -> "float | None":
        if "cpuacct" in self.paths:
            return int(CpuAcctController(cgroup_files.Node(self.paths["cpuacct"])).usage) / 1e9
        return self.v2_group.cpu() if self.v2_group else None

    def _stat(self) -> "dict[str, int]":
        try:
            return {key: int(value) for key, value in dict(self.memory.stat).items()}
        except (OSError, ValueError):
            return {}

    def _kinds(self, stat: "dict[str, int]") -> "dict[str, int]":
        """The memory by kind, each byte once: `total_cache` includes shared memory."""
        anon, file, shmem = (stat.get(f"total_{name}", 0) for name in ("rss", "cache", "shmem"))
        try:
            kernel = int(self.memory.get_property(b"memory.kmem.usage_in_bytes"))
        except OSError:
            kernel = 0  # this kernel does not account for it
        return {"anon": anon, "file": max(0, file - shmem), "shmem": shmem, "kernel": kernel}

    def top_consumers(self) -> "list[Process]":
        return self.sampler.top_consumers()

    def kill_members(self) -> None:
        if self.v2_group:
            self.v2_group.kill_members()
        self._freeze("FROZEN")
        cgroup_common.kill_members(self.paths["memory"])
        self._freeze("THAWED")  # frozen v1 tasks do not die
        cgroup_common.kill_each(
            self.paths["memory"], lambda: not cgroup_common.live_pids(self.paths["memory"])
        )

    def _freeze(self, state: str) -> None:
        if "freezer" in self.paths:
            try:
                _Freezer(cgroup_files.Node(self.paths["freezer"])).state = state
            except OSError:
                pass  # the group is gone

    def release_processes(self) -> None:
        for name, path in self.paths.items():
            if name:
                cgroup_common.move_out(path, os.path.dirname(path) + "/cgroup.procs")
        if self.v2_group:
            self.v2_group.release_processes()

    def close(self) -> None:
        for fd in {self.events[0], self.outer_events} - {-1}:
            os.close(fd)
        self.events, self.outer_events = (-1, 0), -1
        if self.v2_group:
            self.v2_group.close()
        for name, path in self.paths.items():
            if name:
                cgroup_common.remove(path)
        while self.locks:
            os.close(self.locks.pop())


def _parent_memory(path: str) -> MemoryController:
    return MemoryController(cgroup_files.Node(os.path.dirname(path)))


def _oom_eventfd(memory: MemoryController) -> int:
    """An eventfd that counts the OOM events of a group and of the groups above it."""
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    control = os.open(memory.filepath(b"memory.oom_control"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        memory.set_property(b"cgroup.event_control", f"{eventfd} {control}")
    except OSError:
        os.close(eventfd)
        raise
    finally:
        os.close(control)
    return eventfd


def _read(eventfd: int) -> int:
    try:
        return os.eventfd_read(eventfd)
    except OSError:  # no event
        return 0


def _cache(stat: "dict[str, int]") -> int:
    """The reclaimable page cache: shared and locked pages are on other lists."""
    return stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)


_SETTINGS = {
    "pids": {"pids"},
    "cpu": {"cpus", "cpu_weight"},
    "blkio": {"io_read_bps", "io_write_bps", "io_read_iops", "io_write_iops", "io_weight"},
}
"""The settings that require a group in a controller."""


def _make_v2_group(path: str) -> "Group2":
    from sandrun.backends import cgroup2  # 0.3 ms, and not needed with a freezer

    return cgroup2.Group2(path)


def _end_stale_v2(path: str) -> None:
    container = _make_v2_group(path)
    container.kill()
    container.close()


def _end_stale(path: str) -> None:
    if os.path.exists(path + "/freezer.state"):  # a supervisor killed during `kill` left it frozen
        _Freezer(cgroup_files.Node(path)).state = "THAWED"
    cgroup_common.kill_each(path, lambda: not cgroup_common.live_pids(path))
    cgroup_common.remove(path)


class Cgroup1Backend:
    """See `sandrun.backends.protocol.Backend`."""

    name: "BackendName" = "cgroup1"
    kernel = True

    def open(self, run_id: str, limits: Limits) -> Group1:
        parents = self._parents(limits)
        # The freezer first: frozen processes do not die.
        for name, parent in sorted(parents.items(), key=lambda item: item[0] != "freezer"):
            cgroup_common.collect(parent, _end_stale if name else _end_stale_v2)
        container = Group1(
            {name: f"{parent}/{cgroup_common.PREFIX}{run_id}" for name, parent in parents.items()},
            limits,
        )
        try:
            container.create()
        except OSError as error:
            raise Unusable(
                f"cannot make a group: {error_text(error)}",
                "run as root, or have root give you that group: "
                f"chown -R {os.geteuid()} {os.path.dirname(os.fsdecode(error.filename or b''))}",
            ) from None
        return container

    def _parents(self, limits: Limits) -> "dict[str, str]":
        """Our own group in each hierarchy that is required or useful. Raises Unusable."""
        here = cgroup_common.own_groups()
        parents = {"memory": cgroup_common.own_group("memory", here)}
        wanted = {_V1_NAMES.get(n, n): must for n, must in limits.controllers().items()}
        for name, must in {**wanted, "freezer": False, "cpuacct": False}.items():
            try:
                parents[name] = cgroup_common.own_group(name, here)
            except Unusable:
                if must:
                    raise
        if "freezer" not in parents:
            try:
                parents[""] = cgroup_common.own_group("", here)
            except Unusable:
                messages.decision("neither a freezer nor cgroup v2: no atomic kill")
        return parents

    def attach(self, run_id: str, token: str) -> Group1:
        paths = dict(line.partition("=")[::2] for line in token.split("\n"))
        if "memory" not in paths or not _CONTROLLERS.issuperset(paths):
            raise Unusable(f"{token!r} does not name the groups of a run")
        for name, path in paths.items():
            cgroup_common.check_ours(path, run_id, name)
        return Group1(paths)
