"""A run's container on cgroup v2: `sandrun-<id>/` has the limits, `main/` in it the processes.

There are two levels because a group with processes cannot enable controllers for its children. So a
nested run is made beside `main/` and charged to the same limits. The limits are no protection
against the command, which may write them if its user may. `main/` repeats the limits on memory and
CPU: JVMs before 24 (JDK-8322420), node (libuv) and Go libraries read only those of their own group.
Source: Documentation/admin-guide/cgroup-v2.rst. The comments name the Linux version that added a
file.

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
_SPINS = 3
"""So many polls in a row that see the limit hit again without a kill: no process may be killed."""
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
    """See `sandrun.backends.protocol.Container`. Without `limits` it was attached, not made."""

    def __init__(self, path: str, limits: "Limits | None" = None) -> None:
        self.token = path
        self.helpers: set[int] = set()
        self.events = (-1, 0)
        self.limit_hit: LimitHit = ""
        self.oom_events = 0
        self.ooms = self.rises = 0
        """How often our own limit was hit, as last read; polls in a row that saw this rise."""
        self.limits = limits
        self.lock = -1
        self.files = Files(cgroup_files.Node(path))
        self.main = f"{path}/{cgroup_common.MAIN}"
        self.took: dict[str, str] = {}
        """The limits that the kernel accepted, by file."""
        self.sampler = sampler.Sampler(limits.memory if limits else 0)
        self.highest = 0

    def create(self) -> None:
        """Make both groups and set the limits, if any. Each limit is read back and must be
        accepted. Raises Unusable or OSError, and then leaves nothing behind."""
        self.lock = cgroup_common.make(self.token)
        try:
            os.mkdir(self.main)
            if self.limits:
                self._set_limits(self.limits)
                self._repeat_limits()
                self._watch()
        except BaseException:
            self.close()
            raise

    def _watch(self) -> None:
        """kernfs raises POLLPRI on memory.events when a count in it changes."""
        fd = os.open(f"{self.token}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        os.read(fd, 4096)
        self.events = (fd, _POLLPRI)

    def _set_limits(self, limits: Limits) -> None:
        self._set("memory_max", "memory.max", str(cgroup_files.pages(limits.memory)))
        swap = str(cgroup_files.pages(limits.swap))
        if not self._set_if("swap", "memory_swap_max", "memory.swap.max", swap, True):
            messages.decision("no memory.swap.max here: what is swapped out is not limited")
        self._set_if("pids", "pids_max", "pids.max", str(limits.pids), limits.pids > 0)
        share = f"{int(limits.cpus * 100000)} 100000"
        self._set_if("cpus", "cpu_max", "cpu.max", share, limits.cpus > 0)
        weight = str(limits.cpu_weight)
        self._set_if("cpu_weight", "cpu_weight", "cpu.weight", weight, limits.cpu_weight > 0)
        if limits.io:
            self._set_io(limits)
        if limits.io_weight > 0:
            self._weigh(limits.io_weight)
        # The victims of whichever limit is hit first must be named.
        self.sampler.limit = cgroup_files.lowest(self.token, "memory.max")

    def _set_io(self, limits: Limits) -> None:
        device = cgroup_files.disk_of(limits.directory)
        wanted = " ".join(f"{key}={value}" for key, value in sorted(limits.io.items()))
        messages.detail(f"{self.token}/io.max = {device} {wanted}")
        self.files.io_max = f"{device} {wanted}"
        took = str(self.files.io_max)
        if not all(word in took.split() for word in wanted.split()):
            raise Unusable(f"io.max took {took!r} for {device} {wanted}")

    def _weigh(self, weight: int) -> None:
        """Set the weight for iocost and for BFQ; the host decides which of them a disk uses, if
        any. BFQ accepts 1 to 1000, with the same default of 100."""
        values = {"io.weight": weight, "io.bfq.weight": min(1000, weight)}
        found = [name for name in values if self.files.has(name)]
        for name in found:
            self._set(name.replace(".", "_"), name, f"default {values[name]}")
        if not found:
            raise Unusable(f"no io.weight in {self.token}: this kernel has neither iocost nor BFQ")

    def _set_if(self, key: str, attribute: str, name: str, value: str, wanted: bool) -> bool:
        """Set a `wanted` limit if possible; return whether it was set. Raises Unusable if the user
        set it and it is not possible."""
        assert self.limits
        if wanted and self.files.has(name):
            self._set(attribute, name, value)
            return True
        if wanted and key in self.limits.set_by_user:
            handed = processes.read(self.token + "/cgroup.controllers").decode().split()
            here = name.partition(".")[0] in handed
            why = "this kernel has none" if here else "the controller is not delegated to us"
            raise Unusable(f"no {name} in {self.token}: {why}")
        return False

    def _set(self, attribute: str, name: str, value: str) -> None:
        messages.detail(f"{self.token}/{name} = {value}")
        setattr(self.files, attribute, value)
        took = getattr(self.files, attribute)
        if took != value:
            raise Unusable(f"{self.token}/{name} took {took!r} for {value!r}")
        self.took[name] = value

    def _repeat_limits(self) -> None:
        """Write the effective limits, the lowest of the run and its enclosing groups, to `main/` as
        well, for programs that read no other group. The run's own group enforces them.
        """
        wanted = {"memory.max": str(self.sampler.limit)}
        if swap := self.took.get("memory.swap.max"):
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
            messages.decision(f"{self.main} does not show the limits: {error_text(error)}")

    def home(self) -> "tuple[str, str]":
        return self.token, ""

    def start(
        self,
        argv: "list[str]",
        env: "Mapping[str, str]",
        caller: spawn.CallerState,
        enter: "Callable[[], None]" = lambda: None,
    ) -> int:
        """`enter` is called in the child before exec (for the v1 groups of a hybrid host)."""
        cgroup_common.adopt()
        try:
            return spawn.fork(argv, env, caller, enter, self._clone)
        except OSError as error:
            messages.detail(f"clone3 into the group: {error.strerror}; the child enters by itself")

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
        held = current = int(self.files.memory_current)
        self.highest = max(self.highest, current)
        if not self.sampler.is_small(current):
            stat = self._stat()
            held = self.sampler.measure(current, _cache(stat))
            if held > self.sampler.limit // 2:
                self.sampler.note(held, _kinds(stat))
        seen = self.sampler.sample(held, lambda: cgroup_common.few(self.token))
        undecided = self._check_oom()
        self.sampler.keep(seen, bool(self.limit_hit))
        due = self.sampler.due(held)
        self.poll_escaped()
        return _UNDECIDED if undecided else due

    def _check_oom(self) -> bool:
        """Find out whether a limit was hit, and whose; True: the next poll will know.

        `oom` is counted where the limit was, `oom_kill` where the victim was: a kill without an
        `oom` of our own means that an enclosing limit was hit. An `oom` without a kill is one that
        the end of another process relieved, unless it goes on: then there is nobody whom the
        kernel may kill (oom_score_adj -1000, proc(5)), and the processes spin at the limit.
        """
        below = self.files.memory_events
        if not below.get("oom_kill") and not below.get("oom"):
            return False
        inner = Files(cgroup_files.Node(self.main))
        # Read last: the kernel counts `oom` before the kill.
        kills, before = self._own("oom_kill", inner, True), self.ooms
        self.ooms = self._own("oom", inner, self._is_repeated())
        self.oom_events = self.ooms + kills
        if self.limit_hit:
            return False
        self.rises = self.rises + 1 if self.ooms > before else 0
        protected = self.rises and processes.is_oom_protected(os.getpid())
        if self.ooms and (below.get("oom_kill") or protected or self.rises >= _SPINS):
            self.limit_hit = "own"
        elif kills and not self.ooms:
            self.limit_hit = "outer"
        return not self.limit_hit and self.rises > 0

    def _own(self, key: str, inner: Files, both: bool) -> int:
        """The count of an event in the run's own groups, without nested runs: in its outer group
        and, if `both`, in `main/`. Before Linux 5.2 the count includes all groups below."""
        if not self.files.has("memory.events.local"):
            return int(self.files.memory_events.get(key, 0))
        count = self.files.memory_events_local.get(key, 0)
        if both and inner.has("memory.events.local"):
            count += inner.memory_events_local.get(key, 0)
        return int(count)

    def _is_repeated(self) -> bool:
        """Whether the memory limit of `main/` is the run's own, not a lower enclosing one."""
        return bool(self.limits and self.sampler.limit >= cgroup_files.pages(self.limits.memory))

    def usage(self) -> Usage:
        try:
            stat = self._stat()
            current = self.sampler.measure(int(self.files.memory_current), _cache(stat))
            sampled = not self.files.has("memory.peak")
            highest = self.highest if sampled else int(self.files.memory_peak)
            peak = self.sampler.peak_below(highest, self.limit_hit == "own")
            usage = Usage(current, peak, self.cpu(), sampled, self.sampler.kinds, self._stalled())
            usage.peak_with_cache = highest
            usage.failed_starts = cgroup_files.refused(self.token, self.main)
            usage.shared = stat.get("shmem", 0)
            return usage
        except OSError:
            return Usage()

    def cpu(self) -> "float | None":
        """CPU time in seconds, which the kernel counts without the controller as well; None: the
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

    def _stat(self) -> "dict[str, int]":
        stat: dict[str, int] = self.files.memory_stat
        return stat

    def top_consumers(self) -> "list[Process]":
        return self.sampler.top_consumers()

    def is_too_large_to_signal(self) -> bool:
        return cgroup_common.is_too_large_to_signal(self.token)

    def end(self) -> None:
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
        process, and the other threads do not die if that one has exited (__cgroup_kill in
        kernel/cgroup/cgroup.c, send_sig). So the remaining processes are killed by pid."""
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
"""Most parts of `kernel` in memory.stat (5.18), for older kernels."""


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
