"""Supervising one command: signals, limits on time and memory, its end.

Promises
- Each signal sent to sandrun is passed on to the command, in the order the kernel delivers them,
  also one that came before the command existed (all are blocked from the first line on, and taken
  one by one with sigwaitinfo(2)). What is sent to our process group, by the terminal or by kill(2),
  reaches the command from the kernel, since it shares that group, and is not sent a second time.
- When the command stops (Ctrl-Z), we stop the same way, so the shell's job control works.
- Every child is reaped, adopted ones too: sandrun can be PID 1, and where PID 1 is not known to
  reap orphans, we adopt them (prctl(2), PR_SET_CHILD_SUBREAPER). What was ended is gone at our end.
- When the process that started us dies, the run ends. If a signal asked the command to end just
  before, it gets the grace first: many programs take a second signal for: now, without cleaning up.
- At a memory limit the largest process is killed, by the kernel where one enforces; the rest, which
  would clean up, is told to end and has the grace, unless it presses against the limit again.
- Returns only when no process of the run is left, or when the user wants leftovers left, or when
  one cannot be ended by anybody: then the outcome says so, and exclusion is not given up.

What proves that a signal hits the run: the command's number is its own until we have reaped it, and
any other was read from the container an instant ago, while numbers are given in turn, so that one
comes back only after all others. SIGKILL of many is the container's affair, which pins each.

Left to others: the queue, the limits on time (`sandrun.supervise.timeouts`), what becomes of what
the command left behind (`sandrun.supervise.leftovers`), what is said about the end
(`sandrun.supervise.report`).
"""

import os
import sys
import time

from sandrun.bare import signal as _signal
from sandrun.model import EXIT_CODES, Outcome
from sandrun.platform import spawn

assert sys.platform != "win32"

try:
    sigtimedwait, sigwaitinfo = _signal.sigtimedwait, _signal.sigwaitinfo
except AttributeError:  # macOS
    from sandrun.platform.macos_sigwait import sigtimedwait, sigwaitinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.backends.protocol import Container
    from sandrun.config.settings import Settings
    from sandrun.supervise.keeper import Keeper
    from sandrun.supervise.leftovers import Git
    from sandrun.supervise.outside import Outside
    from sandrun.supervise.report import Half
    from sandrun.supervise.timeouts import Clocks
    from sandrun.supervise.witness import Witness

