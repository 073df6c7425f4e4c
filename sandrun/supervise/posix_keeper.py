"""The keeper: a small process that outlives a killed supervisor and ends the run.

Promise: when the supervisor dies for any reason, every process of its run is killed at once, the
container is removed, the run is recorded as lost, and only then is the run lock free. A process
that cannot be killed (another user's) keeps the lock, also after a supervisor's normal exit.

The keeper has a session of its own (a signal to the whole process group or a hang-up does not
reach it), blocks every signal that can be blocked, and blocks in poll(2) on a pipe whose only other
end is the supervisor's: end of file is the supervisor's death. It shares the open file of the run
lock, so the lock is held until the keeper exits. If only the keeper is killed, the supervisor
starts another.

In the first 5 ms of a run the keeper is a shell, which is started before the command and blocks in
`read`. The shell costs a run 1 ms. A forked keeper costs 3 ms, mostly for copying the pages that
either process writes, so a run of less than 5 ms does without. At end of file the shell becomes a
new interpreter, which ends the run by the holder's line, as the next run would. It inherits the
open files of our modules, because the command may already have removed the package.

If supervisor and keeper are killed together, a second keeper does the work. The first one starts it
after 20 ms, as an orphan, so that a program that kills a tree of processes from its root (CI agents
do) does not find it. It blocks in read(2), first until the supervisor's death, then until the first
keeper's; if dismissed, it exits before the first keeper does. Where PID 1 does not reap orphans, it
would stay as a zombie, so there it is a child of the first keeper. If all three are killed, the
next run of the queue does their work (`sandrun.lifecycle.recovery`).

The keeper also watches the container's events and the supervisor's parent, because the supervisor
blocks until a signal and can wait for nothing else: an event becomes a wakeup, a real-time signal,
which the kernel queues even when one is pending. (A thread could do that, but a process with
one cannot fork another keeper safely. PR_SET_PDEATHSIG reports the death of the parent's thread.)

The proof that it hits only the run: it ends the container that its supervisor opened, by the same
object (the shell: by the line that names it), and signals only its own parent, which is the
supervisor as long as that lives.

Its name and command line do not contain sandrun: `pkill -f sandrun` is meant for the supervisor,
and the keeper has to survive that to clean up.
"""

import os
import sys
import time

assert sys.platform != "win32"

from sandrun.bare import signal as _signal
from sandrun.model import DARWIN
from sandrun.platform import processes, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from sandrun.backends.protocol import Container

    class Elsewhere(Protocol):
        """The environment (None: not possible) and the open files of a new interpreter."""

        env: dict[str, str] | None
        files: list[int]

    class RunLock(Protocol):
        """What the keeper needs of the run lock."""

        def pass_on(self) -> None: ...
        def release(self) -> None: ...


_NAME = b"run-keeper"
_EARLY = b"early-keeper"
"""The name of the shell, and of a forked keeper until the shell has exited."""
_SCRIPT = """cd /; printf early-keeper >/proc/self/comm; read -r dismissed ||
exec "$KEEPER_PYTHON" -I -S -c 'import os; exec(os.environ["KEEPER_CODE"])'"""
"""The shell's script. It does not contain the word that `pkill -f sandrun` searches for."""


