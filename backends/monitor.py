"""The memory of a process tree, polled: what a kernel's container would know by itself.

- The tree is found from its root down (/proc/PID/task/*/children), so a look costs what the tree
  is, whatever else lives on the host.
- Between two looks the host's own sum is read, which costs a hundredth of a look and shows
  whatever grows, shared memory and tmpfs included: when a quarter of the head room is gone there,
  a look is due at once. So looks can be rare while nothing happens. (Not MemAvailable: free pages
  that a processor keeps for itself are missing there, up to 60 MiB of them.)
- A process's own RSS is a lower bound of the tree's memory, the sum of all RSS an upper one, and
  both are nearly free; PSS, which walks page tables, is asked for only where those leave it open,
  and not again for a process whose RSS has not changed.
- Processes in one address space (CLONE_VM, or vfork for an instant) count once, as long as the
  one that made the other lives and kcmp(2) may be asked.
- Shared memory counts once: mapped, or only open (memfd, files on a tmpfs), or a System V segment
  made by the tree. Not seen: files on a tmpfs that no process holds open.
"""

import os
import stat
import time

from sandrun import kernel
from sandrun.model import DARWIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SHORTEST = 0.01
"""Seconds between two readings at the least."""
SHORTEST_TICK, LONGEST_TICK = 0.02, 0.1
"""The same while nothing grows on the host."""
FASTEST = 1 << 30
"""Bytes per second that may take a quarter of the head room between two readings; the first that
sees less memory makes the next ones follow at once, so that what is faster is caught as well."""
_LEAST_SLACK = 2 << 20
_SHARE_URGENT = 4
"""The share of looks while the limit is near."""
_SOON = 0.2
_PSS_KEPT = 5.0
"""Seconds for which a process's PSS holds if its RSS does not change, though others in the tree
do: they may share its pages no more."""


def walk(root: int, without: "Mapping[int, int] | None" = None) -> "dict[int, kernel.Stat]":
    """The live descendants of `root`, parents before children; zombies left out, and `without`
    those (their starts by pid) and what is below them.

    Orphans are among them only if `root` is a subreaper. Who dies after its parent was read and
    before it was read itself hides its children from this look.
    """
    return tree(_children(root, 1), without or {})


def tree(frontier: "list[int]", without: "Mapping[int, int]") -> "dict[int, kernel.Stat]":
    """The same of these processes and all their descendants."""
    found: dict[int, kernel.Stat] = {}
    for pid in frontier:
        try:
            info = kernel.Stat(pid)
        except OSError:
            continue
        if pid in found or without.get(pid) == info.start:
            continue
        if info.state not in "ZX" or info.threads > 1:
            found[pid] = info
            frontier += _children(pid, info.threads)
    return found


