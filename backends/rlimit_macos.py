"""The backend `rlimit` on macOS: polled footprints and remembered descendants.

Memory is the sum of the processes' physical footprints (`sandrun.platform.macos_processes`).
Compressed pages count; shared pages count in each process that touched them. The host's memory
cannot be read between samples, so samples are as frequent as a fast leak requires. No rlimit is
set: RLIMIT_AS counts reserved memory, as RLIMIT_DATA does on Linux, and another process's rlimits
cannot be read, so they cannot be a mark.

macOS has no subreaper: an orphan becomes a child of pid 1. Invariants
- A process of the tree is remembered by pid and start time from its first sample on. It belongs to
  the run whatever its parent and group are then; a later process with its pid does not.
- A new orphan belongs to the run if it has the run's mark in its environment, or if it is in our
  process group and we lead that group (the job of an interactive shell).
- The remembered processes are in memory shared with the keeper, which ends them if we are killed.

The run has no session or process group of its own, and there is no killpg(2). Otherwise the
terminal's Ctrl-C and Ctrl-Z would reach the command only through us, and job control would stop the
wrong group. A process that leaves the group would escape a killpg, but it is remembered.

The gap: a process that becomes an orphan between two samples is missed if we do not lead its group
and its environment is cleared or hidden (Apple's own programs hide theirs).
"""

import itertools
import mmap
import os
import sys
import time

assert sys.platform != "win32"

from sandrun.backends import memory_monitor
from sandrun.backends.rlimit import RlimitBackend, RlimitContainer
from sandrun.model import Limits, Usage
from sandrun.platform import macos_processes, processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.platform import spawn

_REMEMBERED = 4096
"""How many processes are shared with the keeper; it finds others by their mark."""


class FootprintMonitor(memory_monitor.Monitor):
    """Samples like `Monitor`, but the host's memory cannot be read in between."""

    expected = 1 << 30
    share = 50
    walked = 0.0
    """The cost of the last walk of the tree, in seconds of CPU time."""

    def due(self, now: float) -> float:
        return max(0.0, self.sample_at - now)

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
        """The start times of the remembered processes, by pid; parents before children."""
        self.orphans = set(processes.children(1) if limits else ())
        """Children of pid 1 that are not ours: at first all (read before the keeper is forked)."""
        self.shared = memoryview(mmap.mmap(-1, 16 * _REMEMBERED)).cast("Q")
        """`known`, for the keeper: alternating pids and start times, up to the first 0."""
        self.cpu = 0.0
        """The highest CPU seconds of a sample; those of a process that we do not reap are lost."""

    def spawn(
        self, argv: "list[str]", env: "Mapping[str, str]", caller: "spawn.CallerState"
    ) -> int:
        child = super().spawn(argv, env, caller)
        self._members()
        return child

    def _members(self) -> "dict[int, processes.Stat]":
        """The live processes of the run, parents before children; remembers them."""
        began = time.thread_time()
        if os.getpid() == self.owner:
            frontier = processes.children(self.owner)
        else:
            pairs = zip(self.shared[::2], self.shared[1::2], strict=True)
            self.known |= dict(itertools.takewhile(lambda pair: pair[0], pairs))
            frontier = processes.marked_processes(self.mark, "")
        # The start time of another user's process is hidden, so only its parent proves it.
        known = [p for p, start in self.known.items() if start and processes.start(p) == start]
        frontier += known + self._orphans(known)
        found = memory_monitor.tree(
            [pid for pid in frontier if pid not in (*self.helpers, os.getpid())],
            self.earlier_children,
        )
        self._remember({pid: info.start for pid, info in found.items()})
        times = os.times()
        reaped = times.children_user + times.children_system
        self.cpu = max(self.cpu, reaped + sum(info.cpu for info in found.values()))
        self.monitor.walked = time.thread_time() - began
        return found

    def usage(self) -> Usage:
        usage = super().usage()
        if not self.known:  # the caller adds the CPU time of live processes
            usage.cpu = self.cpu
        return usage

    def _orphans(self, known: "list[int]") -> "list[int]":
        """New orphans of the run since the last sample, besides the `known` processes."""
        orphans = set(processes.children(1)).difference(known, self.helpers)
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
        # Twice: the first walk may miss a process that just becomes an orphan.
        found = self._members() or self._members()
        self.starts = {pid: info.start for pid, info in found.items()}
        return list(found)


class DarwinBackend(RlimitBackend):
    """See `sandrun.backends.protocol.Backend`."""

    container = DarwinContainer
