"""Waiting for a turn: sleeping in flock(2), waking for signals and for a look around.

Imported only by a run that has to wait. Invariants
- A waiter's signals act at once: they leave the queue (exit 128+n); those that the caller ignored
  stay ignored. Stops (Ctrl-Z) are left to the kernel.
- A stopped process must not stall those behind it, and the kernel tells nobody that a process
  was stopped: so each waiter looks at the one ahead every few seconds, and passes it by while it
  is stopped. It passes in the order only; the run lock still excludes.
"""

import _signal
import fcntl
import os
import time

from sandrun import messages
from sandrun.model import EXIT_GAVE_UP, SandrunError, span_text
from sandrun.queue import Queue, RunLock, Ticket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

TICK = 2.0
"""Seconds between two looks around."""
HEARTBEAT = 30.0
"""Seconds between two lines that say the same, where there is no terminal."""

_LEAVING = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)


class Left(Exception):
    """A signal told the waiter to go."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Tick(Exception):
    """Time to look around; raised only while blocked."""


class Patience:
    """The signal set-up of a wait; restores what was there.

    A signal that lands in the instant before flock(2) blocks is noticed at the next tick at the
    latest, because the timer repeats.
    """

    def __init__(self, mask: "set[int]") -> None:
        self.mask = mask
        self.blocked = False

    def __enter__(self) -> "Patience":
        self.handlers = {
            signum: _signal.signal(signum, self._leave)
            for signum in _LEAVING
            if _signal.getsignal(signum) != _signal.SIG_IGN
        }
        self.handlers[_signal.SIGALRM] = _signal.signal(_signal.SIGALRM, self._tick)
        _signal.setitimer(_signal.ITIMER_REAL, TICK, TICK)
        self.before = _signal.pthread_sigmask(_signal.SIG_SETMASK, self.mask)
        return self

    def __exit__(self, *_: object) -> None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self.before)
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        for signum, handler in self.handlers.items():
            _signal.signal(signum, handler)

    def _leave(self, signum: int, frame: "FrameType | None") -> None:
        raise Left(signum)

    def _tick(self, signum: int, frame: "FrameType | None") -> None:
        if self.blocked:
            raise _Tick

    def lock(self, fd: int, operation: int, deadline: float) -> bool:
        """Block in flock(2) for at most one tick; whether the lock was taken."""
        if deadline - time.monotonic() < TICK:
            _signal.setitimer(_signal.ITIMER_REAL, max(deadline - time.monotonic(), 0.001), TICK)
        try:
            self.blocked = True
            fcntl.flock(fd, operation)
            return True
        except _Tick:
            return False
        finally:
            self.blocked = False


def wait_turn(
    queue: Queue, ticket: Ticket, lock: RunLock, mask: "set[int]", timeout: float
) -> None:
    """Return when `lock` is ours and `ticket` is the head.

    `mask` is the caller's signal mask, `timeout` in seconds (0: for ever). Raises Left,
    StateGone, and SandrunError with exit code 75 when the time is up.
    """
    deadline = time.monotonic() + timeout if timeout else float("inf")
    feedback = Feedback(queue, ticket)
    with Patience(mask) as patience:
        try:
            while not _try_turn(queue, ticket, lock, patience, deadline, feedback):
                if time.monotonic() >= deadline:
                    raise SandrunError(
                        f"gave up after waiting {span_text(timeout)} for a turn",
                        "see who runs with: sandrun status",
                        EXIT_GAVE_UP,
                    )
        finally:
            feedback.end()


def _try_turn(
    queue: Queue,
    ticket: Ticket,
    lock: RunLock,
    patience: Patience,
    deadline: float,
    feedback: "Feedback",
) -> bool:
    """One sleep at the right place, until a wake-up or a tick; True: the turn is ours."""
    ignored: set[str] = set()
    while (ahead := queue.ahead(ticket, frozenset(ignored))) is not None:
        try:
            if _is_stopped(ahead.pid):
                ignored.add(ahead.name)
                continue
            feedback.show()
            patience.lock(ahead.fd, fcntl.LOCK_SH, deadline)
            return False
        finally:
            os.close(ahead.fd)
    if lock.try_take():
        return True
    # Nobody alive is ahead, yet the lock is held: a dead supervisor's tree, a stopped process
    # that we passed by, or a holder between its last two steps.
    if not _end_orphans(queue, lock):
        feedback.show()
    return patience.lock(lock.fd, fcntl.LOCK_EX, deadline) and lock.is_current()


def _is_stopped(pid: int) -> bool:
    """State T of /proc/PID/stat (proc(5)); the name before it may hold anything but the last )."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(fd, 4096).rpartition(b")")[2][1:2] in (b"T", b"t")
    except OSError:
        return False
    finally:
        os.close(fd)


def _end_orphans(queue: Queue, lock: RunLock) -> bool:
    line = lock.read_holder()
    if not line:
        return False
    from sandrun import recovery

    return recovery.end_orphans(queue, line)


class Feedback:
    """Tells the waiter's user where it stands: live on a terminal, a line per change elsewhere."""

    def __init__(self, queue: Queue, ticket: Ticket) -> None:
        self.queue = queue
        self.ticket = ticket
        self.terminal = messages.is_terminal() and os.environ.get("TERM", "dumb") != "dumb"
        self.shown = ""
        self.said_at = 0.0
        self.live = False

    def show(self) -> None:
        """Say the position and who runs, if that is news or a heartbeat is due."""
        if messages.level < 0:
            return
        names = self.queue.names()
        position = names.index(self.ticket.name) + 1 if self.ticket.name in names else len(names)
        head = Ticket(names[0]) if names else self.ticket
        if head.id == self.ticket.id:
            runs = "what an ended run left behind is still being ended"
        else:
            runs = f"running: {head.command} (pid {head.pid}{_where(head.pid)}"
        news = f"waiting, position {position} of {len(names)}; {runs}"
        age = f", for {span_text(max(0.0, time.time() - head.since))})" if "(" in runs else ""
        now = time.monotonic()
        if self.terminal:
            self._live(news + age)
        elif f"{position} {runs}" != self.shown or now - self.said_at >= HEARTBEAT:
            messages.status(news + age)
            self.shown = f"{position} {runs}"
            self.said_at = now

    def _live(self, text: str) -> None:
        line = f"sandrun: {text}"
        try:
            width = os.get_terminal_size(2).columns
        except OSError:
            width = 80
        if len(line) >= width > 4:
            line = line[: width - 2] + "…"
        messages.write("\r\x1b[K" + line)
        self.live = True

    def end(self) -> None:
        """Clear the live line, so that the command's output starts in a clean column."""
        if self.live:
            messages.write("\r\x1b[K")
            self.live = False


def _where(pid: int) -> str:
    try:
        return f", in {os.readlink(f'/proc/{pid}/cwd')}"
    except OSError:
        return ""
