"""Processes of a run that moved to another group, where none of its limits applies.

su(1), `sudo -i` (PAM has systemd-logind open a session), `systemd-run --scope`, panes of tmux, snap
and container engines move the processes that they start to another group. This module finds them,
names them and kills them with the run. A process started by a daemon on request (run0,
`systemd-run` without `--scope`, docker) is no descendant and has no mark, so it is never found.

Proof that a process belongs to the run
- Descent: its chain of live parents leads to the command, to a process in the run's group, or to a
  process proved before (by pid and start time). Or
- the run's mark, a complete entry of SANDRUN_RUNS in its environment, if it was orphaned: its
  parent is the process that adopts orphans here (PR_SET_CHILD_SUBREAPER in prctl(2)). The mark
  alone is no proof: servers of editors, terminals and tmux, possibly our ancestors, pass a client's
  environment to new processes, and a service manager may have imported it.

A process in the group of another run belongs to that run. A process that a tool shares between all
its calls by a user (`_SHARED`) belongs to no run. Before a signal the group is read again, and a
pidfd refers to the process while its start time is compared.

The search is bounded. Processes older than the command are excluded by their pids, unread. A
supervisor that enforces limits searches for 2 ms at a time and uses 1 % of a core in all.
"""

import os
import sys
import time

assert sys.platform == "linux"

from sandrun.backends import cgroup_common
from sandrun.model import Escape, Process
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_REST = 100
"""The searches may use one part in so many of a core's time."""
_SHORTEST_PAUSE = 0.25
"""Minimum seconds between two searches."""
_WRAP_SECONDS = 3.0
"""Seconds in which pids cannot wrap around (after 32,768 on some hosts) past the last one seen."""
_EXEC_PAUSES = (0.001, 0.002, 0.004, 0.008, 0.016)
"""Seconds after which a process without an environment is read again: during an exec it has none
(proc(5))."""
_SHARED = "podman-pause-"
"""The prefix of the scope in which rootless podman keeps the user namespace of all containers of a
user. If it is killed, every podman fails until `podman system migrate` (seen with 5.4)."""
_REFUSED_SECONDS = 1.0
"""Seconds after which we give up if we may signal none of the remaining processes."""


