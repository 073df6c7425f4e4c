"""A run's container on cgroup v2: `sandrun-<id>/` has the limits, `main/` in it the processes.

There are two levels because a group with processes cannot enable controllers for its children. So
the group of a nested run is a sibling of `main/` and charged to the same limits. The command can
change the limits if its user may write them. `main/` repeats the limits on memory and CPU: JVMs
before 24 (JDK-8322420), node (libuv) and Go libraries read only those of their own group. Source:
Documentation/admin-guide/cgroup-v2.rst. The comments name the Linux version that added a file.

The child is cloned into `main/` (clone3 with CLONE_INTO_CGROUP, 5.7). That takes 2.3 ms; a child
that writes itself into cgroup.procs waits for RCU and takes 9.8 ms. It does so where clone3 is not
available (old kernels, seccomp profiles).
"""

import errno
import os
import sys
import time

assert sys.platform == "linux"

from sandrun import messages
from sandrun.backends import cgroup_common, cgroup_files, run_group, sampler
from sandrun.backends.cgroup_files import BaseFileInterface, Controller, DictFile, IntegerFile
from sandrun.model import Limits, Process, Unusable, Usage, error_text
from sandrun.platform import processes, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandrun.types import LimitHit


_POLLPRI = 2  # select.POLLPRI, poll(2), without an import on every run's path
_UNDECIDED = 0.01
"""Seconds until the next poll while it is unknown whether a limit was hit."""
_STUCK = 3
"""If so many polls in a row see a new `oom` without a kill, the kernel may kill no process."""
_SOON = 20
"""Milliseconds after which killed processes are mostly gone."""

# No subclass: the plain interface handles words such as `max`, `50000 100000`, `8:0 rbps=1000`.
TextFile = BaseFileInterface


class Files(Controller):
    """The v2 files for cgroupspy, which defines only those of v1."""

    memory_max = TextFile("memory.max")
    memory_current = IntegerFile("memory.current", readonly=True)
    memory_peak = IntegerFile("memory.peak", readonly=True)  # 5.19
    memory_swap_max = TextFile("memory.swap.max")
    memory_stat = DictFile("memory.stat", readonly=True)
    memory_pressure = TextFile("memory.pressure", readonly=True)  # 4.20, with PSI
    memory_events = DictFile("memory.events", readonly=True)
    memory_events_local = DictFile("memory.events.local", readonly=True)  # 5.2
    pids_max = TextFile("pids.max")
    cpu_max = TextFile("cpu.max")
    cpu_weight = TextFile("cpu.weight")
    cpu_stat = DictFile("cpu.stat", readonly=True)
    io_max = TextFile("io.max")
    io_weight = TextFile("io.weight")  # the iocost controller's
    io_bfq_weight = TextFile("io.bfq.weight")
    events = DictFile("cgroup.events", readonly=True)
    kill = TextFile("cgroup.kill", writeonly=True)  # 5.14
    freeze = TextFile("cgroup.freeze")  # 5.2

    def has(self, name: str) -> bool:
        """Whether this kernel and this group have the file."""
        return os.path.exists(os.fsencode(self.node.full_path) + b"/" + name.encode())


