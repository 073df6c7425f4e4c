"""Supervising one command: signals, limits on time and memory, the end, what is left behind.

Promises
- Each signal sent to sandrun is passed on to the command, in the order the kernel delivers them,
  also one that came before the command existed (all are blocked from the first line on, and taken
  one by one with sigwaitinfo(2)). What the terminal sends reaches the command from the kernel,
  since it shares our process group, and is not sent a second time.
- When the command stops (Ctrl-Z), we stop the same way, so the shell's job control works.
- Every child is reaped, adopted ones too: sandrun can be PID 1.
- Returns only when no process of the run is left, or when the user wants leftovers left.

Left to others: the queue, what is said about the end (`sandrun.report`).
"""

import _signal
import os
import time

from sandrun import spawn
from sandrun.model import EXIT_MEMORY, EXIT_TIMEOUT, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.keeper import Keeper
    from sandrun.model import Process
    from sandrun.protocol import Container
    from sandrun.settings import Settings

# Stops of job control; SIGSTOP is left out: whoever stops the command with it means only that.
_JOB_STOPS = (_signal.SIGTSTP, _signal.SIGTTIN, _signal.SIGTTOU)
_SI_USER_MAX = 0  # si_code > 0: sent by the kernel (sigaction(2)), so the whole group has it
_FIRST_LOOK = 0.01
_SETTLE = 0.1
"""Seconds that processes already on their way out get before they count as left behind."""


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
        self.child = child
        self.container = container
        self.keeper = keeper
        self.grace = settings.grace
        self.leftovers = settings.leftovers
        self.kernel = kernel
        self.limit = settings.memory
        now = time.monotonic()
        self.wall_end = now + settings.timeout if settings.timeout else None
        # Not at once: most commands that end within an instant are never looked at.
        self.look_at: float | None = now + _FIRST_LOOK
        self.kill_at: float | None = None
        self.reason = ""
        self.status: int | None = None
        self.warned = False

    def run(self) -> Outcome:
        """Supervise to the end; the outcome."""
        while self.status is None:
            self._wait()
        outcome = self._outcome(self.status)
        self._end_leftovers(outcome)
        outcome.usage = self.container.usage()
        outcome.top = self.container.top()
        return outcome

    def _wait(self) -> None:
        """Sleep until a signal or the next thing that is due, and do it."""
        dues = [due for due in (self.look_at, self.wall_end, self.kill_at) if due is not None]
        if dues:
            info = _signal.sigtimedwait(spawn.ALL_SIGNALS, max(0.0, min(dues) - time.monotonic()))
        else:
            info = _signal.sigwaitinfo(spawn.ALL_SIGNALS)
        if info is not None:
            self._take_signal(info.si_signo, info.si_code)
        self._reap()
        now = time.monotonic()
        child_news = info is not None and info.si_signo == _signal.SIGCHLD
        if self.look_at is not None and (now >= self.look_at or child_news):
            self._look()
        if self.wall_end is not None and now >= self.wall_end:
            self.wall_end = None
            self._stop("timeout")
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            self._kill()

    def _take_signal(self, signum: int, code: int) -> None:
        if signum == _signal.SIGCHLD:
            return
        from_kernel = code > _SI_USER_MAX
        # A hang-up goes to the session's leader alone, so a leader has to pass it on.
        leads = signum == _signal.SIGHUP and os.getsid(0) == os.getpid()
        if not from_kernel or leads:
            self._send(self.child, signum)

    def _send(self, pid: int, signum: int) -> None:
        try:
            os.kill(pid, signum)
        except OSError:
            pass  # it is gone, or it changed its user: nothing that we could do

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child:
                if os.WIFSTOPPED(status):
                    self._stopped(os.WSTOPSIG(status))
                else:
                    self.status = status
            elif self.keeper and pid == self.keeper.pid and not os.WIFSTOPPED(status):
                self.keeper.replace()

    def _stopped(self, signum: int) -> None:
        """The command was stopped by job control: stop too; go on together when continued."""
        if signum not in _JOB_STOPS or self.reason:
            return
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (signum,))
        os.kill(os.getpid(), signum)
        _signal.pthread_sigmask(_signal.SIG_BLOCK, (signum,))
        # Whoever continued only us meant the command as well.
        self._send(self.child, _signal.SIGCONT)

    def _look(self) -> None:
        due = self.container.poll()
        self.look_at = None if due is None else time.monotonic() + due
        if self.container.struck and self.reason != "memory":
            self.reason = "memory"
            if self.kernel:
                self._kill()
            else:
                self._stop("memory")
        elif self.container.struck and not self.kernel:
            usage = self.container.usage().current or 0
            if usage > self.limit + self.limit // 10:
                self._kill()  # it uses the grace to take more
        self._warn()

    def _warn(self) -> None:
        if self.warned or not self.limit or self.reason:
            return
        current = self.container.usage().current or 0
        if current * 2 >= self.limit:
            self.warned = True
            from sandrun import report

            report.half(current, self.limit, self.container.top())

    def _stop(self, reason: str) -> None:
        """SIGTERM to the whole tree, children first, and SIGKILL when the grace is over."""
        self.reason = self.reason or reason
        self.kill_at = time.monotonic() + self.grace
        for pid in [*reversed(self.container.pids()), self.child]:
            self._send(pid, _signal.SIGTERM)
            self._send(pid, _signal.SIGCONT)  # a stopped process could not act on it

    def _kill(self) -> None:
        self.look_at = None
        self._send(self.child, _signal.SIGKILL)
        try:
            self.container.kill()
        except TimeoutError as error:
            from sandrun import messages

            messages.warn(f"processes do not die (uninterruptible sleep?): pids {error}")

    def _outcome(self, status: int) -> Outcome:
        code = os.waitstatus_to_exitcode(status)
        if self.container.struck or self.reason == "memory":
            outer = self.container.struck == "outer"
            return Outcome("outer-memory" if outer else "memory", EXIT_MEMORY)
        if self.reason == "timeout":
            return Outcome("timeout", EXIT_TIMEOUT)
        return Outcome("signal", 128 - code, -code) if code < 0 else Outcome("exit", code)

    def _end_leftovers(self, outcome: Outcome) -> None:
        """Deal with what the command left behind: end it, wait for it, or leave it."""
        self.reason = self.reason or "ending"
        if self.leftovers == "leave" and outcome.reason in ("exit", "signal"):
            return
        if not self._alive_for(_SETTLE):
            return
        outcome.leftovers = self._named()
        if self.leftovers == "wait" and outcome.reason in ("exit", "signal"):
            while self._alive_for(1.0):
                pass
            return
        self._stop("ending")
        if self._alive_for(self.grace):
            self._kill()

    def _named(self) -> "list[Process]":
        from sandrun import kernel

        return [p for p in map(kernel.describe, self.container.pids()) if p]

    def _alive_for(self, seconds: float) -> bool:
        """Whether processes of the run still live after `seconds`; returns as soon as none does."""
        deadline = time.monotonic() + seconds
        pause = 0.001
        while True:
            self._reap()
            if not self.container.pids():
                return False
            left = deadline - time.monotonic()
            if left <= 0:
                return True
            info = _signal.sigtimedwait(spawn.ALL_SIGNALS, min(left, pause))
            if info is not None and info.si_signo != _signal.SIGCHLD:
                for pid in self.container.pids():
                    self._send(pid, info.si_signo)
            pause = min(pause * 2, 0.05)
