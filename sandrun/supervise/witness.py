"""The witness: a process in our process group that shows which signals came to the whole group.

kill(2) of a group (`kill %1`, timeout(1), dumb-init, `tini -g`, CI agents) reaches the command from
the kernel, but a signal to sandrun alone has to be passed on, and siginfo does not distinguish the
two. The witness blocks every signal, so the signals to the group stay pending in it.

Invariants
- A signal about which the witness cannot answer counts as sent to us alone: it may arrive twice
  then, but none is lost.
- The witness is in our group and younger than we are. The kernel signals the members of a group
  under one lock, the youngest first (`attach_pid` puts each at the head of the list, kernel/pid.c),
  so the witness has every signal that we have from the group.
- Only a signal that the same sender sent to both of us counts. The witness's name is not sandrun's,
  so a signal by name does not reach both (signals from before it had that name do not count). A
  signal to every process of our cgroup (`systemctl stop`), with the command in another cgroup,
  reaches the keeper too, which is in another process group. systemd also signals the other cgroups
  of our unit (systemd.kill(5)).
- The witness keeps only its two pipes open. It exits when we do, at the end of file.

Standard signals do not queue (signal(7)): a signal that is sent to us while another of its number
is pending is merged with that one, as it would be in the command.

Why the supervisor does not move to a group of its own (setpgid(2)): a session leader cannot, and
dumb-init, tini and CI agents make us one; a group leader, which a shell makes us, would need
another process whose pid names the new group; and a shell's `fg`, a SIGCONT to the job's group,
would not reach us, so the job would stay stopped.

The witness is forked when the command has run for 2 ms, and no process waits for it: until then a
signal to the group arrives twice. Measured: 2 ms of processor time (the fork 0.5, the pages that it
copies 1.0, this module 0.3) and 1.6 MiB, none of it for a shorter run. PID 1 has no witness,
because kill(2) cannot name its group; macOS has none, because a process there cannot change its
name.
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
_ANSWER_TIMEOUT = 2000
"""Milliseconds until a witness that does not answer is given up."""
_BOTH = 0.02
"""Seconds in which a sender that signals several processes has signalled them all."""
_HIERARCHIES = ("", "name=systemd")
"""The cgroup hierarchies of systemd's units, on v2 and v1."""
_REAL_TIME = getattr(_signal, "SIGRTMIN", 64)
_END = b"\n"


class Witness:
    """A running witness, a child of ours; `pid` is 0 if there is none, or none any more."""

    __slots__ = ("_answer", "_ask", "_received", "deferred", "descriptors", "pid")

    def __init__(self) -> None:
        """Start the witness. At a limit on processes or files there is none."""
        self.pid, self._ask, self._answer = 0, -1, -1
        self._received: list[tuple[int, int]] = []
        """Signal and sender of what it received and we have not taken yet."""
        self.deferred: list[struct_siginfo] = []
        """Signals that we took while waiting for another one of the same number, to be handled
        later: at most one of each number."""
        self.descriptors: list[int] = []
        """Descriptors that no other process of ours may keep open."""
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
        """Whether the whole group received the signal that we have just taken. `keeper`: a process
        in our cgroup but not in our group, if the `command` is in another cgroup; else 0.
        """
        if DARWIN or not self.pid:
            return False
        from sandrun.platform import posix_terminal, processes

        by_unit = sender > 0 and _is_systemd(sender)
        by_member = sender > 0 and posix_terminal.is_in_our_group(sender)
        found = self._has_received(signum, sender)
        if signum < _REAL_TIME and (by_unit or by_member):
            found = self._await_second(signum, sender, by_unit, found)
        if found and keeper and not (by_unit and _is_in_our_unit(command)):
            time.sleep(_BOTH)
            return not processes.is_pending(keeper, signum)
        return found

    def _await_second(self, signum: int, sender: int, by_unit: bool, found: bool) -> bool:
        """Whether the group received it, from a sender that sends one signal first to us, then to
        the group: timeout(1) signals its child, then its group, and the kernel merges the two if
        the first is still pending. systemd signals a unit's first process, then all, one by one.
        `found`: the group has it already, so only a second one that is pending now belongs to it.
        """
        end = time.monotonic() + _BOTH
        second = _signal.sigtimedwait((signum,), 0 if found and not by_unit else _BOTH)
        if second is None and found:
            return True
        if second is not None:
            self.deferred.append(second)
            if by_unit:
                time.sleep(max(0.0, end - time.monotonic()))
        found = self._has_received(signum, sender) or found
        if found and second is not None and second.si_pid == sender:
            self.deferred.remove(second)
        return found

    def _has_received(self, signum: int, sender: int) -> bool:
        """Whether the witness received this signal too."""
        new = self._listen()
        self._received += new
        found = (signum, sender) in self._received
        if found:
            self._received.remove((signum, sender))
        # The other new ones may still be on their way to us.
        self._forget({number for number, _ in new if number != signum})
        return found

    def suspend(self) -> None:
        """Stop, as the whole job does."""
        if self.pid:
            os.kill(self.pid, _signal.SIGSTOP)

    def resume(self) -> None:
        """Forget the signals that stopped and continued us, after we were continued."""
        if self.pid:
            self._received += self._listen()
            self._forget(set())

    def _forget(self, coming: "set[int]") -> None:
        """Forget signals that were merged with a pending one of ours, so that they never arrive.
        Real-time signals are not merged."""
        wanted = coming | _signal.sigpending() | {info.si_signo for info in self.deferred}
        self._received = [(n, by) for n, by in self._received if n in wanted or n >= _REAL_TIME]

    def _listen(self) -> "list[tuple[int, int]]":
        """The signals that it received since the last question, with their senders."""
        import select

        waiter = select.poll()
        waiter.register(self._answer, select.POLLIN)
        reply = b""
        try:
            os.kill(self.pid, _signal.SIGCONT)  # we, or a SIGSTOP to the group, may have stopped it
            os.write(self._ask, b"?")
            while not reply.endswith(_END):
                part = os.read(self._answer, 65536) if waiter.poll(_ANSWER_TIMEOUT) else b""
                if not part:
                    raise TimeoutError
                reply += part
        except OSError:  # it was killed, or does not answer
            self.dismiss()
            return []
        numbers = list(map(int, reply.split()))
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def dismiss(self) -> None:
        """End the witness, by SIGKILL, because it may be stopped."""
        if self.pid:
            os.kill(self.pid, _signal.SIGKILL)  # our child, not yet reaped: the pid is its own

    def reap(self) -> None:
        """Wait for it after `dismiss`."""
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
    """Whether the process is in our unit, or in a group below it, in each hierarchy."""
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
    """The group of the innermost unit that a cgroup belongs to; '': none."""
    names = group.split("/")
    while names and not names[-1].endswith((".service", ".scope")):
        names.pop()
    return "/".join(names)


def _testify(ask: int, answer: int) -> None:
    """The witness's own process: answers each question with the signals that it received since."""
    us = os.getppid()
    if not spawn.become_helper(NAME.encode(), ask, answer):
        return
    while _signal.sigtimedwait(spawn.ALL_SIGNALS, 0):
        pass
    while os.read(0, 1):
        received = b""
        while info := _signal.sigtimedwait(spawn.ALL_SIGNALS, 0):
            if info.si_pid != us and info.si_code <= 0:  # else the kernel sent it (sigaction(2))
                received += b"%d %d " % (info.si_signo, info.si_pid)
        os.write(1, received + _END)
