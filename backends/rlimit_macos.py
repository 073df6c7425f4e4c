"""The `rlimit` backend on macOS: footprints, polled, and descendants that are remembered.

Memory is the sum of the processes' physical footprints (`sandrun.platform.macos_processes`):
compressed pages count, shared ones count in each process that touched them. The host's own sum is
not to be had, so the looks are as frequent as a fast leak demands. There is no rlimit beside:
RLIMIT_AS counts what is reserved, as RLIMIT_DATA does on Linux, and nobody can read another's here,
so none is a mark.

There is no subreaper: an orphan becomes a child of pid 1. Invariants
- A process of the tree is remembered from its first look on by pid and start, so it stays ours
  wherever it goes, and its pid's next owner never is.
- An orphan that came since the command started is ours if it has the run's mark in its
  environment, or is in our process group and we lead that one (an interactive shell's job).
- What is remembered lies in memory shared with the keeper, which ends it all when we are killed.

No session or process group of the run's own, and so no killpg(2): the command shares ours, or the
terminal's Ctrl-C and Ctrl-Z would come to it through us only, and job control would stop the wrong
group. Whoever leaves the group would escape a killpg, but is remembered like all others.

The gap: a process that leaves its parent between two looks, in a group that is not ours alone,
and with its environment cleared or hidden (Apple's own programs hide theirs).
"""

import itertools
import mmap
import os
import time

from sandrun.backends import memory_monitor
from sandrun.backends.rlimit import RlimitBackend, RlimitContainer
from sandrun.model import Limits, Usage
from sandrun.platform import macos_processes, processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.platform import spawn

_REMEMBERED = 4096
"""Processes that the keeper is told of; those beyond it finds by their mark."""


class FootprintMonitor(memory_monitor.Monitor):
    """The same pace, but a look is all there is: between two nothing can be seen."""

    expected = 1 << 30
    share = 50
    walked = 0.0
    """What the last walk down the tree cost, in seconds of a core."""

    def due(self, now: float) -> float:
        return max(0.0, self.look_at - now)

    def _plan(self, now: float, growth: float, cost: float) -> None:
        super()._plan(now, growth, cost + self.walked)

    def _measure(self, members: "dict[int, processes.Stat]", now: float) -> int:
        self._sizes = {pid: (info.rss, 0) for pid, info in members.items()}
        return sum(info.rss for info in members.values())


class DarwinContainer(RlimitContainer):
    """See `sandrun.backends.protocol.Container`."""

    def __init__(self, run_id: str, limits: "Limits | None" = None, data: int = 0) -> None:
        super().__init__(run_id, limits, data)
        self.monitor: FootprintMonitor = FootprintMonitor(self.monitor.limit, self.monitor.longest)
        self.known: dict[int, int] = {}
        """The starts of those remembered, by pid; parents before children."""
        self.orphans = set(processes.children(1) if limits else ())
        """Children of pid 1 that are not ours: at first all (taken before the keeper is forked)."""
        self.shared = memoryview(mmap.mmap(-1, 16 * _REMEMBERED)).cast("Q")
        """The same as `known` for the keeper: pid and start in turns, up to the first 0."""
        self.cpu = 0.0
        """Seconds at the last look: whom nobody waits for takes its own along."""

    def spawn(
        self, argv: "list[str]", env: "Mapping[str, str]", caller: "spawn.CallerState"
    ) -> int:
        child = super().spawn(argv, env, caller)
        self._members()
        return child

    def _members(self) -> "dict[int, processes.Stat]":
        """What lives of the run, parents before children; remembers it."""
        began = time.thread_time()
        if os.getpid() == self.owner:
            frontier = processes.children(self.owner)
        else:
            pairs = zip(self.shared[::2], self.shared[1::2], strict=True)
            self.known |= dict(itertools.takewhile(lambda pair: pair[0], pairs))
            frontier = processes.marked(self.mark, "")
        # Another user's process does not tell its start: that one is known by its parent alone.
        known = [p for p, start in self.known.items() if start and processes.start(p) == start]
        frontier += known + self._orphans(known)
        found = memory_monitor.tree(
            [pid for pid in frontier if pid not in (*self.own, os.getpid())], self.strangers
        )
        self._remember({pid: info.start for pid, info in found.items()})
        times = os.times()
        reaped = times.children_user + times.children_system
        self.cpu = max(self.cpu, reaped + sum(info.cpu for info in found.values()))
        self.monitor.walked = time.thread_time() - began
        return found

    def usage(self) -> Usage:
        usage = super().usage()
        if not self.known:  # while something lives, who wants to know looks itself
            usage.cpu = self.cpu
        return usage

    def _orphans(self, known: "list[int]") -> "list[int]":
        """Those of the run that came since the last look, beside the `known` ones."""
        orphans = set(processes.children(1)).difference(known, self.own)
        ours = [pid for pid in orphans - self.orphans if self._is_ours(pid)]
        self.orphans = orphans.difference(ours)
        return ours

    def _is_ours(self, pid: int) -> bool:
        try:
            if os.getpgid(pid) == self.owner:
                return True
        except OSError:
            return False
        return macos_processes.is_marked(pid, self.mark)

    def _remember(self, known: "dict[int, int]") -> None:
        if known != self.known:
            self.known = known
            pairs = itertools.islice(known.items(), _REMEMBERED - 1)
            for at, number in enumerate(itertools.chain(*pairs, (0,))):
                self.shared[at] = number

    def live_pids(self) -> "list[int]":
        # Twice: one that was about to be an orphan may hide from one look.
        found = self._members() or self._members()
        self.starts = {pid: info.start for pid, info in found.items()}
        return list(found)

    def release_processes(self) -> None:
        """Nothing to lift: nobody can change another's limits here."""


class DarwinBackend(RlimitBackend):
    """See `sandrun.backends.protocol.Backend`."""

    container = DarwinContainer
