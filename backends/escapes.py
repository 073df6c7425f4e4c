"""Processes of a run that have left its group for another one, where none of its limits holds.

su(1), `sudo -i` (PAM has systemd-logind make a session), `systemd-run --scope`, panes of tmux, snap
and container engines move what they start into a group elsewhere. It is found here, named, and
ended with the run. What a daemon starts on request (run0, `systemd-run` without `--scope`, docker)
is nobody's descendant and has no mark: it is never found.

What proves that a process is the run's
- descent: its chain of live parents leads to the command, to what is in the run's group, or to one
  of which this was proved before (its number and its start), or
- the run's mark, a whole entry of SANDRUN_RUNS in its environment, and that it was orphaned: its
  parent is the one process to whom orphans go here (PR_SET_CHILD_SUBREAPER in prctl(2)). The mark
  alone is no proof: editors, terminals and tmux have servers, maybe ancestors of ours, that give
  the environment of a client to what they start for it, and a service manager may have imported it.
A process in the group of another run, or below that, is that run's affair, and what a tool keeps
for all of a user's calls (`_SHARED`) is no run's. Before a signal its group is read again, and a
pidfd holds it while its start is compared.

A look is bounded: processes older than the command are known by their numbers and never read, a
supervisor that watches a limit looks for 2 ms at a time, and rests for a hundred times that.
"""

import os
import time

from sandrun.backends import cgroup_common
from sandrun.model import Escape, Process
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_REST = 100
"""A look at all processes may take one part in so many of a processor's time."""
_OFTEN = 0.25
"""Seconds between two of them at least."""
_NUMBERS_LAST = 3.0
"""Seconds in which the numbers of processes do not come round unseen (32,768 on some hosts)."""
_EXECS = (0.001, 0.002, 0.004, 0.008, 0.016)
"""Seconds after which to look again at what has no environment: it may be in the midst of an exec,
where there is none (proc(5))."""
_SHARED = "podman-pause-"
"""How the scope starts in which rootless podman keeps the user namespace of all containers of the
user; without it each podman fails until `podman system migrate` (seen with 5.4)."""
_REFUSED_SECONDS = 1.0
"""Seconds until what we may not signal is given up."""


