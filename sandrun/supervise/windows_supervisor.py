"""Supervising one command on Windows; stands in for `sandrun.supervise`.

Promises
- The command has the console's Ctrl-C from the console. The first leaves it at that; a second ends
  the run, since the command had its chance. `sandrun kill` and the limits on time ask it to end by
  Ctrl-Break where the console is the run's alone, and end it after the grace; where a shell shares
  the console there is no way to ask the run only, so it is ended at once.
- An exit code is handed on whole, 32 bits, an NTSTATUS such as 0xC0000005 too.
- When the process that started us dies, the run ends.
- Returns only when no process of the run is left, or when the user wants leftovers left.

Left to others: the queue, the limits on time (`sandrun.supervise.timeouts`), what becomes of what
the command left behind (`sandrun.supervise.leftovers`), what is said about the end
(`sandrun.supervise.report`), what a job does by itself when we are killed
(`sandrun.backends.job_object`).
"""

import os
import time

from sandrun.model import EXIT_CODES, Outcome, SandrunError
from sandrun.platform import windows_api, windows_console, windows_files, windows_spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.backends.protocol import Container
    from sandrun.config.settings import Settings
    from sandrun.supervise.keeper import Keeper
    from sandrun.supervise.leftovers import Git
    from sandrun.supervise.report import Half
    from sandrun.supervise.timeouts import Clocks

_FIRST_LOOK = 0.01
_SIGHUP, _SIGINT, _SIGTERM = 1, 2, 15
"""What Ctrl-C and the others would be elsewhere: 128 + these are the exit codes."""


