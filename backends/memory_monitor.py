"""The memory of a process tree, by polling: what a kernel container counts by itself.

- The tree is read from its root down (/proc/PID/task/*/children), so the cost of a sample depends
  on the tree and not on the host.
- Between two samples the host's memory is read. That costs a hundredth of a sample and includes
  everything that grows, shared memory and tmpfs too. When a quarter of the remaining room is gone,
  a sample is due at once, so samples can be rare while nothing grows. (MemAvailable is not used: it
  leaves out the free pages on per-CPU lists, up to 60 MiB.)
- Pages backed by a file on a disk are reclaimable page cache and do not count, as in a kernel
  container. Swapped memory counts.
- The memory of the largest process is a lower bound and the sum of all is an upper bound; both are
  nearly free. PSS walks page tables (20 ms a GiB), so it is read only if the bounds leave the
  answer open, and not again for a process with the same size and no new page fault (a copy on write
  changes nothing else). From then on the lower bound is that sum plus the growth of known
  processes, so fast growth needs no walk.
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
"""Minimum seconds between two readings of the host's memory."""
SHORTEST_TICK, LONGEST_TICK = 0.02, 0.05
"""The same while nothing grows on the host, in seconds."""
FASTEST = 4 << 30
"""Bytes per second of growth that may use a quarter of the remaining room between two readings.
Faster growth is caught as well, because the first reading that sees it makes the next ones follow
at once."""
_LEAST_SLACK = 2 << 20
_PAGE = os.sysconf("SC_PAGESIZE")
_SHARE_URGENT = 4
"""Samples may use one part in so many of a core's time while the limit is near."""
_SOON = 0.2
_PSS_KEPT = 5.0
"""Seconds for which a PSS is valid if the process's RSS does not change. Other processes may stop
sharing its pages meanwhile."""


def walk(root: int, without: "Mapping[int, int] | None" = None) -> "dict[int, processes.Stat]":
    """The live descendants of `root`, parents before children, without zombies and `without` the
    given processes (start times by pid) and their descendants.

    Orphans are included only if `root` is a subreaper. A process that dies after its parent was
    read and before it is read itself hides its children from this walk.
    """
    return tree(_children(root, 1), without or {})


def tree(frontier: "list[int]", without: "Mapping[int, int]") -> "dict[int, processes.Stat]":
    """The same for these processes and all their descendants."""
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


