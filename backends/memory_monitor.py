"""The memory of a process tree, polled: what a kernel's container would know by itself.

- The tree is found from its root down (/proc/PID/task/*/children), so a look costs what the tree
  is, whatever else lives on the host.
- Between two looks the host's own sum is read, which costs a hundredth of a look and shows
  whatever grows, shared memory and tmpfs included: when a quarter of the head room is gone there,
  a look is due at once. So looks can be rare while nothing happens. (Not MemAvailable: free pages
  that a processor keeps for itself are missing there, up to 60 MiB of them.)
- What a file on a disk backs is page cache, which the kernel takes back, and not the tree's
  memory, as in a kernel's container; what was swapped out is.
- What one process holds is a lower bound of the tree's memory, the sum of all an upper one, and
  both are nearly free; PSS, which walks page tables (20 ms a GiB), is asked for only where those
  leave it open, and not again for a process that holds the same and had no page fault (a copy on
  write changes nothing else). From then on the lower bound is that sum and whatever those who were
  there took since: nobody who takes fast is walked.
- Processes in one address space (CLONE_VM, or vfork for an instant) count once, as long as the
  one that made the other lives and kcmp(2) may be asked.
- Shared memory counts once: mapped, or only open (memfd, files on a tmpfs), or a System V segment
  made by the tree. Not seen: files on a tmpfs that no process holds open.
"""

import os
import stat
import time

from sandrun.model import DARWIN
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SHORTEST = 0.01
"""Seconds between two readings at the least."""
SHORTEST_TICK, LONGEST_TICK = 0.02, 0.05
"""The same while nothing grows on the host."""
FASTEST = 4 << 30
"""Bytes per second that may take a quarter of the head room between two readings; the first that
sees less memory makes the next ones follow at once, so that what is faster is caught as well."""
_LEAST_SLACK = 2 << 20
_PAGE = os.sysconf("SC_PAGESIZE")
_SHARE_URGENT = 4
"""The share of looks while the limit is near."""
_SOON = 0.2
_PSS_KEPT = 5.0
"""Seconds for which a process's PSS holds if its RSS does not change, though others in the tree
do: they may share its pages no more."""


def walk(root: int, without: "Mapping[int, int] | None" = None) -> "dict[int, processes.Stat]":
    """The live descendants of `root`, parents before children; zombies left out, and `without`
    those (their starts by pid) and what is below them.

    Orphans are among them only if `root` is a subreaper. Who dies after its parent was read and
    before it was read itself hides its children from this look.
    """
    return tree(_children(root, 1), without or {})


def tree(frontier: "list[int]", without: "Mapping[int, int]") -> "dict[int, processes.Stat]":
    """The same of these processes and all their descendants."""
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
    """Whether `root` has more than `most` descendants, counted by the lists of children alone and
    no further than that: of a fork bomb a look at each would take too long."""
    frontier = _children(root, 1)
    for pid in frontier:
        if len(frontier) > most:
            return True
        frontier += _children(pid, 1)
    return False