_JOB_STOPS = (_signal.SIGTSTP, _signal.SIGTTIN, _signal.SIGTTOU)
_SI_USER_MAX = 0  # si_code > 0: sent by the kernel (sigaction(2))
_MEMORY = ("memory", "outer-memory")
_FIRST_LOOK = 0.01
_LOOK_SHARE = 20
"""A look at a kernel's container may take one part in so many of our time; the limit does not
depend on it. (The monitor sees to its own cost.)"""
_WITNESS = 0.002
"""Seconds until there is a witness of what comes to our group: what ends sooner never pays for it
(2 ms of processor time, beside the command)."""
_OUTSIDE = 0.02
"""Seconds until daemons outside are looked for, for 2 ms at a time: a short run costs no more."""
_SETTLE_SECONDS = 0.5
"""Seconds after the end of a run at its memory limit began in which it may still press against it:
a large process takes its time to die, and the kernel holds the limit meanwhile."""
_SHARED = 1 << 18
"""Bytes of shared memory that count as left: the kernel counts in portions."""
_CLOCKS = 0.02
"""Seconds by which a file's times may be behind our clock, and we behind the command's start."""
_REAP_SECONDS = 1.0
"""Seconds after SIGKILL until a command that we cannot reap (traced, in the kernel) is given up."""


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
        # The terminal's signals that were pending before the command existed never reached it.
        self.early = _signal.sigpending()
        self.child = child
        self.container = container
        self.keeper = keeper
        self.witness: Witness | None = None
        self.witness_at: float | None = time.monotonic() + _WITNESS
        self.parent = keeper.parent if keeper else 0
        self.grace = settings.grace
        self.term = settings.kill_signal
        self.leftovers = settings.leftovers
        self.apart: tuple[str, ...] = ()
        """Directories in which memory that is left is the run's work, or cannot be of the run."""
        self.kernel = kernel
        self.strict = settings.require == "kernel"
        self.limit = settings.memory
        now = time.monotonic()
        # Not at once: most commands that end within an instant are never looked at.
        self.look_at: float | None = now + _FIRST_LOOK
        self.kill_at: float | None = None
        self.give_up_at: float | None = None
        self.asked_until: float | None = None
        """The grace of a signal that asked the command to end."""
        self.clocks: Clocks | None = None
        if settings.timeout or settings.cpu_time or settings.idle_timeout:
            from sandrun.supervise import timeouts

            self.clocks = timeouts.Clocks(settings, container, now)
        self.served: tuple[str, Mapping[str, str]] | None = None
        """The project and the command's environment, if daemons outside shall be looked for."""
        self.outside_at = now + _OUTSIDE
        self.began = now
        self.members = {child}
        """Processes that were seen in the run."""
        self.outside: Outside | None = None
        self.reason = ""
        self.status: int | None = None
        self.interrupted = False
        self.held = False
        """As PID 1: the last of the signals for job control that was passed on says stop."""
        self.taken: set[int] = set()
        """The signals that were sent to us, or by the terminal to all of us."""
        self.half: Half | None = None
        self.warned = False
        self.settled_at = self.most = 0.0
        self.oom_events = 0
        """Of the end at a memory limit: when what was told to end must have let go of memory, the
        most that it may hold until then, and how often the limit was hit by then."""
        self.git: Git | None = None
        """Knows git's own processes among those left behind."""
        self.decided = False
        self.killed = False
        self.unkillable: list[int] = []
        self.ended: dict[int, int] = {}
        """What we have told to end or killed, with its start."""

    def run(self) -> Outcome:
        """Supervise to the end; the outcome."""
        try:
            return self._supervise()
        finally:
            if self.witness:
                self.witness.dismiss()
                self.witness.reap()

    def _supervise(self) -> Outcome:
        while self.status is None:
            self.wait(None)
        self._look()  # whose limit was hit is final now
        outcome = self.outcome()
        if self.leftovers == "kill" and self.container.is_too_large_to_signal():
            self._kill()
        if not self.killed and self.container.live_pids():
            from sandrun.supervise import leftovers

            outcome = leftovers.settle(self, outcome)
        if self.container.escaped:
            outcome = self._escaped(outcome)
        if self.witness:
            self.witness.dismiss()  # its end takes as long as what follows
        outcome.usage = self.container.usage()
        outcome.top_consumers = self.container.top_consumers()
        outcome.unkillable = self.unkillable
        if self.outside:
            outcome.outside = self.outside.at_work()
        least = _SHARED if self.kernel else 1
        if outcome.usage.shared >= least and self.leftovers == "kill":
            from sandrun.supervise import shared_memory

            seen = (*outcome.leftovers, *outcome.top_consumers)
            self.members |= {process.pid for process in seen}
            since = time.time() - (time.monotonic() - self.began) - _CLOCKS
            outcome.shared = shared_memory.settle(self.members, since, outcome.usage, self.apart)
        self._await_reaped()
        return outcome

    def _escaped(self, outcome: Outcome) -> Outcome:
        """The outcome of a run of which processes left the container."""
        left = outcome.leftovers
        if self.strict and outcome.reason in ("exit", "signal"):
            outcome = Outcome("escaped", EXIT_CODES["escaped"])
        outcome.escaped = dict(self.container.escaped)
        outcome.leftovers = [process for process in left if process.pid not in outcome.escaped]
        for process in left:
            if process.pid in outcome.escaped:
                outcome.escaped[process.pid].outlived_command = True
        return outcome

    def _await_reaped(self) -> None:
        """Reap what was adopted, and return when nothing that was ended is a zombie that we or init
        shall reap: to whoever asks for its number (dmypy, bazel, Xvfb) a zombie is alive."""
        self._reap()
        deadline = time.monotonic() + _REAP_SECONDS
        pause = 0.0005
        for pid in set(self.ended) - set(self.unkillable):
            while _is_unreaped(pid, self.ended[pid]) and time.monotonic() < deadline:
                time.sleep(pause)
                pause = min(pause * 2, 0.02)
                self._reap()

    def wait(self, until: "float | None") -> None:
        """Sleep until a signal, the next thing that is due, or `until`; do what is due."""
        dues = [until, self.look_at, self.kill_at, self.give_up_at, self.asked_until]
        dues.append(self.witness_at)
        if self.served:
            dues.append(self.outside_at)
        if self.clocks and not self.reason:
            dues.append(self.clocks.due)
        times = [due for due in dues if due is not None]
        if self.witness and self.witness.later:
            # After all others, so that who sends one again and again keeps nobody else's from us.
            same = {info.si_signo for info in self.witness.later}
            info = sigtimedwait(spawn.ALL_SIGNALS - same, 0) or self.witness.later.pop(0)
        elif times:
            info = sigtimedwait(spawn.ALL_SIGNALS, max(0.0, min(times) - time.monotonic()))
        else:
            info = sigwaitinfo(spawn.ALL_SIGNALS)
        if info is not None:
            self._take_signal(info.si_signo, info.si_code, info.si_pid)
        self._reap()
        self._do_due(time.monotonic())

    def _do_due(self, now: float) -> None:
        if self.witness_at is not None and now >= self.witness_at:
            self.witness_at = None
            self._start_witness()
        if self.look_at is not None and now >= self.look_at:
            self._look()
        if self.asked_until is not None and now >= self.asked_until:
            self.asked_until = None
        if self.parent and os.getppid() != self.parent and not self._is_asked_to_end():
            self.parent = 0
            self.stop("parent")
        if self.clocks and not self.reason and now >= self.clocks.due:
            over = self.clocks.check(now)
            if over:
                self.stop(over)
        if self.kill_at is not None and now >= self.kill_at:
            self._kill()
        if self.served and now >= self.outside_at:
            self.outside_at = now + _OUTSIDE / 4
            if self.status is not None or not self._look_outside(*self.served):
                self.served = None
        if self.give_up_at is not None and now >= self.give_up_at:
            self.give_up_at = None
            if self.status is None:
                self.status = _signal.SIGKILL

    def _is_asked_to_end(self) -> bool:
        """Whether the signal that ended our parent may have been the command's as well."""
        pending = not spawn.ENDING.isdisjoint(_signal.sigpending())
        return self.asked_until is not None or pending

    def _start_witness(self) -> None:
        from sandrun.supervise.witness import Witness

        self.witness = Witness()
        if self.witness.pid:
            self.container.own.add(self.witness.pid)
        if self.keeper:
            self.keeper.close += self.witness.descriptors

    def _look_outside(self, project: str, env: "Mapping[str, str]") -> bool:
        """Look for daemons outside for a moment; whether there is more to look at."""
        from sandrun.supervise import outside

        self.outside = self.outside or outside.Outside(self.child, project, env)
        return self.outside.look()

    def _take_signal(self, signum: int, code: int, sender: int) -> None:
        if self.keeper and signum == self.keeper.WAKEUP and sender in self.keeper.pids:
            self.look_at = 0.0
            return
        # From ourselves: a write of ours to a closed pipe. The kernel queues what is blocked even
        # if it is ignored, and the command has nothing to do with it.
        if signum == _signal.SIGCHLD or sender == os.getpid():
            return
        self.taken.add(signum)
        if signum in spawn.ENDING:
            self.asked_until = time.monotonic() + self.grace
        # The kernel sends what the terminal says to the whole group, and an alarm(2) that our
        # caller set before its exec to us alone.
        from_kernel = code > _SI_USER_MAX and signum != _signal.SIGALRM
        if from_kernel and signum == _signal.SIGINT:
            self.interrupted = True
        # The witness is not asked about the terminal's: a stop must not come after its SIGCONT.
        to_group = from_kernel or self._came_to_group(signum, sender)
        # A hang-up goes to the session's leader alone, so a leader has to pass it on.
        if from_kernel and signum == _signal.SIGHUP and os.getsid(0) == os.getpid():
            to_group = False
        if self.status is not None:
            self._pass_to_leftovers(signum, to_group)
            return
        early = signum in self.early
        self.early.discard(signum)
        if early or not (to_group and (from_kernel or _is_with_us(self.child))):
            if os.getpid() == 1 and signum in (*_JOB_STOPS, _signal.SIGCONT):
                self.held = signum != _signal.SIGCONT
            # Below PID 1 every group is orphaned, where the kernel drops those (setpgid(2)).
            stops = signum in _JOB_STOPS and os.getpid() == 1 and _acts(self.child, signum)
            self._send(self.child, _signal.SIGSTOP if stops else signum)

    def _take_what_ended(self, signum: int) -> None:
        """Take our own copies of the signal that ended the command. What came to the group is in
        our queue before we can hear of that end: the kernel signals a group and announces an end
        under one lock (tasklist_lock; exit_notify, kernel/exit.c). We took none if we were busy
        with another one, or a lower number (SIGCHLD) came first."""
        later = self.witness.later if self.witness else []
        ours = [info for info in later if info.si_signo == signum]
        later[:] = [info for info in later if info.si_signo != signum]
        for info in (*ours, sigtimedwait((signum,), 0)):
            if info is not None:
                self._take_signal(info.si_signo, info.si_code, info.si_pid)

    def _came_to_group(self, signum: int, sender: int) -> bool:
        """Whether the signal was sent to our whole process group."""
        keeper = self.keeper.pid if self.keeper and self.kernel else 0
        return self.witness is not None and self.witness.had(signum, sender, self.child, keeper)

    def _pass_to_leftovers(self, signum: int, to_group: bool) -> None:
        """Without the command nobody else acts on a signal for what it left outside our group."""
        if to_group and signum in _JOB_STOPS:
            self._suspend(signum)
            return
        for pid in self.container.live_pids():
            if not (to_group and _is_with_us(pid)):
                self._send(pid, signum)

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
            elif self.witness and pid == self.witness.pid and not os.WIFSTOPPED(status):
                self.container.own.discard(pid)
                self.witness.pid = 0

    def _stopped(self, signum: int) -> None:
        """The command was stopped by job control: stop too; go on together when continued.

        SIGSTOP means the command alone, and stopping with it would suspend its limits; but if it
        had the terminal, nobody else is there to give that back to the shell. PID 1 cannot stop.
        """
        if self.reason or self.held:
            return
        from sandrun.platform import posix_terminal

        front = posix_terminal.foreground(self.child)
        if signum not in _JOB_STOPS and not front:
            return
        self._suspend(signum)
        if front:
            posix_terminal.hand_to(front)
        if _is_stopped(self.child):
            self._send(self.child, _signal.SIGCONT)

    def _suspend(self, signum: int) -> None:
        """Stop by `signum`; returns when continued. Our own SIGCONT is used up: who continued
        only us meant the command as well, and who continued the group has told it."""
        # The terminal's own is pending still: left there, it would stop us a second time.
        while sigtimedwait((signum,), 0) is not None:
            pass
        if self.witness:
            self.witness.suspend()
        # A stop takes back a SIGCONT that waits, so the one that waits came after it: a shell whose
        # own process is in between (a function) does not wait for us to stop before its fg.
        if _signal.SIGCONT not in _signal.sigpending():
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (signum,))
            os.kill(os.getpid(), signum)
            _signal.pthread_sigmask(_signal.SIG_BLOCK, (signum,))
        sigtimedwait((_signal.SIGCONT,), 0)
        if self.witness:
            self.witness.resume()
        if self.clocks:
            self.clocks.resume(time.monotonic())

    def _look(self) -> None:
        began = time.thread_time()
        due = self.container.poll()
        cost = (time.thread_time() - began) * _LOOK_SHARE if self.kernel else 0.0
        now = time.monotonic()
        self.look_at = None if due is None or self.killed else now + max(due, cost)
        if self.container.limit_hit and self.reason in _MEMORY:
            self._end_at_limit(now)
        elif self.container.limit_hit and not self.decided:
            self._limit_hit(now)
        elif self.strict and self.container.escaped and not self.reason:
            self.stop("escaped")
        elif not self.decided:
            self._warn()

    def _limit_hit(self, now: float) -> None:
        """A memory limit was hit: whatever the command says of it, this is how the run ended."""
        self.settled_at = now + _SETTLE_SECONDS
        self.most = max(self.limit * 1.1, self.container.usage().current or 0)
        self.oom_events = self.container.oom_events
        begun, self.reason = self.reason, _MEMORY[self.container.limit_hit == "outer"]
        if not begun:  # else it was told to end already, and has what is left of the grace
            self.stop(self.reason, at_limit=True)

    def _end_at_limit(self, now: float) -> None:
        """SIGKILL for all once they hit the limit again; where no kernel holds it meanwhile, also
        when they take more than they had."""
        if now < self.settled_at:
            self.oom_events = self.container.oom_events
        more = not self.kernel and (self.container.usage().current or 0) > self.most
        if (more or self.container.oom_events > self.oom_events) and not self.killed:
            self._kill()

    def _warn(self) -> None:
        if self.warned or not self.limit or self.reason:
            return
        current = self.container.usage().current or 0
        if current * 2 >= self.limit:
            from sandrun.supervise import report

            self.half = self.half or report.Half(self.limit)
            self.warned = self.half.told(current, self.container)

    def stop(self, reason: str, at_limit: bool = False) -> None:
        """The kill signal to the whole tree, children first, and SIGKILL after the grace; a fork
        bomb is killed at once, and so is the largest process `at_limit` unless the kernel does it.
        """
        self.reason = self.reason or reason
        if self.container.is_too_large_to_signal():
            self._kill()
            return
        self.kill_at = time.monotonic() + self.grace
        pids = self.container.live_pids()
        if self.status is None and self.child not in pids:
            pids.append(self.child)
        self.members.update(pids)
        from sandrun.platform import processes

        starts = {pid: processes.start(pid) for pid in pids}
        self.ended |= starts
        if at_limit and pids:
            largest = max(pids, key=_memory)
            if not self.kernel or processes.is_oom_protected(largest):
                self._send(largest, _signal.SIGKILL)
        # A child starts after its parent; within one tick of the clock its number tells, as a rule.
        for pid in sorted(pids, key=lambda pid: (starts[pid], pid), reverse=True):
            self._send(pid, self.term)
            self._send(pid, _signal.SIGCONT)  # a stopped process could not act on it

    def _kill(self) -> None:
        self.killed = True
        self.kill_at = None
        self.look_at = None
        if self.status is None:
            self._send(self.child, _signal.SIGKILL)
        if self.kernel and not self.container.is_too_large_to_signal():
            from sandrun.platform import processes

            self.ended |= {pid: processes.start(pid) for pid in self.container.live_pids()}
        try:
            self.container.kill()
        except TimeoutError as error:
            self.unkillable = error.args[0]
        self.give_up_at = time.monotonic() + _REAP_SECONDS

    def outcome(self) -> Outcome:
        """How the run ended, by what is known at this time."""
        if self.reason in EXIT_CODES:
            return Outcome(self.reason, EXIT_CODES[self.reason])
        assert self.status is not None
        code = os.waitstatus_to_exitcode(self.status)
        if code >= 0:
            return Outcome("exit", code)
        self._take_what_ended(-code)
        outcome = Outcome("signal", 128 - code, -code)
        outcome.forwarded = -code in self.taken
        outcome.dumped = os.WCOREDUMP(self.status)
        outcome.interrupted = self.interrupted and -code == _signal.SIGINT
        return outcome


