"""Supervising one command on POSIX: signals, job control, the reaping of children.

Promises
- Each signal sent to sandrun is passed on to the command, in the order in which the kernel delivers
  them, also one that came before the command existed (all are blocked from the first line on, and
  taken one by one with sigwaitinfo(2)). A signal to our process group, from the terminal or by
  kill(2), reaches the command from the kernel, because it shares that group, and is not sent again.
- When the command stops (Ctrl-Z), we stop the same way, so the shell's job control works.
- Every child is reaped, also an adopted one: sandrun can be PID 1, and where PID 1 is not known to
  reap orphans, we adopt them (prctl(2), PR_SET_CHILD_SUBREAPER). No process that we ended is a
  zombie when we exit.
- When the process that started us dies, the run ends. If a signal asked the command to end just
  before, the command gets the grace first: many programs treat a second signal as a request to end
  without cleaning up.
- At a memory limit the largest process is killed, by the kernel where one enforces the limit. The
  others, which may have to clean up, are asked to end and have the grace, unless they reach the
  limit again.

The proof that a signal hits only the run: the command's pid is its own until we have reaped it. Any
other pid was read from the container an instant ago, and the kernel assigns pids in turn, so a pid
is reused only after all others. SIGKILL of many is left to the container, which pins each process.
"""

import os
import sys
import time

from sandrun.bare import signal as _signal
from sandrun.model import Outcome
from sandrun.platform import spawn
from sandrun.supervise.supervisor import MEMORY, BaseSupervisor

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
    from sandrun.supervise.outside import Outside
    from sandrun.supervise.termination import MemoryPressure
    from sandrun.supervise.witness import Witness
    from sandrun.types import StopReason

_JOB_STOPS = (_signal.SIGTSTP, _signal.SIGTTIN, _signal.SIGTTOU)
_NOTICE = getattr(_signal, "SIGRTMAX", 0)
"""Sent by the kernel: a directory that the container watches has changed (F_NOTIFY, fcntl(2))."""
_SI_USER_MAX = 0  # si_code > 0: sent by the kernel (sigaction(2))
_WITNESS = 0.002
"""Seconds until the witness is started. A shorter run saves its 2 ms of processor time."""
_OUTSIDE = 0.02
"""Seconds until the search for daemons outside begins, in steps of 2 ms: a shorter run has none."""
_SHARED = 1 << 18
"""The least shared memory, in bytes, that counts as left: the kernel charges it in batches."""
_CLOCK_SKEW = 0.02
"""Seconds by which a file's times may be behind our clock, and we behind the command's start."""
_REAP_SECONDS = 1.0
"""Seconds after SIGKILL until a command that we cannot reap (traced, in the kernel) is given up."""