class Keeper:
    """A running keeper; `pid` is its process, a child of the supervisor."""

    __slots__ = (
        *("_container", "_finish", "_lock", "_pipe", "_with_second"),
        *("close", "complete_at", "is_shell", "parent", "pid", "pids"),
    )

    WAKEUP = getattr(_signal, "SIGRTMAX", _signal.SIGCHLD)
    """The signal by which a keeper asks the supervisor to poll the container and its parent."""

    def __init__(
        self,
        container: "Container",
        close: "list[int]",
        lock: "RunLock | None",
        finish: "Callable[[], None]",
        parent: int,
        with_second: bool,
        later: "Elsewhere",
    ) -> None:
        """Start a keeper. `close`: descriptors that must not stay open in it; `lock`: the run lock
        (None: a nested run has none of its own); `finish`: ends and records the run after the
        supervisor's death, returning when its processes are dead; `parent`: the supervisor's
        parent, whose death is an event as well (0: it is not); `with_second`: there is to be a
        second keeper (a supervisor that adopts orphans would take it for a process of the run);
        `later`: what a new interpreter needs to do the same as `finish`.
        """
        self.parent = parent
        self._with_second = with_second
        self.pids: set[int] = set()
        """All keepers so far: a wakeup may arrive after the death of its sender."""
        self._container = container
        self.close = close
        self._lock = lock
        self._finish = finish
        self.is_shell = later.env is not None and self._start_shell(later.env, later.files)
        """Whether it is still the shell of the run's first instant, until `complete`."""
        self.complete_at = time.monotonic() + 0.005  # a shorter run needs no forked keeper
        if not self.is_shell:
            self._start()

    def _start_shell(self, env: "dict[str, str]", inherited: "list[int]") -> bool:
        """Start a shell that becomes an interpreter when we die. False: there is no such shell."""
        read_end, pipe = os.pipe()
        files: list[tuple[object, ...]] = [
            (os.POSIX_SPAWN_DUP2, read_end, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        # dup2 of a descriptor to itself makes it inheritable (posix_spawn_file_actions_adddup2).
        files += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherited]
        try:
            self.pid = os.posix_spawn(
                "/bin/sh", ["sh", "-c", _SCRIPT], env, file_actions=files, setsid=True
            )
        except (OSError, NotImplementedError):
            os.close(pipe)
            return False
        finally:
            os.close(read_end)
        self._pipe = pipe
        self._container.helpers.add(self.pid)
        return True

    def complete(self) -> None:
        """Replace the shell, if the keeper still is one, by a keeper that also watches events."""
        if not self.is_shell:
            return
        self.is_shell = False
        # The new keeper has a copy of the pipe. So if we die here, the shell acts only if the new
        # keeper dies, too: never both, because one would release the run lock before the other.
        shell = self._pipe
        self._start(processes.open_pidfd(self.pid))
        _dismiss(shell)

    def _start(self, shell: int = -1) -> None:
        """Fork a keeper; `shell` is a pidfd of the shell that it replaces."""
        read_end, self._pipe = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._pipe)
                self.keep(read_end, shell)
            finally:
                os._exit(0)
        os.close(read_end)
        if shell >= 0:
            os.close(shell)
        self.pids.add(self.pid)
        self._container.helpers.add(self.pid)

    def replace(self) -> None:
        """Start another keeper for one that was killed and reaped; it starts its own second one."""
        self._container.helpers.discard(self.pid)
        self.is_shell = False
        self.dismiss()
        self._start()

    def dismiss(self) -> None:
        """Make the keepers exit: the run is over and its container is closed."""
        _dismiss(self._pipe)

    def outlast(self) -> None:
        """Leave the run lock to the keeper, which treats this as our death: it holds the lock as
        long as `finish` waits for unkillable processes. They may have closed the lock that they
        inherited: sudo closes it in the processes that it starts."""
        self.complete()
        if self._lock:
            self._lock.pass_on()
        os.close(self._pipe)
        self.pid = 0

    def reap(self) -> None:
        """Wait for the dismissed keeper, so that no process is left when sandrun exits."""
        try:
            if self.pid:
                os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass

    def keep(self, pipe: int, shell: int) -> None:
        """The keeper's own process."""
        supervisor = os.getppid()
        _detach(self.close)
        if shell >= 0:
            _await_exit(shell, pipe)  # two processes named run-keeper are the first and the second
            os.close(shell)
        spawn.rename_process(_NAME)
        second = _Second(pipe, self._finish)
        if not self._supervisor_died(pipe, supervisor, second):
            second.await_end()
        else:
            self._finish()
            # In this order: the second keeper must not act when another run may hold the lock.
            second.dismiss()
            if self._lock:
                self._lock.release()

    def _supervisor_died(self, pipe: int, supervisor: int, second: "_Second") -> bool:
        """Block until the supervisor's death (True: end of file) or a dismissal (False)."""
        import select

        waiter = select.poll()
        waiter.register(pipe, select.POLLIN)
        events, mask = self._container.events
        if events >= 0:
            waiter.register(events, mask)
        parent = _open_process(self.parent)
        if parent >= 0:
            waiter.register(parent, select.POLLIN)
        # When a PID 1 exits, the kernel kills every process of its namespace.
        wanted = self._with_second and supervisor != 1
        timeout = _INSTANT
        while True:
            ready = dict(waiter.poll(timeout if wanted and second.process < 0 else None))
            if pipe in ready:
                return not os.read(pipe, 1)
            if not ready or second.process in ready:
                if ready:
                    waiter.unregister(second.process)
                second.start()
                if second.process >= 0:
                    waiter.register(second.process, select.POLLIN)
                timeout *= 2  # if none can be started, try again ever more rarely
                continue
            _wake(supervisor)
            if parent in ready:
                waiter.unregister(parent)
            if events in ready and mask == select.POLLPRI:
                os.pread(events, 4096, 0)  # kernfs reports a change until the file is read
            elif events in ready:
                waiter.unregister(events)  # an eventfd, left for the supervisor to read


