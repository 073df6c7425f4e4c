"""The keeper: a small process that outlives a killed supervisor and ends the run.

Promise: when the supervisor dies by whatever means, every process of its run is killed at once,
the container removed, the run recorded as lost, and only then is the run lock free.

It is forked before the command, sits in a session of its own (a signal to the whole process group
or a hang-up does not reach it), blocks every signal that can be blocked, and sleeps in poll(2) on
a pipe whose only other end is the supervisor's: end of file is the supervisor's death. It shares
the run lock's open file, so the lock is held until it is done. If it is killed alone, the
supervisor starts another; if both are killed, the next run of the queue does its work
(`sandrun.recovery`).

It also watches the container's events and the supervisor's parent, for the supervisor waits for
signals and can wait for nothing else: an event becomes a knock, a real-time signal, which the
kernel queues even when one is pending. (A thread in the supervisor would do as well, but a
process with a thread can neither fork another keeper safely nor close what the thread polls.)
PR_SET_PDEATHSIG would cost the hot path ctypes, and speaks of the parent's thread.

Its name and command line do not say sandrun: `pkill -f sandrun` is for the supervisor, and whoever
survives that is the one who cleans up.
"""

import _signal
import os

from sandrun.supervisor import KNOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.protocol import Container
    from sandrun.runlock import RunLock


_NAME = b"run-keeper"


class Keeper:
    """A running keeper; `pid` is its process, a child of the supervisor."""

    __slots__ = ("_close", "_container", "_line", "_lock", "_pipe", "parent", "pid", "pids")

    def __init__(
        self,
        container: "Container",
        close: "list[int]",
        lock: "RunLock | None",
        line: bytes,
        parent: int,
    ) -> None:
        """Start a keeper. `close`: descriptors that must not live on in it; `line`: what the
        run lock's file says of the run (a nested run has no `lock` of its own); `parent`: the
        supervisor's, whose death is an event as well (0: not).
        """
        self.parent = parent
        self.pids: set[int] = set()
        """All that there were: a knock may arrive after the death of who sent it."""
        self._container = container
        self._close = close
        self._lock = lock
        self._line = line
        self._start()

    def _start(self) -> None:
        read_end, self._pipe = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._pipe)
                self.keep(read_end)
            finally:
                os._exit(0)
        os.close(read_end)
        self.pids.add(self.pid)
        self._container.keeper = self.pid

    def replace(self) -> None:
        """It was killed and reaped: start another, so that only both at once can be missed."""
        os.close(self._pipe)
        self._start()

    def dismiss(self) -> None:
        """The run is over and its container closed: the keeper has nothing left to do."""
        try:
            os.write(self._pipe, b".")
        except OSError:
            pass  # it was killed; nothing is left for it anyway
        os.close(self._pipe)

    def reap(self) -> None:
        """Wait for the dismissed keeper, so that the end of sandrun leaves no process."""
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass

    def keep(self, pipe: int) -> None:
        """What the keeper's own process does."""
        supervisor = os.getppid()
        os.setsid()
        _rename()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for fd in self._close:
            os.close(fd)
        os.chdir("/")
        if not self._supervisor_died(pipe, supervisor):
            return
        from sandrun import recovery

        # Where a process does not die the lock stays held, by the file that process inherited.
        if recovery.finish(self._container, self._line) and self._lock:
            self._lock.release()

    def _supervisor_died(self, pipe: int, supervisor: int) -> bool:
        """Sleep until the pipe tells the end: True at its end of file, False at a dismissal."""
        import select

        waiter = select.poll()
        waiter.register(pipe, select.POLLIN)
        events, mask = self._container.events
        if events >= 0:
            waiter.register(events, mask)
        parent = _open_process(self.parent)
        if parent >= 0:
            waiter.register(parent, select.POLLIN)
        while True:
            ready = dict(waiter.poll())
            if pipe in ready:
                return not os.read(pipe, 1)
            _knock(supervisor)
            if parent in ready:
                waiter.unregister(parent)
            if events in ready and mask == select.POLLPRI:
                os.pread(events, 4096, 0)  # kernfs reports a change until the file is read again
            elif events in ready:
                waiter.unregister(events)  # an eventfd, left for the supervisor to read


def _knock(supervisor: int) -> None:
    if os.getppid() == supervisor:
        try:
            os.kill(supervisor, KNOCK)
        except BlockingIOError:  # the queue of signals is full: one that needs no place in it
            os.kill(supervisor, _signal.SIGCHLD)


def _open_process(pid: int) -> int:
    """A pidfd, readable when the process dies; -1: none. Whether it was dead already the
    supervisor finds out by itself, by its parent having changed."""
    try:
        return os.pidfd_open(pid) if pid else -1
    except (OSError, AttributeError):  # before Linux 5.3, or it is gone
        return -1


def _rename() -> None:
    """Change what ps and pkill see: the name, and the command line in our memory (proc(5))."""
    try:
        with open("/proc/self/comm", "wb") as comm:
            comm.write(_NAME)
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(_NAME[: end - start - 1].ljust(end - start, b"\0"))
    except (OSError, ValueError, IndexError):
        pass  # not Linux, or a kernel that hides them
