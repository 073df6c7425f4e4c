"""How a waiter blocks on POSIX: in poll(2), until a ticket ahead is dead or a wakeup arrives.

Imported only by a run that has to wait (`sandrun.queue.waiter`). Invariants
- Signals act at once: they end the waiter (exit 128+n), unless the caller ignored them. They arrive
  through a pipe that poll(2) watches as well, so none is lost between a check and poll(2). The
  kernel alone handles stop signals (Ctrl-Z).
- flock(2) has no timeout and cannot be polled. So a child blocks in it, on the same open file. The
  lock that it gets belongs to that open file, and so to us. poll(2) reports the child's exit. The
  child dies with us.
- On macOS, such a child also waits for each of the foremost tickets (`sandrun.queue.posix_queue`).
"""

import fcntl
import os
import select
import sys

assert sys.platform != "win32"

from sandrun.bare import signal as _signal
from sandrun.errors import Interrupted, cancelled
from sandrun.model import DARWIN
from sandrun.queue.posix_queue import CANCEL, WAKEUP_SIGNAL
from sandrun.queue.posix_run_lock import RunLock
from sandrun.queue.queue import Ticket

_WATCHED = 8
"""On macOS, the number of tickets ahead that a waiter watches, each by a child: the foremost, which
run or will run next. The others' exits are found by a recheck."""
_END_SIGNALS = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)
_NOTIFIED = (WAKEUP_SIGNAL,) if DARWIN else ()


class Blocker:
    """See `sandrun.queue.waiter.Blocking`. In its context, the caller's signal mask `mask` applies.

    `private`: the descriptors of the run's own tickets, which no child may keep open.
    """

    def __init__(self, mask: "set[int]", private: "list[int]") -> None:
        self.mask = mask
        self.private = private

    def __enter__(self) -> "Blocker":
        self.pipe, self._write_end = os.pipe()
        for fd in (self.pipe, self._write_end):
            os.set_blocking(fd, False)
        self._wakeup = _signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        signals = [s for s in _END_SIGNALS if _signal.getsignal(s) != _signal.SIG_IGN]
        # While we were stopped, we may have become the head of the queue: re-read it on SIGCONT.
        signals += [_signal.SIGCONT, *_NOTIFIED]
        self.handlers = {signum: _signal.signal(signum, _interrupt) for signum in signals}
        self.before = _signal.pthread_sigmask(_signal.SIG_SETMASK, self.mask)
        return self

    def __exit__(self, kind: "type[BaseException] | None", *_: object) -> None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self.before)
        for signum, handler in self.handlers.items():
            _signal.signal(signum, handler)
        _signal.set_wakeup_fd(self._wakeup)
        try:
            if kind is None:
                self._read_signals()  # one that arrived after the last poll
        finally:
            os.close(self.pipe)
            os.close(self._write_end)

    def _read_signals(self) -> None:
        try:
            for signum in os.read(self.pipe, 64):
                if signum in _END_SIGNALS:
                    raise Interrupted(signum)
        except BlockingIOError:
            pass

    def block(self, own: Ticket, seconds: float) -> None:
        self._poll([], own, seconds)

    def block_on_tickets(self, tickets: "list[Ticket]", own: Ticket, seconds: float) -> bool:
        if not DARWIN:
            return self._poll([ticket.fd for ticket in tickets], own, seconds)
        foremost = [ticket.fd for ticket in tickets[-_WATCHED:]]
        return self._block_on_locks(foremost, fcntl.LOCK_SH, own, seconds)

    def block_on_run_lock(self, lock: RunLock, own: Ticket, seconds: float) -> None:
        self._block_on_locks(lock.blocked, fcntl.LOCK_EX, own, seconds)

    def _block_on_locks(
        self, files: "list[int]", operation: int, own: Ticket, seconds: float
    ) -> bool:
        """Poll until one of these open files is locked: the lock belongs to the open file."""
        children = [_LockingChild(fd, operation, [*self.private, self.pipe]) for fd in files]
        try:
            return self._poll([child.pipe for child in children], own, seconds)
        finally:
            for child in children:
                child.kill()

    def _poll(self, hangups: "list[int]", own: Ticket, seconds: float) -> bool:
        """Poll until one of `hangups` is hung up, `own` is notified, a signal arrives or the time
        is over. True: hang-ups were the only events."""
        poll = select.poll()
        for fd in hangups:
            # Only the owner reads a FIFO's bytes, so we do not poll for them. macOS reports the
            # hang-up of a pipe only to a process that polls it for reading.
            poll.register(fd, select.POLLIN if DARWIN else 0)
        poll.register(self.pipe, select.POLLIN)
        if DARWIN:
            self._read_notifications(own)
        else:
            poll.register(own.fd, select.POLLIN)
        events = poll.poll(seconds * 1000 + 1)
        self._read_signals()
        if DARWIN or any(fd == own.fd for fd, _ in events):
            self._read_notifications(own)
        return bool(events) and all(fd in hangups for fd, _ in events)

    def _read_notifications(self, own: Ticket) -> None:
        if CANCEL in os.read(own.fd, 4096):
            raise cancelled()


def _interrupt(signum: int, frame: object) -> None:
    """A signal handler that does nothing: Python writes the numbers of handled signals to the pipe
    (signal.set_wakeup_fd), which ends poll(2)."""


class _LockingChild:
    """A child that blocks in flock(2) for us; once it has the lock, it exits: `pipe` is hung up."""

    def __init__(self, fd: int, operation: int, private: "list[int]") -> None:
        from sandrun.platform import processes

        parent = os.getpid()
        self.pipe, end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                processes.die_with(parent)
                # Its copies would keep our tickets alive and the caller's pipes open.
                for other in (*private, self.pipe, 0, 1, 2):
                    os.close(other)
                _signal.set_wakeup_fd(-1)
                for signum in _END_SIGNALS:
                    if _signal.getsignal(signum) == _interrupt:
                        _signal.signal(signum, _signal.SIG_DFL)
                fcntl.flock(fd, operation)
            finally:
                os._exit(0)
        os.close(end)

    def kill(self) -> None:
        os.close(self.pipe)
        os.kill(self.pid, _signal.SIGKILL)  # our child, not yet reaped, so the pid is not reused
        os.waitpid(self.pid, 0)
