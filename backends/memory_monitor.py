"""The memory of a process tree, measured by polling, close to what a kernel container counts.

- The tree is read from its root down (/proc/PID/task/*/children), so the cost of a sample depends
  on the tree and not on the host.
- Between two samples the host's memory is read. That costs a hundredth of a sample and includes
  everything that grows, shared memory and tmpfs too. When it has grown by a quarter of the memory
  left below the limit, a sample is due at once, so samples can be rare while nothing grows.
  (MemAvailable is not used: it leaves out the free pages on per-CPU lists, up to 60 MiB.)
- Pages backed by a file on a disk are reclaimable page cache and do not count, as in a kernel
  container. Swapped memory counts.
- The memory of the largest process is a lower bound and the sum of all is an upper bound; both are
  nearly free. Reading a PSS walks page tables (20 ms a GiB), so that is done only if the bounds do
  not decide, and not again for a process with the same size and no new page fault (the only sign of
  a copy on write). From then on the lower bound is the private memory found plus the growth of
  known processes, so fast growth needs no walk.
- Processes that share an address space (CLONE_VM, or vfork for a moment) count once, as long as the
  parent lives and kcmp(2) is permitted.
- Shared memory counts once, whether mapped, only open (memfd, files on a tmpfs), or a System V
  segment made by the tree. Files on a tmpfs that no process has open are not counted.
"""

import os
import stat
import sys
import time

from sandrun.model import DARWIN
from sandrun.platform import processes

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SHORTEST = 0.01
"""Minimum seconds between two samples, and between two readings of a growing host's memory."""
SHORTEST_TICK, LONGEST_TICK = 0.02, 0.05
"""Minimum and maximum seconds between two readings of the host's memory while it does not grow."""
FASTEST = 4 << 30
"""Growth in bytes per second that uses a quarter of the memory left between two readings. Faster
growth is caught as well: the next readings follow at `SHORTEST`."""
_LEAST_SLACK = 2 << 20
"""Bytes by which the host's memory must grow at least before a sample is due early."""
_PAGE = os.sysconf("SC_PAGESIZE")
_SHARE_URGENT = 4
"""Samples may use one part in so many of a core's time while the limit is near."""
_SOON = 0.2
"""Seconds: if the limit would be reached within them, samples are as frequent as permitted."""
_PSS_KEPT = 5.0
"""Seconds for which a PSS is valid if the process's RSS does not change. Other processes may stop
sharing its pages meanwhile."""


def walk(root: int, without: "Mapping[int, int] | None" = None) -> "dict[int, processes.Stat]":
    """The live descendants of `root`, parents before children. Zombies are left out, and so are the
    processes `without` (start times by pid) with their descendants.

    Orphans are included only if `root` is a subreaper. If a process dies after its parent was read
    and before it is read itself, this walk does not find its children.
    """
    return tree(_children(root, 1), without or {})


def tree(frontier: "list[int]", without: "Mapping[int, int]") -> "dict[int, processes.Stat]":
    """The same for the processes `frontier` and all their descendants."""
    found: dict[int, processes.Stat] = {}
    for pid in frontier:
        try:
            info = processes.Stat(pid)
        except OSError:
            continue
        if pid in found or without.get(pid) == info.start:
            continue
        if info.state not in "ZX" or info.threads > 1:
            found[pid] = info
            frontier += _children(pid, info.threads)
    return found


def has_more_descendants(root: int, most: int) -> bool:
    """Whether `root` has more than `most` descendants. Reads only lists of children and stops at
    `most`, because examining each process of a fork bomb would take too long."""
    frontier = _children(root, 1)
    for pid in frontier:
        if len(frontier) > most:
            return True
        frontier += _children(pid, 1)
    return False


