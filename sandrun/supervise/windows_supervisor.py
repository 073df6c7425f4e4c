"""Supervising one command on Windows: console events and handles.

Promises
- The command gets the console's Ctrl-C from the console. The first has no other effect; a second
  ends the run, because the command had time to act on the first. `sandrun kill` and the limits on
  time ask the command to end by Ctrl-Break where the console is the run's alone, and kill it after
  the grace. If a shell shares the console, the run alone cannot be asked, so it is killed at once.
- All 32 bits of an exit code are passed on, also of an NTSTATUS such as 0xC0000005.
- When the process that started us dies, the run ends.

`sandrun.backends.job_object` describes what a job does by itself when we are killed.
"""

import os
import time

from sandrun.model import Outcome, SandrunError
from sandrun.platform import windows_api, windows_console, windows_files, windows_spawn
from sandrun.supervise.supervisor import MEMORY, BaseSupervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.backends.protocol import Container
    from sandrun.config.settings import Settings
    from sandrun.supervise.keeper import Keeper
    from sandrun.types import StopReason

_SIGHUP, _SIGINT, _SIGTERM = 1, 2, 15
"""The POSIX counterparts of the console's events: 128 + these are the exit codes."""
_KILL_SECONDS = 1.0


class Supervisor(BaseSupervisor):
    """Supervises the command `child` in `container` until no process of the run is left."""

    def __init__(
        self,
        child: int,
        container: "Container",
        settings: "Settings",
        kernel: bool,
        keeper: "Keeper | None",
    ) -> None:
        """Raises SandrunError if the command cannot be watched."""
        # The pid stays the command's as long as the container has a handle of the process.
        self.process = windows_spawn.open_process(child)
        if not self.process:
            raise SandrunError(f"cannot watch the command (pid {child})")
        super().__init__(child, container, settings, kernel)
        self.parent = windows_spawn.parent_process if keeper and keeper.parent else 0
        self.end_event = 0
        """Set by another sandrun to end this run; 0: there is none."""
        self.signal = 0
        self.interrupts = 0
        if windows_console.pending:  # it came before the command could have had it
            self._end(_SIGINT)

    def _block(self, until: "float | None") -> None:
        span = None if until is None else max(0.0, until - time.monotonic())
        watched = self._watched()
        at = windows_files.wait_any([handle for handle, _ in watched], span)
        if at >= 0:
            watched[at][1]()

    def _watched(self) -> "list[tuple[int, Callable[[], None]]]":
        """The handles to wait for, and what handles the event of each."""
        watched = [(windows_console.event, self._handle_console)]
        if self.end_event:
            watched.append((self.end_event, lambda: self._end(_SIGTERM)))
        if self.container.events[0] > 0:
            watched.append((self.container.events[0], self.poll))
        if self.parent:
            watched.append((self.parent, self._parent_died))
        if self.status is None:
            watched.append((self.process, self._exited))
        return watched

    def _exited(self) -> None:
        self.status = windows_spawn.exit_code(self.process)

    def _parent_died(self) -> None:
        self.parent = 0
        self.stop("parent")

    def _handle_console(self) -> None:
        """Handle the console's events, which every attached process gets."""
        for kind in windows_console.take_events():
            if kind not in (windows_api.CTRL_C_EVENT, windows_api.CTRL_BREAK_EVENT):
                self._end(_SIGHUP)
            # Otherwise it is the Ctrl-Break that we sent.
            elif kind == windows_api.CTRL_C_EVENT or not self.reason:
                self.interrupts += 1
        if self.interrupts > 1 and not self.killed:
            self.signal = self.signal or _SIGINT
            self.reason = self.reason or "signal"
            self._kill()

    def _limit_hit(self, now: float) -> None:
        """Kill the run: a job at its limit refuses memory, so no process could clean up."""
        if self.container.limit_hit != "cpu-time":
            if self.reason in MEMORY:
                return
            self.reason = MEMORY[self.container.limit_hit == "outer"]
        elif self.reason:
            return
        else:
            self.reason = "cpu-time"
        self._kill()

    def _end(self, signum: int) -> None:
        """Ask the run to end as by a signal of that number."""
        self.signal = self.signal or signum
        self.stop("signal")

    def _ask_to_end(self, reason: "StopReason") -> bool:
        return windows_console.break_all({os.getpid(), self.child, *self.container.live_pids()})

    def _kill(self) -> None:
        super()._kill()
        if self.status is None:
            windows_spawn.terminate(self.child)  # where there is no container
            if windows_files.wait_any([self.process], _KILL_SECONDS) < 0:
                self.unkillable = [self.child]
            self._exited()

    def outcome(self) -> Outcome:
        if self.reason != "signal":
            return super().outcome()
        outcome = Outcome("signal", 128 + self.signal, self.signal)
        outcome.forwarded = True
        return outcome

    def _exit_outcome(self, status: int) -> Outcome:
        return Outcome("exit", status)