class Group2(run_group.RunGroup):
    """See `sandrun.backends.protocol.Container`. `limits` is None in an attached container and in
    the v2 group of a v1 container."""

    def __init__(self, path: str, limits: "Limits | None" = None) -> None:
        self.token = path
        self.helpers: set[int] = set()
        self.events = (-1, 0)
        self.limit_hit: LimitHit = ""
        self.oom_events = 0
        self.own_ooms = self.oom_polls = 0
        """How often our own limit was hit, as last read; how many polls in a row saw it rise."""
        self.limits = limits
        self.lock = -1
        self.files = self.enclosing = Files(cgroup_files.Node(path))
        """The files of the group, and of the outermost group that has the run's limits: this one,
        or the run's slice (`sandrun.backends.systemd_slice`)."""
        self.main = f"{path}/{cgroup_common.MAIN}"
        self.accepted: dict[str, str] = {}
        """The limits that the kernel accepted, by file."""
        self.sampler = sampler.Sampler(limits.memory if limits else 0)
        self.highest = 0

    def create(self) -> None:
        """Make both groups and set the limits, if any. Each limit is read back and must be
        accepted. Raises Unusable or OSError, and then leaves nothing behind."""
        self.lock = cgroup_common.make_locked(self.token)
        try:
            os.mkdir(self.main)
            if self.limits:
                self._set_limits(self.limits)
                self._repeat_limits()
                self._watch()
        except BaseException:
            self.close()
            raise
        cgroup_common.adopt_orphans()

    def _watch(self) -> None:
        """kernfs raises POLLPRI on memory.events when a count in it changes."""
        fd = os.open(self.enclosing.filepath(b"memory.events"), os.O_RDONLY | os.O_CLOEXEC)
        os.read(fd, 4096)
        self.events = (fd, _POLLPRI)

    def _set_limits(self, limits: Limits) -> None:
        self._set("memory_max", "memory.max", str(cgroup_files.whole_pages(limits.memory)))
        swap = str(cgroup_files.whole_pages(limits.swap))
        if not self._try_set("swap", "memory_swap_max", "memory.swap.max", swap, True):
            messages.decision("no memory.swap.max here: what is swapped out is not limited")
        self._try_set("pids", "pids_max", "pids.max", str(limits.pids), limits.pids > 0)
        share = f"{int(limits.cpus * 100000)} 100000"
        self._try_set("cpus", "cpu_max", "cpu.max", share, limits.cpus > 0)
        weight = str(limits.cpu_weight)
        self._try_set("cpu_weight", "cpu_weight", "cpu.weight", weight, limits.cpu_weight > 0)
        if limits.io:
            self._set_io(limits)
        if limits.io_weight > 0:
            self._set_io_weight(limits.io_weight)
        # Sample by the lowest limit, the run's or an enclosing one, since it is hit first.
        self.sampler.limit = cgroup_files.lowest_limit(self.token, "memory.max")

    def _set_io(self, limits: Limits) -> None:
        device = cgroup_files.disk_of(limits.directory)
        wanted = " ".join(f"{key}={value}" for key, value in sorted(limits.io.items()))
        messages.detail(f"{self.token}/io.max = {device} {wanted}")
        self.files.io_max = f"{device} {wanted}"
        stored = str(self.files.io_max)
        if not all(word in stored.split() for word in wanted.split()):
            raise Unusable(f"io.max: set to {device} {wanted}, the kernel stored {stored!r}")

    def _set_io_weight(self, weight: int) -> None:
        """Set the weight for iocost and for BFQ; the host decides which of them a disk uses. BFQ
        accepts 1 to 1000. The default of both is 100."""
        values = {"io.weight": weight, "io.bfq.weight": min(1000, weight)}
        found = [name for name in values if self.files.has(name)]
        for name in found:
            self._set(name.replace(".", "_"), name, f"default {values[name]}")
        if not found:
            raise Unusable(f"no io.weight in {self.token}: this kernel has neither iocost nor BFQ")

    def _try_set(self, key: str, attribute: str, name: str, value: str, wanted: bool) -> bool:
        """Set a `wanted` limit if its file exists; return whether it was set. Raises Unusable if
        the file is missing and the user set the limit."""
        assert self.limits
        if wanted and self.files.has(name):
            self._set(attribute, name, value)
            return True
        if wanted and key in self.limits.set_by_user:
            controllers = processes.read(self.token + "/cgroup.controllers").decode().split()
            delegated = name.partition(".")[0] in controllers
            why = "this kernel has none" if delegated else "the controller is not delegated to us"
            raise Unusable(f"no {name} in {self.token}: {why}")
        return False

    def _set(self, attribute: str, name: str, value: str) -> None:
        messages.detail(f"{self.token}/{name} = {value}")
        setattr(self.files, attribute, value)
        stored = getattr(self.files, attribute)
        if stored != value:
            raise Unusable(f"{self.token}/{name}: set to {value!r}, the kernel stored {stored!r}")
        self.accepted[name] = value

    def _repeat_limits(self) -> None:
        """Repeat the effective limits, the lowest of the run's group and all above, in `main/`, for
        programs that read no other group. The run's group enforces them."""
        wanted = {"memory.max": str(self.sampler.limit)}
        if swap := self.accepted.get("memory.swap.max"):
            wanted["memory.swap.max"] = swap
        if quota := cgroup_files.lowest_quota(self.token):
            wanted["cpu.max"] = quota
        controllers = " ".join({f"+{name.partition('.')[0]}" for name in wanted})
        inner = Files(cgroup_files.Node(self.main))
        try:
            self.files.set_property(b"cgroup.subtree_control", controllers)
            for name, value in wanted.items():
                messages.detail(f"{self.main}/{name} = {value}")
                inner.set_property(name.encode(), value)
        except OSError as error:
            messages.decision(f"{self.main} does not repeat the limits: {error_text(error)}")

    def memory_group(self) -> "tuple[str, str]":
        return self.token, ""

    def start(
        self,
        argv: "list[str]",
        env: "Mapping[str, str]",
        caller: spawn.CallerState,
        enter: "Callable[[], None]" = lambda: None,
    ) -> int:
        """`enter` is called in the child before exec (for the v1 groups of a hybrid host)."""
        try:
            return spawn.fork(argv, env, caller, enter, self._clone)
        except OSError as error:
            messages.detail(f"no clone3 into the group: {error.strerror}; the child enters it")

        def enter_all() -> None:
            cgroup_common.enter(self.main + "/cgroup.procs")
            enter()

        return spawn.fork(argv, env, caller, enter_all)

    def _clone(self) -> int:
        directory = os.open(self.main, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            from sandrun.platform import linux_syscalls

            return linux_syscalls.clone_into(directory)
        finally:
            os.close(directory)

    def poll(self) -> "float | None":
        working_set = current = self._current()
        self.highest = max(self.highest, current)
        if not self.sampler.is_small(current):
            stat = self._stat()
            working_set = self.sampler.measure(current, _cache(stat))
            if working_set > self.sampler.limit // 2:
                self.sampler.note(working_set, _kinds(stat))
        seen = self.sampler.sample(working_set, self.pids_if_few)
        undecided = self._check_oom()
        self.sampler.keep(seen, bool(self.limit_hit))
        due = self.sampler.due(working_set)
        self.poll_escaped()
        return _UNDECIDED if undecided else due

    def _check_oom(self) -> bool:
        """Find out whether a limit was hit, and whose. Return True if only the next poll can tell.

        `oom` is counted in the group whose limit was hit, `oom_kill` in the victim's group. So a
        kill without an `oom` of our own means that an enclosing limit was hit. After a single `oom`
        without a kill, another process exited and freed memory. If `oom` keeps rising without a
        kill, all processes are protected (oom_score_adj -1000, proc(5)) and spin at the limit.
        """
        events = self.enclosing.memory_events
        if not events.get("oom_kill") and not events.get("oom"):
            return False
        inner = Files(cgroup_files.Node(self.main))
        # Read last: the kernel counts `oom` before the kill.
        kills, before = self._own_count("oom_kill", inner, True), self.own_ooms
        self.own_ooms = self._own_count("oom", inner, self._is_repeated())
        self.oom_events = self.own_ooms + kills
        if self.limit_hit:
            return False
        self.oom_polls = self.oom_polls + 1 if self.own_ooms > before else 0
        protected = self.oom_polls and processes.is_oom_protected(os.getpid())
        if self.own_ooms and (events.get("oom_kill") or protected or self.oom_polls >= _STUCK):
            self.limit_hit = "own"
        elif kills and not self.own_ooms:
            self.limit_hit = "outer"
        return not self.limit_hit and self.oom_polls > 0

    def _own_count(self, key: str, inner: Files, both: bool) -> int:
        """The count of an event in the run's group and, if `both`, in `main/`, without nested runs.
        Before Linux 5.2 nested runs are included."""
        if not self.files.has("memory.events.local"):
            return int(self.enclosing.memory_events.get(key, 0))
        count = self.files.memory_events_local.get(key, 0)
        if both and inner.has("memory.events.local"):
            count += inner.memory_events_local.get(key, 0)
        return int(count)

    def _is_repeated(self) -> bool:
        """Whether `main/` repeats the run's own memory limit, not a lower enclosing one."""
        own = cgroup_files.whole_pages(self.limits.memory) if self.limits else 0
        return bool(self.limits) and own <= self.sampler.limit

    def usage(self) -> Usage:
        try:
            stat = self._stat()
            current = self.sampler.measure(self._current(), _cache(stat))
            sampled = not self.files.has("memory.peak")
            highest = max(self.highest, 0 if sampled else int(self.files.memory_peak))
            peak = self.sampler.peak_working_set(highest, self.limit_hit == "own")
            usage = Usage(current, peak, self.cpu(), sampled, self.sampler.kinds, self._stalled())
            usage.peak_with_cache = highest
            self.add_tasks(usage, self.token, self.main)
            usage.shared = stat.get("shmem", 0)
            return usage
        except OSError:
            return Usage()

    def cpu(self) -> "float | None":
        """CPU time in seconds, which the kernel counts even without the cpu controller; None: the
        group is gone."""
        try:
            return int(self.files.cpu_stat.get("usage_usec", 0)) / 1e6
        except OSError:
            return None

    def _stalled(self) -> "float | None":
        """Seconds stalled on memory, from the last line (`full`) of PSI; None: there is no PSI."""
        try:
            return int(str(self.files.memory_pressure).rpartition("total=")[2]) / 1e6
        except OSError:
            return None

    def _current(self) -> int:
        return int(self.files.memory_current)

    def _stat(self) -> "dict[str, int]":
        stat: dict[str, int] = self.files.memory_stat
        return stat

    def top_consumers(self) -> "list[Process]":
        return self.sampler.top_consumers()

    def kill_members(self) -> None:
        if not os.path.isdir(self.token):
            return
        try:
            self.files.kill = "1"
        except OSError:
            # Before 5.14: frozen tasks cannot fork, and SIGKILL ends them on v2.
            try:
                self.files.freeze = "1"
            except OSError:
                pass
            cgroup_common.kill_each(self.token, self._is_empty)
            return
        self._wait_empty()

    def _wait_empty(self) -> None:
        """Return when the killed group is empty. cgroup.kill signals only the first thread of each
        process; if that has exited, the other threads do not die (__cgroup_kill and send_sig in
        kernel/cgroup/cgroup.c). So the remaining processes are killed by pid."""
        import select

        deadline = time.monotonic() + cgroup_common.KILL_SECONDS
        try:
            fd = os.open(self.token + "/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            waiter = select.poll()
            waiter.register(fd, select.POLLPRI)
            while b"populated 0" not in os.pread(fd, 4096, 0):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(cgroup_common.live_pids(self.token))
                # Do not rely on the event: a read between two changes may miss one.
                if not waiter.poll(min(left * 1000, _SOON)):
                    cgroup_common.kill_members(self.token)
        except OSError as error:
            if error.errno != errno.ENODEV:  # the group was removed meanwhile
                raise
        finally:
            os.close(fd)

    def _is_empty(self) -> bool:
        try:
            return not self.files.events.get("populated")
        except OSError:
            return True

    def release_processes(self) -> None:
        cgroup_common.move_out(self.token, cgroup_common.own_group("") + "/cgroup.procs")

    def close(self) -> None:
        if self.events[0] >= 0:
            os.close(self.events[0])
            self.events = (-1, 0)
        cgroup_common.remove(self.token)
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


_KERNEL = ("slab", "kernel_stack", "pagetables", "percpu", "vmalloc")
"""Most of the parts of `kernel` in memory.stat (5.18), for older kernels."""


def _cache(stat: "dict[str, int]") -> int:
    """The reclaimable page cache by memory.stat: shared and locked pages are on other lists."""
    return stat.get("inactive_file", 0) + stat.get("active_file", 0)


def _kinds(stat: "dict[str, int]") -> "dict[str, int]":
    """The memory by kind, each byte once: `file` includes `shmem`, `kernel` no socket buffers."""
    anon, file, shmem = (stat.get(name, 0) for name in ("anon", "file", "shmem"))
    own = stat.get("kernel") or sum(stat.get(name, 0) for name in _KERNEL)
    own += stat.get("sock", 0)
    return {"anon": anon, "file": max(0, file - shmem), "shmem": shmem, "kernel": own}


def end_stale(path: str) -> None:
    """End the group of a dead run; see `cgroup_common.collect`."""
    group = Group2(path)
    group.kill()
    group.close()
