"""The witness: a process in our process group that tells which signals came to the whole group.

kill(2) of a group (`kill %1`, timeout(1), dumb-init, `tini -g`, CI agents) reaches the command from
the kernel, and a signal to sandrun alone has to be passed on; siginfo does not tell one from the
other. The witness blocks every signal, so what came to the group waits in its queue.

Invariants
- Whatever it cannot tell was for us alone: a signal may come twice then, but none is lost.
- It is in our group and younger than we are. The kernel signals the members of a group under one
  lock, the youngest first (`attach_pid` puts each at the head of the list, kernel/pid.c), so what
  we have from the group it has as well.
- What counts came from the same sender to both of us. Its name is not sandrun's, so who signals by
  name does not signal both (what came before it had that name does not count). Who signals every
  process of our cgroup (`systemctl stop`) and not the command in another one signals the keeper as
  well, which is in another group. Elsewhere in our unit systemd signals it (systemd.kill(5)).
- It holds nothing of ours but its two pipes, and ends when we do: at the end of its file.

Standard signals do not queue (signal(7)): one sent to us while another of its number is pending is
merged with that, as it would be in the command.

Compared with a supervisor that moves to a group of its own (setpgid(2)): a leader of a session,
which is what dumb-init, tini and CI agents make of us, cannot do that; a leader of a group, which
is what a shell makes of us, needs a process more to lend it a number; and a shell's `fg`, a SIGCONT
of the job's group, would not reach it, so the job would stay stopped.

It is forked when the command has run for an instant, and nobody waits for it: until then a signal
to the group comes twice. Measured: 2 ms of processor time (the fork 0.5, the pages that it copies
1.0, this module 0.3) and 1.6 MiB, none of it for what ends at once. PID 1 has none, for kill(2)
cannot name its group, and macOS has none, where a process cannot change its name.
"""

import os
import sys
import time

from sandrun.bare import signal as _signal
from sandrun.model import DARWIN
from sandrun.platform import spawn

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    if sys.platform == "linux":
        from signal import struct_siginfo
    else:
        from sandrun.platform.macos_sigwait import Accepted as struct_siginfo

NAME = "run-witness"
_PATIENCE = 2000
"""Milliseconds until a witness that does not answer is given up."""
_BOTH = 0.02
"""Seconds in which whoever signals several processes has signalled them all."""
_HIERARCHIES = ("", "name=systemd")
"""v2's and v1's, where systemd has its units."""
_REAL_TIME = getattr(_signal, "SIGRTMIN", 64)
_END = b"\n"