class Supervisor(BaseSupervisor):
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
        super().__init__(child, container, settings, kernel)
        self.keeper = keeper
        self.parent = keeper.parent if keeper else 0
        self.term = settings.kill_signal
        self.excluded: tuple[str, ...] = ()
        """Directories in which the memory that is left is the run's result, or not the run's."""
        self.daemon_search: tuple[str, Mapping[str, str]] | None = None
        """The project and the command's environment, until the search for daemons outside ends."""
        self.search_at = self.began + _OUTSIDE
        self.outside: Outside | None = None
        self.witness: Witness | None = None
        self.witness_at: float | None = self.began + _WITNESS
        self.give_up_at: float | None = None
        self.asked_until: float | None = None
        """The end of the grace of a signal that asked the command to end."""
        self.pressure: MemoryPressure | None = None
        self.seen_pids = {child}
        """Processes that were seen in the run."""
        self.terminated: dict[int, int] = {}
        """The start of each process that we asked to end or killed, by pid."""
        self.received: set[int] = set()
        """The signals that were sent to us, or by the terminal to our group."""
        self.interrupted = False
        self.stop_sent = False
        """As PID 1: the last signal for job control that was passed on was a stop."""

    def run(self) -> Outcome:
        try:
            return super().run()
        finally:
            if self.witness:
                self.witness.dismiss()
                self.witness.reap()

    def _complete(self, outcome: Outcome) -> None:
        if self.witness:
            self.witness.dismiss()  # it exits during the following steps
        super()._complete(outcome)
        if self.outside:
            outcome.outside = self.outside.active()
        least = _SHARED if self.kernel else 1
        if outcome.usage.shared >= least and self.leftovers == "kill":
            from sandrun.supervise import shared_memory

            self.seen_pids |= {p.pid for p in (*outcome.leftovers, *outcome.top_consumers)}
            since = time.time() - (time.monotonic() - self.began) - _CLOCK_SKEW
            outcome.shared = shared_memory.settle(
                self.seen_pids, since, outcome.usage, self.excluded
            )
        self._reap()
        if self.terminated:
            from sandrun.supervise import termination

            ended = {p: s for p, s in self.terminated.items() if p not in self.unkillable}
            termination.await_reaped(ended, self._reap, _REAP_SECONDS)

    def _dues(self) -> "list[float | None]":
        search = self.search_at if self.daemon_search else None
        keeper = self.keeper.complete_at if self.keeper and self.keeper.is_shell else None
        more = [self.give_up_at, self.asked_until, self.witness_at, keeper, search]
        return super()._dues() + more

    def _block(self, until: "float | None") -> None:
        if self.witness and self.witness.deferred:
            # Deferred signals come last, so that a signal sent again and again delays no other.
            same = {info.si_signo for info in self.witness.deferred}
            info = sigtimedwait(spawn.ALL_SIGNALS - same, 0) or self.witness.deferred.pop(0)
        elif until is not None:
            info = sigtimedwait(spawn.ALL_SIGNALS, max(0.0, until - time.monotonic()))
        else:
            info = sigwaitinfo(spawn.ALL_SIGNALS)
        if info is not None:
            self._handle_signal(info.si_signo, info.si_code, info.si_pid)
        self._reap()

    def _do_due(self, now: float) -> None:
        if self.witness_at is not None and now >= self.witness_at:
            self.witness_at = None
            self._start_witness()
        if self.keeper and self.keeper.is_shell and now >= self.keeper.complete_at:
            self.keeper.complete()
        if self.asked_until is not None and now >= self.asked_until:
            self.asked_until = None
        if self.parent and os.getppid() != self.parent and not self._is_asked_to_end():
            self.parent = 0
            self.stop("parent")
        super()._do_due(now)
        if self.daemon_search and now >= self.search_at:
            self.search_at = now + _OUTSIDE / 4
            if self.status is not None or not self._search_daemons(*self.daemon_search):
                self.daemon_search = None
        if self.give_up_at is not None and now >= self.give_up_at:
            self.give_up_at = None
            if self.status is None:
                self.status = _signal.SIGKILL

    def _is_asked_to_end(self) -> bool:
        """Whether the signal that ended our parent may have been sent to the command as well."""
        pending = not spawn.ENDING.isdisjoint(_signal.sigpending())
        return self.asked_until is not None or pending

    def _start_witness(self) -> None:
        from sandrun.supervise.witness import Witness

        self.witness = Witness()
        if self.witness.pid:
            self.container.helpers.add(self.witness.pid)
        if self.keeper:
            self.keeper.close += self.witness.descriptors

    def _search_daemons(self, project: str, env: "Mapping[str, str]") -> bool:
        """Search for daemons outside of the run for a moment. Returns whether to search on."""
        from sandrun.supervise import outside

        self.outside = self.outside or outside.Outside(self.child, project, env)
        return self.outside.search()

    def _handle_signal(self, signum: int, code: int, sender: int) -> None:
        from_keeper = self.keeper and signum == self.keeper.WAKEUP and sender in self.keeper.pids
        if from_keeper or (signum == _NOTICE and code > _SI_USER_MAX):
            self.poll_at = 0.0
            return
        # From us: the SIGPIPE of a write; the kernel queues a blocked signal even if it is ignored.
        if signum == _signal.SIGCHLD or sender == os.getpid():
            return
        self.received.add(signum)
        if signum in spawn.ENDING:
            self.asked_until = time.monotonic() + self.grace
        # The kernel sends the terminal's signals to the whole group, our caller's alarm(2) to us.
        from_kernel = code > _SI_USER_MAX and signum != _signal.SIGALRM
        if from_kernel and signum == _signal.SIGINT:
            self.interrupted = True
        # The witness is not asked about the terminal's signals: that takes time, and we must not
        # stop after the SIGCONT that continues the job.
        to_group = from_kernel or self._came_to_group(signum, sender)
        # A hang-up goes to the session's leader alone, so a leader has to pass it on.
        if from_kernel and signum == _signal.SIGHUP and os.getsid(0) == os.getpid():
            to_group = False
        if self.status is not None:
            self._pass_to_leftovers(signum, to_group)
            return
        early = signum in self.early
        self.early.discard(signum)
        if early or not (to_group and (from_kernel or _is_in_our_group(self.child))):
            self._pass_to_command(signum)

    def _pass_to_command(self, signum: int) -> None:
        if os.getpid() == 1 and signum in (*_JOB_STOPS, _signal.SIGCONT):
            self.stop_sent = signum != _signal.SIGCONT
            # Every group below PID 1 is orphaned, so the kernel drops such signals (setpgid(2)).
            if self.stop_sent and _has_default_action(self.child, signum):
                signum = _signal.SIGSTOP
        self._send(self.child, signum)

    def _came_to_group(self, signum: int, sender: int) -> bool:
        """Whether the signal was sent to our whole process group."""
        keeper = self.keeper.pid if self.keeper and self.kernel else 0
        return bool(self.witness and self.witness.received(signum, sender, self.child, keeper))

    def _pass_to_leftovers(self, signum: int, to_group: bool) -> None:
        """After the command's exit only we can pass a signal to leftovers outside our group."""
        if to_group and signum in _JOB_STOPS:
            self._suspend(signum)
            return
        for pid in self.container.live_pids():
            if not (to_group and _is_in_our_group(pid)):
                self._send(pid, signum)

    def _take_copies(self, signum: int) -> None:
        """Take our own copies of the signal that ended the command, unless we took them before. A
        signal to the group is in our queue before we can see the command's end: the kernel signals
        a group and announces an exit under one lock (tasklist_lock; exit_notify, kernel/exit.c)."""
        deferred = self.witness.deferred if self.witness else []
        copies = [info for info in deferred if info.si_signo == signum]
        deferred[:] = [info for info in deferred if info.si_signo != signum]
        for info in (*copies, sigtimedwait((signum,), 0)):
            if info is not None:
                self._handle_signal(info.si_signo, info.si_code, info.si_pid)

    def _send(self, pid: int, signum: int) -> None:
        try:
            os.kill(pid, signum)
        except OSError:
            pass  # it is gone, or runs as another user by now

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            has_exited = os.WIFEXITED(status) or os.WIFSIGNALED(status)
            if pid == self.child and has_exited:
                self.status = status
            elif pid == self.child and os.WIFSTOPPED(status):
                self._command_stopped(os.WSTOPSIG(status))
            elif pid == self.child:
                self.note("continued")
            elif self.keeper and pid == self.keeper.pid and has_exited:
                self.keeper.replace()
            elif has_exited:
                self.container.helpers.discard(pid)  # also a shell that was the keeper
                if self.witness and pid == self.witness.pid:
                    self.witness.pid = 0

    def _command_stopped(self, signum: int) -> None:
        """The command was stopped by job control: stop too, and continue together with it.

        SIGSTOP is meant for the command alone, and stopping with it would suspend its limits. But
        if the command had the terminal, only we can give it back to the shell. PID 1 cannot stop.
        """
        self.note("stopped", signal=signum)
        if self.reason or self.stop_sent:
            return
        from sandrun.platform import posix_terminal

        front = posix_terminal.foreground(self.child)
        if signum not in _JOB_STOPS and not front:
            return
        self._suspend(signum)
        if front:
            posix_terminal.give_to(front)
        if _is_stopped(self.child):
            self._send(self.child, _signal.SIGCONT)

    def _suspend(self, signum: int) -> None:
        """Stop by `signum`; return when continued. The SIGCONT that continues us is consumed: the
        command continues anyway, by a SIGCONT of ours or by one to the group."""
        # The terminal's stop signal may still be pending, and would stop us a second time.
        while sigtimedwait((signum,), 0) is not None:
            pass
        if self.witness:
            self.witness.suspend()
        # A stop signal removes a pending SIGCONT, so a pending one came after the stop: a shell
        # with a process of its own in between (a function) sends fg before we have stopped.
        if _signal.SIGCONT not in _signal.sigpending():
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (signum,))
            os.kill(os.getpid(), signum)
            _signal.pthread_sigmask(_signal.SIG_BLOCK, (signum,))
        sigtimedwait((_signal.SIGCONT,), 0)
        if self.witness:
            self.witness.resume()
        if self.timeouts:
            self.timeouts.restart_idle(time.monotonic())

    def _limit_hit(self, now: float) -> None:
        if self.pressure:
            if not self.killed and self.pressure.persists(now):
                self._kill()
            return
        from sandrun.supervise import termination

        self.pressure = termination.MemoryPressure(self.container, self.limit, self.kernel, now)
        begun, self.reason = self.reason, MEMORY[self.container.limit_hit == "outer"]
        if not begun:  # otherwise the run was asked to end already, and has the rest of the grace
            self.stop(self.reason)

    def _ask_to_end(self, reason: "StopReason") -> bool:
        """Send the kill signal to the whole tree, children first; at a memory limit kill the
        largest process, unless the kernel does. A tree that is too large to signal is not asked."""
        if self.container.is_too_large_to_signal():
            return False
        pids = self.container.live_pids()
        if self.status is None and self.child not in pids:
            pids.append(self.child)
        self.seen_pids.update(pids)
        from sandrun.supervise import termination

        for pid in termination.largest(pids, self.kernel) if reason in MEMORY and pids else []:
            self._send(pid, _signal.SIGKILL)
        self.terminated |= termination.ask_to_end(pids, self.term, self._send)
        return True

    def _kill(self) -> None:
        if self.status is None:
            self._send(self.child, _signal.SIGKILL)
        if self.kernel and not self.container.is_too_large_to_signal():
            from sandrun.platform import processes

            self.terminated |= {pid: processes.start(pid) for pid in self.container.live_pids()}
        super()._kill()
        self.give_up_at = time.monotonic() + _REAP_SECONDS

    def _exit_outcome(self, status: int) -> Outcome:
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return Outcome("exit", code)
        self._take_copies(-code)
        outcome = Outcome("signal", 128 - code, -code)
        outcome.forwarded = -code in self.received
        outcome.dumped = os.WCOREDUMP(status)
        outcome.interrupted = self.interrupted and -code == _signal.SIGINT
        return outcome


def _has_default_action(pid: int, signum: int) -> bool:
    """Whether the signal would have its default action in the process: it is neither caught nor
    ignored nor blocked (proc(5)). A process that waits for it blocks it, which only wchan shows."""
    from sandrun.platform import processes

    try:
        status = processes.read(f"{processes.PROC}/{pid}/status")
        waits = b"sigtimedwait" in processes.read(f"{processes.PROC}/{pid}/wchan")
    except OSError:
        return False
    names = (b"SigBlk:\t", b"SigIgn:\t", b"SigCgt:\t")
    masks = [status.partition(name)[2][:16] for name in names]
    return not waits and all(mask and not int(mask, 16) >> (signum - 1) & 1 for mask in masks)


def _is_in_our_group(pid: int) -> bool:
    from sandrun.platform import posix_terminal

    return posix_terminal.is_in_our_group(pid)


def _is_stopped(pid: int) -> bool:
    from sandrun.platform import processes

    try:
        return processes.Stat(pid).state == "T"
    except OSError:
        return True  # no /proc: an unnecessary SIGCONT does little harm
