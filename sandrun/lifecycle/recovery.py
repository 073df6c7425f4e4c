"""Cleaning up after a supervisor that was killed.

The run's keeper does it at once. If the keepers were killed too, the next run of the queue does it:
it reads the holder's line in the run lock's file. Several processes may end a run's processes at
once, which is harmless. Only the holder of the run lock writes the record, so there is one record.

A process that cannot be ended (another user's, or one in uninterruptible sleep) may have closed the
run lock that it inherited, as sudo does. So the process that finds it holds the lock until the
unkillable one is gone (`outlast`), and the holder's line names that one.

A process is killed only with proof that it is the run's. The line is only text: it may be damaged,
copied, or written by a version that knows other backends. So nothing is ended unless
- every field is well-formed (`Holder`), and the line names the state directory that it was found
  in (`_container`);
- the supervisor is dead: we hold the run lock that it held, or no live ticket has the run's id; and
  no process has the supervisor's pid and start time;
- the backend is one of ours, and accepts the token as that of this very run (`attach`);
- the backend proves that the processes are the run's (`cgroup_common`, `rlimit`).
Processes without proof are left alone and reported. Git's locks are moved only if every process is
dead, and only those that were made after the line was written (`git.stale`).
"""

import os
import sys
import time

from sandrun import history, messages
from sandrun.model import SandrunError
from sandrun.queue import Queue, RunLock, read_holder_line
from sandrun.queue.holder import Holder, alive, note_unkillable, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.backends.protocol import Container
    from sandrun.types import Record


_POLL_SECONDS = 1.0
"""Seconds between two polls of processes that cannot be ended."""
_DYING = 1.0
"""Seconds for which a killed process may be visible after its ticket is gone."""


def outlast(container: "Container", known: "dict[int, int]") -> None:
    """Return when these processes, their descendants and all others of the container are dead.

    They may fork and exit, and may be another user's, so they are polled each second. The container
    is queried only when none of them is left, because with the fallback that scans all processes.
    """
    if sys.platform == "win32":
        return  # no process of ours waits there
    import select

    from sandrun.platform import processes

    while known := alive(known) or {pid: processes.start(pid) for pid in container.live_pids()}:
        waiter = select.poll()
        pinned = [fd for fd in map(processes.open_pidfd, known) if fd >= 0]
        for fd in pinned:
            waiter.register(fd, select.POLLIN)
        waiter.poll(_POLL_SECONDS * 1000)
        for fd in pinned:
            os.close(fd)
        for child in [below for pid in known for below in processes.descendants(pid)]:
            known.setdefault(child, processes.start(child))


def end_orphans(queue: Queue, line: bytes) -> bool:
    """End the processes left of the run that `line` describes, if its supervisor is dead.

    False: the supervisor is alive, some process survived, or the line does not prove which
    processes are the run's.
    """
    holder = parse(line)
    if not holder or any(t.id == holder.id for t in queue.tickets()) or _is_alive(holder):
        return False
    container = _container(queue, holder)
    if container is None:
        return False
    return not _end(container, holder)


def _is_alive(holder: Holder) -> bool:
    """Whether the supervisor is alive although its ticket is gone: the ticket was removed by hand,
    or the line is that of another queue."""
    from sandrun.platform import processes

    pid = int(holder.pid)
    deadline = time.monotonic() + _DYING
    while holder.born and processes.start(pid) == holder.born and not processes.has_exited(pid):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.005)
    return False


def _container(queue: Queue, holder: Holder) -> "Container | None":
    """The run's container. None: the line does not prove that it is ours."""
    from sandrun import backends

    try:
        # The lines in a copy of a state directory describe runs of the original.
        if not os.path.samefile(holder.state, queue.path):
            return None
        container = backends.named(holder.backend).attach(holder.id, holder.container)
    except (SandrunError, ImportError, OSError):
        return None
    container.mark = f"{holder.state}/{holder.id}"
    return container


def _end(container: "Container", holder: Holder) -> "dict[int, int]":
    """End the run's processes. Returns those that survive, with their start times."""
    from sandrun.platform import processes

    pids: list[int] = []
    try:
        container.kill()
    except TimeoutError as error:
        pids = error.args[0]
        messages.warn(f"processes of the ended run {holder.id} do not die: {pids}")
    return alive({**holder.unkillable, **{pid: processes.start(pid) for pid in pids}})


