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
from sandrun.model import SandrunError, is_run_id
from sandrun.queue import Queue, RunLock, read_holder_line
from sandrun.queue.ticket import StateGone, Ticket, slot_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sandrun.backends.protocol import Container
    from sandrun.types import Record


class Holder:
    """The run that a holder's line tells of. Every field has been checked: texts are texts without
    NUL, `state` is an absolute path, times lie in the past. `born` is the supervisor's start in
    clock ticks (0: not told), `record` what is known for the run's record; `unkillable` the
    processes that could not be ended, with their starts."""

    __slots__ = (
        *("backend", "born", "container", "cwd", "id", "leaves", "pid", "record", "since"),
        *("state", "unkillable"),
    )

    def __init__(self, fields: "Mapping[str, object]") -> None:
        """Raises ValueError for a field that we never write, TypeError for no fields at all."""
        self.id = _text(fields, "id")
        self.pid = _number(fields, "pid", 1 << 32)
        self.backend = _text(fields, "backend")
        self.container = _text(fields, "container")
        self.state = _text(fields, "state")
        self.cwd = _text(fields, "cwd")
        self.since = _number(fields, "since", time.time() + _AHEAD)
        self.born = int(_number(fields, "born", 1 << 62)) if "born" in fields else 0
        self.leaves = fields.get("leftovers") == "leave"
        self.unkillable = _starts(fields.get("unkillable"))
        known = fields.get("v", history.VERSION) == history.VERSION  # once there was no version
        if not known or not is_run_id(self.id) or not os.path.isabs(self.state):
            raise ValueError
        self.record = history.checked(fields)


_AHEAD = 3600.0
"""Seconds by which somebody may have set the clock back."""
_LOOK = 1.0
"""Seconds between two looks at what cannot be ended."""
_DYING = 1.0
"""Seconds that a killed process may still be seen after its ticket."""


def _text(fields: "Mapping[str, object]", key: str) -> str:
    value = fields.get(key)
    # What cannot be encoded or has a NUL is the name of no file.
    if not isinstance(value, str) or b"\0" in os.fsencode(value):
        raise ValueError
    return value


def _number(fields: "Mapping[str, object]", key: str, most: float) -> float:
    value = fields.get(key)
    if not isinstance(value, int | float) or not 0 < value < most:
        raise ValueError
    return value


def _starts(value: object) -> "dict[int, int]":
    """Processes by number, as `note_unkillable` writes them; they are only waited for."""
    pairs = value if isinstance(value, list) else []
    return {pid: start for pid, start in pairs if type(pid) is type(start) is int and pid > 1}


def note_unkillable(lock: RunLock, line: bytes, pids: "Iterable[int]") -> None:
    """Add to the holder's line which processes could not be ended."""
    import json

    from sandrun.platform import processes

    fields = {**json.loads(line), "unkillable": [[pid, processes.start(pid)] for pid in pids]}
    lock.write_holder(history.encode(fields).encode())


def unkillable(line: bytes) -> "list[int]":
    """The processes of a run that could not be ended and live still, by its holder's line."""
    holder = parse(line) if b'"unkillable"' in line else None
    return list(_alive(holder.unkillable)) if holder else []


def kept_for(queue: Queue) -> "list[int]":
    """The processes that could not be ended, live still, and keep run locks of a queue; no lock is
    taken to find out."""
    return [pid for _, line in lines(queue) for pid in unkillable(line)]


def _alive(known: "dict[int, int]") -> "dict[int, int]":
    from sandrun.platform import processes

    return {
        pid: start
        for pid, start in known.items()
        if processes.start(pid) == start and not processes.is_zombie(pid)
    }


def outlast(container: "Container", known: "dict[int, int]") -> None:
    """Return when none of these processes lives, nor what they start, nor any of the container.

    They may fork and exit, and be another user's: so they are looked at each second, and the whole
    container, which on the fallback is a scan of the host, only when none of them is left."""
    import select

    from sandrun.platform import processes

    while known := _alive(known) or {pid: processes.start(pid) for pid in container.live_pids()}:
        waiter = select.poll()
        pinned = [fd for fd in map(processes.pin, known) if fd >= 0]
        for fd in pinned:
            waiter.register(fd, select.POLLIN)
        waiter.poll(_LOOK * 1000)
        for fd in pinned:
            os.close(fd)
        for started in [below for pid in known for below in processes.descendants(pid)]:
            known.setdefault(started, processes.start(started))


def each_slot(queue: Queue) -> "Iterator[tuple[RunLock, bool]]":
    """Each slot that was ever taken in a state directory, and whether it was free: it is ours
    then, until dropped or released."""
    for slot in queue.slots():
        lock = RunLock(queue, slot, first=slot)
        try:
            is_free = lock.try_acquire()
        except StateGone:  # nobody can hold what is not there
            return
        yield lock, is_free
        lock.drop()


def lines(queue: Queue) -> "Iterator[tuple[os.stat_result, bytes]]":
    """Each slot's file in a state directory and the line in it, without locking anything. None on
    Windows, where what is locked cannot be read."""
    if sys.platform == "win32":
        return
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for slot in queue.slots():
        try:
            fd = os.open(slot_file("executor", slot), flags, dir_fd=queue.dir)
        except OSError:
            continue
        yield os.fstat(fd), read_holder_line(fd)
        os.close(fd)


def directory(queue: Queue, ticket: Ticket) -> str:
    """Where the run of a ticket was started; '' if that cannot be known. While the command runs,
    the supervisor is not there any more (but on Windows), and its line says where it was."""
    from sandrun.platform import processes

    if ticket.running:
        for record in history.records(line for _, line in lines(queue)):
            if record.get("id") == ticket.id:
                return record.get("cwd", "")
    try:
        return processes.directory(ticket.pid)
    except OSError:
        return ""


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


def parse(line: bytes) -> "Holder | None":
    """What a holder's line says; None: it is not one of ours."""
    import json

    try:
        return Holder(json.loads(line))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


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
    return _alive({**holder.unkillable, **{pid: processes.start(pid) for pid in pids}})


def finish(container: "Container", line: bytes, lock: "RunLock | None") -> None:
    """End a lost run for good, whose own process we are: processes, container, record. Returns when
    its processes are dead. The caller holds the run lock, if the run has one."""
    holder = parse((lock.read_holder() if lock else b"") or line)
    if holder is None:
        return
    alive = _end(container, holder)
    if alive:
        _record_lost(holder)
        if lock:
            note_unkillable(lock, line, alive)
        outlast(container, alive)
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
    alive = _end(container, holder)
    if alive:
        _record_lost(holder)
        note_unkillable(lock, line, alive)
        from sandrun.supervise import keeper

        return not keeper.hold(container, lock, alive, private)
    # Where this run's own git variables lead is not where the other's led.
    _finish(container, holder, {})
    return True
