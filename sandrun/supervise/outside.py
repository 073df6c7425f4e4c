"""Daemons that work for a run and were started outside of it: found and named, never signalled.

The run's limits do not apply to them, and its end does not end them. A daemon is outside if it
started before the command. It worked if its CPU time, with that of its reaped children, grew while
the run lasted. That it worked for this run cannot be proved: a daemon that serves one project
counts for that project alone, but one that serves all of a user's projects may have worked for
another. A daemon that the run's variables make unnecessary (`Daemon.variable`) is not searched for.
"""

import os
import sys
import time

from sandrun.model import DARWIN, RUNS_VARIABLE
from sandrun.platform import processes
from sandrun.supervise import daemons

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.model import Process

_WORK = 0.001
"""Seconds of CPU time that count as work, unless an idle one would use them (`Daemon.idle`)."""
_SLICE = 0.002
"""Seconds that one step of the search may take: the supervisor has limits to watch, and a host may
have thousands of processes."""


class Outside:
    """The daemons that existed when the run began, with the CPU time that they had used by then."""

    def __init__(self, child: int, project: str, env: "Mapping[str, str]") -> None:
        """`child` is the command, `env` its environment."""
        self.began = time.monotonic()
        self.before: dict[int, tuple[int, float]] = {}
        self._born = processes.start(child)
        self._project = project
        self._env = env
        self._pids = _processes()

    def search(self) -> bool:
        """Examine some of the processes. Returns whether there are more."""
        until = time.monotonic() + _SLICE
        while self._pids and time.monotonic() < until:
            pid = self._pids.pop()
            try:
                start = processes.start(pid)
                if 0 < start < self._born and _serves(pid, self._project, self._env):
                    self.before[pid] = start, _cpu(pid)
            except OSError:
                continue  # it is gone
        return bool(self._pids)

    def active(self) -> "list[Process]":
        """The daemons that have worked since the run began."""
        lasted = time.monotonic() - self.began
        found = []
        for pid, (start, cpu) in self.before.items():
            row = daemons.known(pid)
            try:
                worked = row and _cpu(pid) - cpu >= max(_WORK, lasted * row.idle)
            except OSError:
                continue
            if worked and processes.start(pid) == start:
                found.append(daemons.describe(pid))
        return [process for process in found if process and process.daemon]


def serving(project: str, env: "Mapping[str, str]") -> "list[int]":
    """Live daemons of this user that work for `project`; `env` is the environment of a command
    there."""
    return [pid for pid in _processes() if _serves(pid, project, env)]


def _processes() -> "list[int]":
    try:
        return [int(name) for name in os.listdir(processes.PROC) if name.isdigit()]
    except OSError:
        return []  # no /proc, or that of another pid namespace


def _serves(pid: int, project: str, env: "Mapping[str, str]") -> bool:
    try:
        if processes.owner(pid) != os.geteuid():
            return False
        row = daemons.known(pid)
        if not row or not row.serves:
            return False
        if row.variable and env.get(row.variable) != os.environ.get(row.variable):
            return False  # the run sets the variable, and needs no such daemon
        if row.serves == "user":
            return RUNS_VARIABLE not in processes.environ(pid)  # else it belongs to another run
        top = project.rstrip("/") + "/"
        words = [processes.working_directory(pid), *processes.arguments(pid)]
        return any(f"{word.rpartition('=')[2].strip('[]')}/".startswith(top) for word in words)
    except OSError:
        return False


def _cpu(pid: int) -> float:
    """Seconds of CPU time of a process and its reaped children. Its own time is not rounded to
    ticks of 10 ms: clock_getcpuclockid(3), whose macro is MAKE_PROCESS_CPUCLOCK. Raises OSError if
    it is gone."""
    if DARWIN:
        raise NotImplementedError
    return time.clock_gettime(~pid << 3 | 2) + processes.Stat(pid).reaped
