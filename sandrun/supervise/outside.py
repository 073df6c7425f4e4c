"""Daemons that do the work of a run and were started outside of it: seen, named, never touched.

No limit of the run holds for them and its end does not end them. What proves that one is outside:
it started before the command. That it worked: its CPU time, that of its reaped children included,
grew while the run lasted. That the work was the run's cannot be proved; a daemon that serves one
project counts for that project alone, and one that serves all of a user's may have worked for
another. One that does without variables that the run sets (`Daemon.variable`) is not looked for.
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
"""Seconds that one look may take: whoever looks has a limit to watch, and a host may have thousands
of processes."""


class Outside:
    """The daemons that were there when the run began, with the work they had done by then."""

    def __init__(self, child: int, project: str, env: "Mapping[str, str]") -> None:
        """`child` is the command, `env` its environment."""
        self.began = time.monotonic()
        self.before: dict[int, tuple[int, float]] = {}
        self._born = processes.start(child)
        self._project = project
        self._env = env
        self._pids = _processes()

    def search(self) -> bool:
        """Examine some of the processes; whether there are more."""
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
        """Those that have worked since."""
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
    """Live daemons of this user's that do work for `project`; `env` is that of a command there."""
    return [pid for pid in _processes() if _serves(pid, project, env)]


def _processes() -> "list[int]":
    try:
        return [int(name) for name in os.listdir(processes.PROC) if name.isdigit()]
    except OSError:
        return []  # no /proc, or another namespace's


def _serves(pid: int, project: str, env: "Mapping[str, str]") -> bool:
    try:
        if processes.owner(pid) != os.geteuid():
            return False
        row = daemons.known(pid)
        if not row or not row.serves:
            return False
        if row.variable and env.get(row.variable) != os.environ.get(row.variable):
            return False  # set for the run
        if row.serves == "user":
            return RUNS_VARIABLE not in processes.environ(pid)  # else it is another run's own
        top = project.rstrip("/") + "/"
        words = [processes.working_directory(pid), *processes.arguments(pid)]
        return any(f"{word.rpartition('=')[2].strip('[]')}/".startswith(top) for word in words)
    except OSError:
        return False


def _cpu(pid: int) -> float:
    """Seconds of CPU time of a process and its reaped children, own ones not in ticks of 10 ms:
    clock_getcpuclockid(3), whose macro is MAKE_PROCESS_CPUCLOCK. Raises OSError: it is gone."""
    if DARWIN:
        raise NotImplementedError
    return time.clock_gettime(~pid << 3 | 2) + processes.Stat(pid).reaped
