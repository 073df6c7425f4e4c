"""Cleaning up after a supervisor that was killed.

Whoever finds the run does it: its keeper at once, else the next run of the queue, which reads
the holder's line in the run lock's file. Ending processes may be done by several at once and does
no harm; the record is written only by who holds the run lock, so it is written once.

What nobody can end (another user's process, one in uninterruptible sleep) may have closed the run
lock that it inherited, as sudo does: so whoever finds it holds the lock until it is gone
(`outlast`), and its line names it.

What proves that a process may be killed. The line is only text: damaged, copied, or of a version
that knows other backends. So nothing is ended unless
- every field has its form, and the line names the state directory that it was found in (`Holder`);
- the supervisor is dead: we hold the run lock that it held, or no live ticket has the run's id;
  and no process has the supervisor's number and start;
- the backend is one of ours, and takes the token for that of this very run (`attach`);
- the processes are those that the backend holds for the run's (`groups`, `rlimit`).
What cannot be proved is left alone and said. Git's locks are moved only if every process is dead,
and only those made since the line was written (`git.stale`).
"""

import os
import sys
import time

from sandrun import history, messages
from sandrun.model import SandrunError
from sandrun.queue import Queue, RunLock
from sandrun.queue.holder import Holder, alive, note_unkillable, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.backends.protocol import Container
    from sandrun.types import Record


_LOOK = 1.0
"""Seconds between two looks at what cannot be ended."""
_DYING = 1.0
"""Seconds that a killed process may still be seen after its ticket."""


def outlast(container: "Container", known: "dict[int, int]") -> None:
    """Return when none of these processes lives, nor what they start, nor any of the container.

    They may fork and exit, and be another user's: so they are looked at each second, and the whole
    container, which on the fallback is a scan of the host, only when none of them is left."""
    if sys.platform == "win32":
        return  # no process of ours waits there
    import select

    from sandrun.platform import processes

    while known := alive(known) or {pid: processes.start(pid) for pid in container.live_pids()}:
        waiter = select.poll()
        pinned = [fd for fd in map(processes.pin, known) if fd >= 0]
        for fd in pinned:
            waiter.register(fd, select.POLLIN)
        waiter.poll(_LOOK * 1000)
        for fd in pinned:
            os.close(fd)
        for started in [below for pid in known for below in processes.descendants(pid)]:
            known.setdefault(started, processes.start(started))


def end_orphans(queue: Queue, line: bytes) -> bool:
    """End what is left of the run that `line` tells of, if its supervisor is dead.

    False: it is alive, or the line does not prove what may be ended.
    """
    holder = parse(line)
    if not holder or any(t.id == holder.id for t in queue.tickets()) or _is_alive(holder):
        return False
    container = _container(queue, holder)
    if container is None:
        return False
    return not _end(container, holder)


def _is_alive(holder: Holder) -> bool:
    """Whether the supervisor lives all the same: its ticket was removed by hand, or the line is
    that of another queue."""
    from sandrun.platform import processes

    pid = int(holder.pid)
    deadline = time.monotonic() + _DYING
    while holder.born and processes.start(pid) == holder.born and not processes.is_zombie(pid):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.005)
    return False


def _container(queue: Queue, holder: Holder) -> "Container | None":
    """The run's container, if the line proves that there may be one of ours."""
    from sandrun import backends

    try:
        # A copy of a state directory speaks of runs that are none of its own.
        if not os.path.samefile(holder.state, queue.path):
            return None
        container = backends.named(holder.backend).attach(holder.id, holder.container)
    except (SandrunError, ImportError, OSError):
        return None
    container.mark = f"{holder.state}/{holder.id}"
    return container


def _end(container: "Container", holder: Holder) -> "dict[int, int]":
    """End the run's processes; those that live on, with their starts."""
    from sandrun.platform import processes

    pids: list[int] = []
    try:
        container.kill()
    except TimeoutError as error:
        pids = error.args[0]
        messages.warn(f"processes of the ended run {holder.id} do not die: {pids}")
    return alive({**holder.unkillable, **{pid: processes.start(pid) for pid in pids}})


def finish(container: "Container", line: bytes, lock: "RunLock | None") -> None:
    """End a lost run for good, whose own process we are: processes, container, record. Returns when
    its processes are dead. The caller holds the run lock, if the run has one."""
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


def _finish(container: "Container", holder: Holder, env: "Mapping[str, str]") -> None:
    """What is to be done when all its processes are dead."""
    container.close()
    _record_lost(holder)
    if not holder.leaves and holder.backend != "none" and os.path.isabs(holder.cwd):
        from sandrun.git import guard

        guard.heal_after(holder.cwd, holder.since, holder.id, env, holder.cwd)


def _record_lost(holder: Holder) -> None:
    """Record the run as lost, unless its supervisor was killed after its own record."""
    wall = max(0.0, time.time() - holder.since)
    record: Record = {**holder.record, "wall": wall, "exit": 137, "reason": "lost"}
    try:
        if not history.recorded(holder.id):
            history.append(record, holder.state)
    except OSError:
        messages.decision("cannot record the lost run")


def take_over(lock: RunLock, private: "list[int]") -> bool:
    """After taking the run lock: clean up after a holder that did not end by itself. False: some of
    its processes cannot be ended, and the lock is held for them by a process that has none of the
    descriptors `private`."""
    line = lock.read_holder()
    if not line:
        return True
    holder = parse(line)
    if holder is None:
        messages.warn(
            "a killed sandrun left a line that is damaged or of another version: nothing is ended",
            f"what it had started may still run; the line is in {lock.queue.path}",
        )
        return True
    messages.status(
        f"cleaning up after run {holder.id}: its sandrun (pid {int(holder.pid)}) was killed"
    )
    container = None if _is_alive(holder) else _container(lock.queue, holder)
    if container is None:
        messages.warn(
            f"what is left of run {holder.id} cannot be told from others: nothing is ended",
            "end it by hand if it still runs; a sandrun of another version started it",
        )
        _record_lost(holder)
        return True
    # The line was written when the run began, whatever it says itself.
    holder.since = max(holder.since, lock.written_at())
    living = _end(container, holder)
    if living:
        _record_lost(holder)
        note_unkillable(lock, line, living)
        from sandrun.supervise import keeper

        def wait() -> None:
            outlast(container, living)
            container.close()

        return not keeper.hold(lock, private, wait)
    # Where this run's own git variables lead is not where the other's led.
    _finish(container, holder, {})
    return True
