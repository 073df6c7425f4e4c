"""The holder's line: what the run lock's file says of the run that holds it.

A run writes it when its command starts, so that whoever finds its supervisor dead knows what to end
and what to record (`sandrun.lifecycle.recovery`). The line is only text: nothing of it is believed
unless each field has its form (`parse`).
"""

import os
import sys
import time

from sandrun import history
from sandrun.model import is_run_id
from sandrun.queue import Queue, RunLock, StateGone, Ticket, read_holder_line
from sandrun.queue.queue import slot_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


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
    return list(alive(holder.unkillable)) if holder else []


def kept_for(queue: Queue) -> "list[int]":
    """The processes that could not be ended, live still, and keep run locks of a queue; no lock is
    taken to find out."""
    return [pid for _, line in lines(queue) for pid in unkillable(line)]


def parse(line: bytes) -> "Holder | None":
    """What a holder's line says; None: it is not one of ours."""
    import json

    try:
        return Holder(json.loads(line))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def alive(known: "dict[int, int]") -> "dict[int, int]":
    from sandrun.platform import processes

    return {
        pid: start
        for pid, start in known.items()
        if processes.start(pid) == start and not processes.is_zombie(pid)
    }


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
                return str(record.get("cwd", ""))
    try:
        return processes.directory(ticket.pid)
    except OSError:
        return ""