class Supervisor:
    """Supervises the command `child` in `container` until nothing of it is left."""

    def __init__(
        self,
        child: int,
        container: "Container",
        settings: "Settings",
        kernel: bool,
        keeper: "Keeper | None",
    ) -> None:
        # The number is the command's as long as its container has it open.
        self.process = windows_spawn.open_process(child)
        if not self.process:
            raise SandrunError(f"cannot watch the command (pid {child})")
        self.child = child
        self.container = container
        self.grace = settings.grace
        self.leftovers = settings.leftovers
        self.kernel = kernel
        self.limit = settings.memory
        self.parent = windows_spawn.parent_process if keeper and keeper.parent else 0
        self.end_event = 0
        """Set by another sandrun that ends this run; 0: there is none."""
        now = time.monotonic()
        self.look_at: float | None = now + _FIRST_LOOK
        self.kill_at: float | None = None
        self.clocks: Clocks | None = None
        if settings.timeout or settings.cpu_time or settings.idle_timeout:
            from sandrun.supervise import timeouts

            self.clocks = timeouts.Clocks(settings, container, now)
        self.reason = ""
        self.signal = 0
        self.interrupts = 0
        self.code: int | None = None
        self.half: Half | None = None
        self.warned = False
        self.git: Git | None = None
        """Knows git's own processes among those left behind."""
        self.decided = False
        self.killed = False
        self.unkillable: list[int] = []
        if windows_console.said:  # it came before the command could have had it
            self._end(_SIGINT)

    def run(self) -> Outcome:
        """Supervise to the end; the outcome."""
        while self.code is None:
            self.wait(None)
        self._look()  # whose limit was hit is final now
        outcome = self.outcome()
        if not self.killed and self.container.live_pids():
            from sandrun.supervise import leftovers

            outcome = leftovers.settle(self, outcome)
        outcome.usage = self.container.usage()
        outcome.top_consumers = self.container.top_consumers()
        outcome.unkillable = self.unkillable
        return outcome

    def wait(self, until: "float | None") -> None:
        """Sleep until something happens, the next thing is due, or `until`; do what is due."""
        dues = [until, self.look_at, self.kill_at]
        if self.clocks and not self.reason:
            dues.append(self.clocks.due)
        times = [due for due in dues if due is not None and due != float("inf")]
        span = max(0.0, min(times) - time.monotonic()) if times else None
        at = windows_files.wait_any([handle for handle, _ in self._watched()], span)
        if at >= 0:
            [what for _, what in self._watched()][at]()
        self._do_due(time.monotonic())

    def _watched(self) -> "list[tuple[int, Callable[[], None]]]":
        """What may happen, and what is to be done then."""
        watched = [(windows_console.event, self._told)]
        if self.end_event:
            watched.append((self.end_event, lambda: self._end(_SIGTERM)))
        if self.container.events[0] > 0:
            watched.append((self.container.events[0], self._look))
        if self.parent:
            watched.append((self.parent, self._orphaned))
        if self.code is None:
            watched.append((self.process, self._ended))
        return watched

    def _ended(self) -> None:
        self.code = windows_spawn.exit_code(self.process)

    def _orphaned(self) -> None:
        self.parent = 0
        self.stop("parent")

    def _told(self) -> None:
        """The console said something to all that are attached to it."""
        for kind in windows_console.take():
            if kind not in (windows_api.CTRL_C_EVENT, windows_api.CTRL_BREAK_EVENT):
                self._end(_SIGHUP)
            elif (
                kind == windows_api.CTRL_C_EVENT or not self.reason
            ):  # else it is the Break that we sent
                self.interrupts += 1
        if self.interrupts > 1 and not self.killed:
            self._end(_SIGINT, asking=False)

    def _do_due(self, now: float) -> None:
        if self.look_at is not None and now >= self.look_at:
            self._look()
        if self.clocks and not self.reason and now >= self.clocks.due:
            over = self.clocks.check(now)
            if over:
                self.stop(over)
        if self.kill_at is not None and now >= self.kill_at:
            self._kill()

    def _look(self) -> None:
        due = self.container.poll()
        self.look_at = None if due is None else time.monotonic() + due
        if self.decided:
            return
        if self.container.limit_hit == "cpu-time":
            if not self.reason:
                self.reason = "cpu-time"
                self._kill()
        elif self.container.limit_hit and self.reason not in ("memory", "outer-memory"):
            self.reason = "outer-memory" if self.container.limit_hit == "outer" else "memory"
            self._kill()
        self._warn()

    def _warn(self) -> None:
        if self.warned or not self.limit or self.reason:
            return
        current = self.container.usage().current or 0
        if current * 2 >= self.limit:
            from sandrun.supervise import report

            self.half = self.half or report.Half(self.limit)
            self.warned = self.half.told(current, self.container)

    def _end(self, signum: int, asking: bool = True) -> None:
        """End the run as by a signal of that number."""
        self.signal = self.signal or signum
        if asking:
            self.stop("signal")
        else:
            self.reason = self.reason or "signal"
            self._kill()

    def stop(self, reason: str) -> None:
        """Ask the run to end, if that can be, and end it after the grace."""
        self.reason = self.reason or reason
        members = {os.getpid(), self.child, *self.container.live_pids()}
        if windows_console.break_all(members):
            self.kill_at = time.monotonic() + self.grace
        else:
            self._kill()

    def _kill(self) -> None:
        self.killed = True
        self.kill_at = None
        self.look_at = None
        try:
            self.container.kill()
        except TimeoutError as error:
            self.unkillable = error.args[0]
        if self.code is None:
            windows_spawn.terminate(self.child)  # where there is no container
            if windows_files.wait_any([self.process], 1.0) < 0:
                self.unkillable = [self.child]
            self._ended()

    def outcome(self) -> Outcome:
        """How the run ended, by what is known at this time."""
        assert self.code is not None
        if self.reason in EXIT_CODES:
            return Outcome(self.reason, EXIT_CODES[self.reason])
        if self.reason == "signal":
            outcome = Outcome("signal", 128 + self.signal, self.signal)
            outcome.forwarded = True
            return outcome
        return Outcome("exit", self.code)