def finish(container: "Container", line: bytes, lock: "RunLock | _InheritedLock | None") -> None:
    """End a lost run completely: processes, container, record. Called in the run's own keeper,
    which holds the run lock, if the run has one. Returns when the processes are dead."""
    holder = parse((lock.read_holder() if lock else b"") or line)
    if holder is None:
        return
    living = _end(container, holder)
    if living:
        _record_lost(holder)
        if lock:
            note_unkillable(lock, line, living)
        outlast(container, living)
    _finish(container, holder, os.environ)


class _InheritedLock:
    """The run lock of a process that has inherited its open files."""

    def __init__(self, descriptors: "list[int]") -> None:
        self.descriptors = descriptors

    def read_holder(self) -> bytes:
        return read_holder_line(self.descriptors[0])

    def write_holder(self, line: bytes) -> None:
        if sys.platform != "win32":
            os.ftruncate(self.descriptors[0], 0)
            os.pwrite(self.descriptors[0], line, 0)


def finish_inherited(line: bytes, descriptors: "list[int]") -> None:
    """Do the same as `finish` in a new process that has inherited only the open files of the run
    lock: the supervisor died within the first 5 ms (`sandrun.supervise.posix_keeper`)."""
    if sys.platform != "win32" and descriptors:
        import fcntl

        try:  # changes nothing if the lock is still that of our run
            fcntl.flock(descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another keeper has finished our run, and the holder's line is another run's
    lock = _InheritedLock(descriptors) if descriptors else None
    holder = parse((lock.read_holder() if lock else b"") or line)
    if holder is None:
        return
    from sandrun import backends

    container = backends.named(holder.backend).attach(holder.id, holder.container)
    container.mark = f"{holder.state}/{holder.id}"
    finish(container, line, lock)
    if sys.platform != "win32" and lock:
        os.ftruncate(descriptors[0], 0)
        for fd in descriptors:
            fcntl.flock(fd, fcntl.LOCK_UN)


def _finish(container: "Container", holder: Holder, env: "Mapping[str, str]") -> None:
    """Remove the container, write the record, and heal git, after all processes have died."""
    container.close()
    _record_lost(holder)
    if not holder.leaves and holder.backend != "none" and os.path.isabs(holder.cwd):
        from sandrun.git import guard

        guard.heal_after(holder.cwd, holder.since, holder.id, env, holder.cwd)


def _record_lost(holder: Holder) -> None:
    """Record the run as lost, unless its supervisor wrote a record before it was killed."""
    wall = max(0.0, time.time() - holder.since)
    record: Record = {**holder.record, "wall": wall, "exit": 137, "reason": "lost"}
    try:
        if not history.recorded(holder.id):
            history.append(record, holder.state)
    except OSError:
        messages.decision("cannot record the lost run")


def take_over(lock: RunLock, private: "list[int]") -> bool:
    """Clean up after the killed holder of the run lock, which we have acquired.

    False: some of its processes cannot be ended, and another process, which has closed the
    descriptors `private`, now holds the lock for them.
    """
    line = lock.read_holder()
    if not line:
        return True
    holder = parse(line)
    if holder is None:
        messages.warn(
            "a killed sandrun left a line that is damaged or of another version: nothing is ended",
            f"what it started may still run; the line is in {lock.queue.path}",
        )
        return True
    messages.status(
        f"cleaning up after run {holder.id}: its sandrun (pid {int(holder.pid)}) was killed"
    )
    container = None if _is_alive(holder) else _container(lock.queue, holder)
    if container is None:
        messages.warn(
            f"nothing proves which processes are left of run {holder.id}: nothing is ended",
            "end them by hand if they still run; a sandrun of another version started them",
        )
        _record_lost(holder)
        return True
    # The time of the file is proof of when the run began; the text is not.
    holder.since = max(holder.since, lock.written_at())
    return _end_all(lock, line, holder, container, private)


def _end_all(
    lock: RunLock, line: bytes, holder: Holder, container: "Container", private: "list[int]"
) -> bool:
    """End the processes of a lost run and finish it, or have the lock held for those that survive:
    see `take_over`."""
    living = _end(container, holder)
    if living:
        _record_lost(holder)
        note_unkillable(lock, line, living)
        from sandrun.supervise import keeper

        def wait() -> None:
            outlast(container, living)
            container.close()

        return not keeper.hold(lock, private, wait)
    # Our own git variables may name another repository than that run's did.
    _finish(container, holder, {})
    return True
