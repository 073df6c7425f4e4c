"""How often to sample memory, and which processes used it. All backends share this module.

The kernel enforces limits by itself; samples are for the warning at 50 % and for the names in the
final report. Only the polling backends enforce the limit by samples.
"""

from sandrun.model import Process
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SHORTEST = 0.01
"""Minimum seconds between two samples: more frequent ones would cost more than 1 % of a core."""
CALM = 0.05
"""The same while the tree does not grow."""
LONGEST = 1.0
"""Maximum seconds between two samples."""
FASTEST_LEAK = 4 << 30
"""Bytes per second that a tree is assumed to allocate at most: about what one core can write."""
TOP = 5
"""How many processes are named in a report."""
_SMALL = 4 << 20
"""Bytes of usage up to which a group's page cache is not read, to save that cost."""


class Sampler:
    """Plans samples by the memory left below the limit; keeps the largest processes seen near it.

    `peak` is the maximum of the working set (usage without reclaimable page cache), `cache` that of
    the reclaimable page cache.
    """

    def __init__(self, limit: int, longest: float = LONGEST) -> None:
        self.limit = limit
        self.longest = longest
        self.last = 0
        self.listed_at = 0
        self.largest: dict[int, Process] = {}
        self.kinds: dict[str, int] = {}
        self.peak = self.cache = self._noted = 0

    def is_small(self, current: int) -> bool:
        """Whether usage is so low that its cache may count as working set."""
        return current <= min(_SMALL, self.limit // 2)

    def measure(self, current: int, cache: int) -> int:
        """Record a sample of the usage and its reclaimable cache; return the working set."""
        working_set = max(0, current - cache)
        self.peak = max(self.peak, working_set)
        self.cache = max(self.cache, cache)
        return working_set

    def peak_working_set(self, highest: int, limit_hit: bool = False) -> int:
        """The highest working set. `highest` is the kernel's highest usage. Samples may miss a
        short peak, so `highest` minus the largest cache is a lower bound. If the limit was hit,
        `highest` counts as a whole, because the kernel reclaims cache first.

        A sample may include a charge that is then refused, so `highest` is an upper bound. It may
        exceed the limit, as a dying process may (mm/memcontrol.c, try_charge_memcg): that excess
        does not count."""
        peak = highest if limit_hit else min(highest, max(self.peak, highest - self.cache))
        return min(peak, self.limit) if limit_hit and self.limit else peak

    def note(self, working_set: int, kinds: "dict[str, int]") -> None:
        """Keep the kinds of memory of the largest sample. A sample taken during a kill may lack
        memory that is already freed."""
        if working_set >= self._noted:
            self._noted, self.kinds = working_set, kinds

    def due(self, current: int) -> "float | None":
        """Seconds until the next sample: half the time in which the fastest leak would reach the
        limit, so that it is sampled several times before. None: there is no limit."""
        if not self.limit:
            return None
        room = max(0, self.limit - current) / FASTEST_LEAK
        grew = current - self.last > self.limit // 256
        self.last = current
        return min(self.longest, max(SHORTEST if grew else CALM, room / 2))

    def sample(self, working_set: int, pids: "Callable[[], list[int]]") -> "list[Process] | None":
        """The processes that use the memory, for `keep`; [] up to half of the limit. None: usage
        has hardly changed since they were listed, or they are too many to examine."""
        if not self.limit or working_set <= self.limit // 2:
            self.listed_at = 0
            return []
        if abs(working_set - self.listed_at) <= self.limit // 50:
            return None
        self.listed_at = working_set
        return list(filter(None, map(processes.describe, pids()))) or None

    def keep(self, seen: "list[Process] | None", limit_hit: bool) -> None:
        """Keep the result of `sample`. If it is empty, keep the earlier processes that still live.
        After a limit was hit, all earlier ones are kept for the message, because the kernel may
        have killed them. `limit_hit` must be read after the sample."""
        if seen is None:
            return
        known = self.largest
        if not limit_hit:
            earlier = [] if seen else self.top_consumers()
            lives = {p.pid: p for p in earlier if not processes.has_exited(p.pid)}
            self.largest = lives
        for process in seen:
            before = known.get(process.pid)
            if not limit_hit or not before or process.memory >= before.memory:
                self.largest[process.pid] = process

    def top_consumers(self) -> "list[Process]":
        """The largest processes, largest first; without those that had already freed their memory,
        if others are left."""
        seen = sorted(self.largest.values(), key=lambda p: -p.memory)[:TOP]
        return [process for process in seen if process.memory] or seen
