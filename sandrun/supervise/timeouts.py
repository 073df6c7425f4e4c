"""The limits on time: wall time, CPU time, idle time. Imported only by a run that has one.

- Wall: from the start of the command, the time that it was stopped included, as timeout(1) has it.
- CPU: of the whole tree. A look is due when the limit could be reached at the earliest, with every
  processor busy for us, so most of them are saved and the limit is passed by a look's length.
- Idle: no process wrote a byte anywhere (a pipe, a file, a socket), none came or went, and the tree
  used less than one part in a hundred of one processor. A wait in a loop is idle, therefore.
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
_IDLE_LOOKS = 10
"""Looks in an idle timeout: it is noticed a part in so many late at most."""
_IDLE_SHARE = 0.01
_NEVER = float("inf")


class Timeouts:
    """The limits of one run; `due` is the monotonic time at which `check` wants to be called."""

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
        """The idle time starts again: something happened, or we were stopped."""
        if self.idle_limit:
            self.active_at = now
            self.seen, self.cpu_seen = self._life()
            self.idle_at = now + self.idle_limit / _IDLE_LOOKS

    def check(self, now: float) -> "StopReason":
        """The reason to end the run, or ''."""
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
        seen, cpu = self._life()
        if seen != self.seen or cpu - self.cpu_seen > (now - self.active_at) * _IDLE_SHARE:
            self.restart_idle(now)
            return False
        left = self.active_at + self.idle_limit - now
        self.idle_at = now + min(self.idle_limit / _IDLE_LOOKS, max(left, _SHORTEST))
        return left <= 0

    def _life(self) -> "tuple[dict[int, int], float]":
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
    """wchar of /proc/PID/io (proc(5)); another user's process does not tell."""
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