class Witness:
    """A running witness, a child of ours; `pid` is 0 if there is none (any more)."""

    __slots__ = ("_answer", "_ask", "_heard", "deferred", "descriptors", "pid")

    def __init__(self) -> None:
        """Start it. There is none at a limit on processes or files."""
        self.pid, self._ask, self._answer = 0, -1, -1
        self._heard: list[tuple[int, int]] = []
        """Signal and sender of what it got and we have not taken yet."""
        self.deferred: list[struct_siginfo] = []
        """What was taken from our own queue while we waited for another of its number, and is to be
        passed on after that: at most one of a number."""
        self.descriptors: list[int] = []
        """What no other process of ours may hold open."""
        if DARWIN or os.getpid() == 1:
            return
        try:
            ask, self._ask = os.pipe()
            self._answer, answer = os.pipe()
            self.pid = os.fork()
        except OSError:
            return
        if self.pid == 0:
            try:
                _testify(ask, answer)
            finally:
                os._exit(0)
        os.close(ask)
        os.close(answer)
        self.descriptors = [self._ask, self._answer]

    def received(self, signum: int, sender: int, command: int, keeper: int) -> bool:
        """Whether the group got the signal that we have just taken from our own queue. `keeper`:
        a process in our cgroup but not in our group, if the `command` is in another cgroup; 0: it
        is not.
        """
        if DARWIN or not self.pid:
            return False
        from sandrun.platform import posix_terminal, processes

        by_unit = sender > 0 and _is_systemd(sender)
        by_member = sender > 0 and posix_terminal.is_in_our_group(sender)
        found = self._was_heard(signum, sender)
        if signum < _REAL_TIME and (by_unit or by_member):
            found = self._await_second(signum, sender, by_unit, found)
        if found and keeper and not (by_unit and _is_in_our_unit(command)):
            time.sleep(_BOTH)
            return not processes.is_pending(keeper, signum)
        return found

    def _await_second(self, signum: int, sender: int, by_unit: bool, found: bool) -> bool:
        """The same for senders that signal us and then the group, meaning one signal: timeout(1)
        signals its child, then its group, and the kernel merges the two for who does not take the
        first at once. systemd signals a unit's first process, then all, one by one. `found`: the
        group has it already, so only a second one that is pending now belongs to it.
        """
        end = time.monotonic() + _BOTH
        second = _signal.sigtimedwait((signum,), 0 if found and not by_unit else _BOTH)
        if second is None and found:
            return True
        if second is not None:
            self.deferred.append(second)
            if by_unit:
                time.sleep(max(0.0, end - time.monotonic()))
        found = self._was_heard(signum, sender) or found
        if found and second is not None and second.si_pid == sender:
            self.deferred.remove(second)
        return found

    def _was_heard(self, signum: int, sender: int) -> bool:
        """Whether the witness got this one too."""
        new = self._listen()
        self._heard += new
        found = (signum, sender) in self._heard
        if found:
            self._heard.remove((signum, sender))
        # What is new may be on its way to us.
        self._forget({number for number, _ in new if number != signum})
        return found

    def suspend(self) -> None:
        """Stop, as the whole job does."""
        if self.pid:
            os.kill(self.pid, _signal.SIGSTOP)

    def resume(self) -> None:
        """We went on, and have used up what stopped and continued the job."""
        if self.pid:
            self._heard += self._listen()
            self._forget(set())

    def _forget(self, coming: "set[int]") -> None:
        """Forget what was merged with another one in our queue, so that it can never come. Signals
        of real time are not merged."""
        wanted = coming | _signal.sigpending() | {info.si_signo for info in self.deferred}
        self._heard = [(n, by) for n, by in self._heard if n in wanted or n >= _REAL_TIME]

    def _listen(self) -> "list[tuple[int, int]]":
        """What it got since it was asked last."""
        import select

        waiter = select.poll()
        waiter.register(self._answer, select.POLLIN)
        said = b""
        try:
            os.kill(self.pid, _signal.SIGCONT)  # we or a SIGSTOP to the group have stopped it
            os.write(self._ask, b"?")
            while not said.endswith(_END):
                part = os.read(self._answer, 65536) if waiter.poll(_PATIENCE) else b""
                if not part:
                    raise TimeoutError
                said += part
        except OSError:  # it was killed, or does not answer
            self.dismiss()
            return []
        numbers = list(map(int, said.split()))
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def dismiss(self) -> None:
        """It is not needed any more. (SIGKILL: it may be stopped.)"""
        if self.pid:
            os.kill(self.pid, _signal.SIGKILL)  # our child, not yet reaped: the pid is its own

    def reap(self) -> None:
        """Wait for the dismissed one."""
        if self.pid:
            os.waitpid(self.pid, 0)
            self.pid = 0


def _is_systemd(pid: int) -> bool:
    from sandrun.platform import processes

    try:
        return processes.Stat(pid).name == "systemd"
    except OSError:
        return False


def _is_in_our_unit(pid: int) -> bool:
    """Whether the process is in our unit, or in a group below that, in each of its hierarchies."""
    if sys.platform != "linux":
        return False
    from sandrun.backends import cgroup_common

    try:
        return all(
            _unit(cgroup_common.group_of(pid, name))
            == _unit(cgroup_common.group_of(os.getpid(), name))
            for name in _HIERARCHIES
        )
    except OSError:
        return False


def _unit(group: str) -> str:
    """The innermost unit that a cgroup is of, as a group; '': of none."""
    names = group.split("/")
    while names and not names[-1].endswith((".service", ".scope")):
        names.pop()
    return "/".join(names)


def _testify(ask: int, answer: int) -> None:
    """What the witness's own process does: whenever it is asked it says what it got since."""
    us = os.getppid()
    if not spawn.become_helper(NAME.encode(), ask, answer):
        return
    while _signal.sigtimedwait(spawn.ALL_SIGNALS, 0):
        pass
    while os.read(0, 1):
        heard = b""
        while info := _signal.sigtimedwait(spawn.ALL_SIGNALS, 0):
            if info.si_pid != us and info.si_code <= 0:  # else the kernel sent it (sigaction(2))
                heard += b"%d %d " % (info.si_signo, info.si_pid)
        os.write(1, heard + _END)