def _children(pid: int, threads: int) -> "list[int]":
    """The children that each thread has (CONFIG_PROC_CHILDREN)."""
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
    """Looks at a tree as often as its growth and head room demand, and no oftener."""

    expected = 256 << 20
    """Bytes per second against which head room is held while nothing grows: the readings of the
    host's memory see what is faster, unless somebody else frees as much at the same time."""
    share = 500
    """A look may take one part in so many of a core's time."""

    def __init__(self, limit: int, longest: float) -> None:
        self.limit = limit
        self.longest = max(longest, SHORTEST)
        self.current = 0
        self.peak = 0
        self.host = Host()
        self.shmem_before = self.host.shmem
        self.level = self.host.used
        self.slack = limit // 4
        self.looked = time.monotonic()
        self.look_at = self.earliest = 0.0
        self.tick = SHORTEST
        self.grows = False
        self.known: set[int] = set()
        """Every process seen, for the segments that outlive those who made them."""
        self._sizes: dict[int, tuple[int, int]] = {}
        self._held: dict[int, tuple[tuple[int, int, int], tuple[int, int]]] = {}
        self._kept: dict[int, tuple[tuple[int, int], tuple[int, int], int, int, float]] = {}
        self._least = 0
        """Private memory that the tree has at the least, by `_seen` (pid and start)."""
        self._seen: dict[tuple[int, int], int] = {}

    def is_due(self, now: float) -> bool:
        """Whether it is time for a look, or the host's memory says that something grows."""
        if now >= self.look_at:
            return True
        before = self.host.used
        self.host.read()
        self.grows = self.host.used - before > max(_LEAST_SLACK, self.slack // 4)
        self.level = min(self.level, self.host.used)
        return now >= self.earliest and self.host.used - self.level > self.slack

    def due(self, now: float) -> float:
        """Seconds until `is_due` is to be asked again."""
        return max(0.0, min(self.look_at - now, SHORTEST if self.grows else self.tick))

    def look(self, members: "dict[int, processes.Stat]", now: float) -> int:
        """Measure the tree, and settle when to look again."""
        began = time.thread_time()
        self.host.read()
        self.known.update(members)
        memory = self._measure(members, now)
        growth = (memory - self.current) / max(now - self.looked, SHORTEST)
        self.current, self.looked = memory, now
        self.peak = max(self.peak, memory)
        self._plan(now, growth, time.thread_time() - began)
        return memory

    def _plan(self, now: float, growth: float, cost: float) -> None:
        room = max(0, self.limit - self.current)
        wait = room / max(2 * growth, self.expected) / 2
        self.look_at = now + min(max(wait, SHORTEST, cost * self.share), self.longest)
        self.earliest = now + cost * _SHARE_URGENT
        if growth * _SOON > room:
            self.look_at = now + max(SHORTEST, cost * _SHARE_URGENT)
        half = self.limit // 2 - self.current
        slack = min(room // 4, half) if half > 0 else room // 4
        self.slack = max(slack, _LEAST_SLACK)
        self.tick = min(LONGEST_TICK, max(SHORTEST_TICK, self.slack / FASTEST))
        self.grows = growth * self.tick > _LEAST_SLACK
        self.level = self.host.used

    def largest(self, most: int) -> "list[int]":
        """Those of the last look that hold most."""
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
            self._kept.clear()  # who is new shares pages of those whose PSS we know
        memory = self._exact(members, sizes, grown, now)
        if memory > self.limit and self._kept:  # no verdict on what was measured earlier
            self._kept.clear()
            memory = self._exact(members, sizes, grown, now)
        return memory

    def _copied(self, members: "dict[int, processes.Stat]") -> int:
        """How much was copied on write at the most since PSS was asked for: a page a fault."""
        before = {pid: kept[0][1] for pid, kept in self._kept.items() if pid in members}
        return sum(members[pid].faults - faults for pid, faults in before.items()) * _PAGE

    def _holds(
        self, pid: int, info: processes.Stat
    ) -> "tuple[tuple[int, int, int], tuple[int, int]]":
        """What tells that it holds the same, and what it holds, private and shared
        (`processes.held`); of a leader that is dead while its threads live, through one of them.

        A copy on write changes no RSS: a file's page goes, or a parent's, and its own comes. But it
        is a page fault.
        """
        held = self._held.get(pid)
        now = info.start, info.rss, info.faults
        if held and held[0] == now:
            return held
        dead = info.state in "ZX"
        try:
            size = processes.held(processes.told_at(pid) if dead else f"{processes.PROC}/{pid}")
        except OSError:
            size = 0, 0  # it is gone
        return (info.start, -1, 0) if dead else now, size  # a dead leader's RSS is not told

    def _follow(self, sizes: "dict[tuple[int, int], int]") -> None:
        """Whoever is known and holds more has taken pages that nobody else has; whoever is new may
        share all of its own, and with whoever is gone all of its may be gone."""
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
        own = mapped = 0
        for pid, size in sizes.items():
            private, shared = self._pss(pid, size, (members[pid].start, members[pid].faults), now)
            own += private
            mapped += shared
        self._least = own
        if grown <= 0:
            return own + mapped
        held = mapped + open_shared_memory(sizes) + segments(self.known)
        # What is both mapped and held was counted twice, but not above what the host has more.
        return own + max(mapped, min(held, grown))

    def _pss(
        self, pid: int, size: "tuple[int, int]", born: "tuple[int, int]", now: float
    ) -> "tuple[int, int]":
        """Its part of what it holds, private and shared; `born`: its start, which tells a process
        from its pid's next, and its page faults."""
        kept = self._kept.get(pid)
        if kept and kept[:2] == (born, size) and now - kept[4] < _PSS_KEPT:
            return kept[2], kept[3]
        private, shared = size
        try:
            rollup = processes.read(f"{processes.PROC}/{pid}/smaps_rollup")
            shared = processes.kilobytes(rollup, b"\nPss_Shmem:")
            if b"\nPss_Anon:" in rollup:  # 5.4
                private = processes.kilobytes(rollup, b"\nPss_Anon:")
            else:
                private = min(private, processes.kilobytes(rollup, b"\nPss:") - shared)
            private += processes.kilobytes(rollup, b"\nSwapPss:")
            # Read later than the sizes: what it took meanwhile is in both from now on.
            self._seen[pid, born[0]] = sum(
                processes.kilobytes(rollup, name) for name in (b"\nAnonymous:", b"\nSwap:")
            )
        except PermissionError:
            pass  # another user's process
        except OSError:  # gone, or its first thread alone, which others do not stand for here
            if processes.told_at(pid) == f"{processes.PROC}/{pid}":
                private = shared = 0
        self._kept[pid] = (born, size, private, shared, now)
        return private, shared


def _in_one_memory(members: "dict[int, processes.Stat]") -> "list[int]":
    """Those that live in the address space of their parent, which is a member too."""
    from sandrun.platform import linux_syscalls

    return [
        pid
        for pid, info in members.items()
        if (parent := members.get(info.parent))
        and info.stack == parent.stack != 0
        and linux_syscalls.share_address_space(pid, info.parent)
    ]


class Host:
    """What /proc/meminfo says of the whole host, in bytes; constant zeros where there is none."""

    def __init__(self) -> None:
        self.used = 0
        self.shmem = 0
        try:
            self._fd = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self.read()

    def read(self) -> None:
        if self._fd >= 0:
            text = os.pread(self._fd, 4096, 0)
            self.shmem = processes.kilobytes(text, b"\nShmem:")
            self.used = processes.kilobytes(text, b"\nAnonPages:") + self.shmem


def open_shared_memory(pids: "Iterable[int]") -> int:
    """The memory of the files without a disk that the processes hold open, each counted once."""
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
    """The devices of every tmpfs, and the kernel's own for memfds and segments."""
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
    """The resident memory of the System V segments that these processes made (proc(5))."""
    try:
        _, *rows = processes.read("/proc/sysvipc/shm").strip().split(b"\n")
    except OSError:
        return 0
    return sum(int(row.split()[14]) for row in rows if int(row.split()[4]) in pids)
