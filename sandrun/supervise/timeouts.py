"""The limits on time: wall time, CPU time, idle time. Imported only by a run that has one.

- Wall: from the start of the command, including the time that it was stopped, as in timeout(1).
- CPU: of the whole tree. A sample is due when the limit can be reached at the earliest, with every
  processor busy for the run. So samples are few, and the limit is exceeded by one sample's time.
- Idle: no process wrote a byte anywhere (a pipe, a file, a socket), none started or exited, and the
  tree used less than one part in a hundred of one processor. So a wait in a polling loop is idle.
"""

import os
import sys

from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.backends.protocol import Container
    from sandrun.config.settings import Settings
    from sandrun.types import StopReason

_SHORTEST = 0.01
_IDLE_SAMPLES = 10
"""Samples in an idle timeout: its end is noticed late by at most one part in so many."""
_IDLE_SHARE = 0.01
_NEVER = float("inf")


class Timeouts:
    """The limits of one run; `due` is the monotonic time at which `check` has to be called."""

    def __init__(self, settings: "Settings", container: "Container", now: float) -> None:
        self.container = container
        self.wall_end = now + settings.timeout if settings.timeout else _NEVER
        self.cpu_limit = settings.cpu_time
        self.cpu_at = now + settings.cpu_time / _processors() if settings.cpu_time else _NEVER
        self.idle_limit = settings.idle_timeout
        self.idle_at = _NEVER
        if self.idle_limit:
            self.restart_idle(now)
        self.due = min(self.wall_end, self.cpu_at, self.idle_at)

    def restart_idle(self, now: float) -> None:
        """Start the idle time again: the run was active, or we were stopped."""
        if self.idle_limit:
            self.active_at = now
            self.written, self.cpu_used = self._activity()
            self.idle_at = now + self.idle_limit / _IDLE_SAMPLES

    def check(self, now: float) -> "StopReason":
        """The reason to end the run; '': none."""
        if now >= self.wall_end:
            return "timeout"
        if now >= self.cpu_at:
            left = self.cpu_limit - self._cpu()
            if left <= 0:
                return "cpu-time"
            self.cpu_at = now + max(_SHORTEST, left / _processors())
        if now >= self.idle_at and self._is_idle(now):
            return "idle"
        self.due = min(self.wall_end, self.cpu_at, self.idle_at)
        return ""

    def _is_idle(self, now: float) -> bool:
        written, cpu = self._activity()
        if written != self.written or cpu - self.cpu_used > (now - self.active_at) * _IDLE_SHARE:
            self.restart_idle(now)
            return False
        left = self.active_at + self.idle_limit - now
        self.idle_at = now + min(self.idle_limit / _IDLE_SAMPLES, max(left, _SHORTEST))
        return left <= 0

    def _activity(self) -> "tuple[dict[int, int], float]":
        """The bytes that each process has written, and the CPU time of all."""
        return {pid: _written(pid) for pid in self.container.live_pids()}, self._cpu()

    def _cpu(self) -> float:
        used = self.container.usage().cpu
        if used is not None:
            return used
        times = os.times()
        return times.children_user + times.children_system + _cpu_of(self.container.live_pids())


def _processors() -> int:
    return max(1, os.cpu_count() or 1)


def _written(pid: int) -> int:
    """wchar of /proc/PID/io (proc(5)); 0 for another user's process, whose file cannot be read."""
    if sys.platform == "win32":
        return processes.written(pid)
    try:
        return int(
            processes.read(f"{processes.PROC}/{pid}/io").partition(b"wchar: ")[2].split(b"\n")[0]
        )
    except (OSError, ValueError):
        return 0


def _cpu_of(pids: "list[int]") -> float:
    """The CPU time of live processes and of the children that they have reaped."""
    total = 0.0
    for pid in pids:
        try:
            total += processes.Stat(pid).cpu
        except OSError:
            continue
    return total
