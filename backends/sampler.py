"""How often to look at memory, and which processes used it: shared by every backend.

The kernel enforces limits by itself; looking serves the warning at 50 % and the names in the
post-mortem, and, where nothing but polling is to be had, the limit itself.
"""

from sandrun.model import Process
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SHORTEST = 0.01
"""Seconds between two looks at the least: below it the looking itself would cost a core's 1 %."""
CALM = 0.05
"""The same for a tree that does not grow."""
LONGEST = 1.0
FASTEST_LEAK = 4 << 30
"""Bytes per second that a tree is taken to be able to write: about what one core can."""
TOP = 5
_SMALL = 4 << 20
"""Bytes below which a group's cache is not asked for: that costs more than it tells."""


class Sampler:
    """Spaces the looks by head room, and keeps the largest processes seen near the limit.

    `peak` and `cache` are the highest figures of the working set, which is what is in use without
    the page cache that the kernel can take back, and of that cache.
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
        """Whether so little is in use, cache included, that it may count as working set."""
        return current <= min(_SMALL, self.limit // 2)

    def measure(self, current: int, cache: int) -> int:
        """Note the usage, and the cache in it that the kernel can drop; the working set."""
        held = max(0, current - cache)
        self.peak = max(self.peak, held)
        self.cache = max(self.cache, cache)
        return held

    def peak_below(self, highest: int, limit_hit: bool = False) -> int:
        """The highest working set, of which the samples may have missed a short peak: it was no
        less than the kernel's highest usage without the most cache that there was; where the limit
        `limit_hit` all of it, because the kernel drops cache before that.

        A sample may show more than that, a charge that is being refused, and the kernel's figure
        more than the limit: a dying process may pass it (mm/memcontrol.c, try_charge_memcg)."""
        peak = highest if limit_hit else min(highest, max(self.peak, highest - self.cache))
        return min(peak, self.limit) if limit_hit and self.limit else peak

    def note(self, held: int, kinds: "dict[str, int]") -> None:
        """Keep the kinds of memory that there were when most was held. A look may fall into the
        kill, when part of it is gone already."""
        if held >= self._noted:
            self._noted, self.kinds = held, kinds

    def due(self, current: int) -> "float | None":
        """Seconds until the limit could be reached from here, within bounds; None: no limit.

        The interval shrinks with the head room, so even the fastest leak is seen several times
        on its way: at a quarter, a sixteenth ... of the head room.
        """
        if not self.limit:
            return None
        room = max(0, self.limit - current) / FASTEST_LEAK
        grew = current - self.last > self.limit // 256
        self.last = current
        return min(self.longest, max(SHORTEST if grew else CALM, room / 2))

    def look(self, held: int, pids: "Callable[[], list[int]]") -> "list[Process] | None":
        """Who uses the memory, when more than half of the limit is held; None: nothing changed
        since the last look. The answer is for `keep`."""
        if not self.limit or held <= self.limit // 2:
            self.named_at = 0
            return []
        if abs(held - self.named_at) <= self.limit // 50:
            return None
        self.named_at = held
        return list(filter(None, map(processes.describe, pids()))) or None  # None: a crowd

    def keep(self, seen: "list[Process] | None", limit_hit: bool) -> None:
        """Keep those who were seen; those of before while they live, as long as nothing has come up
        since (`seen` is empty). One that exited by itself does not matter any more, except after a
        `limit_hit`, asked after the look: the limit may have killed those that are missing, and
        they are kept for its message."""
        if seen is None:
            return
        known = self.largest
        if not limit_hit:
            earlier = [] if seen else self.top_consumers()
            lives = {p.pid: p for p in earlier if not processes.is_zombie(p.pid)}
            self.largest = lives
        for process in seen:
            before = known.get(process.pid)
            if not limit_hit or not before or process.memory >= before.memory:
                self.largest[process.pid] = process

    def top_consumers(self) -> "list[Process]":
        """The largest, largest first; one that was dying when it was seen has nothing any more."""
        seen = sorted(self.largest.values(), key=lambda p: -p.memory)[:TOP]
        return [process for process in seen if process.memory] or seen