def _children(pid: int, threads: int) -> "list[int]":
    """The children of all threads of a process (CONFIG_PROC_CHILDREN)."""
    if DARWIN:
        return processes.children(pid)
    found: list[int] = []
    try:
        tasks = [str(pid)] if threads == 1 else os.listdir(f"{processes.PROC}/{pid}/task")
        for task in tasks:
            found += map(
                int, processes.read(f"{processes.PROC}/{pid}/task/{task}/children").split()
            )
    except OSError:
        pass
    return found


class Monitor:
    """Samples a tree as often as its growth and the memory left below the limit require."""

    expected = 256 << 20
    """Bytes per second of growth that samples must catch while nothing grows. Readings of the
    host's memory catch faster growth, unless another process frees as much at the same time."""
    share = 500
    """Samples may use one part in so many of a core's time."""

    def __init__(self, limit: int, longest: float) -> None:
        self.limit = limit
        self.longest = max(longest, SHORTEST)
        self.current = 0
        self.peak = 0
        self.host = Host()
        self.shmem_before = self.host.shmem
        self.level = self.host.used
        self.slack = limit // 4
        self.sampled_at = time.monotonic()
        self.sample_at = self.earliest = 0.0
        self.tick = SHORTEST
        self.grows = False
        self.known_pids: set[int] = set()
        """The pids of all processes seen: System V segments outlive their creator."""
        self._sizes: dict[int, tuple[int, int]] = {}
        self._known_sizes: dict[int, tuple[tuple[int, int, int], tuple[int, int]]] = {}
        self._pss_cache: dict[int, tuple[tuple[int, int], tuple[int, int], int, int, float]] = {}
        self._lower_bound = 0
        """A lower bound of the tree's private memory."""
        self._in_lower_bound: dict[tuple[int, int], int] = {}

    def is_due(self, now: float) -> bool:
        """Whether a sample is due, by time or because the host's memory use has grown."""
        if now >= self.sample_at:
            return True
        before = self.host.used
        self.host.read()
        self.grows = self.host.used - before > max(_LEAST_SLACK, self.slack // 4)
        self.level = min(self.level, self.host.used)
        return now >= self.earliest and self.host.used - self.level > self.slack

    def due(self, now: float) -> float:
        """Seconds until `is_due` must be called again."""
        return max(0.0, min(self.sample_at - now, SHORTEST if self.grows else self.tick))

    def sample(self, members: "dict[int, processes.Stat]", now: float) -> int:
        """Measure the tree and plan the next sample; return its memory in bytes."""
        began = time.thread_time()
        self.host.read()
        self.known_pids.update(members)
        memory = self._measure(members, now)
        growth = (memory - self.current) / max(now - self.sampled_at, SHORTEST)
        self.current, self.sampled_at = memory, now
        self.peak = max(self.peak, memory)
        self._plan(now, growth, time.thread_time() - began)
        return memory

    def _plan(self, now: float, growth: float, cost: float) -> None:
        room = max(0, self.limit - self.current)
        wait = room / max(2 * growth, self.expected) / 2
        self.sample_at = now + min(max(wait, SHORTEST, cost * self.share), self.longest)
        self.earliest = now + cost * _SHARE_URGENT
        if growth * _SOON > room:
            self.sample_at = now + max(SHORTEST, cost * _SHARE_URGENT)
        half = self.limit // 2 - self.current
        slack = min(room // 4, half) if half > 0 else room // 4
        self.slack = max(slack, _LEAST_SLACK)
        self.tick = min(LONGEST_TICK, max(SHORTEST_TICK, self.slack / FASTEST))
        self.grows = growth * self.tick > _LEAST_SLACK
        self.level = self.host.used

    def largest(self, most: int) -> "list[int]":
        """The processes of the last sample with most memory, largest first; at most `most`."""
        return sorted(self._sizes, key=lambda pid: -sum(self._sizes[pid]))[:most]

    def _measure(self, members: "dict[int, processes.Stat]", now: float) -> int:
        self._known_sizes = {pid: self._size_of(pid, info) for pid, info in members.items()}
        sizes = {pid: held[1] for pid, held in self._known_sizes.items()}
        if sum(map(sum, sizes.values())) > self.limit // 2:
            for pid in _share_parent_memory(members):
                del sizes[pid]
        same, self._sizes = sizes == self._sizes, sizes
        upper = sum(map(sum, sizes.values()))
        self._update_lower_bound(
            {(pid, members[pid].start): size[0] for pid, size in sizes.items()}
        )
        lower = max(self._lower_bound, max(map(sum, sizes.values()), default=0))
        if lower > self.limit:
            return lower
        grown = self.host.shmem - self.shmem_before
        if grown <= self.limit // 16:
            if upper <= self.limit // 2:
                return upper
            if upper - lower <= self.limit // 50:
                return lower
            if same and self._copied_at_most(members) <= self.limit // 50:
                return self.current
        if self._pss_cache.keys() != sizes.keys():
            self._pss_cache.clear()  # a new process may share pages, which changes each PSS
        memory = self._exact(members, sizes, grown, now)
        if memory > self.limit and self._pss_cache:  # decide only by measurements made now
            self._pss_cache.clear()
            memory = self._exact(members, sizes, grown, now)
        return memory

    def _copied_at_most(self, members: "dict[int, processes.Stat]") -> int:
        """An upper bound of the bytes copied on write since PSS was read: one page per fault."""
        if DARWIN:
            raise NotImplementedError
        before = {pid: kept[0][1] for pid, kept in self._pss_cache.items() if pid in members}
        return sum(members[pid].faults - faults for pid, faults in before.items()) * _PAGE

    def _size_of(
        self, pid: int, info: processes.Stat
    ) -> "tuple[tuple[int, int, int], tuple[int, int]]":
        """A key that changes with the memory of a process, and its private and shared bytes
        (`processes.anonymous_memory`), read from a live thread if the leader is dead.

        A copy on write does not change the RSS, because the copied page replaces a shared one. But
        it is a page fault.
        """
        if DARWIN:
            raise NotImplementedError
        held = self._known_sizes.get(pid)
        now = info.start, info.rss, info.faults
        if held and held[0] == now:
            return held
        dead = info.state in "ZX"
        try:
            size = processes.anonymous_memory(
                processes.memory_directory(pid) if dead else f"{processes.PROC}/{pid}"
            )
        except OSError:
            size = 0, 0  # it is gone
        return (info.start, -1, 0) if dead else now, size  # a dead leader has no RSS

    def _update_lower_bound(self, sizes: "dict[tuple[int, int], int]") -> None:
        """Update the lower bound. Growth of a known process is new memory. A new process may share
        all its pages, so it adds nothing; an exited one may have freed all of its pages."""
        known = self._in_lower_bound
        taken = sum(size - known[key] for key, size in sizes.items() if key in known)
        gone = sum(size for key, size in known.items() if key not in sizes)
        self._lower_bound = max(0, self._lower_bound + taken - gone)
        self._in_lower_bound = sizes

    def _exact(
        self,
        members: "dict[int, processes.Stat]",
        sizes: "dict[int, tuple[int, int]]",
        grown: int,
        now: float,
    ) -> int:
        if DARWIN:
            raise NotImplementedError
        own = mapped = 0
        for pid, size in sizes.items():
            private, shared = self._pss(pid, size, (members[pid].start, members[pid].faults), now)
            own += private
            mapped += shared
        self._lower_bound = own
        if grown <= 0:
            return own + mapped
        held = mapped + open_shared_memory(sizes) + segments(self.known_pids)
        # Memory both mapped and open is counted twice in `held`; the host's growth bounds it.
        return own + max(mapped, min(held, grown))

    def _pss(
        self, pid: int, size: "tuple[int, int]", born: "tuple[int, int]", now: float
    ) -> "tuple[int, int]":
        """The proportional private and shared bytes of a process. `born` is its start time, which
        tells it from a later process with its pid, and its number of page faults."""
        if DARWIN:
            raise NotImplementedError
        kept = self._pss_cache.get(pid)
        if kept and kept[:2] == (born, size) and now - kept[4] < _PSS_KEPT:
            return kept[2], kept[3]
        private, shared = size
        try:
            rollup = processes.read(f"{processes.PROC}/{pid}/smaps_rollup")
            shared = processes.field_bytes(rollup, b"\nPss_Shmem:")
            if b"\nPss_Anon:" in rollup:  # 5.4
                private = processes.field_bytes(rollup, b"\nPss_Anon:")
            else:
                private = min(private, processes.field_bytes(rollup, b"\nPss:") - shared)
            private += processes.field_bytes(rollup, b"\nSwapPss:")
            # Read after `size`, so the lower bound includes what was allocated in between.
            self._in_lower_bound[pid, born[0]] = sum(
                processes.field_bytes(rollup, name) for name in (b"\nAnonymous:", b"\nSwap:")
            )
        except PermissionError:
            pass  # another user's process
        except OSError:  # gone, or its leader is; other threads have no smaps_rollup
            if processes.memory_directory(pid) == f"{processes.PROC}/{pid}":
                private = shared = 0
        self._pss_cache[pid] = (born, size, private, shared, now)
        return private, shared


def _share_parent_memory(members: "dict[int, processes.Stat]") -> "list[int]":
    """The members that share the address space of their parent, if that is a member."""
    if DARWIN:
        raise NotImplementedError
    from sandrun.platform import linux_syscalls

    return [
        pid
        for pid, info in members.items()
        if (parent := members.get(info.parent))
        and info.stack == parent.stack != 0
        and linux_syscalls.share_address_space(pid, info.parent)
    ]


class Host:
    """The host's memory use by /proc/meminfo in bytes; 0 where that is missing."""

    def __init__(self) -> None:
        self.used = 0
        self.shmem = 0
        try:
            self._fd = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self.read()

    def read(self) -> None:
        if not DARWIN and self._fd >= 0:
            text = os.pread(self._fd, 4096, 0)
            self.shmem = processes.field_bytes(text, b"\nShmem:")
            self.used = processes.field_bytes(text, b"\nAnonPages:") + self.shmem


def open_shared_memory(pids: "Iterable[int]") -> int:
    """The bytes of open files without a disk (memfd, tmpfs), each counted once."""
    devices = _memory_devices()
    seen: dict[tuple[int, int], int] = {}
    for pid in pids:
        try:
            with os.scandir(f"{processes.PROC}/{pid}/fd") as entries:
                for entry in entries:
                    file = entry.stat()
                    if file.st_dev in devices and stat.S_ISREG(file.st_mode):
                        seen[file.st_dev, file.st_ino] = file.st_blocks * 512
        except OSError:
            continue  # another user's process, or gone
    return sum(seen.values())


def _memory_devices() -> "set[int]":
    """The devices of all tmpfs, and the kernel's internal one for memfds and System V segments."""
    if DARWIN:
        raise NotImplementedError
    fd = os.memfd_create("sandrun")
    found = {os.fstat(fd).st_dev}
    os.close(fd)
    for line in processes.read("/proc/self/mountinfo").split(b"\n"):
        head, _, tail = line.partition(b" - ")
        if tail.startswith(b"tmpfs "):
            major, _, minor = head.split()[2].partition(b":")
            found.add(os.makedev(int(major), int(minor)))
    return found


def segments(pids: "set[int]") -> int:
    """The resident bytes of the System V segments that these processes created (proc(5))."""
    try:
        _, *rows = processes.read("/proc/sysvipc/shm").strip().split(b"\n")
    except OSError:
        return 0
    return sum(int(row.split()[14]) for row in rows if int(row.split()[4]) in pids)
