"""Waiting, with one deadline, for a turn and then for git's own locks.

Imported only if a lock is held. In `sandrun git` signals act as on git: there are no handlers, so
Ctrl-C ends it at once and the kernel removes it from the queue. A run has to clean up first: there
signals end the wait (`Interruptible`).
"""

import fcntl
import os
import sys
import time

from sandrun import messages
from sandrun.bare import signal as _signal
from sandrun.git import classify, git_processes, lock_files, record_locks, stale
from sandrun.git.repository import Repository
from sandrun.model import span_text
from sandrun.platform import processes

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType


_TERMINATING = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)


class Interruptible:
    """While a run waits, signals that would end git raise errors.Interrupted, unless ignored."""

    def __init__(self, mask: "set[int]") -> None:
        self.mask = mask

    def __enter__(self) -> None:
        handled = [
            number for number in _TERMINATING if _signal.getsignal(number) != _signal.SIG_IGN
        ]
        self.handlers = {number: _signal.signal(number, _interrupt) for number in handled}
        self.before = _signal.pthread_sigmask(_signal.SIG_SETMASK, self.mask)

    def __exit__(self, *_: object) -> None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self.before)
        for number, handler in self.handlers.items():
            _signal.signal(number, handler)


def _interrupt(signum: int, frame: "FrameType | None") -> None:
    from sandrun.errors import Interrupted

    raise Interrupted(signum)


class _TimeUp(Exception):
    """The time is over; raised only while blocked in fcntl(2)."""


class Wait:
    """The waits of one command, with one deadline.

    `patience` is in seconds; `going_on` says in the message what follows after it. Waiting for a
    turn also ends if the same process holds it for `per_holder` seconds.
    """

    def __init__(
        self,
        repo: Repository,
        patience: float,
        going_on: str,
        per_holder: float = float("inf"),
    ) -> None:
        self.repo = repo
        self.patience = patience
        self.per_holder = per_holder
        self.deadline = time.monotonic() + patience
        self.going_on = going_on
        self.blocked = False

    def turn(self, fd: int, operation: int, byte: int) -> bool:
        """Wait for a lock of the guard file; return whether it was acquired."""
        pid = record_locks.holder(fd, operation, byte)
        if pid and pid in processes.ancestors(os.getpid()):
            messages.decision(f"{self.repo.top}: inside {git_processes.text([pid])}: not waiting")
            return False
        reporter = (
            self._report_later(fd, operation, byte) if self.patience > lock_files.SILENCE else 0
        )
        try:
            while not self._lock(fd, operation, byte):
                before, pid = pid, record_locks.holder(fd, operation, byte)
                if pid == before or time.monotonic() >= self.deadline:
                    break
            else:
                return True
        finally:
            _end(reporter)
        if self.patience:
            messages.warn(
                f"{self.repo.top}: waited {span_text(min(self.patience, self.per_holder))} for "
                f"{_text(record_locks.holder(fd, operation, byte))}; {self.going_on}"
            )
        return False

    def _report_later(self, fd: int, operation: int, byte: int) -> int:
        """Fork a child that reports the holder after a while; return its pid. The wait itself must
        not be interrupted: a process that leaves fcntl(2) loses its place in the kernel's queue."""
        waiter = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            for number in _TERMINATING:
                _signal.signal(number, _signal.SIG_DFL)
            time.sleep(lock_files.SILENCE)
            holder = record_locks.holder(fd, operation, byte)
            if os.getppid() == waiter != holder:
                messages.status(f"{self.repo.top}: waiting for {_text(holder)}")
        finally:
            os._exit(0)

    def _lock(self, fd: int, operation: int, byte: int) -> bool:
        """Block in fcntl(2) until the lock is acquired, or until the deadline or `per_holder`
        passes."""
        handler = _signal.signal(_signal.SIGALRM, self._alarm)
        mask = _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGALRM})
        # It repeats because the first alarm may arrive just before fcntl(2) blocks.
        seconds = min(max(self.deadline - time.monotonic(), 0.001), self.per_holder)
        _signal.setitimer(_signal.ITIMER_REAL, seconds, 0.05)
        try:
            self.blocked = True
            fcntl.lockf(fd, operation, 1, byte)
            return True
        except (_TimeUp, OSError):  # EDEADLK: another process locks in another order
            return False
        finally:
            self.blocked = False
            _signal.setitimer(_signal.ITIMER_REAL, 0)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
            _signal.signal(_signal.SIGALRM, handler)

    def _alarm(self, signum: int, frame: "FrameType | None") -> None:
        if self.blocked:
            raise _TimeUp

    def locks(self, needs: int) -> None:
        """Wait for git's own lock files that these needs conflict with."""
        paths = lock_files.in_the_way(self.repo, needs)
        lock = lock_files.wait_gone(
            self.repo, paths, self.deadline, lambda path: stale.heal(self.repo, path)
        )
        if lock and self.patience:
            messages.warn(
                f"{self.repo.top}: waited {span_text(self.patience)} for "
                f"{lock_files.owner_text(self.repo, lock)}; {self.going_on}",
                f"if no git is active there: sandrun git -C {self.repo.top} unlock",
            )

    def quiet(self) -> None:
        """Wait until no git is active in this worktree, without acquiring a turn."""
        fd = record_locks.open_file(self.repo.git_dir, make=False)
        if fd >= 0:
            # A waiter's lock would delay git commands for a moment, so only request a held one.
            if record_locks.holder(fd, fcntl.LOCK_SH, record_locks.TREE_BYTE):
                self.turn(fd, fcntl.LOCK_SH, record_locks.TREE_BYTE)
            os.close(fd)
        self.locks(classify.TREE)


def _end(child: int) -> None:
    if child:
        os.kill(child, _signal.SIGKILL)
        try:
            os.waitpid(child, 0)
        except ChildProcessError:  # SIGCHLD is ignored, as by our caller
            pass


def _text(pid: int) -> str:
    return git_processes.text([pid] if pid else []) or "a git that cannot be seen from here"