class Escapes:
    """The escaped processes of one run, by pid in `found`."""

    def __init__(
        self,
        path: str,
        controller: str,
        mark: str,
        command: int = 0,
        since: float = 0.0,
        scope: str = "",
    ) -> None:
        """`path` is the run's group in the hierarchy of `controller` ('' for v2). `command` is the
        pid of the command, started at `since` (time.monotonic()); 0 if its supervisor is dead.
        `scope` is the path of the run's unit, if that is in the run's own slice: groups beside it
        belong to the run, too."""
        self.found: dict[int, Escape] = {}
        self._path = path
        self._controller = controller
        self._group = cgroup_common.in_hierarchy(path, controller)
        self._scope = scope and cgroup_common.in_hierarchy(scope, controller)
        self._mark = mark
        self._command = command
        self._oldest = processes.start(os.getpid()) if command else 0
        self._first = self._newest = command
        """The lowest pid that a process of the run may have, and the pid assigned last."""
        self._seen_at = since
        self._others: set[int] = set()
        """Pids of processes that do not belong to the run."""
        self._possible_reapers: set[int] = set()
        """The processes that may adopt orphans of the run: our ancestors, pid 1 and ourselves."""
        self._reaper = 0
        """The one that does; 0: not known yet."""
        self._todo: list[int] = []
        self._no_environ: list[int] = []
        """Processes of the current search without an environment, perhaps during an exec."""
        self._took = 0.0

    def search(self, seconds: float) -> "float | None":
        """Examine processes for so many seconds at most. Return the seconds until the next search
        is due; None: this one is not complete."""
        began = time.thread_time()
        if not self._todo:
            self._took = 0.0
            self._no_environ = []
            self._todo = self._candidates()
        until = time.monotonic() + seconds
        while self._todo and time.monotonic() < until:
            self._examine(self._todo.pop())
        self._took += time.thread_time() - began
        return None if self._todo else max(_SHORTEST_PAUSE, self._took * _REST)

    def search_all(self) -> float:
        """Examine all live processes; return the seconds until that is due again."""
        self._todo = []
        due = self.search(float("inf")) or 0.0
        for pause in _EXEC_PAUSES:
            if not self._no_environ:
                break
            time.sleep(pause)
            again, self._no_environ = self._no_environ, []
            for pid in again:
                self._examine(pid)
        self._others.update(self._no_environ)
        return due

    def live(self) -> "list[int]":
        """The pids of the escaped processes that still live outside the group."""
        return [pid for pid, escape in self.found.items() if self._lives(pid, escape.start)]

    def kill(self) -> None:
        """SIGKILL the escaped processes until none is left. Raises TimeoutError with their pids."""
        began = time.monotonic()
        while True:
            self.search_all()
            live = self.live()
            refused = [
                pid for pid in live if not processes.kill_if_same(pid, self.found[pid].start)
            ]
            if not live:
                return
            patience = _REFUSED_SECONDS if refused == live else cgroup_common.KILL_SECONDS
            if time.monotonic() > began + patience:
                raise TimeoutError(live)
            time.sleep(0.002)

    def _lives(self, pid: int, start: int) -> bool:
        try:
            return (
                processes.start(pid) == start
                and bool(self._group_outside(pid))
                and not processes.has_exited(pid)
            )
        except OSError:
            return False

    def _candidates(self) -> "list[int]":
        """The processes that may have left, highest pid first. `search` begins at the end of the
        list, so that parents usually come before children."""
        newest, now = processes.last_pid(), time.monotonic()
        if newest < self._newest or now > self._seen_at + _WRAP_SECONDS:
            # Pids may have been reused, and a low pid may belong to a young process.
            self._others.clear()
            self._first = 0
        self._newest, self._seen_at = newest, now
        pids = set(self._since_first(newest))
        pids.difference_update(self._others, cgroup_common.members(self._path), (os.getpid(),))
        if pids:
            self._possible_reapers = {1, os.getpid(), *processes.ancestors(os.getpid())}
        return sorted(pids, reverse=True)

    def _since_first(self, newest: int) -> "Iterable[int]":
        """The pids that processes younger than the command may have."""
        if self._first and newest - self._first < processes.FEW_PIDS:
            return range(self._first, newest + 1)
        try:
            pids = (int(name) for name in os.listdir(processes.PROC) if name.isdigit())
        except OSError:
            return ()  # no /proc, or another namespace's
        return [pid for pid in pids if pid >= self._first]

    def _examine(self, pid: int) -> None:
        try:
            group = self._group_outside(pid)
            stat = processes.Stat(pid)
            if not group:  # inside, in another run's group, or in a shared one
                self.found.pop(pid, None)
            elif (stat.state in "ZX" and stat.threads <= 1) or self._is_known(pid, stat.start):
                pass
            elif stat.start < self._oldest or not self._is_ours(pid, stat):
                if pid not in self._no_environ:
                    self._others.add(pid)
            elif _is_process(pid) and (process := processes.describe(pid)):
                self.found[pid] = Escape(process, stat.start, group, *self._origin(stat.parent))
        except OSError:
            pass  # it is gone

    def _origin(self, parent: int) -> "tuple[Process | None, bool]":
        """The parent of a process if it is in the run's group; whether the process left first: its
        parent is not escaped."""
        starter = processes.describe(parent) if self._is_inside(parent) else None
        return starter, parent not in self.found

    def _is_ours(self, pid: int, stat: processes.Stat) -> bool:
        """Whether there is the proof above. Raises OSError if a process of the chain is gone."""
        while not self._is_known(pid, stat.start):
            parent = stat.parent
            if pid == self._command and parent == os.getpid():
                return True
            if parent in self._possible_reapers:
                return (
                    self._is_marked(pid)
                    and not self._is_of_service(pid)
                    and self._is_reaper(parent)
                )
            if self._is_inside(parent):
                return True
            pid, stat = parent, processes.Stat(parent)
            if stat.start < self._oldest:
                return False
        return True

    def _is_marked(self, pid: int) -> bool:
        environ = processes.read(f"{processes.memory_directory(pid)}/environ")
        if not environ:
            self._no_environ.append(pid)
        return processes.has_mark(environ, self._mark)

    def _is_reaper(self, pid: int) -> bool:
        """Whether that process adopts orphans, or did before the run's supervisor died."""
        self._reaper = self._reaper or processes.find_reaper()
        return pid == self._reaper or (pid == 1 and not self._command)

    def _is_known(self, pid: int, start: int) -> bool:
        return pid in self.found and self.found[pid].start == start

    def _is_inside(self, pid: int) -> bool:
        try:
            group = cgroup_common.group_of(pid, self._controller)
        except OSError:
            return False
        return self._is_runs(group)

    def _is_runs(self, group: str) -> bool:
        """Whether `group` is the run's group, is below it, or is in the run's slice but not in its
        scope."""
        group += "/"
        if group.startswith(self._group + "/"):
            return True
        in_slice = self._scope and group.startswith(os.path.dirname(self._scope) + "/")
        return bool(in_slice) and not group.startswith(self._scope + "/")

    def _group_outside(self, pid: int) -> str:
        """The group of a process outside the run's; '' if it is inside, or in another run's or a
        shared group. Raises OSError if the process is gone."""
        group = cgroup_common.group_of(pid, self._controller)
        if self._is_runs(group):
            return ""
        more = set(group.split("/")).difference(self._group.split("/"))
        if any(
            cgroup_common.is_run_name(name.partition(".")[0]) or name.startswith(_SHARED)
            for name in more
        ):
            return ""
        return group

    def _is_of_service(self, pid: int) -> bool:
        """Whether a service manager started it: its unit is a service other than the run's."""
        names = reversed(cgroup_common.group_of(pid, self._controller).split("/"))
        unit = next((name for name in names if name.endswith((".service", ".scope"))), "")
        return unit.endswith(".service") and unit not in self._group.split("/")


def _is_process(pid: int) -> bool:
    """Whether it is the id of a process: /proc also has the ids of other threads."""
    status = processes.read(f"{processes.PROC}/{pid}/status")
    return status.partition(b"\nTgid:")[2].split()[0] == b"%d" % pid
