"""How often to look at memory, and which processes used it: shared by every backend.

The kernel enforces limits by itself; looking serves the warning at 50 % and the names in the
post-mortem, and, where nothing but polling is to be had, the limit itself.
"""

from sandrun import kernel
from sandrun.model import Process

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


class Sampler:
    """Spaces the looks by head room, and keeps the largest processes seen near the limit."""

    def __init__(self, limit: int, longest: float = LONGEST) -> None:
        self.limit = limit
        self.longest = longest
        self.last = 0
        self.named_at = 0
        self.largest: dict[int, Process] = {}
        self.kinds: dict[str, int] = {}

    def note(self, anon: int, cache: int, shmem: int) -> None:
        """How much memory there was of each kind when there was most; `cache` includes `shmem`. A
        look may fall into the kill, when part of it is gone already."""
        kinds = {"anon": anon, "file": max(0, cache - shmem), "shmem": shmem}
        if sum(kinds.values()) >= sum(self.kinds.values()):
            self.kinds = kinds

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

    def look(self, current: int, pids: "Callable[[], list[int]]") -> None:
        """Note who uses the memory, when more than half of the limit is in use and it grew."""
        if self.limit and current > self.limit // 2 and current > self.named_at + self.limit // 50:
            self.named_at = current
            for pid in pids():
                process = kernel.describe(pid)
                known = self.largest.get(pid)
                if process and (not known or process.memory >= known.memory):
                    self.largest[pid] = process

    def top(self) -> "list[Process]":
        """The largest, largest first."""
        return sorted(self.largest.values(), key=lambda p: -p.memory)[:TOP]
