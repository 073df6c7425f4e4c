"""How the processes of a run are asked to end on POSIX: in which order, and until when we wait.

Imported only by a run that is ended before its command has exited, or that left processes behind.
"""

import os
import sys
import time

from sandrun.bare import signal as _signal
from sandrun.platform import processes

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandrun.backends.protocol import Container

_SETTLE_SECONDS = 0.5
"""Seconds after a run began to end at its memory limit in which it may still reach that limit: a
large process takes some time to die, and the kernel enforces the limit meanwhile."""


class MemoryPressure:
    """Whether a run that ends at its memory limit reaches the limit again; where no kernel enforces
    the limit meanwhile, also whether it uses more than before."""

    def __init__(self, container: "Container", limit: int, kernel: bool, now: float) -> None:
        self._container = container
        self._kernel = kernel
        self._settled_at = now + _SETTLE_SECONDS
        self._most = max(limit * 1.1, container.usage().current or 0)
        self._oom_events = container.oom_events

    def persists(self, now: float) -> bool:
        """Whether the pressure persists, by the container's last poll."""
        if now < self._settled_at:
            self._oom_events = self._container.oom_events
        more = not self._kernel and (self._container.usage().current or 0) > self._most
        return more or self._container.oom_events > self._oom_events


def ask_to_end(
    pids: "list[int]", signum: int, send: "Callable[[int, int], None]"
) -> "dict[int, int]":
    """Send the signal to these processes, children first; return their start times."""
    starts = {pid: processes.start(pid) for pid in pids}
    # A child starts after its parent; within one tick of the clock the higher pid is usually the
    # child's.
    for pid in sorted(pids, key=lambda pid: (starts[pid], pid), reverse=True):
        send(pid, signum)
        send(pid, _signal.SIGCONT)  # a stopped process could not act on it
    return starts


def largest(pids: "list[int]", kernel: bool) -> "list[int]":
    """The process that uses most memory; none if the `kernel` kills it."""
    pid = max(pids, key=_memory_of)
    return [] if kernel and not processes.is_oom_protected(pid) else [pid]


def _memory_of(pid: int) -> int:
    found = processes.describe(pid)
    return found.memory if found else 0  # it is gone


def await_reaped(ended: "Mapping[int, int]", reap: "Callable[[], None]", seconds: float) -> None:
    """Return when none of the `ended` processes (start times by pid) lives or is a zombie that we
    or init must reap, at the latest after so many seconds. Programs that look up a pid (dmypy,
    bazel, Xvfb) take a zombie for a live process. `reap` reaps our children, also adopted ones."""
    deadline = time.monotonic() + seconds
    pause = 0.0005
    for pid, start in ended.items():
        while _is_unreaped(pid, start) and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
            reap()


def _is_unreaped(pid: int, start: int) -> bool:
    """Whether the process lives, or is a zombie whose parent is we or init. How long another parent
    keeps a zombie is not ours to wait for."""
    try:
        stat = processes.Stat(pid)
    except OSError:
        return False
    return stat.start == start and (stat.state not in "ZX" or stat.parent in (1, os.getpid()))
