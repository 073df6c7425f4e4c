"""Supervising one command: what is the same on every system.

Promises
- A limit on time or memory ends the run: its processes are asked to end, and are killed after the
  grace.
- Usage of half of the memory limit is reported once, if it still grows.
- `run` returns when no process of the run is left, or when the user wants leftovers left, or when
  a process survives SIGKILL: then the outcome names it, and the run lock is not given up.

The supervisor of each system adds how to wait for events, how to ask processes to end, and what an
exit status means. Left to others: the queue, the limits on time (`sandrun.supervise.timeouts`), the
processes that the command leaves behind (`sandrun.supervise.leftovers`), the messages about the end
(`sandrun.supervise.report`).
"""

import sys
import time

from sandrun.model import EXIT_CODES, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.backends.protocol import Container
    from sandrun.config.settings import Settings
    from sandrun.supervise.leftovers import Git
    from sandrun.supervise.recorder import Recorder
    from sandrun.supervise.report import MemoryWarning
    from sandrun.supervise.timeouts import Timeouts
    from sandrun.types import Record, StopReason

MEMORY: "tuple[StopReason, StopReason]" = ("memory", "outer-memory")
"""The reasons for an end at a memory limit."""
_FIRST_POLL = 0.01
"""Seconds until the first poll: most commands that exit within an instant are never polled."""
_FIRST_SAMPLE = 1.0
"""Seconds until a run is sampled, so that a shorter run does not pay for it."""
_SETTLED = 0.05
"""Seconds after which the kernel's counters include a limit that was hit."""
_INSTANT = 0.002
"""Seconds until `queue.txt` shows that the command runs."""
_POLL_SHARE = 20
"""Polling a kernel's container may use one part in so many of a processor's time; the limit does
not depend on polling. (The monitor of the fallback bounds its own cost.)"""