def _dismiss(pipe: int) -> None:
    try:
        os.write(pipe, b"\n\n")  # each keeper reads one byte, and a shell one line
    except OSError:
        pass  # they were killed, and had nothing left to do
    os.close(pipe)


def _detach(close: "list[int]") -> None:
    """Give up everything shared with the supervisor: session, name, descriptors and directory."""
    os.setsid()
    # A signal to our former group must not look like one that was sent to each process
    # (`sandrun.supervise.witness`).
    while not DARWIN and _signal.sigtimedwait(spawn.ALL_SIGNALS, 0):
        pass
    spawn.rename_process(_EARLY)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for fd in close:
        os.close(fd)
    os.chdir("/")


def _await_exit(*descriptors: int) -> None:
    """Return when one of them is readable: the process of a pidfd has exited."""
    import select

    waiter = select.poll()
    for fd in descriptors:
        waiter.register(fd, select.POLLIN)
    waiter.poll()


def hold(lock: "RunLock", close: "list[int]", until: "Callable[[], None]") -> bool:
    """Leave the run lock to a process that holds it until `until` returns, for a run that has
    unkillable processes. `close`: descriptors that must not stay open in that process. Returns
    whether there is such a process (not on Windows)."""
    if os.fork() == 0:
        try:
            _detach(close)
            spawn.rename_process(_NAME)
            until()
            lock.release()
        finally:
            os._exit(0)
    lock.pass_on()
    return True


class _Second:
    """The second keeper. `pipe`: as in the first keeper, end of file is the supervisor's death;
    `finish`: called if then the first keeper dies as well."""

    __slots__ = ("_finish", "_link", "_pipe", "pid", "process")

    def __init__(self, pipe: int, finish: "Callable[[], None]") -> None:
        self._pipe = pipe
        self._finish = finish
        self._link = -1
        self.pid = 0
        self.process = -1
        """Its pidfd; -1: there is none."""

    def start(self) -> None:
        """Start it, or another if it was killed. `process` is -1 if that failed: at a limit on
        processes or files, and before Linux 5.3, where its end could not be seen."""
        self._forget()
        try:
            link, self._link = os.pipe()
            answer, write_end = os.pipe()
        except OSError:
            return
        orphan = _orphans_are_reaped()
        try:
            child = os.fork()
            if child == 0:
                self._begin(orphan, link, write_end)
            if orphan:
                os.waitpid(child, 0)
        except OSError:
            pass
        os.close(link)
        os.close(write_end)
        self.pid = int(os.read(answer, 20) or 0)
        os.close(answer)
        self.process = _open_process(self.pid)

    def _begin(self, orphan: bool, link: int, answer: int) -> None:
        try:
            if not orphan or os.fork() == 0:
                os.write(answer, b"%d" % os.getpid())
                os.close(answer)
                os.close(self._link)
                os.setsid()
                self._keep(link)
        finally:
            os._exit(0)

    def _keep(self, link: int) -> None:
        if not os.read(self._pipe, 1) and not os.read(link, 1):
            self._finish()  # our exit frees the lock; the holder's line stays for the next run

    def dismiss(self) -> None:
        """Make it exit: the first keeper has done the work."""
        if self.process >= 0:
            os.write(self._link, b".")

    def await_end(self) -> None:
        """Return when it has exited, after the supervisor dismissed it."""
        if self.process >= 0:
            _await_exit(self.process)
            self._forget()

    def _forget(self) -> None:
        """Close the descriptors of a dead second keeper, and reap it."""
        for fd in (self.process, self._link):
            if fd >= 0:
                os.close(fd)
        self.process = self._link = -1
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pass  # an orphan


_INSTANT = 20
"""Milliseconds until a run gets a second keeper: a shorter run never pays for one."""


def _orphans_are_reaped() -> bool:
    """Whether PID 1 of our pid namespace reaps orphans: it is a program that is known to do so, and
    has no zombie now. Otherwise the supervisor adopts them (`cgroup_common.adopt_orphans`)."""
    return processes.orphans_are_reaped() and not any(
        map(processes.has_exited, processes.children(1))
    )


def _wake(supervisor: int) -> None:
    if os.getppid() == supervisor:
        try:
            os.kill(supervisor, Keeper.WAKEUP)
        except BlockingIOError:  # the signal queue is full: SIGCHLD needs no place in it
            os.kill(supervisor, _signal.SIGCHLD)


def _open_process(pid: int) -> int:
    """A pidfd, readable when the process dies; -1: none. If the parent was dead already, the
    supervisor sees that its parent has changed."""
    return processes.open_pidfd(pid) if pid else -1