def is_too_large_to_signal(root: int, most: int) -> bool:
    """Whether `root` has more than `most` descendants. Reads only the lists of children and stops
    counting there, because examining each process of a fork bomb would take too long."""
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
    """Samples a tree as often as its growth and the remaining room require."""

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
        self.known: set[int] = set()
        """Every process seen, for segments that outlive their creator."""
        self._sizes: dict[int, tuple[int, int]] = {}
        self._held: dict[int, tuple[tuple[int, int, int], tuple[int, int]]] = {}
        self._kept: dict[int, tuple[tuple[int, int], tuple[int, int], int, int, float]] = {}
        self._least = 0
        """A lower bound of the tree's private memory, by the processes in `_seen`."""
        self._seen: dict[tuple[int, int], int] = {}

    def is_due(self, now: float) -> bool:
        """Whether a sample is due, by time or because the host's memory shrinks."""
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
        self.known.update(members)
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
        """The processes of the last sample that hold most memory, largest first."""
        return sorted(self._sizes, key=lambda pid: -sum(self._sizes[pid]))[:most]

    def _measure(self, members: "dict[int, processes.Stat]", now: float) -> int:
        self._held = {pid: self._holds(pid, info) for pid, info in members.items()}
        sizes = {pid: held[1] for pid, held in self._held.items()}
        if sum(map(sum, sizes.values())) > self.limit // 2:
            for pid in _in_one_memory(members):
                del sizes[pid]
        same, self._sizes = sizes == self._sizes, sizes
        upper = sum(map(sum, sizes.values()))
        self._follow({(pid, members[pid].start): size[0] for pid, size in sizes.items()})
        lower = max(self._least, max(map(sum, sizes.values()), default=0))
        if lower > self.limit:
            return lower
        grown = self.host.shmem - self.shmem_before
        if grown <= self.limit // 16:
            if upper <= self.limit // 2:
                return upper
            if upper - lower <= self.limit // 50:
                return lower
            if same and self._copied(members) <= self.limit // 50:
                return self.current
        if self._kept.keys() != sizes.keys():
            self._kept.clear()  # new processes may share pages of those with a known PSS
        memory = self._exact(members, sizes, grown, now)
        if memory > self.limit and self._kept:  # do not decide by an earlier measurement
            self._kept.clear()
            memory = self._exact(members, sizes, grown, now)
        return memory

    def _copied(self, members: "dict[int, processes.Stat]") -> int:
        """An upper bound of the bytes copied on write since PSS was read: one page a fault."""
        if DARWIN:
            raise NotImplementedError
        before = {pid: kept[0][1] for pid, kept in self._kept.items() if pid in members}
        return sum(members[pid].faults - faults for pid, faults in before.items()) * _PAGE

    def _holds(
        self, pid: int, info: processes.Stat
    ) -> "tuple[tuple[int, int, int], tuple[int, int]]":
        """A key that changes with the memory of a process, and its private and shared bytes
        (`processes.anonymous_memory`), read through a live thread if the leader is dead.

        A copy on write does not change the RSS, because the copied page replaces a shared one, but
        it is a page fault.
        """
        if DARWIN:
            raise NotImplementedError
        held = self._held.get(pid)
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

    def _follow(self, sizes: "dict[tuple[int, int], int]") -> None:
        """Update the lower bound: growth of a known process is new memory. A new process may share
        all its pages, and all pages of an exited process may be gone."""
        known = self._seen
        taken = sum(size - known[key] for key, size in sizes.items() if key in known)
        gone = sum(size for key, size in known.items() if key not in sizes)
        self._least = max(0, self._least + taken - gone)
        self._seen = sizes

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
        self._least = own
        if grown <= 0:
            return own + mapped
        held = mapped + open_shared_memory(sizes) + segments(self.known)
        # Memory both mapped and open was counted twice, but the host's growth is an upper bound.
        return own + max(mapped, min(held, grown))

    def _pss(
        self, pid: int, size: "tuple[int, int]", born: "tuple[int, int]", now: float
    ) -> "tuple[int, int]":
        """The proportional private and shared bytes of a process. `born` is its start time, which
        distinguishes it from a later process with its pid, and its page faults."""
        if DARWIN:
            raise NotImplementedError
        kept = self._kept.get(pid)
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
            # Read after the sizes: from now on both include what it allocated meanwhile.
            self._seen[pid, born[0]] = sum(
                processes.field_bytes(rollup, name) for name in (b"\nAnonymous:", b"\nSwap:")
            )
        except PermissionError:
            pass  # another user's process
        except OSError:  # gone, or only its first thread; others have no smaps_rollup
            if processes.memory_directory(pid) == f"{processes.PROC}/{pid}":
                private = shared = 0
        self._kept[pid] = (born, size, private, shared, now)
        return private, shared


def _in_one_memory(members: "dict[int, processes.Stat]") -> "list[int]":
    """The processes that share the address space of their parent, a member too."""
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
    """The host's memory by /proc/meminfo, in bytes; zeros where there is none."""

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
    """The memory of open files without a disk (memfd, tmpfs), each counted once."""
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
    """The devices of every tmpfs, and the kernel's internal one for memfds and segments."""
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
    """The resident memory of the System V segments that these processes created (proc(5))."""
    try:
        _, *rows = processes.read("/proc/sysvipc/shm").strip().split(b"\n")
    except OSError:
        return 0
    return sum(int(row.split()[14]) for row in rows if int(row.split()[4]) in pids)