class Escapes:
    """Those of one run, all by pid in `found`."""

    def __init__(
        self, path: str, controller: str, mark: str, command: int = 0, since: float = 0.0
    ) -> None:
        """`path` is the run's group in the hierarchy of `controller` ('': v2), `command` the
        process that it was started with at `since` (time.monotonic()); 0: that of a supervisor that
        is dead."""
        self.found: dict[int, Escape] = {}
        self._path = path
        self._controller = controller
        self._group = cgroup_common.in_hierarchy(path, controller)
        self._mark = mark
        self._command = command
        self._oldest = processes.start(os.getpid()) if command else 0
        self._first = self._newest = command
        """Numbers: the least that a process of the run may have, the last that was given."""
        self._seen_at = since
        self._others: set[int] = set()
        """Numbers of processes that are none of the run's."""
        self._adopters: set[int] = set()
        """Whose children orphans of the run may become."""
        self._adopter = 0
        """Whose children they become; 0: not known yet."""
        self._todo: list[int] = []
        self._blank: list[int] = []
        """Of those seen at this look: they have no environment, or are about to get one."""
        self._took = 0.0

    def look(self, seconds: float) -> "float | None":
        """Examine processes for so many seconds at most; in how many the next look is due, None:
        this one is not over."""
        began = time.thread_time()
        if not self._todo:
            self._took = 0.0
            self._blank = []
            self._todo = self._candidates()
        until = time.monotonic() + seconds
        while self._todo and time.monotonic() < until:
            self._examine(self._todo.pop())
        self._took += time.thread_time() - began
        return None if self._todo else max(_OFTEN, self._took * _REST)

    def look_at_all(self) -> float:
        """Examine all that live now; in how many seconds that is due again."""
        self._todo = []
        due = self.look(float("inf")) or 0.0
        for pause in _EXECS:
            if not self._blank:
                break
            time.sleep(pause)
            again, self._blank = self._blank, []
            for pid in again:
                self._examine(pid)
        self._others.update(self._blank)
        return due

    def live(self) -> "list[int]":
        """Those that live outside at this instant."""
        return [pid for pid, escape in self.found.items() if self._lives(pid, escape.start)]

    def kill(self) -> None:
        """SIGKILL them until there is none. Raises TimeoutError with those that stay."""
        began = time.monotonic()
        while True:
            self.look_at_all()
            live = self.live()
            refused = [pid for pid in live if not processes.kill_same(pid, self.found[pid].start)]
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
                and bool(self._left_for(pid))
                and not processes.is_zombie(pid)
            )
        except OSError:
            return False

    def _candidates(self) -> "list[int]":
        """The processes that may have left; `look` takes the last one first, parents before
        children as a rule."""
        newest, now = processes.newest(), time.monotonic()
        if newest < self._newest or now > self._seen_at + _NUMBERS_LAST:
            # A number may be another process's by now, a low one that of a young process.
            self._others.clear()
            self._first = 0
        self._newest, self._seen_at = newest, now
        pids = set(self._since_first(newest))
        pids.difference_update(self._others, cgroup_common.listed(self._path), (os.getpid(),))
        if pids:
            self._adopters = {1, os.getpid(), *processes.ancestors(os.getpid())}
        return sorted(pids, reverse=True)

    def _since_first(self, newest: int) -> "Iterable[int]":
        """Numbers that processes may have which are no older than the command."""
        if self._first and newest - self._first < processes.FEW:
            return range(self._first, newest + 1)
        try:
            pids = (int(name) for name in os.listdir(processes.PROC) if name.isdigit())
        except OSError:
            return ()  # no /proc, or another namespace's
        return [pid for pid in pids if pid >= self._first]

    def _examine(self, pid: int) -> None:
        try:
            group = self._left_for(pid)
            stat = processes.Stat(pid)
            if not group:  # inside, or in a run of its own by now, or no run's
                self.found.pop(pid, None)
            elif (stat.state in "ZX" and stat.threads <= 1) or self._is_known(pid, stat.start):
                pass
            elif stat.start < self._oldest or not self._is_ours(pid, stat):
                if pid not in self._blank:
                    self._others.add(pid)
            elif _is_process(pid) and (process := processes.describe(pid)):
                self.found[pid] = Escape(process, stat.start, group, *self._origin(stat.parent))
        except OSError:
            pass  # it is gone

    def _origin(self, parent: int) -> "tuple[Process | None, bool]":
        """Who started a process, if that stayed in the run; whether its parent did not leave."""
        starter = processes.describe(parent) if self._is_inside(parent) else None
        return starter, parent not in self.found

    def _is_ours(self, pid: int, stat: processes.Stat) -> bool:
        """The proof (see above). Raises OSError: one of the chain is gone."""
        while not self._is_known(pid, stat.start):
            parent = stat.parent
            if pid == self._command and parent == os.getpid():
                return True
            if parent in self._adopters:
                return self._is_marked(pid) and not self._is_served(pid) and self._adopts(parent)
            if self._is_inside(parent):
                return True
            pid, stat = parent, processes.Stat(parent)
            if stat.start < self._oldest:
                return False
        return True

    def _is_marked(self, pid: int) -> bool:
        environ = processes.read(f"{processes.told_at(pid)}/environ")
        if not environ:
            self._blank.append(pid)
        return processes.has_mark(environ, self._mark)

    def _adopts(self, pid: int) -> bool:
        """Whether orphans go to that process, or went, where the run's supervisor is dead."""
        self._adopter = self._adopter or processes.adopter()
        return pid == self._adopter or (pid == 1 and not self._command)

    def _is_known(self, pid: int, start: int) -> bool:
        return pid in self.found and self.found[pid].start == start

    def _is_inside(self, pid: int) -> bool:
        try:
            group = cgroup_common.group_of(pid, self._controller)
        except OSError:
            return False
        return f"{group}/".startswith(self._group + "/")

    def _left_for(self, pid: int) -> str:
        """The group where it is; '' if that is no matter. Raises OSError: it is gone."""
        group = cgroup_common.group_of(pid, self._controller)
        if f"{group}/".startswith(self._group + "/"):
            return ""
        more = set(group.split("/")).difference(self._group.split("/"))
        if any(
            cgroup_common.is_run(name.partition(".")[0]) or name.startswith(_SHARED)
            for name in more
        ):
            return ""
        return group

    def _is_served(self, pid: int) -> bool:
        """Whether a service manager started it: it is in the unit of a service, not of ours."""
        names = reversed(cgroup_common.group_of(pid, self._controller).split("/"))
        unit = next((name for name in names if name.endswith((".service", ".scope"))), "")
        return unit.endswith(".service") and unit not in self._group.split("/")


def _is_process(pid: int) -> bool:
    """Whether it is the number of a process: /proc has those of other threads, unlisted."""
    status = processes.read(f"{processes.PROC}/{pid}/status")
    return status.partition(b"\nTgid:")[2].split()[0] == b"%d" % pid