class BaseSupervisor:
    """Supervises the command `child` in `container` until no process of the run is left."""

    def __init__(
        self, child: int, container: "Container", settings: "Settings", kernel: bool
    ) -> None:
        """`kernel`: the kernel enforces the memory limit."""
        self.child = child
        self.container = container
        self.kernel = kernel
        self.grace = settings.grace
        self.leftovers = settings.leftovers
        self.limit = settings.memory
        self.strict = settings.require == "kernel"
        self.git: Git | None = None
        """Knows git's own processes among those left behind."""
        self.began = time.monotonic()
        self.poll_at: float | None = self.began + _FIRST_POLL
        self.kill_at: float | None = None
        self.timeouts: Timeouts | None = None
        if settings.timeout or settings.cpu_time or settings.idle_timeout:
            from sandrun.supervise import timeouts

            self.timeouts = timeouts.Timeouts(settings, container, self.began)
        self.status: int | None = None
        """The command's exit status; None: it has not exited."""
        self.reason: StopReason = ""
        """Why we end the run; '': we do not."""
        self.decided = False
        """Whether the outcome is final, and only leftovers are being ended."""
        self.killed = False
        self.unkillable: list[int] = []
        self.record: Record = {}
        """What is known of the run; the caller sets it, and the two below."""
        self.keep = 0.0, 0
        """The age in seconds and the size in bytes up to which sample files are kept."""
        self.publish: Callable[[], None] | None = None
        """Shows in `queue.txt` that the command runs. Not called for a run that ends within
        `_INSTANT`, because the next run would wait for it."""
        self._publish_at: float | None = self.began + _INSTANT
        self._recorder: Recorder | None = None
        self._sample_at: float | None = self.began + _FIRST_SAMPLE
        self._warning: MemoryWarning | None = None
        self._warned = False
        self._limit_hit_at: float | None = None
        """When a limit was first hit (time.monotonic); 0.0: the hit is already recorded."""

    def run(self) -> Outcome:
        """Supervise until the end; return the outcome."""
        while self.status is None:
            self.wait(None)
        self.poll()  # whose limit was hit is final now
        outcome = self.outcome()
        if self.leftovers == "kill" and self.container.is_too_large_to_signal():
            self._kill()
        if not self.killed and self.container.live_pids():
            from sandrun.supervise import leftovers

            outcome = leftovers.LeftoverProcesses(self).settle(outcome)
        if self.container.escaped:
            outcome = self._add_escaped(outcome)
        self._complete(outcome)
        return outcome

    def _add_escaped(self, outcome: Outcome) -> Outcome:
        """The outcome of a run with processes that left the container."""
        left = outcome.leftovers
        if self.strict and outcome.reason in ("exit", "signal"):
            outcome = Outcome("escaped", EXIT_CODES["escaped"])
        outcome.escaped = dict(self.container.escaped)
        outcome.leftovers = [process for process in left if process.pid not in outcome.escaped]
        for process in left:
            if process.pid in outcome.escaped:
                outcome.escaped[process.pid].outlived_command = True
        return outcome

    def _complete(self, outcome: Outcome) -> None:
        """Add to the outcome the facts that are final only when no process of the run is left."""
        outcome.usage = self.container.usage()
        if self._limit_hit_at:
            self._note_limit(float("inf"))
        if self._recorder or outcome.escaped:
            self.recorder().finish(outcome.usage, outcome.escaped)
        outcome.top_consumers = self.container.top_consumers()
        outcome.unkillable = self.unkillable

    def wait(self, until: "float | None") -> None:
        """Block until an event, until the next action is due, or until `until`; then act."""
        times = [due for due in (until, *self._dues()) if due is not None]
        self._block(min(times) if times else None)
        self._do_due(time.monotonic())

    def _dues(self) -> "list[float | None]":
        """The times (monotonic) of the next actions."""
        timeout = self.timeouts.due if self.timeouts and not self.reason else None
        return [self.poll_at, self.kill_at, timeout, self._sample_at, self._publish_at]

    def recorder(self) -> "Recorder":
        """The recorder of this run; made when it is first needed."""
        if not self._recorder:
            from sandrun.supervise.recorder import Recorder

            self._recorder = Recorder(self.container, self.record, self.began, self.keep)
        return self._recorder

    def note(self, event: str, **details: object) -> None:
        """Record an event in the sample file."""
        self.recorder().note(event, details, time.monotonic())

    def _block(self, until: "float | None") -> None:
        """Block until an event or that time, and handle the event."""
        raise NotImplementedError

    def _do_due(self, now: float) -> None:
        if self._publish_at is not None and now >= self._publish_at:
            self._publish_at = None
            if self.publish:
                self.publish()
        if self.poll_at is not None and now >= self.poll_at:
            self.poll()
        if self.timeouts and not self.reason and now >= self.timeouts.due:
            exceeded = self.timeouts.check(now)
            if exceeded:
                self.stop(exceeded)
                self.note("timeout", reason=exceeded)
        if self._sample_at is not None and now >= self._sample_at:
            self.recorder().sample(now)
            self._sample_at = self.recorder().due
        if self.kill_at is not None and now >= self.kill_at:
            self._kill()

    def poll(self) -> None:
        """Poll the container, and act on a limit that was hit."""
        # Windows counts a thread's time in steps of 15 ms.
        share = _POLL_SHARE if self.kernel and sys.platform != "win32" else 0
        began = time.thread_time()
        due = self.container.poll()
        cost = (time.thread_time() - began) * share
        now = time.monotonic()
        self.poll_at = None if due is None or self.killed else now + max(due, cost)
        if self.container.limit_hit and (not self.decided or self.reason in MEMORY):
            self._limit_hit(now)
            self._note_limit(now)
        elif self.strict and self.container.escaped and not self.reason:
            self.stop("escaped")
        elif not self.decided:
            self._warn()
        if self._recorder and self.status is None:
            self._recorder.polled(now)
            self._sample_at = self._recorder.due

    def _limit_hit(self, now: float) -> None:
        """A limit was hit, so that is how the run ends, whatever the command's exit status is."""
        raise NotImplementedError

    def _note_limit(self, now: float) -> None:
        """Record the first limit that was hit, `_SETTLED` later: the kernel reports a hit before it
        kills and counts, and ending the run is more urgent."""
        if self._limit_hit_at is None:
            self._limit_hit_at = now
        elif self._limit_hit_at and now >= self._limit_hit_at + _SETTLED:
            from sandrun.supervise import recorder

            event, details = recorder.limit_event(self.container)
            self.recorder().note(event, details, self._limit_hit_at)
            self._limit_hit_at = 0.0

    def _warn(self) -> None:
        if self._warned or not self.limit or self.reason:
            return
        current = self.container.current or 0
        if current * 2 >= self.limit:
            from sandrun.supervise import report

            self._warning = self._warning or report.MemoryWarning(self.limit)
            self._warned = self._warning.report(current, self.container)
            if self._warned:
                self.note("warned", memory=current)

    def stop(self, reason: "StopReason") -> None:
        """End the run for this reason, unless there is one already: ask its processes to end, and
        kill them after the grace; kill them at once where they cannot be asked."""
        self.reason = self.reason or reason
        kill_at = time.monotonic() + self.grace
        if self._ask_to_end(reason):
            self.kill_at = kill_at
        else:
            self._kill()

    def _ask_to_end(self, reason: "StopReason") -> bool:
        """Ask every process of the run to end. Returns whether that was possible."""
        raise NotImplementedError

    def _kill(self) -> None:
        """Kill every process of the run, and return when they are dead."""
        self.killed = True
        self.kill_at = self.poll_at = None
        try:
            self.container.kill()
        except TimeoutError as error:
            self.unkillable = error.args[0]

    def outcome(self) -> Outcome:
        """How the run ended, as far as it is known now."""
        if self.reason in EXIT_CODES:
            return Outcome(self.reason, EXIT_CODES[self.reason])
        assert self.status is not None
        return self._exit_outcome(self.status)

    def _exit_outcome(self, status: int) -> Outcome:
        """The outcome of a command that we did not end."""
        raise NotImplementedError