def _acts(pid: int, signum: int) -> bool:
    """Whether the signal would have its default action there, by proc(5): it is neither caught nor
    ignored nor blocked. Who waits for it blocks it, and the kernel tells that only by wchan."""
    from sandrun.platform import processes

    try:
        status = processes.read(f"{processes.PROC}/{pid}/status")
        waits = b"sigtimedwait" in processes.read(f"{processes.PROC}/{pid}/wchan")
    except OSError:
        return False
    names = (b"SigBlk:\t", b"SigIgn:\t", b"SigCgt:\t")
    masks = [status.partition(name)[2][:16] for name in names]
    return not waits and all(mask and not int(mask, 16) >> (signum - 1) & 1 for mask in masks)


def _memory(pid: int) -> int:
    from sandrun.platform import processes

    found = processes.describe(pid)
    return found.memory if found else 0  # it is gone


def _is_unreaped(pid: int, start: int) -> bool:
    """Whether the process lives, or is a zombie of ours or init's. Others keep what they like."""
    from sandrun.platform import processes

    try:
        stat = processes.Stat(pid)
    except OSError:
        return False
    return stat.start == start and (stat.state not in "ZX" or stat.parent in (1, os.getpid()))


def _is_with_us(pid: int) -> bool:
    from sandrun.platform import posix_terminal

    return posix_terminal.is_with_us(pid)


def _is_stopped(pid: int) -> bool:
    from sandrun.platform import processes

    try:
        return processes.Stat(pid).state == "T"
    except OSError:
        return True  # no /proc: a SIGCONT too many does little
