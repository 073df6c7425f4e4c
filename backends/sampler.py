"""How often to sample memory, and which processes used it. All backends share this module.

The kernel enforces limits by itself. Samples serve the warning at 50 % and the names in the final
report, and the limit itself where only polling is available.
"""

from sandrun.model import Process
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SHORTEST = 0.01
"""Minimum seconds between two samples: more frequent ones would cost more than 1 % of a core."""
CALM = 0.05
"""The same for a tree that does not grow, in seconds."""
LONGEST = 1.0
FASTEST_LEAK = 4 << 30
"""Bytes per second that a tree is assumed to allocate at most: about what one core can write."""
TOP = 5
_SMALL = 4 << 20
"""Bytes of usage below which a group's page cache is not read: that would cost too much."""


class Sampler:
    """Spaces samples by the remaining room and keeps the largest processes seen near the limit.

    `peak` and `cache` are maxima: of the working set (usage without reclaimable page cache), and of
    that cache.
    """

    def __init__(self, limit: int, longest: float = LONGEST) -> None:
        self.limit = limit
        self.longest = longest
        self.last = 0
        self.named_at = 0
        self.largest: dict[int, Process] = {}
        self.kinds: dict[str, int] = {}
        self.peak = self.cache = self._noted = 0

    def is_small(self, current: int) -> bool:
        """Whether usage is so low, cache included, that all of it may count as working set."""
        return current <= min(_SMALL, self.limit // 2)

    def measure(self, current: int, cache: int) -> int:
        """Record a sample of the usage and its reclaimable cache; return the working set."""
        held = max(0, current - cache)
        self.peak = max(self.peak, held)
        self.cache = max(self.cache, cache)
        return held

    def peak_below(self, highest: int, limit_hit: bool = False) -> int:
        """The highest working set. Samples may miss a short peak, so the kernel's highest usage
        minus the largest cache is a lower bound. If the limit was hit, the highest usage counts as
        a whole, because the kernel reclaims cache first.

        A sample may include a charge that is about to be refused, and the kernel's figure may
        exceed the limit because a dying process may (mm/memcontrol.c, try_charge_memcg)."""
        peak = highest if limit_hit else min(highest, max(self.peak, highest - self.cache))
        return min(peak, self.limit) if limit_hit and self.limit else peak

    def note(self, held: int, kinds: "dict[str, int]") -> None:
        """Keep the kinds of memory of the largest sample. A sample taken during a kill may show
        only part of it."""
        if held >= self._noted:
            self._noted, self.kinds = held, kinds

    def due(self, current: int) -> "float | None":
        """Seconds until the next sample, by the time in which the limit could be reached; None: no
        limit.

        The interval shrinks with the remaining room, so even the fastest leak is sampled several
        times on its way.
        """
        if not self.limit:
            return None
        room = max(0, self.limit - current) / FASTEST_LEAK
        grew = current - self.last > self.limit // 256
        self.last = current
        return min(self.longest, max(SHORTEST if grew else CALM, room / 2))

    def sample(self, held: int, pids: "Callable[[], list[int]]") -> "list[Process] | None":
        """The processes that use the memory, if more than half of the limit is in use. None:
        nothing changed since the last call. The result is for `keep`."""
        if not self.limit or held <= self.limit // 2:
            self.named_at = 0
            return []
        if abs(held - self.named_at) <= self.limit // 50:
            return None
        self.named_at = held
        return list(filter(None, map(processes.describe, pids()))) or None  # too many processes

    def keep(self, seen: "list[Process] | None", limit_hit: bool) -> None:
        """Keep the processes `seen`; if it is empty, keep the earlier ones that still live. After a
        limit was hit, missing processes are kept for the message, because the limit may have
        killed them; `limit_hit` must be read after the sample."""
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
        """The largest processes, largest first. One that was dying when seen holds no memory."""
        seen = sorted(self.largest.values(), key=lambda p: -p.memory)[:TOP]
        return [process for process in seen if process.memory] or seen