def is_crowd(root: int, most: int) -> bool:
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
        return kernel.children(pid)
    found: list[int] = []
    try:
        tasks = [str(pid)] if threads == 1 else os.listdir(f"{kernel.PROC}/{pid}/task")
        for task in tasks:
            found += map(int, kernel.read(f"{kernel.PROC}/{pid}/task/{task}/children").split())
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
        self._sizes: dict[int, int] = {}
        self._kept: dict[int, tuple[int, int, int, int, float]] = {}

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

    def look(self, members: "dict[int, kernel.Stat]", now: float) -> int:
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

    def _measure(self, members: "dict[int, kernel.Stat]", now: float) -> int:
        sizes = {pid: _rss(pid, info) for pid, info in members.items()}
        if sum(sizes.values()) > self.limit // 2:
            for pid in _in_one_memory(members):
                del sizes[pid]
        same, self._sizes = sizes == self._sizes, sizes
        upper = sum(sizes.values())
        most = max(sizes.values(), default=0)
        grown = self.host.shmem - self.shmem_before
        if grown <= self.limit // 16:
            if upper <= self.limit // 2 or upper - most <= self.limit // 50:
                return upper
            if most > self.limit:
                return most
            if same:
                return self.current
        if self._kept.keys() != sizes.keys():
            self._kept.clear()  # who is new shares pages of those whose PSS we know
        memory = self._exact(members, sizes, grown, now)
        if memory > self.limit and self._kept:  # no verdict on what was measured earlier
            self._kept.clear()
            memory = self._exact(members, sizes, grown, now)
        return memory

    def _exact(
        self, members: "dict[int, kernel.Stat]", sizes: "dict[int, int]", grown: int, now: float
    ) -> int:
        own = mapped = 0
        for pid, rss in sizes.items():
            pss, shmem = self._pss(pid, rss, members[pid].start, now)
            own += pss - shmem
            mapped += shmem
        if grown <= 0:
            return own + mapped
        held = mapped + open_shared_memory(sizes) + segments(self.known)
        # What is both mapped and held was counted twice, but not above what the host has more.
        return own + max(mapped, min(held, grown))

    def _pss(self, pid: int, rss: int, start: int, now: float) -> "tuple[int, int]":
        """PSS, and how much of it is shared memory; `start` tells a process from its pid's next."""
        kept = self._kept.get(pid)
        if kept and kept[:2] == (start, rss) and now - kept[4] < _PSS_KEPT:
            return kept[2], kept[3]
        try:
            rollup = kernel.read(f"{kernel.PROC}/{pid}/smaps_rollup")
            pss, shmem = _field(rollup, b"\nPss:"), _field(rollup, b"\nPss_Shmem:")
        except PermissionError:  # another user's process
            pss, shmem = rss, 0
        except OSError:  # gone, or its first thread alone, which others do not stand for here
            pss, shmem = rss if kernel.told_at(pid) != f"{kernel.PROC}/{pid}" else 0, 0
        self._kept[pid] = (start, rss, pss, shmem, now)
        return pss, shmem


def _in_one_memory(members: "dict[int, kernel.Stat]") -> "list[int]":
    """Those that live in the address space of their parent, which is a member too."""
    return [
        pid
        for pid, info in members.items()
        if (parent := members.get(info.parent))
        and info.stack == parent.stack != 0
        and kernel.share_memory(pid, info.parent)
    ]


def _field(text: bytes, name: bytes) -> int:
    """The kilobytes after `name`, as bytes; 0 where it is missing."""
    words = text.partition(name)[2].split(None, 1)
    return int(words[0]) * 1024 if words else 0


def _rss(pid: int, info: kernel.Stat) -> int:
    """The resident memory; of a leader that is dead while its threads live, through one of them."""
    if info.state not in "ZX":
        return info.rss
    try:
        rss = int(kernel.read(f"{kernel.told_at(pid)}/statm").split()[1])
    except (OSError, IndexError):  # the last thread ended, and the parent has reaped it
        return 0
    return rss * os.sysconf("SC_PAGESIZE")


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
            self.shmem = _field(text, b"\nShmem:")
            self.used = _field(text, b"\nAnonPages:") + self.shmem


def open_shared_memory(pids: "dict[int, int]") -> int:
    """The memory of the files without a disk that the processes hold open, each counted once."""
    devices = _memory_devices()
    seen: dict[tuple[int, int], int] = {}
    for pid in pids:
        try:
            with os.scandir(f"{kernel.PROC}/{pid}/fd") as entries:
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
    for line in kernel.read("/proc/self/mountinfo").split(b"\n"):
        head, _, tail = line.partition(b" - ")
        if tail.startswith(b"tmpfs "):
            major, _, minor = head.split()[2].partition(b":")
            found.add(os.makedev(int(major), int(minor)))
    return found


def segments(pids: "set[int]") -> int:
    """The resident memory of the System V segments that these processes made (proc(5))."""
    try:
        _, *rows = kernel.read("/proc/sysvipc/shm").strip().split(b"\n")
    except OSError:
        return 0
    return sum(int(row.split()[14]) for row in rows if int(row.split()[4]) in pids)
