"""The keeper: a small process that outlives a killed supervisor and ends the run.

Promise: when the supervisor dies by whatever means, every process of its run is killed at once,
the container removed, the run recorded as lost, and only then is the run lock free.

It is forked before the command, sits in a session of its own (a signal to the whole process group
or a hang-up does not reach it), blocks every signal that can be blocked, and sleeps in poll(2) on
a pipe whose only other end is the supervisor's: end of file is the supervisor's death. It shares
the run lock's open file, so the lock is held until it is done. If it is killed alone, the
supervisor starts another; if both are killed, the next run of the queue does its work
(`sandrun.recovery`).

It also watches the container's events, for the supervisor waits for signals and can wait for
nothing else: an event becomes a SIGCHLD. (A thread in the supervisor would do as well, but a
process with a thread can neither fork another keeper safely nor close what the thread polls.)
"""

import _signal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.protocol import Container
    from sandrun.runlock import RunLock


class Keeper:
    """A running keeper; `pid` is its process, a child of the supervisor."""

    __slots__ = ("_close", "_container", "_line", "_lock", "_pipe", "pid")

    def __init__(
        self, container: "Container", close: "list[int]", lock: "RunLock | None", line: bytes
    ) -> None:
        """Start a keeper. `close`: descriptors that must not live on in it; `line`: what the
        run lock's file says of the run (a nested run has no `lock` of its own).
        """
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
                _keep(self._container, self._close, self._lock, self._line, read_end)
            finally:
                os._exit(0)
        os.close(read_end)
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


def _keep(
    container: "Container", close: "list[int]", lock: "RunLock | None", line: bytes, pipe: int
) -> None:
    supervisor = os.getppid()
    os.setsid()
    try:
        with open("/proc/self/comm", "w") as comm:  # what ps and top show
            comm.write("sandrun-keeper")
    except OSError:
        pass
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for fd in close:
        os.close(fd)
    os.chdir("/")
    if not _supervisor_died(pipe, *container.events, supervisor):
        return
    from sandrun import recovery

    # Where a process does not die the lock stays held, by the file that process inherited.
    if recovery.finish(container, line) and lock:
        lock.release()


def _supervisor_died(pipe: int, events: int, mask: int, supervisor: int) -> bool:
    """Sleep until the pipe tells the end: True at its end of file, False when we are dismissed."""
    import select

    waiter = select.poll()
    waiter.register(pipe, select.POLLIN)
    if events >= 0:
        waiter.register(events, mask)
    while True:
        ready = dict(waiter.poll())
        if pipe in ready:
            return not os.read(pipe, 1)
        if os.getppid() == supervisor:
            os.kill(supervisor, _signal.SIGCHLD)
        if mask == select.POLLPRI:
            os.pread(events, 4096, 0)  # kernfs reports a change until the file is read again
        else:
            waiter.unregister(events)  # an eventfd, left for the supervisor to read
