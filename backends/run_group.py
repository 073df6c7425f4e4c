"""What the containers of cgroup v1 and v2 share: starting the command, and escaped processes."""

import os
import sys
import time

assert sys.platform == "linux"

from sandrun.backends import cgroup_common, cgroup_files
from sandrun.model import Usage
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.backends.escapes import Escapes
    from sandrun.backends.sampler import Sampler
    from sandrun.model import Escape
    from sandrun.platform import spawn

_INSTANT = 0.02
"""Seconds after its start from which a run is searched for processes that left it."""
_SLICE = 0.002
"""Seconds that one step of that search may take while a limit must be watched."""


class RunGroup:
    """The run's processes, including those that left its group (`sandrun.backends.escapes`).

    At the end of a short run no search is needed if no process is younger than the command.
    """

    helpers: "set[int]"
    mark = ""
    scope = ""
    """The path of the run's scope, if that is in the run's own slice (`systemd_slice`); else ''."""
    _escapes: "Escapes | None" = None
    _command = _supervisor = 0
    _since = 0.0
    _search_at = 0.0
    _pids_group = ""
    _most_tasks = 0
    sampler: "Sampler"

    def memory_group(self) -> "tuple[str, str]":
        """The group with the memory limit, and its v1 controller ('' for v2)."""
        raise NotImplementedError

    def usage(self) -> Usage:
        """See `sandrun.backends.protocol.Container`."""
        raise NotImplementedError

    def add_tasks(self, usage: Usage, group: str, inner: str = "") -> None:
        """Add the figures of the pids controller to `usage`; `group` is '' where there is none.
        `most_tasks` is the kernel's figure (pids.peak, Linux 6.1), else the highest sample."""
        self._pids_group = group
        if group:
            usage.failed_starts = cgroup_files.refused_forks(group, inner)
            usage.most_tasks = cgroup_files.number(f"{group}/pids.peak")
        usage.most_tasks = usage.most_tasks or self._most_tasks or None

    def sample(self) -> Usage:
        usage, group = self.usage(), self._pids_group
        tasks = cgroup_files.number(f"{group}/pids.current") if group else None
        if tasks is None:
            path, controller = self.memory_group()
            tasks = cgroup_common.count_tasks(path, "tasks" if controller else "cgroup.threads")
        usage.tasks = tasks
        self._most_tasks = max(self._most_tasks, tasks)
        usage.most_tasks = max(usage.most_tasks or 0, tasks)
        return usage

    @property
    def current(self) -> "int | None":
        return self.sampler.last

    def counters(self) -> "dict[str, int]":
        path, controller = self.memory_group()
        if not controller:
            return cgroup_files.counts(f"{path}/memory.events")
        names = ("failcnt", "memsw.failcnt")  # without and with swap; Linux 6.18 keeps both 0
        failed = {name: cgroup_files.number(f"{path}/memory.{name}") or 0 for name in names}
        return {**failed, **cgroup_files.counts(f"{path}/memory.oom_control")}

    def member_pids(self) -> "list[int]":
        """The live processes in the run's groups."""
        return cgroup_common.live_pids(self.memory_group()[0])

    def is_too_large_to_signal(self) -> bool:
        return cgroup_common.is_too_large_to_signal(self.memory_group()[0])

    def pids_if_few(self) -> "list[int]":
        """The live processes; none if there are too many to examine each one."""
        return [] if self.is_too_large_to_signal() else self.member_pids()

    def start(
        self, argv: "list[str]", env: "Mapping[str, str]", caller: "spawn.CallerState"
    ) -> int:
        """Start the command in the group, as `spawn` promises; return its pid."""
        raise NotImplementedError

    def kill_members(self) -> None:
        """Kill the processes in the group, as `kill` promises."""
        raise NotImplementedError

    def spawn(
        self, argv: "list[str]", env: "Mapping[str, str]", caller: "spawn.CallerState"
    ) -> int:
        self._command = self.start(argv, env, caller)
        self._supervisor = os.getpid()
        self._since = time.monotonic()
        self._search_at = self._since + _INSTANT
        return self._command

    @property
    def escaped(self) -> "Mapping[int, Escape]":
        return self._escapes.found if self._escapes else {}

    def live_pids(self) -> "list[int]":
        found = self.member_pids()
        # Without a mark it is a dead run's group found by `collect`, or a v1 container's v2 group.
        if self.mark and (not found or time.monotonic() >= self._search_at):
            first = self._command
            if first and not self._escapes and not processes.has_started_since(first, self.helpers):
                return found
            self._search_at = time.monotonic() + self._escaped().search_all()
        return found + (self._escapes.live() if self._escapes else [])

    def poll_escaped(self) -> None:
        """Search briefly for processes that left the group, if that is due."""
        if time.monotonic() >= self._search_at:
            due = self._escaped().search(_SLICE)
            self._search_at = time.monotonic() + (due or 0.0)

    def kill(self) -> None:
        stay: list[int] = []
        for end in (self.kill_members, self._escaped().kill) if self.mark else (self.kill_members,):
            try:
                end()
            except TimeoutError as error:
                stay += error.args[0]
        if stay:
            raise TimeoutError(stay)

    def _escaped(self) -> "Escapes":
        if not self._escapes:
            from sandrun.backends import escapes

            # A keeper that was forked later has a copy of this object and other children.
            command = self._command if os.getpid() == self._supervisor else 0
            group = self.memory_group()
            self._escapes = escapes.Escapes(*group, self.mark, command, self._since, self.scope)
        return self._escapes
